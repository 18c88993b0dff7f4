"""What every ledger promises about the works of beat."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from gated_backfill.common.ledger import Ledger, RunState
from gated_backfill.common.process.clock import utcnow
from tests.builders import FEB_23, FEB_24, FEB_25, at_once, everyone_is_dead, everyone_lives, new_run, queued_run

SLOT = datetime.fromisoformat("2023-02-23T09:00:00+00:00")
NEXT = SLOT + timedelta(days=1)


def claim(
    ledger: Ledger,
    slot: datetime = SLOT,
    *,
    owner: str = "one",
    minutes: float = 5,
    is_dead: Callable[[str], bool] = everyone_lives,
    failed_before: datetime | None = None,
) -> bool:
    until = utcnow() + timedelta(minutes=minutes)
    return ledger.maintenance.claim_task("cleanup", slot, owner, until, is_dead=is_dead, failed_before=failed_before)


def test_a_slot_is_given_to_one_of_many_claimants(ledger: Ledger) -> None:
    assert sorted(at_once(6, lambda n: claim(ledger, owner=str(n)))) == [False] * 5 + [True]


def test_a_slot_that_is_done_is_given_to_nobody_and_the_next_one_is(ledger: Ledger) -> None:
    assert claim(ledger)
    assert ledger.maintenance.finish_task("cleanup", SLOT, "one", "3 rows")
    assert not claim(ledger, owner="two")
    assert not claim(ledger, SLOT - timedelta(days=1), owner="two")
    assert claim(ledger, NEXT, owner="two")
    row = ledger.maintenance.list_tasks()["cleanup"]
    assert (row.done_slot, row.outcome, row.error, row.lease_owner) == (SLOT, "3 rows", None, "two")


@pytest.mark.parametrize(
    ("minutes", "is_dead", "taken"),
    [
        pytest.param(5, everyone_lives, False, id="alive"),
        pytest.param(5, everyone_is_dead, True, id="dead"),
        pytest.param(-1, everyone_lives, True, id="past-its-lease"),
    ],
)
def test_a_lost_task_is_taken_over(ledger: Ledger, minutes: float, is_dead: Callable[[str], bool], taken: bool) -> None:
    assert claim(ledger, minutes=minutes)
    results = at_once(4, lambda n: claim(ledger, owner=f"other {n}", is_dead=lambda who: who == "one" and is_dead(who)))
    assert sum(results) == taken
    assert ledger.maintenance.finish_task("cleanup", SLOT, "one", "late") is not taken


def test_a_failed_work_is_free_again_once_its_failure_is_old_enough(ledger: Ledger) -> None:
    assert claim(ledger)
    assert ledger.maintenance.fail_task("cleanup", "one", "no such table")
    assert not claim(ledger, owner="two", failed_before=utcnow() - timedelta(minutes=10))
    assert claim(ledger, owner="two", failed_before=utcnow())
    assert not ledger.maintenance.fail_task("cleanup", "one", "not its own any more")
    assert ledger.maintenance.finish_task("cleanup", SLOT, "two", "done")
    assert ledger.maintenance.list_tasks()["cleanup"].error is None


def test_a_try_whose_worker_was_killed_counts_as_one_that_failed(ledger: Ledger) -> None:
    assert claim(ledger)
    long_ago = utcnow() - timedelta(minutes=10)
    assert not claim(ledger, owner="two", is_dead=everyone_is_dead, failed_before=long_ago)
    assert claim(ledger, owner="two", is_dead=everyone_is_dead, failed_before=utcnow())
    assert "did not end: its worker was killed" in str(ledger.maintenance.list_tasks()["cleanup"].error)
    assert ledger.maintenance.finish_task("cleanup", SLOT, "two", "done")
    assert ledger.maintenance.list_tasks()["cleanup"].error is None


def shown(ledger: Ledger) -> tuple[dict[str, Any], dict[str, bool]]:
    """When each task was last done, and which have failed, as the metrics show them."""
    return dict(ledger.gauges.maintenance_last_done()), dict(ledger.gauges.maintenance_failed())


def test_a_work_that_fails_is_not_shown_as_done_when_it_failed(ledger: Ledger) -> None:
    ledger.maintenance.register_task("audit", SLOT)
    assert shown(ledger) == ({}, {})
    claim(ledger)
    ledger.maintenance.fail_task("cleanup", "one", "no such table")
    assert shown(ledger) == ({}, {"cleanup": True})
    claim(ledger)
    ledger.maintenance.finish_task("cleanup", SLOT, "one", "3 rows")
    done = ledger.maintenance.list_tasks()["cleanup"].finished_at
    assert shown(ledger) == ({"cleanup": done}, {"cleanup": False})
    claim(ledger, NEXT)
    ledger.maintenance.fail_task("cleanup", "one", "no such table")
    assert shown(ledger) == ({"cleanup": SLOT}, {"cleanup": True})


def test_a_failure_in_an_earlier_slot_does_not_hold_up_the_next(ledger: Ledger) -> None:
    assert claim(ledger)
    ledger.maintenance.fail_task("cleanup", "one", "no such table")
    assert claim(ledger, utcnow() + timedelta(minutes=1), failed_before=utcnow() - timedelta(days=1))


def test_a_work_is_introduced_once(ledger: Ledger) -> None:
    registered = at_once(4, lambda _: ledger.maintenance.register_task("cleanup", SLOT))
    assert sorted(registered) == [False, False, False, True]
    assert not claim(ledger)
    assert claim(ledger, NEXT)


def test_the_heartbeat_is_when_it_was_last_done(ledger: Ledger) -> None:
    assert ledger.maintenance.last_heartbeat() is None
    before = utcnow()
    ledger.maintenance.claim_task("heartbeat", SLOT, "one", before + timedelta(minutes=1), is_dead=everyone_lives)
    assert ledger.maintenance.last_heartbeat() is None
    ledger.maintenance.finish_task("heartbeat", SLOT, "one", "alive")
    last = ledger.maintenance.last_heartbeat()
    assert last is not None
    assert before <= last <= utcnow()


def test_a_beat_that_was_stopped_on_purpose_is_not_missed_until_it_is_heard_of_again(ledger: Ledger) -> None:
    ledger.maintenance.clear_heartbeat()
    for slot in (SLOT, NEXT):
        ledger.maintenance.claim_task("heartbeat", slot, "one", utcnow() + timedelta(minutes=1), is_dead=everyone_lives)
        ledger.maintenance.finish_task("heartbeat", slot, "one", "alive")
        assert ledger.maintenance.last_heartbeat() is not None
        ledger.maintenance.clear_heartbeat()
        assert ledger.maintenance.last_heartbeat() is None


def test_active_runs_are_those_that_have_not_ended(ledger: Ledger) -> None:
    ended, running = queued_run(ledger), None
    ledger.runs.move_run(ended.id, expect=[RunState.RUNNING], to=RunState.CANCELLED)
    running = queued_run(ledger)
    planned = ledger.runs.open_run(new_run([FEB_23, FEB_24, FEB_25], job="teams"))
    assert [run.id for run in ledger.runs.list_active_runs()] == [running.id, planned.id]
    asked = [ended.id, running.id, "unknown", *(f"none-{n}" for n in range(1200))]
    assert ledger.runs.list_runs_ended_before(asked, utcnow() + timedelta(seconds=1)) == [ended.id]
    assert ledger.runs.list_runs_ended_before(asked, utcnow() - timedelta(days=1)) == []
