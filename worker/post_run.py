"""Telling the ends of runs on the user's broker, and those that nobody told. What beat has done is safe to repeat."""

from __future__ import annotations

import structlog

from gated_backfill.common.errors import BrokerUnavailable
from gated_backfill.common.ledger import Run
from gated_backfill.common.runs.post_run import deliver, record_beat_silence, report_ended_runs, report_run
from gated_backfill.worker.dependencies import Deps

log = structlog.get_logger()


def schedule_post_run(run: Run, deps: Deps) -> None:
    """Have the end of a run told; a command that owns its run does that itself."""
    if run.owner is not None:
        return
    try:
        deps.dispatcher.send_post_run(run.id)
    except BrokerUnavailable as exc:  # the run is over all the same, and `report_runs` finds it
        log.warning("post_run_not_enqueued", run=run.id, error=str(exc))


def report_and_deliver(run_id: str, deps: Deps) -> None:
    """Tell the end of a run, and whatever else waits to be told."""
    report_run(run_id, deps.ledger, deps.warehouse, deps.settings)
    record_beat_silence(deps.ledger)
    log.info("run_reported", run=run_id, outcome=deliver(deps.ledger, deps.settings, deps.owner))


def report_missed_runs(deps: Deps) -> str:
    """Write down the alerts of the ended runs that nobody told, of commands that died among them."""
    told = report_ended_runs(deps.ledger, deps.warehouse, deps.settings)
    return f"told the end of {len(told)} run(s)" + (f": {', '.join(told[:5])}" if told else "")


def deliver_alerts(deps: Deps) -> str:
    """Send the alerts that wait, those that an endpoint did not take before among them."""
    return deliver(deps.ledger, deps.settings, deps.owner)
