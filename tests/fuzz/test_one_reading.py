"""Plan, worker, gate and audit read every table alike, on every warehouse, and as an independent calculation does."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.cloud import bigquery
from hypothesis import HealthCheck, given, settings

from gated_backfill.common.audit.audit import audit_dates
from gated_backfill.common.errors import ExpectationUnreadable, SchemaMismatch
from gated_backfill.common.ledger import Ledger, open_ledger
from gated_backfill.common.model.arrow.types import ARROW_TYPES
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.warehouse.backends import open_warehouse
from gated_backfill.common.warehouse.coverage_queries import measure_dates
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from gated_backfill.common.warehouse.protocol import Warehouse
from gated_backfill.producer.planning.range_counts import count_range
from gated_backfill.worker.dates.frames import frame_entities
from gated_backfill.worker.dates.sources import SourceCheck, check_sources, chosen_columns, group_by_source, read_rows
from gated_backfill.worker.gate.recount import recount
from tests.emulator import Emulator
from tests.fuzz.cases import ASKED, CASES, PHASES
from tests.fuzz.entity_cases import DAYS, EntityCase, GeneratedTable, entity_cases

#: The emulator takes ten times as long for a case.
LOCAL_CASES, EMULATOR_CASES = (92, 8) if ASKED is None else (max(1850, CASES // 6), max(150, CASES // 60))
PREFIXES = itertools.count()


def tries(count: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=count,
        derandomize=ASKED is None,
        database=None,
        deadline=None,
        phases=PHASES,
        print_blob=True,
        suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]
    )


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    return open_ledger(f"sqlite:///{tmp_path_factory.mktemp('ledger') / 'ledger.db'}")


@pytest.fixture(scope="module")
def project(emulator: Emulator) -> tuple[bigquery.Client, Warehouse]:
    client = emulator.client()
    client.create_dataset("fuzz", exists_ok=True)
    return client, open_warehouse(emulator.url)


@given(case=entity_cases())
@tries(LOCAL_CASES)
def test_a_local_table_is_read_alike_by_all(case: EntityCase, tmp_path: Path, ledger: Ledger) -> None:
    root = tmp_path / f"warehouse-{next(PREFIXES)}"
    for name, table in tables_of(case).items():
        _write_files(root / "fuzz" / name, table)
    check_readings(case, case.job(""), LocalWarehouse(root), ledger)


@given(case=entity_cases())
@tries(EMULATOR_CASES)
def test_a_bigquery_table_is_read_alike_by_all(
    case: EntityCase, project: tuple[bigquery.Client, Warehouse], ledger: Ledger
) -> None:
    client, warehouse = project
    prefix = f"t{next(PREFIXES)}_"
    for name, table in tables_of(case).items():
        load(client, f"{prefix}{name}", table)
    check_readings(case, case.job(prefix), warehouse, ledger)


def tables_of(case: EntityCase) -> dict[str, GeneratedTable]:
    return {"expectation": case.expectation, "source": case.source, "other": case.other, "target": case.target}


def _write_files(folder: Path, table: GeneratedTable) -> None:
    """Write the partitions as other programs do, each in types of its own."""
    for variant, day in enumerate(DAYS):
        rows = table.arrow(day, variant)
        if rows.num_rows:
            partition = folder / f"day={day}"
            partition.mkdir(parents=True)
            pq.write_table(rows, partition / "part.parquet")


def load(client: bigquery.Client, name: str, table: GeneratedTable) -> None:
    """Create and fill a table with nothing of ours: a load of ours writes only tables whose date column is a DATE."""
    types: Any = table.types()
    definition = bigquery.Table(
        "test-project.fuzz." + name, schema=[bigquery.SchemaField(column, kind) for column, kind in types.items()]
    )
    definition.time_partitioning = bigquery.TimePartitioning(field="day")
    client.create_table(definition)
    schema = pa.schema([(column, ARROW_TYPES[kind]) for column, kind in types.items()])
    file = io.BytesIO()
    pq.write_table(table.arrow().cast(schema), file)
    file.seek(0)
    config = bigquery.LoadJobConfig(source_format="PARQUET", write_disposition="WRITE_APPEND")
    client.load_table_from_file(file, definition.reference, job_config=config).result()


def check_readings(case: EntityCase, job: Job, warehouse: Warehouse, ledger: Ledger) -> None:
    if not case.is_readable:
        with pytest.raises((SchemaMismatch, ExpectationUnreadable)):
            read_all(case, job, warehouse, ledger)
        return
    planned, measured, counted, audited = read_all(case, job, warehouse, ledger)
    sources = {"source": case.source, "other": case.other}
    for day in DAYS:
        expected, in_target, nulls = case.expected(day), case.present(case.target, day), case.null_entities(day)

        assert planned.expected.get(day, 0) == audited[day].expected == len(expected)
        assert planned.null_entities.get(day, 0) == nulls
        assert measured.expected.get(day, frozenset()) == expected
        assert measured.null_entities.get(day, 0) == nulls
        for name, table in sources.items():
            assert planned.found[name].get(day, 0) == len(case.present(table, day))
            assert measured.sources[name].present.get(day, frozenset()) == case.present(table, day)
            assert set(measured.sources[name].unexpected.get(day, ())) == case.unexpected(table, day)
            idle_rows = 0 if expected else case.row_count(table, day)
            assert measured.sources[name].rows.get(day, 0) == planned.rows[name].get(day, 0) == idle_rows
        assert counted[day].expectation.expected == len(expected)
        assert counted[day].expectation.null_entities == nulls
        assert counted[day].matched == audited[day].observed.matched == len(in_target)
        assert set(counted[day].missing) == set(audited[day].missing) == expected - in_target
        assert set(counted[day].unexpected) == case.unexpected(case.target, day)
    if replace(case, required=False).is_readable:  # `process` gets the rows that do not count, too
        check_rows(case, job, warehouse)


def check_rows(case: EntityCase, job: Job, warehouse: Warehouse) -> None:
    """The rows to process have the entities that were counted, and the same rows alone and with other dates."""
    options = RunOptions.for_job(job, window=3, in_flight=1, fallback=None, forced_because=None)
    checks = check_sources(warehouse, job, options, DAYS)
    for group in group_by_source(checks):
        try:
            together = rows_by_day(job, checks, group, warehouse)
        except SchemaMismatch:
            if checks[group[0]].choice.fill_from is None:
                raise
            continue  # an entity of one source has no value of the target's type
        for day in group:
            rows = rows_by_day(job, checks, (day,), warehouse).get(day, [])
            assert rows == together.get(day, [])
            assert checks[day].covered_entities <= {row[0] for row in rows}
            assert case.expected(day) >= checks[day].covered_entities


def rows_by_day(
    job: Job, checks: Mapping[date, SourceCheck], days: tuple[date, ...], warehouse: Warehouse
) -> dict[date, list[tuple[Any, ...]]]:
    """By date: entity, source, amount and note of each row that `process` would get."""
    frame = read_rows(warehouse, job, checks, days)
    read = frame_entities(frame, chosen_columns(job, checks[days[0]]))
    values = zip(*(read["entity"].to_pylist(), *(frame[name] for name in ("_source", "amount", "note"))), strict=True)
    rows: dict[date, list[tuple[Any, ...]]] = {}
    for day, row in zip(read["day"].to_pylist(), values, strict=True):
        rows.setdefault(day, []).append(tuple(repr(value) if value is not row[0] else value for value in row))
    return {day: sorted(day_rows, key=repr) for day, day_rows in rows.items()}


def read_all(case: EntityCase, job: Job, warehouse: Warehouse, ledger: Ledger) -> tuple[Any, Any, Any, Any]:
    """What plan, worker, gate and audit read; if one refuses a table, its error."""
    staged = {day: case.target.arrow(day).cast(_target_schema(job)) for day in DAYS}
    return (
        count_range(warehouse, job, job.sources, DAYS),
        measure_dates(warehouse, job, DAYS),
        recount(warehouse, job, staged),
        {audited.day: audited for audited in audit_dates(job, DAYS, warehouse, ledger, max_names=1000).dates},
    )


def _target_schema(job: Job) -> pa.Schema:
    return pa.schema([(name, ARROW_TYPES[column.type]) for name, column in job.target.columns.items()])
