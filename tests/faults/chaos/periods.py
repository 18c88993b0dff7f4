"""Every period of the tool made short, in one place, so that what takes minutes in earnest takes a second here."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

#: By settings.
SETTINGS = {
    "BACKFILL_RECONCILE_SECONDS": "1",
    "BACKFILL_STALLED_SECONDS": "1",
    "BACKFILL_GATE_LATE_SECONDS": "1",
    "BACKFILL_START_LATE_SECONDS": "1",
    "BACKFILL_GATE_LEASE_SECONDS": "2",
    "BACKFILL_RETRY_SECONDS": "0.05",
    "BACKFILL_WAREHOUSE_RETRY_SECONDS": "1",
    "BACKFILL_WAREHOUSE_JOB_SECONDS": "5",  # the gate's lease on BigQuery is reckoned from it
    "BACKFILL_ALERT_RETRY_SECONDS": "0",
}
QUICKLY = {"interval_start": 0.1, "interval_step": 0.1, "interval_max": 0.3}
SELDOM_SECONDS = 5.0  #: beat's frequent works but for reconciling
WORK_LEASE = timedelta(seconds=2)


def shorten(lease: float) -> None:
    """What is not a setting. For a process that was forked for a schedule: nothing is put back."""
    _leases(lease)
    _works()
    _reconnecting()


def _leases(lease: float) -> None:
    """A date's lease outlives its job's hard time limit in earnest; here it has to end long before that."""
    from chaos_jobs import CHAOS

    from gated_backfill.common.config import settings

    settings.Settings.lease_grace = property(lambda _: timedelta(seconds=lease - CHAOS.time_limit_seconds))
    settings.Settings.operation_lease = property(lambda _: timedelta(seconds=lease))
    settings.MAX_RETRY_DELAY_SECONDS = 1.0


def _works() -> None:
    from gated_backfill.worker.maintenance import runner as maintenance
    from gated_backfill.worker.maintenance import schedule

    listed = schedule.maintenance_schedules

    def entries(settings: Any) -> dict[str, schedule.MaintenanceSchedule]:
        def shortened(entry: schedule.MaintenanceSchedule) -> schedule.MaintenanceSchedule:
            if entry.is_daily:
                return entry
            seconds = min(entry.recurrence.seconds, SELDOM_SECONDS)
            return schedule.MaintenanceSchedule(recurrence=schedule.Every(seconds=seconds), lease=WORK_LEASE)

        return {name: shortened(entry) for name, entry in listed(settings).items()}

    schedule.maintenance_schedules = maintenance.maintenance_schedules = entries


def _reconnecting() -> None:
    """How long Celery waits before it tries to reach the broker again."""
    from kombu import Connection

    reach = Connection._ensure_connection

    def quickly(self: Any, errback: Any = None, max_retries: Any = None, *_: Any, **named: Any) -> Any:
        return reach(self, errback, max_retries, **(named | QUICKLY))

    Connection._ensure_connection = quickly
