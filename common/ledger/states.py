"""States of runs, dates and windows, and the transitions of dates."""

from __future__ import annotations

from enum import Enum


class RunState(Enum):
    """State of a run. The last four are final."""

    PLANNED = "planned"  #: recorded, but no date was queued yet
    RUNNING = "running"  #: its windows are opened one after the other, and workers build their dates
    PAUSED = "paused"  #: starts no date and opens no window until it is resumed; started dates are finished
    CANCELLING = "cancelling"  #: cancelled by the user: starts nothing more; started dates are finished first
    SUCCEEDED = "succeeded"  #: every date is checkpointed or skipped
    PARTIAL = "partial"  #: some dates are blocked or failed
    FAILED = "failed"  #: some dates are blocked or failed, and none was checkpointed
    CANCELLED = "cancelled"  #: stopped before all its dates were done; its checkpoints remain


class DateState(Enum):
    PENDING = "pending"  #: waits until its window opens
    QUEUED = "queued"  #: a task for it was sent to the workers
    PROCESSING = "processing"  #: a worker has leased it and builds its rows
    STAGED = "staged"  #: its rows are written to staging and wait for the gate
    PUBLISHED = "published"  #: its rows are visible in the target, but not checkpointed yet
    CHECKPOINTED = "checkpointed"  #: done: its checkpoint proves that the rows in the target are complete
    FAILED = "failed"  #: building it raised an error that retries can't fix
    BLOCKED = "blocked"  #: the gate or the pre-flight check refused it, for the reason given; its old rows remain
    SKIPPED = "skipped"  #: there is nothing to build, for the reason given
    CANCELLED = "cancelled"  #: its run was cancelled first; other runs may build it


class WindowState(Enum):
    PENDING = "pending"  #: waits for its turn; its dates are not queued
    OPEN = "open"  #: its dates were queued
    CLOSING = "closing"  #: a gate has leased it: it judges, publishes and checkpoints the dates
    CLOSED = "closed"  #: all its dates are in a final state


class RunAction(Enum):
    """What a user did to a run."""

    LAUNCHED = "launched"
    PAUSED = "paused"
    RESUMED = "resumed"
    CANCELLED = "cancelled"
    UNDONE = "undone"


class OutstandingState(Enum):
    """Why a date that a run ended without a checkpoint is not complete."""

    BLOCKED = "blocked"
    HELD = "held"  #: blocked only because its publication would lose rows that the target has: a user must decide
    FAILED = "failed"


ENDED_RUNS = frozenset({RunState.SUCCEEDED, RunState.PARTIAL, RunState.FAILED, RunState.CANCELLED})
ENDED_DATES = frozenset(
    {DateState.CHECKPOINTED, DateState.FAILED, DateState.BLOCKED, DateState.SKIPPED, DateState.CANCELLED}
)
INCOMPLETE_DATES = (DateState.BLOCKED, DateState.FAILED)  #: ended without a checkpoint: a user must decide
UNFINISHED_DATES = frozenset(DateState) - ENDED_DATES

#: States of the dates that no worker processes any more, so that the gate can work on their window.
READY_FOR_GATE = ENDED_DATES | {DateState.STAGED, DateState.PUBLISHED}

DATE_TRANSITIONS: dict[DateState, frozenset[DateState]] = {
    DateState.PENDING: frozenset({DateState.QUEUED, DateState.FAILED, DateState.CANCELLED}),
    DateState.QUEUED: frozenset({DateState.PROCESSING, DateState.FAILED, DateState.CANCELLED}),
    DateState.PROCESSING: frozenset(
        {
            DateState.STAGED,
            DateState.FAILED,
            DateState.BLOCKED,
            DateState.SKIPPED,
            DateState.QUEUED,
            DateState.PROCESSING,  # claimed again after its worker died
            DateState.CANCELLED,
        }
    ),
    DateState.STAGED: frozenset(
        {DateState.PUBLISHED, DateState.BLOCKED, DateState.FAILED, DateState.QUEUED, DateState.CANCELLED}
    ),
    DateState.PUBLISHED: frozenset({DateState.CHECKPOINTED, DateState.QUEUED, DateState.FAILED}),
    **{end: frozenset[DateState]() for end in ENDED_DATES},
}


def final_state(ends: dict[DateState, int]) -> RunState:
    """Return the final state of a run that was not cancelled, from the number of its dates in each final state."""
    successes = (DateState.CHECKPOINTED, DateState.SKIPPED)
    incomplete = sum(count for state, count in ends.items() if state not in successes)
    if not incomplete:
        return RunState.SUCCEEDED
    return RunState.PARTIAL if ends.get(DateState.CHECKPOINTED, 0) else RunState.FAILED
