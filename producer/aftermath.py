"""What a command does after its run: it tells the end, and whatever else waits to be told."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager

import structlog

from common.after_run import after_run, check_beat, deliver, report_ended
from common.metadata import write_metadata
from common.processes import identity
from producer.site import Site

log = structlog.get_logger()


def tell_end(run_id: str, site: Site) -> None:
    """Tell the end of a run that this process owned. The run is over: nothing here changes how it ended.

    What goes wrong is logged and shown in one line on standard error; beat, or the next run, makes up for it.
    """
    places = (site.ledger, site.warehouse, site.settings)
    with _warned(f"the end of run {run_id} was not told in full"):
        after_run(run_id, *places)
    with _warned("the ends of earlier runs were not told in full"):
        report_ended(*places)
    with _warned("alerts were not delivered"):
        check_beat(site.ledger)
        outcome = deliver(site.ledger, site.settings, identity())
        log.info("end_told", run=run_id, outcome=outcome)
        if "; " in outcome:
            sys.stderr.write(f"backfill: warning: alerts: {outcome}\n")


def rewrite_history(run_id: str, site: Site) -> None:
    """Have the warehouse's history say that the run was undone; what goes wrong is one line on standard error."""
    with _warned("the warehouse's history still shows the run (`backfill history --write-metadata` mends that)"):
        write_metadata(site.ledger, site.warehouse, site.settings, run_id)


@contextmanager
def _warned(what: str) -> Generator[None]:
    try:
        yield
    except Exception as exc:
        log.error("aftermath_failed", what=what, error=str(exc), exc_info=exc)
        sys.stderr.write(f"backfill: warning: {what}: {' '.join(str(exc).split())}\n")
