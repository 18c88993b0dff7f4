"""Workers that fell silent while a run was under way: why it did not move for a while."""

from __future__ import annotations

from datetime import timedelta

from gated_backfill.common.ledger import Ledger, Run
from gated_backfill.common.ledger.stores.heartbeats import Heartbeat

SILENT_AFTER = timedelta(seconds=10)  #: a heartbeat that is older is worth telling, also before somebody took over
CLOCK_MARGIN = timedelta(minutes=1)  #: the ledger's clock and the one that timed the run may differ by so much


def list_silent_workers(run: Run, ledger: Ledger) -> list[Heartbeat]:
    """Return the workers that fell silent since the run began and until it ended, one process of each."""
    began = (run.started_at or run.created_at) - CLOCK_MARGIN
    taken_over = [process for process in ledger.heartbeats.list_silent(began) if process.seen_at >= began]
    still_silent: list[Heartbeat] = []
    if not run.has_ended:
        running = ledger.heartbeats.list_running()
        still_silent = [process for process in running if process.read_at - process.seen_at > SILENT_AFTER]
    by_worker: dict[str, Heartbeat] = {}
    for process in (*taken_over, *still_silent):
        is_within = run.finished_at is None or process.seen_at <= run.finished_at
        if is_within and (process.is_worker or process.worker not in by_worker):
            by_worker[process.worker] = process
    return sorted(by_worker.values(), key=lambda process: process.seen_at)
