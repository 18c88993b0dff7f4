"""Cleanup as beat has it done: stale rows daily, and backups that have been kept for long enough."""

from __future__ import annotations

import structlog

from gated_backfill.common.cleanup.cleanup import CleanupReport, clean, remove_expired_backups, unusual_cleanup_alert
from gated_backfill.common.cleanup.operation import CleanupContext
from gated_backfill.common.cleanup.stale_rows import local_today
from gated_backfill.common.errors import WarehouseUnavailable
from gated_backfill.worker.dependencies import Deps

log = structlog.get_logger()

BEAT = "beat"  #: who asks for it


def clean_stale_rows(deps: Deps) -> str:
    """Delete the stale rows of the settings' tables, each with a backup; returns what was done, in words.

    A table of which too much is stale is left alone, which is told by an alert. May be repeated, and be killed at any
    point: the next one finishes what this one began. Raises `WarehouseUnavailable` once all tables were tried and one
    could not be cleaned.
    """
    settings, today = deps.settings, local_today(deps.settings)
    report = clean(
        _site(deps),
        settings.tables_to_clean,
        today=today,
        days=settings.cleanup_days,
        max_share=settings.cleanup_max_share,
        skip_restored=True,
    )
    if alert := unusual_cleanup_alert(report, settings, today):
        deps.ledger.alerts.record_alert(alert)
    return _told("stale_rows_cleaned", report)


def expire_backups(deps: Deps) -> str:
    """Remove the backups that were kept for `cleanup_backup_days`; returns what was done, in words. May be repeated."""
    report = CleanupReport()
    expired = remove_expired_backups(_site(deps), report)
    if report.failed:
        return _told("backups_expired", report)
    log.info("backups_expired", count=len(expired))
    return f"{len(expired)} backup(s) removed" if expired else "no backup is due"


def _site(deps: Deps) -> CleanupContext:
    return CleanupContext(
        settings=deps.settings, ledger=deps.ledger, warehouse=deps.warehouse, by=BEAT, owner=deps.owner
    )


def _told(event: str, report: CleanupReport) -> str:
    told = "; ".join(report.describe())
    if report.failed:
        raise WarehouseUnavailable(told)
    log.info(event, outcome=told)
    return told
