"""Retention: remove old staged files, quarantine, undo data and alerts."""

from __future__ import annotations

from datetime import timedelta

import structlog

from gated_backfill.common.process.clock import utcnow
from gated_backfill.worker.dependencies import Deps

log = structlog.get_logger()

ALERT_RETENTION = timedelta(days=90)


def remove_old_staged_files(deps: Deps) -> str:
    """Remove the staged files of runs that ended over `staging_days` ago. Those of runs not in the ledger are kept."""
    days = deps.settings.staging_days
    run_ids = deps.ledger.runs.list_runs_ended_before(deps.staging.staged_runs(), utcnow() - timedelta(days=days))
    for run_id in run_ids:
        deps.staging.delete(run_id)
    return f"removed the staged files of {len(run_ids)} run(s) that ended more than {days} days ago"


def remove_leftover_staged_files(deps: Deps) -> None:
    """Remove files that a worker staged after the end of its run, because it had been suspended.

    A run that ended within the last `reconcile_period` is left alone: it may still be removing its own files.
    """
    for run_id in deps.ledger.runs.list_runs_ended_before(
        deps.staging.staged_runs(), utcnow() - deps.settings.reconcile_period
    ):
        deps.staging.delete(run_id)
        log.info("leftover_staging_removed", run=run_id)


def remove_old_quarantine(deps: Deps) -> str:
    """Remove the quarantine of runs that ended over `quarantine_days` ago. That of runs not in the ledger is kept."""
    days = deps.settings.quarantine_days
    run_ids = deps.ledger.runs.list_runs_ended_before(deps.staging.quarantined_runs(), utcnow() - timedelta(days=days))
    for run_id in run_ids:
        deps.staging.delete_quarantine(run_id)
    return f"removed the quarantine of {len(run_ids)} run(s) that ended more than {days} days ago"


def remove_old_undo_data(deps: Deps) -> str:
    """Remove the replaced rows that are too old for `backfill undo`."""
    deps.warehouse.delete_expired_undo()
    return f"removed the rows that runs replaced more than {deps.settings.undo_days} days ago"


def remove_old_alerts(deps: Deps) -> str:
    """Remove the alerts that are older than `ALERT_RETENTION`, except those that are not delivered yet."""
    removed = deps.ledger.alerts.delete_old_alerts(utcnow() - ALERT_RETENTION)
    return f"removed {removed} alert(s) older than {ALERT_RETENTION.days} days"
