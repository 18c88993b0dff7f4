"""The compiled text of a model as the text of a job: its tables are the job's words, its columns are named."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.query import Dialect, arms_of, find_cte, is_star, parse_query


class CompiledText:
    """One SELECT of a model. Raises `UserError` for a text that is none."""

    def __init__(self, text: str, dialect: Dialect) -> None:
        self._text = text.rstrip().rstrip(";")
        self._dialect: Dialect = dialect
        try:
            self._statement = parse_query(self._text, dialect)
        except ValueError as exc:
            raise UserError(f"its compiled text: {exc}") from exc

    @property
    def cte_names(self) -> Collection[str]:
        """The names of its WITH clauses, in lower case."""
        return {cte.alias.lower() for cte in self._statement.find_all(exp.CTE)}

    @property
    def table_names(self) -> list[list[str]]:
        """The parts of the names of its tables, without those of its WITH clauses."""
        return [[part.name for part in table.parts] for table in self._tables()]

    def returned_columns(self) -> list[str] | None:
        """Return the names of the columns that it returns; None if there is a * over an unknown table."""
        return _columns_of(self._statement)

    def write(self, word_of: Callable[[Sequence[str]], str], columns: Sequence[str]) -> str:
        """Return the text with other names of its tables, and with the columns in the place of an outermost *.

        The rest stays as it is written, with the same line numbers. `word_of` returns the name for a table that the
        text names by these parts; its `UserError` gets the place in the text.
        """
        replaced: list[tuple[int, int, str]] = []
        names: set[tuple[str, str]] = set()
        for table in self._tables():
            parts, start, end = self._position(table)
            try:
                word = word_of(parts)
            except UserError as exc:
                raise UserError(f"{_line_of(table)}{exc}") from exc
            is_same = table.alias or word.lower() == parts[-1].lower()
            alias = "" if is_same else f" AS {self._quote(parts[-1])}"
            replaced.append((start, end, f"{self._quote(word)}{alias}"))
            names.add((table.db, table.name))
        for column in self._statement.find_all(exp.Column):
            if (column.text("db"), column.text("table")) in names - {("", name) for _, name in names}:
                raise UserError(f"{_line_of(column)}it names a column as {column.sql(self._dialect)}: use an alias")
        text = self._text
        for start, end, words in sorted(replaced, reverse=True):
            text = text[:start] + words + text[end:]
        if not any(is_star(column) for select in arms_of(self._statement) for column in select.selects):
            return text
        selected = ", ".join(map(self._quote, columns))
        return f"SELECT {selected} FROM ({text}\n)"  # noqa: S608 - the names are quoted, the text is the model's

    def _tables(self) -> Iterator[exp.Table]:
        for table in self._statement.find_all(exp.Table):
            if len(table.parts) > 1 or find_cte(table, table.name) is None:
                yield table

    def _position(self, table: exp.Table) -> tuple[list[str], int, int]:
        """The parts of the table's name, and where it begins and ends in the text."""
        parts = list(table.parts)
        if not all(isinstance(part, exp.Identifier) and "start" in part.meta for part in parts):
            raise UserError(f"{_line_of(table)}it reads {table.sql(self._dialect)}, which is no table of the project")
        start = min(part.meta["start"] for part in parts)
        return [part.name for part in parts], start, max(part.meta["end"] for part in parts) + 1

    def _quote(self, name: str) -> str:
        return exp.to_identifier(name, quoted=True).sql(self._dialect)


def to_googlesql(text: str, dialect: Dialect) -> str:
    """Translate the text to GoogleSQL, if it is in another dialect. Raises `UserError` for what has no equivalent."""
    if dialect == "bigquery":
        return text
    try:
        (translated,) = sqlglot.transpile(
            text, read=dialect, write="bigquery", pretty=True, unsupported_level=sqlglot.ErrorLevel.RAISE
        )
    except SqlglotError as exc:
        raise UserError(f"its text has no equivalent in GoogleSQL: {' '.join(str(exc).split())}") from exc
    return translated


def _line_of(node: Any) -> str:
    lines = [part.meta["line"] for part in node.walk() if "line" in part.meta]
    return f"line {min(lines)} of its compiled text: " if lines else ""


def _columns_of(query: Any, entered: frozenset[int] = frozenset()) -> list[str] | None:
    """The names of the query's columns; None if they are not known. `entered`: the WITH parts that it is within."""
    select = arms_of(query)[0]
    names: list[str] = []
    for column in select.selects:
        found = _expand(column, select, entered) if is_star(column) else [column.output_name]
        if found is None:
            return None
        names += found
    return names


def _expand(star: Any, select: Any, entered: frozenset[int]) -> list[str] | None:
    """The names of the columns for which a * stands; None if they are not known."""
    owner, modifiers = (star.table, star.this) if isinstance(star, exp.Column) else ("", star)
    if modifiers.args.get("rename") or modifiers.args.get("ilike"):
        return None
    tables = list(_tables_of(select))
    if owner:
        tables = [table for table in tables if table.alias_or_name.lower() == owner.lower()]
    if len(tables) != 1 or (names := _columns_of_table(tables[0], entered)) is None:
        return None
    excluded = {column.name.lower() for column in modifiers.args.get("except_") or ()}
    return [name for name in names if name.lower() not in excluded]


def _tables_of(select: Any) -> Iterator[Any]:
    clause = select.args.get("from_")
    if clause is not None:
        yield clause.this
    yield from (join.this for join in select.args.get("joins") or ())


def _columns_of_table(table: Any, entered: frozenset[int]) -> list[str] | None:
    if table.args.get("pivots"):
        return None
    if isinstance(table, exp.Subquery):
        return _columns_of(table.this, entered)
    cte = find_cte(table, table.name) if isinstance(table, exp.Table) and len(table.parts) == 1 else None
    if cte is None or id(cte) in entered:
        return None
    renamed = cte.args["alias"].columns
    return [column.name for column in renamed] if renamed else _columns_of(cte.this, entered | {id(cte)})
