"""Post-run reporting of a command: alerts and history of the run that it owned."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import structlog

from gated_backfill.common.alerts.delivery import deliver
from gated_backfill.common.history.metadata import write_metadata
from gated_backfill.common.ledger import Run
from gated_backfill.common.process.identity import process_identity
from gated_backfill.common.runs.post_run import record_beat_silence, report_ended_runs, report_run
from gated_backfill.producer.context import CommandContext
from gated_backfill.producer.terminal.error_line import print_error

log = structlog.get_logger()


@contextmanager
def post_run_reporting(
    context: CommandContext, report: Callable[[str, CommandContext], None] | None = None
) -> Generator[Callable[[Run], None]]:
    """Report the end of the runs opened inside the block, at its end.

    Yields the function to call with a run once it is open. Only runs that this process owns are reported, even if they
    failed: the workers report the others. `report` replaces `report_run_end`.
    """
    opened: list[Run] = []
    try:
        yield opened.append
    finally:
        for run in opened:
            if run.owner is not None:
                _report_or_skip(run.id, context, report or report_run_end)


def _report_or_skip(run_id: str, context: CommandContext, report: Callable[[str, CommandContext], None]) -> None:
    """Report the end of the run. An interrupt ends the reporting, and changes neither the result nor the exit code."""
    try:
        report(run_id, context)
    except KeyboardInterrupt:
        log.info("post_run_interrupted", run=run_id)
        print_error("reporting the end of the run was interrupted: beat or the next run completes it")


def report_run_end(run_id: str, context: CommandContext) -> None:
    """Record alerts and history of a run that this process owned, and deliver the alerts.

    An error is logged and shown in one line on standard error, and never changes the run's result; beat, or the
    next run, completes the reporting.
    """
    arguments = (context.ledger, context.warehouse, context.settings)
    with _errors_as_warnings(f"run {run_id} was not reported completely"):
        report_run(run_id, *arguments)
        log.info("run_reported", run=run_id)
    with _errors_as_warnings("earlier runs were not reported completely"):
        report_ended_runs(*arguments)
    with _errors_as_warnings("alerts were not delivered"):
        record_beat_silence(context.ledger)
        outcome = deliver(context.ledger, context.settings, process_identity())
        if "; " in outcome:  # the summary lists failed deliveries after "; "
            print_error(f"warning: alerts: {outcome}")


def mark_run_reported(run_id: str, context: CommandContext) -> None:
    """Mark a run as reported without alerts; only the warehouse's history is written."""
    context.ledger.runs.mark_reported(run_id)
    refresh_run_metadata(run_id, context)


def refresh_run_metadata(run_id: str, context: CommandContext) -> None:
    """Write the run's current state into the warehouse's history; an error becomes one line on standard error."""
    with _errors_as_warnings(
        "the warehouse's history does not show the run as it is (`backfill history --write-metadata` corrects that)"
    ):
        write_metadata(context.ledger, context.warehouse, context.settings, run_id)


@contextmanager
def _errors_as_warnings(problem: str) -> Generator[None]:
    """Log an error and print it after the text of the problem, instead of raising it."""
    try:
        yield
    except Exception as exc:
        log.error("post_run_failed", what=problem, error=str(exc), exc_info=exc)
        print_error(f"warning: {problem}: {exc}")
