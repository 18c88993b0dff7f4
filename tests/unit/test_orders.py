"""What a worker does with the date in its hand when its run was ordered to pause or to stop."""

from __future__ import annotations

import pytest

from gated_backfill.common.ledger import RunProgress, RunState
from gated_backfill.common.ledger.states import DATE_TRANSITIONS, ENDED_RUNS, DateState
from gated_backfill.common.ledger.stores.orders import UNPUBLISHED_STATES, Cancellation, Instruction, decide_instruction
from gated_backfill.producer.runs.control import describe_cancellation
from gated_backfill.worker.messages.stop_dates import builds_dates_of_run
from tests.builders import FEB_23, FEB_24, a_run


@pytest.mark.parametrize(
    ("run", "begun", "discard", "expected"),
    [
        pytest.param(RunState.RUNNING, False, False, Instruction.CONTINUE, id="running"),
        pytest.param(RunState.RUNNING, True, True, Instruction.CONTINUE, id="running-begun"),
        pytest.param(RunState.PAUSED, False, False, Instruction.REQUEUE, id="paused-before-anything-costly"),
        pytest.param(RunState.PAUSED, True, False, Instruction.CONTINUE, id="paused-but-begun"),
        pytest.param(RunState.CANCELLING, False, False, Instruction.CONTINUE, id="cancelled-finish-what-was-begun"),
        pytest.param(RunState.CANCELLING, True, False, Instruction.CONTINUE, id="cancelled-finish-what-is-built"),
        pytest.param(RunState.CANCELLING, False, True, Instruction.CANCEL, id="cancelled-with-what-is-staged"),
        pytest.param(
            RunState.CANCELLING, True, True, Instruction.CANCEL, id="cancelled-with-what-is-about-to-be-staged"
        ),
        *(
            pytest.param(end, True, False, Instruction.CANCEL, id=f"ended-{end.value}")
            for end in sorted(ENDED_RUNS, key=lambda state: state.value)
        ),
    ],
)
def test_the_state_of_the_run_decides(run: RunState, begun: bool, discard: bool, expected: Instruction) -> None:
    assert decide_instruction(run, has_begun=begun, discard=discard) is expected


def test_whatever_readers_do_not_see_yet_can_be_cancelled_and_nothing_else() -> None:
    assert {state for state, moves in DATE_TRANSITIONS.items() if DateState.CANCELLED in moves} == set(
        UNPUBLISHED_STATES
    )


@pytest.mark.parametrize(
    ("counts", "stopped", "expected"),
    [
        pytest.param(
            {DateState.CHECKPOINTED: 12, DateState.PROCESSING: 3, DateState.CANCELLED: 3600},
            Cancellation(not_started=3600, interrupted=0, discarded=()),
            "12 dates are checkpointed, 3 in progress will be finished, 3,600 will not be built",
            id="finish",
        ),
        pytest.param(
            {DateState.CHECKPOINTED: 1, DateState.STAGED: 1, DateState.CANCELLED: 4},
            Cancellation(not_started=2, interrupted=2, discarded=()),
            "1 date is checkpointed, 1 in progress will be finished, 2 in progress stopped, 4 will not be built",
            id="now",
        ),
        pytest.param(
            {DateState.CANCELLED: 5},
            Cancellation(not_started=3, interrupted=0, discarded=(FEB_23, FEB_24)),
            "0 dates are checkpointed, 2 staged discarded, 5 will not be built",
            id="discard",
        ),
    ],
)
def test_what_was_stopped_is_told(counts: dict[DateState, int], stopped: Cancellation, expected: str) -> None:
    told = describe_cancellation(RunProgress(run=a_run(state=RunState.CANCELLING), counts=counts), stopped)

    assert told == f"run run-1: {expected}; follow it with `backfill watch run-1`"


@pytest.mark.parametrize(
    ("task", "arguments", "expected"),
    [
        pytest.param("process_date", ["run-1", "2023-02-23"], True, id="its-date"),
        pytest.param("process_date", ["run-2", "2023-02-23"], False, id="a-date-of-another-run"),
        pytest.param("close_window", ["run-1", 1], False, id="its-gate"),
        pytest.param("process_date", [], False, id="a-message-of-somebody-else"),
    ],
)
def test_only_dates_of_the_run_are_killed(task: str, arguments: list[object], expected: bool) -> None:
    assert builds_dates_of_run(task, arguments, "run-1") is expected
