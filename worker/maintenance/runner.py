"""What beat has done, each due slot once, however many beats and workers there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from enum import Enum

import structlog

from gated_backfill.common.alerts.messages import truncate
from gated_backfill.common.errors import BackfillError
from gated_backfill.common.ledger import NewAlert, Run
from gated_backfill.common.ledger.stores.maintenance import HEARTBEAT, MaintenanceTaskRow
from gated_backfill.common.model.alert_kinds import AlertKind
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.identity import is_dead
from gated_backfill.common.runs.release import ITS_PROCESS_DIED, SYSTEM_ACTOR, release_run
from gated_backfill.worker import post_run as after_run
from gated_backfill.worker.dependencies import Deps
from gated_backfill.worker.maintenance import audit, cleanup, retention
from gated_backfill.worker.maintenance.schedule import MaintenanceSchedule, maintenance_schedules
from gated_backfill.worker.reconcile.reconcile import reconcile

log = structlog.get_logger()

Function = Callable[[Deps], str]
WHY_LENGTH = 1000  #: of an error in an alert


class MaintenanceOutcome(Enum):
    """What became of a message that asked for a work."""

    DONE = "done"
    NOT_DUE = "not due"  #: it is done for its latest slot, or another worker is at it, or it failed a moment ago
    FAILED = "failed"  #: with the reason in the ledger; it is tried again


def run_maintenance_task(name: str, deps: Deps, works: Mapping[str, Function] | None = None) -> MaintenanceOutcome:
    """Do a work if its latest slot is due, and write down what came of it. Raises nothing that a work raises.

    Slots that were missed before the latest one are made up for by it.
    """
    found = (MAINTENANCE_TASKS if works is None else works).get(name)
    entry = maintenance_schedules(deps.settings).get(name)
    if found is None or entry is None:
        log.error("unknown_maintenance_task", work=name)  # a message of another version's beat
        return MaintenanceOutcome.FAILED
    try:
        return _claimed(name, entry, found, deps)
    except BackfillError as exc:
        log.error("maintenance_not_recorded", work=name, error=str(exc))
        return MaintenanceOutcome.FAILED


def _claimed(name: str, entry: MaintenanceSchedule, function: Function, deps: Deps) -> MaintenanceOutcome:
    now = utcnow()
    slot = entry.recurrence.latest_due(now)
    failed_before = now - _retry_after(deps) if entry.is_daily else None
    if not deps.ledger.maintenance.claim_task(
        name, slot, deps.owner, now + entry.lease, is_dead=is_dead, failed_before=failed_before
    ):
        log.info("maintenance_not_due", work=name, slot=slot.isoformat())
        return MaintenanceOutcome.NOT_DUE
    try:
        outcome = function(deps)
    except BackfillError as exc:
        return _failed(name, deps, exc)
    except Exception as exc:  # the edge: a work that fails is recorded, and beat's others go on
        log.exception("maintenance_crashed", work=name)
        return _failed(name, deps, exc)
    deps.ledger.maintenance.finish_task(name, slot, deps.owner, outcome)
    log.info("maintenance_done", work=name, slot=slot.isoformat(), outcome=outcome)
    return MaintenanceOutcome.DONE


def _failed(name: str, deps: Deps, exc: Exception) -> MaintenanceOutcome:
    log.error("maintenance_failed", work=name, error=str(exc))
    deps.ledger.maintenance.fail_task(name, deps.owner, f"{type(exc).__name__}: {exc}")
    return MaintenanceOutcome.FAILED


def _retry_after(deps: Deps) -> timedelta:
    return timedelta(seconds=deps.settings.maintenance_retry_seconds)


# -- the works of this module -------------------------------------------------------------------------------------


def beat_lives(_: Deps) -> str:
    """Nothing: that it was done tells that beat and a worker for maintenance are alive."""
    return "beat is alive"


def send_overdue_tasks(deps: Deps) -> str:
    """Send the daily works whose slot was missed, or failed a while ago; have those told that failed."""
    now = utcnow()
    daily = {
        name: entry
        for name, entry in maintenance_schedules(deps.settings).items()
        if entry.is_daily and name in MAINTENANCE_TASKS
    }
    known = deps.ledger.maintenance.list_tasks()
    for name in sorted(daily.keys() - known.keys()):  # its first slot is the next one: nothing is cleaned up at once
        deps.ledger.maintenance.register_task(name, daily[name].recurrence.latest_due(now))
    deps.ledger.alerts.record_alerts(failures(daily, known, now))
    due = overdue(daily, known, now, retry_after=_retry_after(deps))
    for name in due:
        deps.dispatcher.send_maintenance(name, queue=daily[name].queue, expires=daily[name].expires)
    return f"sent again: {', '.join(due)}" if due else "nothing was missed"


def failures(
    daily: Mapping[str, MaintenanceSchedule], known: Mapping[str, MaintenanceTaskRow], now: datetime
) -> list[NewAlert]:
    """The alerts of the works whose last try for their latest slot failed, or was cut off: one a slot."""
    return [
        failed_alert(name, slot, why)
        for name, row in sorted(known.items())
        if name in daily and (why := failure(row, slot := daily[name].recurrence.latest_due(now))) is not None
    ]


def failure(row: MaintenanceTaskRow, slot: datetime) -> str | None:
    """Why a try for the slot came to nothing; None where none did, or one did and the slot is done since."""
    if row.done_slot is not None and row.done_slot >= slot:
        return None
    cut_off = row.lease_owner is not None and is_dead(row.lease_owner)
    if cut_off and row.started_at is not None and row.started_at >= slot:
        return f"its worker was killed; it had begun at {row.started_at:%Y-%m-%d %H:%M:%S} UTC"
    return row.error if row.finished_at is not None and row.finished_at >= slot else None


def failed_alert(name: str, slot: datetime, why: str) -> NewAlert:
    return NewAlert(
        key=f"{AlertKind.MAINTENANCE_FAILED} {name} {slot.isoformat()}",
        kind=AlertKind.MAINTENANCE_FAILED,
        title=f"{name} of {slot:%Y-%m-%d %H:%M} UTC failed",
        body=f"{truncate(' '.join(why.split()), WHY_LENGTH)}\n"
        "It is tried again by itself. `backfill doctor` and the log of the maintenance worker tell more.",
    )


def overdue(
    daily: Mapping[str, MaintenanceSchedule],
    known: Mapping[str, MaintenanceTaskRow],
    now: datetime,
    *,
    retry_after: timedelta,
) -> list[str]:
    """The works whose latest slot is not done, that nobody is at, and that did not fail just now."""

    def is_overdue(name: str, row: MaintenanceTaskRow) -> bool:
        slot = daily[name].recurrence.latest_due(now)
        held = row.lease_until is not None and row.lease_until > now
        owner_gone = row.lease_owner is not None and is_dead(row.lease_owner)
        failed = (
            row.error is not None and row.finished_at is not None and row.finished_at >= max(slot, now - retry_after)
        )
        return (row.done_slot is None or row.done_slot < slot) and (not held or owner_gone) and not failed

    return sorted(name for name in daily if name in known and is_overdue(name, known[name]))


def reconcile_all(deps: Deps) -> str:
    """Bring every run at the broker back on its way, end those whose command is gone, and remove what ended ones left.

    One that can't be looked after does not stop the others. A run whose command lives is that command's.
    """
    runs = deps.ledger.runs.list_active_runs()
    sent, troubles = 0, dict[str, str]()
    for run in runs:
        try:
            if run.owner is None:
                sent += reconcile(run.id, deps)
            else:
                _release_if_dead(run, deps)
        except BackfillError as exc:
            troubles[run.id] = str(exc)
    retention.remove_leftover_staged_files(deps)
    if troubles:
        raise BackfillError("; ".join(f"run {run}: {why}" for run, why in troubles.items()))
    at_broker = sum(run.owner is None for run in runs)
    return f"{at_broker} active run(s), {sent} window(s) sent again"


def _release_if_dead(run: Run, deps: Deps) -> None:
    """Give the dates of a run free whose command is certain to have died, and everybody who held any of them, too."""
    if (
        run.owner is None
        or not is_dead(run.owner)
        or not all(map(is_dead, deps.ledger.claims.list_lease_owners(run.id)))
    ):
        return
    released = release_run(
        run, find_job(run.job), deps.ledger, deps.warehouse, deps.staging, by=SYSTEM_ACTOR, reason=ITS_PROCESS_DIED
    )
    log.warning("run_released", run=run.id, checkpointed=released.checkpointed, freed=released.unfinished)


#: What beat has done, by the names of `gated_backfill.worker.maintenance.schedule.entries`.
MAINTENANCE_TASKS: dict[str, Function] = {
    "cleanup": cleanup.clean_stale_rows,
    "expire_backups": cleanup.expire_backups,
    "staging_retention": retention.remove_old_staged_files,
    "quarantine_retention": retention.remove_old_quarantine,
    "undo_retention": retention.remove_old_undo_data,
    "alerts_retention": retention.remove_old_alerts,
    "audit": audit.audit_recent,
    "reports": after_run.report_missed_runs,
    "alerts": after_run.deliver_alerts,
    "reconcile": reconcile_all,
    HEARTBEAT: beat_lives,
    "catch_up": send_overdue_tasks,
}
