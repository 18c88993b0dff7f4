"""Sending what may be worked on now: the dates of windows that may be open, and what was lost of those that are."""

from __future__ import annotations

from datetime import date, datetime

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


def send_lost(
    run: Run,
    window: int,
    job: Job,
    ledger: Ledger,
    dispatcher: Dispatcher,
    *,
    queued_too: bool,
    max_deaths: int,
    innocent_before: datetime | None = None,
) -> list[date]:
    """Give back the lost dates of a window, and send those that may run again; returns them. See `Ledger.give_back`."""
    again = ledger.give_back(
        run.id, window, queued_too=queued_too, is_dead=is_dead, max_deaths=max_deaths, innocent_before=innocent_before
    )
    if again:
        dispatcher.send_window(run.id, window, job, again, queue=RunOptions.restored(run.options).queue)
    return again
