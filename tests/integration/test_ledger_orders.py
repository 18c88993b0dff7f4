"""Orders to runs, on each ledger: every one is a compare-and-set with its record, and races leave one truth."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from functools import partial
from typing import Any

import pytest

from gated_backfill.common.ledger import DateState, Ledger, Run, RunAction, RunState, WindowState
from gated_backfill.common.ledger.states import ENDED_DATES, READY_FOR_GATE
from gated_backfill.common.ledger.stores.orders import Cancellation
from gated_backfill.common.process.clock import utcnow
from tests import builders
from tests.builders import (
    DAYS,
    FEB_23,
    FEB_24,
    FEB_25,
    JOB,
    LEASE,
    checkpointed_date,
    claim_date,
    claimed_date,
    everyone_is_dead,
    everyone_lives,
    failed_date,
    move_processing,
    new_run,
    published_date,
    queued_run,
    running_run,
    staged_date,
    state_of,
)

WHY = "cancelled by ada: wrong season"


def orders(ledger: Ledger, run: Run) -> list[tuple[RunAction, str, str | None]]:
    return [(one.action, one.by, one.reason) for one in ledger.actions.list_actions(run.id)[1:]]


def cancelled(ledger: Ledger, run: Run, **how: bool) -> Cancellation:
    stopped = ledger.orders.cancel_run(run.id, by="ada", reason="wrong season", **how)
    assert stopped is not None
    return stopped


def states(ledger: Ledger, run: Run) -> list[str]:
    return [row.state.value for row in ledger.dates.list_dates(run.id)]


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What the calls return, made at the same moment."""
    return builders.at_once(len(calls), lambda number: calls[number]())


def claim_window(ledger: Ledger, run: Run, number: int = 0) -> int | None:
    return ledger.windows.claim_window(run.id, number, "gate", utcnow() + LEASE, is_dead=everyone_lives)


def release_dates(ledger: Ledger, run: Run, *days: date) -> frozenset[date]:
    """The dates that their worker ends as staged; those that it still held."""
    return ledger.claims.release_dates(run.id, dict.fromkeys(days, (DateState.STAGED, {})), owner="worker")


def requeue(ledger: Ledger, run: Run, *, include_queued: bool = True) -> list[date]:
    """Queue the dates again of workers that are all dead."""
    options = {"include_queued": include_queued, "is_dead": everyone_is_dead, "max_losses": 3}
    return ledger.claims.requeue_dates(run.id, 0, **options)


def run_of(ledger: Ledger, count: int, *, window: int, in_flight: int = 0) -> tuple[Run, list[date]]:
    """A running run of so many dates, and its dates; so many of its windows are open."""
    days = [FEB_23 + timedelta(days=n) for n in range(count)]
    run = running_run(ledger, days, window=window)
    ledger.windows.open_windows(run.id, in_flight=in_flight)
    return run, days


# -- pausing and resuming -----------------------------------------------------------------------------------------


def test_a_paused_run_begins_nothing_and_goes_on_when_resumed(ledger: Ledger) -> None:
    run = running_run(ledger, window=1)
    ledger.windows.open_windows(run.id, in_flight=1)

    assert ledger.orders.pause_run(run.id, by="ada", reason="the source is being reloaded")
    assert ledger.runs.get_run(run.id).state is RunState.PAUSED
    assert claim_date(ledger, run) is None
    assert ledger.windows.open_windows(run.id, in_flight=3) == {}
    assert not ledger.orders.pause_run(run.id, by="bob")

    assert ledger.orders.resume_run(run.id, by="bob")
    assert not ledger.orders.resume_run(run.id, by="bob")
    assert set(ledger.windows.open_windows(run.id, in_flight=3)) == {1, 2}
    claimed_date(ledger, run, FEB_23)
    paused = (RunAction.PAUSED, "ada", "the source is being reloaded")
    assert orders(ledger, run) == [paused, (RunAction.RESUMED, "bob", None)]


def test_a_run_that_was_not_started_can_be_paused_and_starts_when_resumed(ledger: Ledger) -> None:
    run = ledger.runs.open_run(new_run())

    assert ledger.orders.pause_run(run.id, by="ada")
    assert not ledger.runs.move_run(run.id, expect=[RunState.PLANNED], to=RunState.RUNNING)
    assert ledger.orders.resume_run(run.id, by="ada")

    assert ledger.runs.get_run(run.id).started_at is not None


def test_a_paused_run_whose_windows_are_all_closed_ends_as_ever(ledger: Ledger) -> None:
    run = queued_run(ledger, [FEB_23])
    staged_date(ledger, run, FEB_23)
    ledger.orders.pause_run(run.id, by="ada")
    ledger.dates.record_verdicts(run.id, {FEB_23: {"verdict": "complete", "reason": "all"}})
    ledger.dates.move_date(run.id, FEB_23, expect=DateState.STAGED, to=DateState.PUBLISHED)
    ledger.checkpoints.write(run.id, [FEB_23])
    assert claim_window(ledger, run)
    assert ledger.windows.release_window(run.id, 0, "gate", to=WindowState.CLOSED)

    assert ledger.runs.finish_run(run.id) is RunState.SUCCEEDED
    assert not ledger.orders.pause_run(run.id, by="ada")
    assert not ledger.orders.resume_run(run.id, by="ada")


def test_a_worker_gives_a_date_back_when_its_run_was_paused_before_anything_costly(ledger: Ledger, run: Run) -> None:
    claimed_date(ledger, run, FEB_23)
    claimed_date(ledger, run, FEB_24)
    assert ledger.orders.confirm_claims(run.id, [FEB_23], "worker")
    ledger.orders.pause_run(run.id, by="ada")

    assert not ledger.orders.confirm_claims(run.id, [FEB_23], "worker")
    assert release_dates(ledger, run, FEB_24) == {FEB_24}

    given_back, finished, _ = ledger.dates.list_dates(run.id)
    assert (given_back.state, given_back.attempt, given_back.deaths) == (DateState.QUEUED, 0, 0)
    assert finished.state is DateState.STAGED
    assert not ledger.orders.confirm_claims(run.id, [FEB_23], "worker")  # which is nobody's now


def test_nothing_of_a_paused_run_is_sent_again(ledger: Ledger, run: Run) -> None:
    claimed_date(ledger, run, FEB_23)
    ledger.orders.pause_run(run.id, by="ada")

    assert requeue(ledger, run) == []
    assert state_of(ledger, run, FEB_23) is DateState.QUEUED

    ledger.orders.resume_run(run.id, by="ada")
    assert requeue(ledger, run) == list(DAYS)


# -- cancelling ---------------------------------------------------------------------------------------------------


def test_cancelling_takes_what_nobody_has_begun_and_leaves_the_rest_to_be_finished(ledger: Ledger) -> None:
    run, days = run_of(ledger, 6, window=2, in_flight=2)
    claimed_date(ledger, run, days[0])
    staged_date(ledger, run, days[2])

    stopped = cancelled(ledger, run)

    assert stopped == Cancellation(not_started=4, interrupted=0, discarded=())
    assert states(ledger, run) == ["processing", "cancelled", "staged", "cancelled", "cancelled", "cancelled"]
    assert {row.reason for row in ledger.dates.list_dates(run.id, states=[DateState.CANCELLED])} == {WHY}
    assert ledger.windows.list_window_numbers(run.id, [WindowState.OPEN]) == [0, 1]
    assert ledger.windows.list_window_numbers(run.id, [WindowState.CLOSED]) == [2]
    assert ledger.runs.get_run(run.id).state is RunState.CANCELLING
    assert ledger.runs.find_conflicting_runs(JOB, days) == {run.id: [days[0], days[2]]}
    assert ledger.runs.open_run(new_run([days[1], *days[3:]])).state is RunState.PLANNED
    assert orders(ledger, run) == [(RunAction.CANCELLED, "ada", "wrong season")]
    assert ledger.runs.finish_run(run.id) is None


def test_a_gate_goes_on_in_a_run_that_is_being_cancelled_and_its_last_window_ends_it(ledger: Ledger, run: Run) -> None:
    published_date(ledger, run, FEB_23)
    cancelled(ledger, run)

    assert all(row.state in READY_FOR_GATE for row in ledger.dates.list_dates(run.id))
    assert claim_window(ledger, run)
    assert ledger.windows.renew_window(run.id, 0, "gate", utcnow() + LEASE)
    assert ledger.checkpoints.write(run.id, [FEB_23]) == [FEB_23]
    assert ledger.windows.release_window(run.id, 0, "gate", to=WindowState.CLOSED)

    assert ledger.runs.finish_run(run.id) is RunState.CANCELLED
    assert ledger.checkpoints.list_checkpoints(JOB, FEB_23, FEB_25).keys() == {FEB_23}
    assert ledger.runs.find_conflicting_runs(JOB, DAYS) == {}
    assert not ledger.orders.pause_run(run.id, by="ada")


@pytest.mark.parametrize("window", [1, 3])
def test_a_run_of_which_nothing_was_begun_needs_no_gate_to_end(ledger: Ledger, window: int) -> None:
    run = queued_run(ledger, window=window)

    cancelled(ledger, run)

    assert ledger.windows.list_window_numbers(run.id, [WindowState.CLOSED]) == list(range(3 // window))
    assert ledger.runs.finish_run(run.id) is RunState.CANCELLED


def test_an_ended_run_is_not_cancelled(ledger: Ledger, run: Run) -> None:
    ledger.runs.move_run(run.id, expect=[RunState.RUNNING], to=RunState.FAILED)

    assert ledger.orders.cancel_run(run.id, by="ada") is None
    assert orders(ledger, run) == []
    assert set(states(ledger, run)) == {"queued"}


@pytest.mark.parametrize("discard", [True, False])
def test_rows_staged_after_a_cancellation_are_kept_unless_discarded(ledger: Ledger, run: Run, discard: bool) -> None:
    claimed_date(ledger, run, FEB_23)
    claimed_date(ledger, run, FEB_24)
    cancelled(ledger, run, discard=discard)
    failure = (DateState.FAILED, {"verdict": "failed", "reason": "no"})

    left = ledger.claims.release_dates(run.id, {FEB_23: (DateState.STAGED, {}), FEB_24: failure}, owner="worker")

    assert left == ({FEB_24} if discard else {FEB_23, FEB_24})
    assert states(ledger, run)[:2] == ["cancelled" if discard else "staged", "failed"]


def test_cancelling_now_takes_dates_from_their_workers(ledger: Ledger, run: Run) -> None:
    claimed_date(ledger, run, FEB_23)
    cancelled(ledger, run)
    assert ledger.orders.confirm_claims(run.id, [FEB_23], "worker")  # it is to be finished

    assert cancelled(ledger, run, now=True) == Cancellation(not_started=0, interrupted=1, discarded=())

    assert not release_dates(ledger, run, FEB_23)
    assert not move_processing(ledger, run, DateState.STAGED, owner="worker")
    assert ledger.runs.finish_run(run.id) is RunState.CANCELLED


def test_discarding_takes_what_waits_for_the_gate_but_nothing_that_a_gate_has_seen(ledger: Ledger) -> None:
    run, days = run_of(ledger, 5, window=2, in_flight=3)
    for day in days[:4]:
        staged_date(ledger, run, day)
    died_while_publishing = {"verdict": "complete", "reason": "a gate died while it published it"}
    ledger.dates.record_verdicts(run.id, {days[1]: died_while_publishing})
    assert claim_window(ledger, run, 1)
    claimed_date(ledger, run, days[4])

    stopped = cancelled(ledger, run, discard=True)

    assert stopped.discarded == (days[0],)
    assert states(ledger, run) == ["cancelled", "staged", "staged", "staged", "processing"]
    assert not release_dates(ledger, run, days[4])
    assert states(ledger, run)[4] == "cancelled"


def test_what_is_lost_or_sent_back_of_a_run_that_is_being_cancelled_is_cancelled(ledger: Ledger, run: Run) -> None:
    claimed_date(ledger, run, FEB_23)
    claimed_date(ledger, run, FEB_24)
    staged_date(ledger, run, FEB_25)
    cancelled(ledger, run)

    assert move_processing(ledger, run, DateState.QUEUED, FEB_24, owner="worker")
    assert ledger.dates.move_date(run.id, FEB_25, expect=DateState.STAGED, to=DateState.QUEUED)
    assert requeue(ledger, run, include_queued=False) == []

    rows = ledger.dates.list_dates(run.id)
    assert [(row.state, row.reason, row.active) for row in rows] == [(DateState.CANCELLED, WHY, False)] * 3


def test_a_run_whose_process_is_gone_is_ended_with_its_dates(ledger: Ledger, run: Run) -> None:
    checkpointed_date(ledger, run, FEB_23)
    staged_date(ledger, run, FEB_24)

    assert ledger.orders.abandon_run(run.id, by="backfill", reason="its process died")
    assert not ledger.orders.abandon_run(run.id, by="backfill", reason="its process died")

    assert ledger.runs.get_run(run.id).state is RunState.CANCELLED
    assert states(ledger, run) == ["checkpointed", "cancelled", "cancelled"]
    assert orders(ledger, run) == [(RunAction.CANCELLED, "backfill", "its process died")]
    assert ledger.runs.find_conflicting_runs(JOB, DAYS) == {}


def test_a_published_date_without_a_checkpoint_ends_with_its_run(ledger: Ledger, run: Run) -> None:
    published_date(ledger, run, FEB_23)

    assert ledger.orders.abandon_run(run.id, by="backfill", reason="its process died")

    progress = ledger.runs.get_progress(run.id)
    assert (progress.ended, progress.total) == (3, 3)
    (row, *_) = ledger.dates.list_dates(run.id)
    assert (row.state, row.error_kind, row.active) == (DateState.FAILED, "TargetChanged", False)
    assert row.ended_at is not None
    assert "another writer changed them before they were checkpointed" in str(row.reason)


def test_a_date_that_was_cancelled_counts_as_ended_by_nobody(ledger: Ledger) -> None:
    first = queued_run(ledger, [FEB_23])
    failed_date(ledger, first, FEB_23)
    ledger.runs.move_run(first.id, expect=[RunState.RUNNING], to=RunState.FAILED)
    cancelled(ledger, queued_run(ledger, [FEB_23, FEB_24]))

    outcomes = ledger.dates.latest_date_outcomes(JOB, FEB_23, FEB_25)
    assert {day: row.run_id for day, row in outcomes.items()} == {FEB_23: first.id}


# -- at the same moment -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("now", [False, True], ids=["finish", "now"])
def test_a_date_is_either_claimed_or_cancelled_when_both_happen_at_once(ledger: Ledger, now: bool) -> None:
    run, days = run_of(ledger, 6, window=3, in_flight=2)

    def claim(worker: int) -> list[Any]:
        claims = (claim_date(ledger, run, day, owner=f"w{worker}") for day in days[worker::3])
        return [row.day for row in claims if row is not None]

    cancel = partial(ledger.orders.cancel_run, run.id, by="ada", now=now)
    *claims, stopped = at_once(*(partial(claim, worker) for worker in range(3)), cancel)

    held = {row.day for row in ledger.dates.list_dates(run.id, states=[DateState.PROCESSING])}
    taken = {day for claimed in claims for day in claimed}
    assert held == (set() if now else taken)
    assert stopped.not_started == len(days) - len(taken)
    assert stopped.interrupted == (len(taken) if now else 0)
    assert claim_date(ledger, run, days[0]) is None


def test_no_window_is_opened_by_a_run_that_is_cancelled_at_the_same_moment(ledger: Ledger) -> None:
    run, _ = run_of(ledger, 6, window=1)

    at_once(
        lambda: ledger.windows.open_windows(run.id, in_flight=3),
        lambda: ledger.windows.open_windows(run.id, in_flight=3),
        lambda: ledger.orders.cancel_run(run.id, by="ada"),
    )

    assert set(states(ledger, run)) == {"cancelled"}
    assert ledger.windows.list_window_numbers(run.id, [WindowState.PENDING, WindowState.OPEN]) == []
    assert ledger.windows.open_windows(run.id, in_flight=3) == {}
    assert ledger.runs.finish_run(run.id) is RunState.CANCELLED


@pytest.mark.parametrize("discard", [False, True], ids=["finish", "discard"])
def test_a_window_is_gated_or_discarded_whole_when_both_happen_at_once(ledger: Ledger, run: Run, discard: bool) -> None:
    for day in DAYS:
        staged_date(ledger, run, day)

    cancel = partial(ledger.orders.cancel_run, run.id, by="ada", discard=discard)
    taken, stopped = at_once(lambda: claim_window(ledger, run), cancel)

    is_gated = taken or not discard
    assert set(states(ledger, run)) == {"staged" if is_gated else "cancelled"}
    assert len(stopped.discarded) == (0 if is_gated else len(DAYS))
    assert ledger.windows.list_window_numbers(run.id, [WindowState.CLOSED]) == ([] if is_gated else [0])


def test_a_run_that_is_paused_and_cancelled_by_many_at_once_has_one_state_and_every_record(ledger: Ledger) -> None:
    run = queued_run(ledger)

    paused, resumed, *stopped = at_once(
        lambda: ledger.orders.pause_run(run.id, by="ada"),
        lambda: ledger.orders.resume_run(run.id, by="bob"),
        lambda: ledger.orders.cancel_run(run.id, by="eve"),
        lambda: ledger.orders.cancel_run(run.id, by="mallory", now=True),
    )

    assert ledger.runs.get_run(run.id).state is RunState.CANCELLING
    assert sum(one.not_started for one in stopped) == len(DAYS)
    assert len(orders(ledger, run)) == paused + resumed + 2
    assert all(row.state in ENDED_DATES for row in ledger.dates.list_dates(run.id))
