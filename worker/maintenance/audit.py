"""The daily audit: every job's recent dates looked at anew, what is wrong flagged, and somebody told once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import date

import structlog

from gated_backfill.common.audit.audit import (
    AUDIT_ACTOR,
    AuditedDate,
    AuditFinding,
    AuditResult,
    audit_dates,
    describe_findings,
    newly_flagged,
    record_audit,
)
from gated_backfill.common.errors import BackfillError, Retryable
from gated_backfill.common.ledger import NewAlert
from gated_backfill.common.model.alert_kinds import AlertKind
from gated_backfill.common.model.coverage import format_percent
from gated_backfill.common.model.dates import ONE_DAY, DateRange
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.registry import find_job, job_names
from gated_backfill.common.process.clock import today
from gated_backfill.worker.dependencies import Deps

DATES_TOLD = 15  #: in one alert
NAMES_TOLD = 5  #: of the missing entities of a date

log = structlog.get_logger()


class AuditFailed(BackfillError):
    """Some jobs could not be audited; the others were."""


class AuditInterrupted(Retryable):
    """Some jobs could not be audited just now; the others were."""


def audit_recent(deps: Deps, *, on: date | None = None) -> str:
    """Audit the `audit_days` days before the date (today) of every installed job: flag what is wrong, tell what is new.

    Returns what was found, job by job. A job that no run of this ledger ever built is left alone. A job whose audit
    fails keeps none of the others from theirs: then raises `AuditFailed`, or `AuditInterrupted` where all that failed
    may succeed a little later. Safe to repeat: nothing is told twice.
    """
    now = on or today()
    told: list[str] = []
    failed: dict[str, Exception] = {}
    for name in job_names():
        try:
            told.append(f"{name}: {_audit_job(find_job(name), deps, now)}")
        except Exception as exc:  # noqa: BLE001 - raised below, once the other jobs have had their turn
            log.error("audit_failed", job=name, error=f"{type(exc).__name__}: {exc}")
            failed[name] = exc
        else:
            log.info("audit_done", outcome=told[-1])
    if failed:
        raise _failure(failed, told)
    return "; ".join(told) or "no job is installed"


def _failure(failed: dict[str, Exception], told: Sequence[str]) -> BackfillError:
    passing = all(isinstance(exc, Retryable) for exc in failed.values())
    parts = [f"{name}: {type(exc).__name__}: {exc}" for name, exc in failed.items()]
    kind = AuditInterrupted if passing else AuditFailed
    found = kind(f"{len(failed)} job(s) could not be audited: {'; '.join(parts)}; audited: {'; '.join(told) or 'none'}")
    found.__cause__ = next(iter(failed.values()))
    return found


def _audit_job(job: Job, deps: Deps, now: date) -> str:
    first = deps.ledger.flags.earliest_day(job.name)
    if first is None:
        return "never run, not audited"
    days = recent_days(first, now, deps.settings.audit_days)
    if not days:
        return "no date of it is before today"
    audit = audit_dates(job, days, deps.warehouse, deps.ledger)
    flags = deps.ledger.flags.list_open_flags(job.name)
    new = newly_flagged(audit, {day: flag.finding for day, flag in flags.items()})
    alert = audit_alert(audit, new, now)
    if alert is not None:
        deps.ledger.alerts.record_alert(alert)  # before the flags, which make that it counts as told
    recorded = record_audit(audit, deps.ledger, AUDIT_ACTOR)
    cleared = f", {len(recorded.cleared)} flag(s) cleared" if recorded.cleared else ""
    notes = f" ({'; '.join(audit.notes)})" if audit.notes else ""
    return f"{audit.counts()}; {len(new)} newly flagged{cleared}{notes}"


def recent_days(first: date, now: date, most: int) -> list[date]:
    """The last days up to yesterday, none before the first one that a run of the job dealt with."""
    yesterday = now - ONE_DAY
    start = max(first, now - ONE_DAY * most)
    return DateRange(start=start, through=yesterday).days() if start <= yesterday else []


def audit_alert(audit: AuditResult, new: Sequence[AuditedDate], now: date) -> NewAlert | None:
    """One alert of what is new: dates to repair, or else dates that no run can repair. These have no flags to tell what
    is new, so they are told once for each set of them."""
    unknown, skipped = audit.with_finding(AuditFinding.EXPECTATION_INCOMPLETE), audit.skipped_but_changed
    if new:
        key, title = f"{now} {_digest(new)}", f"{len(new)} date(s) are not as they must be"
    elif unknown:
        key, title = f"unflagged {_digest([*unknown, *skipped])}", f"what {len(unknown)} date(s) must hold is not known"
    elif skipped:
        key, title = f"unflagged {_digest(skipped)}", f"{len(skipped)} date(s) that the job skips were changed"
    else:
        return None
    return NewAlert(
        key=f"{AlertKind.AUDIT} {audit.job} {key}",
        kind=AlertKind.AUDIT,
        title=f"{audit.job}: {title}",
        body=alert_body(audit, new),
        job=audit.job,
    )


def _digest(dates: Sequence[AuditedDate]) -> str:
    """A short value that is the same for the same dates and findings."""
    listed = "\n".join(f"{one.day} {one.finding.value}" for one in dates)
    return hashlib.sha256(listed.encode()).hexdigest()[:12]


def alert_body(audit: AuditResult, new: Sequence[AuditedDate]) -> str:
    """What was found, date by date, and what to run next."""
    unknown = audit.with_finding(AuditFinding.EXPECTATION_INCOMPLETE)
    lines = [f"audited {audit.summary()}", *audit.notes]
    if new:
        lines += [f"new: {describe_findings(new)}", *_told(new)]
        lines.append(f"build them again: backfill run --job {audit.job} --flagged")
    if unknown:
        lines += ["what must be there is not known, so load it first:", *_told(unknown)]
    if audit.skipped_but_changed:
        lines += ["the job skips these, so no run repairs them: see who wrote them", *_told(audit.skipped_but_changed)]
    return "\n".join(lines)


def _told(dates: Sequence[AuditedDate]) -> list[str]:
    lines = [_in_a_line(one) for one in dates[:DATES_TOLD]]
    more = len(dates) - DATES_TOLD
    return [*lines, f"and {more} more date(s)"] if more > 0 else lines


def _in_a_line(one: AuditedDate) -> str:
    if one.finding is AuditFinding.EXPECTATION_INCOMPLETE:
        return f"{one.day} {one.reason}"
    if one.observed.skip_reason is not None:
        return f"{one.day} {one.finding.value}: {one.reason}"
    share = f"{one.observed.matched}/{one.expected} ({format_percent(one.observed.matched, one.expected)})"
    names = one.describe_missing(most=NAMES_TOLD)
    return f"{one.day} {one.finding.value} {share}" + (f", {names}" if names else "")
