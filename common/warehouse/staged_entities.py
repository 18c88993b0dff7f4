"""Entities of staged rows, grouped where the rows lie: how many rows each has, and its sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import LiteralString

import pyarrow as pa

from gated_backfill.common.model.entities import EntityColumns
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.publication import StagedFile
from gated_backfill.common.warehouse.coverage_queries import target_columns
from gated_backfill.common.warehouse.entities import ROW_COUNT, day_entity_rows
from gated_backfill.common.warehouse.protocol import StagedScan, Warehouse
from gated_backfill.common.warehouse.rule_counts import ALIASES

DAY = "__day"  #: column of the grouped rows with their date; no column of a job has such a name


def read_staged_entities(warehouse: Warehouse, job: Job, files: Sequence[StagedFile]) -> pa.Table:
    """Read the entities of staged rows, as `Warehouse.read_entities` reads those of a table.

    The files have exactly the target's columns. Raises like `Warehouse.query`.
    """
    return staged_entities(read_grouped_entities(warehouse, job, files), target_columns(job))


def staged_entities(grouped: pa.Table, columns: EntityColumns) -> pa.Table:
    """Return the entities of rows that `read_grouped_entities` has returned. Raises like `day_entity_rows`."""
    return day_entity_rows(grouped, _grouped_columns(columns))


def read_grouped_entities(warehouse: Warehouse, job: Job, files: Sequence[StagedFile]) -> pa.Table:
    """Count the staged rows of each entity and add them up; its columns have their own types. Raises like `query`."""
    columns = target_columns(job)
    aliases = dict(zip(dict.fromkeys((*columns.entity, *columns.required, *columns.sums)), ALIASES, strict=False))
    names = {"day": job.target.date_column, **{alias: name for name, alias in aliases.items()}}
    is_float = {name: job.target.columns[name].type == "FLOAT64" for name in aliases}
    rows = warehouse.query(
        _grouped_sql(columns, aliases, is_float), scans={"staged": StagedScan(files=tuple(files), columns=names)}
    )
    result = _grouped_columns(columns)
    sums = [name for pair in zip(result.sums, result.magnitudes, strict=True) for name in pair]
    return rows.rename_columns([DAY, *columns.entity, ROW_COUNT, *sums])


def _grouped_columns(columns: EntityColumns) -> EntityColumns:
    """The columns of grouped rows."""
    numbers = range(len(columns.sums))
    return EntityColumns(
        date=DAY,
        entity=columns.entity,
        sums=tuple(f"__sum{number}" for number in numbers),
        magnitudes=tuple(f"__magnitude{number}" for number in numbers),
    )


def _grouped_sql(
    columns: EntityColumns, aliases: Mapping[str, LiteralString], is_float: Mapping[str, bool]
) -> LiteralString:
    """The query of the rows of `staged` by day and entity, of which none has a null in a required column."""
    key: list[LiteralString] = ["day", *(aliases[name] for name in columns.entity)]
    summands: list[LiteralString] = []
    sums: list[LiteralString] = []
    for name, alias in zip(columns.sums, ALIASES, strict=False):
        summands.append(f"{_summand(aliases[name], is_float[name])} AS summand_{alias}")
        sums.append(f"SUM(summand_{alias}) AS sum_{alias}, SUM(ABS(summand_{alias})) AS magnitude_{alias}")
    conditions: list[LiteralString] = ["TRUE", *(_is_value(aliases[name], is_float[name]) for name in columns.required)]
    return f"""
        SELECT {", ".join([*key, "COUNT(*) AS row_count", *sums])}
        FROM (SELECT {", ".join([*key, *summands])} FROM staged WHERE {" AND ".join(conditions)}) AS read_rows
        GROUP BY {", ".join(key)}
    """  # noqa: S608 - made of literals only, which the type checker enforces


def _summand(alias: LiteralString, is_float: bool) -> LiteralString:
    if is_float:
        return f"IF(IS_NAN({alias}), 0.0, COALESCE({alias}, 0.0))"
    return f"COALESCE(CAST({alias} AS FLOAT64), 0.0)"


def _is_value(alias: LiteralString, is_float: bool) -> LiteralString:
    return f"({alias} IS NOT NULL AND NOT IS_NAN({alias}))" if is_float else f"{alias} IS NOT NULL"
