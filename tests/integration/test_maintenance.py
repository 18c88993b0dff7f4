"""The works of beat, each slot once, and what they remove and what they leave."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from sqlalchemy import update

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import WarehouseUnavailable
from gated_backfill.common.ledger import Ledger, NewAlert, RunState
from gated_backfill.common.ledger.tables import alerts, runs
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.identity import process_identity
from gated_backfill.common.storage.staging import Staging
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from gated_backfill.worker.dependencies import Deps
from gated_backfill.worker.inline import InlineDispatcher
from gated_backfill.worker.maintenance import runner
from gated_backfill.worker.maintenance.retention import (
    remove_leftover_staged_files,
    remove_old_alerts,
    remove_old_quarantine,
    remove_old_staged_files,
)
from gated_backfill.worker.maintenance.runner import MaintenanceOutcome, run_maintenance_task, send_overdue_tasks
from gated_backfill.worker.maintenance.schedule import maintenance_schedules
from tests.buckets import path_of
from tests.builders import (
    FEB_23,
    FEB_24,
    LEASE,
    at_once,
    claimed_date,
    dead_process,
    everyone_lives,
    is_intact,
    queued_run,
    rows_of,
)
from tests.lab import Lab, players

NAME = "cleanup"


@pytest.fixture
def deps(home: Settings, ledger: Ledger, any_staging: Staging, local_warehouse: LocalWarehouse) -> Deps:
    return Deps(
        settings=home, ledger=ledger, warehouse=local_warehouse, staging=any_staging, dispatcher=InlineDispatcher()
    )


def without_pause(deps: Deps) -> Deps:
    """What a worker needs that tries again at once what failed."""
    return replace(deps, settings=deps.settings.model_copy(update={"maintenance_retry_seconds": 0}))


def latest_slot(deps: Deps, name: str, *, met: bool = True) -> datetime:
    """The latest slot of a task; if the task was met before, the slot before it is done."""
    slot = maintenance_schedules(deps.settings)[name].recurrence.latest_due(utcnow())
    if met:
        deps.ledger.maintenance.register_task(name, slot - timedelta(days=1))
    return slot


def fine(_: Deps) -> str:
    return "3 rows"


def breaking(error: Exception) -> Callable[[Deps], str]:
    def work(_: Deps) -> str:
        raise error

    return work


def test_a_slots_work_is_done_once_however_often_it_is_asked_for(deps: Deps) -> None:
    calls: list[str] = []

    def work(mine: Deps) -> str:
        calls.append(mine.owner)
        return "3 rows"

    outcomes = at_once(4, lambda n: run_maintenance_task(NAME, replace(deps, owner=f"else:{n}:1"), {NAME: work}))

    assert sorted(outcome.value for outcome in outcomes) == ["done", "not due", "not due", "not due"]
    assert len(calls) == 1
    assert run_maintenance_task(NAME, deps, {NAME: work}) is MaintenanceOutcome.NOT_DUE
    row = deps.ledger.maintenance.list_tasks()[NAME]
    assert (row.outcome, row.error, row.lease_owner) == ("3 rows", None, None)
    assert row.done_slot == latest_slot(deps, NAME, met=False)


@pytest.mark.parametrize("error", [WarehouseUnavailable("no answer"), ZeroDivisionError("a bug")], ids=["ours", "not"])
def test_a_work_that_fails_is_told_in_the_ledger_and_tried_again_after_a_while(deps: Deps, error: Exception) -> None:
    assert run_maintenance_task(NAME, deps, {NAME: breaking(error)}) is MaintenanceOutcome.FAILED
    assert deps.ledger.maintenance.list_tasks()[NAME].error == f"{type(error).__name__}: {error}"
    assert run_maintenance_task(NAME, deps, {NAME: fine}) is MaintenanceOutcome.NOT_DUE
    assert run_maintenance_task(NAME, without_pause(deps), {NAME: fine}) is MaintenanceOutcome.DONE


def test_an_unknown_work_and_a_ledger_out_of_reach_raise_nothing(deps: Deps) -> None:
    assert run_maintenance_task("what", deps) is MaintenanceOutcome.FAILED
    assert run_maintenance_task("what", deps, {"what": fine}) is MaintenanceOutcome.FAILED


def test_a_missed_slot_is_asked_for_again_and_one_that_is_done_or_held_or_new_is_not(deps: Deps) -> None:
    missed, new = "quarantine_retention", "staging_retention"
    slots = {name: latest_slot(deps, name, met=name == missed) for name in (missed, new)}

    assert send_overdue_tasks(deps) == f"sent again: {missed}"
    assert isinstance(deps.dispatcher, InlineDispatcher)
    assert deps.dispatcher.requested_maintenance == [missed]
    tasks = deps.ledger.maintenance.list_tasks()
    assert tasks[new].done_slot == slots[new], "it was just met: its first slot is the next one"

    deps.ledger.maintenance.claim_task(missed, slots[missed], "else:1:1", utcnow() + LEASE, is_dead=everyone_lives)
    assert send_overdue_tasks(deps) == "nothing was missed"
    deps.ledger.maintenance.fail_task(missed, "else:1:1", "no answer")
    assert send_overdue_tasks(deps) == "nothing was missed"
    later = without_pause(deps)
    assert send_overdue_tasks(later) == f"sent again: {missed}"
    assert run_maintenance_task(missed, later) is MaintenanceOutcome.DONE
    assert send_overdue_tasks(later) == "nothing was missed"


def test_a_daily_work_that_fails_is_told_once_a_slot(deps: Deps) -> None:
    slot = latest_slot(deps, NAME)
    send_overdue_tasks(deps)
    assert deps.ledger.alerts.list_latest_alerts(10) == []
    for _ in range(2):
        deps.ledger.maintenance.claim_task(NAME, slot, deps.owner, utcnow() + LEASE, is_dead=everyone_lives)
        deps.ledger.maintenance.fail_task(NAME, deps.owner, "no such\ntable")
        send_overdue_tasks(deps)
    (alert,) = deps.ledger.alerts.list_latest_alerts(10)
    assert (alert.kind, alert.key) == ("maintenance-failed", f"maintenance-failed cleanup {slot.isoformat()}")
    assert alert.body.startswith("no such table\nIt is retried automatically.")


def test_a_daily_work_whose_worker_was_killed_is_told_and_tried_again_after_a_while(deps: Deps) -> None:
    name = "undo_retention"
    gone = process_identity().rpartition(":")[0] + ":1"  # this process started at another time
    deps.ledger.maintenance.claim_task(name, latest_slot(deps, name), gone, utcnow() + LEASE, is_dead=everyone_lives)

    assert run_maintenance_task(name, deps) is MaintenanceOutcome.NOT_DUE
    send_overdue_tasks(deps)
    (alert,) = deps.ledger.alerts.list_latest_alerts(10)
    assert "its worker was killed" in alert.body
    assert run_maintenance_task(name, without_pause(deps)) is MaintenanceOutcome.DONE


def test_a_work_is_not_redelivered_when_its_worker_is_killed() -> None:
    asked = "from gated_backfill.worker.tasks import maintain as t; print(t.acks_late, t.reject_on_worker_lost)"
    environment = os.environ | {"BACKFILL_BROKER": "redis://127.0.0.1:1/0"}
    answered = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True)
    assert answered.stdout == "False False\n", answered.stderr


def test_old_alerts_are_removed(deps: Deps) -> None:
    deps.ledger.alerts.record_alerts([NewAlert(key=key, kind="audit", title=key, lines=[]) for key in ("old", "new")])
    deps.ledger.alerts.mute_alerts([])
    with deps.ledger.runs._write() as connection:  # an alert of long ago can't be made by waiting
        old = utcnow() - timedelta(days=91)
        connection.execute(update(alerts).where(alerts.c.key == "old").values(created_at=old))

    assert remove_old_alerts(deps) == "removed 1 alert(s) older than 90 days"
    assert [one.key for one in deps.ledger.alerts.list_latest_alerts(10)] == ["new"]


def test_only_what_was_left_behind_by_runs_that_ended_long_ago_is_removed(deps: Deps) -> None:
    made = runs_of(deps, "old", "recent", active="active")
    _end(deps, made["old"], days_ago=8)
    files = {run: deps.staging.write(run, FEB_23, 1, rows_of(FEB_23)) for run in [*made.values(), "someone-elses"]}
    quarantined = deps.staging.quarantine(made["old"], deps.staging.write(made["old"], FEB_24, 1, rows_of(FEB_24)))

    assert remove_old_staged_files(deps) == "removed the staged files of 1 run(s) that ended more than 7 days ago"

    there = {run for run, file in files.items() if is_intact(deps.staging, file)}
    assert there == {made["recent"], made["active"], "someone-elses"}
    assert remove_old_quarantine(deps) == "removed the quarantine of 0 run(s) that ended more than 30 days ago"
    assert path_of(quarantined).exists()
    _end(deps, made["old"], days_ago=31)
    assert remove_old_quarantine(deps) == "removed the quarantine of 1 run(s) that ended more than 30 days ago"
    assert not path_of(quarantined).exists()
    assert remove_old_staged_files(deps).startswith("removed the staged files of 0")


def runs_of(deps: Deps, *ended: str, active: str) -> dict[str, str]:
    """The ids of runs by their jobs, all of which have just ended but the last."""
    made = {name: queued_run(deps.ledger, job=name).id for name in (*ended, active)}
    for name in ended:
        deps.ledger.runs.move_run(made[name], expect=[RunState.RUNNING], to=RunState.CANCELLED)
    return made


def _end(deps: Deps, run: str, *, days_ago: int) -> None:
    with deps.ledger.runs._write() as connection:  # a run of long ago can't be made by waiting
        ended = utcnow() - timedelta(days=days_ago)
        connection.execute(update(runs).where(runs.c.id == run).values(finished_at=ended))


def test_a_run_that_can_not_be_reconciled_does_not_stop_the_others(deps: Deps) -> None:
    queued_run(deps.ledger, job="no-such-job")
    assert run_maintenance_task("reconcile", deps) is MaintenanceOutcome.FAILED
    assert "no job named 'no-such-job'" in str(deps.ledger.maintenance.list_tasks()["reconcile"].error)


def test_what_was_staged_for_a_run_that_has_ended_is_swept_and_the_quarantine_stays(deps: Deps) -> None:
    made = runs_of(deps, "ended", "ending", active="owned")
    _end(deps, made["ended"], days_ago=1)
    files = {name: deps.staging.write(run, FEB_23, 1, rows_of(FEB_23)) for name, run in made.items()}
    quarantined = deps.staging.quarantine(made["ended"], deps.staging.write(made["ended"], FEB_24, 1, rows_of(FEB_24)))

    remove_leftover_staged_files(deps)

    assert {name for name, file in files.items() if is_intact(deps.staging, file)} == {"ending", "owned"}
    assert path_of(quarantined).exists()


@pytest.mark.parametrize("holder", ["dead", "alive", None])
def test_a_run_whose_command_died_releases_its_dates_unless_they_are_held(lab: Lab, holder: str | None) -> None:
    gone = dead_process()
    lab.probe_all([FEB_23, FEB_24], players(3))
    run, deps, _ = lab.opened([FEB_23, FEB_24], "probe")
    lab.change_ledger("UPDATE runs SET owner = :owner", owner=gone)  # it was opened by this test, which lives
    if holder is not None:
        claimed_date(deps.ledger, run, FEB_23, owner=gone if holder == "dead" else process_identity())

    assert runner.reconcile_all(deps) == "0 active run(s), 0 window(s) sent again"

    released = holder != "alive"
    assert deps.ledger.runs.get_run(run.id).state is (RunState.CANCELLED if released else RunState.RUNNING)
    assert bool(deps.ledger.runs.find_conflicting_runs("probe", [FEB_23])) is not released


def test_without_a_run_there_is_nothing_to_reconcile(deps: Deps) -> None:
    assert runner.reconcile_all(deps) == "0 active run(s), 0 window(s) sent again"
