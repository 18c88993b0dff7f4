"""Opening the windows that may be open now, and sending their dates."""

from __future__ import annotations

from common.job import Job
from common.ledger import Ledger, Run
from common.options import RunOptions
from common.processes import is_dead
from common.queue import Dispatcher


def open_next(run: Run, job: Job, ledger: Ledger, dispatcher: Dispatcher) -> None:
    """Open and send what the caps let through of the run.

    Where its job has a cap, another run of the job may have waited for what this one no longer has in flight: it is
    brought on too, before this one if it has less in flight. A run with an owner has workers of its own, which do not
    take the dates of others.
    """
    capped = run.owner is None and RunOptions.restored(run.options).job_max_in_flight is not None
    for run_id in ledger.in_line(run.id) if capped else [run.id]:
        options = RunOptions.restored(run.options if run_id == run.id else ledger.run(run_id).options)
        opened = ledger.open_windows(
            run_id,
            in_flight=options.in_flight,
            dates=options.max_in_flight,
            job_dates=options.job_max_in_flight,
            is_dead=is_dead,
        )
        for number, days in opened.items():
            dispatcher.send_window(run_id, number, job, days, queue=options.queue)
