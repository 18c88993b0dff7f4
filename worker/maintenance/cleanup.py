"""Maintenance tasks of cleanup: delete stale rows daily, and remove backups that have expired."""

from __future__ import annotations

import structlog

from gated_backfill.common.cleanup.cleanup import clean, unusual_cleanup_alert
from gated_backfill.common.cleanup.expiry import remove_expired_backups
from gated_backfill.common.cleanup.operation import CleanupContext
from gated_backfill.common.cleanup.stale_rows import local_today, tables_to_clean
from gated_backfill.common.errors import WarehouseUnavailable
from gated_backfill.worker.dependencies import Deps

log = structlog.get_logger()

BEAT_ACTOR = "beat"  #: recorded as the one who requested a cleanup


def clean_stale_rows(deps: Deps) -> str:
    """Delete the stale rows of the tables to clean, each with a backup, and return a summary.

    A table with too large a stale share is refused, and an alert says so. May be repeated and may be killed at any
    point: the next call finishes what was started. Raises `WarehouseUnavailable` after all tables were tried, if one
    could not be cleaned.
    """
    settings, today = deps.settings, local_today(deps.settings)
    report = clean(
        _context(deps),
        tables_to_clean(settings, deps.ledger),
        today=today,
        days=settings.cleanup_days,
        max_share=settings.cleanup_max_share,
        skip_restored=True,
    )
    if alert := unusual_cleanup_alert(report, settings, today):
        deps.ledger.alerts.record_alert(alert)
    if report.failed:
        raise WarehouseUnavailable("; ".join(report.describe()))
    summary = "; ".join(report.describe())
    log.info("stale_rows_cleaned", outcome=summary)
    return summary


def expire_backups(deps: Deps) -> str:
    """Remove the backups of rows deleted over `cleanup_backup_days` ago, and return a summary. May be repeated.

    Raises `WarehouseUnavailable` after all were tried, if one could not be removed.
    """
    errors: list[str] = []
    expired = remove_expired_backups(_context(deps), errors)
    if errors:
        raise WarehouseUnavailable("; ".join(errors))
    log.info("backups_expired", count=len(expired))
    return f"{len(expired)} backup(s) removed" if expired else "no backup is due"


def _context(deps: Deps) -> CleanupContext:
    return CleanupContext(
        settings=deps.settings, ledger=deps.ledger, warehouse=deps.warehouse, by=BEAT_ACTOR, owner=deps.owner
    )
