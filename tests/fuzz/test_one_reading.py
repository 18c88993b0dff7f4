"""Plan, worker, gate and audit read every table alike, on every warehouse, and as an independent calculation does."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
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
from gated_backfill.common.warehouse.backends import open_warehouse
from gated_backfill.common.warehouse.coverage_queries import measure_dates
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from gated_backfill.common.warehouse.protocol import Warehouse
from gated_backfill.producer.planning.range_counts import count_range
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
    return {"expectation": case.expectation, "source": case.source, "target": case.target}


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
    for day in DAYS:
        expected = case.expected(day)
        in_source, in_target = case.present(case.source, day), case.present(case.target, day)
        nulls = case.null_entities(day)

        assert planned.expected.get(day, 0) == len(expected)
        assert planned.found["main"].get(day, 0) == len(in_source)
        assert measured.expected.get(day, frozenset()) == expected
        assert measured.null_entities.get(day, 0) == nulls
        assert measured.sources["main"].present.get(day, frozenset()) == in_source
        assert set(measured.sources["main"].unexpected.get(day, ())) == case.unexpected(case.source, day)
        assert counted[day].expectation.expected == len(expected)
        assert counted[day].expectation.null_entities == nulls
        assert counted[day].matched == len(in_target)
        assert set(counted[day].missing) == expected - in_target
        assert set(counted[day].unexpected) == case.unexpected(case.target, day)
        assert audited[day].expected == len(expected)
        assert audited[day].observed.matched == len(in_target)
        assert set(audited[day].missing) == expected - in_target


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
