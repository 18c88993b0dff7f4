"""Queries in GoogleSQL as the code of a job. What a text may not say is refused when the job is loaded."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from gated_backfill.common.errors import UserError
from gated_backfill.common.process.caller import calling_folder

if TYPE_CHECKING:
    from sqlglot import exp

PARAMETERS = ("days", "first_day", "last_day")  #: the dates that one statement builds, and the first and last of them
ROWS = "rows"  #: the table of a text with the rows of the chosen source
SOURCE_COLUMN = "_source"  #: column of the rows to process with the name of the source each row came from
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
        folder = calling_folder()
        if folder is None:
            raise UserError(f"can't read the query {name}: Query.file is called in no file of a module")
        path = folder / name
        try:
            return cls(path.read_text(encoding="utf-8-sig"), file_name=name)
        except (OSError, ValueError) as exc:
            raise UserError(f"can't read the query {path}: {exc}") from exc

    def parse(self, owner: str) -> exp.Query:
        """Return the parsed text. Raises `UserError`, whose message begins with `owner`, for anything but one query."""
        owner = self._owner(owner)
        if not isinstance(self.text, str):  # pyright: ignore[reportUnnecessaryIsInstance] - as a job's author wrote it
            raise UserError(f"{owner}: the text of a Query is of type {type(self.text).__name__}, not str")
        try:
            return parse_query(self.text)
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
Dialect = Literal["bigquery", "duckdb"]
LANGUAGES: dict[Dialect, str] = {"bigquery": "GoogleSQL", "duckdb": "SQL of DuckDB"}
TOO_DEEP = "it is nested too deeply: split it by WITH"
WHOLE_TEXT: Place = (sys.maxsize, 0)  #: behind every place: what a text lacks is said last


def _place_in_words(place: Place) -> str:
    return "" if place == WHOLE_TEXT else f"line {place[0]}, column {place[1]}: "


@lru_cache(maxsize=256)
def parse_query(text: str, dialect: Dialect = "bigquery") -> exp.Query:
    """Parse the text. Raises `ValueError` for anything but one query. The result must not be changed."""
    import sqlglot  # slow to import, and most jobs have no query
    from sqlglot import exp
    from sqlglot.errors import ParseError, SqlglotError

    logging.getLogger("sqlglot").setLevel(logging.ERROR)  # it warns of statements that are refused below
    try:
        statements = [one for one in sqlglot.parse(text, read=dialect) if one is not None]
    except ParseError as exc:
        first: dict[str, Any] = exc.errors[0] if exc.errors else {}
        if "line" not in first:
            raise ValueError(f"it is not {LANGUAGES[dialect]} that can be read") from exc
        place = (first["line"], max(first["col"] - len(first["highlight"]) + 1, 1))
        raise ValueError(f"{_place_in_words(place)}it can't be read near {first['highlight']!r}") from exc
    except SqlglotError as exc:
        raise ValueError(f"it is not {LANGUAGES[dialect]} that can be read: a quotation mark may be missing") from exc
    except RecursionError as exc:
        raise ValueError(TOO_DEEP) from exc
    if not statements:
        raise ValueError("it is empty")
    for statement in statements:  # before their number: a script is several statements
        if not isinstance(statement, exp.Query):
            word = statement.sql().split()[0] if isinstance(statement, exp.Command) else statement.key
            raise ValueError(f"it has a statement {word.upper()}: only one SELECT is allowed")
    if len(statements) > 1:
        raise ValueError(f"it has {len(statements)} statements: only one SELECT is allowed")
    query: Any = statements[0]
    if _depth(query) > MAX_DEPTH:
        raise ValueError(TOO_DEEP)
    return query


def _depth(query: Any) -> int:
    """How deep the parts of the query are nested: a chain of AND, OR or + counts as flat as it is written."""
    depths = {id(query): 0}
    for node in query.walk(bfs=True):
        for part in node.iter_expressions():
            depths[id(part)] = depths[id(node)] + (type(part) is not type(node))
    return max(depths.values())


#: Classes of functions that give another result each time, or in each session.
IMPURE_CLASSES = re.compile(
    r"(Current|Utc|Session|Rand|Uuid|Local(time|timestamp)$|Systimestamp|Uniform$|Normal$|Zipf$|NextValueFor|Version$|Seq)"
)
#: Those that sqlglot has no class for: a local warehouse would run them.
IMPURE_NAMES = frozenset(
    (
        *("now", "today", "transaction_timestamp", "get_current_timestamp", "get_current_time"),
        *("current_localtimestamp", "current_localtime", "uuidv4", "uuidv7", "txid_current", "setseed", "getenv"),
        *("getvariable", "current_setting", "nextval", "currval"),
    )
)
IMPURE_COLUMNS = frozenset({"localtime", "localtimestamp"})  #: functions that are called without parentheses
FUNCTION_SETS = frozenset({"net", "safe", "hll_count", "kll_quantiles"})  #: that are written with a dot
MAX_DEPTH = 40  #: of the parsed text; deeper ones end in errors of the parser, here or in a worker


def _problems(text: str, statement: exp.Query, tables: Collection[str]) -> Iterator[tuple[Place, str]]:
    """What the text reads or calls and must not."""
    from sqlglot import exp

    readable = f"the tables of the text are {', '.join(tables)}"
    allowed = f"the parameters are {', '.join(f'@{name}' for name in PARAMETERS)}"
    words = {name.lower() for name in tables}
    for node in statement.walk():
        if isinstance(node, exp.CTE) and node.alias.lower() in words:
            yield _place_of(node), f"WITH {node.alias} hides a table of the job"
        elif isinstance(node, exp.Table):
            yield from _table_problems(node, words, readable)
        elif isinstance(node, exp.TableSample):
            yield _place_of(node), "TABLESAMPLE gives other rows each time"
        elif called := _impure_call(node):
            place = _place_of(node)
            place = place if place != WHOLE_TEXT else _place_of_token(text, called)
            advice = ", so use @first_day or @last_day" if called.startswith("CURRENT_") else ""
            yield place, f"it calls {called}: a rebuild must give the same rows{advice}"
        elif called := _foreign_call(node):
            yield _place_of(node), f"it calls {called}: a function of a dataset may read other tables"
        elif isinstance(node, exp.Placeholder):
            yield _place_of_token(text, "?"), f"it has the parameter ?: {allowed}"
        elif isinstance(node, exp.Parameter) and node.name.lower() not in PARAMETERS:
            place = _place_of_token(text, node.name, before="@")
            yield place, f"it has the parameter {node.sql('bigquery')}: {allowed}"


def _table_problems(table: Any, words: Collection[str], readable: str) -> Iterator[tuple[Place, str]]:
    from sqlglot import exp

    place = _place_of(table)
    name = ".".join(part.name or part.sql(dialect="bigquery") for part in table.parts)
    is_plain = isinstance(table.this, exp.Identifier) and not table.db
    if not is_plain or (name.lower() not in words and find_cte(table, name) is None):
        yield place, f"it reads {name}: {readable}"
    if table.args.get("version"):
        yield place, f"it reads {name} as of another time: a rebuild must give the same rows"


def find_cte(table: Any, name: str) -> exp.CTE | None:
    """Return the part of that name of a WITH of a query around the table; None if there is none."""
    node = table
    while node := node.parent:
        clause = node.args.get("with_")
        for cte in clause.expressions if clause is not None else ():
            if cte.alias.lower() == name.lower():
                return cte
    return None


def _impure_call(node: Any) -> str | None:
    """The name of the function that the node calls, if its result is not always the same."""
    from sqlglot import exp

    if isinstance(node, exp.Anonymous):
        return node.name.upper() if node.name.lower() in IMPURE_NAMES else None
    if isinstance(node, exp.Func) and IMPURE_CLASSES.match(type(node).__name__):
        return str(node.meta.get("bigquery_name") or node.sql_names()[0]).upper()
    is_bare = isinstance(node, exp.Column) and not node.table and not node.this.args.get("quoted")
    return node.name.upper() if is_bare and node.name.lower() in IMPURE_COLUMNS else None


def _foreign_call(node: Any) -> str | None:
    """The name of the function that the node calls, if it is one of a dataset, or has a quoted name."""
    from sqlglot import exp

    if isinstance(node, exp.Dot) and isinstance(node.expression, exp.Func):
        owner = node.this.sql("bigquery")
        return None if owner.lower() in FUNCTION_SETS else f"{owner}.{node.expression.name or node.expression.key}"
    is_quoted = isinstance(node, exp.Anonymous) and isinstance(node.this, exp.Identifier)
    return node.name if is_quoted else None


def arms_of(query: Any) -> list[Any]:
    """Return the SELECTs whose rows the query returns: several of a UNION."""
    from sqlglot import exp

    if isinstance(query, exp.Subquery):
        return arms_of(query.this)
    return [*arms_of(query.left), *arms_of(query.right)] if isinstance(query, exp.SetOperation) else [query]


def _column_problems(
    statement: exp.Query, columns: Collection[str], may_return_more: bool
) -> Iterator[tuple[Place, str]]:
    """How the columns that the text returns differ from those that it must return."""
    from sqlglot import exp

    arms = arms_of(statement)
    for node in statement.find_all(exp.SetOperation):
        if node.args.get("by_name") or node.args.get("side") or node.args.get("kind"):
            yield _place_of(node), "it has a UNION BY NAME: name the columns of both SELECTs in the same order"
    for select in arms:
        place = _place_of(select)
        if select.args.get("kind"):
            yield place, f"it is a SELECT AS {select.args['kind']}: name each column"
        if any(is_star(column) for column in select.selects):
            yield place, "it returns *: name each column"
            return
        if len(select.selects) != len(arms[0].selects):
            yield place, f"it returns {len(select.selects)} columns, and {len(arms[0].selects)} before"
    returned: dict[str, Place] = {}
    for number, column in enumerate(arms[0].selects, 1):
        place = _place_of(column)
        name = column.alias_or_name
        if not name:
            yield place, f"column {number} has no name: add AS and a name"
        elif name in returned:
            yield place, f"it returns two columns {name}"
        elif name not in columns and not may_return_more:
            yield place, f"it returns {name}, which is not a column of the target"
        elif name == SOURCE_COLUMN and may_return_more:
            yield place, f"it returns {name}, which each row gets by itself"
        returned[name] = place
    if missing := [name for name in columns if name not in returned]:
        yield WHOLE_TEXT, f"it does not return {', '.join(missing)}"


def is_star(column: Any) -> bool:
    """Whether the column of a SELECT stands for several: `*` or `name.*`."""
    from sqlglot import exp

    return isinstance(column, exp.Star) or (isinstance(column, exp.Column) and isinstance(column.this, exp.Star))


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
