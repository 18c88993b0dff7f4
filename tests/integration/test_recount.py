"""What a gate counts of staged rows, where they lie: in files that DuckDB reads, or in a table of BigQuery."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from math import inf, nan
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gated_backfill.common.errors import QueryFailed, StagedFileLost
from gated_backfill.common.ledger import DateState
from gated_backfill.common.model.arrow.types import arrow_schema
from gated_backfill.common.model.coverage import Recount
from gated_backfill.common.model.job import Batch, Expectation, Job, Reconcile, Source, Target
from gated_backfill.common.model.publication import StagedFile, WarehouseLimits
from gated_backfill.common.model.tables import Column, ColumnType, TableName
from gated_backfill.common.storage.staging import Staging
from gated_backfill.common.warehouse.bigquery.warehouse import BigQueryWarehouse
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from gated_backfill.common.warehouse.protocol import StagedScan, Warehouse
from gated_backfill.worker.dates.process import process_dates
from gated_backfill.worker.gate.gate import GateOutcome, close_window
from gated_backfill.worker.gate.recount import recount
from gated_backfill.worker.gate.staged_contents import StagedContents, read_contents
from tests.builders import FEB_23, FEB_24, FEB_25, recount_rows
from tests.emulator import Emulator
from tests.lab import Lab, players

EXPECTED: dict[str, ColumnType] = {"player": "STRING", "day": "DATE", "points": "INT64"}
STAGED: dict[str, ColumnType] = {"player": "STRING", "day": "DATE", "game": "INT64", "points": "FLOAT64"}


def no_process(batch: Batch) -> Any:
    raise AssertionError("nothing is built here")


#: Of each player, the points of all games must add up to those that are expected.
JOB = Job(
    name="recounted",
    version="1",
    target=Target(
        table="nba.games",
        date_column="day",
        key=("player", "day", "game"),
        columns={
            name: Column(type=kind, ge=0 if name == "points" else None, nullable=name == "points")
            for name, kind in STAGED.items()
        },
        required=("game",),
    ),
    expectation=Expectation(
        table="nba.players", date_column="day", entity="player", reconcile=(Reconcile(column="points"),)
    ),
    sources=(Source(name="games", table="nba.players", date_column="day"),),
    process=no_process,
)


def rows_of(day: date, rows: Iterable[tuple[str | None, int | None, float | None]]) -> pa.Table:
    listed = [{"player": player, "day": day, "game": game, "points": points} for player, game, points in rows]
    return pa.Table.from_pylist(listed, schema=arrow_schema(STAGED))


@pytest.fixture
def expecting(warehouse: Warehouse) -> Warehouse:
    load_expectation(warehouse)
    return warehouse


def load_expectation(warehouse: Warehouse) -> None:
    """Two players with three points each are expected on each date."""
    listed = [{"player": player, "day": day, "points": 3} for day in (FEB_23, FEB_24, FEB_25) for player in "ab"]
    rows = pa.Table.from_pylist(listed, schema=arrow_schema(EXPECTED))
    warehouse.load(TableName("nba", "players"), "day", rows)


def facts_of(count: Recount) -> tuple[Any, ...]:
    return (count.matched, count.missing, count.unexpected, count.rows, count.null_keys, count.duplicate_keys)


def test_rows_are_counted_by_their_dates(expecting: Warehouse, staging: Staging) -> None:
    counts = recount_rows(
        expecting,
        JOB,
        {
            FEB_23: rows_of(FEB_23, [("a", 1, 1.0), ("a", 2, 2.0), ("b", 1, 3.0)]),
            FEB_24: rows_of(FEB_24, [("a", 1, 3.0), ("a", 1, nan), ("b", None, 3.0), ("c", 1, None), (None, 2, 1.0)]),
            FEB_25: rows_of(FEB_25, []),
        },
        staging,
    )
    assert {day: facts_of(count) for day, count in counts.items()} == {
        FEB_23: (2, (), (), 3, 0, 0),
        FEB_24: (1, ("b",), ("c",), 5, 2, 1),  # b's only row lacks the game, which is required
        FEB_25: (0, ("a", "b"), (), 0, 0, 0),
    }
    assert counts[FEB_23].schema_problem is counts[FEB_25].schema_problem is None
    assert counts[FEB_24].schema_problem == "player fails not_nullable in 1 row(s), e.g. <NA>"


def test_a_window_is_counted_in_portions(local_warehouse: LocalWarehouse, staging: Staging) -> None:
    load_expectation(local_warehouse)
    local_warehouse.max_rows_per_count = 3  # the first two dates together
    rows = {
        FEB_23: rows_of(FEB_23, [("a", 1, 3.0)]),
        FEB_24: rows_of(FEB_24, [("a", 1, 3.0), ("b", 1, 3.0)]),
        FEB_25: rows_of(FEB_25, [("b", 1, 1.0), ("b", 1, 2.0), ("b", 2, -1.0), ("b", 3, 1.0)]),
    }
    counts = recount_rows(local_warehouse, JOB, rows, staging)
    assert [facts_of(counts[day]) for day in rows] == [
        (1, ("b",), (), 1, 0, 0),
        (2, (), (), 2, 0, 0),
        (1, ("a",), (), 4, 0, 1),
    ]
    assert counts[FEB_25].schema_problem is not None


@pytest.mark.parametrize(
    ("points", "present"),
    [
        pytest.param([1.0, 2.0], True, id="equal"),
        pytest.param([1.0, 2.5], False, id="more"),
        pytest.param([None, 3.0], True, id="null-is-0"),
        pytest.param([nan, 3.0], True, id="nan-is-0"),
        pytest.param([inf, -inf], False, id="infinities"),
    ],
)
def test_sums_are_added_up_where_the_rows_lie(
    expecting: Warehouse, staging: Staging, points: list[float | None], present: bool
) -> None:
    rows = rows_of(FEB_23, [("a", game, value) for game, value in enumerate(points)] + [("b", 1, 3.0)])
    assert recount_rows(expecting, JOB, {FEB_23: rows}, staging)[FEB_23].matched == 1 + present


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        pytest.param(rows_of(FEB_24, [("a", 1, 3.0)]), "rows of another date", id="date"),
        pytest.param(
            rows_of(FEB_23, [("a", 1, 3.0)]).drop_columns("game"), "the columns are player string", id="column"
        ),
    ],
)
def test_a_file_that_is_not_of_the_date_or_the_target_blocks_its_date_only(
    expecting: Warehouse, staging: Staging, rows: pa.Table, problem: str
) -> None:
    whole = rows_of(FEB_24, [("a", 1, 3.0), ("b", 1, 3.0)])
    counts = recount_rows(expecting, JOB, {FEB_23: rows, FEB_24: whole}, staging)
    assert (counts[FEB_23].schema_problem or "").startswith(problem)
    assert (counts[FEB_24].matched, counts[FEB_24].schema_problem) == (2, None)


def staged_contents(staging: Staging, *days: date) -> dict[date, StagedContents]:
    rows = {day: rows_of(day, [("a", 1, 3.0), ("b", 1, 3.0)]) for day in days}
    return {day: read_contents(staging.write("run-1", day, 1, table), JOB, staging) for day, table in rows.items()}


@pytest.mark.parametrize("damage", ["removed", "changed"])
def test_a_file_that_is_lost_while_it_is_counted_is_named(expecting: Warehouse, staging: Staging, damage: str) -> None:
    staged = staged_contents(staging, FEB_23, FEB_24)
    path = Path(staged[FEB_24].file.location)
    path.unlink() if damage == "removed" else path.write_bytes(b"PAR1")
    with pytest.raises(StagedFileLost) as lost:
        recount(expecting, JOB, staged)
    assert lost.value.file_day == FEB_24


def test_a_staging_table_that_lost_rows_is_found_out(
    bigquery_warehouse: BigQueryWarehouse, emulator: Emulator, staging: Staging
) -> None:
    load_expectation(bigquery_warehouse)
    staged = staged_contents(staging, FEB_23, FEB_24)
    assert not {count.schema_problem for count in recount(bigquery_warehouse, JOB, staged).values()} - {None}
    client = emulator.client()
    (table,) = [found for found in client.list_tables("backfill") if found.table_id.startswith("staged_")]
    client.query(
        f"DELETE FROM `{table.full_table_id.replace(':', '.')}` WHERE day = '{FEB_24}' AND player = 'b'"
    ).result()
    counts = recount(bigquery_warehouse, JOB, staged)
    assert counts[FEB_23].schema_problem is None
    assert counts[FEB_24].schema_problem == "2 row(s) are staged, and the warehouse counts 1"


def test_a_query_beyond_its_memory_says_so(tmp_path: Path, staging: Staging) -> None:
    warehouse = LocalWarehouse(tmp_path, limits=WarehouseLimits(query_memory_mb=10))
    names = pa.array([f"player {number:060}" for number in range(300_000)])
    rows = pa.table({"player": names, "day": pa.array([FEB_23] * len(names), pa.date32())})
    file = staging.write("run-1", FEB_23, 1, rows)
    sql = "SELECT ARRAY_AGG(player) AS players FROM staged"  # an array lies in memory as a whole
    with pytest.raises(QueryFailed, match=r"more memory than BACKFILL_QUERY_MEMORY_MB \(10\)"):
        warehouse.query(sql, scans={"staged": StagedScan(files=(file,))})


def test_a_staging_folder_may_have_any_name(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "day=[1]*?'")
    rows = rows_of(FEB_23, [("a", 1, 3.0)])
    scan = StagedScan(files=(staging.write("run-1", FEB_23, 1, rows),))
    assert LocalWarehouse(tmp_path).query("SELECT * FROM t", scans={"t": scan}).to_pylist() == rows.to_pylist()


class LosingStaging(Staging):
    """A staging that loses each file once it was read."""

    @contextmanager
    def open(self, staged: StagedFile) -> Generator[pq.ParquetFile]:
        with super().open(staged) as file:
            yield file
        Path(staged.location).unlink()


def test_a_date_whose_file_is_lost_while_it_is_judged_is_built_again(lab: Lab) -> None:
    lab.probe_all([FEB_23, FEB_24], players(4))
    run, deps, _ = lab.opened([FEB_23, FEB_24], "probe")
    process_dates(run.id, [FEB_23, FEB_24], deps)
    losing = replace(deps, staging=LosingStaging(deps.staging.root))
    assert close_window(run.id, 1, losing) is GateOutcome.REQUEUED
    rows = deps.ledger.dates.list_dates(run.id)
    assert {row.day: row.state for row in rows} == dict.fromkeys((FEB_23, FEB_24), DateState.QUEUED)
