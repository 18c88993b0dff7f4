"""The demo as a newcomer runs it."""

from __future__ import annotations

import io
import json
from datetime import date

import pytest

from gated_backfill.producer.demo.demo import replay_incident
from gated_backfill.producer.terminal.console import make_console
from tests.lab import SUMMARY, Lab, players
from tests.receiver import receiving

TARGET = "nba_precompute.player_composite_factors"
FEB_23, FEB_24 = date(2023, 2, 23), date(2023, 2, 24)


def test_the_demo_rebuilds_the_incident_from_the_fallback_and_then_replays_it(lab: Lab) -> None:
    with receiving() as receiver:
        first = lab.command("demo", BACKFILL_ALERTS=receiver.url)

    assert first.returncode == 0, first.stdout + first.stderr
    assert receiver.heard == []
    assert lab.ledger.alerts.list_latest_alerts(10) == []
    assert lab.ledger.runs.list_unreported_runs() == []
    for line in (
        "2023-02-23  187       1 (0.5 %)    187 (100.0 %)  derived     187/187 (100.0 %), checkpointed",
        "2023-02-24  175       68 (38.8 %)  175 (100.0 %)  derived     175/175 (100.0 %), checkpointed",
        "2023-02-23  BLOCKED  1/187 = 0.5 %",
        "2023-02-24  BLOCKED  68/175 = 38.8 %",
    ):
        assert line in first.stdout
    assert len(lab.published(TARGET, FEB_23)) == 187
    assert {row["context_source"] for row in lab.published(TARGET, FEB_23)} == {"derived"}
    runs = lab.ledger.runs.list_latest_runs()
    assert [run.state.value for run in runs] == ["failed", "succeeded"]

    before = lab.table_bytes(TARGET)
    second = lab.command("demo")

    assert second.returncode == 0, second.stdout + second.stderr
    assert "dates are checkpointed already" in second.stdout
    assert lab.table_bytes(TARGET) == before
    assert lab.ledger.runs.list_latest_runs() == runs
    check_rebuild_of_ledger(lab)


def check_rebuild_of_ledger(lab: Lab) -> None:
    """The demo's ledger is lost: all checkpoints are made again, and without one partition all but one."""
    season = ("--job", "player_composite_factors", "--start-date", "2022-10-18", "--end-date", "2023-04-09")
    lab.ledger.close()
    for lost in range(2):
        for file in lab.home.glob("ledger.db*"):
            file.unlink()
        if lost:
            part = lab.home / "warehouse" / TARGET.replace(".", "/") / f"game_date={FEB_23}" / "part.parquet"
            part.write_bytes(part.read_bytes()[:-100])
        rebuilt = lab.inside("ledger", "rebuild", "--yes")
        assert rebuilt.returncode == (3 if lost else 0), rebuilt.stdout + rebuilt.stderr
        assert f"player_composite_factors: {152 - lost} of 152 date(s) are proven" in rebuilt.stdout
        if lost:
            assert f"  {FEB_23}  its rows are not those that run " in rebuilt.stdout
        else:
            planned = lab.inside("plan", *season)
            assert "174 date(s): 152 left as they are, 22 to skip" in planned.stdout
            assert "nothing to do: 152 date(s) are checkpointed" in lab.inside("run", *season).stdout


@pytest.mark.parametrize(
    ("marker", "error"),
    [
        pytest.param(None, f"already holds {SUMMARY}, which the demo did not make", id="no-marker"),
        pytest.param("elsewhere", "is of a demo in another warehouse", id="marker-of-another-warehouse"),
    ],
)
def test_the_demo_leaves_tables_alone_that_it_did_not_make(lab: Lab, marker: str | None, error: str) -> None:
    lab.summary(FEB_23, ["somebody"])
    if marker:
        (lab.home / "demo.json").write_text(json.dumps({"format": 1, "warehouse": marker, "state": "making"}))
    before = lab.table_bytes(SUMMARY)

    refused = lab.command("demo")

    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert error in refused.stderr
    assert lab.table_bytes(SUMMARY) == before


def test_the_demo_refuses_a_warehouse_that_is_not_local_and_leaves_nothing_behind(lab: Lab) -> None:
    home = lab.home.parent / "unused"

    refused = lab.command("demo", BACKFILL_HOME=str(home), BACKFILL_WAREHOUSE="bigquery://project")

    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert not home.exists()


def test_a_replay_that_the_gate_does_not_block_is_a_failure(lab: Lab) -> None:
    for day, present in ((FEB_23, 20), (FEB_24, 1)):
        lab.schedule(day, games=1)
        lab.summary(day, players(20))
        lab.upcoming(day, players(present))
    lab.run([FEB_23, FEB_24])
    page = io.StringIO()

    held = replay_incident(lab.context, make_console(file=page, width=160), [FEB_23, FEB_24])

    assert not held
    assert "The demo failed: the gate did not block 2023-02-23." in page.getvalue()
    assert "2023-02-23  The demo failed: the replay changed what was published" in page.getvalue()
    assert "2023-02-24  still published: 20 rows; its checkpoint is that of the first run" in page.getvalue()
