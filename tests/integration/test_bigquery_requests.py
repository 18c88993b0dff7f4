"""How often a run asks BigQuery, on the double of its REST interface: numbers that must not grow unnoticed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import date
from functools import partial
from math import ceil

import pyarrow as pa
import pytest

from gated_backfill.common.ledger import RunState
from gated_backfill.common.model.arrow.types import arrow_schema
from gated_backfill.common.model.tables import ColumnTypes, TableName
from gated_backfill.common.warehouse.bigquery.warehouse import BigQueryWarehouse
from gated_backfill.common.warehouse.rate_limited import rate_limited
from gated_backfill.producer.planning.plan import Reprocess
from gated_backfill.worker.dates.process import process_dates
from gated_backfill.worker.gate.gate import GateOutcome, close_window
from tests import rest_rules as rules
from tests.lab import PACKAGES, PROBE_TYPES, Lab, players, probe_rows
from tests.rest_lab import opened
from tests.rest_service import Request
from tests.rest_tables import FilledDouble, days_from, with_sources

JOBS = ("jobs.query", "jobs.insert", "jobs.upload")  #: the requests that start a job each
TEN_YEARS = 3650
SALES: ColumnTypes = {"store": "STRING", "amount": "FLOAT64"}


def asked(filled: FilledDouble) -> tuple[int, int]:
    """The number of requests since the last call, and of the jobs that they started."""
    log = filled.double.log
    counts = len(log), sum(one.call in JOBS for one in log)
    log.clear()
    return counts


# -- requests ---------------------------------------------------------------------------------------------------


def test_a_task_asks_no_more_for_thirty_dates_than_for_one(rest_lab: Lab, filled: FilledDouble) -> None:
    days = days_from(61)
    with_sources(filled, days)
    run, deps, _ = rest_lab.opened(days, "probe")
    asked(filled)
    # By one job two tables are compared, and their partitions' metadata is read; by another both are
    # fingerprinted; and one is read. The tables are described, those that do not exist each time. Row access policies
    # are looked at as often as a table that exists.
    process_dates(run.id, days[:30], deps)
    assert asked(filled) == (20, 3)
    process_dates(run.id, days[30:60], deps)
    assert asked(filled) == (16, 3)
    process_dates(run.id, days[60:], deps)
    assert asked(filled) == (16, 3)


def test_a_window_asks_no_more_for_sixty_dates_than_for_one(rest_lab: Lab, filled: FilledDouble) -> None:
    days = days_from(61)
    with_sources(filled, days)
    # A load, the staged rows and the expectation by one job, the transaction, what the partitions' metadata tells, and
    # the published rows after it; before it, too, once the target exists. The first window creates the target and the
    # tool's own tables.
    for of_window, expected in ((days[:1], (27, 5)), (days[1:], (21, 6))):
        run, deps, _ = rest_lab.opened(of_window, "probe")
        process_dates(run.id, of_window, deps)
        asked(filled)
        assert close_window(run.id, 1, deps) is GateOutcome.CLOSED
        assert asked(filled) == expected


@pytest.mark.parametrize(
    ("dates_per_task", "expected"), [pytest.param(30, (74, 13), id="30"), pytest.param(1, (538, 100), id="1")]
)
def test_a_run_asks_at_most_four_times_per_date_at_thirty_a_task(
    rest_lab: Lab, filled: FilledDouble, dates_per_task: int, expected: tuple[int, int]
) -> None:
    days = days_from(30)
    with_sources(filled, days)
    progress = rest_lab.run(days, "probe", preflight=True, dates_per_task=dates_per_task)
    assert progress.run.state is RunState.SUCCEEDED
    requests, jobs = asked(filled)  # of plan, checks and history, too
    assert (requests, jobs) == expected
    assert requests <= 4 * len(days) or dates_per_task == 1


@pytest.mark.parametrize("count", [2, 100])
def test_a_window_of_a_sql_job_asks_no_more_for_a_hundred_dates_than_for_two(
    rest_lab: Lab, filled: FilledDouble, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.syspath_prepend(str(PACKAGES / "sql_jobs"))
    days = days_from(count)
    with_shop(filled, days)
    run, deps, _ = rest_lab.opened(days, "revenue")
    asked(filled)
    # By one job three tables are compared, and the metadata of four is read; by another four are fingerprinted, and the
    # rows of an input are counted. The query is tried without running it, its rows are staged, and their entities read.
    process_dates(run.id, days, deps)
    assert staged_by(filled.double.log) == 1
    assert asked(filled) == (29, 5)
    # The contents, all that is counted, the transaction, the metadata, and the published rows.
    assert close_window(run.id, 1, deps) is GateOutcome.CLOSED
    assert asked(filled) == (23, 5)
    assert rest_lab.states(run.id) == ["checkpointed"] * count


def staged_by(log: Sequence[Request]) -> int:
    """The number of jobs that staged the rows of queries, each in a table that counts as changed once."""
    return sum(dict(count) == {"load": 1, "metadata": 1} for count in changes(log).values())


def with_shop(filled: FilledDouble, days: Sequence[date]) -> None:
    """What the SQL job `revenue` reads; of its optional input there is no table."""
    stores = [{"day": day, "store": store, "amount": 1.5, "rate": 2.0} for day in days for store in ("north", "south")]
    columns = {"open_stores": {"store": "STRING"}, "tills": SALES, "bank": SALES, "rates": {"rate": "FLOAT64"}}
    for name, types in columns.items():
        rows = stores if name != "rates" else stores[::2]
        types = {"day": "DATE", **types}
        filled.fill(TableName("shop", name), pa.Table.from_pylist(rows, schema=arrow_schema(types)), types, "day")


def test_reads_together_take_their_tokens_once_though_they_are_called_again(filled: FilledDouble) -> None:
    days = days_from(3)
    with_sources(filled, days)
    expected, first = TableName("probe", "expected"), TableName("probe", "first")
    taken: list[None] = []
    warehouse = rate_limited(opened(filled.double), lambda: taken.append(None))

    def nested() -> list[object]:
        return warehouse.together(*(partial(warehouse.fingerprints, table, "day", days) for table in (expected, first)))

    alone = [nested(), warehouse.fingerprints(expected, "day", days[:2])]
    taken.clear()
    asked(filled)
    assert warehouse.together(nested, lambda: warehouse.fingerprints(expected, "day", days[:2])) == alone
    assert len(taken) == 3
    assert asked(filled)[1] == 1  # for all of them


# -- quotas -----------------------------------------------------------------------------------------------------

# From https://cloud.google.com/bigquery/quotas; the first two are per table and day.
MAX_MODIFICATIONS = 1500  # by loads and the results of queries; DML statements do not count
MAX_IMMEDIATE_INSERTS = 1500  # statements; further ones run ten at a time
MAX_METADATA_UPDATES = 5  # per table in ten seconds: tables.insert, tables.patch, load jobs
MAX_PARTITIONS = 4000  # that one job may modify
SMALLEST_WINDOW = 3  # dates, that docs/bigquery.md names


def changes(log: Sequence[Request]) -> dict[str, Counter[str]]:
    """What BigQuery counts of these requests, by table: DML statements, loads, and updates of its metadata."""
    counts: dict[str, Counter[str]] = {}

    def count(table: str, kind: str) -> None:
        counts.setdefault(table, Counter())[kind] += 1

    for one in log:
        if one.kind == "query":
            for table, kind in rules.changed_tables(one.statement):
                count(table, kind)
            if created := rules.created_table(one.statement):  # as by a load
                count(created, "load")
                count(created, "metadata")
        elif one.kind == "load":
            table = one.configuration["load"]["destinationTable"]["tableId"]
            count(table, "load")
            count(table, "metadata")
        elif one.call == "tables.insert":
            count(one.body["tableReference"]["tableId"], "metadata")
        elif one.call == "tables.patch":
            count(one.path.rpartition("/")[2], "metadata")
    return counts


def test_ten_years_stay_within_the_quotas(rest_lab: Lab, filled: FilledDouble) -> None:
    days, windows = days_from(9), 3
    with_sources(filled, days)
    rest_lab.run(days, "probe", window=3, dates_per_task=3)
    filled.fill(TableName("probe", "first"), probe_rows(days, players(5), lowest=1.0), PROBE_TYPES, "day")
    again = rest_lab.run(days, "probe", window=3, dates_per_task=3, reprocess=Reprocess.ALL)
    assert again.run.state is RunState.SUCCEEDED  # it replaced every date, which takes the most statements
    counts = changes(filled.double.log)
    (undo,) = (table for table in counts if table.startswith("undo_"))
    staging = [table for table in counts if table.startswith(("staged_", "load_"))]
    # What grows with the windows of a run: one INSERT into the record, the target and the undo table each.
    assert counts["publications"] == {"insert": windows}
    assert counts["probe"] == {"insert": windows, "delete": windows}
    assert counts[undo] == {"insert": windows, "metadata": 1}
    assert len(staging) == windows + 1  # and one for the history
    assert all(counts[table] == {"load": 1, "metadata": 2} for table in staging)
    assert counts.keys() - {undo, *staging} == {"publications", "probe", "backfill_metadata"}
    # So a window of any size counts alike, and of all daily quotas only that of INSERT statements grows.
    per_window = max(count["insert"] for count in counts.values()) / windows
    assert per_window == 1
    assert max(count["load"] for count in counts.values()) <= MAX_MODIFICATIONS
    assert max(count["metadata"] for count in counts.values()) <= MAX_METADATA_UPDATES
    assert ceil(TEN_YEARS / rest_lab.settings.window) * per_window == 37
    assert ceil(TEN_YEARS / SMALLEST_WINDOW) * per_window <= MAX_IMMEDIATE_INSERTS
    assert ceil(TEN_YEARS / (SMALLEST_WINDOW - 1)) * per_window > MAX_IMMEDIATE_INSERTS
    assert rest_lab.settings.window <= MAX_PARTITIONS == BigQueryWarehouse.max_dates_per_publication
