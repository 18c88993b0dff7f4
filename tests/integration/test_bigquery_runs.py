"""Whole runs with BigQuery as the warehouse, against the same runs on files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

import pytest

from gated_backfill.common.errors import QueryFailed
from gated_backfill.common.ledger import DateState, RunState
from gated_backfill.common.model.dates import DateRange
from gated_backfill.common.runs.stale_dates import BILLED, find_stale_dates_of_runs
from gated_backfill.common.warehouse.bigquery.client import BigQueryConnection
from gated_backfill.producer.demo.season import INCIDENT, load_season
from gated_backfill.producer.planning.plan import Reprocess
from tests.emulator import Emulator
from tests.lab import Lab, players

TARGET = "nba_precompute.player_composite_factors"
SPAN = ("--start-date", "2024-01-01", "--end-date", "2024-01-02")
JOB = ("--job", "player_composite_factors")
AROUND_THE_INCIDENT = DateRange(start=date(2023, 2, 16), through=date(2023, 2, 26))
WEEKS_BEFORE = DateRange(start=date(2023, 1, 15), through=date(2023, 2, 28))  #: all that its dates look back at


def test_the_incident_in_a_season_gives_the_same_rows_to_the_last_digit(lab: Lab, bigquery_lab: Lab) -> None:
    span = ("--start-date", str(AROUND_THE_INCIDENT.start), "--end-date", str(AROUND_THE_INCIDENT.through))
    for one in (lab, bigquery_lab):
        load_season(one.context.warehouse, WEEKS_BEFORE)

    for ran in (lab.inside("run", *JOB, *span, "--sequential"), bigquery_lab.command("run", *JOB, *span)):
        assert ran.returncode == 0, ran.stdout + ran.stderr

    for day in AROUND_THE_INCIDENT.days():
        rows = [in_order(one.published(TARGET, day)) for one in (lab, bigquery_lab)]
        assert rows[0] == rows[1], day
    for day in INCIDENT:
        published = bigquery_lab.published(TARGET, day)
        assert {row["context_source"] for row in published} == {"derived"}
        assert len(published) == {"2023-02-23": 187, "2023-02-24": 175}[str(day)]


def in_order(rows: list[dict[str, object]]) -> list[str]:
    """The rows with every value as it reads back, in a fixed order."""
    return sorted(repr(sorted(row.items())) for row in rows)


def test_a_failed_publication_leaves_table_and_checkpoints_as_they_were(bigquery_lab: Lab, emulator: Emulator) -> None:
    days = [date(2024, 1, 1) + timedelta(days=n) for n in range(3)]
    bigquery_lab.probe_all(days, players(20))
    first = bigquery_lab.run(days[:2], "probe")
    before = bigquery_lab.table_bytes("probe.probe")
    proven = bigquery_lab.ledger.checkpoints.list_checkpoints("probe", days[0], days[-1])
    bigquery_lab.probe_all(days, players(20), lowest=0.5)
    emulator.run("ALTER TABLE backfill.publications RENAME COLUMN row_count TO counted")  # the last step will fail

    failed = bigquery_lab.run(days, "probe", reprocess=Reprocess.ALL)

    assert first.run.state is RunState.SUCCEEDED
    stale = find_stale_dates_of_runs([first.run], bigquery_lab.ledger, lambda: bigquery_lab.context.warehouse)
    assert (stale.reasons, stale.not_compared) == ({}, {"probe": BILLED})
    assert failed.run.state is RunState.FAILED
    assert failed.count(DateState.FAILED) == 3
    assert QueryFailed.__name__ in {bigquery_lab.outcome(day, failed).error_kind for day in days}
    assert bigquery_lab.table_bytes("probe.probe") == before
    assert bigquery_lab.ledger.checkpoints.list_checkpoints("probe", days[0], days[-1]) == proven

    emulator.run("ALTER TABLE backfill.publications RENAME COLUMN counted TO row_count")
    again = bigquery_lab.run(days, "probe", reprocess=Reprocess.ALL)
    assert again.run.state is RunState.SUCCEEDED
    assert len(bigquery_lab.table_bytes("probe.probe")) == 3


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[date]]]:
    """The queries over all of some rows, each as the table and the dates; the newest last."""
    seen: list[tuple[str, list[date]]] = []
    query = BigQueryConnection.query

    def record(self: BigQueryConnection, sql: str, params: Mapping[str, Any]) -> Any:
        if "FARM_FINGERPRINT" in sql:
            seen.append((re.findall(r"`test-project\.(\w+\.\w+)`", sql)[0], list(params["days"])))
        return query(self, sql, params)

    monkeypatch.setattr(BigQueryConnection, "query", record)
    return seen


def actions(lab: Lab, days: list[date]) -> list[str]:
    return [step.action.value for step in lab.plan(days, "probe").steps]


def test_a_plan_reads_the_rows_only_of_dates_that_something_has_written(
    bigquery_lab: Lab, emulator: Emulator, hashed: list[tuple[str, list[date]]]
) -> None:
    days = [date(2024, 1, 1) + timedelta(days=n) for n in range(3)]
    bigquery_lab.probe_all(days, players(20))
    assert bigquery_lab.run(days, "probe").run.state is RunState.SUCCEEDED

    hashed.clear()
    assert actions(bigquery_lab, days) == ["done"] * 3
    assert hashed == []

    emulator.run("UPDATE probe.probe SET value = value + 1 WHERE day = '2024-01-02' AND name LIKE '%7'")
    assert actions(bigquery_lab, days) == ["done", "build", "done"]
    assert {(table, *days_read) for table, days_read in hashed} == {("probe.probe", days[1])}

    hashed.clear()
    emulator.run("UPDATE probe.first SET value = value + 1 WHERE day = '2024-01-03'")
    assert actions(bigquery_lab, days) == ["done", "build", "stale"]
    assert {(table, *days_read) for table, days_read in hashed} == {("probe.probe", days[1]), ("probe.first", days[2])}


def test_what_was_read_once_and_is_unchanged_is_not_read_again(
    bigquery_lab: Lab, hashed: list[tuple[str, list[date]]]
) -> None:
    days = [date(2024, 1, 1), date(2024, 1, 2)]
    bigquery_lab.probe_all(days, players(20))
    bigquery_lab.run(days, "probe")
    bigquery_lab.change_ledger("UPDATE checkpoints SET target_quick = NULL")  # as an earlier version wrote them
    look, audit = ("plan", "--job", "probe", *SPAN), ("coverage", "--job", "probe", *SPAN)

    for ran in (bigquery_lab.inside(*look), bigquery_lab.inside(*look), bigquery_lab.inside(*audit)):
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert hashed.pop() == ("probe.probe", days)  # only looking records nothing

    assert bigquery_lab.inside(*audit, "--flag-incomplete").returncode == 0
    assert hashed.pop() == ("probe.probe", days)
    hashed.clear()
    for ran in (bigquery_lab.inside(*look), bigquery_lab.inside(*audit), bigquery_lab.inside(*audit, "--json")):
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert hashed == []

    assert bigquery_lab.inside(*audit, "--full").returncode == 0
    assert hashed == [("probe.probe", days)]


def test_a_launch_records_what_its_plan_has_read(bigquery_lab: Lab, hashed: list[tuple[str, list[date]]]) -> None:
    days = [date(2024, 1, 1), date(2024, 1, 2)]
    bigquery_lab.probe_all(days, players(20))
    bigquery_lab.run(days, "probe")
    recorded = bigquery_lab.ledger.checkpoints.list_checkpoints("probe", days[0], days[1])
    forgotten = {
        day: {k: v for k, v in (c.input_parts or {}).items() if "quick" not in k} for day, c in recorded.items()
    }
    for day, parts in forgotten.items():
        bigquery_lab.change_ledger(
            "UPDATE checkpoints SET input_parts = :parts, target_quick = 'of rows written again' WHERE day = :day",
            parts=json.dumps(parts),
            day=day.isoformat(),
        )

    assert actions(bigquery_lab, days) == ["done"] * 2

    for day, renewed in bigquery_lab.ledger.checkpoints.list_checkpoints("probe", days[0], days[1]).items():
        assert renewed.target_quick == recorded[day].target_quick
        assert forgotten[day].items() < (renewed.input_parts or {}).items() <= (recorded[day].input_parts or {}).items()
    hashed.clear()
    assert actions(bigquery_lab, days) == ["done"] * 2
    assert hashed == []
