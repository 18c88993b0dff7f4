"""What may be in flight, held to by the ledger: on SQLite and PostgreSQL, whoever opens windows at once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gated_backfill.common.ledger import DateState, Ledger, Run, RunState, WindowState
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.model.scheduling.limits import ConcurrencyLimits
from gated_backfill.common.model.scheduling.queues import EXPRESS_QUEUE, LANES, choose_queue
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.runs.enqueue import enqueue_next_windows
from gated_backfill.worker.jobs.player_composite_factors import JOB as PLAYERS
from tests.builders import at_once, claim_date, everyone_lives, new_run, running_run

FIRST = date(2022, 10, 18)
IN_FLIGHT = [DateState.QUEUED, DateState.PROCESSING, DateState.STAGED, DateState.PUBLISHED]


def days(start: int, count: int) -> list[date]:
    return [FIRST + timedelta(days=start + n) for n in range(count)]


def opened(ledger: Ledger, start: int, count: int, caps: ConcurrencyLimits, *, window: int = 100, **more: Any) -> Run:
    """A running run of so many dates, with windows of the size that its caps ask for."""
    limits = {"in_flight": caps.windows, "max_in_flight": caps.dates, "job_max_in_flight": caps.job_dates}
    options = RunOptions.for_job(PLAYERS, window=window, fallback=None, forced_because=None, **limits)
    more |= {"job": PLAYERS.name, "options": options.to_dict()}
    return running_run(ledger, days(start, count), window=options.window, **more)


def dates_in_flight(ledger: Ledger, run: Run) -> int:
    return len(ledger.dates.list_dates(run.id, states=IN_FLIGHT))


def end_dates(ledger: Ledger, run: Run, number: int) -> None:
    for row in ledger.dates.list_dates(run.id, window=number):
        if row.state is DateState.QUEUED:
            ledger.dates.move_date(run.id, row.day, expect=DateState.QUEUED, to=DateState.FAILED)


class Sent:
    """A dispatcher that only remembers."""

    def __init__(self) -> None:
        self.windows: list[tuple[str, int, str]] = []

    def send_window(
        self, run: str, number: int, job: Job, batches: Sequence[Sequence[date]], *, queue: str = LANES[0]
    ) -> None:
        self.windows.append((run, number, queue))

    def send_gate(self, run: str, number: int, job: Job) -> None: ...

    def send_post_run(self, run: str) -> None: ...

    def send_maintenance(self, name: str, *, queue: str, expires: float) -> None: ...


def close_window(ledger: Ledger, run: Run, number: int, sent: Sent) -> None:
    """What a gate does at its end."""
    end_dates(ledger, run, number)
    assert ledger.windows.claim_window(run.id, number, "gate", utcnow() + timedelta(minutes=1), is_dead=everyone_lives)
    assert ledger.windows.release_window(run.id, number, "gate", to=WindowState.CLOSED)
    enqueue_next_windows(run, PLAYERS, ledger, sent)


def unfinished(ledger: Ledger, run: Run) -> bool:
    states = [WindowState.PENDING, WindowState.OPEN, WindowState.CLOSING]
    return bool(ledger.windows.list_window_numbers(run.id, states))


def test_one_date_at_a_time(ledger: Ledger) -> None:
    run, sent = opened(ledger, 0, 3, ConcurrencyLimits(windows=3, dates=1)), Sent()
    enqueue_next_windows(run, PLAYERS, ledger, sent)
    for number in range(3):
        assert [one[1] for one in sent.windows] == list(range(number + 1))
        assert dates_in_flight(ledger, run) == 1
        enqueue_next_windows(run, PLAYERS, ledger, sent)
        close_window(ledger, run, number, sent)
    assert ledger.runs.finish_run(run.id) is RunState.FAILED


def test_a_date_that_waits_for_the_gate_is_in_flight_and_one_that_has_its_end_is_not(ledger: Ledger) -> None:
    run = opened(ledger, 0, 8, ConcurrencyLimits(windows=9, dates=4))
    assert list(ledger.windows.open_windows(run.id, in_flight=9, dates=4)) == [0, 1]
    first, second = days(0, 2)
    claim_date(ledger, run, first)
    ledger.dates.move_date(run.id, first, expect=DateState.PROCESSING, to=DateState.STAGED)
    assert ledger.windows.open_windows(run.id, in_flight=9, dates=4) == {}
    ledger.dates.move_date(run.id, first, expect=DateState.STAGED, to=DateState.FAILED)
    ledger.dates.move_date(run.id, second, expect=DateState.QUEUED, to=DateState.FAILED)
    assert list(ledger.windows.open_windows(run.id, in_flight=9, dates=4)) == [2]


def test_closing_a_window_brings_on_the_run_of_the_job_that_waited_for_it(ledger: Ledger) -> None:
    caps, sent = ConcurrencyLimits(windows=3, job_dates=4), Sent()
    first, second = opened(ledger, 0, 8, caps), opened(ledger, 20, 4, caps)
    enqueue_next_windows(first, PLAYERS, ledger, sent)
    enqueue_next_windows(second, PLAYERS, ledger, sent)
    assert {run for run, _, _ in sent.windows} == {first.id}

    close_window(ledger, first, 0, sent)
    assert sent.windows[2:] == [(second.id, 0, LANES[0])]
    close_window(ledger, first, 1, sent)
    assert {run for run, _, _ in sent.windows[3:]} & {first.id, second.id}
    assert dates_in_flight(ledger, first) + dates_in_flight(ledger, second) == 4


def test_a_run_whose_windows_are_larger_is_not_passed_over_for_ever(ledger: Ledger) -> None:
    caps, sent = ConcurrencyLimits(windows=5, job_dates=10), Sent()
    small, large = opened(ledger, 0, 30, caps, window=2), opened(ledger, 40, 10, caps, window=5)
    enqueue_next_windows(small, PLAYERS, ledger, sent)
    for _ in range(3):
        close_window(ledger, small, min(ledger.windows.list_window_numbers(small.id, [WindowState.OPEN])), sent)
    assert large.id in {run for run, _, _ in sent.windows}


def test_runs_that_have_opened_nothing_have_one_order_in_which_the_first_has_its_turn(ledger: Ledger) -> None:
    caps = ConcurrencyLimits(windows=3, job_dates=4)
    runs = [opened(ledger, 20 * n, 8, caps) for n in range(6)]
    line = ledger.windows.list_runs_awaiting_windows(runs[0].id)
    assert line == [run.id for run in runs], "as they were launched"
    for run_id in reversed(line[1:]):
        assert ledger.windows.open_windows(run_id, in_flight=3, job_dates=4) == {}
    assert ledger.windows.open_windows(line[0], in_flight=3, job_dates=4)


def test_a_run_of_another_job_and_one_whose_owner_is_dead_are_not_counted(ledger: Ledger) -> None:
    caps = ConcurrencyLimits(windows=3, job_dates=4)
    other = running_run(ledger, days(60, 10), window=10, job="another")
    dead = opened(ledger, 20, 8, caps, owner="host:1:1")
    run = opened(ledger, 0, 8, caps)
    ledger.windows.open_windows(other.id, in_flight=3)
    ledger.windows.open_windows(dead.id, in_flight=3, job_dates=4)

    assert ledger.windows.open_windows(run.id, in_flight=3, job_dates=4) == {}
    assert list(ledger.windows.open_windows(run.id, in_flight=3, job_dates=4, is_dead=lambda owner: True)) == [0, 1]


def test_a_paused_run_still_has_its_dates_in_flight_and_nobody_gives_way_to_it(ledger: Ledger) -> None:
    caps = ConcurrencyLimits(windows=3, job_dates=4)
    begun, waiting, run = (opened(ledger, at, 8, caps) for at in (0, 20, 40))
    assert list(ledger.windows.open_windows(begun.id, in_flight=1, job_dates=4)) == [0]
    for one in (begun, waiting):
        ledger.runs.move_run(one.id, expect=[RunState.RUNNING], to=RunState.PAUSED)

    assert list(ledger.windows.open_windows(run.id, in_flight=3, job_dates=4)) == [0]
    assert ledger.windows.list_runs_awaiting_windows(run.id) == [run.id]


def test_an_owner_s_run_brings_on_no_other(ledger: Ledger) -> None:
    caps, sent = ConcurrencyLimits(windows=3, job_dates=4), Sent()
    owned, other = opened(ledger, 0, 8, caps, owner="host:1:1"), opened(ledger, 20, 8, caps)
    assert ledger.windows.list_runs_awaiting_windows(other.id) == [other.id]
    enqueue_next_windows(owned, PLAYERS, ledger, sent)
    assert {run for run, _, _ in sent.windows} <= {owned.id}


@pytest.mark.parametrize("of_job", [False, True])
def test_callers_at_once_never_exceed_a_cap(ledger: Ledger, of_job: bool) -> None:
    caps = ConcurrencyLimits(windows=50, dates=12, job_dates=17 if of_job else None)
    runs = [opened(ledger, 100 * n, 40, caps, window=3) for n in range(2)]

    def open_more(number: int) -> None:
        ledger.windows.open_windows(runs[number % 2].id, in_flight=50, dates=12, job_dates=caps.job_dates)

    at_once(6, open_more)
    open_more(0)  # by chance every caller for one run may have come before the other run, to which it gave way
    open_more(1)
    in_flight = sorted(dates_in_flight(ledger, run) for run in runs)
    assert in_flight == ([3, 12] if of_job else [12, 12])


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_no_cap_is_ever_exceeded_and_every_run_gets_to_its_end(ledger: Ledger, data: st.DataObject) -> None:
    runs: list[Run] = []
    try:
        _open_and_close(ledger, data, runs)
    finally:  # however the example ended, the next one has the job and its dates to itself
        for run in runs:
            ledger.runs.move_run(run.id, expect=[RunState.RUNNING], to=RunState.CANCELLED)


def _open_and_close(ledger: Ledger, data: st.DataObject, runs: list[Run]) -> None:
    job_cap = data.draw(st.integers(1, 9), "dates of the job")
    caps: dict[str, ConcurrencyLimits] = {}
    for n in range(data.draw(st.integers(1, 3), "runs")):
        cap = ConcurrencyLimits(
            windows=data.draw(st.integers(1, 3)),
            dates=data.draw(st.one_of(st.none(), st.integers(1, 9))),
            job_dates=job_cap,
        )
        run = opened(ledger, 100 * n, data.draw(st.integers(1, 9)), cap, window=data.draw(st.integers(1, 6)))
        runs.append(run)
        caps[run.id] = cap
    sent = Sent()

    def check() -> None:
        held = {run.id: dates_in_flight(ledger, run) for run in runs}
        assert sum(held.values()) <= job_cap
        for run_id, count in held.items():
            cap = caps[run_id].dates
            assert cap is None or count <= cap

    def step(run: Run, what: str) -> None:
        now_open = ledger.windows.list_window_numbers(run.id, [WindowState.OPEN])
        if what == "open":
            enqueue_next_windows(run, PLAYERS, ledger, sent)
        elif now_open and what == "end":
            end_dates(ledger, run, now_open[0])
        elif now_open:
            close_window(ledger, run, now_open[-1], sent)
        check()

    for run, what in data.draw(
        st.lists(st.tuples(st.sampled_from(runs), st.sampled_from(["open", "end", "close"])), max_size=12)
    ):
        step(run, what)
    step(runs[0], "open")  # as reconcile does, where nothing is in flight
    for _ in range(sum(len(days(0, 9)) for _ in runs) + 1):
        begun = [run for run in runs if ledger.windows.list_window_numbers(run.id, [WindowState.OPEN])]
        if not begun:
            break
        step(data.draw(st.sampled_from(begun)), "close")
    assert not any(unfinished(ledger, run) for run in runs)
    for run in runs:
        assert ledger.runs.finish_run(run.id) is not None


# -- queues -------------------------------------------------------------------------------------------------------


def test_a_run_is_given_its_queue_by_those_of_the_active_runs_on_the_same_broker(ledger: Ledger) -> None:
    def queue(count: int, taken: Sequence[str]) -> str:
        return choose_queue(count, express_dates=1, active_queues=taken)

    def launched(start: int, count: int, owner: str | None = None) -> Run:
        new = new_run(days(start, count), owner=owner)
        return ledger.runs.open_run(new, queue=lambda taken: queue(count, taken))

    ledger.runs.open_run(new_run(days(900, 3), owner="host:1:1"))  # on a broker of its own
    first, second, daily, third = (launched(start, count) for start, count in ((0, 3), (100, 3), (200, 1), (300, 3)))
    assert [run.options["queue"] for run in (first, second, daily, third)] == [*LANES[:2], EXPRESS_QUEUE, LANES[2]]
    ledger.runs.move_run(second.id, expect=[RunState.PLANNED], to=RunState.CANCELLED)
    assert launched(400, 3).options["queue"] == LANES[1]
