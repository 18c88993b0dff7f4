"""Enqueue dates: open new windows within the limits, and requeue lost dates."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from gated_backfill.common.broker.dispatcher import Dispatcher
from gated_backfill.common.ledger import Ledger, Run
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.model.scheduling.batching import split_into_tasks


def enqueue_next_windows(run: Run, job: Job, ledger: Ledger, dispatcher: Dispatcher) -> None:
    """Open windows of the run as far as its limits allow, and enqueue their dates.

    If the job has a limit, its other runs may have waited for dates of this one to finish: their windows are opened
    too, those with the fewest dates in flight first. A run with an owner has its own workers, which take no dates of
    other runs.
    """
    shares_limit = run.owner is None and RunOptions.from_dict(run.options).job_max_in_flight is not None
    for run_id in ledger.windows.list_runs_awaiting_windows(run.id) if shares_limit else [run.id]:
        next_run = run if run_id == run.id else ledger.runs.get_run(run_id)
        options = RunOptions.from_dict(next_run.options)
        opened = ledger.windows.open_windows(
            run_id,
            in_flight=options.in_flight,
            dates=options.max_in_flight,
            job_dates=options.job_max_in_flight,
            is_dead=ledger.heartbeats.is_lost,
        )
        for number, days in opened.items():
            enqueue_dates(next_run, number, job, days, ledger, dispatcher)


def requeue_lost_dates(
    run: Run, window: int, job: Job, ledger: Ledger, dispatcher: Dispatcher, *, include_queued: bool, max_losses: int
) -> list[date]:
    """Requeue the dates of a window whose worker died or lost its lease, and return the requeued dates.

    The keyword arguments are explained at `ClaimStore.requeue_dates`.
    """
    days = ledger.claims.requeue_dates(
        run.id, window, include_queued=include_queued, is_dead=ledger.heartbeats.is_lost, max_losses=max_losses
    )
    if days:
        enqueue_dates(run, window, job, days, ledger, dispatcher)
    return days


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
    """Enqueue queued dates of a window, in tasks of the size that the run's options give or of one date each."""
    options = RunOptions.from_dict(run.options)
    per_task = 1 if one_per_task else options.dates_per_task
    pace = None if per_task is not None else ledger.dates.median_seconds_per_date(run, window)
    batches = split_into_tasks(days, dates_per_task=per_task, seconds_per_date=pace, window_size=options.window)
    dispatcher.send_window(run.id, window, job, batches, queue=options.queue)
