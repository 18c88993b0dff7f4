"""Findings of an audit: decide from one date's observation whether its published rows are complete. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Any

from gated_backfill.common.ledger import Checkpoint, RenewedProof, UndoneDate
from gated_backfill.common.model.coverage import (
    CoveragePolicy,
    DateExpectation,
    Verdict,
    describe_duplicate_keys,
    describe_null_keys,
    describe_schema_problem,
    format_percent,
    judge_expectation,
    reaches_ratio,
)
from gated_backfill.common.model.dates import format_dates
from gated_backfill.common.model.expectation_floor import has_shrunk
from gated_backfill.common.model.missing_names import list_names


class AuditFinding(Enum):
    """What an audit says about one date. The values are stored with flags and printed in JSON."""

    COMPLETE = "complete"  #: the expected entities are published
    ACCEPTED = "accepted"  #: some are missing, but no more than the job's policy accepts
    SKIPPED = "skipped"  #: nothing is expected on this date, or the job skips it
    FORCED = "forced"  #: a run published it by force, and its rows have not changed since
    CHANGED = "changed"  #: the rows differ from the ones that a run checkpointed
    DUPLICATED = "duplicated"  #: a key appears more than once in the published rows
    INVALID = "invalid"  #: rows have null keys, or nulls and values that the output columns do not allow
    INCOMPLETE = "incomplete"  #: more expected entities are missing than the policy accepts
    MISSING = "missing"  #: entities are expected, and no rows are published at all
    EXPECTATION_INCOMPLETE = "expectation incomplete"  #: more must be expected, see `judge_expectation`
    IN_PROGRESS = "in progress"  #: a run is working on the date, so it was not judged

    @property
    def is_fine(self) -> bool:
        """Whether the date was judged and needs no action."""
        return self in (AuditFinding.COMPLETE, AuditFinding.ACCEPTED, AuditFinding.SKIPPED, AuditFinding.FORCED)

    @property
    def is_repairable(self) -> bool:
        """Whether rebuilding the date repairs it."""
        return self in REPAIRABLE_FINDINGS


REPAIRABLE_FINDINGS = frozenset(
    {AuditFinding.CHANGED, AuditFinding.DUPLICATED, AuditFinding.INVALID, AuditFinding.INCOMPLETE, AuditFinding.MISSING}
)


@dataclass(frozen=True, kw_only=True)
class DateObservation:
    """The facts from which the finding of one date is decided."""

    day: date
    expectation: DateExpectation
    matched: int = 0  #: expected entities in the published rows; unexpected entities do not count
    rows: int = 0  #: published rows of the date, with the rows of unexpected entities
    duplicates: int = 0  #: keys that more than one published row has
    null_keys: int = 0  #: published rows with a null in a column of the key
    schema_problem: str | None = None  #: the first rule of the output columns that the published rows break
    checkpoint: Checkpoint | None = None
    matches_checkpoint: bool = False  #: the published rows are exactly the checkpointed ones
    undone: UndoneDate | None = None  #: the run that built it was undone, and no run has checkpointed it since
    skip_reason: str | None = None  #: why the job skips the date
    active_run: str | None = None  #: the run that is working on the date now
    #: Of rows that were read and found unchanged: their quick fingerprint from before that, for the next audit.
    renewed_quick: str | None = None


@dataclass(frozen=True, kw_only=True)
class AuditedDate:
    """One date with its finding. The reason names every problem of the date, not only the worst."""

    observed: DateObservation
    finding: AuditFinding
    reason: str
    missing: tuple[str, ...] = ()  #: names of missing entities, as many as were asked for
    stale: str | None = None  #: why its rows are stale, if that was asked for; does not change the finding
    renewed_parts: Mapping[str, str] | None = None  #: the checkpoint's input parts, if some need not be read again

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
        """Whether `run --flagged` should rebuild the date: a rebuild repairs it and the job does not skip it."""
        return self.finding.is_repairable and self.observed.skip_reason is None

    @property
    def written_by(self) -> str:
        """Which run wrote the published rows, as far as the ledger can tell."""
        if self.observed.checkpoint is not None and self.observed.matches_checkpoint:
            return f"run {self.observed.checkpoint.run_id}"
        return "not by a run" if self.observed.rows else "-"

    def describe_missing(self) -> str:
        """The number of missing entities and some of their names; empty when no names are known."""
        if not self.missing:
            return ""
        return f"missing {self.missing_count}: {list_names(self.missing, self.missing_count)}"

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
            "null_keys": self.observed.null_keys,
            "schema_problem": self.observed.schema_problem,
            "missing": list(self.missing),
            "written_by": self.written_by,
            "checkpoint": checkpoint.run_id if checkpoint else None,
            "forced": checkpoint is not None and checkpoint.verdict is Verdict.FORCED,
            "changed": differs_from_checkpoint(self.observed),
            "stale": self.stale,
            "undone": self.observed.undone.as_json() if self.observed.undone else None,
        }


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """The findings on a job's dates, oldest first."""

    job: str
    dates: tuple[AuditedDate, ...]
    notes: tuple[str, ...] = ()  #: what could be checked in part only

    @property
    def is_fine(self) -> bool:
        return all(audited.finding.is_fine for audited in self.dates)

    @property
    def renewed_proofs(self) -> list[RenewedProof]:
        """What was read and found unchanged of checkpoints, so that it need not be read the next time."""
        return [
            RenewedProof(
                job=self.job,
                day=audited.day,
                run_id=audited.observed.checkpoint.run_id,
                target_quick=audited.observed.renewed_quick,
                input_parts=audited.renewed_parts,
            )
            for audited in self.dates
            if audited.observed.checkpoint is not None
            and (audited.observed.renewed_quick is not None or audited.renewed_parts is not None)
        ]

    @property
    def dates_to_flag(self) -> list[AuditedDate]:
        return [audited for audited in self.dates if audited.needs_flag]

    @property
    def skipped_but_changed(self) -> list[AuditedDate]:
        """Dates that need a repair which no run makes, because the job skips them. They get no flag."""
        return [audited for audited in self.dates if audited.finding.is_repairable and not audited.needs_flag]

    @property
    def stale(self) -> list[AuditedDate]:
        """Dates whose job's version or rules, sources or inputs have changed since they were checkpointed."""
        return [audited for audited in self.dates if audited.stale is not None]

    @property
    def undone(self) -> list[AuditedDate]:
        """Dates whose run was undone, and that no run has checkpointed since."""
        return [audited for audited in self.dates if audited.observed.undone is not None]

    def with_finding(self, finding: AuditFinding) -> list[AuditedDate]:
        return [audited for audited in self.dates if audited.finding is finding]

    def counts(self) -> str:
        return describe_findings(self.dates)

    def summary(self) -> str:
        """Job, dates and counts in one line."""
        days = format_dates(audited.day for audited in self.dates)
        return f"{self.job}, {days}: {len(self.dates)} date(s): {self.counts()}"


def describe_findings(dates: Iterable[AuditedDate]) -> str:
    """The number of dates for each finding: `3 complete, 1 missing`."""
    counts = Counter(audited.finding for audited in dates)
    return ", ".join(f"{counts[finding]} {finding.value}" for finding in AuditFinding if counts[finding])


def differs_from_checkpoint(observed: DateObservation) -> bool:
    """Whether the date is checkpointed and its published rows have changed since."""
    return observed.checkpoint is not None and not observed.matches_checkpoint


def classify(observed: DateObservation, policy: CoveragePolicy) -> AuditedDate:
    """Decide the worst finding of a date; the reason names the other problems as well."""
    finding, reason = _worst_finding(observed, policy)
    reasons = [reason]
    if finding is not AuditFinding.IN_PROGRESS:
        reasons += _further_problems(observed, reason)
    return AuditedDate(observed=observed, finding=finding, reason="; ".join(reasons))


def _worst_finding(observed: DateObservation, policy: CoveragePolicy) -> tuple[AuditFinding, str]:
    if observed.active_run is not None:
        return AuditFinding.IN_PROGRESS, f"run {observed.active_run} is working on it: not judged"
    judgement = judge_expectation(observed.expectation)
    is_changed = differs_from_checkpoint(observed)
    if observed.skip_reason is not None:
        return (AuditFinding.CHANGED if is_changed else AuditFinding.SKIPPED), observed.skip_reason
    if judgement is not None and judgement.verdict is Verdict.SKIPPED:
        return AuditFinding.SKIPPED, judgement.reason
    coverage = _describe_coverage(observed)
    checkpoint, expected = observed.checkpoint, observed.expectation.expected
    defect = next(((finding, f"{problem}; {coverage}") for finding, problem in _row_defects(observed)), None)
    is_forced = checkpoint is not None and checkpoint.verdict is Verdict.FORCED and not is_changed
    if checkpoint is not None and is_forced and not has_shrunk(checkpoint, expected, policy.accept_ratio):
        forced = f"forced by run {checkpoint.run_id}, rows unchanged since; now {coverage}"
        return defect or (AuditFinding.FORCED, forced)  # no force accepts a defect: the job declares other rules now
    if judgement is not None:
        return AuditFinding.EXPECTATION_INCOMPLETE, judgement.reason
    if not observed.rows:
        return AuditFinding.MISSING, f"no rows are published, {expected} entities are expected"
    if not reaches_ratio(observed.matched, expected, policy.accept_ratio):
        return AuditFinding.INCOMPLETE, f"{coverage}, below {policy.accept_ratio:.0%}"
    if defect is not None:
        return defect
    if is_changed:
        return AuditFinding.CHANGED, coverage
    if not reaches_ratio(observed.matched, expected, policy.complete_ratio):
        return AuditFinding.ACCEPTED, f"{coverage}, below {policy.complete_ratio:.0%}"
    return AuditFinding.COMPLETE, coverage


def _describe_coverage(observed: DateObservation) -> str:
    expected = observed.expectation.expected
    return f"{observed.matched} of {expected} expected entities ({format_percent(observed.matched, expected)})"


def _row_defects(observed: DateObservation) -> list[tuple[AuditFinding, str]]:
    """List what the gate refuses in rows whatever the expectation is, and also by force; in the gate's order."""
    defects: list[tuple[AuditFinding, str]] = []
    if observed.null_keys:
        defects.append((AuditFinding.INVALID, describe_null_keys(observed.null_keys)))
    if observed.duplicates:
        defects.append((AuditFinding.DUPLICATED, describe_duplicate_keys(observed.duplicates)))
    if observed.schema_problem:
        defects.append((AuditFinding.INVALID, describe_schema_problem(observed.schema_problem)))
    return defects


def _further_problems(observed: DateObservation, reason: str) -> list[str]:
    """List the problems that the reason of the finding does not name."""
    problems = [observed.undone.describe()] if observed.undone is not None else []
    checkpoint = observed.checkpoint
    if checkpoint is not None and differs_from_checkpoint(observed):
        coverage = f"{checkpoint.matched} of {checkpoint.expected}"
        problems.append(f"its rows differ from the ones that run {checkpoint.run_id} checkpointed ({coverage})")
        if checkpoint.verdict is Verdict.FORCED:
            problems.append("that run had forced it")
    return problems + [problem for _, problem in _row_defects(observed) if not reason.startswith(problem)]
