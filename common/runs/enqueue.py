"""Sending what may be worked on now: the dates of windows that may be open, and what was lost of those that are."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime

from gated_backfill.common.broker.celery_app import Dispatcher
from gated_backfill.common.ledger import Ledger, Run
from gated_backfill.common.model.batching import split_into_tasks
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.process.identity import is_dead


def enqueue_next_windows(run: Run, job: Job, ledger: Ledger, dispatcher: Dispatcher) -> None:
    """Open and send what the caps let through of the run.

    Where its job has a cap, another run of the job may have waited for what this one no longer has in flight: it is
    brought on too, before this one if it has less in flight. A run with an owner has workers of its own, which do not
    take the dates of others.
    """
    capped = run.owner is None and RunOptions.from_dict(run.options).job_max_in_flight is not None
    for run_id in ledger.windows.list_runs_awaiting_windows(run.id) if capped else [run.id]:
        one = run if run_id == run.id else ledger.runs.get_run(run_id)
        options = RunOptions.from_dict(one.options)
        opened = ledger.windows.open_windows(
            run_id,
            in_flight=options.in_flight,
            dates=options.max_in_flight,
            job_dates=options.job_max_in_flight,
            is_dead=is_dead,
        )
        for number, days in opened.items():
            enqueue_dates(one, number, job, days, ledger, dispatcher)


def requeue_lost_dates(
    run: Run,
    window: int,
    job: Job,
    ledger: Ledger,
    dispatcher: Dispatcher,
    *,
    include_queued: bool,
    max_deaths: int,
    innocent_before: datetime | None = None,
) -> list[date]:
    """Give back the lost dates of a window, and send those that may run again; returns them. See `Ledger.give_back`."""
    again = ledger.claims.requeue_dates(
        run.id,
        window,
        include_queued=include_queued,
        is_dead=is_dead,
        max_deaths=max_deaths,
        ignore_deaths_before=innocent_before,
    )
    if again:
        enqueue_dates(run, window, job, again, ledger, dispatcher)
    return again


def enqueue_dates(
    run: Run,
    window: int,
    job: Job,
    days: Sequence[date],
    ledger: Ledger,
    dispatcher: Dispatcher,
    *,
    one_per_task: bool = False,
) -> None:
    """Send queued dates of a window, in tasks of as many dates as the run's options say; with `alone`, of one each."""
    options = RunOptions.from_dict(run.options)
    per_task = 1 if one_per_task else options.dates_per_task
    pace = None if per_task is not None else ledger.dates.median_seconds_per_date(run, window)
    batches = split_into_tasks(days, dates_per_task=per_task, seconds_per_date=pace, window_size=options.window)
    dispatcher.send_window(run.id, window, job, batches, queue=options.queue)
