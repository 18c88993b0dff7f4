"""`pause`, `resume`, `cancel`, `retry` and `--reason`, as a user sees them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest

from gated_backfill.common.ledger import DateState, RunAction, RunState
from gated_backfill.common.process.user import describe_user
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from gated_backfill.worker.dates import build
from gated_backfill.worker.dates.outcomes import NOT_CLAIMED
from gated_backfill.worker.gate.gate import close_window
from gated_backfill.worker.reconcile.reconcile import reconcile
from tests.builders import dead_process, process_date, running_run
from tests.lab import Lab, players, until

DAYS = [date(2023, 2, 20) + timedelta(days=n) for n in range(4)]
RUN = ("run", "--job", "probe", "--start-date", str(DAYS[0]), "--end-date", str(DAYS[-1]))
TARGET = "probe.probe"


def prepare(lab: Lab, *, trick: str | None = None) -> None:
    lab.probe_all(DAYS, players(3), trick=trick)


def staged_files(lab: Lab) -> list[Path]:
    return list((lab.home / "staging").rglob("*.parquet"))


def refused(ran: subprocess.CompletedProcess[str], why: str) -> None:
    assert ran.returncode == 2
    assert why in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


# -- what the commands do and say ---------------------------------------------------------------------------------


def test_a_run_is_paused_and_resumed_with_who_and_why(lab: Lab) -> None:
    prepare(lab)
    run, deps, _ = lab.opened(DAYS, "probe")

    paused = lab.inside("pause", run.id, "--reason", "the source is being reloaded")
    assert paused.returncode == 0, paused.stderr
    assert f"run {run.id} is paused: 0 dates in progress will be finished" in paused.stdout
    assert process_date(run.id, DAYS[0], deps).state == NOT_CLAIMED
    again = lab.inside("pause", run.id)
    assert (again.returncode, again.stdout.strip()) == (0, f"run {run.id} is already paused")
    resumed = lab.inside("resume", run.id, "--json")

    assert (resumed.returncode, json.loads(resumed.stdout)["state"]) == (0, "running")
    assert process_date(run.id, DAYS[0], deps).state == "staged"
    assert [(one.action, one.by, one.reason) for one in lab.ledger.actions.list_actions(run.id)[1:]] == [
        (RunAction.PAUSED, describe_user(), "the source is being reloaded"),
        (RunAction.RESUMED, describe_user(), None),
    ]
    assert f"paused by {describe_user()}: the source is being reloaded" in lab.inside("status", run.id).stdout
    shown = json.loads(lab.inside("status", run.id, "--json").stdout)
    assert [one["action"] for one in shown["actions"]] == ["launched", "paused", "resumed"]


def test_a_cancelled_run_finishes_what_it_has_begun_and_frees_the_rest_at_once(lab: Lab) -> None:
    prepare(lab)
    run, deps, _ = lab.opened(DAYS, "probe")
    process_date(run.id, DAYS[0], deps)

    ran = lab.inside("cancel", run.id, "--reason", "wrong season")

    assert ran.returncode == 0, ran.stderr
    assert "0 dates are checkpointed, 1 in progress will be finished, 3 will not be built" in ran.stdout
    assert f"backfill watch {run.id}" in ran.stdout
    assert lab.inside("cancel", run.id).stdout.strip() == f"run {run.id} is already being cancelled"
    assert lab.run(DAYS[1:], "probe").run.state is RunState.SUCCEEDED  # while the other still closes its window
    assert reconcile(run.id, deps, lost_tasks=True) == 1  # which sends the gate, as no chord will
    close_window(run.id, 1, deps)

    assert lab.ledger.runs.get_run(run.id).state is RunState.CANCELLED
    assert lab.states(run.id) == ["checkpointed", "cancelled", "cancelled", "cancelled"]
    assert lab.ledger.checkpoints.list_checkpoints("probe", DAYS[0], DAYS[0])[DAYS[0]].run_id == run.id
    assert staged_files(lab) == []
    shown = lab.inside("status", run.id)
    assert shown.returncode == 3
    assert f"cancelled by {describe_user()}: wrong season" in shown.stdout
    assert "1 checkpointed, 3 cancelled" in shown.stdout
    for command in ("cancel", "pause", "resume"):
        refused(lab.inside(command, run.id), "it is cancelled")


def test_a_run_of_which_nothing_was_begun_is_cancelled_at_once(lab: Lab) -> None:
    prepare(lab)
    run, _, _ = lab.opened(DAYS, "probe")

    told = json.loads(lab.inside("cancel", run.id, "--json").stdout)

    assert (told["state"], told["counts"], told["by"]) == ("cancelled", {"cancelled": 4}, describe_user())
    assert lab.ledger.runs.find_conflicting_runs("probe", DAYS) == {}


def test_discarding_removes_what_was_staged(lab: Lab) -> None:
    prepare(lab)
    run, deps, _ = lab.opened(DAYS, "probe")
    process_date(run.id, DAYS[0], deps)
    assert len(staged_files(lab)) == 1

    ran = lab.inside("cancel", run.id, "--discard")

    assert "1 staged discarded, 4 will not be built" in ran.stdout
    assert staged_files(lab) == []
    assert lab.table_bytes(TARGET) == {}
    assert lab.ledger.runs.get_run(run.id).state is RunState.CANCELLED


@pytest.mark.parametrize("command", ["pause", "resume", "cancel"])
def test_a_run_that_is_not_there_is_one_clear_line(lab: Lab, command: str) -> None:
    refused(lab.inside(command, "20230223-000000-abcdef"), "there is no run")


def test_a_run_whose_process_is_gone_can_only_be_cancelled(lab: Lab) -> None:
    prepare(lab)
    run, _, _ = lab.opened(DAYS, "probe")
    assert lab.inside("cancel", run.id).returncode == 0
    orphan = running_run(lab.ledger, DAYS, job=run.job, owner=dead_process(), options=dict(run.options))

    refused(lab.inside("pause", orphan.id), "its process has died")
    refused(lab.inside("resume", orphan.id), "its process has died")
    ran = lab.inside("cancel", orphan.id, "--reason", "it died")

    assert "its process had died" in ran.stdout
    assert lab.ledger.runs.get_run(orphan.id).state is RunState.CANCELLED
    assert lab.states(orphan.id) == ["cancelled"] * 4


# -- what those who work for the run do ---------------------------------------------------------------------------


class Ordering(LocalWarehouse):
    """A warehouse during whose first look at the target somebody gives an order."""

    def __init__(self, root: Path, order: Callable[[], object]) -> None:
        super().__init__(root)
        self._order = order

    def fingerprints(self, *arguments, **more):
        self._order()
        return super().fingerprints(*arguments, **more)


def test_pausing_a_run_gives_back_a_date_that_was_just_claimed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "RECENT_CLAIM_AGE", timedelta(0))  # as if to look at the sources had taken its time
    prepare(lab)
    run, deps, _ = lab.opened(DAYS, "probe")
    pausing = replace(deps, warehouse=Ordering(lab.home / "warehouse", lambda: lab.inside("pause", run.id)))

    assert process_date(run.id, DAYS[0], pausing).state == NOT_CLAIMED

    (row,) = lab.ledger.dates.list_dates(run.id, days=[DAYS[0]])
    assert (row.state, row.attempt, row.deaths) == (DateState.QUEUED, 0, 0)
    lab.inside("resume", run.id)
    assert process_date(run.id, DAYS[0], deps).state == "staged"


@pytest.mark.parametrize(
    ("option", "state"), [("--now", "cancelled"), ("--discard", "cancelled"), (None, "checkpointed")]
)
def test_a_date_in_the_middle_of_its_processing_obeys_the_order(lab: Lab, option: str | None, state: str) -> None:
    prepare(lab, trick="wait")
    run, deps, _ = lab.opened(DAYS, "probe")
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(process_date, run.id, DAYS[0], deps)
        until(lambda: list(lab.marks.glob("waiting-*")), "a date in the middle of its processing")
        ran = lab.inside("cancel", run.id, *([option] if option else []))
        (lab.marks / "released").touch()
        working.result()

    assert ran.returncode == 0, ran.stderr
    close_window(run.id, 1, deps)
    reconcile(run.id, deps, lost_tasks=True)
    assert lab.states(run.id) == [state, "cancelled", "cancelled", "cancelled"]
    assert staged_files(lab) == []
    assert lab.ledger.runs.get_run(run.id).state is RunState.CANCELLED
    assert len(lab.table_bytes(TARGET)) == (state == "checkpointed")


@pytest.mark.parametrize("order", ["resume", "cancel"])
def test_a_sequential_run_waits_while_it_is_paused(lab: Lab, order: str) -> None:
    prepare(lab, trick="wait")
    with ThreadPoolExecutor(1) as pool:
        ran = pool.submit(lab.run, DAYS, "probe", window=1)
        until(lambda: list(lab.marks.glob("waiting-*")), "a date in the middle of its processing")
        run = lab.latest_run()
        assert lab.inside("pause", run.id).returncode == 0
        (lab.marks / "released").touch()
        until(lambda: lab.states(run.id)[0] == "checkpointed", "the end of what was begun")
        assert lab.states(run.id)[1:] == ["queued", "queued", "pending"]
        assert lab.inside(order, run.id).returncode == 0
        progress = ran.result(timeout=60)

    assert progress.run.state is (RunState.SUCCEEDED if order == "resume" else RunState.CANCELLED)
    if order == "cancel":
        assert lab.states(run.id) == ["checkpointed", "cancelled", "cancelled", "cancelled"]


# -- what was cancelled is built by a retry, and why a run was launched is kept ------------------------------------


def test_a_retry_builds_the_dates_that_were_cancelled(lab: Lab) -> None:
    prepare(lab)
    run, deps, _ = lab.opened(DAYS, "probe")
    process_date(run.id, DAYS[0], deps)
    lab.inside("cancel", run.id)
    close_window(run.id, 1, deps)

    ran = lab.inside("retry", run.id, "--sequential", "--reason", "the season was right after all")

    assert ran.returncode == 0, ran.stdout + ran.stderr
    retried = lab.latest_run()
    assert [row.day for row in lab.ledger.dates.list_dates(retried.id)] == DAYS[1:]
    assert retried.reason == "the season was right after all"
    assert f"(by {describe_user()}: the season was right after all)" in lab.inside("status").stdout


def test_a_saved_plan_keeps_why_it_is_to_be_run(lab: Lab) -> None:
    prepare(lab)
    file = str(lab.home / "plan.json")
    saved = lab.inside("plan", *RUN[1:], "--save", file, "--reason", "the new season")
    assert saved.returncode == 0, saved.stderr

    ran = lab.inside("run", "--plan", file, "--sequential")

    assert ran.returncode == 0, ran.stderr
    (run,) = lab.ledger.runs.list_latest_runs()
    assert run.reason == "the new season"
    assert lab.ledger.actions.list_actions(run.id)[0].reason == "the new season"
    assert json.loads(lab.inside("status", "--json").stdout)["reason"] == "the new season"
