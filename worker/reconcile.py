"""Bringing a run back on its way: what a chord would have called, called from the ledger's truth instead."""

from __future__ import annotations

from datetime import timedelta

import structlog

from common.clock import utcnow
from common.job import find_job
from common.ledger import DateRow, Run, RunState, WindowState
from common.ledger.states import READY_FOR_GATE
from common.processes import is_dead
from worker.deps import Deps
from worker.gate import go_on

log = structlog.get_logger()

START_IS_LATE = timedelta(seconds=10)  #: a command opens a run and starts it within so long
#: A paused run and one that is being cancelled begin nothing, which the ledger sees to; what they began is finished.
RECONCILED = frozenset({RunState.RUNNING, RunState.PAUSED, RunState.CANCELLING})
GATE_IS_LATE = timedelta(
    seconds=10
)  #: a chord calls its gate within so long of its last date; calling it twice is safe


def reconcile(run_id: str, deps: Deps, *, lost_tasks: bool = False) -> int:
    """Send again what was lost of a run on its way; returns how many windows that touched. Repeating it does no harm.

    A date whose worker is dead or whose lease has run out is sent again; so is one that has been queued for longer
    than `stalled_seconds` while its whole run made no progress, or at once with `lost_tasks` (the caller knows that the
    broker or a worker died). A window that is settled but not closed gets its gate.
    """
    run = deps.ledger.run(run_id)
    if run.state is RunState.PLANNED and run.owner is None and utcnow() - run.created_at > START_IS_LATE:
        deps.ledger.move_run(run_id, expect=[RunState.PLANNED], to=RunState.RUNNING)  # its command died before it did
        run = deps.ledger.run(run_id)
    if run.state not in RECONCILED:
        return 0
    job = find_job(run.job)
    stalled = lost_tasks or _is_stalled(run, deps)
    sent = 0
    for number in deps.ledger.windows_in(run_id, [WindowState.OPEN, WindowState.CLOSING]):
        again = deps.ledger.give_back(
            run_id, number, queued_too=stalled, is_dead=is_dead, max_deaths=deps.settings.max_deaths
        )
        if again:
            log.warning("dates_sent_again", run=run_id, window=number, count=len(again))
            deps.dispatcher.send_window(run_id, number, job, again)
        elif _needs_gate(deps.ledger.dates(run_id, window=number), stalled=stalled):
            deps.dispatcher.send_gate(run_id, number, job)
        else:
            continue
        sent += 1
    if not sent:
        go_on(run, job, deps)
    return sent


def _is_stalled(run: Run, deps: Deps) -> bool:
    """Nothing is being processed and nothing has happened for a while."""
    latest = deps.ledger.last_activity(run.id)
    return latest is not None and utcnow() - latest > timedelta(seconds=deps.settings.stalled_seconds)


def _needs_gate(rows: list[DateRow], *, stalled: bool) -> bool:
    """Every date is settled, and the chord did not call the gate though it had the time to, or will not at all."""
    if any(row.state not in READY_FOR_GATE for row in rows):
        return False
    touched = [moment for row in rows for moment in (row.started_at, row.ended_at) if moment is not None]
    return stalled or not touched or utcnow() - max(touched) > GATE_IS_LATE
