"""Statements that read and count entities: `entities.day_entity_rows`, in SQL.

The text of an entity is written here a second time only to count entities without reading them; a test compares the
two. A FLOAT64 has no such text in SQL, so such entities are read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, LiteralString

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.model.entities import ENTITY_TYPES, SUM_TYPES, EntityColumns
from gated_backfill.common.warehouse.bigquery.parameters import DateColumn, date_filter
from gated_backfill.common.warehouse.bigquery.statements import (
    QuotedSql,
    fill_placeholders,
    join_sql,
    parameter,
    quoted_column,
)
from gated_backfill.common.warehouse.entities import REORDERING, ROUNDING, ROW_COUNT
from gated_backfill.common.warehouse.protocol import EntityScan

DAY = "__day"  #: column of results with the day

#: The rows of a scan: day, entity columns and summands.
ROWS: LiteralString = "SELECT {columns} FROM {table} WHERE {conditions}"
GROUPED: LiteralString = "SELECT {columns}, COUNT(*) AS {row_count}{sums} FROM ({rows}) GROUP BY {columns}"
ALIAS: LiteralString = "{expression} AS {name}"
NOT_NULL: LiteralString = "{column} IS NOT NULL"
NOT_NAN: LiteralString = "{column} IS NOT NULL AND NOT IS_NAN({column})"
SUMMAND: LiteralString = "COALESCE(CAST({column} AS FLOAT64), 0.0)"
FLOAT_SUMMAND: LiteralString = "IF(IS_NAN({column}), 0.0, COALESCE({column}, 0.0))"
SUM: LiteralString = ", SUM({column}) AS {column}, SUM(ABS({column})) AS {magnitude}"
TEXT: LiteralString = "CAST({column} AS STRING)"
PART: LiteralString = r"REPLACE(REPLACE({text}, '\\', '\\\\'), '|', '\\|')"
BETWEEN_PARTS: LiteralString = ", '|', "
JOINED: LiteralString = "CONCAT({parts})"
TEXTS: LiteralString = "SELECT {day} AS day, {entity} AS entity, {row_count} AS n{sums} FROM ({grouped})"

ROW_COUNTS: LiteralString = "SELECT {day} AS day, COUNT(*) AS row_count FROM ({rows}) GROUP BY {day}"
COUNTS: LiteralString = """
    SELECT e.day AS day, COUNT(e.entity) AS expected, SUM(IF(e.entity IS NULL, e.n, 0)) AS null_rows{present}
    FROM ({expected}) AS e {joins}
    GROUP BY e.day
"""
PRESENT: LiteralString = ", COUNT(COALESCE({entities})) AS {name}"
SOURCE_ENTITY: LiteralString = "{source}.entity"
JOIN: LiteralString = (
    "LEFT JOIN ({texts}) AS {source} ON {source}.day = e.day AND {source}.entity = e.entity{conditions}"
)
SAME_ROWS: LiteralString = " AND {source}.n = e.n"
ENOUGH_ROWS: LiteralString = " AND {source}.n >= {share} * e.n - {rounding}"
SAME_SUM: LiteralString = (
    " AND ({source}.{sum} = e.{sum}"
    " OR (NOT IS_INF(e.{sum})"
    " AND ABS({source}.{sum} - e.{sum}) <= {tolerance} * ABS(e.{sum}) + {reordering} * e.{magnitude}))"
)


@dataclass(frozen=True, kw_only=True)
class EntityTable:
    """A table whose entities a statement reads."""

    name: str  #: begins the names of its parameters
    columns: EntityColumns
    kinds: Mapping[str, str]  #: types of the table's columns
    rows: QuotedSql  #: the query of its rows
    params: dict[str, Any]

    @property
    def has_text_entities(self) -> bool:
        """Whether SQL can write its entities as text."""
        return all(self.kinds[name] != "FLOAT64" for name in self.columns.entity)

    @property
    def result_columns(self) -> EntityColumns:
        """The columns by which the result of `entity_statement` is read."""
        return replace(
            self.columns,
            date=DAY,
            time_zone=None,
            required=(),
            sums=tuple(_sum_names(self.columns)),
            magnitudes=tuple(_magnitude_names(self.columns)),
        )


def entity_table(name: str, scan: EntityScan, table: QuotedSql, kinds: Mapping[str, str]) -> EntityTable:
    """Describe the scan of a table with columns of these types. Raises `SchemaMismatch` for a type of other values."""
    columns = scan.columns
    _check_types(scan, columns.entity, kinds, ENTITY_TYPES, "an entity must be")
    _check_types(scan, columns.sums, kinds, SUM_TYPES, "a column whose sums are compared must be")
    dated = DateColumn(name=columns.date, kind=kinds[columns.date], time_zone=columns.time_zone)
    zone = f"{name}__zone"
    dates, params = date_filter(name, dated, scan.dates)
    selected = [
        fill_placeholders(ALIAS, expression=dated.day(zone), name=quoted_column(DAY)),
        *(quoted_column(entity) for entity in columns.entity),
        *(
            fill_placeholders(ALIAS, expression=_summand(column, kinds), name=quoted_column(alias))
            for column, alias in zip(columns.sums, _sum_names(columns), strict=True)
        ),
    ]
    required = [_not_null(column, kinds) for column in columns.required]
    rows = fill_placeholders(
        ROWS,
        columns=join_sql(", ", selected),
        table=table,
        conditions=join_sql(" AND ", [fill_placeholders("({dates})", dates=dates), *required]),
    )
    return EntityTable(name=name, columns=columns, kinds=kinds, rows=rows, params=params | dated.zone(zone))


def _check_types(
    scan: EntityScan, names: Iterable[str], kinds: Mapping[str, str], allowed: Sequence[str], rule: str
) -> None:
    for name in names:
        if kinds[name] not in allowed:
            raise SchemaMismatch(
                f"column {name} is {kinds[name]}: {rule} {' or '.join(allowed)}", table=str(scan.table)
            )


def _sum_names(columns: EntityColumns) -> list[str]:
    return [f"__sum{number}" for number in range(len(columns.sums))]


def _magnitude_names(columns: EntityColumns) -> list[str]:
    return [f"__magnitude{number}" for number in range(len(columns.sums))]


def _pairs_of_sums(columns: EntityColumns) -> list[tuple[str, str]]:
    """The names of each sum and of its magnitude."""
    return list(zip(_sum_names(columns), _magnitude_names(columns), strict=True))


def _summand(column: str, kinds: Mapping[str, str]) -> QuotedSql:
    return fill_placeholders(FLOAT_SUMMAND if kinds[column] == "FLOAT64" else SUMMAND, column=quoted_column(column))


def _not_null(column: str, kinds: Mapping[str, str]) -> QuotedSql:
    return fill_placeholders(NOT_NAN if kinds[column] == "FLOAT64" else NOT_NULL, column=quoted_column(column))


def entity_statement(table: EntityTable) -> QuotedSql:
    """Build the query of the entities as they are, grouped: day, entity columns, number of rows, sums, magnitudes."""
    columns = [quoted_column(DAY), *(quoted_column(name) for name in table.columns.entity)]
    sums = [
        fill_placeholders(SUM, column=quoted_column(name), magnitude=quoted_column(magnitude))
        for name, magnitude in _pairs_of_sums(table.columns)
    ]
    return fill_placeholders(
        GROUPED,
        columns=join_sql(", ", columns),
        row_count=quoted_column(ROW_COUNT),
        sums=join_sql("", sums),
        rows=table.rows,
    )


def row_count_statement(table: EntityTable) -> QuotedSql:
    """Build the query of the number of rows by day."""
    return fill_placeholders(ROW_COUNTS, day=quoted_column(DAY), rows=table.rows)


def count_statement(
    expected: EntityTable, sources: Mapping[str, EntityTable], groups: Collection[tuple[str, ...]]
) -> tuple[QuotedSql, dict[str, Any]]:
    """Build the query of `Warehouse.count_entities`, and its parameters.

    Its columns are `day`, `expected`, `null_rows`, and `present0`, `present1`... in the order of the groups.
    """
    aliases = {name: quoted_column(table.name) for name, table in sources.items()}
    params: dict[str, Any] = dict(expected.params)
    joins: list[QuotedSql] = []
    for name, table in sources.items():
        conditions, values = _rule_conditions(table, aliases[name])
        joins.append(fill_placeholders(JOIN, texts=_texts(table), source=aliases[name], conditions=conditions))
        params |= table.params | values
    present = [
        fill_placeholders(PRESENT, entities=_entities_of(aliases[name] for name in group), name=quoted_column(column))
        for group, column in ((group, f"present{number}") for number, group in enumerate(groups))
    ]
    statement = fill_placeholders(
        COUNTS, present=join_sql("", present), expected=_texts(expected), joins=join_sql(" ", joins)
    )
    return statement, params


def _entities_of(sources: Iterable[QuotedSql]) -> QuotedSql:
    return join_sql(", ", (fill_placeholders(SOURCE_ENTITY, source=source) for source in sources))


def _texts(table: EntityTable) -> QuotedSql:
    """Build the query of the entities as text, with number of rows, sums and magnitudes."""
    sums = [
        fill_placeholders(", {column}", column=quoted_column(name))
        for names in _pairs_of_sums(table.columns)
        for name in names
    ]
    return fill_placeholders(
        TEXTS,
        day=quoted_column(DAY),
        entity=entity_text(table.columns.entity, table.kinds),
        row_count=quoted_column(ROW_COUNT),
        sums=join_sql("", sums),
        grouped=entity_statement(table),
    )


def entity_text(columns: Sequence[str], kinds: Mapping[str, str | None]) -> QuotedSql:
    """Build the expression of the entity as text, of columns of these types; None: the type is not known.

    The text of a FLOAT64 is another than that of the entity.
    """
    texts = [
        fill_placeholders("{column}" if kinds.get(column) == "STRING" else TEXT, column=quoted_column(column))
        for column in columns
    ]
    if len(texts) == 1:
        return texts[0]
    parts = join_sql(BETWEEN_PARTS, (fill_placeholders(PART, text=text) for text in texts))
    return fill_placeholders(JOINED, parts=parts)


def _rule_conditions(table: EntityTable, source: QuotedSql) -> tuple[QuotedSql, dict[str, Any]]:
    """Build the conditions under which a source has an entity, each beginning with AND."""
    rule = table.columns.rule
    conditions: list[QuotedSql] = []
    values: dict[str, Any] = {}
    if rule.rows == "equal":
        conditions.append(fill_placeholders(SAME_ROWS, source=source))
    elif rule.rows is not None:
        share, rounding = f"{table.name}__share", f"{table.name}__rounding"
        values |= {share: float(rule.rows), rounding: ROUNDING}
        conditions.append(
            fill_placeholders(ENOUGH_ROWS, source=source, share=parameter(share), rounding=parameter(rounding))
        )
    reordering = f"{table.name}__reordering"
    if rule.tolerances:
        values[reordering] = REORDERING
    for (alias, magnitude), tolerance in zip(_pairs_of_sums(table.columns), rule.tolerances, strict=True):
        name = f"{table.name}{alias}"
        values[name] = tolerance + ROUNDING
        conditions.append(
            fill_placeholders(
                SAME_SUM,
                source=source,
                sum=quoted_column(alias),
                magnitude=quoted_column(magnitude),
                tolerance=parameter(name),
                reordering=parameter(reordering),
            )
        )
    return join_sql("", conditions), values
