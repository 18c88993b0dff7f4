"""What brings a run on: one step a window, with its reason, decided from what is seen of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gated_backfill.common.config.recovery import RecoverySettings
from gated_backfill.common.ledger import RunState
from gated_backfill.common.ledger.states import ENDED_RUNS
from gated_backfill.common.process.clock import utcnow
from gated_backfill.worker.reconcile.decisions import (
    AdvanceRun,
    CallGate,
    RequeueDates,
    RunSnapshot,
    StartRun,
    WindowSnapshot,
    decide_steps,
)

NOW = utcnow()
SETTINGS = RecoverySettings()
JUST, AGES = NOW - timedelta(seconds=1), NOW - timedelta(hours=1)
MINUTE = NOW - timedelta(seconds=30)  #: longer than a period and a gate's time, no stall


def seen(*windows: WindowSnapshot, state: RunState = RunState.RUNNING, **more: Any) -> RunSnapshot:
    values: dict[str, Any] = {"created_at": AGES, "quiet_since": JUST}
    return RunSnapshot(state=state, now=NOW, windows=windows, **values | more)


def window(**more: Any) -> WindowSnapshot:
    return WindowSnapshot(number=7, **more)


def waiting(**more: Any) -> WindowSnapshot:
    return window(**{"queued": 5, "queued_at": MINUTE, "touched_at": MINUTE} | more)


def settled(**more: Any) -> WindowSnapshot:
    return window(**{"touched_at": MINUTE} | more)


NOTHING = "nothing was lost"
SENT = [
    pytest.param(waiting(), {}, NOTHING, id="they-wait-for-a-worker"),
    pytest.param(waiting(is_at_broker=False), {}, "the broker lost them", id="a-broker-that-came-back-empty"),
    pytest.param(waiting(is_at_broker=False, queued_at=JUST), {}, NOTHING, id="it-was-opened-a-moment-ago"),
    pytest.param(waiting(is_at_broker=False, processing=3), {}, "the broker lost them", id="while-workers-go-on"),
    pytest.param(waiting(), {"lost_tasks": True}, "the broker or a worker died", id="somebody-knows-of-a-death"),
    pytest.param(waiting(), {"quiet_since": AGES}, "the run is stalled", id="a-stall"),
    pytest.param(waiting(), {"quiet_since": AGES, "has_waiting_dates": True}, NOTHING, id="a-queue-without-workers"),
    pytest.param(waiting(processing=1), {"quiet_since": None}, NOTHING, id="a-long-date"),
    pytest.param(waiting(abandoned=1), {}, "their workers are dead or past their leases", id="a-dead-worker"),
    pytest.param(waiting(unsent=1), {}, "their workers were stopped", id="a-worker-that-was-stopped"),
    pytest.param(window(processing=2), {"lost_tasks": True}, NOTHING, id="nothing-but-live-workers"),
    pytest.param(waiting(has_live_gate=True), {}, NOTHING, id="a-gate-that-was-called-early"),
]


@pytest.mark.parametrize(("one", "more", "reason"), SENT)
def test_dates_are_sent_again_when_they_are_lost_and_only_then(
    one: WindowSnapshot, more: dict[str, Any], reason: str
) -> None:
    (step,) = decide_steps(seen(one, **more), SETTINGS)
    assert step.reason == reason
    assert isinstance(step, AdvanceRun if reason == NOTHING else RequeueDates)


def test_what_waits_is_lost_with_the_broker() -> None:
    (step,) = decide_steps(seen(waiting(is_at_broker=False, abandoned=2)), SETTINGS)
    assert step == RequeueDates(window=7, include_queued=True, reason="the broker lost them")


@pytest.mark.parametrize("gone", [{"abandoned": 2}, {"unsent": 2}])
def test_what_waits_is_left_alone_when_a_worker_died_or_was_stopped(gone: dict[str, int]) -> None:
    (step,) = decide_steps(seen(waiting(**gone)), SETTINGS)
    assert isinstance(step, RequeueDates)
    assert not step.include_queued


GATES = [
    pytest.param(settled(), {}, "its gate was not called", id="a-chord-that-never-fired"),
    pytest.param(settled(touched_at=JUST), {}, NOTHING, id="a-chord-that-is-about-to"),
    pytest.param(settled(touched_at=None), {}, "its gate was not called", id="a-window-of-which-nothing-was-begun"),
    pytest.param(settled(touched_at=JUST, gate_died=True), {}, "its gate died", id="a-dead-gate"),
    pytest.param(settled(has_live_gate=True), {}, NOTHING, id="a-gate-at-work"),
    pytest.param(settled(has_live_gate=True), {"lost_tasks": True}, NOTHING, id="a-gate-at-work-whatever-died"),
    pytest.param(
        settled(touched_at=JUST, is_at_broker=False), {}, "the broker lost the call of its gate", id="an-empty-broker"
    ),
    pytest.param(settled(touched_at=JUST), {"lost_tasks": True}, "the broker or a worker died", id="a-known-death"),
    pytest.param(settled(), {"has_waiting_gates": True}, NOTHING, id="its-call-may-wait-for-a-gate"),
]


@pytest.mark.parametrize(("one", "more", "reason"), GATES)
def test_a_settled_windows_gate_is_called_when_nobody_else_will(
    one: WindowSnapshot, more: dict[str, Any], reason: str
) -> None:
    (step,) = decide_steps(seen(one, **more), SETTINGS)
    assert step.reason == reason
    assert isinstance(step, AdvanceRun if reason == NOTHING else CallGate)


@pytest.mark.parametrize(
    ("more", "starts"),
    [
        pytest.param({}, True, id="its-command-died"),
        pytest.param({"created_at": JUST}, False, id="its-command-is-about-to"),
        pytest.param({"has_owner": True}, False, id="it-is-a-commands-own"),
    ],
)
def test_a_planned_run_is_started_when_its_command_did_not(more: dict[str, Any], starts: bool) -> None:
    steps = decide_steps(seen(state=RunState.PLANNED, **more), SETTINGS)
    assert steps == ([StartRun(reason="its command did not start it")] if starts else [])


def test_a_run_with_nothing_in_flight_goes_on() -> None:
    assert decide_steps(seen(), SETTINGS) == [AdvanceRun(reason=NOTHING)]


def test_the_periods_are_the_settings() -> None:
    patient = RecoverySettings(
        reconcile_seconds=60, gate_late_seconds=60, stalled_seconds=7200, start_late_seconds=7200
    )
    quiet = {"quiet_since": AGES}
    assert [step.reason for step in decide_steps(seen(waiting(is_at_broker=False), settled(), **quiet), patient)] == [
        NOTHING
    ]
    assert decide_steps(seen(state=RunState.PLANNED), patient) == []


moments = st.none() | st.sampled_from([NOW, JUST, MINUTE, AGES])
counts = st.integers(0, 3)
windows_seen = st.builds(
    WindowSnapshot,
    number=st.integers(0, 99),
    is_at_broker=st.booleans(),
    has_live_gate=st.booleans(),
    gate_died=st.booleans(),
    queued=counts,
    processing=counts,
    abandoned=counts,
    queued_at=moments,
    touched_at=moments,
)
runs_seen = st.builds(
    RunSnapshot,
    state=st.sampled_from(RunState),
    now=st.just(NOW),
    created_at=st.just(AGES),
    has_owner=st.booleans(),
    quiet_since=moments,
    lost_tasks=st.booleans(),
    has_waiting_dates=st.booleans(),
    has_waiting_gates=st.booleans(),
    windows=st.lists(windows_seen, max_size=4, unique_by=lambda one: one.number),
)


@given(runs_seen)
def test_no_window_gets_two_steps_and_what_waits_of_a_paused_run_goes_on_waiting(run: RunSnapshot) -> None:
    steps = decide_steps(run, SETTINGS)
    touched = [step.window for step in steps if isinstance(step, RequeueDates | CallGate)]
    unsettled = {one.number for one in run.windows if not one.is_settled}
    assert len(touched) == len(set(touched))
    assert all(step.window not in unsettled for step in steps if isinstance(step, CallGate))
    given_back = [step for step in steps if isinstance(step, RequeueDates)]
    assert not given_back or run.state in (RunState.RUNNING, RunState.PAUSED, RunState.CANCELLING)
    assert run.state is not RunState.PAUSED or not any(step.include_queued for step in given_back)
    assert run.state not in ENDED_RUNS or not steps


@given(runs_seen.map(lambda run: replace(run, state=RunState.CANCELLING)))
def test_nothing_of_a_run_that_is_cancelled_waits_for_a_worker(run: RunSnapshot) -> None:
    dropped = {
        step.window for step in decide_steps(run, SETTINGS) if isinstance(step, RequeueDates) and step.include_queued
    }
    assert dropped == {one.number for one in run.windows if one.queued}


@given(runs_seen.map(lambda run: replace(run, state=RunState.RUNNING)))
def test_when_all_are_known_to_be_dead_no_window_is_forgotten(run: RunSnapshot) -> None:
    """With the deaths known and no gate at work, whatever does not depend on a live worker gets a step."""
    windows = [replace(one, has_live_gate=False) for one in run.windows]
    steps = decide_steps(replace(run, lost_tasks=True, windows=windows), SETTINGS)
    touched = {step.window for step in steps if isinstance(step, RequeueDates | CallGate)}
    assert touched == {one.number for one in windows if one.is_settled or one.queued or one.abandoned}
