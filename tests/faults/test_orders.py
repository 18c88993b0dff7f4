"""Orders to a run that lives in the command that launched it: its workers obey at once, and nothing is left behind."""

from __future__ import annotations

import time
from datetime import date, timedelta

import psutil

from gated_backfill.common.ledger import DateState, RunState
from gated_backfill.common.model.dates import DateRange
from gated_backfill.common.process.user import describe_user
from tests.faults.test_kills import gone, workers
from tests.lab import Lab, players, until

DAYS = [date(2023, 2, 20) + timedelta(days=n) for n in range(6)]
TEN_YEARS = DateRange(start=date(2014, 1, 1), through=date(2023, 12, 29)).days()
WITHIN_SECONDS = 2.0


def test_dates_that_are_being_built_are_stopped_at_once_and_their_processes_replaced(lab: Lab) -> None:
    lab.probe_all(DAYS, players(3))
    for day in DAYS[2:4]:
        lab.probe("first", day, players(3), trick="sleep")
    command = lab.start("run", "--job", "probe", "--dates", f"{DAYS[0]}..{DAYS[-1]}", "--window", "2")
    ledger = lab.ledger
    run = until(lambda: ledger.runs.list_latest_runs(1), "the run")[0]
    until(
        lambda: ledger.runs.get_progress(run.id).count(DateState.PROCESSING) == 2,
        "both workers asleep over their dates",
    )
    until(lambda: ledger.runs.get_progress(run.id).count(DateState.CHECKPOINTED) == 2, "the first window's end")
    asleep = workers(command.pid)

    ordered = lab.inside("cancel", run.id, "--now", "--reason", "they sleep")
    at = time.monotonic()
    assert "2 dates are checkpointed, 2 in progress stopped, 4 will not be built" in ordered.stdout, ordered.stderr
    until(lambda: sum(gone([one]) for one in asleep) >= 2, "the end of both")
    took = time.monotonic() - at
    out, err = command.communicate(timeout=60)

    assert took < WITHIN_SECONDS
    assert command.returncode == 3, out + err
    assert f"cancelled by {describe_user()}: they sleep" in out
    assert [row.state.value for row in ledger.dates.list_dates(run.id)] == ["checkpointed"] * 2 + ["cancelled"] * 4
    assert list((lab.home / "staging").rglob("*.parquet")) == []
    assert list((lab.home / "stacks").iterdir()) == []


def test_a_run_of_ten_years_is_cancelled_at_once_and_keeps_every_window_it_has_finished(lab: Lab) -> None:
    lab.probe_all(TEN_YEARS, players(1))
    command = lab.start("run", "--job", "probe", "--dates", f"{TEN_YEARS[0]}..{TEN_YEARS[-1]}", "--window", "20", "-y")
    ledger = lab.ledger
    run = until(lambda: ledger.runs.list_latest_runs(1), "the run")[0]
    until(lambda: ledger.runs.get_progress(run.id).count(DateState.CHECKPOINTED) >= 20, "the first window's end")

    lab.inside("cancel", run.id, "--reason", "enough")
    at = time.monotonic()
    before = ledger.runs.get_progress(run.id)
    assert before.total == len(TEN_YEARS)
    assert not before.count(DateState.QUEUED, DateState.PENDING)
    until(lambda: not ledger.runs.get_progress(run.id).count(DateState.PROCESSING), "the end of what was begun")
    took = time.monotonic() - at
    out, err = command.communicate(timeout=60)

    assert took < WITHIN_SECONDS
    assert command.returncode == 3, out + err
    assert "cancelled" in out
    after = ledger.runs.get_progress(run.id)
    assert after.run.state is RunState.CANCELLED
    assert after.count(DateState.CANCELLED) == before.count(DateState.CANCELLED)
    assert after.count(DateState.CHECKPOINTED, DateState.CANCELLED) == len(TEN_YEARS)
    assert len(ledger.checkpoints.list_checkpoints("probe", TEN_YEARS[0], TEN_YEARS[-1])) == after.count(
        DateState.CHECKPOINTED
    )
    assert len(lab.table_bytes("probe.probe")) == after.count(DateState.CHECKPOINTED)


def test_an_embedded_run_that_another_command_pauses_goes_on_when_resumed(lab: Lab) -> None:
    lab.probe_all(DAYS, players(3), trick="wait")
    command = lab.start("run", "--job", "probe", "--dates", f"{DAYS[0]}..{DAYS[-1]}", "--window", "2")
    ledger = lab.ledger
    until(lambda: len(list(lab.marks.glob("waiting-*"))) == 2, "a window whose dates are both being processed")
    run = ledger.runs.list_latest_runs(1)[0]

    assert lab.inside("pause", run.id).returncode == 0
    (lab.marks / "released").touch()
    until(
        lambda: not ledger.runs.get_progress(run.id).count(DateState.PROCESSING, DateState.STAGED),
        "the end of what was begun",
    )
    assert ledger.runs.get_progress(run.id).count(DateState.CHECKPOINTED) <= 4
    assert psutil.pid_exists(command.pid)
    assert lab.inside("resume", run.id).returncode == 0
    out, err = command.communicate(timeout=60)

    assert command.returncode == 0, out + err
    assert "paused: " in out
    assert len(lab.table_bytes("probe.probe")) == len(DAYS)
