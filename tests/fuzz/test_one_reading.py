"""Plan, worker, gate and audit read every table alike, on every warehouse, and as an independent calculation does."""

from __future__ import annotations

import io
import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.cloud import bigquery
from hypothesis import HealthCheck, given, settings

from gated_backfill.common.audit.audit import audit_dates
from gated_backfill.common.audit.findings import AuditedDate
from gated_backfill.common.errors import ExpectationUnreadable, SchemaMismatch
from gated_backfill.common.ledger import Ledger, open_ledger
from gated_backfill.common.model.arrow.types import ARROW_TYPES
from gated_backfill.common.model.coverage import Recount, SourceChoice
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.storage.staging import Staging
from gated_backfill.common.warehouse.backends import open_warehouse
from gated_backfill.common.warehouse.coverage_queries import MeasuredDates, measure_dates
from gated_backfill.common.warehouse.local import partition_files
from gated_backfill.common.warehouse.local import warehouse as local_warehouse
from gated_backfill.common.warehouse.local.partition_files import PartitionFiles
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from gated_backfill.common.warehouse.protocol import Warehouse
from gated_backfill.common.warehouse.table_checks import check_tables
from gated_backfill.producer.planning.range_counts import RangeCounts, count_range
from gated_backfill.worker.dates.frames import frame_entities
from gated_backfill.worker.dates.sources import (
    SourceCheck,
    check_sources,
    chosen_columns,
    group_by_source,
    read_batches,
)
from tests.builders import recount_rows
from tests.emulator import Emulator
from tests.fuzz.cases import ASKED, CASES, PHASES
from tests.fuzz.entity_cases import DAYS, EntityCase, GeneratedTable, Unreadable, entity_cases, text_of

T = TypeVar("T")
#: Types of columns of numbers in the rows to process, by declared type.
PANDAS_TYPES = {"INT64": "Int64", "FLOAT64": "float64", "BOOL": "boolean"}
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


@pytest.fixture(params=[pytest.param(False, id="whole"), pytest.param(True, id="in-parts")])
def reads_in_parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is read at once, or as a big file is: a few rows at a time."""
    if request.param:
        monkeypatch.setattr(PartitionFiles, "MAX_CACHED_FILE_BYTES", 0)
        monkeypatch.setattr(partition_files, "BATCH_ROWS", 2)
        monkeypatch.setattr(local_warehouse, "BIG_SCAN_BYTES", 0)


@pytest.mark.usefixtures("reads_in_parts")
@given(case=entity_cases(in_files=True))
@tries(LOCAL_CASES // 2)
def test_a_local_table_is_read_alike_by_all(case: EntityCase, tmp_path: Path, ledger: Ledger) -> None:
    warehouse = LocalWarehouse(tmp_path / f"warehouse-{next(PREFIXES)}")
    for name, table in tables_of(case).items():
        write_files(warehouse, TableName("fuzz", name), table)
    check_readings(case, case.job(""), warehouse, ledger)


@given(case=entity_cases(in_files=False))
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


def write_files(warehouse: LocalWarehouse, name: TableName, table: GeneratedTable) -> None:
    """Write the partitions as other programs do, each in types of its own, and declare types if the table has any."""
    if table.declared_by == "create_table":
        declared: Any = table.declared
        warehouse.create_table(name, declared, "day")
    for day in table.days:
        partition = warehouse.root / name.dataset / name.table / f"day={day}"
        partition.mkdir(parents=True)
        pq.write_table(table.arrow(day), partition / "part.parquet")
        if table.declared_by == "refresh_schema" and day == table.days[0]:
            warehouse.refresh_schema(name)


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
    pq.write_table(table.standard_rows().cast(schema), file)
    file.seek(0)
    config = bigquery.LoadJobConfig(source_format="PARQUET", write_disposition="WRITE_APPEND")
    client.load_table_from_file(file, definition.reference, job_config=config).result()


def check_readings(case: EntityCase, job: Job, warehouse: Warehouse, ledger: Ledger) -> None:
    """Run each reader by itself: every one that reads an unreadable table refuses it, and the others read the same."""
    names = ["expectation", *case.sources]
    unreadable = [name for name in names if case.is_unreadable(name)]
    no_expectation = case.is_unreadable("expectation")
    tables = {name: str(getattr(job, name).table) for name in ("expectation", "target")}
    tables |= {source.name: source.table for source in job.sources}

    def outcome_of(read: Callable[[], T], refused: Sequence[str], error: type[Exception]) -> T | None:
        """What the reader returns; None if it refuses one of these tables by its name, as it must if there are any."""
        if not refused:
            return read()
        with pytest.raises(error) as refusal:
            read()
        assert refusal.type is error
        assert any(tables[name] in str(refusal.value) for name in refused)
        return None

    outcome_of(lambda: check_tables(warehouse, job), [n for n in names if case.is_refused_by_schema(n)], SchemaMismatch)
    planned = outcome_of(lambda: count_range(warehouse, job, job.sources, DAYS), unreadable, SchemaMismatch)
    worker_error = ExpectationUnreadable if no_expectation else SchemaMismatch
    refused_by_worker = ["expectation"] if no_expectation else unreadable
    measured = outcome_of(lambda: measure_dates(warehouse, job, DAYS), refused_by_worker, worker_error)
    checks = outcome_of(lambda: check_sources(warehouse, job, run_options(job), DAYS), refused_by_worker, worker_error)
    audited = outcome_of(
        lambda: {found.day: found for found in audit_dates(job, DAYS, warehouse, ledger, max_names=1000).dates},
        tables_refused_by_audit(case),
        SchemaMismatch,
    )
    counted = recount_staged(case, job, warehouse)
    assert (planned is None) == (measured is None) == (checks is None)
    for day in DAYS:
        if planned is not None and measured is not None:
            check_sources_of_day(case, day, planned, measured)
        if day in counted:
            check_recount_of_day(case, day, counted[day])
        if audited is not None:
            check_audit_of_day(case, day, audited[day])
    if checks is not None:
        check_rows(case, job, warehouse, checks, tables)


def tables_refused_by_audit(case: EntityCase) -> list[str]:
    """Those that an audit reads and can't: of the sources it reads the days on which nothing is expected."""
    if case.is_unreadable("expectation"):
        return ["expectation"]
    refused = ["target"] if case.is_unreadable("target") else []
    idle_days = [day for day in DAYS if not case.expected(day)]
    return refused + [name for name in case.sources if idle_days and case.is_unreadable(name, idle_days)]


def recount_staged(case: EntityCase, job: Job, warehouse: Warehouse) -> dict[date, Recount]:
    """What the gate counts, by day; nothing if it refuses the expectation, as it must if that can't be read.

    A day whose staged rows name no entity is blocked by the name of the column, and is not among them.
    """
    staged_schema = pa.schema([(name, ARROW_TYPES[column.type]) for name, column in job.target.columns.items()])
    staged = {day: case.staged.standard_rows(day).cast(staged_schema) for day in DAYS}
    wrong_days = {row["day"] for row in case.staged.rows if text_of(row, case.staged) is Unreadable}
    counted_days = [day for day in DAYS if day not in wrong_days]
    if counted_days and case.is_unreadable("expectation", counted_days):
        with pytest.raises(ExpectationUnreadable, match=re.escape(job.expectation.table)):
            recounted(warehouse, job, staged)
        return {}
    counted = recounted(warehouse, job, staged)
    for day in wrong_days:
        assert any(f"column {name} holds" in (counted[day].schema_problem or "") for name in case.target.entity)
    return {day: counted[day] for day in DAYS if day not in wrong_days}


def recounted(warehouse: Warehouse, job: Job, staged: Mapping[date, pa.Table]) -> dict[date, Recount]:
    with TemporaryDirectory() as folder:
        return recount_rows(warehouse, job, staged, Staging(folder))


def check_sources_of_day(case: EntityCase, day: date, planned: RangeCounts, measured: MeasuredDates) -> None:
    expected, nulls = case.expected(day), case.null_entities(day)
    assert planned.expected.get(day, 0) == len(expected)
    assert planned.null_entities.get(day, 0) == nulls
    assert measured.expected.get(day, frozenset()) == expected
    assert measured.null_entities.get(day, 0) == nulls
    for name, table in case.sources.items():
        assert planned.found[name].get(day, 0) == len(case.present(table, day))
        assert measured.sources[name].present.get(day, frozenset()) == case.present(table, day)
        assert set(measured.sources[name].unexpected.get(day, ())) == case.unexpected(table, day)
        idle_rows = 0 if expected else case.row_count(table, day)
        assert measured.sources[name].rows.get(day, 0) == planned.rows[name].get(day, 0) == idle_rows


def check_recount_of_day(case: EntityCase, day: date, counted: Recount) -> None:
    expected, in_staged = case.expected(day), case.present(case.staged, day)
    assert counted.expectation.expected == len(expected)
    assert counted.expectation.null_entities == case.null_entities(day)
    assert counted.matched == len(in_staged)
    assert set(counted.missing) == expected - in_staged
    assert set(counted.unexpected) == case.unexpected(case.staged, day)


def check_audit_of_day(case: EntityCase, day: date, audited: AuditedDate) -> None:
    expected, in_target = case.expected(day), case.present(case.target, day)
    assert audited.expected == len(expected)
    assert audited.observed.expectation.null_entities == case.null_entities(day)
    assert audited.observed.matched == len(in_target)
    assert set(audited.missing) == expected - in_target
    if case.has_unreadable_keys(day):
        problem = audited.observed.schema_problem or ""
        assert any(f"column {name} " in problem for name in case.target.entity), problem


def run_options(job: Job) -> RunOptions:
    return RunOptions.for_job(job, window=3, in_flight=1, fallback=None, forced_because=None)


def check_rows(
    case: EntityCase, job: Job, warehouse: Warehouse, checks: Mapping[date, SourceCheck], tables: Mapping[str, str]
) -> None:
    """The rows to process are those that were generated, in the types that are declared, together and day by day."""
    for group in group_by_source(checks):
        choice = checks[group[0]].choice
        names = [name for name in (choice.source, choice.fill_from) if name is not None]
        for days in dict.fromkeys((group, *((day,) for day in group))):
            if unreadable := [name for name in names if case.has_unreadable_rows(name, days)]:
                with pytest.raises(SchemaMismatch) as refusal:
                    read_batches(warehouse, job, checks, days)
                assert any(tables[name] in str(refusal.value) for name in unreadable)
            elif not any(case.has_unreadable_entities(name, days) for name in names):
                check_rows_of_days(case, job, warehouse, checks, days)


def check_rows_of_days(
    case: EntityCase, job: Job, warehouse: Warehouse, checks: Mapping[date, SourceCheck], days: tuple[date, ...]
) -> None:
    choice = checks[days[0]].choice
    try:
        (frame,) = read_batches(warehouse, job, checks, days).values()
    except SchemaMismatch as exc:
        if choice.fill_from is None or "can't be filled in" not in str(exc):
            check_refused_column(case, choice, str(exc))
        return  # an entity of one source has no value of the target's type, or a value none of the primary's type
    if choice.fill_from is None:
        types = types_read(case.sources[choice.source])
        names = [name for name, kind in types.items() if kind in PANDAS_TYPES and name in frame]
        assert [str(frame[name].dtype) for name in names] == [PANDAS_TYPES[types[name]] for name in names]
    entities = frame_entities(frame, chosen_columns(job, checks[days[0]]))
    values = [frame[name] if name in frame else [None] * len(frame) for name in ("_source", "amount", "note")]
    rows = zip(entities["day"].to_pylist(), entities["entity"].to_pylist(), *values, strict=True)
    expected = [row for day in days for row in expected_rows(case, choice, day)]
    assert Counter((*row[:3], *map(comparable, row[3:])) for row in rows) == Counter(expected)


def check_refused_column(case: EntityCase, choice: SourceChoice, error: str) -> None:
    """Check that the error names a column that the two sources have in different types."""
    assert choice.fill_from is not None
    refusal = re.fullmatch(
        r"can't fill .* from source (\w+): column (\w+) holds .*, but in the primary it is (\w+)", error
    )
    assert refusal is not None, error
    own, other = types_read(case.sources[choice.source]), types_read(case.sources[choice.fill_from])
    assert refusal[1] == choice.fill_from
    assert own[refusal[2]] == refusal[3] != other[refusal[2]]


def types_read(table: GeneratedTable) -> dict[str, str]:
    return {**table.table_types(), **(table.job_columns or {})}


def expected_rows(case: EntityCase, choice: SourceChoice, day: date) -> list[tuple[Any, ...]]:
    """Day, entity, source, amount and note of each row of the chosen source, and of what fills its gaps."""
    chosen = case.sources[choice.source]
    fill = case.sources[choice.fill_from] if choice.fill_from else None
    filled = case.present(fill, day) - case.present(chosen, day) if fill else set[str]()
    return [
        (day, text, name, comparable(row["amount"]), comparable(row["note"]))
        for name, table in ((choice.source, chosen), (choice.fill_from, fill))
        if table is not None
        for row in table.rows
        if row["day"] == day and ((text := text_of(row, table)) in filled) == (table is fill)
    ]


def comparable(value: Any) -> Any:
    """A value of a frame as an equal one for every null."""
    return None if pd.isna(value) else value
