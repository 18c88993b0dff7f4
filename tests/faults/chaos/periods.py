"""Every period of the tool made short, in one place, so that what takes minutes in earnest takes a second here."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

#: By settings.
SETTINGS = {
    "BACKFILL_GATE_LEASE_SECONDS": "2",
    "BACKFILL_STALLED_SECONDS": "1",
    "BACKFILL_RETRY_SECONDS": "0.05",
    "BACKFILL_STAGING_DAYS": "1",  # a day of retention is a second here
    "BACKFILL_WAREHOUSE_RETRY_SECONDS": "1",
    "BACKFILL_WAREHOUSE_JOB_SECONDS": "5",  # the gate's lease on BigQuery is reckoned from it
    "BACKFILL_ALERT_RETRY_SECONDS": "0",
}
QUICKLY = {"interval_start": 0.1, "interval_step": 0.1, "interval_max": 0.3}
OFTEN = ("reconcile", "staging_retention")
SOON = timedelta(seconds=1)


def shorten(lease: float) -> None:
    """What is not a setting. For a process that was forked for a schedule: nothing is put back."""
    _leases(lease)
    _works()
    _reconnecting()


def _leases(lease: float) -> None:
    from chaos_jobs import CHAOS

    from worker import process, reconcile

    process.GRACE_SECONDS = lease - CHAOS.time_limit_seconds
    process.LONGEST_WAIT_SECONDS = 1.0
    reconcile.START_IS_LATE = SOON
    reconcile.GATE_IS_LATE = SOON


def _works() -> None:
    """Reconciling each second, and the retention of what is staged, which is a daily work in earnest."""
    from worker import maintenance, retention, schedule

    listed = schedule.entries
    lease = timedelta(seconds=2)

    def entries(settings: Any) -> dict[str, schedule.Entry]:
        def shortened(name: str, entry: schedule.Entry) -> schedule.Entry:
            if name in OFTEN or not entry.daily:
                return schedule.Entry(when=schedule.Every(seconds=1 if name in OFTEN else 5), lease=lease)
            return entry

        return {name: shortened(name, entry) for name, entry in listed(settings).items()}

    schedule.entries = maintenance.entries = entries
    retention.timedelta = lambda days: timedelta(seconds=days)


def _reconnecting() -> None:
    """How long Celery waits before it tries to reach the broker again."""
    from kombu import Connection

    reach = Connection._ensure_connection

    def quickly(self: Any, errback: Any = None, max_retries: Any = None, *_: Any, **named: Any) -> Any:
        return reach(self, errback, max_retries, **(named | QUICKLY))

    Connection._ensure_connection = quickly
