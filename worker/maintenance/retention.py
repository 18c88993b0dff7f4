"""Removing what nobody needs any more: staged files left behind, the quarantine, what runs replaced, old alerts."""

from __future__ import annotations

from datetime import timedelta

import structlog

from gated_backfill.common.process.clock import utcnow
from gated_backfill.worker.dependencies import Deps

log = structlog.get_logger()

ALERTS_KEPT = timedelta(days=90)


def remove_old_staged_files(deps: Deps) -> str:
    """Remove what runs that ended `staging_days` ago left staged. Files of runs unknown to the ledger stay."""
    days = deps.settings.staging_days
    old = deps.ledger.runs.list_runs_ended_before(deps.staging.staged_runs(), utcnow() - timedelta(days=days))
    for run in old:
        deps.staging.delete(run)
    return f"removed the staged files of {len(old)} run(s) that ended more than {days} days ago"


def remove_leftover_staged_files(deps: Deps) -> None:
    """Remove what was staged for runs that have ended: a worker that was frozen may have woken up and staged it since.

    Nothing looks for it any more. Those that ended a moment ago are still removing theirs.
    """
    for run in deps.ledger.runs.list_runs_ended_before(
        deps.staging.staged_runs(), utcnow() - deps.settings.reconcile_period
    ):
        deps.staging.delete(run)
        log.info("leftover_staging_removed", run=run)


def remove_old_quarantine(deps: Deps) -> str:
    """Remove the quarantine of runs that ended `quarantine_days` ago. That of runs unknown to the ledger stays."""
    days = deps.settings.quarantine_days
    old = deps.ledger.runs.list_runs_ended_before(deps.staging.quarantined_runs(), utcnow() - timedelta(days=days))
    for run in old:
        deps.staging.delete_quarantine(run)
    return f"removed the quarantine of {len(old)} run(s) that ended more than {days} days ago"


def remove_old_undo_data(deps: Deps) -> str:
    """Remove what runs replaced and `backfill undo` can't need any more."""
    deps.warehouse.delete_expired_undo()
    return f"what runs replaced more than {deps.settings.undo_days} days ago is not kept any more"


def remove_old_alerts(deps: Deps) -> str:
    """Remove the alerts of long ago, except those that are still to be told."""
    removed = deps.ledger.alerts.delete_old_alerts(utcnow() - ALERTS_KEPT)
    return f"removed {removed} alert(s) older than {ALERTS_KEPT.days} days"
