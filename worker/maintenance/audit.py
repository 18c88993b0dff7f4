"""The daily audit: check recent and newly built dates of every job, flag the ones to rebuild, and alert about them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import date, datetime

import structlog

from gated_backfill.common.audit.audit import AUDIT_ACTOR, audit_dates, newly_flagged, record_audit
from gated_backfill.common.audit.findings import AuditedDate, AuditFinding, AuditResult, describe_findings
from gated_backfill.common.errors import BackfillError, Retryable
from gated_backfill.common.ledger import NewAlert
from gated_backfill.common.ledger.jobs_in_use import jobs_in_use
from gated_backfill.common.model.alert_kinds import AlertKind
from gated_backfill.common.model.coverage import format_percent
from gated_backfill.common.model.dates import ONE_DAY, DateRange
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.process.clock import today
from gated_backfill.worker.dependencies import Deps

AUDIT_TASK = "audit"  #: its name as a maintenance task
DATES_SHOWN = 15  #: dates listed in one alert

log = structlog.get_logger()


class AuditFailed(BackfillError):
    """Some jobs could not be audited; the others were."""


class AuditInterrupted(Retryable):
    """Some jobs could not be audited for a temporary reason; the others were."""


def audit_recent(deps: Deps, *, on: date | None = None) -> str:
    """Audit the last `audit_days` days before `on` (default: today) of every installed job that has run.

    Every date that was checkpointed since the last completed audit is audited as well, however old it is.
    Dates to rebuild are flagged, and new findings are recorded as an alert. Returns the counts by job. A job that fails
    does not stop the others: at the end `AuditInterrupted` is raised if every failure may pass on a retry, else
    `AuditFailed`. May be repeated: no finding is reported twice.
    """
    as_of = on or today()
    task = deps.ledger.maintenance.list_tasks().get(AUDIT_TASK)
    since = None if task is None else task.done_slot  # before the last audit began, so that nothing falls in between
    outcomes: list[str] = []
    errors: dict[str, Exception] = {}
    for name in jobs_in_use(deps.ledger):
        try:
            outcome = f"{name}: {_audit_job(find_job(name), deps, as_of, since)}"
        except Exception as exc:  # noqa: BLE001 - raised below, after the other jobs were audited
            log.error("audit_failed", job=name, error=f"{type(exc).__name__}: {exc}")
            errors[name] = exc
        else:
            log.info("audit_done", outcome=outcome)
            outcomes.append(outcome)
    if errors:
        raise _failure(errors, outcomes)
    return "; ".join(outcomes) or "no job to audit"


def _failure(errors: dict[str, Exception], outcomes: Sequence[str]) -> BackfillError:
    kind = AuditInterrupted if all(isinstance(exc, Retryable) for exc in errors.values()) else AuditFailed
    reasons = "; ".join(f"{name}: {type(exc).__name__}: {exc}" for name, exc in errors.items())
    failure = kind(f"{len(errors)} job(s) could not be audited: {reasons}; audited: {'; '.join(outcomes) or 'none'}")
    failure.__cause__ = next(iter(errors.values()))
    return failure


def _audit_job(job: Job, deps: Deps, as_of: date, since: datetime | None) -> str:
    first_day = deps.ledger.dates.earliest_day(job.name)
    if first_day is None:
        return "never run, not audited"
    days = recent_days(first_day, as_of, deps.settings.audit_days)
    checkpointed = deps.ledger.checkpoints.list_days_since(job.name, since)
    built = {day for day in checkpointed if day < as_of}.difference(days)  # today's rows may still come in
    if not days and not built:
        return "no date before today"
    audit = audit_dates(job, sorted({*days, *built}), deps.warehouse, deps.ledger)
    flags = deps.ledger.flags.list_open_flags(job.name)
    new_dates = newly_flagged(audit, {day: flag.finding for day, flag in flags.items()})
    alert = audit_alert(audit, new_dates, as_of)
    if alert is not None:
        # Before the flags: a flagged date counts as reported, so a death in between must not lose the alert.
        deps.ledger.alerts.record_alert(alert)
    recorded = record_audit(audit, deps.ledger, AUDIT_ACTOR)
    cleared = f", {len(recorded.cleared)} flag(s) cleared" if recorded.cleared else ""
    notes = f" ({'; '.join(audit.notes)})" if audit.notes else ""
    older = f", with {len(built)} other date(s) checkpointed since the last audit" if built else ""
    return f"{audit.counts()}{older}; {len(new_dates)} newly flagged{cleared}{notes}"


def recent_days(first_day: date, as_of: date, count: int) -> list[date]:
    """The `count` days before `as_of`, without days before `first_day`, the first date that a run of the job had."""
    yesterday = as_of - ONE_DAY
    start = max(first_day, as_of - ONE_DAY * count)
    return DateRange(start=start, through=yesterday).days() if start <= yesterday else []


def audit_alert(audit: AuditResult, new_dates: Sequence[AuditedDate], as_of: date) -> NewAlert | None:
    """One alert about newly flagged dates or, without any, about dates that no run can repair; else None.

    Dates that no run can repair have no flag that marks them as reported, so the alert's key holds a digest of them:
    each set of them is reported once.
    """
    unknown, skipped = audit.with_finding(AuditFinding.EXPECTATION_INCOMPLETE), audit.skipped_but_changed
    if new_dates:
        key, title = f"{as_of} {_digest(new_dates)}", f"{len(new_dates)} date(s) need a rebuild"
    elif unknown:
        key, title = (
            f"unflagged {_digest([*unknown, *skipped])}",
            f"the expectation of {len(unknown)} date(s) is incomplete",
        )
    elif skipped:
        key, title = f"unflagged {_digest(skipped)}", f"{len(skipped)} date(s) that the job skips were changed"
    else:
        return None
    return NewAlert(
        key=f"{AlertKind.AUDIT} {audit.job} {key}",
        kind=AlertKind.AUDIT,
        title=f"{audit.job}: {title}",
        lines=alert_lines(audit, new_dates),
        job=audit.job,
    )


def _digest(dates: Sequence[AuditedDate]) -> str:
    """A short hash of the dates and their findings."""
    lines = "\n".join(f"{audited.day} {audited.finding.value}" for audited in dates)
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


def alert_lines(audit: AuditResult, new_dates: Sequence[AuditedDate]) -> list[str]:
    """The findings date by date, and the commands to run next."""
    unknown = audit.with_finding(AuditFinding.EXPECTATION_INCOMPLETE)
    lines = [f"audited {audit.summary()}", *audit.notes]
    if new_dates:
        lines += [f"new: {describe_findings(new_dates)}", *_date_lines(new_dates)]
        lines.append(f"rebuild them: backfill run --job {audit.job} --flagged")
    if unknown:
        lines += ["the expectation of these dates is incomplete, load it first:", *_date_lines(unknown)]
    if audit.skipped_but_changed:
        lines.append("the job skips these dates, so no run repairs them; find out who changed them:")
        lines += _date_lines(audit.skipped_but_changed)
    return lines


def _date_lines(dates: Sequence[AuditedDate]) -> list[str]:
    lines = [_date_line(audited) for audited in dates[:DATES_SHOWN]]
    hidden = len(dates) - DATES_SHOWN
    return [*lines, f"and {hidden} more date(s)"] if hidden > 0 else lines


def _date_line(audited: AuditedDate) -> str:
    if audited.finding is AuditFinding.EXPECTATION_INCOMPLETE:
        return f"{audited.day} {audited.reason}"
    if audited.observed.skip_reason is not None:
        return f"{audited.day} {audited.finding.value}: {audited.reason}"
    matched, expected = audited.observed.matched, audited.expected
    names = audited.describe_missing()
    line = f"{audited.day} {audited.finding.value} {matched}/{expected} ({format_percent(matched, expected)})"
    return f"{line}, {names}" if names else line
