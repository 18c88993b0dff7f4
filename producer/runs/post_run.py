"""What a command does after its run: it tells the end, and whatever else waits to be told."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

import structlog

from gated_backfill.common.history.metadata import write_metadata
from gated_backfill.common.ledger import Run
from gated_backfill.common.process.identity import process_identity
from gated_backfill.common.runs.post_run import deliver, record_beat_silence, report_ended_runs, report_run
from gated_backfill.producer.context import CommandContext

log = structlog.get_logger()


@contextmanager
def post_run_reporting(
    site: CommandContext, tell: Callable[[str, CommandContext], None] | None = None
) -> Generator[Callable[[Run], None]]:
    """Inside it a run is opened, carried out and its end shown; on leaving it, that end is told.

    It gives the function that is to be called with the run once that is open. Only a run that this process owns is told
    here, however it ended: those at the broker are told by its workers.
    """
    opened: list[Run] = []
    try:
        yield opened.append
    finally:
        for run in opened:
            if run.owner is not None:
                _told(run.id, site, tell or report_run_end)


def _told(run_id: str, site: CommandContext, tell: Callable[[str, CommandContext], None]) -> None:
    """Tell the end. Being told to stop ends that, and neither the command's result nor its exit code is lost by it."""
    try:
        tell(run_id, site)
    except KeyboardInterrupt:
        log.info("post_run_interrupted", run=run_id)
        sys.stderr.write("backfill: telling the end of the run was stopped: beat or the next run makes up for it\n")


def report_run_end(run_id: str, site: CommandContext) -> None:
    """Tell the end of a run that this process owned. The run is over: nothing here changes how it ended.

    What goes wrong is logged and shown in one line on standard error; beat, or the next run, makes up for it.
    """
    places = (site.ledger, site.warehouse, site.settings)
    with _warned(f"the end of run {run_id} was not told in full"):
        report_run(run_id, *places)
    with _warned("the ends of earlier runs were not told in full"):
        report_ended_runs(*places)
    with _warned("alerts were not delivered"):
        record_beat_silence(site.ledger)
        outcome = deliver(site.ledger, site.settings, process_identity())
        log.info("run_reported", run=run_id, outcome=outcome)
        if "; " in outcome:
            sys.stderr.write(f"backfill: warning: alerts: {outcome}\n")


def mark_run_reported(run_id: str, site: CommandContext) -> None:
    """Count the end of a run as told, and tell nobody: only the warehouse's history is written."""
    site.ledger.runs.mark_reported(run_id)
    refresh_run_metadata(run_id, site)


def refresh_run_metadata(run_id: str, site: CommandContext) -> None:
    """Have the warehouse's history show the run as it is now; what goes wrong is one line on standard error."""
    with _warned(
        "the warehouse's history does not show the run as it is (`backfill history --write-metadata` mends that)"
    ):
        write_metadata(site.ledger, site.warehouse, site.settings, run_id)


@contextmanager
def _warned(what: str) -> Generator[None]:
    try:
        yield
    except Exception as exc:
        log.error("post_run_failed", what=what, error=str(exc), exc_info=exc)
        sys.stderr.write(f"backfill: warning: {what}: {' '.join(str(exc).split())}\n")
