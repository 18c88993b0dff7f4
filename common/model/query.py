"""Queries in GoogleSQL as the code of a job. What a text may not say is refused when the job is loaded."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gated_backfill.common.errors import UserError

if TYPE_CHECKING:
    from sqlglot import exp

PARAMETERS = ("days", "first_day", "last_day")  #: the dates that one statement builds, and the first and last of them
ROWS = "rows"  #: the table of a text with the rows of the chosen source
HISTORY = "history"  #: the table of a `derive` text with the source's rows, lookback included


@dataclass(frozen=True)
class Query:
    """One SELECT in GoogleSQL, which the warehouse runs instead of a Python function.

    Its tables are the job's own words: `rows` and the names of the inputs in `process`, `history` in `derive`. Its
    parameters are `@days`, `@first_day` and `@last_day`. It reads no other table, calls no clock, random or session
    function, and names each column that it returns.
    """

    text: str
    file_name: str | None = field(default=None, compare=False, kw_only=True)  #: for messages

    @classmethod
    def file(cls, name: str) -> Query:
        """Read the text from a file, whose path is relative to the folder of the calling module. Raises `UserError`."""
        here = inspect.currentframe()
        assert here is not None, "CPython has frames"
        assert here.f_back is not None, "it has a caller"
        path = Path(here.f_back.f_globals["__file__"]).parent / name
        try:
            return cls(path.read_text(encoding="utf-8"), file_name=name)
        except (OSError, UnicodeDecodeError) as exc:
            raise UserError(f"can't read the query {path}: {exc}") from exc

    def parse(self, owner: str) -> exp.Query:
        """Return the parsed text. Raises `UserError`, whose message begins with `owner`, for anything but one query."""
        owner = self._owner(owner)
        if not isinstance(self.text, str):  # pyright: ignore[reportUnnecessaryIsInstance] - as a job's author wrote it
            raise UserError(f"{owner}: the text of a Query is of type {type(self.text).__name__}, not str")
        try:
            return _parse(self.text)
        except ValueError as exc:
            raise UserError(f"{owner}: {exc}") from exc

    def check(
        self, owner: str, *, tables: Collection[str], columns: Collection[str], may_return_more: bool = False
    ) -> None:
        """Check that the text keeps the rules, reads only these tables and returns these columns.

        Raises `UserError`, whose message begins with `owner` and says where in the text the first problem is.
        """
        statement = self.parse(owner)
        problems = [*_problems(self.text, statement, tables), *_column_problems(statement, columns, may_return_more)]
        if problems:
            place, problem = min(problems, key=lambda found: found[0])
            raise UserError(f"{self._owner(owner)}: {_place_in_words(place)}{problem}")

    def _owner(self, owner: str) -> str:
        return f"{owner} ({self.file_name})" if self.file_name else owner


Place = tuple[int, int]  #: line and column, from 1
WHOLE_TEXT: Place = (sys.maxsize, 0)  #: behind every place: what a text lacks is said last


def _place_in_words(place: Place) -> str:
    return "" if place == WHOLE_TEXT else f"line {place[0]}, column {place[1]}: "


@lru_cache(maxsize=256)
def _parse(text: str) -> exp.Query:
    """Parse the text. Raises `ValueError`. The result must not be changed."""
    import sqlglot  # slow to import, and most jobs have no query
    from sqlglot import exp
    from sqlglot.errors import ParseError, SqlglotError

    logging.getLogger("sqlglot").setLevel(logging.ERROR)  # it warns of statements that are refused below
    try:
        statements = [one for one in sqlglot.parse(text, read="bigquery") if one is not None]
    except ParseError as exc:
        first: dict[str, Any] = exc.errors[0] if exc.errors else {}
        if "line" not in first:
            raise ValueError("it is not GoogleSQL that can be read") from exc
        place = (first["line"], max(first["col"] - len(first["highlight"]) + 1, 1))
        raise ValueError(f"{_place_in_words(place)}it can't be read near {first['highlight']!r}") from exc
    except SqlglotError as exc:
        raise ValueError("it is not GoogleSQL that can be read: a quotation mark may be missing") from exc
    if not statements:
        raise ValueError("it is empty")
    for statement in statements:  # before their number: a script is several statements
        if not isinstance(statement, exp.Query):
            word = statement.sql().split()[0] if isinstance(statement, exp.Command) else statement.key
            raise ValueError(f"it has a statement {word.upper()}: only one SELECT is allowed")
    if len(statements) > 1:
        raise ValueError(f"it has {len(statements)} statements: only one SELECT is allowed")
    query: Any = statements[0]
    return query


def _problems(text: str, statement: exp.Query, tables: Collection[str]) -> Iterator[tuple[Place, str]]:
    """What the text reads or calls and must not."""
    from sqlglot import exp

    impure = (
        exp.CurrentDate,
        exp.CurrentDatetime,
        exp.CurrentTime,
        exp.CurrentTimestamp,
        exp.CurrentUser,
        exp.Rand,
        exp.Randn,
        exp.SessionUser,
        exp.Uuid,
    )
    names = {cte.alias for cte in statement.find_all(exp.CTE)}
    readable = f"the tables of the text are {', '.join(tables)}"
    allowed = f"the parameters are {', '.join(f'@{name}' for name in PARAMETERS)}"
    for node in statement.walk():
        place = _place_of(node)
        if isinstance(node, exp.CTE) and node.alias in tables:
            yield place, f"WITH {node.alias} hides a table of the job"
        elif isinstance(node, exp.Table):
            name = ".".join(part.name or part.sql(dialect="bigquery") for part in node.parts)
            if name not in names and name not in tables:
                yield place, f"it reads {name}: {readable}"
            if node.args.get("version"):
                yield place, f"it reads {name} as of another time: a rebuild must give the same rows"
        elif isinstance(node, exp.TableSample):
            yield place, "TABLESAMPLE gives other rows each time"
        elif isinstance(node, impure):
            called = str(node.meta.get("bigquery_name") or node.sql_names()[0]).upper()
            place = place if place != WHOLE_TEXT else _place_of_token(text, called)
            yield place, f"it calls {called}: a rebuild must give the same rows, so use @first_day or @last_day"
        elif isinstance(node, exp.Placeholder):
            yield _place_of_token(text, "?"), f"it has the parameter ?: {allowed}"
        elif isinstance(node, exp.Parameter) and node.name not in PARAMETERS:
            yield (
                _place_of_token(text, node.name, before="@"),
                f"it has the parameter {node.sql('bigquery')}: {allowed}",
            )
        elif isinstance(node, exp.Select) and node.args.get("kind"):
            yield place, f"it is a SELECT AS {node.args['kind']}: name each column"


def _column_problems(
    statement: exp.Query, columns: Collection[str], may_return_more: bool
) -> Iterator[tuple[Place, str]]:
    """How the columns that the text returns differ from those that it must return."""
    from sqlglot import exp

    returned: dict[str, Place] = {}
    for number, column in enumerate(statement.selects, 1):
        place = _place_of(column)
        if isinstance(column, exp.Star) or (isinstance(column, exp.Column) and isinstance(column.this, exp.Star)):
            yield place, "it returns *: name each column"
            return
        name = column.alias_or_name
        if not name:
            yield place, f"column {number} has no name: add AS and a name"
        elif name in returned:
            yield place, f"it returns two columns {name}"
        elif name not in columns and not may_return_more:
            yield place, f"it returns {name}, which is not a column of the target"
        returned[name] = place
    if missing := [name for name in columns if name not in returned]:
        yield WHOLE_TEXT, f"it does not return {', '.join(missing)}"


def _place_of(node: Any) -> Place:
    """Where the node begins: its own place, or the first one of a part of it."""
    places = [
        (part.meta["line"], part.meta["col"] - (part.meta["end"] - part.meta["start"]))
        for part in node.walk()
        if "line" in part.meta
    ]
    return min(places, default=WHOLE_TEXT)


def _place_of_token(text: str, word: str, *, before: str = "") -> Place:
    """Where the word first is in the text, behind a token that begins with `before`; for nodes without a place."""
    from sqlglot.dialects.bigquery import BigQuery

    tokens = BigQuery().tokenize(text)
    found = (
        token
        for previous, token in zip([None, *tokens], tokens, strict=False)
        if token.text.upper() == word.upper() and (not before or (previous and previous.text.startswith(before)))
    )
    return next(((token.line, token.col - (token.end - token.start)) for token in found), WHOLE_TEXT)
