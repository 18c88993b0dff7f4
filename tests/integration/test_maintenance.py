"""The works of beat, each slot once, and what they remove and what they leave."""

from __future__ import annotations

import itertools
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
from gated_backfill.common.process.identity import identity
from gated_backfill.common.storage.staging import Staging
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from gated_backfill.worker.dependencies import Deps
from gated_backfill.worker.inline import InlineDispatcher
from gated_backfill.worker.maintenance.retention import forget_alerts, forget_quarantined, forget_staged, sweep_staged
from gated_backfill.worker.maintenance.runner import WorkOutcome, catch_up, reconcile_all, run_work
from gated_backfill.worker.maintenance.schedule import entries
from tests.buckets import path_of
from tests.builders import FEB_23, FEB_24, claimed_date, everyone_lives, is_intact, queued_run, rows_of
from tests.integration.test_ledger_contract import at_once
from tests.lab import Lab, players

NAME = "cleanup"


@pytest.fixture
def deps(home: Settings, ledger: Ledger, any_staging: Staging, local_warehouse: LocalWarehouse) -> Deps:
    return Deps(
        settings=home,
        ledger=ledger,
        warehouse=local_warehouse,
        staging=any_staging,
        dispatcher=InlineDispatcher(),
    )


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

    outcomes = at_once(4, lambda n: run_work(NAME, replace(deps, owner=f"else:{n}:1"), {NAME: work}))

    assert sorted(outcome.value for outcome in outcomes) == ["done", "not due", "not due", "not due"]
    assert len(calls) == 1
    assert run_work(NAME, deps, {NAME: work}) is WorkOutcome.NOT_DUE
    row = deps.ledger.works()[NAME]
    assert (row.outcome, row.error, row.lease_owner) == ("3 rows", None, None)
    assert row.done_slot == entries(deps.settings)[NAME].when.latest_due(utcnow())


@pytest.mark.parametrize("error", [WarehouseUnavailable("no answer"), ZeroDivisionError("a bug")], ids=["ours", "not"])
def test_a_work_that_fails_is_told_in_the_ledger_and_tried_again_after_a_while(deps: Deps, error: Exception) -> None:
    assert run_work(NAME, deps, {NAME: breaking(error)}) is WorkOutcome.FAILED
    assert deps.ledger.works()[NAME].error == f"{type(error).__name__}: {error}"
    assert run_work(NAME, deps, {NAME: fine}) is WorkOutcome.NOT_DUE

    soon = replace(deps, settings=deps.settings.model_copy(update={"maintenance_retry_seconds": 0}))
    assert run_work(NAME, soon, {NAME: fine}) is WorkOutcome.DONE


def test_an_unknown_work_and_a_ledger_out_of_reach_raise_nothing(deps: Deps) -> None:
    assert run_work("what", deps) is WorkOutcome.FAILED
    assert run_work("what", deps, {"what": fine}) is WorkOutcome.FAILED


def test_a_missed_slot_is_asked_for_again_and_one_that_is_done_or_held_or_new_is_not(deps: Deps) -> None:
    missed, new = "quarantine_retention", "staging_retention"
    slots = {name: entries(deps.settings)[name].when.latest_due(utcnow()) for name in (missed, new)}
    deps.ledger.introduce_work(missed, slots[missed] - timedelta(days=1))

    assert catch_up(deps) == f"sent again: {missed}"
    assert isinstance(deps.dispatcher, InlineDispatcher)
    assert deps.dispatcher.works == [missed]
    assert deps.ledger.works()[new].done_slot == slots[new]  # it was just met: its first slot is the next one

    soon = utcnow() + timedelta(minutes=5)
    deps.ledger.claim_work(missed, slots[missed], "else:1:1", soon, is_dead=everyone_lives)
    assert catch_up(deps) == "nothing was missed"
    deps.ledger.fail_work(missed, "else:1:1", "no answer")
    assert catch_up(deps) == "nothing was missed"
    later = replace(deps, settings=deps.settings.model_copy(update={"maintenance_retry_seconds": 0}))
    assert catch_up(later) == f"sent again: {missed}"
    assert run_work(missed, later) is WorkOutcome.DONE
    assert catch_up(later) == "nothing was missed"


def test_a_daily_work_that_fails_is_told_once_a_slot(deps: Deps) -> None:
    slot = entries(deps.settings)[NAME].when.latest_due(utcnow())
    deps.ledger.introduce_work(NAME, slot - timedelta(days=1))
    catch_up(deps)
    assert deps.ledger.latest_alerts(10) == []
    for _ in range(2):
        deps.ledger.claim_work(NAME, slot, deps.owner, soon(), is_dead=everyone_lives)
        deps.ledger.fail_work(NAME, deps.owner, "no such\ntable")
        catch_up(deps)
    (alert,) = deps.ledger.latest_alerts(10)
    assert (alert.kind, alert.key) == ("maintenance-failed", f"maintenance-failed cleanup {slot.isoformat()}")
    assert alert.body.startswith("no such table\nIt is tried again by itself.")


def test_a_daily_work_whose_worker_was_killed_is_told_and_tried_again_after_a_while(deps: Deps) -> None:
    name = "undo_retention"
    slot = entries(deps.settings)[name].when.latest_due(utcnow())
    deps.ledger.introduce_work(name, slot - timedelta(days=1))
    gone = identity().rpartition(":")[0] + ":1"  # this process started at another time
    deps.ledger.claim_work(name, slot, gone, soon(), is_dead=everyone_lives)

    assert run_work(name, deps) is WorkOutcome.NOT_DUE
    catch_up(deps)
    (alert,) = deps.ledger.latest_alerts(10)
    assert "its worker was killed" in alert.body
    later = replace(deps, settings=deps.settings.model_copy(update={"maintenance_retry_seconds": 0}))
    assert run_work(name, later) is WorkOutcome.DONE


def test_a_work_is_not_redelivered_when_its_worker_is_killed() -> None:
    asked = "from gated_backfill.worker.tasks import maintain as t; print(t.acks_late, t.reject_on_worker_lost)"
    environment = os.environ | {"BACKFILL_BROKER": "redis://127.0.0.1:1/0"}
    answered = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True)
    assert answered.stdout == "False False\n", answered.stderr


def test_old_alerts_are_removed(deps: Deps) -> None:
    deps.ledger.record_alerts([NewAlert(key=key, kind="audit", title=key, body="") for key in ("old", "new")])
    deps.ledger.mute_alerts([])
    with deps.ledger._write() as connection:  # an alert of long ago can't be made by waiting
        old = utcnow() - timedelta(days=91)
        connection.execute(update(alerts).where(alerts.c.key == "old").values(created_at=old))

    assert forget_alerts(deps) == "removed 1 alert(s) older than 90 days"
    assert [one.key for one in deps.ledger.latest_alerts(10)] == ["new"]


def soon() -> datetime:
    return utcnow() + timedelta(minutes=5)


def test_only_what_was_left_behind_by_runs_that_ended_long_ago_is_removed(deps: Deps) -> None:
    made = {name: queued_run(deps.ledger, job=name).id for name in ("old", "recent", "active")}
    for name in ("old", "recent"):
        deps.ledger.move_run(made[name], expect=[RunState.RUNNING], to=RunState.CANCELLED)
    _end(deps, made["old"], days_ago=8)
    files = {run: deps.staging.write(run, FEB_23, 1, rows_of(FEB_23)) for run in [*made.values(), "someone-elses"]}
    kept = deps.staging.quarantine(made["old"], deps.staging.write(made["old"], FEB_24, 1, rows_of(FEB_24)))

    assert forget_staged(deps) == "removed the staged files of 1 run(s) that ended more than 7 days ago"

    there = {run for run, file in files.items() if is_intact(deps.staging, file)}
    assert there == {made["recent"], made["active"], "someone-elses"}
    assert forget_quarantined(deps) == "removed the quarantine of 0 run(s) that ended more than 30 days ago"
    assert path_of(kept).exists()
    _end(deps, made["old"], days_ago=31)
    assert forget_quarantined(deps) == "removed the quarantine of 1 run(s) that ended more than 30 days ago"
    assert not path_of(kept).exists()
    assert forget_staged(deps).startswith("removed the staged files of 0")


def _end(deps: Deps, run: str, *, days_ago: int) -> None:
    with deps.ledger._write() as connection:  # a run of long ago can't be made by waiting
        ended = utcnow() - timedelta(days=days_ago)
        connection.execute(update(runs).where(runs.c.id == run).values(finished_at=ended))


def test_a_run_that_can_not_be_reconciled_does_not_stop_the_others(deps: Deps) -> None:
    queued_run(deps.ledger, job="no-such-job")
    assert run_work("reconcile", deps) is WorkOutcome.FAILED
    assert "no job named 'no-such-job'" in str(deps.ledger.works()["reconcile"].error)


def test_what_was_staged_for_a_run_that_has_ended_is_swept_and_the_quarantine_stays(deps: Deps) -> None:
    made = {name: queued_run(deps.ledger, job=name).id for name in ("ended", "ending", "owned")}
    for name in ("ended", "ending"):
        deps.ledger.move_run(made[name], expect=[RunState.RUNNING], to=RunState.CANCELLED)
    _end(deps, made["ended"], days_ago=1)
    files = {name: deps.staging.write(run, FEB_23, 1, rows_of(FEB_23)) for name, run in made.items()}
    kept = deps.staging.quarantine(made["ended"], deps.staging.write(made["ended"], FEB_24, 1, rows_of(FEB_24)))

    sweep_staged(deps)

    assert {name for name, file in files.items() if is_intact(deps.staging, file)} == {"ending", "owned"}
    assert path_of(kept).exists()


def dead_process() -> str:
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    who = identity(process.pid)
    process.communicate()
    return who


@pytest.mark.parametrize("holder", ["dead", "alive", None])
def test_a_run_whose_command_died_gives_its_dates_free_once_nobody_alive_holds_one(
    lab: Lab, holder: str | None
) -> None:
    gone = dead_process()
    for day, table in itertools.product((FEB_23, FEB_24), ("expected", "first")):
        lab.probe(table, day, players(3))
    run, deps, _ = lab.opened([FEB_23, FEB_24], "probe")
    with deps.ledger._write() as connection:  # the command that opened it is this test, which lives
        connection.execute(update(runs).where(runs.c.id == run.id).values(owner=gone))
    if holder is not None:
        claimed_date(deps.ledger, run, FEB_23, owner=gone if holder == "dead" else identity())

    assert reconcile_all(deps) == "0 active run(s), 0 window(s) sent again"

    released = holder != "alive"
    assert deps.ledger.run(run.id).state is (RunState.CANCELLED if released else RunState.RUNNING)
    assert bool(deps.ledger.active_holders("probe", [FEB_23])) is not released


def test_without_a_run_there_is_nothing_to_reconcile(deps: Deps) -> None:
    assert reconcile_all(deps) == "0 active run(s), 0 window(s) sent again"
