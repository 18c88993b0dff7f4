"""The audit: what a job's target holds now against what is expected now, whoever wrote it and whenever.

A checkpoint says that a date was complete when its run looked. Rows are deleted, tables are reloaded and players turn
up late: only a new look tells whether the date is complete still.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from enum import Enum
from typing import Any, LiteralString

from gated_backfill.common.errors import UserError
from gated_backfill.common.ledger import Checkpoint, Ledger, NewFlag
from gated_backfill.common.model.coverage import (
    CoveragePolicy,
    DateExpectation,
    Verdict,
    format_percent,
    judge_expectation,
    reaches_ratio,
)
from gated_backfill.common.model.dates import chunk_dates, consecutive_ranges, enclosing_range, format_dates
from gated_backfill.common.model.job import CalendarEvents, Job
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.coverage_queries import expectation_scan, read_calendar
from gated_backfill.common.warehouse.protocol import Scan, Warehouse, require_table

DATES_AT_ONCE = 1000  #: that one query reads
NAMES_KEPT = 12  #: of the missing entities of one date
AUDIT_ACTOR = "audit"  #: who clears a flag whose date was found to be as it should be

KEYS: tuple[LiteralString, ...] = ("k0", "k1", "k2", "k3", "k4", "k5", "k6", "k7", "k8", "k9", "k10", "k11")

MATCHED = """
    SELECT t.day AS day, COUNT(DISTINCT t.entity) AS expected, COUNT(DISTINCT p.entity) AS matched
    FROM truth AS t LEFT JOIN published AS p ON p.day = t.day AND p.entity = t.entity
    WHERE t.entity IS NOT NULL
    GROUP BY t.day
"""

SOME_MISSING = """
    SELECT day, CAST(entity AS STRING) AS entity FROM (
        SELECT t.day AS day, t.entity AS entity
        FROM truth AS t LEFT JOIN published AS p ON p.day = t.day AND p.entity = t.entity
        WHERE t.entity IS NOT NULL AND p.entity IS NULL
        GROUP BY t.day, t.entity
    ) AS missing
    QUALIFY ROW_NUMBER() OVER (PARTITION BY day ORDER BY entity) <= @most
    ORDER BY day, entity
"""


class AuditFinding(Enum):
    """What an audit says of a date."""

    COMPLETE = "complete"  #: the expected entities are there
    ACCEPTED = "accepted"  #: some are missing, but no more than the job's policy accepts
    SKIPPED = "skipped"  #: nothing is expected on this date, or the job skips it
    FORCED = "forced"  #: a run committed it by force, and its rows are still those
    CHANGED = "changed"  #: a run proved it, and its rows are not the proven ones any more
    DUPLICATED = "duplicated"  #: a key of the published rows appears more than once
    INCOMPLETE = "incomplete"  #: more expected entities are missing than the policy accepts
    MISSING = "missing"  #: entities are expected, and no rows are published at all
    EXPECTATION_INCOMPLETE = (
        "truth incomplete"  #: what must be there is not known: the calendar, or a checkpoint, says more
    )
    IN_PROGRESS = "held"  #: a run is at it: not judged

    @property
    def is_fine(self) -> bool:
        """Nothing to do about it, and nothing left unjudged."""
        return self in (AuditFinding.COMPLETE, AuditFinding.ACCEPTED, AuditFinding.SKIPPED, AuditFinding.FORCED)

    @property
    def is_repairable(self) -> bool:
        """A run that builds the date anew repairs it, so it is worth a flag."""
        return self in (AuditFinding.CHANGED, AuditFinding.DUPLICATED, AuditFinding.INCOMPLETE, AuditFinding.MISSING)


@dataclass(frozen=True, kw_only=True)
class DateObservation:
    """Everything that the finding on one date is decided from."""

    day: date
    expectation: DateExpectation
    matched: int = 0  #: expected entities that the published rows hold; strangers do not count
    rows: int = 0  #: published on the date, strangers included
    duplicates: int = 0  #: keys that more than one of them has
    checkpoint: Checkpoint | None = None
    matches_checkpoint: bool = False  #: the published rows are exactly those that the checkpoint proves
    skip_reason: str | None = None  #: why the job skips the date
    active_run: str | None = None  #: the run that is at it now


@dataclass(frozen=True, kw_only=True)
class AuditedDate:
    """One date with its finding. The reason is shown as it stands and tells every fact, not only the worst."""

    observed: DateObservation
    finding: AuditFinding
    reason: str
    missing: tuple[str, ...] = ()  #: names of missing entities (a sample)

    @property
    def day(self) -> date:
        return self.observed.day

    @property
    def expected(self) -> int:
        return self.observed.expectation.expected

    @property
    def missing_count(self) -> int:
        """How many expected entities are missing."""
        return self.expected - self.observed.matched

    @property
    def needs_flag(self) -> bool:
        """Whether `run --flagged` is to build it: it needs to, and the job would not skip it."""
        return self.finding.is_repairable and self.observed.skip_reason is None

    @property
    def written_by(self) -> str:
        """Who wrote the rows that are there now, as far as the ledger can tell."""
        if self.observed.checkpoint is not None and self.observed.matches_checkpoint:
            return f"run {self.observed.checkpoint.run_id}"
        return "not by a run" if self.observed.rows else "-"

    def describe_missing(self, *, most: int = NAMES_KEPT) -> str:
        """The missing entities: how many, and some by name; empty when none is missing or none is known by name."""
        if not self.missing:
            return ""
        named = self.missing[:most]
        more = f" and {self.missing_count - len(named)} more" if self.missing_count > len(named) else ""
        return f"missing {self.missing_count}: {', '.join(named)}{more}"

    def as_json(self) -> dict[str, Any]:
        checkpoint = self.observed.checkpoint
        return {
            "day": self.day.isoformat(),
            "finding": self.finding.value,
            "reason": self.reason,
            "expected": self.expected,
            "matched": self.observed.matched,
            "rows": self.observed.rows,
            "duplicate_keys": self.observed.duplicates,
            "missing": list(self.missing),
            "written_by": self.written_by,
            "checkpoint": checkpoint.run_id if checkpoint else None,
            "forced": checkpoint is not None and checkpoint.verdict is Verdict.FORCED,
            "changed": is_changed(self.observed),
        }


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """What was found on each date of a job, oldest first."""

    job: str
    dates: tuple[AuditedDate, ...]
    notes: tuple[str, ...] = ()  #: what could only be looked at in part

    @property
    def is_fine(self) -> bool:
        return all(one.finding.is_fine for one in self.dates)

    @property
    def dates_to_flag(self) -> list[AuditedDate]:
        return [one for one in self.dates if one.needs_flag]

    @property
    def skipped_but_changed(self) -> list[AuditedDate]:
        """Dates that are not as a run proved them, and not flagged: a run over them would skip them."""
        return [one for one in self.dates if one.finding.is_repairable and not one.needs_flag]

    def with_finding(self, finding: AuditFinding) -> list[AuditedDate]:
        return [one for one in self.dates if one.finding is finding]

    def counts(self) -> str:
        return describe_findings(self.dates)

    def summary(self) -> str:
        """What was found, in one line."""
        return f"{self.job}, {format_dates(one.day for one in self.dates)}: {len(self.dates)} date(s): {self.counts()}"


def describe_findings(dates: Iterable[AuditedDate]) -> str:
    """How many dates have each finding, in words."""
    counted = Counter(one.finding for one in dates)
    return ", ".join(f"{counted[finding]} {finding.value}" for finding in AuditFinding if counted[finding])


# -- deciding -------------------------------------------------------------------------------------------------


def is_changed(seen: DateObservation) -> bool:
    """Whether a run proved the date and its rows are not those any more."""
    return seen.checkpoint is not None and not seen.matches_checkpoint


def classify(seen: DateObservation, policy: CoveragePolicy) -> AuditedDate:
    """The worst finding on a date, with a reason that names the others."""
    finding, reason = _judged(seen, policy)
    told = [reason]
    if finding is not AuditFinding.IN_PROGRESS:
        told += _further_facts(seen, finding)
    return AuditedDate(observed=seen, finding=finding, reason="; ".join(told))


def _judged(seen: DateObservation, policy: CoveragePolicy) -> tuple[AuditFinding, str]:
    if seen.active_run is not None:
        return AuditFinding.IN_PROGRESS, f"run {seen.active_run} holds it now: not judged"
    about_truth = judge_expectation(seen.expectation)
    if seen.skip_reason is not None:
        return (AuditFinding.CHANGED if is_changed(seen) else AuditFinding.SKIPPED), seen.skip_reason
    if about_truth is not None and about_truth.verdict is Verdict.SKIPPED:
        return _nothing_expected(seen, about_truth.reason)
    found = _coverage(seen)
    if seen.checkpoint is not None and seen.checkpoint.verdict is Verdict.FORCED and seen.matches_checkpoint:
        return AuditFinding.FORCED, f"forced by run {seen.checkpoint.run_id}, rows as committed; now {found}"
    if about_truth is not None:
        return AuditFinding.EXPECTATION_INCOMPLETE, about_truth.reason
    if not seen.rows:
        return AuditFinding.MISSING, f"no rows are published, {seen.expectation.expected} entities are expected"
    if not reaches_ratio(seen.matched, seen.expectation.expected, policy.accept_ratio):
        return AuditFinding.INCOMPLETE, f"{found}, below {policy.accept_ratio:.0%}"
    if seen.duplicates:
        return AuditFinding.DUPLICATED, f"{seen.duplicates} key(s) appear more than once; {found}"
    if is_changed(seen):
        return AuditFinding.CHANGED, found
    if not reaches_ratio(seen.matched, seen.expectation.expected, policy.complete_ratio):
        return AuditFinding.ACCEPTED, f"{found}, below {policy.complete_ratio:.0%}"
    return AuditFinding.COMPLETE, found


def _nothing_expected(seen: DateObservation, reason: str) -> tuple[AuditFinding, str]:
    """A date on which nothing is expected: fine, unless a run once proved entities that were."""
    if seen.checkpoint is not None and seen.checkpoint.expected:
        were = f"{seen.checkpoint.expected} were expected when run {seen.checkpoint.run_id} checkpointed it"
        return AuditFinding.EXPECTATION_INCOMPLETE, f"truth incomplete: {reason} now, but {were}"
    stray = f", though {seen.rows} row(s) are published" if seen.rows else ""
    return AuditFinding.SKIPPED, f"{reason}{stray}"


def _coverage(seen: DateObservation) -> str:
    expected = seen.expectation.expected
    return f"{seen.matched} of {expected} expected entities ({format_percent(seen.matched, expected)})"


def _further_facts(seen: DateObservation, finding: AuditFinding) -> list[str]:
    facts: list[str] = []
    if seen.checkpoint is not None and is_changed(seen):
        then = f"{seen.checkpoint.matched} of {seen.checkpoint.expected}"
        facts.append(f"its rows are not those that run {seen.checkpoint.run_id} proved ({then})")
        if seen.checkpoint.verdict is Verdict.FORCED:
            facts.append("that run had forced it")
    if seen.duplicates and finding is not AuditFinding.DUPLICATED:
        facts.append(f"{seen.duplicates} key(s) appear more than once")
    return facts


# -- reading --------------------------------------------------------------------------------------------------


def audit_dates(job: Job, days: Sequence[date], warehouse: Warehouse, ledger: Ledger) -> AuditResult:
    """Look at every day, in a few grouped queries over all of them. Changes nothing.

    Raises `TableNotFound` when the expectation's table does not exist, `SchemaMismatch` when a table lacks what the job
    needs, and whatever else a query raises: what could not be looked at is never taken for fine.
    """
    target = TableName.parse(job.target.table)
    require_table(warehouse, TableName.parse(job.expectation.table))
    has_target = warehouse.describe(target) is not None
    found: list[AuditedDate] = []
    has_calendar = True
    for some in chunk_dates(sorted(set(days)), DATES_AT_ONCE):
        calendar = read_calendar(warehouse, job, some)
        has_calendar = has_calendar and (calendar is not None or job.expectation.calendar is None)
        seen = _seen(job, some, warehouse, ledger, calendar, has_target=has_target)
        judged = [classify(one, job.policy) for one in seen]
        found += _with_names(judged, job, warehouse, has_target=has_target)
    return AuditResult(job=job.name, dates=tuple(found), notes=tuple(_notes(job, has_target, has_calendar)))


def _notes(job: Job, has_target: bool, has_calendar: bool) -> list[str]:
    notes = [] if has_target else [f"target {job.target.table} does not exist: it holds no rows of any date"]
    if not has_calendar and job.expectation.calendar is not None:
        table = job.expectation.calendar.table
        notes.append(f"calendar {table} does not exist: a date with nothing expected is taken for one without events")
    return notes


def _seen(
    job: Job,
    days: Sequence[date],
    warehouse: Warehouse,
    ledger: Ledger,
    calendar: CalendarEvents | None,
    *,
    has_target: bool,
) -> list[DateObservation]:
    span = enclosing_range(days)
    checkpoints = ledger.checkpoints.list_checkpoints(job.name, span.start, span.through)
    held = _holders(ledger, job, days)
    matched = _matched(job, days, warehouse, has_target=has_target)
    rows = _rows(job, days, warehouse) if has_target else {}
    proven = {day: checkpoints[day].checksum for day in days if day in checkpoints}
    as_proven = warehouse.matching_dates(TableName.parse(job.target.table), job.target.date_column, proven)
    # Whoever published a date between the first of these looks and the last holds it, or has changed its checkpoint.
    held |= _holders(ledger, job, days)
    later = ledger.checkpoints.list_checkpoints(job.name, span.start, span.through)
    for day in days:
        if (moved := later.get(day) or checkpoints.get(day)) and later.get(day) != checkpoints.get(day):
            held[day] = moved.run_id
    return [
        DateObservation(
            day=day,
            expectation=job.date_expectation(matched.get(day, (0, 0))[0], day, calendar),
            matched=matched.get(day, (0, 0))[1],
            rows=rows.get(day, (0, 0))[0],
            duplicates=rows.get(day, (0, 0))[1],
            checkpoint=checkpoints.get(day),
            matches_checkpoint=day in as_proven,
            skip_reason=job.skip(day, calendar),
            active_run=held.get(day),
        )
        for day in days
    ]


def _holders(ledger: Ledger, job: Job, days: Sequence[date]) -> dict[date, str]:
    return {day: run for run, held in ledger.runs.find_conflicting_runs(job.name, days).items() for day in held}


def _matched(job: Job, days: Sequence[date], warehouse: Warehouse, *, has_target: bool) -> dict[date, tuple[int, int]]:
    """By day, the expected entities and those of them that are published; a day without any is not in it."""
    # Without a target the truth stands in for it: what it then has in common with itself is not looked at.
    truth = expectation_scan(job, days)
    scans = {"truth": truth, "published": _published(job, days) if has_target else truth}
    found = warehouse.query(MATCHED, scans=scans).to_pylist()
    return {row["day"]: (row["expected"], row["matched"] if has_target else 0) for row in found}


def _rows(job: Job, days: Sequence[date], warehouse: Warehouse) -> dict[date, tuple[int, int]]:
    """By day, the published rows and the keys that more than one of them has."""
    key = [name for name in job.target.key if name != job.target.date_column]
    if len(key) > len(KEYS):
        raise UserError(f"job {job.name}: an audit looks at keys of up to {len(KEYS)} columns, this one has {len(key)}")
    names = KEYS[: len(key)]
    scan = _published(job, days)
    columns = {"day": job.target.date_column, **dict(zip(names, key, strict=True))}
    found = warehouse.query(rows_by_key(names), scans={"published": replace(scan, columns=columns)})
    return {row["day"]: (row["row_count"], row["duplicates"]) for row in found.to_pylist()}


def rows_by_key(names: Sequence[LiteralString]) -> LiteralString:
    """The query that counts, by day, the rows of `published` and the keys, made of these columns, that repeat."""
    key = ", ".join(("day", *names))
    return f"""
        SELECT day, CAST(SUM(n) AS INT64) AS row_count, COUNTIF(n > 1) AS duplicates
        FROM (SELECT {key}, COUNT(*) AS n FROM published GROUP BY {key}) AS keyed
        GROUP BY day
    """  # noqa: S608 - made of literals only, which the type checker holds it to


def _published(job: Job, days: Iterable[date]) -> Scan:
    return Scan(
        table=TableName.parse(job.target.table),
        date_column=job.target.date_column,
        dates=tuple(consecutive_ranges(days)),
        columns={"day": job.target.date_column, "entity": job.entity_column},
    )


def _with_names(
    judged: Sequence[AuditedDate], job: Job, warehouse: Warehouse, *, has_target: bool
) -> list[AuditedDate]:
    """The dates, those that lack entities with the names of some."""
    if not has_target:
        return list(judged)
    days = [
        one.day
        for one in judged
        if one.missing_count and one.finding not in (AuditFinding.IN_PROGRESS, AuditFinding.SKIPPED)
    ]
    named: dict[date, list[str]] = {}
    if days:
        scans = {"truth": expectation_scan(job, days), "published": _published(job, days)}
        for row in warehouse.query(SOME_MISSING, scans=scans, params={"most": NAMES_KEPT}).to_pylist():
            named.setdefault(row["day"], []).append(row["entity"])
    return [replace(one, missing=tuple(named.get(one.day, ()))) for one in judged]


# -- writing down ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FlagChanges:
    """What writing an audit down did to the flags."""

    flagged: tuple[AuditedDate, ...]  #: every date that is flagged by it
    cleared: tuple[date, ...]  #: these were flagged and are as they should be again


def newly_flagged(audit: AuditResult, known: Mapping[date, str]) -> list[AuditedDate]:
    """The dates to flag that are not flagged yet, or for something else; `known` is the open findings by day."""
    return [one for one in audit.dates_to_flag if known.get(one.day) != one.finding.value]


def record_audit(audit: AuditResult, ledger: Ledger, by: str) -> FlagChanges:
    """Flag what a run has to repair, and clear the flags of what is fine. Repeating it does no harm."""
    ledger.flags.flag_dates(audit.job, [flag_of(one) for one in audit.dates_to_flag], by)
    fine: Collection[date] = [one.day for one in audit.dates if one.finding.is_fine]
    return FlagChanges(
        flagged=tuple(audit.dates_to_flag), cleared=tuple(ledger.flags.clear_flags(audit.job, fine, AUDIT_ACTOR))
    )


def flag_of(one: AuditedDate) -> NewFlag:
    return NewFlag(
        day=one.day,
        finding=one.finding.value,
        reason=one.reason,
        expected=one.expected,
        matched=one.observed.matched,
    )
