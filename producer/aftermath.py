"""What a command does after its run: it tells the end, and whatever else waits to be told."""

from __future__ import annotations

import sys

import structlog

from common.after_run import after_run, check_beat, deliver, report_ended
from common.processes import identity
from producer.site import Site

log = structlog.get_logger()


def tell_end(run_id: str, site: Site) -> None:
    """Tell the end of a run that this process owned. The run is over: nothing here changes how it ended.

    What goes wrong is logged and shown in one line on standard error; what was written down is delivered by the next
    one that delivers.
    """
    try:
        after_run(run_id, site.ledger, site.warehouse, site.settings)
        report_ended(site.ledger, site.warehouse, site.settings)
        check_beat(site.ledger)
        outcome = deliver(site.ledger, site.settings, identity())
    except Exception as exc:
        log.error("end_not_told", run=run_id, error=str(exc), exc_info=exc)
        sys.stderr.write(f"backfill: warning: the end of run {run_id} was not told: {' '.join(str(exc).split())}\n")
        return
    log.info("end_told", run=run_id, outcome=outcome)
    if "; " in outcome:
        sys.stderr.write(f"backfill: warning: alerts: {outcome}\n")
