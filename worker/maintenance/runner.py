"""Maintenance runner: run each maintenance task once per due slot, with any number of beats and workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from enum import Enum

import structlog

from gated_backfill.common.alerts.consumers import consumer_alerts, fault_alerts, find_lost_consumers
from gated_backfill.common.errors import BackfillError
from gated_backfill.common.ledger import NewAlert, Run
from gated_backfill.common.ledger.stores.maintenance import HEARTBEAT, MaintenanceTaskRow
from gated_backfill.common.model.alert_kinds import AlertKind
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.printable_text import shorten
from gated_backfill.common.runs.interrupted import is_interrupted
from gated_backfill.common.runs.release import ITS_PROCESS_DIED, SYSTEM_ACTOR, release_run
from gated_backfill.worker import post_run
from gated_backfill.worker.dependencies import Deps
from gated_backfill.worker.maintenance import audit, cleanup, daily_runs, retention
from gated_backfill.worker.maintenance.schedule import MaintenanceSchedule, maintenance_schedules
from gated_backfill.worker.reconcile.reconcile import reconcile

log = structlog.get_logger()

MaintenanceTask = Callable[[Deps], str]  #: returns a summary of what it did


class MaintenanceOutcome(Enum):
    """The result of a message that asks for a maintenance task."""

    DONE = "done"
    NOT_DUE = "not due"  #: done for its latest slot, being run by another worker, or failed a moment ago
    FAILED = "failed"  #: the reason is in the ledger; it is retried


def run_maintenance_task(
    name: str, deps: Deps, tasks: Mapping[str, MaintenanceTask] | None = None
) -> MaintenanceOutcome:
    """Run the task if its latest slot is due, and record the result. Errors of the task are recorded, not raised.

    One run makes up for all slots that were missed. `tasks` replaces `MAINTENANCE_TASKS` in tests.
    """
    task = (MAINTENANCE_TASKS if tasks is None else tasks).get(name)
    schedule = maintenance_schedules(deps.settings).get(name)
    if task is None:
        task, schedule = daily_runs.find_job_task(name, deps.settings)
    if task is None or schedule is None:
        log.error("unknown_maintenance_task", task=name)  # a message from the beat of another version
        return MaintenanceOutcome.FAILED
    try:
        return _claim_and_run(name, schedule, task, deps)
    except BackfillError as exc:
        log.error("maintenance_not_recorded", task=name, error=str(exc))
        return MaintenanceOutcome.FAILED


def _claim_and_run(name: str, schedule: MaintenanceSchedule, task: MaintenanceTask, deps: Deps) -> MaintenanceOutcome:
    now = utcnow()
    slot = schedule.recurrence.latest_due(now)
    failed_before = now - _retry_after(deps) if schedule.is_daily else None
    if not deps.ledger.maintenance.claim_task(
        name,
        slot,
        deps.owner,
        now + schedule.lease,
        is_dead=deps.ledger.heartbeats.is_lost,
        failed_before=failed_before,
    ):
        log.info("maintenance_not_due", task=name, slot=slot.isoformat())
        return MaintenanceOutcome.NOT_DUE
    try:
        outcome = task(deps)
    except BackfillError as exc:
        return _record_failure(name, deps, exc)
    except Exception as exc:  # a task that fails is recorded, and the other tasks are not affected
        log.exception("maintenance_crashed", task=name)
        return _record_failure(name, deps, exc)
    deps.ledger.maintenance.finish_task(name, slot, deps.owner, outcome)
    log.info("maintenance_done", task=name, slot=slot.isoformat(), outcome=outcome)
    return MaintenanceOutcome.DONE


def _record_failure(name: str, deps: Deps, exc: Exception) -> MaintenanceOutcome:
    log.error("maintenance_failed", task=name, error=str(exc))
    deps.ledger.maintenance.fail_task(name, deps.owner, f"{type(exc).__name__}: {exc}")
    return MaintenanceOutcome.FAILED


def _retry_after(deps: Deps) -> timedelta:
    return timedelta(seconds=deps.settings.maintenance_retry_seconds)


def record_heartbeat(_: Deps) -> str:
    """Do nothing: its record in the ledger proves that beat and a maintenance worker are running."""
    return "beat is alive"


def send_overdue_tasks(deps: Deps) -> str:
    """Send the daily tasks whose slot was missed or failed a while ago, and record alerts about what is lost.

    The tasks of jobs' schedules are sent by this alone: beat does not know the jobs, whose imports take long.
    """
    now = utcnow()
    daily = {
        name: schedule
        for name, schedule in maintenance_schedules(deps.settings).items()
        if schedule.is_daily and name in MAINTENANCE_TASKS
    }
    daily |= daily_runs.job_schedules(deps.settings)
    rows, is_lost = deps.ledger.maintenance.list_tasks(), deps.ledger.heartbeats.is_lost
    for name in sorted(daily.keys() - rows.keys()):  # a new task starts with its next slot: no cleanup on day one
        deps.ledger.maintenance.register_task(name, daily[name].recurrence.latest_due(now))
    running, lost_workers = deps.ledger.heartbeats.list_running(), deps.ledger.heartbeats.list_lost_workers()
    lost_consumers = find_lost_consumers(running, lost_workers, deps.settings.silent_after)
    failures = failure_alerts(daily, rows, now, is_lost=is_lost)
    deps.ledger.alerts.record_alerts([*failures, *consumer_alerts(lost_consumers), *fault_alerts(running)])
    overdue = overdue_tasks(daily, rows, now, retry_after=_retry_after(deps), is_lost=is_lost)
    for name in overdue:
        deps.dispatcher.send_maintenance(name, queue=daily[name].queue, expires=daily[name].expires)
    return f"sent again: {', '.join(overdue)}" if overdue else "nothing was missed"


def failure_alerts(
    daily: Mapping[str, MaintenanceSchedule],
    rows: Mapping[str, MaintenanceTaskRow],
    now: datetime,
    *,
    is_lost: Callable[[str], bool],
) -> list[NewAlert]:
    """One alert for each task whose latest slot failed or was interrupted."""
    alerts: list[NewAlert] = []
    for name, row in sorted(rows.items()):
        if name not in daily or daily_runs.is_waiting(row):
            continue
        slot = daily[name].recurrence.latest_due(now)
        if (reason := failure_reason(row, slot, is_lost)) is not None:
            alerts.append(_failure_alert(name, slot, reason))
    return alerts


def failure_reason(row: MaintenanceTaskRow, slot: datetime, is_lost: Callable[[str], bool]) -> str | None:
    """Why the last attempt for the slot failed; None if there was no attempt, or one succeeded since."""
    if row.done_slot is not None and row.done_slot >= slot:
        return None
    is_killed = row.lease_owner is not None and is_lost(row.lease_owner)
    if is_killed and row.started_at is not None and row.started_at >= slot:
        return f"its worker was killed; it had started at {row.started_at:%Y-%m-%d %H:%M:%S} UTC"
    return row.error if row.finished_at is not None and row.finished_at >= slot else None


def _failure_alert(name: str, slot: datetime, reason: str) -> NewAlert:
    return NewAlert(
        key=f"{AlertKind.MAINTENANCE_FAILED} {name} {slot.isoformat()}",
        kind=AlertKind.MAINTENANCE_FAILED,
        title=f"{name} of {slot:%Y-%m-%d %H:%M} UTC failed",
        lines=[
            shorten(" ".join(reason.split())),
            "It is retried automatically. `backfill doctor` and the log of the maintenance worker have the details.",
        ],
    )


def overdue_tasks(
    daily: Mapping[str, MaintenanceSchedule],
    rows: Mapping[str, MaintenanceTaskRow],
    now: datetime,
    *,
    retry_after: timedelta,
    is_lost: Callable[[str], bool],
) -> list[str]:
    """The tasks whose latest slot is not done, that no worker runs, and that did not fail within `retry_after`."""

    def is_overdue(name: str, row: MaintenanceTaskRow) -> bool:
        slot = daily[name].recurrence.latest_due(now)
        is_done = row.done_slot is not None and row.done_slot >= slot
        is_leased = row.lease_until is not None and row.lease_until > now
        is_owner_lost = row.lease_owner is not None and is_lost(row.lease_owner)
        retry_from = max(slot, now - retry_after)
        has_failed = row.error is not None and row.finished_at is not None and row.finished_at >= retry_from
        return not is_done and (not is_leased or is_owner_lost) and not has_failed

    return sorted(name for name in daily if name in rows and is_overdue(name, rows[name]))


def reconcile_all(deps: Deps) -> str:
    """Reconcile the active runs on the broker, release interrupted ones, and remove leftover staged files.

    A run that fails does not stop the others: the errors are raised at the end, as one `BackfillError`.
    """
    runs = deps.ledger.runs.list_active_runs()
    windows_sent, errors = 0, dict[str, str]()
    for run in runs:
        try:
            if run.owner is None:
                windows_sent += reconcile(run.id, deps)
            else:
                _release_if_interrupted(run, deps)
        except BackfillError as exc:
            errors[run.id] = str(exc)
    retention.remove_leftover_staged_files(deps)
    if errors:
        raise BackfillError("; ".join(f"run {run_id}: {error}" for run_id, error in errors.items()))
    at_broker = sum(run.owner is None for run in runs)
    return f"{at_broker} active run(s), {windows_sent} window(s) sent again"


def _release_if_interrupted(run: Run, deps: Deps) -> None:
    """Release a run whose process is dead, once every worker that had a lease on one of its dates is dead, too."""
    if not is_interrupted(run) or not all(
        map(deps.ledger.heartbeats.is_lost, deps.ledger.claims.list_lease_owners(run.id))
    ):
        return
    released = release_run(
        run, find_job(run.job), deps.ledger, deps.warehouse, deps.staging, by=SYSTEM_ACTOR, reason=ITS_PROCESS_DIED
    )
    log.warning("run_released", run=run.id, checkpointed=released.checkpointed, freed=released.unfinished)


#: The tasks by the names that the messages, the ledger and `schedule.maintenance_schedules` use.
MAINTENANCE_TASKS: dict[str, MaintenanceTask] = {
    "cleanup": cleanup.clean_stale_rows,
    "expire_backups": cleanup.expire_backups,
    "staging_retention": retention.remove_old_staged_files,
    "quarantine_retention": retention.remove_old_quarantine,
    "undo_retention": retention.remove_old_undo_data,
    "alerts_retention": retention.remove_old_alerts,
    "audit": audit.audit_recent,
    "reports": post_run.report_missed_runs,
    "alerts": post_run.deliver_alerts,
    "reconcile": reconcile_all,
    HEARTBEAT: record_heartbeat,
    "catch_up": send_overdue_tasks,
}
