"""Post-run reporting by workers: of runs on the broker, and of ended runs that were not reported."""

from __future__ import annotations

import structlog

from gated_backfill.common.alerts.delivery import deliver
from gated_backfill.common.errors import BrokerUnavailable
from gated_backfill.common.ledger import Run
from gated_backfill.common.runs.post_run import record_beat_silence, report_ended_runs, report_run
from gated_backfill.worker.dependencies import Deps

log = structlog.get_logger()


def schedule_post_run(run: Run, deps: Deps) -> None:
    """Enqueue the report of a run's end. A run with an owner is reported by the command that owns it."""
    if run.owner is not None:
        return
    try:
        deps.dispatcher.send_post_run(run.id)
    except BrokerUnavailable as exc:  # the run has ended anyway, and `report_missed_runs` finds it
        log.warning("post_run_not_enqueued", run=run.id, error=str(exc))


def report_and_deliver(run_id: str, deps: Deps) -> None:
    """Report the end of a run, and deliver all waiting alerts."""
    report_run(run_id, deps.ledger, deps.warehouse, deps.settings)
    record_beat_silence(deps.ledger)
    log.info("run_reported", run=run_id, outcome=deliver(deps.ledger, deps.settings, deps.owner))


def report_missed_runs(deps: Deps) -> str:
    """Report the ended runs that were not reported, for example because their command died."""
    run_ids = report_ended_runs(deps.ledger, deps.warehouse, deps.settings)
    return f"reported the end of {len(run_ids)} run(s)" + (f": {', '.join(run_ids[:5])}" if run_ids else "")


def deliver_alerts(deps: Deps) -> str:
    """Send the waiting alerts, with those that an endpoint did not take before."""
    return deliver(deps.ledger, deps.settings, deps.owner)
