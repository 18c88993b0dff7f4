"""The states of runs, dates and windows, and the moves between them."""

from __future__ import annotations

from enum import Enum


class RunState(Enum):
    """Where a run is. The last four are ends."""

    PLANNED = "planned"  #: written down, nothing sent yet
    RUNNING = "running"  #: windows are open
    PAUSED = "paused"  #: no date is begun and no window opened; what was begun is finished
    CANCELLING = "cancelling"  #: told to stop: nothing is begun any more, what was begun is finished
    SUCCEEDED = "succeeded"  #: every date is checkpointed or skipped
    PARTIAL = "partial"  #: some dates are blocked or failed
    FAILED = "failed"  #: no date was checkpointed
    CANCELLED = "cancelled"  #: stopped before its end; what was checkpointed stays


class DateState(Enum):
    """Where one date of a run is."""

    PENDING = "pending"  #: its window is not open yet
    QUEUED = "queued"  #: a task for it was sent
    PROCESSING = "processing"  #: a worker holds it under a lease
    STAGED = "staged"  #: its rows wait for the gate
    PUBLISHED = "published"  #: readers see its rows; no checkpoint yet
    CHECKPOINTED = "checkpointed"  #: done, and proven
    FAILED = "failed"  #: it could not be built
    BLOCKED = "blocked"  #: the gate, or the pre-flight check, refused it
    SKIPPED = "skipped"  #: nothing to build, for the reason given
    CANCELLED = "cancelled"  #: its run was cancelled before it was done; other runs may take it


class WindowState(Enum):
    """Where a window is."""

    PENDING = "pending"  #: not sent yet
    OPEN = "open"  #: its tasks were sent
    CLOSING = "closing"  #: a gate works on it under a lease
    CLOSED = "closed"  #: every date of it has its end


class RunAction(Enum):
    """What somebody did to a run."""

    LAUNCHED = "launched"
    PAUSED = "paused"
    RESUMED = "resumed"
    CANCELLED = "cancelled"
    UNDONE = "undone"


ENDED_RUNS = frozenset({RunState.SUCCEEDED, RunState.PARTIAL, RunState.FAILED, RunState.CANCELLED})
ENDED_DATES = frozenset(
    {DateState.CHECKPOINTED, DateState.FAILED, DateState.BLOCKED, DateState.SKIPPED, DateState.CANCELLED}
)
INCOMPLETE_DATES = (DateState.BLOCKED, DateState.FAILED)  #: those of them that somebody has to see to
UNFINISHED_DATES = frozenset(DateState) - ENDED_DATES

#: What the gate finds settled when it is called: nothing of these is still being worked on.
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
            DateState.PROCESSING,  # taken over from a dead worker
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
    """The end of a run whose dates ended like this, if nobody cancelled it."""
    fine = (DateState.CHECKPOINTED, DateState.SKIPPED)
    bad = sum(count for state, count in ends.items() if state not in fine)
    if not bad:
        return RunState.SUCCEEDED
    return RunState.PARTIAL if ends.get(DateState.CHECKPOINTED, 0) else RunState.FAILED
