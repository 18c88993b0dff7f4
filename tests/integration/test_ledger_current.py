"""What is true now, by the ledger: a date is outstanding until it is complete or skipped, whatever other runs do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event, insert

from gated_backfill.common.ledger import DateState, Ledger, NewDate, Run, RunState
from gated_backfill.common.ledger.connections import make_engine
from gated_backfill.common.ledger.states import OutstandingState
from gated_backfill.common.ledger.stores.current import CurrentStateStore, DateClaim
from gated_backfill.common.ledger.tables import checkpoints, run_dates, runs
from gated_backfill.common.process.clock import utcnow
from tests.builders import (
    FEB_23,
    FEB_24,
    FEB_25,
    JOB,
    NOON,
    blocked_date,
    checkpointed_date,
    claimed_date,
    failed_date,
    new_run,
    queued_run,
    staged_date,
    undo_begun,
)

BLOCKED, HELD, FAILED = OutstandingState
RUN_NUMBERS = count()


def ended(ledger: Ledger, run: Run) -> Run:
    """The run has ended, and released its dates."""
    assert ledger.runs.move_run(run.id, expect=[RunState.RUNNING], to=RunState.PARTIAL)
    return run


def a_run_with(ledger: Ledger, state: str, *, job: str = JOB) -> Run:
    """An ended run of one date, which ended in that state."""
    if state == "skipped":
        skipped = NewDate(day=FEB_23, state=DateState.SKIPPED, columns={"verdict": "skipped", "reason": "bootstrap"})
        run = ledger.runs.open_run(new_run([], job=job, dates=(skipped,)))
        assert ledger.runs.move_run(run.id, expect=[RunState.PLANNED], to=RunState.RUNNING)
        return ended(ledger, run)
    run = queued_run(ledger, [FEB_23], job=job)
    if state == "held":
        staged_date(ledger, run, FEB_23)
        loss = "would lose 18 of 187 expected entities"
        held = {"verdict": "blocked", "loss": loss, "reason": f"{loss}: ann; 169 of 187"}
        assert ledger.dates.move_date(run.id, FEB_23, expect=DateState.STAGED, to=DateState.BLOCKED, **held)
    elif state == "lossy":
        staged_date(ledger, run, FEB_23)
        reason = {"loss": "would lose 180 of 187", "reason": "7 of 187 expected entities, below 90 %"}
        assert ledger.dates.move_date(run.id, FEB_23, expect=DateState.STAGED, to=DateState.BLOCKED, **reason)
    else:
        {"blocked": blocked_date, "failed": failed_date, "checkpointed": checkpointed_date}[state](ledger, run, FEB_23)
    return ended(ledger, run)


def undone(ledger: Ledger, run: Run) -> None:
    """The run is taken back, and the checkpoints that it replaced are valid again."""
    generation = undo_begun(ledger, run.id, [FEB_23])
    earlier = ledger.checkpoints.list_replaced_checkpoints(run.id)
    ledger.checkpoints.withdraw(run.id, [FEB_23], "ada", generation, utcnow() + timedelta(minutes=1))
    ledger.checkpoints.reinstate(run.id, [FEB_23], [FEB_23], list(earlier), generation)
    ledger.checkpoints.finish_undo(run.id, "ada", generation)


def outstanding(ledger: Ledger) -> list[tuple[OutstandingState, bool]]:
    """The states of the date, and whether an earlier checkpoint stands."""
    counts = ledger.current.count_outstanding(job=JOB)
    assert all((one.job, one.dates) == (JOB, 1) for one in counts)
    listed = [(one.state, one.has_checkpoint) for one in ledger.current.list_outstanding(job=JOB)]
    assert listed == [(one.state, one.has_checkpoint) for one in counts]
    return listed


@pytest.mark.parametrize(
    ("history", "found"),
    [
        pytest.param(["blocked"], [(BLOCKED, False)], id="blocked"),
        pytest.param(["failed"], [(FAILED, False)], id="failed"),
        pytest.param(["held"], [(HELD, False)], id="rows-of-another-program-would-be-lost"),
        pytest.param(["lossy"], [(BLOCKED, False)], id="a-loss-is-not-its-only-defect"),
        pytest.param(["checkpointed"], [], id="complete"),
        pytest.param(["skipped"], [], id="skipped"),
        pytest.param(["blocked", "checkpointed"], [], id="completed-since"),
        pytest.param(["blocked", "skipped"], [], id="skipped-since"),
        pytest.param(["blocked", "failed"], [(FAILED, False)], id="its-last-state"),
        pytest.param(["failed", "failed", "blocked"], [(BLOCKED, False)], id="counted-once"),
        pytest.param(["failed"] * 3 + ["checkpointed"], [], id="rehearsals-before-it-was-complete"),
        pytest.param(["checkpointed", "held"], [(HELD, True)], id="a-rebuild-that-is-held"),
        pytest.param(["checkpointed", "failed"], [(FAILED, True)], id="a-rebuild-that-failed"),
        pytest.param(["checkpointed", "held", "checkpointed"], [], id="a-rebuild-that-passed-since"),
        pytest.param(["blocked", "checkpointed", "undo"], [(BLOCKED, False)], id="its-completion-was-undone"),
        pytest.param(["checkpointed", "checkpointed", "undo"], [], id="back-to-an-earlier-checkpoint"),
        pytest.param(
            ["checkpointed", "blocked", "checkpointed", "undo"], [(BLOCKED, True)], id="its-rebuild-was-undone"
        ),
    ],
)
def test_the_last_result_of_a_date_counts(
    ledger: Ledger, history: list[str], found: list[tuple[OutstandingState, bool]]
) -> None:
    run = None
    for step in history:
        if step == "undo":
            assert run is not None
            undone(ledger, run)
        else:
            run = a_run_with(ledger, step)
    assert outstanding(ledger) == found


def test_runs_of_other_dates_and_jobs_do_not_complete_a_date(ledger: Ledger) -> None:
    blocked = a_run_with(ledger, "blocked")
    other = queued_run(ledger, [FEB_24, FEB_25])
    checkpointed_date(ledger, other, FEB_24)
    checkpointed_date(ledger, other, FEB_25)
    ended(ledger, other)
    a_run_with(ledger, "checkpointed", job="teams")
    failed = a_run_with(ledger, "failed", job="referees")
    retried = queued_run(ledger, [FEB_23])
    claimed_date(ledger, retried, FEB_23)
    assert outstanding(ledger) == [(BLOCKED, False)]
    assert [(one.job, one.state) for one in ledger.current.count_outstanding()] == [
        (JOB, BLOCKED),
        ("referees", FAILED),
    ]
    assert [(one.job, one.day, one.run_id) for one in ledger.current.list_outstanding()] == [
        (JOB, FEB_23, blocked.id),
        ("referees", FEB_23, failed.id),
    ]
    assert ledger.runs.move_run(retried.id, expect=[RunState.RUNNING], to=RunState.CANCELLED)
    assert outstanding(ledger) == [(BLOCKED, False)]


# -- against a model ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """One result of a date: its place in time is its place in the list."""

    day: int
    state: str
    is_undone: bool = False  #: the date's checkpoint, or the whole run of a date that is not complete
    is_held: bool = False


RESULTS = st.lists(
    st.builds(
        Result,
        day=st.integers(0, 2),
        state=st.sampled_from(["blocked", "failed", "checkpointed", "skipped", "cancelled", "processing"]),
        is_undone=st.booleans(),
        is_held=st.booleans(),
    ),
    max_size=12,
)


def modelled(results: Iterable[Result]) -> dict[tuple[OutstandingState, bool], int]:
    """Outstanding dates, by walking through the results of each."""
    by_day: dict[int, list[Result]] = {}
    for result in results:
        by_day.setdefault(result.day, []).append(result)
    counted: dict[tuple[OutstandingState, bool], int] = {}
    for of_day in by_day.values():
        checkpointed = any(one.state == "checkpointed" and not one.is_undone for one in of_day)
        last = None
        for one in of_day:
            if one.state == "skipped" or (one.state == "checkpointed" and not one.is_undone):
                last = None
            elif one.state in ("blocked", "failed") and not (one.is_undone and checkpointed):
                last = one
        if last is not None:
            state = HELD if last.is_held and last.state == "blocked" else OutstandingState(last.state)
            counted[state, checkpointed] = counted.get((state, checkpointed), 0) + 1
    return counted


@pytest.fixture
def engine(ledger_url: str) -> Iterator[Engine]:
    """The ledger's database, to write results without the runs that made them."""
    made = make_engine(ledger_url)
    yield made
    made.dispose()


def store(engine: Engine, results: list[Result]) -> str:
    """Write the results, each as a run of its own, of a job that has no others."""
    job = f"job-{next(RUN_NUMBERS)}"
    with engine.begin() as connection:
        for number, result in enumerate(results):
            at = NOON + timedelta(minutes=number)
            undone_at = at if result.is_undone else None
            is_incomplete = result.state in ("blocked", "failed")
            run = {"id": f"{job}-{number}", "job": job, "job_version": "1", "state": "partial", "options": {}}
            run |= {"requested": "", "requested_by": "", "first_date": FEB_23, "last_date": FEB_25}
            run |= {"created_at": at, "undone_at": undone_at if is_incomplete else None}
            connection.execute(insert(runs), run)
            day = FEB_23 + timedelta(days=result.day)
            row: dict[str, Any] = {"run_id": run["id"], "day": day, "job": job, "state": result.state, "active": False}
            row |= {"ended_at": None if result.state == "processing" else at}
            row |= {"undone_at": undone_at if result.state == "checkpointed" else None}
            row |= {"loss": "less" if result.is_held else None, "reason": "less; 1 of 2" if result.is_held else "why"}
            connection.execute(insert(run_dates), row)
        for day in {one.day for one in results if one.state == "checkpointed" and not one.is_undone}:
            proof = {"job": job, "day": FEB_23 + timedelta(days=day), "run_id": f"{job}-0", "job_version": "1"}
            proof |= {"verdict": "complete", "reason": "", "expected": 1, "matched": 1, "rows": 1, "source": ""}
            proof |= {"checksum": "", "inputs": "", "checkpointed_at": NOON}
            connection.execute(insert(checkpoints), proof)
    return job


@given(results=RESULTS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_query_counts_as_a_walk_through_all_results(ledger: Ledger, engine: Engine, results: list[Result]) -> None:
    job = store(engine, results)
    found = {(one.state, one.has_checkpoint): one.dates for one in ledger.current.count_outstanding(job=job)}
    assert found == modelled(results)


def test_the_count_is_found_through_the_index_of_incomplete_dates(sqlite_url: str) -> None:
    statements: list[tuple[str, Any]] = []
    engine = make_engine(sqlite_url)
    event.listen(engine, "before_cursor_execute", lambda *call: statements.append((call[2], call[3])))
    CurrentStateStore(engine).count_outstanding()
    statement, parameters = statements[-1]
    with engine.connect() as connection:
        plan = " ".join(
            str(row[-1]) for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        )
    engine.dispose()
    assert "SCAN incomplete USING INDEX ix_run_dates_incomplete" in plan
    assert "SCAN later" not in plan


# -- checkpoints ----------------------------------------------------------------------------------------------------


def test_checkpoints_are_counted_by_version_with_the_newest_date(ledger: Ledger) -> None:
    first = queued_run(ledger, [FEB_23, FEB_25])
    checkpointed_date(ledger, first, FEB_23)
    checkpointed_date(ledger, first, FEB_25)
    ended(ledger, first)
    second = queued_run(ledger, [FEB_24], job_version="2")
    checkpointed_date(ledger, second, FEB_24)

    counts = ledger.current.count_by_version(job=JOB)
    assert [(one.job_version, one.dates, one.newest) for one in counts] == [("1", 2, FEB_25), ("2", 1, FEB_24)]
    assert ledger.current.latest_versions() == {JOB: "2"}
    assert ledger.current.count_by_version(job="teams") == []


# -- windows --------------------------------------------------------------------------------------------------------


def test_windows_in_flight_are_listed_with_the_claims_on_them(ledger: Ledger) -> None:
    before = utcnow()
    run = queued_run(ledger, [FEB_23, FEB_24, FEB_25], window=1)
    claimed_date(ledger, run, FEB_24, owner="worker")
    staged_date(ledger, run, FEB_25)
    until = utcnow() + timedelta(minutes=5)
    ledger.windows.claim_window(run.id, 2, "gate", until, is_dead=lambda _: False)

    queued, built, gated = ledger.current.list_windows_in_flight()

    assert (queued.run_id, queued.job, queued.number, queued.run_owner) == (run.id, JOB, 0, None)
    assert (queued.gate, queued.claims, queued.waits_for_gate) == (None, (), False)
    assert [claim.owner for claim in built.claims] == ["worker"]
    assert not built.waits_for_gate
    assert (gated.gate, gated.claims, gated.waits_for_gate) == (DateClaim(owner="gate", until=until), (), True)
    assert all(before < window.moved_at < utcnow() for window in (queued, built, gated))
    assert queued.moved_at < built.moved_at


@pytest.mark.parametrize("state", [RunState.PAUSED, RunState.CANCELLED])
def test_windows_of_a_run_that_is_to_stand_still_are_not_listed(ledger: Ledger, state: RunState) -> None:
    run = queued_run(ledger)
    assert ledger.current.list_windows_in_flight()
    assert ledger.runs.move_run(run.id, expect=[RunState.RUNNING], to=state)
    assert ledger.current.list_windows_in_flight() == []
