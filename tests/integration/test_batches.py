"""Several dates in one task: the same tables, whatever the number, and each date's fate its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import pytest
from billiard import common
from billiard.exceptions import SoftTimeLimitExceeded
from sqlalchemy import event

from gated_backfill.common.ledger import DateState, Ledger, Run, RunState
from gated_backfill.common.model.coverage import Fallback
from gated_backfill.common.model.dates import DateRange
from gated_backfill.common.model.job import Batch
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.identity import process_identity
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from gated_backfill.producer.demo.season import load_season
from gated_backfill.producer.planning.plan import Reprocess
from gated_backfill.worker.dates import process as processing
from gated_backfill.worker.dates.hard_time_limit import handle_hard_time_limit
from gated_backfill.worker.dates.outcomes import NOT_CLAIMED, RetryLater
from gated_backfill.worker.dates.process import process_dates
from gated_backfill.worker.dependencies import Deps
from gated_backfill.worker.inline import InlineDispatcher
from tests.builders import LEASE, answering, claimed_date, everyone_is_dead, everyone_lives, queued_run, staged_date
from tests.lab import Lab, players

DAYS = [date(2023, 2, 20) + timedelta(days=n) for n in range(6)]
TARGET = "probe.probe"
FACTORS = "nba_precompute.player_composite_factors"
AROUND_THE_INCIDENT = DateRange(start=date(2023, 2, 8), through=date(2023, 2, 28))


def open_prepared(lab: Lab, **first: Any) -> tuple[Run, Deps, InlineDispatcher]:
    """A running run over tables in which each date is whole; `first` is how the first source of a date differs."""
    lab.probe_all(DAYS, players(4))
    if first:
        lab.probe("first", **{"names": players(4), **first})
    return lab.opened(DAYS, "probe")


def replace_process(monkeypatch: pytest.MonkeyPatch, process: Callable[[Batch], Any]) -> None:
    """Workers find a job like the probe job, which is processed so."""
    job = replace(find_job("probe"), process=process)
    monkeypatch.setattr(processing, "find_job", lambda name: job)


class Seen:
    """A job like the probe job that remembers which dates were processed together."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[tuple[date, ...]] = []
        original = find_job("probe")

        def process(batch: Batch) -> Any:
            self.batches.append(batch.days)
            return original.process(batch)

        replace_process(monkeypatch, process)


# -- the same tables --


def test_the_published_tables_are_the_same_byte_for_byte_for_every_number_of_dates_a_task(lab: Lab) -> None:
    warehouse = lab.context.warehouse
    assert isinstance(warehouse, LocalWarehouse)
    load_season(warehouse, AROUND_THE_INCIDENT)
    days = AROUND_THE_INCIDENT.days()
    found: dict[int | None, dict[str, bytes]] = {}
    reasons: dict[int | None, list[tuple[Any, ...]]] = {}
    for number in (1, 2, 5, 30, None):
        progress = lab.run(days, dates_per_task=number, window=20, reprocess=Reprocess.ALL)
        rows = lab.ledger.dates.list_dates(progress.run.id)
        reasons[number] = [(one.day, one.state, one.source, one.found, one.matched, one.inputs) for one in rows]
        found[number] = lab.table_bytes(FACTORS)
        lab.drop(FACTORS)
        (lab.home / "dropped-player_composite_factors").rename(lab.home / f"dropped-{number}")
    assert len(found[1]) == 15
    assert all(tables == found[1] for tables in found.values())
    assert all(told == reasons[1] for told in reasons.values())
    assert {source for _, _, source, *_ in reasons[1]} == {"upcoming", "derived", None}


def test_dates_whose_sources_differ_are_processed_apart(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.probe("second", DAYS[1], players(4))
    run, deps, _ = open_prepared(lab, day=DAYS[1], names=players(1))
    job = Seen(monkeypatch)

    process_dates(run.id, DAYS, deps)

    assert sorted(job.batches) == [(DAYS[0], *DAYS[2:]), (DAYS[1],)]
    assert lab.states(run.id) == ["staged"] * 6


def test_dates_are_filled_each_with_what_it_lacks_itself(lab: Lab) -> None:
    for n, day in enumerate(DAYS[:3]):
        lab.probe_all([day], players(4), first=players(4)[n : n + 2])
        lab.probe("second", day, players(4))
    for number in (1, 3):
        lab.run(DAYS[:3], "probe", fallback=Fallback.FILL, dates_per_task=number, reprocess=Reprocess.ALL)
        for n, day in enumerate(DAYS[:3]):
            rows = lab.published(TARGET, day, "day")
            assert [row["name"] for row in rows if row["source"] == "first"] == players(4)[n : n + 2]


# -- each date's fate is its own --


@pytest.mark.parametrize(
    ("spoil", "trick", "error"),
    [
        ("", "raise", "RuntimeError: no luck"),
        ("", "exit:0", "the job ended the process: SystemExit: 0"),
        ("", "exit", "the job ended the process: SystemExit"),
        ("", "stop", "Stop: at once"),
        ("wrong day", None, "rows of other dates"),
        ("no frame", None, "not a DataFrame"),
    ],
)
def test_a_date_that_fails_fails_alone(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, spoil: str, trick: str | None, error: str
) -> None:
    run, deps, _ = open_prepared(lab, day=DAYS[2], spoil=spoil, trick=trick)
    job = Seen(monkeypatch)

    outcomes = process_dates(run.id, DAYS, deps)

    assert [outcome.state for outcome in sorted(outcomes, key=lambda outcome: outcome.day)] == lab.states(run.id)
    assert lab.states(run.id) == ["staged", "staged", "failed", "staged", "staged", "staged"]
    (failed,) = lab.ledger.dates.list_dates(run.id, states=[DateState.FAILED])
    assert error in (failed.error or "")
    assert len(job.batches) == 7  # 6; 3 and 3; 1 and 2; 1 and 1


def test_a_job_that_always_mixes_dates_is_processed_date_by_date(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for n, day in enumerate(DAYS[:3]):
        lab.probe_all([day], players(4, f"on{n}-"), spoil="wrong day" if n == 1 else "")
    run, deps, _ = lab.opened(DAYS[:3], "probe")

    process_dates(run.id, DAYS[:3], deps)

    rows = lab.ledger.dates.list_dates(run.id)
    assert [row.state.value for row in rows] == ["staged", "failed", "staged"]
    assert [row.rows for row in rows] == [4, None, 4]


def test_a_passing_trouble_has_all_tried_again_and_a_lasting_one_fails_only_its_date(lab: Lab) -> None:
    run, deps, _ = open_prepared(lab, day=DAYS[4], trick="transient:9")

    with pytest.raises(RetryLater):
        process_dates(run.id, DAYS, deps)
    assert lab.states(run.id) == ["queued"] * 6

    process_dates(run.id, DAYS, deps, retries=deps.settings.max_retries)
    assert lab.states(run.id) == ["staged"] * 4 + ["failed", "staged"]


def test_time_that_is_up_before_the_work_began_is_no_fault_of_the_dates(lab: Lab) -> None:
    run, deps, _ = open_prepared(lab)
    signals: list[str] = []

    def once(*_: object) -> None:  # in the transaction that claims the dates
        if not signals:
            signals.append("time is up")
            signal.raise_signal(signal.SIGUSR1)

    event.listen(deps.ledger._engine, "begin", once)
    with answering(signal.SIGUSR1, by=SoftTimeLimitExceeded), pytest.raises(RetryLater):
        process_dates(run.id, DAYS, deps)
    assert signals
    assert lab.states(run.id) == ["queued"] * 6

    process_dates(run.id, DAYS, deps, retries=1)
    assert lab.states(run.id) == ["staged"] * 6
    assert {row.deaths for row in lab.ledger.dates.list_dates(run.id)} == {0}


def test_a_task_whose_time_is_up_sends_its_other_dates_alone(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    run, deps, dispatcher = open_prepared(lab, day=DAYS[0], trick="raise")
    dispatcher._sent.clear()
    original = find_job("probe").process

    def process(batch: Batch) -> Any:
        if batch.days == (DAYS[4],):  # innocent, and alone by now: what took so long went before
            raise SoftTimeLimitExceeded
        if DAYS[4] in batch.days:
            raise RuntimeError("together they fail")
        return original(batch)

    replace_process(monkeypatch, process)

    outcomes = process_dates(run.id, DAYS, deps)

    assert lab.states(run.id) == ["failed", "staged", "staged", "staged", "queued", "queued"]
    assert [days for _, _, days in dispatcher._sent] == [(DAYS[4],), (DAYS[5],), ()]  # and the gate, after them
    assert len(outcomes) == 6


def test_of_a_task_that_is_killed_at_its_time_limit_only_a_date_that_was_alone_is_failed(lab: Lab) -> None:
    run, deps, _ = open_prepared(lab)
    ledger = lab.ledger
    assert claim(ledger, run, DAYS[2:4], deps.owner) == DAYS[2:4]

    again = handle_hard_time_limit(run.id, DAYS[1:], ledger, owner=deps.owner, seconds=3)
    assert [row.day for row in again] == DAYS[1:]
    assert [row.deaths for row in again] == [0, 1, 1, 0, 0]

    assert claim(ledger, run, DAYS[2:3], deps.owner) == DAYS[2:3]
    assert handle_hard_time_limit(run.id, DAYS[2:3], ledger, owner=deps.owner, seconds=3) == []
    assert lab.states(run.id) == ["queued", "queued", "failed", "queued", "queued", "queued"]


def test_what_is_not_allowed_fails_all_of_them_at_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    run, deps, _ = open_prepared(lab, day=DAYS[0], trick="forbid")
    job = Seen(monkeypatch)

    process_dates(run.id, DAYS, deps)

    assert lab.states(run.id) == ["failed"] * 6
    assert len(job.batches) == 1


def test_a_run_that_is_cancelled_meanwhile_stages_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    run, deps, _ = open_prepared(lab)
    ledger = lab.ledger
    original = find_job("probe").process

    def process(batch: Batch) -> Any:
        ledger.orders.cancel_run(run.id, by="somebody", now=True)
        return original(batch)

    replace_process(monkeypatch, process)

    outcomes = process_dates(run.id, DAYS, deps)

    assert {outcome.state for outcome in outcomes} == {NOT_CLAIMED}
    assert lab.states(run.id) == ["cancelled"] * 6
    assert not list((lab.home / "staging").rglob("*.parquet"))


def test_dates_that_another_worker_has_are_left_to_it_and_the_others_are_built(lab: Lab) -> None:
    run, deps, _ = open_prepared(lab)
    claimed_date(lab.ledger, run, DAYS[1], owner=process_identity(os.getppid()))

    outcomes = process_dates(run.id, DAYS, deps)

    assert [outcome.day for outcome in outcomes if outcome.state == NOT_CLAIMED] == [DAYS[1]]
    assert lab.states(run.id) == ["staged", "processing", *["staged"] * 4]


def test_a_worker_that_is_told_to_stop_releases_its_dates_and_blames_none(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, deps, _ = open_prepared(lab)

    replace_process(monkeypatch, lambda _: signal.raise_signal(signal.SIGTERM))

    before = signal.signal(signal.SIGTERM, common._shutdown_cleanup)  # as Celery's processes have it
    with pytest.raises(SystemExit):
        process_dates(run.id, DAYS, deps)
    signal.signal(signal.SIGTERM, before)
    common.clear_terminate_handler_fired()

    rows = lab.ledger.dates.list_dates(run.id)
    assert {(row.state, row.deaths, row.losses, row.queued_at) for row in rows} == {(DateState.QUEUED, 0, 0, None)}


# -- how they are claimed --


def claim(ledger: Ledger, run: Any, days: Sequence[date], owner: str, *, is_dead: Any = everyone_lives) -> list[date]:
    rows = ledger.claims.claim_dates(run.id, days, owner, utcnow() + LEASE, is_dead=is_dead, max_losses=3)
    return [row.day for row in rows]


def test_dates_are_claimed_together_but_one_that_lost_a_worker_is_taken_alone_and_last(ledger: Ledger) -> None:
    run = queued_run(ledger, DAYS)
    assert claim(ledger, run, DAYS[2:4], "dead") == DAYS[2:4]

    assert claim(ledger, run, DAYS, "worker", is_dead=everyone_is_dead) == [*DAYS[:2], *DAYS[4:]]
    assert claim(ledger, run, DAYS[2:4], "worker", is_dead=everyone_is_dead) == [DAYS[2]]
    assert claim(ledger, run, DAYS[2:4], "other") == []
    assert claim(ledger, run, DAYS[3:4], "worker", is_dead=everyone_is_dead) == [DAYS[3]]
    assert [row.losses for row in ledger.dates.list_dates(run.id)] == [0, 0, 1, 1, 0, 0]


def test_a_date_that_killed_a_worker_process_is_taken_alone_and_last(ledger: Ledger) -> None:
    run = queued_run(ledger, DAYS)
    claim(ledger, run, DAYS[:2], "dead")
    assert ledger.claims.record_deaths(run.id, DAYS, owner="dead", max_deaths=3) == DAYS[:2]

    assert claim(ledger, run, DAYS, "worker") == DAYS[2:]
    assert claim(ledger, run, DAYS[:2], "worker") == [DAYS[0]]
    assert [row.deaths for row in ledger.dates.list_dates(run.id)] == [1, 1, 0, 0, 0, 0]


def test_dates_that_are_another_s_or_done_are_left_out(ledger: Ledger) -> None:
    run = queued_run(ledger, DAYS)
    assert claim(ledger, run, DAYS[:1], "other") == DAYS[:1]
    staged_date(ledger, run, DAYS[1])

    assert claim(ledger, run, DAYS, "worker") == DAYS[2:]
    assert claim(ledger, run, DAYS, "worker") == DAYS[2:]  # its own: what it could not end


def test_what_a_worker_leaves_is_what_it_still_holds(ledger: Ledger) -> None:
    run = queued_run(ledger, DAYS)
    claim(ledger, run, DAYS[:2], "worker")
    claim(ledger, run, DAYS[2:3], "other")

    ends = {day: (DateState.SKIPPED, {"reason": str(day)}) for day in DAYS}
    assert ledger.claims.release_dates(run.id, ends, owner="worker") == frozenset(DAYS[:2])
    states = [row.state.value for row in ledger.dates.list_dates(run.id)]
    assert states == ["skipped"] * 2 + ["processing"] + ["queued"] * 3


def test_dates_given_back_of_a_run_that_is_being_cancelled_are_cancelled(ledger: Ledger) -> None:
    run = queued_run(ledger, DAYS)
    claim(ledger, run, DAYS, "worker")
    ledger.orders.cancel_run(run.id, by="somebody")

    ledger.dates.move_dates(run.id, DAYS, expect=DateState.PROCESSING, to=DateState.QUEUED, owner="worker")

    assert {row.state for row in ledger.dates.list_dates(run.id)} == {DateState.CANCELLED}
    assert ledger.runs.get_run(run.id).state is RunState.CANCELLING


# -- what a task has --


def test_a_job_s_pace_is_that_of_the_run_lately_or_of_the_runs_before(ledger: Ledger) -> None:
    first = queued_run(ledger, DAYS)
    assert ledger.dates.median_seconds_per_date(first, 1) is None

    for day, seconds in zip(DAYS[:3], (9.0, 0.2, 0.1), strict=True):
        claim(ledger, first, [day], "worker")
        facts = {"checksum": "c" * 64, "seconds": seconds}
        ledger.claims.release_dates(first.id, {day: (DateState.STAGED, facts)}, owner="worker")
    assert ledger.dates.median_seconds_per_date(first, 1) == 0.2

    later = queued_run(ledger, [day + timedelta(days=100) for day in DAYS])
    assert ledger.dates.median_seconds_per_date(later, 1) == 0.2


@pytest.mark.parametrize("text", ["0", "some"])
def test_dates_per_task_that_are_none_are_refused_in_one_line(lab: Lab, text: str) -> None:
    lab.probe_all(DAYS, players(4))
    run = ("run", "--job", "probe", "--dates", str(DAYS[0]))
    for refused, error in (
        (lab.inside(*run, "--dates-per-task", text), "or auto"),
        (lab.inside(*run, BACKFILL_DATES_PER_TASK=text), "BACKFILL_DATES_PER_TASK"),
    ):
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
        assert error in refused.stderr
    assert lab.ledger.runs.list_latest_runs() == []


def test_tasks_of_an_embedded_run_have_as_many_dates_as_asked_for(lab: Lab) -> None:
    lab.probe_all(DAYS, players(4))
    ran = lab.command("run", "--job", "probe", "--dates", f"{DAYS[0]}..{DAYS[-1]}", "--dates-per-task", "4")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = lab.ledger.dates.list_dates(lab.ledger.runs.list_latest_runs()[0].id)
    assert [row.state for row in rows] == [DateState.CHECKPOINTED] * 6
    assert len({row.started_at for row in rows}) == 2  # dates of one task are claimed at one moment


def test_a_primary_source_without_a_table_has_no_rows_and_its_date_is_blocked(lab: Lab) -> None:
    lab.summary(DAYS[0], players(20))
    progress = lab.run(DAYS[:1], fallback=Fallback.OFF)
    outcome = lab.outcome(DAYS[0], progress)
    assert (outcome.state, outcome.rows) == (DateState.BLOCKED, 0)
    assert "0 of 20 expected entities" in (outcome.reason or "")
