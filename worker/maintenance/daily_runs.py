"""The schedules of jobs: launch their newest dates each day, and alert when these are not complete by the deadline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from importlib import import_module
from zoneinfo import ZoneInfo

from gated_backfill.common.audit.audit import audit_dates
from gated_backfill.common.audit.findings import AuditedDate, AuditFinding
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import DatesInUse, Retryable, UserError
from gated_backfill.common.ledger import NewAlert
from gated_backfill.common.ledger.stores.maintenance import MaintenanceTaskRow
from gated_backfill.common.model.alert_kinds import AlertKind
from gated_backfill.common.model.dates import ONE_DAY, DateRange, days_before, format_dates
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.registry import find_job, load_jobs
from gated_backfill.common.process.clock import utcnow
from gated_backfill.worker.dependencies import Deps
from gated_backfill.worker.maintenance.schedule import DAILY_LEASE, DailyAt, MaintenanceSchedule

RUN, DEADLINE = "run", "deadline"  #: the tasks of a schedule: their names are these, followed by the job's
#: Imported by name: producer and worker must not import each other.
LAUNCH_MODULE = "gated_backfill.producer.runs.scheduled"
MAX_MISSED_DAYS = 31  #: dates of missed slots that are made up for


class DatesNotReady(Retryable):
    """Some dates of a schedule cannot be built yet: they are tried again, and only the deadline raises an alert."""


def is_waiting(row: MaintenanceTaskRow) -> bool:
    """Whether the task's latest attempt ended because dates could not be built yet."""
    return row.error is not None and row.error.startswith(DatesNotReady.__name__)


def job_schedules(settings: Settings) -> dict[str, MaintenanceSchedule]:
    """Return the schedules of the tasks of all installed jobs that declare one, by the name of the task."""
    jobs, _ = load_jobs()
    return {name: schedule for job in jobs for name, schedule in _schedules_of(job, settings).items()}


def find_job_task(
    name: str, settings: Settings
) -> tuple[Callable[[Deps], str], MaintenanceSchedule] | tuple[None, None]:
    """Return the function and the schedule of a job's task; None for other names, and a job without a schedule."""
    kind, _, job_name = name.partition(" ")
    tasks = {RUN: launch_newest_dates, DEADLINE: check_deadline}
    if kind not in tasks or not job_name:
        return None, None
    try:
        job = find_job(job_name)
    except UserError:
        return None, None
    schedule = _schedules_of(job, settings).get(name)
    return (None, None) if schedule is None else (partial(tasks[kind], job), schedule)


def _schedules_of(job: Job, settings: Settings) -> dict[str, MaintenanceSchedule]:
    schedule, zone = job.schedule, job.time_zone(settings.timezone)
    if schedule is None:
        return {}
    moments = {RUN: schedule.at, DEADLINE: schedule.deadline}
    return {
        f"{kind} {job.name}": MaintenanceSchedule(recurrence=DailyAt(time=at, zone=zone), lease=DAILY_LEASE)
        for kind, at in moments.items()
        if at is not None
    }


def launch_newest_dates(job: Job, deps: Deps) -> str:
    """Launch a run of the newest dates of the job, and those of missed slots; returns what was launched.

    May be repeated. Raises `DatesNotReady`, after the others were launched, when some dates would be blocked or another
    run has them.
    """
    name = f"{RUN} {job.name}"
    task = deps.ledger.maintenance.list_tasks().get(name)
    done_slot = None if task is None else task.done_slot
    days = dates_of_slot(job, deps.settings, _slot(name, job, deps.settings), done_slot).days()
    try:
        launched = import_module(LAUNCH_MODULE).launch_scheduled(job.name, days, deps.settings)
    except DatesInUse as exc:
        raise DatesNotReady(str(exc)) from exc
    outcome = f"run {launched.run_id} was launched" if launched.run_id else "nothing was to be built"
    if launched.waiting:
        first, reason = next(iter(sorted(launched.waiting.items())))
        raise DatesNotReady(f"{format_dates(launched.waiting)} would be blocked ({first}: {reason}); {outcome}")
    return f"{format_dates(days)}: {outcome}"


def dates_of_slot(job: Job, settings: Settings, slot: datetime, done_slot: datetime | None) -> DateRange:
    """Return the dates to build in a slot: the newest ones, and those of the slots missed since `done_slot`."""
    assert job.schedule is not None
    zone = ZoneInfo(job.time_zone(settings.timezone))
    today = slot.astimezone(zone).date()
    newest = days_before(today, job.schedule.last_days)
    if done_slot is None:
        return newest
    first_missed = max(done_slot.astimezone(zone).date(), today - ONE_DAY * MAX_MISSED_DAYS)
    return DateRange(start=min(newest.start, first_missed), through=newest.through)


def check_deadline(job: Job, deps: Deps) -> str:
    """Audit the newest dates of the job, and record an alert unless all are complete. May be repeated."""
    assert job.schedule is not None
    slot = _slot(f"{DEADLINE} {job.name}", job, deps.settings)
    days = dates_of_slot(job, deps.settings, slot, None).days()
    late = [
        audited for audited in audit_dates(job, days, deps.warehouse, deps.ledger).dates if not _is_complete(audited)
    ]
    if not late:
        return f"{format_dates(days)}: complete"
    local = slot.astimezone(ZoneInfo(job.time_zone(deps.settings.timezone)))
    deps.ledger.alerts.record_alert(late_alert(job, late, local))
    return f"{format_dates(audited.day for audited in late)}: not complete"


def _is_complete(audited: AuditedDate) -> bool:
    """Whether the date is complete. Nothing expected is no proof of it, unless calendar or skip rule say so."""
    if audited.finding is AuditFinding.SKIPPED and audited.observed.skip_reason is None:
        return audited.observed.expectation.events is not None
    return audited.finding.is_fine


def late_alert(job: Job, late: Sequence[AuditedDate], deadline: datetime) -> NewAlert:
    """Return the alert about dates that are not complete at the deadline, a local time."""
    assert job.schedule is not None
    days = format_dates(audited.day for audited in late)
    return NewAlert(
        key=f"{AlertKind.DAY_LATE} {job.name} {deadline:%Y-%m-%d}",
        kind=AlertKind.DAY_LATE,
        title=f"{job.name}: {days} not complete by {deadline:%H:%M %Z}",
        lines=[
            *(f"{audited.day} {_describe_late(audited)}" for audited in late),
            f"look: backfill plan --job {job.name} --last-days {job.schedule.last_days}",
        ],
        job=job.name,
    )


def _describe_late(audited: AuditedDate) -> str:
    if audited.finding is AuditFinding.SKIPPED:
        return f"{audited.reason}: is its expectation loaded? (for days off, declare a calendar or a skip rule)"
    return f"{audited.finding.value}: {audited.reason}"


def _slot(name: str, job: Job, settings: Settings) -> datetime:
    return _schedules_of(job, settings)[name].recurrence.latest_due(utcnow())
