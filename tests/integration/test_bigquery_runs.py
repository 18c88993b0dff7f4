"""Whole runs with BigQuery as the warehouse, against the same runs on files."""

from __future__ import annotations

from datetime import date, timedelta

from gated_backfill.common.errors import QueryFailed
from gated_backfill.common.ledger import DateState, RunState
from gated_backfill.common.model.dates import DateRange
from gated_backfill.common.runs.stale_dates import BILLED, find_stale_dates_of_runs
from gated_backfill.producer.demo.season import INCIDENT, load_season
from gated_backfill.producer.planning.plan import Reprocess
from tests.emulator import Emulator
from tests.lab import Lab, players

TARGET = "nba_precompute.player_composite_factors"
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
