"""Contract of the ledger: one suite for each database."""

from __future__ import annotations

import random
import signal
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import IntegrityError, StatementError

from gated_backfill.common.errors import (
    CheckpointedMeanwhile,
    DatesInUse,
    LeaseTakenOver,
    LedgerUnavailable,
    TargetTaken,
    UndoInProgress,
    UserError,
)
from gated_backfill.common.ledger import (
    DateRow,
    DateState,
    Ledger,
    NewAlert,
    NewDate,
    RenewedProof,
    Run,
    RunAction,
    RunState,
    WindowState,
    open_ledger,
)
from gated_backfill.common.ledger.connections import make_engine
from gated_backfill.common.ledger.database import next_generation
from gated_backfill.common.ledger.rows import usage_values
from gated_backfill.common.ledger.stores.history import DATES_PER_QUERY
from gated_backfill.common.model.coverage import Verdict
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.model.usage import Usage
from gated_backfill.common.process.clock import utcnow
from tests.builders import (
    DAYS,
    FEB_23,
    FEB_24,
    FEB_25,
    JOB,
    LEASE,
    answering,
    at_once,
    blocked_date,
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
    race,
    running_run,
    staged_date,
    state_of,
)

#: Brings a date into a state.
Reach = Callable[[Ledger, Run, date], None]
MANY_DAYS = [date(2023, 1, 1) + timedelta(days=n) for n in range(200)]
EXPIRED = timedelta(minutes=-1)


def soon() -> datetime:
    return utcnow() + timedelta(minutes=1)


def claim_window(
    ledger: Ledger,
    run: Run,
    owner: str = "gate",
    *,
    number: int = 0,
    lease: timedelta = timedelta(minutes=1),
    is_dead: Callable[[str], bool] = everyone_lives,
) -> int | None:
    return ledger.windows.claim_window(run.id, number, owner, utcnow() + lease, is_dead=is_dead)


def end_run(ledger: Ledger, run: Run) -> None:
    assert ledger.runs.move_run(run.id, expect=[RunState.RUNNING], to=RunState.CANCELLED)


@dataclass(frozen=True)
class Lost:
    """How a process has lost its claim: by its lease, or by its death."""

    lease: timedelta
    is_dead: Callable[[str], bool]


@pytest.fixture(params=[Lost(LEASE, everyone_is_dead), Lost(EXPIRED, everyone_lives)], ids=["dead", "past-its-lease"])
def lost(request: pytest.FixtureRequest) -> Lost:
    return request.param


def row_of(ledger: Ledger, run: Run, day: date = FEB_23) -> DateRow:
    (row,) = ledger.dates.list_dates(run.id, days=[day])
    return row


# -- runs ---------------------------------------------------------------------------------------------------------


def test_an_opened_run_reads_back_as_it_was_asked_for(ledger: Ledger) -> None:
    opened = ledger.runs.open_run(new_run(options={"fallback": "fill", "forced_because": None}, owner="host:1:1"))
    assert opened == ledger.runs.get_run(opened.id)
    assert (opened.state, opened.job, opened.owner) == (RunState.PLANNED, JOB, "host:1:1")
    assert (opened.first_date, opened.last_date) == (FEB_23, FEB_25)
    assert opened.options == {"fallback": "fill", "forced_because": None}
    assert [row.day for row in ledger.dates.list_dates(opened.id)] == list(DAYS)
    assert {row.state for row in ledger.dates.list_dates(opened.id)} == {DateState.PENDING}


def test_the_latest_run_with_a_calendar_is_found(ledger: Ledger) -> None:
    assert ledger.runs.find_latest_run_with_calendar(JOB) is None
    days = iter(DAYS)
    first, second, _ = (
        ledger.runs.open_run(new_run([next(days)], options={"fallback": "replace", **options}))
        for options in ({"calendar": True}, {"calendar": True}, {"calendar": False})
    )
    ledger.runs.open_run(new_run([FEB_23], job="another", options={"fallback": "replace"}))
    latest = ledger.runs.find_latest_run_with_calendar(JOB)
    assert latest is not None
    assert latest.id in (first.id, second.id)
    assert latest.created_at == max(first.created_at, second.created_at)
    assert ledger.runs.find_latest_run_with_calendar("another") is None


def test_dates_ended_by_the_plan_keep_their_reason_and_reserve_nothing(ledger: Ledger) -> None:
    ended = NewDate(day=FEB_23, state=DateState.SKIPPED, columns={"reason": "bootstrap", "verdict": "skipped"})
    run = ledger.runs.open_run(new_run(dates=(ended, NewDate(day=FEB_24, window=0))))
    row = row_of(ledger, run, FEB_23)
    assert (row.state, row.reason, row.verdict, row.active) == (DateState.SKIPPED, "bootstrap", Verdict.SKIPPED, False)
    assert ledger.runs.find_conflicting_runs(JOB, DAYS) == {run.id: [FEB_24]}


def test_a_run_that_does_not_exist_is_named(ledger: Ledger) -> None:
    with pytest.raises(UserError, match="no run 'nope'"):
        ledger.runs.get_run("nope")


def test_the_latest_runs_come_first(ledger: Ledger) -> None:
    opened = [ledger.runs.open_run(new_run([day])).id for day in DAYS]
    assert [run.id for run in ledger.runs.list_latest_runs(2)] == opened[:0:-1]


def test_a_date_belongs_to_one_active_run_of_a_job(ledger: Ledger) -> None:
    first = ledger.runs.open_run(new_run([FEB_23, FEB_24]))
    with pytest.raises(DatesInUse, match=rf"run {first.id} is active and holds 1 .* 2023-02-24") as refused:
        ledger.runs.open_run(new_run([FEB_24, FEB_25]))
    assert refused.value.run == first.id
    assert [run.id for run in ledger.runs.list_latest_runs()] == [first.id]
    assert ledger.runs.find_conflicting_runs(JOB, DAYS) == {first.id: [FEB_23, FEB_24]}


def test_a_run_is_not_opened_for_dates_that_another_one_has_checkpointed_since_its_plan(ledger: Ledger) -> None:
    first = queued_run(ledger, [FEB_23])
    checkpointed_date(ledger, first, FEB_23)
    assert ledger.runs.move_run(first.id, expect=[RunState.RUNNING], to=RunState.SUCCEEDED)

    for planned_with in ({}, {FEB_23: "an earlier run"}):
        with pytest.raises(CheckpointedMeanwhile, match=f"run {first.id} has checkpointed 2023-02-23 since"):
            ledger.runs.open_run(new_run([FEB_23, FEB_24], planned_with=planned_with))

    assert [run.id for run in ledger.runs.list_latest_runs()] == [first.id]
    assert ledger.runs.find_conflicting_runs(first.job, DAYS) == {}
    ledger.runs.open_run(new_run([FEB_23, FEB_24], planned_with={FEB_23: first.id}))


def test_another_job_may_have_the_same_dates(ledger: Ledger) -> None:
    ledger.runs.open_run(new_run())
    assert ledger.runs.open_run(new_run(job="teams")).state is RunState.PLANNED


@pytest.mark.parametrize("end", [RunState.SUCCEEDED, RunState.PARTIAL, RunState.FAILED, RunState.CANCELLED])
def test_an_ended_run_releases_its_dates(ledger: Ledger, end: RunState) -> None:
    first = queued_run(ledger)
    assert ledger.runs.move_run(first.id, expect=[RunState.RUNNING], to=end)
    assert ledger.runs.find_conflicting_runs(JOB, DAYS) == {}
    second = ledger.runs.open_run(new_run())
    assert ledger.runs.find_conflicting_runs(JOB, DAYS) == {second.id: list(DAYS)}


def test_a_paused_run_keeps_its_dates(ledger: Ledger) -> None:
    run = running_run(ledger)
    ledger.runs.move_run(run.id, expect=[RunState.RUNNING], to=RunState.PAUSED)
    with pytest.raises(DatesInUse):
        ledger.runs.open_run(new_run([FEB_23]))


def test_of_two_threads_that_open_the_same_dates_one_wins(ledger: Ledger) -> None:
    def attempt(number: int) -> str:
        try:
            return ledger.runs.open_run(new_run(DAYS if number % 2 else DAYS[::-1])).id
        except DatesInUse as exc:
            return f"taken by {exc.run}"

    results = at_once(4, attempt)
    (winner,) = [result for result in results if not result.startswith("taken")]
    assert sorted(results) == sorted([winner, *[f"taken by {winner}"] * 3])


def open_a_run(wait: Callable[[], object], url: str) -> tuple[str, str | None]:
    ledger = open_ledger(url, create=False)
    wait()
    try:
        return "opened", ledger.runs.open_run(new_run()).id
    except DatesInUse as exc:
        return "taken", exc.run
    finally:
        ledger.close()


def test_of_two_processes_that_open_the_same_dates_one_wins(ledger_url: str) -> None:
    results = race(*[(open_a_run, ledger_url)] * 2)
    assert sorted(word for word, _ in results) == ["opened", "taken"]
    assert len({run_id for _, run_id in results}) == 1


def test_a_run_moves_only_from_the_states_expected(ledger: Ledger) -> None:
    run = ledger.runs.open_run(new_run())
    assert not ledger.runs.move_run(run.id, expect=[RunState.RUNNING], to=RunState.PAUSED)
    assert ledger.runs.move_run(run.id, expect=[RunState.PLANNED, RunState.PAUSED], to=RunState.RUNNING)
    assert not ledger.runs.move_run(run.id, expect=[RunState.PLANNED, RunState.PAUSED], to=RunState.RUNNING)
    assert ledger.runs.get_run(run.id).state is RunState.RUNNING


def test_a_resumed_run_keeps_the_time_of_its_first_start(ledger: Ledger) -> None:
    started = running_run(ledger)
    ledger.runs.move_run(started.id, expect=[RunState.RUNNING], to=RunState.PAUSED)
    ledger.runs.move_run(started.id, expect=[RunState.PAUSED], to=RunState.RUNNING)
    assert ledger.runs.get_run(started.id).started_at == started.started_at


ENDS = [
    pytest.param([checkpointed_date, checkpointed_date, checkpointed_date], RunState.SUCCEEDED, id="all-checkpointed"),
    pytest.param([checkpointed_date, checkpointed_date, blocked_date], RunState.PARTIAL, id="one-blocked"),
    pytest.param([checkpointed_date, failed_date, blocked_date], RunState.PARTIAL, id="one-checkpointed"),
    pytest.param([failed_date, failed_date, blocked_date], RunState.FAILED, id="none-checkpointed"),
]


@pytest.mark.parametrize(("reach", "end"), ENDS)
def test_a_run_ends_as_its_dates_did(ledger: Ledger, run: Run, reach: Sequence[Reach], end: RunState) -> None:
    for reached, day in zip(reach, DAYS, strict=True):
        reached(ledger, run, day)
    assert ledger.runs.finish_run(run.id) is None, "its window is not closed"
    claim_window(ledger, run)
    ledger.windows.release_window(run.id, 0, "gate", to=WindowState.CLOSED)
    assert ledger.runs.finish_run(run.id) is end
    assert ledger.runs.finish_run(run.id) is None, "it has ended already"
    ended = ledger.runs.get_run(run.id)
    assert (ended.state, ended.has_ended, ended.finished_at is not None) == (end, True, True)
    assert ledger.runs.find_conflicting_runs(JOB, DAYS) == {}


# -- targets --


def test_a_target_belongs_to_the_job_whose_run_claimed_it(ledger: Ledger) -> None:
    run = ledger.runs.open_run(new_run(target="nba.factors"))
    again = ledger.runs.open_run(new_run([date(2023, 3, 1)], target="nba.factors"))

    with pytest.raises(TargetTaken, match=rf"nba.factors is the target of job {JOB} \(run {run.id}\): two jobs can't"):
        ledger.runs.open_run(new_run(job="twin", target="nba.factors"))

    owner = ledger.targets.get_owner("nba.factors")
    assert owner is not None
    assert (owner.job, owner.run_id) == (JOB, run.id)
    assert [one.id for one in ledger.runs.list_active_runs()] == [run.id, again.id]
    assert not ledger.runs.has_run("twin")
    assert ledger.targets.get_owner("nba.other") is None
    assert ledger.targets.list_targets(owner.job) == [TableName("nba", "factors")]
    assert ledger.targets.list_targets("another job") == []


def test_a_target_passes_from_a_job_that_gave_it_up_once_its_runs_have_ended(ledger: Ledger) -> None:
    run = ledger.runs.open_run(new_run(target="nba.factors"))
    taking = new_run(job="twin", target="nba.factors", replaced_owner=JOB)

    with pytest.raises(TargetTaken):
        ledger.runs.open_run(taking)
    ledger.runs.move_run(run.id, expect=[RunState.PLANNED], to=RunState.CANCELLED)
    with pytest.raises(TargetTaken):
        ledger.runs.open_run(new_run(job="twin", target="nba.factors", replaced_owner="another"))
    taken = ledger.runs.open_run(taking)

    owner = ledger.targets.get_owner("nba.factors")
    assert owner is not None
    assert (owner.job, owner.run_id) == ("twin", taken.id)


@pytest.mark.parametrize("same_job", [False, True])
def test_one_of_two_jobs_that_claim_a_target_at_once_gets_it(ledger: Ledger, same_job: bool) -> None:
    def attempt(number: int) -> str | None:
        job = JOB if same_job else f"job{number}"
        day = FEB_23 + timedelta(days=number)
        try:
            return ledger.runs.open_run(new_run([day], job=job, target="nba.factors")).id
        except TargetTaken:
            return None

    opened = [run for run in at_once(4, attempt) if run is not None]

    assert len(opened) == (4 if same_job else 1)
    owner = ledger.targets.get_owner("nba.factors")
    assert owner is not None
    assert owner.run_id in opened


# -- the lease on publishing to a target --


def claim_publishing(
    ledger: Ledger, owner: str, *, lease: timedelta = LEASE, is_dead: Callable[[str], bool] = everyone_lives
) -> bool:
    return ledger.targets.claim_publishing("nba.factors", owner, utcnow() + lease, is_dead=is_dead)


def test_one_gate_at_a_time_publishes_to_a_target(ledger: Ledger) -> None:
    ledger.runs.open_run(new_run(target="nba.factors"))
    ledger.runs.open_run(new_run(job="twin", target="nba.other"))
    assert claim_publishing(ledger, "first")
    assert not claim_publishing(ledger, "second")
    assert claim_publishing(ledger, "first"), "which extends its lease"
    assert ledger.targets.claim_publishing("nba.other", "second", soon(), is_dead=everyone_lives)
    ledger.targets.release_publishing("nba.factors", "second")
    assert not claim_publishing(ledger, "second"), "it released what it did not have"
    ledger.targets.release_publishing("nba.factors", "first")
    assert claim_publishing(ledger, "second")
    owner = ledger.targets.get_owner("nba.factors")
    assert owner is not None
    assert owner.job == JOB


def test_a_gate_that_is_lost_keeps_nobody_from_publishing(ledger: Ledger, lost: Lost) -> None:
    ledger.runs.open_run(new_run(target="nba.factors"))
    assert claim_publishing(ledger, "old", lease=lost.lease)
    assert claim_publishing(ledger, "new", is_dead=lost.is_dead)
    ledger.targets.release_publishing("nba.factors", "old")
    assert not claim_publishing(ledger, "other"), "the old gate ended the lease of the new one"


def test_one_of_several_gates_that_take_the_lease_at_once_gets_it(ledger: Ledger, lost: Lost) -> None:
    ledger.runs.open_run(new_run(target="nba.factors"))
    assert claim_publishing(ledger, "old", lease=lost.lease)
    taken = at_once(4, lambda n: claim_publishing(ledger, f"gate-{n}", is_dead=lambda owner: owner == "old"))
    assert taken.count(True) == 1


def test_a_table_that_no_run_has_claimed_is_not_waited_for(ledger: Ledger) -> None:
    assert claim_publishing(ledger, "first")
    assert claim_publishing(ledger, "second")


def test_a_run_whose_dates_the_plan_ended_finishes_at_once(ledger: Ledger) -> None:
    run = ledger.runs.open_run(new_run(dates=(NewDate(day=FEB_23, state=DateState.SKIPPED),)))
    ledger.runs.move_run(run.id, expect=[RunState.PLANNED], to=RunState.RUNNING)
    assert ledger.runs.finish_run(run.id) is RunState.SUCCEEDED


def test_progress_counts_the_dates_by_state(ledger: Ledger) -> None:
    run = queued_run(ledger, MANY_DAYS[:6])
    checkpointed_date(ledger, run, MANY_DAYS[0])
    checkpointed_date(ledger, run, MANY_DAYS[1])
    blocked_date(ledger, run, MANY_DAYS[2])
    staged_date(ledger, run, MANY_DAYS[3])
    progress = ledger.runs.get_progress(run.id)
    unended = {DateState.STAGED: 1, DateState.QUEUED: 2}
    assert progress.counts == {DateState.CHECKPOINTED: 2, DateState.BLOCKED: 1, **unended}
    assert (progress.total, progress.ended) == (6, 3)
    assert progress.count(DateState.STAGED, DateState.QUEUED) == 3


# -- windows ------------------------------------------------------------------------------------------------------


def test_windows_open_in_order_up_to_the_number_in_flight(ledger: Ledger) -> None:
    run = running_run(ledger, MANY_DAYS[:10], window=2)
    opened = ledger.windows.open_windows(run.id, in_flight=3)
    assert {n: sorted(days) for n, days in opened.items()} == {n: MANY_DAYS[2 * n : 2 * n + 2] for n in range(3)}
    assert ledger.windows.open_windows(run.id, in_flight=3) == {}
    assert {row.day for row in ledger.dates.list_dates(run.id, states=[DateState.QUEUED])} == set(MANY_DAYS[:6])
    assert ledger.windows.list_window_numbers(run.id, [WindowState.OPEN]) == [0, 1, 2]
    assert ledger.windows.list_window_numbers(run.id, [WindowState.PENDING]) == [3, 4]


def test_a_window_that_its_gate_works_on_is_still_in_flight(ledger: Ledger) -> None:
    run = running_run(ledger, MANY_DAYS[:4], window=2)
    ledger.windows.open_windows(run.id, in_flight=1)
    claim_window(ledger, run)
    assert ledger.windows.open_windows(run.id, in_flight=1) == {}
    ledger.windows.release_window(run.id, 0, "gate", to=WindowState.CLOSED)
    assert list(ledger.windows.open_windows(run.id, in_flight=1)) == [1]


@pytest.mark.parametrize("state", [RunState.PLANNED, RunState.PAUSED, RunState.CANCELLED])
def test_only_a_running_run_opens_windows(ledger: Ledger, state: RunState) -> None:
    run = ledger.runs.open_run(new_run())
    ledger.runs.move_run(run.id, expect=[RunState.PLANNED], to=state)
    assert ledger.windows.open_windows(run.id, in_flight=3) == {}


def test_callers_at_once_never_open_the_same_window(ledger: Ledger) -> None:
    run = running_run(ledger, MANY_DAYS[:40], window=2)
    results = at_once(4, lambda _: ledger.windows.open_windows(run.id, in_flight=7))
    opened = [number for result in results for number in result]
    assert sorted(opened) == list(range(7))


def test_the_worker_that_has_a_date_may_claim_it_again_without_a_death(ledger: Ledger, run: Run) -> None:
    for _ in range(5):
        claimed = claim_date(ledger, run, owner="worker")
        assert claimed is not None
    assert (claimed.deaths, claimed.attempt) == (0, 5)


def test_the_gate_that_has_a_window_may_claim_it_again(ledger: Ledger, run: Run) -> None:
    for _ in range(2):
        assert claim_window(ledger, run)


def test_each_lease_of_a_window_has_a_higher_generation(ledger: Ledger, run: Run) -> None:
    generations: list[int | None] = []
    for _ in range(3):
        generations.append(claim_window(ledger, run))
        assert ledger.windows.get_window(run.id, 0).generation == generations[-1]
        ledger.windows.release_window(run.id, 0, "gate", to=WindowState.OPEN)
    assert generations == sorted({generation for generation in generations if generation is not None})


@pytest.mark.parametrize("shift", [timedelta(days=-40), timedelta(0)], ids=["clock set back", "clock stands still"])
def test_a_generation_rises_whatever_the_clock_does(
    ledger: Ledger, run: Run, shift: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = claim_window(ledger, run)
    moved = utcnow() + shift
    monkeypatch.setattr("gated_backfill.common.ledger.database.utcnow", lambda: moved)
    second, third = claim_window(ledger, run), claim_window(ledger, run)
    assert first is not None
    assert second is not None
    assert third is not None
    assert first < second < third


def test_a_ledger_restored_from_an_older_copy_gives_higher_generations(monkeypatch: pytest.MonkeyPatch) -> None:
    before = next_generation(0)
    restored_at = utcnow() + timedelta(milliseconds=1)
    monkeypatch.setattr("gated_backfill.common.ledger.database.utcnow", lambda: restored_at)
    assert next_generation(0) > before


def test_one_gate_at_a_time_claims_a_window(ledger: Ledger, run: Run) -> None:
    claims = at_once(4, lambda n: claim_window(ledger, run, f"gate-{n}") is not None)
    assert sorted(claims) == [False, False, False, True]
    assert ledger.windows.renew_window(run.id, 0, f"gate-{claims.index(True)}", soon())
    assert not ledger.windows.renew_window(run.id, 0, f"gate-{claims.index(False)}", soon())


def test_a_gate_that_lost_its_lease_is_replaced(ledger: Ledger, run: Run, lost: Lost) -> None:
    claim_window(ledger, run, "old", lease=lost.lease)
    assert claim_window(ledger, run, "new", is_dead=lost.is_dead)
    assert not ledger.windows.renew_window(run.id, 0, "old", soon())
    assert not ledger.windows.release_window(run.id, 0, "old", to=WindowState.CLOSED)
    assert ledger.windows.renew_window(run.id, 0, "new", soon())
    window = ledger.windows.get_window(run.id, 0)
    assert (window.losses, window.deaths) == (1, 0)


def test_a_gate_whose_process_died_has_no_lease_and_its_death_is_counted_once(ledger: Ledger, run: Run) -> None:
    claim_window(ledger, run, "dead")
    assert not ledger.windows.record_death(run.id, 0, "alive")
    assert ledger.windows.record_death(run.id, 0, "dead")
    assert not ledger.windows.record_death(run.id, 0, "dead")
    window = ledger.windows.get_window(run.id, 0)
    assert (window.state, window.losses, window.deaths) == (WindowState.OPEN, 0, 1)
    assert claim_window(ledger, run, "new")


@pytest.mark.parametrize("number", [pytest.param(0, id="pending"), pytest.param(7, id="unknown")])
def test_a_window_that_is_not_open_has_no_gate(ledger: Ledger, number: int) -> None:
    run = running_run(ledger)
    assert not claim_window(ledger, run, number=number, is_dead=everyone_is_dead)


def test_a_window_released_as_open_can_be_claimed_again_and_a_closed_one_not(ledger: Ledger, run: Run) -> None:
    for to, is_claimed in ((WindowState.OPEN, True), (WindowState.CLOSED, False)):
        assert ledger.windows.release_window(run.id, 0, "gate", to=to) is (to is WindowState.CLOSED)
        assert (claim_window(ledger, run, is_dead=everyone_is_dead) is not None) is is_claimed
    assert not ledger.windows.renew_window(run.id, 0, "gate", soon())


def test_a_run_that_is_being_ended_takes_the_leases_from_its_gates(ledger: Ledger, run: Run) -> None:
    generation = claim_window(ledger, run, "old")
    assert generation is not None

    generations = ledger.windows.end_leases(run.id)

    assert list(generations) == [0]
    assert generations[0] > generation
    assert not ledger.windows.renew_window(run.id, 0, "old", soon())
    later = claim_window(ledger, run, "new")
    assert later is not None
    assert later > generations[0]


def test_a_gate_of_an_ended_run_has_lost_its_window(ledger: Ledger, run: Run) -> None:
    claim_window(ledger, run)
    end_run(ledger, run)
    assert not ledger.windows.renew_window(run.id, 0, "gate", soon())


# -- claiming dates -----------------------------------------------------------------------------------------------


def test_a_queued_date_is_claimed_once(ledger: Ledger, run: Run) -> None:
    claimed = claim_date(ledger, run, owner="first")
    assert claimed is not None
    assert claimed.state is DateState.PROCESSING
    assert (claimed.attempt, claimed.deaths, claimed.lease_owner) == (1, 0, "first")
    assert claimed == row_of(ledger, run)
    assert claim_date(ledger, run, owner="second") is None
    assert row_of(ledger, run).lease_owner == "first"


def test_threads_at_once_claim_a_date_once(ledger: Ledger, run: Run) -> None:
    claims = at_once(6, lambda n: claim_date(ledger, run, owner=f"worker-{n}"))
    assert len([claimed for claimed in claims if claimed]) == 1


def test_a_date_of_a_lost_worker_is_claimed_again_and_the_loss_counted(ledger: Ledger, run: Run, lost: Lost) -> None:
    claimed_date(ledger, run, FEB_23, owner="gone", lease=lost.lease)
    claimed = claim_date(ledger, run, owner="new", is_dead=lost.is_dead)
    assert claimed is not None
    assert (claimed.attempt, claimed.losses, claimed.deaths, claimed.lease_owner) == (2, 1, 0, "new")
    assert not move_processing(ledger, run, DateState.STAGED, owner="gone")


def test_a_date_whose_workers_are_lost_without_end_is_failed(ledger: Ledger, run: Run) -> None:
    claims = [claim_date(ledger, run, owner=f"worker-{n}", max_losses=2, is_dead=everyone_is_dead) for n in range(3)]
    assert [claimed is not None for claimed in claims] == [True, True, False]
    row = row_of(ledger, run)
    assert (row.state, row.verdict, row.losses, row.deaths) == (DateState.FAILED, Verdict.FAILED, 2, 0)
    assert (row.error_kind, row.reason) == ("WorkerLost", "its worker was lost 2 times")
    assert (row.lease_owner, row.ended_at is not None) == (None, True)


def test_a_date_that_keeps_killing_its_worker_processes_is_failed(ledger: Ledger, run: Run) -> None:
    for death in (1, 2):
        claimed_date(ledger, run, FEB_23, owner="dead")
        assert ledger.claims.record_deaths(run.id, DAYS, owner="dead", max_deaths=2) == [FEB_23]
        assert row_of(ledger, run).deaths == death
    row = row_of(ledger, run)
    assert (row.state, row.verdict) == (DateState.FAILED, Verdict.FAILED)
    assert (row.error_kind, row.reason) == ("WorkerLost", "killed its worker 2 times")
    assert (row.lease_owner, row.ended_at is not None) == (None, True)


def test_a_death_counts_only_for_what_the_process_had_claimed(ledger: Ledger, run: Run) -> None:
    claimed_date(ledger, run, FEB_23, owner="dead")
    claimed_date(ledger, run, FEB_24, owner="alive")
    ledger.dates.move_date(run.id, FEB_23, expect=DateState.PROCESSING, to=DateState.QUEUED, owner="dead")
    assert ledger.claims.record_deaths(run.id, DAYS, owner="dead", max_deaths=1) == []
    assert {row.deaths for row in ledger.dates.list_dates(run.id)} == {0}
    assert state_of(ledger, run, FEB_24) is DateState.PROCESSING


def test_a_date_that_kills_its_worker_while_its_run_is_cancelled_is_cancelled(ledger: Ledger, run: Run) -> None:
    claimed_date(ledger, run, FEB_23, owner="dead")
    ledger.orders.cancel_run(run.id, by="somebody")
    ledger.claims.record_deaths(run.id, [FEB_23], owner="dead", max_deaths=3)
    assert state_of(ledger, run, FEB_23) is DateState.CANCELLED


@pytest.mark.parametrize("state", [RunState.PAUSED, RunState.CANCELLED])
def test_no_date_of_a_run_that_is_not_running_is_claimed(ledger: Ledger, run: Run, state: RunState) -> None:
    ledger.runs.move_run(run.id, expect=[RunState.RUNNING], to=state)
    assert claim_date(ledger, run) is None
    assert state_of(ledger, run, FEB_23) is DateState.QUEUED


@pytest.mark.parametrize("reach", [staged_date, published_date, checkpointed_date, failed_date, blocked_date])
def test_a_date_past_processing_is_not_claimed_again(ledger: Ledger, run: Run, reach: Reach) -> None:
    reach(ledger, run, FEB_23)
    assert claim_date(ledger, run, is_dead=everyone_is_dead) is None


def test_a_date_that_is_pending_or_unknown_is_not_claimed(ledger: Ledger) -> None:
    run = running_run(ledger)
    assert claim_date(ledger, run) is None
    assert claim_date(ledger, run, date(1999, 1, 1)) is None


def claim_all(wait: Callable[[], object], url: str, run_id: str, owner: str) -> list[str]:
    """The dates that this process claimed, of those it tried in a random order."""
    ledger = open_ledger(url, create=False)
    run = ledger.runs.get_run(run_id)
    wait()
    days = random.sample(MANY_DAYS, len(MANY_DAYS))
    claimed = [str(day) for day in days if claim_date(ledger, run, day, owner=owner)]
    ledger.close()
    return claimed


def test_eight_processes_claim_every_date_exactly_once(sqlite_url: str) -> None:
    ledger = open_ledger(sqlite_url, create=False)
    run = queued_run(ledger, MANY_DAYS)
    owners = [f"worker-{n}" for n in range(8)]
    claims = race(*((claim_all, sqlite_url, run.id, owner) for owner in owners))
    claimed = [(day, owner) for owner, days in zip(owners, claims, strict=True) for day in days]
    rows = ledger.dates.list_dates(run.id)
    ledger.close()
    assert sorted(claimed) == [(str(row.day), row.lease_owner) for row in rows]
    assert [row.day for row in rows] == MANY_DAYS


def test_a_file_that_stays_locked_is_unavailable(sqlite_url: str) -> None:
    ledger = open_ledger(sqlite_url, create=False)
    run = queued_run(ledger, [FEB_23])
    ledger.close()
    hasty = open_ledger(f"{sqlite_url}?timeout=0.1", create=False)
    with closing(sqlite3.connect(make_url(sqlite_url).database or "", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerUnavailable, match="locked"):  # by a transaction
            hasty.runs.move_run(run.id, expect=[RunState.RUNNING], to=RunState.PAUSED)
        with pytest.raises(LedgerUnavailable, match="locked"):  # by a single statement
            claim_date(hasty, run)
        assert hasty.runs.get_run(run.id).state is RunState.RUNNING, "whoever reads need not wait"
    assert claim_date(hasty, run)
    hasty.close()


def hammer(wait: Callable[[], object], url: str, run_id: str, owner: str) -> int:
    """Do what workers and gates do until the run has ended; how many dates this process moved."""
    ledger = open_ledger(url, create=False)
    run, moved = ledger.runs.get_run(run_id), 0
    wait()
    while not ledger.runs.get_run(run_id).has_ended:
        for number in ledger.windows.list_window_numbers(run_id, [WindowState.OPEN]):
            for row in ledger.dates.list_dates(run_id, window=number, states=[DateState.QUEUED]):
                if claim_date(ledger, run, row.day, owner=owner):
                    moved += move_processing(ledger, run, DateState.SKIPPED, row.day, owner=owner)
            rows = ledger.dates.list_dates(run_id, window=number)
            if all(row.state is DateState.SKIPPED for row in rows) and claim_window(ledger, run, owner, number=number):
                ledger.windows.release_window(run_id, number, owner, to=WindowState.CLOSED)
                ledger.windows.open_windows(run_id, in_flight=3)
        ledger.runs.finish_run(run_id)
        ledger.runs.get_progress(run_id)
    ledger.close()
    return moved


def test_sixteen_processes_finish_a_run_on_one_file_without_a_lock_error_or_a_lost_update(sqlite_url: str) -> None:
    ledger = open_ledger(sqlite_url, create=False)
    run = running_run(ledger, MANY_DAYS, window=10)
    ledger.windows.open_windows(run.id, in_flight=3)
    moved = race(*((hammer, sqlite_url, run.id, f"worker-{n}") for n in range(16)))
    rows = ledger.dates.list_dates(run.id)
    assert sum(moved) == len(MANY_DAYS) == len(rows)
    assert {(row.state, row.attempt, row.deaths) for row in rows} == {(DateState.SKIPPED, 1, 0)}
    assert {window.state for window in ledger.windows.list_windows(run.id)} == {WindowState.CLOSED}
    ledger.close()


# -- requeueing dates ----------------------------------------------------------------------------------------------


def requeue(ledger: Ledger, run: Run, *, include_queued: bool = False, dead: Sequence[str] = ()) -> list[date]:
    options = {"include_queued": include_queued, "is_dead": dead.__contains__, "max_losses": 2}
    return ledger.claims.requeue_dates(run.id, 0, **options)


def test_the_dates_of_dead_workers_are_queued_again(ledger: Ledger, run: Run) -> None:
    claimed_date(ledger, run, FEB_23, owner="dead")
    claimed_date(ledger, run, FEB_24, owner="alive")
    assert requeue(ledger, run, dead=["dead"]) == [FEB_23]
    back = row_of(ledger, run, FEB_23)
    assert (back.state, back.losses, back.deaths, back.lease_owner) == (DateState.QUEUED, 1, 0, None)
    assert state_of(ledger, run, FEB_24) is DateState.PROCESSING
    assert requeue(ledger, run, dead=["dead"]) == []


def test_dates_that_a_host_gives_back_are_queued_as_if_never_claimed(ledger: Ledger, run: Run) -> None:
    before = row_of(ledger, run, FEB_23)
    claimed_date(ledger, run, FEB_23, owner="broken")
    claimed_date(ledger, run, FEB_24, owner="sound")
    ledger.claims.return_dates(run.id, [FEB_23, FEB_24, FEB_25], owner="broken")
    back = row_of(ledger, run, FEB_23)
    assert (back.state, back.attempt, back.losses, back.deaths) == (DateState.QUEUED, before.attempt, 0, 0)
    assert (back.lease_owner, back.queued_at is not None) == (None, True)
    assert (state_of(ledger, run, FEB_24), state_of(ledger, run, FEB_25)) == (DateState.PROCESSING, DateState.QUEUED)
    ledger.claims.return_dates(run.id, [FEB_23], owner="broken")
    assert row_of(ledger, run, FEB_23).attempt == before.attempt


def test_dates_past_their_lease_are_queued_again(ledger: Ledger, run: Run) -> None:
    claimed_date(ledger, run, FEB_23, lease=EXPIRED)
    assert requeue(ledger, run) == [FEB_23]


def test_queued_dates_are_requeued_only_on_request(ledger: Ledger, run: Run) -> None:
    staged_date(ledger, run, FEB_25)
    assert requeue(ledger, run) == []
    assert sorted(requeue(ledger, run, include_queued=True)) == [FEB_23, FEB_24]
    assert row_of(ledger, run, FEB_23).losses == 0


def test_a_date_that_was_released_without_a_message_is_requeued_once(ledger: Ledger, run: Run) -> None:
    claimed_date(ledger, run, FEB_23, owner="stopped")
    released = {"expect": DateState.PROCESSING, "to": DateState.QUEUED, "queued_at": None}
    ledger.dates.move_date(run.id, FEB_23, owner="stopped", **released)
    assert requeue(ledger, run) == [FEB_23]
    assert requeue(ledger, run) == []
    assert row_of(ledger, run, FEB_23).losses == 0


def test_a_date_that_lost_too_many_workers_is_not_requeued(ledger: Ledger, run: Run) -> None:
    for _ in range(2):
        claimed_date(ledger, run, FEB_23, owner="dead")
        requeued = requeue(ledger, run, dead=["dead"])
    assert requeued == []
    assert state_of(ledger, run, FEB_23) is DateState.FAILED


# -- moving dates -------------------------------------------------------------------------------------------------


def test_a_move_writes_further_columns(ledger: Ledger, run: Run) -> None:
    claimed_date(ledger, run, FEB_23)
    facts: dict[str, Any] = {"found": {"upcoming": 1, "derived": 187}, "missing": ["a", "b"], "seconds": 1.5}
    facts |= {"unexpected": ["c"], "unexpected_count": 600, "error_place": "/jobs/players.py:41"}
    facts |= {"source_reason": "primary below 90% at 0.5 %"}
    assert move_processing(ledger, run, DateState.STAGED, owner="worker", **facts)
    row = row_of(ledger, run)
    assert (row.found, row.missing) == ({"upcoming": 1, "derived": 187}, ("a", "b"))
    assert (row.unexpected, row.unexpected_count, row.error_place) == (("c",), 600, "/jobs/players.py:41")
    assert (row.source_reason, row.seconds, row.lease_owner) == (facts["source_reason"], 1.5, None)


def test_a_repeated_or_late_move_changes_nothing(ledger: Ledger, run: Run) -> None:
    staged_date(ledger, run, FEB_23)
    before = row_of(ledger, run)
    assert not move_processing(ledger, run, DateState.STAGED, rows=1)
    assert not move_processing(ledger, run, DateState.FAILED, error="late")
    assert row_of(ledger, run) == before


def test_a_move_by_a_worker_that_lost_the_date_changes_nothing(ledger: Ledger, run: Run) -> None:
    claimed_date(ledger, run, FEB_23, owner="holder")
    before = row_of(ledger, run)
    assert not move_processing(ledger, run, DateState.STAGED, owner="other", rows=1)
    assert row_of(ledger, run) == before


def test_of_moves_made_at_once_one_counts(ledger: Ledger, run: Run) -> None:
    staged_date(ledger, run, FEB_23)
    ends = [DateState.PUBLISHED, DateState.BLOCKED, DateState.FAILED, DateState.QUEUED]
    moves = at_once(4, lambda n: ledger.dates.move_date(run.id, FEB_23, expect=DateState.STAGED, to=ends[n]))
    assert sorted(moves) == [False, False, False, True]
    assert state_of(ledger, run, FEB_23) is ends[moves.index(True)]


@pytest.mark.parametrize(
    ("expect", "to"),
    [
        pytest.param(DateState.PROCESSING, DateState.CHECKPOINTED, id="past-the-gate"),
        pytest.param(DateState.STAGED, DateState.CHECKPOINTED, id="without-publishing"),
        pytest.param(DateState.CHECKPOINTED, DateState.QUEUED, id="from-an-end"),
        pytest.param(DateState.QUEUED, DateState.PENDING, id="backwards"),
    ],
)
def test_a_forbidden_move_raises(ledger: Ledger, run: Run, expect: DateState, to: DateState) -> None:
    with pytest.raises(ValueError, match="never moves"):
        ledger.dates.move_date(run.id, FEB_23, expect=expect, to=to)
    with pytest.raises(ValueError, match="never moves"):
        ledger.dates.move_dates(run.id, DAYS, expect=expect, to=to)


def test_several_dates_move_if_they_are_in_the_expected_state(ledger: Ledger, run: Run) -> None:
    staged_date(ledger, run, FEB_23)
    staged_date(ledger, run, FEB_24)
    assert ledger.dates.move_dates(run.id, DAYS, expect=DateState.STAGED, to=DateState.PUBLISHED) == 2
    assert ledger.dates.move_dates(run.id, [], expect=DateState.STAGED, to=DateState.PUBLISHED) == 0
    assert [row.state for row in ledger.dates.list_dates(run.id)] == [DateState.PUBLISHED] * 2 + [DateState.QUEUED]


def test_dates_are_listed_oldest_first_by_window_state_and_day(ledger: Ledger) -> None:
    run = queued_run(ledger, DAYS[::-1], window=2)
    staged_date(ledger, run, FEB_24)
    assert [row.day for row in ledger.dates.list_dates(run.id)] == list(DAYS)
    assert [row.day for row in ledger.dates.list_dates(run.id, window=0)] == [FEB_24, FEB_25]
    assert [row.day for row in ledger.dates.list_dates(run.id, states=[DateState.STAGED])] == [FEB_24]
    assert [row.day for row in ledger.dates.list_dates(run.id, window=0, days=[FEB_23, FEB_25])] == [FEB_25]
    assert ledger.dates.list_dates(run.id, states=[]) == []


def test_a_date_that_staged_nothing_has_no_file(ledger: Ledger, run: Run) -> None:
    staged_date(ledger, run, FEB_23, checksum="a" * 64)
    file = row_of(ledger, run).staged_file()
    assert (file.day, file.checksum, file.rows) == (FEB_23, "a" * 64, 187)
    with pytest.raises(Exception, match="no file was staged"):
        row_of(ledger, run, FEB_24).staged_file()


# -- checkpoints --------------------------------------------------------------------------------------------------


def checkpointing_runs(ledger: Ledger, job: str = JOB) -> dict[date, str]:
    checkpoints = ledger.checkpoints.list_checkpoints(job, FEB_23, FEB_25)
    return {day: checkpoint.run_id for day, checkpoint in checkpoints.items()}


def test_a_published_date_that_passed_is_checkpointed_with_its_figures(ledger: Ledger, run: Run) -> None:
    published_date(ledger, run, FEB_23, verdict=Verdict.ACCEPTED)
    assert ledger.checkpoints.write(run.id, [FEB_23]) == [FEB_23]
    checkpoint = ledger.checkpoints.list_checkpoints(JOB, FEB_23, FEB_25)[FEB_23]
    assert (checkpoint.run_id, checkpoint.job_version, checkpoint.verdict) == (run.id, "1", Verdict.ACCEPTED)
    assert (checkpoint.expected, checkpoint.matched, checkpoint.rows, checkpoint.source) == (187, 187, 187, "upcoming")
    assert (checkpoint.checksum, checkpoint.inputs) == ("c" * 64, "i" * 64)
    assert ledger.checkpoints.list_checkpoints_of_runs([run]) == [checkpoint]
    assert ledger.checkpoints.list_checkpoints_of_runs([]) == []
    assert ledger.checkpoints.list_expected(JOB, FEB_23, FEB_25) == {FEB_23: (187, run.id)}
    assert state_of(ledger, run, FEB_23) is DateState.CHECKPOINTED


def test_checkpointing_twice_changes_nothing(ledger: Ledger, run: Run) -> None:
    checkpointed_date(ledger, run, FEB_23)
    before = ledger.checkpoints.list_checkpoints(JOB, FEB_23, FEB_25)
    assert ledger.checkpoints.write(run.id, [FEB_23]) == []
    assert ledger.checkpoints.write(run.id, []) == []
    assert ledger.checkpoints.list_checkpoints(JOB, FEB_23, FEB_25) == before


@pytest.mark.parametrize("reach", [claimed_date, staged_date, failed_date, blocked_date])
def test_an_unpublished_date_is_never_checkpointed(ledger: Ledger, run: Run, reach: Reach) -> None:
    reach(ledger, run, FEB_23)
    assert ledger.checkpoints.write(run.id, DAYS) == []
    assert checkpointing_runs(ledger) == {}


@pytest.mark.parametrize("verdict", [None, *(verdict for verdict in Verdict if not verdict.is_passing)])
def test_a_date_that_did_not_pass_is_never_checkpointed(ledger: Ledger, run: Run, verdict: Verdict | None) -> None:
    published_date(ledger, run, FEB_23, verdict=verdict)
    assert ledger.checkpoints.write(run.id, [FEB_23]) == []
    assert checkpointing_runs(ledger) == {}


def test_a_rebuilt_date_has_the_checkpoint_of_its_latest_run(ledger: Ledger) -> None:
    first = queued_run(ledger)
    checkpointed_date(ledger, first, FEB_23)
    checkpointed_date(ledger, first, FEB_24)
    end_run(ledger, first)
    second = queued_run(ledger)
    checkpointed_date(ledger, second, FEB_23)
    assert checkpointing_runs(ledger) == {FEB_23: second.id, FEB_24: first.id}


def test_checkpoints_belong_to_a_job_and_a_range(ledger: Ledger) -> None:
    run, other = queued_run(ledger), queued_run(ledger, job="teams")
    checkpointed_date(ledger, run, FEB_23)
    checkpointed_date(ledger, other, FEB_24)
    assert (checkpointing_runs(ledger), checkpointing_runs(ledger, "teams")) == ({FEB_23: run.id}, {FEB_24: other.id})
    assert ledger.checkpoints.list_checkpoints(JOB, FEB_24, FEB_25) == {}


def test_gates_that_checkpoint_at_once_prove_a_date_once(ledger: Ledger, run: Run) -> None:
    published_date(ledger, run, FEB_23)
    results = at_once(4, lambda _: ledger.checkpoints.write(run.id, [FEB_23]))
    assert sorted(results) == [[], [], [], [FEB_23]]


def test_what_a_run_was_billed_is_the_sum_of_its_plan_its_tasks_and_its_gates(ledger: Ledger) -> None:
    plan, date_of_task, gate = (Usage(bytes_billed=n, slot_millis=2 * n) for n in (2**40, 100, 10))
    run = ledger.runs.open_run(new_run(usage=plan))
    other = queued_run(ledger, job="teams")
    assert ledger.runs.sum_usage([run.id, other.id]) == {run.id: plan}

    ledger.runs.move_run(run.id, expect=[RunState.PLANNED], to=RunState.RUNNING)
    ledger.windows.open_windows(run.id, in_flight=1)
    for day in (FEB_23, FEB_24):
        claimed = claim_date(ledger, run, day, owner="worker")
        assert claimed is not None
        columns = usage_values(date_of_task, before=claimed)
        assert ledger.claims.release_dates(run.id, {day: (DateState.STAGED, columns)}, owner="worker") == {day}
    assert ledger.runs.sum_usage([run.id]) == {run.id: plan + date_of_task + date_of_task}

    for to in (WindowState.OPEN, WindowState.CLOSED):
        assert claim_window(ledger, run) is not None
        assert ledger.windows.release_window(run.id, 0, "gate", to=to, usage=gate)
    assert not ledger.windows.release_window(run.id, 0, "gate", to=WindowState.CLOSED, usage=gate)
    total = plan + date_of_task + date_of_task + gate + gate
    assert ledger.runs.sum_usage([run.id, other.id, "no run"]) == {run.id: total}
    assert ledger.runs.sum_usage([]) == {}


def quick_of(ledger: Ledger) -> dict[date, str | None]:
    checkpoints = ledger.checkpoints.list_checkpoints(JOB, FEB_23, FEB_25)
    return {day: checkpoint.target_quick for day, checkpoint in checkpoints.items()}


def test_a_checkpoint_records_the_quick_fingerprint_of_its_rows_if_there_is_one(ledger: Ledger, run: Run) -> None:
    for day in (FEB_23, FEB_24):
        published_date(ledger, run, day)
    known = {FEB_23: "q", FEB_25: "of a date that is not checkpointed"}
    assert sorted(ledger.checkpoints.write(run.id, DAYS, quick_fingerprints=known)) == [FEB_23, FEB_24]
    assert quick_of(ledger) == {FEB_23: "q", FEB_24: None}


def test_what_was_found_unchanged_is_recorded_in_the_checkpoint_that_was_compared(ledger: Ledger, run: Run) -> None:
    for day in (FEB_23, FEB_24):
        checkpointed_date(ledger, run, day)
    before = ledger.checkpoints.list_checkpoints(JOB, FEB_23, FEB_25)
    proof = RenewedProof(job=JOB, day=FEB_23, run_id=run.id, target_quick="q", input_parts={"source": "s"})
    of_another = replace(proof, day=FEB_24, run_id="a run whose checkpoint was replaced")

    for _ in range(2):
        ledger.checkpoints.renew([proof, of_another, replace(proof, day=FEB_25), replace(proof, job="teams")])

    after = ledger.checkpoints.list_checkpoints(JOB, FEB_23, FEB_25)
    assert after == before | {FEB_23: replace(before[FEB_23], target_quick="q", input_parts={"source": "s"})}
    ledger.checkpoints.renew([RenewedProof(job=JOB, day=FEB_23, run_id=run.id, target_quick="r")])
    assert ledger.checkpoints.list_checkpoints(JOB, FEB_23, FEB_23)[FEB_23].input_parts == {"source": "s"}
    assert quick_of(ledger) == {FEB_23: "r", FEB_24: None}
    ledger.checkpoints.renew([])


def test_verdicts_are_recorded_on_staged_dates_only(ledger: Ledger, run: Run) -> None:
    staged_date(ledger, run, FEB_23)
    note = {"verdict": "complete", "reason": "187 of 187", "matched": 187}
    ledger.dates.record_verdicts(run.id, {FEB_23: note, FEB_24: note})
    assert row_of(ledger, run, FEB_23).verdict is Verdict.COMPLETE
    assert row_of(ledger, run, FEB_24).verdict is None


@pytest.mark.parametrize(
    ("error", "stored"),
    [
        pytest.param("no such file: \udcff", r"no such file: \udcff", id="not-utf8"),
        pytest.param("a\0b", r"a\x00b", id="nul"),
        pytest.param("\x1b[31m é 中文 👩🏽‍🚀\n", "\x1b[31m é 中文 👩🏽‍🚀\n", id="anything-else"),
    ],
)
def test_an_error_of_any_text_is_recorded(ledger: Ledger, run: Run, error: str, stored: str) -> None:
    ledger.dates.fail_remaining_dates(run.id, "ProcessFailed", error)

    assert row_of(ledger, run, FEB_23).error == stored
    assert row_of(ledger, run, FEB_23).reason == f"ProcessFailed: {stored}"


def test_the_latest_outcome_of_each_date_is_known(ledger: Ledger) -> None:
    first = queued_run(ledger)
    blocked_date(ledger, first, FEB_23)
    failed_date(ledger, first, FEB_24)
    end_run(ledger, first)
    second = queued_run(ledger)
    checkpointed_date(ledger, second, FEB_23)
    claimed_date(ledger, second, FEB_24)
    ends = {day: (row.run_id, row.state) for day, row in ledger.dates.latest_date_outcomes(JOB, FEB_23, FEB_25).items()}
    assert ends == {FEB_23: (second.id, DateState.CHECKPOINTED), FEB_24: (first.id, DateState.FAILED)}


# -- time ---------------------------------------------------------------------------------------------------------


def test_timestamps_come_back_aware_and_in_utc(ledger: Ledger) -> None:
    before = utcnow()
    run = queued_run(ledger)
    checkpointed_date(ledger, run, FEB_23)
    row, opened = row_of(ledger, run), ledger.runs.get_run(run.id)
    checkpoint = ledger.checkpoints.list_checkpoints(JOB, FEB_23, FEB_23)[FEB_23]
    stamps = [opened.created_at, opened.started_at, row.queued_at, row.started_at, row.ended_at]
    stamps.append(checkpoint.checkpointed_at)
    assert {stamp.utcoffset() for stamp in stamps if stamp} == {timedelta(0)}
    assert all(stamp is not None and before <= stamp <= utcnow() for stamp in stamps)


def test_a_timestamp_of_another_zone_is_the_same_moment(ledger: Ledger, run: Run) -> None:
    lease = datetime(2023, 2, 23, 12, tzinfo=timezone(timedelta(hours=-5)))
    claim_date(ledger, run, until=lease)
    assert row_of(ledger, run).lease_until == datetime(2023, 2, 23, 17, tzinfo=UTC)


def test_a_timestamp_without_a_zone_is_refused(ledger: Ledger, run: Run) -> None:
    naive = datetime(2023, 2, 23)  # noqa: DTZ001 - the one to refuse
    with pytest.raises(StatementError, match="without a zone"):
        claim_date(ledger, run, until=naive)
    assert state_of(ledger, run, FEB_23) is DateState.QUEUED


def test_the_last_activity_is_known_unless_a_date_is_being_processed(ledger: Ledger) -> None:
    run = running_run(ledger)
    assert ledger.dates.last_activity(run.id) is None
    ledger.windows.open_windows(run.id, in_flight=1)
    queued = ledger.dates.last_activity(run.id)
    assert queued is not None
    assert queued.utcoffset() == timedelta(0)
    claimed_date(ledger, run, FEB_23)
    assert ledger.dates.last_activity(run.id) is None


# -- alerts -------------------------------------------------------------------------------------------------------


def test_alerts_of_one_key_are_recorded_once(ledger: Ledger) -> None:
    alert = NewAlert(
        key="run-blocked R", kind="run-blocked", title="2 dates blocked", lines=["..."], job=JOB, run_id="R"
    )

    written = at_once(4, lambda _: ledger.alerts.record_alert(alert))

    assert sorted(written) == [False, False, False, True]
    assert not ledger.alerts.record_alert(alert)


def recorded(ledger: Ledger, *keys: str, kind: str = "audit") -> list[str]:
    """The ids of alerts that are pending, in the order of the keys."""
    ledger.alerts.record_alerts([NewAlert(key=key, kind=kind, title=key, lines=["..."]) for key in keys])
    return [alert.id for key in keys if (alert := ledger.alerts.get_alert(key)) is not None]


class Terminated(BaseException):
    """Raised by the signal handler."""


def test_a_signal_in_a_transaction_waits_for_its_end_and_leaves_no_lock(ledger: Ledger, run: Run) -> None:
    claimed_date(ledger, run, FEB_23, owner="gone")

    def is_dead(owner: str) -> bool:  # called in the middle of the transaction
        signal.raise_signal(signal.SIGTERM)
        return True

    with answering(signal.SIGTERM, by=Terminated), pytest.raises(Terminated) as raised:
        claim_date(ledger, run, owner="me", is_dead=is_dead)
    assert raised.value.__traceback__ is not None  # whose frames hold whatever was left open
    assert move_processing(ledger, run, DateState.QUEUED, owner="me")


def claimed_alerts(ledger: Ledger, owner: str = "me", lease: timedelta = LEASE, **more: Any) -> list[str]:
    alerts = ledger.alerts.claim_alerts(owner, utcnow() + lease, **{"is_dead": everyone_lives, "limit": 10, **more})
    return sorted(alert.key for alert in alerts)


def test_of_alerts_recorded_together_only_new_keys_are_recorded(ledger: Ledger) -> None:
    recorded(ledger, "a")
    new = [NewAlert(key=key, kind="audit", title=key, lines=["..."]) for key in ("a", "b")]

    assert [alert.key for alert in ledger.alerts.record_alerts(new)] == ["b"]
    assert [alert.key for alert in ledger.alerts.list_latest_alerts(10)] == ["b", "a"]
    assert ledger.alerts.get_alert("c") is None


def test_concurrent_senders_never_claim_the_same_alert(ledger: Ledger) -> None:
    keys = [f"alert {n}" for n in range(6)]
    recorded(ledger, *keys)

    claims = at_once(4, lambda n: claimed_alerts(ledger, f"sender {n}", limit=2))

    assert sorted(key for claim in claims for key in claim) == keys[: sum(len(claim) for claim in claims)]
    assert max(len(claim) for claim in claims) == 2
    assert sum(len(claim) for claim in claims) == 6


def test_an_alert_whose_sender_died_or_took_too_long_is_claimed_again(ledger: Ledger) -> None:
    recorded(ledger, "a")
    assert claimed_alerts(ledger, "first") == ["a"]
    assert claimed_alerts(ledger, "second") == []
    assert claimed_alerts(ledger, "second", is_dead=everyone_is_dead, lease=EXPIRED) == ["a"]
    assert claimed_alerts(ledger, "third") == ["a"]


def test_only_the_sender_with_the_lease_settles_an_alert(ledger: Ledger) -> None:
    (alert_id,) = recorded(ledger, "a")
    claimed_alerts(ledger, "mine")
    assert not ledger.alerts.mark_sent(alert_id, "another", ["x"])
    assert not ledger.alerts.mark_failed(alert_id, "another", "...", delivered=[], again_at=None)
    assert ledger.alerts.mark_sent(alert_id, "mine", ["x", "y"])
    assert not ledger.alerts.mark_failed(alert_id, "mine", "...", delivered=[], again_at=None)
    alert = ledger.alerts.get_alert("a")
    assert alert is not None
    assert (alert.state, alert.attempts, alert.delivered) == ("sent", 1, ("x", "y"))
    assert alert.sent_at is not None
    assert claimed_alerts(ledger, is_dead=everyone_is_dead) == []


def test_a_failed_alert_is_retried_at_the_given_time_or_abandoned(ledger: Ledger) -> None:
    (alert_id,) = recorded(ledger, "a")
    later = utcnow() + timedelta(minutes=5)
    claimed_alerts(ledger)
    assert ledger.alerts.mark_failed(alert_id, "me", "answered 500", delivered=["x"], again_at=later)
    assert claimed_alerts(ledger) == []
    (retried,) = ledger.alerts.claim_alerts("me", soon(), is_dead=everyone_lives, limit=1, now=later)
    assert (retried.attempts, retried.error, retried.delivered) == (1, "answered 500", ("x",))
    assert ledger.alerts.mark_failed(alert_id, "me", "answered 500", delivered=["x"], again_at=None)
    assert ledger.gauges.alert_counts(alert_moment(ledger, "a")) == {("failed",): 1}
    assert ledger.gauges.alert_counts(soon()) == {}
    assert claimed_alerts(ledger, now=later + timedelta(days=1)) == []


def alert_moment(ledger: Ledger, key: str) -> datetime:
    alert = ledger.alerts.get_alert(key)
    assert alert is not None
    return alert.created_at


def test_only_old_alerts_that_are_not_pending_are_deleted(ledger: Ledger) -> None:
    (sent,) = recorded(ledger, "sent")
    claimed_alerts(ledger)
    ledger.alerts.mark_sent(sent, "me", ["x"])
    recorded(ledger, "muted", kind="run-finished")
    ledger.alerts.mute_alerts(["audit"])
    recorded(ledger, "sending")
    claimed_alerts(ledger)
    recorded(ledger, "pending")

    assert ledger.alerts.delete_old_alerts(utcnow() - timedelta(days=90)) == 0
    assert ledger.alerts.delete_old_alerts(soon()) == 2
    assert {alert.key for alert in ledger.alerts.list_latest_alerts(10)} == {"sending", "pending"}


def test_overdue_and_muted_alerts_are_set_aside_unless_they_are_being_sent(ledger: Ledger) -> None:
    recorded(ledger, "sending")
    claimed_alerts(ledger)
    recorded(ledger, "old")
    moment = utcnow()
    recorded(ledger, "wanted")
    recorded(ledger, "unwanted", kind="run-finished")
    assert ledger.alerts.mute_alerts(["audit"]) == 1
    assert ledger.alerts.fail_overdue_alerts(moment, "too late") == 1
    states = {alert.key: alert.state for alert in ledger.alerts.list_latest_alerts(10)}
    assert states == {"sending": "sending", "old": "failed", "wanted": "pending", "unwanted": "muted"}


def test_a_run_is_marked_as_reported_once_and_only_after_its_end(ledger: Ledger, run: Run) -> None:
    assert not ledger.runs.mark_reported(run.id)
    end_run(ledger, run)
    assert [unreported.id for unreported in ledger.runs.list_unreported_runs()] == [run.id]
    assert sorted(at_once(4, lambda _: ledger.runs.mark_reported(run.id))) == [False, False, False, True]
    assert ledger.runs.list_unreported_runs() == []


# -- gauges -------------------------------------------------------------------------------------------------------


def test_the_gauges_count_runs_dates_and_checkpoints(ledger: Ledger) -> None:
    before = utcnow()
    ledger.gauges.check_readable()
    done = queued_run(ledger)
    checkpointed_date(ledger, done, FEB_23)
    blocked_date(ledger, done, FEB_24)
    end_run(ledger, done)
    active = queued_run(ledger, [FEB_25], job="teams")

    assert ledger.gauges.checkpoint_counts() == {(JOB, "complete"): 1}
    ended = ["blocked", "checkpointed", "queued"]
    assert ledger.gauges.ended_date_counts(before) == {(JOB, state): 1 for state in ended}
    assert ledger.gauges.ended_date_counts(utcnow()) == {}
    second = queued_run(ledger)
    checkpointed_date(ledger, second, FEB_23)
    end_run(ledger, second)
    assert ledger.gauges.built_counts_by_source(before) == {(JOB, "upcoming"): 1}  # built twice, one date
    assert ledger.gauges.active_run_counts() == {("teams", "running"): 1}
    assert ledger.gauges.oldest_waiting_since() == {"teams": active.created_at}
    assert [run.id for run in ledger.gauges.last_ended_runs()] == [second.id]
    assert sorted(metrics.state.value for metrics in ledger.gauges.list_date_metrics(done.id)) == ended
    assert ledger.gauges.flagged_counts() == ledger.gauges.maintenance_last_done() == {}
    assert ledger.gauges.last_cleanups() == {}


# -- history ------------------------------------------------------------------------------------------------------

ALWAYS = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))


def test_runs_are_listed_with_their_dates_newest_first(ledger: Ledger) -> None:
    first = queued_run(ledger, [FEB_23, FEB_24])
    checkpointed_date(ledger, first, FEB_24)
    blocked_date(ledger, first, FEB_23)
    assert ledger.runs.move_run(first.id, expect=[RunState.RUNNING], to=RunState.PARTIAL)
    second = queued_run(ledger, [FEB_25], job="others")

    listed = ledger.history.list_runs_with_dates(*ALWAYS)

    assert [past.run for past in listed] == [ledger.runs.get_run(run.id) for run in (second, first)]
    assert [list(past.dates) for past in listed] == [ledger.dates.list_dates(run.id) for run in (second, first)]
    assert [past.run.id for past in ledger.history.list_runs_with_dates(*ALWAYS, job="others")] == [second.id]
    assert [past.run.id for past in ledger.history.list_ended_runs_with_dates(*ALWAYS)] == [first.id]
    assert ledger.history.list_ended_runs(*ALWAYS) == [ledger.runs.get_run(first.id)]
    assert ledger.history.list_runs_with_dates(*ALWAYS, job="nobody's") == []


def test_a_run_belongs_to_the_span_in_which_it_ended_or_else_was_opened(ledger: Ledger) -> None:
    opened = running_run(ledger, [FEB_23])
    ended = queued_run(ledger, [FEB_24])
    end_run(ledger, ended)
    end = ledger.runs.get_run(ended.id).finished_at
    assert end is not None
    tick = timedelta(microseconds=1)

    def between(start: datetime, until: datetime) -> set[str]:
        return {past.run.id for past in ledger.history.list_runs_with_dates(start, until)}

    assert between(opened.created_at, opened.created_at + tick) == {opened.id}
    assert between(end, end + tick) == {ended.id}
    assert between(end - tick, end) == set()
    assert between(ended.created_at, ended.created_at + tick) == set()  # it has ended: later
    assert {past.run.id for past in ledger.history.list_ended_runs_with_dates(end, end + tick)} == {ended.id}
    assert ledger.history.list_ended_runs_with_dates(end - tick, end) == []
    assert ledger.history.list_ended_runs(end - tick, end) == []
    assert ledger.history.list_ended_runs(end, end + tick) == [ledger.runs.get_run(ended.id)]


@pytest.mark.parametrize("count", [1, DATES_PER_QUERY, DATES_PER_QUERY + 1])
def test_the_dates_of_a_run_are_read_in_chunks_and_each_once(ledger: Ledger, count: int) -> None:
    days = [FEB_23 + timedelta(days=n) for n in range(count)]
    run = ledger.runs.open_run(new_run(days[::-1]))

    assert list(ledger.history.iter_dates(run.id)) == ledger.dates.list_dates(run.id)
    assert [row.day for row in ledger.history.iter_dates(run.id)] == days


def test_the_sources_of_a_date_come_back_in_the_order_in_which_they_were_written(ledger: Ledger) -> None:
    run = queued_run(ledger, [FEB_23])
    claimed_date(ledger, run, FEB_23)
    coverage = {"zebra": 1, "ant": 3, "moth": 2}
    assert ledger.dates.move_date(run.id, FEB_23, expect=DateState.PROCESSING, to=DateState.FAILED, found=coverage)

    (past,) = ledger.history.list_runs_with_dates(*ALWAYS)

    assert list(past.dates[0].found or {}) == ["zebra", "ant", "moth"]


# -- actions -----------------------------------------------------------------------------------------------------


def test_a_launch_is_an_action_with_its_author_and_reason(ledger: Ledger) -> None:
    run = ledger.runs.open_run(new_run([FEB_23], requested_by="ada", reason="the feed was late"))
    (action,) = ledger.actions.list_actions(run.id)
    assert (action.action, action.by, action.reason) == (RunAction.LAUNCHED, "ada", "the feed was late")
    assert ledger.runs.get_run(run.id).reason == "the feed was late"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE actions SET reason = 'another one'",
        "DELETE FROM actions",
        "UPDATE runs SET requested_by = 'nobody'",
        "UPDATE runs SET options = '{}'",
        "UPDATE runs SET reason = 'another one'",
        "DELETE FROM runs",
    ],
)
def test_the_database_refuses_to_change_actions_and_launches(ledger: Ledger, ledger_url: str, statement: str) -> None:
    run = ledger.runs.open_run(new_run([FEB_23], requested_by="ada", reason="the feed was late"))
    engine = make_engine(ledger_url)
    with pytest.raises(IntegrityError, match="never changed"), engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()
    assert [action.by for action in ledger.actions.list_actions(run.id)] == ["ada"]
    assert ledger.runs.get_run(run.id).requested_by == "ada"


def count_exits(_: object, url: str, run_id: str) -> tuple[int, str]:
    """How often a timer's signal ended queries, each at another moment, and the state that is read afterwards."""
    ledger, exits = open_ledger(url, create=False), 0
    with answering(signal.SIGALRM, by=SystemExit):
        for microseconds in range(100, 1700, 4):
            try:
                signal.setitimer(signal.ITIMER_REAL, microseconds / 1e6, 0.1)  # again, should it be lost
                for _ in range(20):
                    ledger.runs.get_run(run_id)
                signal.pause()
            except SystemExit:
                exits += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    return exits, ledger.runs.get_run(run_id).state.value


def test_a_process_exits_on_a_signal_at_any_moment_of_a_query(ledger: Ledger, ledger_url: str) -> None:
    ((exits, state),) = race((count_exits, ledger_url, running_run(ledger).id))
    assert exits == 400
    assert state == "running"


def undo_of(ledger: Ledger, owner: str, run_id: str, lost: Lost | None = None) -> int:
    is_dead = everyone_lives if lost is None else lost.is_dead
    after = ledger.runs.get_run(run_id).undo_generation
    return ledger.checkpoints.begin_undo(run_id, DAYS, owner, soon(), after=after, is_dead=is_dead)


def undoable(ledger: Ledger) -> Run:
    """An ended run that has checkpointed its dates."""
    run = queued_run(ledger)
    for day in DAYS:
        published_date(ledger, run, day)
    ledger.checkpoints.write(run.id, DAYS)
    end_run(ledger, run)
    return run


def checkpointed_by(ledger: Ledger) -> dict[date, str]:
    found = ledger.checkpoints.list_checkpoints(JOB, DAYS[0], DAYS[-1])
    return {day: checkpoint.run_id for day, checkpoint in found.items()}


def test_one_process_at_a_time_undoes_a_run(ledger: Ledger) -> None:
    run = undoable(ledger)
    undo_of(ledger, "first", run.id)
    with pytest.raises(UndoInProgress, match=f"run {run.id} is being undone by first"):
        undo_of(ledger, "second", run.id)


@pytest.mark.parametrize("planned", ["before the other begins", "while the other is at work"])
@pytest.mark.parametrize(
    ("is_finished", "message"), [(True, "was undone meanwhile by first"), (False, "has ended meanwhile")]
)
def test_an_undo_that_was_planned_before_the_end_of_another_reserves_nothing(
    ledger: Ledger, is_finished: bool, message: str, planned: str
) -> None:
    run = undoable(ledger)
    generation = undo_of(ledger, "first", run.id)
    after = 0 if planned == "before the other begins" else ledger.runs.get_run(run.id).undo_generation
    if is_finished:
        ledger.checkpoints.finish_undo(run.id, "first", generation)
    else:
        ledger.checkpoints.release_undo(run.id, generation)

    with pytest.raises(UndoInProgress, match=message):
        ledger.checkpoints.begin_undo(run.id, DAYS, "second", soon(), after=after, is_dead=everyone_lives)

    assert ledger.runs.find_conflicting_runs(run.job, DAYS) == {}


def test_an_undo_that_was_taken_over_changes_nothing_any_more(ledger: Ledger, lost: Lost) -> None:
    run = undoable(ledger)
    until = utcnow() + lost.lease
    old = ledger.checkpoints.begin_undo(run.id, DAYS, "old", until, after=0, is_dead=everyone_lives)
    new = undo_of(ledger, "new", run.id, lost)
    assert new > old
    for end in (
        lambda: ledger.checkpoints.release_undo(run.id, old),
        lambda: ledger.checkpoints.finish_undo(run.id, "old", old),
        lambda: ledger.checkpoints.withdraw(run.id, DAYS, "old", old, soon()),
        lambda: ledger.checkpoints.reinstate(run.id, DAYS, DAYS, DAYS, old),
    ):
        with pytest.raises(LeaseTakenOver, match=f"taken over the undo of run {run.id}"):
            end()
    assert ledger.runs.get_run(run.id).undone_at is None
    assert ledger.runs.find_conflicting_runs(run.job, DAYS).keys() == {run.id}
    assert set(checkpointed_by(ledger)) == set(DAYS)
    assert ledger.checkpoints.list_undone(JOB, DAYS[0], DAYS[-1]) == {}

    ledger.checkpoints.finish_undo(run.id, "new", new)
    ended = ledger.runs.get_run(run.id)
    assert (ended.undone_by, ended.undo_owner) == ("new", None)
    assert ledger.runs.find_conflicting_runs(run.job, DAYS) == {}


def test_an_undo_gives_back_checkpoints_date_by_date_and_renews_its_lease(ledger: Ledger) -> None:
    first, second = undoable(ledger), undoable(ledger)
    generation = undo_of(ledger, "me", second.id)
    assert checkpointed_by(ledger) == dict.fromkeys(DAYS, second.id)

    until = utcnow() + timedelta(hours=1)
    ledger.checkpoints.withdraw(second.id, [FEB_23], "ada", generation, until)
    assert ledger.runs.get_run(second.id).undo_until == until
    assert checkpointed_by(ledger) == {FEB_24: second.id, FEB_25: second.id}
    ledger.checkpoints.reinstate(second.id, [FEB_23], [FEB_23], [FEB_23], generation)

    assert checkpointed_by(ledger) == {FEB_23: first.id, FEB_24: second.id, FEB_25: second.id}
    assert ledger.runs.find_conflicting_runs(JOB, DAYS) == {second.id: [FEB_24, FEB_25]}
    undone = row_of(ledger, second, FEB_23)
    assert (undone.undone_by, undone.undo_restored) == ("ada", True)
    assert row_of(ledger, second, FEB_24).undone_at is None


def test_a_date_is_undone_until_it_is_checkpointed_again(ledger: Ledger) -> None:
    run = undoable(ledger)
    generation = undo_of(ledger, "me", run.id)
    ledger.checkpoints.withdraw(run.id, [FEB_23, FEB_24], "ada", generation, soon())
    ledger.checkpoints.reinstate(run.id, [FEB_23, FEB_24], [FEB_23], [], generation)
    ledger.checkpoints.release_undo(run.id, generation)

    undone = ledger.checkpoints.list_undone(JOB, FEB_23, FEB_25)
    assert {day: (one.run_id, one.by, one.restored) for day, one in undone.items()} == {
        FEB_23: (run.id, "ada", True),
        FEB_24: (run.id, "ada", False),
    }
    assert ledger.dates.get_run_summary(run.id).undone == tuple(undone.values())
    assert list(ledger.checkpoints.list_undone(JOB, FEB_24, FEB_25)) == [FEB_24]
    assert ledger.checkpoints.list_undone("another job", FEB_23, FEB_25) == {}

    blocked = queued_run(ledger, [FEB_23, FEB_24])
    blocked_date(ledger, blocked, FEB_23)
    checkpointed_date(ledger, blocked, FEB_24)
    assert list(ledger.checkpoints.list_undone(JOB, FEB_23, FEB_25)) == [FEB_23]


def test_a_run_undone_twice_on_a_date_shows_the_latest_undo(ledger: Ledger) -> None:
    for by in ("ada", "ben"):
        run = undoable(ledger)
        generation = undo_of(ledger, "me", run.id)
        ledger.checkpoints.withdraw(run.id, DAYS, by, generation, soon())
        ledger.checkpoints.finish_undo(run.id, by, generation)
    assert {one.by for one in ledger.checkpoints.list_undone(JOB, FEB_23, FEB_25).values()} == {"ben"}
