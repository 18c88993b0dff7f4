"""Build the dates of a SQL job: one query of the warehouse for all dates that have the same sources."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from typing import Any, LiteralString, cast

import pyarrow as pa
import pyarrow.parquet as pq
import sqlglot
from sqlglot import exp

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.ledger import DateRow
from gated_backfill.common.model.arrow.exact_casts import cast_exactly
from gated_backfill.common.model.arrow.types import arrow_schema
from gated_backfill.common.model.job import SOURCE_COLUMN, Input, Job, Source
from gated_backfill.common.model.publication import StagedFile, table_location
from gated_backfill.common.model.query import HISTORY, ROWS, Query
from gated_backfill.common.model.tables import ColumnType, ColumnTypes, TableName
from gated_backfill.common.warehouse.bigquery.entity_counts import entity_text
from gated_backfill.common.warehouse.protocol import ABSENT, QueryStaging, Scan, StagedDay, StagedScan, Warehouse
from gated_backfill.common.warehouse.staged_entities import read_staged_entities
from gated_backfill.common.warehouse.table_checks import target_types
from gated_backfill.worker.dates.separation import DatesMixed, check_dates_returned, check_entities
from gated_backfill.worker.dates.sources import (
    SourceCheck,
    columns_to_read,
    date_and_entity_types,
    entities_counted,
    scan_of,
)

# Names that no table or parameter of a job's text has: those of inputs begin with a letter.
CHOSEN, FILL = "_chosen", "_fill"  #: the scans of the chosen source, and of the one that it is filled from
NO_ROWS = StagedDay(content=ABSENT, rows=0, keys=0)  #: of a date in a staging table
MISSING = "_missing"  #: the parameter with the days and entities that are filled in


def statement_groups(
    job: Job, checks: Mapping[date, SourceCheck], days: Sequence[date], warehouse: Warehouse
) -> list[tuple[date, ...]]:
    """Return the dates of each statement, of dates with the same sources.

    Those of a derived source have one each, unless the source says otherwise, and so have big ones.
    """
    sources = _sources(job, checks, days)
    if any(source.derive is not None and not source.derive_together for source in sources):
        return [(day,) for day in days]
    alone = {day for day in days if is_written_by_warehouse(job, checks, day, warehouse)}
    together = tuple(day for day in days if day not in alone)
    return [*((day,) for day in days if day in alone), *([together] if together else [])]


def is_written_by_warehouse(job: Job, checks: Mapping[date, SourceCheck], day: date, warehouse: Warehouse) -> bool:
    """Whether the warehouse writes the file of the date, as its source is big. This depends on the date alone."""
    files = warehouse.query_files
    return files is not None and any(
        files.is_big(TableName.parse(source.table), source.date_column, day) for source in _sources(job, checks, [day])
    )


@contextmanager
def writable_query(
    job: Job, process: Query, checks: Mapping[date, SourceCheck], day: date, warehouse: Warehouse
) -> Generator[Callable[[str], None] | None]:
    """Prepare the statement of the date; yield what writes its rows to a path, in the order of the key.

    Yields None if the rows are to be read and cast. Raises like `query_rows`, inside the context as well, and
    `ProcessFailed` for rows of other dates.
    """
    if not is_written_by_warehouse(job, checks, day, warehouse) or (files := warehouse.query_files) is None:
        yield None
        return
    text, scans, params = _statement(job, process, checks, (day,), warehouse)
    columns = target_types(job)
    with files.writable_query(text, scans=scans, params=params, columns=columns, order=_order(job, (day,))) as write:
        if write is None:
            yield None
            return

        def write_checked(path: str) -> None:
            write(path)
            dates = pq.read_table(path, columns=[job.target.date_column], use_threads=False, partitioning=None)
            check_dates_returned(dates[0].unique().to_pylist(), (day,))

        yield write_checked


def _order(job: Job, days: Sequence[date]) -> list[str]:
    """The columns to sort by. One day need not be compared, which would take half as long again."""
    return [name for name in job.target.row_order if len(days) > 1 or name != job.target.date_column]


def query_rows(
    job: Job, process: Query, checks: Mapping[date, SourceCheck], days: tuple[date, ...], warehouse: Warehouse
) -> Generator[pa.Table]:
    """Run the statement of these dates; yield its rows in the order of date and key, some at a time.

    They are in the target's columns and types. Raises like `Warehouse.query_in_order`, and `SchemaMismatch` for a value
    that its type would change.
    """
    text, scans, params = _statement(job, process, checks, days, warehouse)
    for rows in warehouse.query_in_order(text, scans=scans, params=params, order=_order(job, days)):
        yield _typed(job, rows, days)


def stage_in_warehouse(
    job: Job,
    process: Query,
    checks: Mapping[date, SourceCheck],
    claimed: Mapping[date, DateRow],
    warehouse: Warehouse,
    query_staging: QueryStaging,
) -> list[StagedFile]:
    """Run the statement of the claimed dates into a staging table; none of its rows is read.

    Raises like `query_rows`, `ProcessFailed` for rows of other dates, and `DatesMixed` like `check_separation`.
    """
    days = tuple(claimed)
    text, scans, params = _statement(job, process, checks, days, warehouse)
    attempts = [f"{row.run_id} {row.day} {row.attempt}" for row in claimed.values()]
    table, staged_days = query_staging.stage_query(
        text,
        scans=scans,
        params=params,
        columns=target_types(job),
        date_column=job.target.date_column,
        key=job.target.key,
        name=[job.name, job.version, *attempts],
    )
    check_dates_returned(staged_days, days)
    staged: list[StagedFile] = []
    for day, row in claimed.items():
        rows = staged_days.get(day, NO_ROWS)
        location = table_location(table)
        staged.append(
            StagedFile(day=day, attempt=row.attempt, location=location, checksum=rows.content, rows=rows.rows)
        )
    if len(days) > 1:
        if any(rows.keys < rows.rows for rows in staged_days.values()):
            raise DatesMixed("some rows have the same key")
        entities = read_staged_entities(warehouse, job, staged)
        check_entities(entities.select(["day", "entity"]), entities_counted(checks, days))
    return staged


def _sources(job: Job, checks: Mapping[date, SourceCheck], days: Sequence[date]) -> list[Source]:
    choice = checks[days[0]].choice
    return [job.source(name) for name in (choice.source, choice.fill_from) if name is not None]


@dataclass(frozen=True, kw_only=True)
class _Relation:
    """A table of the statement: a scan, or the columns of a table that does not exist."""

    name: str
    scan: Scan | None
    #: With their types, None where these are not known. Those of an input's scan are not needed.
    columns: Mapping[str, ColumnType | None] = field(default_factory=dict[str, ColumnType | None])

    def select(self) -> exp.Select:
        if self.scan is not None:
            return exp.select("*").from_(exp.to_table(self.name))
        nulls = [
            exp.alias_(
                exp.cast(exp.null(), exp.DataType.build(kind or "STRING", dialect="bigquery")), name, quoted=True
            )
            for name, kind in self.columns.items()
        ]
        return exp.select(*nulls).from_(exp.Unnest(expressions=[exp.array(exp.Literal.number(1))])).where(exp.false())


def _statement(
    job: Job, process: Query, checks: Mapping[date, SourceCheck], days: tuple[date, ...], warehouse: Warehouse
) -> tuple[LiteralString, dict[str, Scan | StagedScan], dict[str, Any]]:
    """The text of the statement, the scans that it reads, and its parameters."""
    sources = _sources(job, checks, days)
    relations = [
        _source_relation(job, name, source, days, warehouse)
        for name, source in zip((CHOSEN, FILL), sources, strict=False)
    ]
    inputs = [_input_relation(declared, days, warehouse) for declared in job.inputs]
    params: dict[str, Any] = {"days": list(days), "first_day": min(days), "last_day": max(days)}
    if missing := [f"{day} {entity}" for day in days for entity in sorted(checks[day].filled_entities)]:
        params[MISSING] = missing  # as `_key` writes them
        rows = _filled(job, sources, relations)
    else:
        relations = relations[:1]
        names = _own_names(job, sources[0], _columns_of(sources[0], relations[0]))
        rows = _select_rows(job, sources[0], relations[0], names, as_days=False)
    statement = exp.select("*").from_(process.parse("process").subquery("result"))
    for relation in inputs:
        if relation.scan is None:
            statement = statement.with_(exp.to_identifier(relation.name, quoted=True), as_=relation.select())
    text = statement.with_(exp.to_identifier(ROWS, quoted=True), as_=rows).sql(dialect="bigquery", comments=False)
    scans: dict[str, Scan | StagedScan] = {
        relation.name: relation.scan for relation in (*relations, *inputs) if relation.scan is not None
    }
    return cast(LiteralString, text), scans, params  # the job's own text, as code is: it is checked when it is loaded


# -- tables -------------------------------------------------------------------------------------------------------


def _source_relation(job: Job, name: str, source: Source, days: Sequence[date], warehouse: Warehouse) -> _Relation:
    """The table of a source: of one that does not exist, the declared columns, a date and an entity."""
    always = date_and_entity_types(job, source)
    info = warehouse.describe(TableName.parse(source.table))
    if info is None:
        return _Relation(name=name, scan=None, columns={**always, **(source.columns or {})})
    own_types = cast(ColumnTypes, info.columns)
    wanted = own_types if source.columns is None else {**always, **source.columns}
    declared = source.columns or {}
    columns: dict[str, ColumnType | None] = {
        column: declared.get(column) or own_types.get(column)
        for column in wanted
        if column != SOURCE_COLUMN  # the table's own: each row gets the name of its source
    }
    return _Relation(name=name, scan=scan_of(source, days, columns_to_read(columns)), columns=columns)


def _input_relation(declared: Input, days: Sequence[date], warehouse: Warehouse) -> _Relation:
    types: dict[str, ColumnType] = {declared.date_column: "DATE", **(declared.columns or {})}
    if declared.optional and warehouse.describe(TableName.parse(declared.table)) is None:
        return _Relation(name=declared.name, scan=None, columns=types)
    scan = scan_of(declared, days, columns_to_read(declared.columns, declared.date_column))
    return _Relation(name=declared.name, scan=scan)


# -- rows ---------------------------------------------------------------------------------------------------------


def _rows_of(source: Source, relation: _Relation) -> exp.Select:
    """The rows of a source: those of its table, or what its query derives from these."""
    if not isinstance(source.derive, Query):
        return relation.select()
    derived = exp.select("*").from_(source.derive.parse(f"derive of source {source.name}").subquery("derived"))
    return derived.with_(exp.to_identifier(HISTORY, quoted=True), as_=relation.select())


def _own_names(job: Job, source: Source, columns: Iterable[str]) -> dict[str, str]:
    """The source's columns by the names that they have in `rows`: date and entity are named as in the primary."""
    primary = job.sources[0]
    own = (source.date_column, *job.source_entity(source))
    names = dict(zip(own, (primary.date_column, *job.source_entity(primary)), strict=True))
    return {names.get(column, column): column for column in columns}


def _select_rows(job: Job, source: Source, relation: _Relation, names: Iterable[str], *, as_days: bool) -> exp.Select:
    """The source's rows under these names, null where it has no such column. `as_days`: with days for their dates."""
    columns = _columns_of(source, relation)
    own_names = _own_names(job, source, columns)
    selected: list[exp.Expr] = []
    for name in names:
        own = own_names.get(name)
        value: exp.Expr = exp.null() if own is None else exp.column(own, quoted=True)
        if as_days and own == source.date_column:
            value = _day(source, columns)
        selected.append(exp.alias_(value, name, quoted=True))
    selected.append(exp.alias_(exp.Literal.string(source.name), SOURCE_COLUMN))
    return exp.select(*selected).from_(_rows_of(source, relation).subquery("of_source"))


def _filled(job: Job, sources: Sequence[Source], relations: Sequence[_Relation]) -> exp.Expr:
    """The first source's rows, but of the entities that it lacks those of the second one."""
    (chosen, fill), (chosen_columns, fill_columns) = sources, map(_columns_of, sources, relations)
    chosen_names, fill_names = _own_names(job, chosen, chosen_columns), _own_names(job, fill, fill_columns)
    date_name = job.sources[0].date_column
    as_days = (chosen_columns[chosen.date_column], chosen.time_zone) != (fill_columns[fill.date_column], fill.time_zone)
    for name in chosen_names.keys() & fill_names.keys() - {date_name}:
        kinds = chosen_columns[chosen_names[name]], fill_columns[fill_names[name]]
        if None not in kinds and kinds[0] != kinds[1]:
            raise SchemaMismatch(
                f"can't fill from source {fill.name}: column {fill_names[name]} is {kinds[1]}, and "
                f"{chosen_names[name]} of source {chosen.name} is {kinds[0]}: declare both with the same type"
            )
    names = list(dict.fromkeys((*chosen_names, *fill_names)))
    own_rows, fill_rows = (
        _select_rows(job, source, relation, names, as_days=as_days)
        for source, relation in zip(sources, relations, strict=True)
    )
    return exp.union(
        own_rows.where(exp.not_(_is_missing(job, chosen, chosen_columns))),
        fill_rows.where(_is_missing(job, fill, fill_columns)),
        distinct=False,
    )


def _columns_of(source: Source, relation: _Relation) -> Mapping[str, ColumnType | None]:
    """The columns of a source's rows. Types of those that a query derives are not known."""
    if not isinstance(source.derive, Query):
        return relation.columns
    return dict.fromkeys(source.derive.parse(f"derive of source {source.name}").named_selects)


def _is_missing(job: Job, source: Source, columns: Mapping[str, ColumnType | None]) -> exp.Expr:
    """Whether a row's day and entity are among those to fill in; False for a row without an entity."""
    keys = exp.select("key").from_(
        exp.Unnest(
            expressions=[exp.Parameter(this=exp.var(MISSING))], alias=exp.TableAlias(columns=[exp.to_identifier("key")])
        )
    )
    return exp.func("COALESCE", exp.In(this=_key(job, source, columns), query=keys.subquery()), exp.false())


def _day(source: Source, columns: Mapping[str, ColumnType | None]) -> exp.Expr:
    """The day of a row. What a query derives has days, or times whose type is not known."""
    day: exp.Expr = exp.column(source.date_column, quoted=True)
    kind = columns[source.date_column]
    if kind == "DATE":
        return day
    zone = [exp.Literal.string(source.time_zone)] if kind == "TIMESTAMP" and source.time_zone else []
    return exp.Anonymous(this="DATE", expressions=[day, *zone]) if kind else exp.cast(day, "DATE")


def _key(job: Job, source: Source, columns: Mapping[str, ColumnType | None]) -> exp.Expr:
    """The day and the entity of a row as one text: `entities.day_entity_rows`, in SQL."""
    entity_columns = job.source_entity(source)
    for name in entity_columns:
        if columns.get(name) == "FLOAT64":
            raise SchemaMismatch(f"can't fill source {source.name} by a query: its entity {name} is FLOAT64")
    entity = sqlglot.parse_one(entity_text(entity_columns, columns), read="bigquery")
    return exp.func("CONCAT", exp.cast(_day(source, columns), "STRING"), exp.Literal.string(" "), entity)


def _typed(job: Job, result: pa.Table, days: Sequence[date]) -> pa.Table:
    """The result in exactly the target's columns. Raises `SchemaMismatch` for a value that would change."""
    arrays: list[Any] = []
    for name, column in job.target.columns.items():
        if name not in result.column_names:
            raise SchemaMismatch(f"the rows of job {job.name} have no column {name}")
        try:
            arrays.append(cast_exactly(result[name], column.type))
        except ValueError as exc:
            raise SchemaMismatch(
                f"the rows of job {job.name}: column {name} is not {column.type}: it {exc}; cast it in the query",
                day=days[0] if len(days) == 1 else None,
            ) from exc
    return pa.Table.from_arrays(arrays, schema=arrow_schema(target_types(job)))
