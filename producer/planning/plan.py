"""What a run would do with each date, decided before anything starts. `plan` prints it, `run` sends it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from datetime import date
from enum import Enum
from functools import partial
from typing import Any

from gated_backfill.common.errors import UserError
from gated_backfill.common.ledger import Checkpoint, DateRow, Ledger
from gated_backfill.common.ledger.states import INCOMPLETE_DATES
from gated_backfill.common.model.coverage import (
    Fallback,
    Verdict,
    choose_source,
    format_percent,
    judge_expectation,
    reaches_ratio,
)
from gated_backfill.common.model.dates import (
    FIRST_SUPPORTED_DATE,
    ONE_DAY,
    DateRange,
    enclosing_range,
    format_dates,
    parse_date,
)
from gated_backfill.common.model.job import CalendarEvents, Job
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.clock import today
from gated_backfill.common.warehouse.coverage_queries import (
    expectation_scan,
    read_calendar,
    read_entities,
    source_entities,
)
from gated_backfill.common.warehouse.protocol import Warehouse
from gated_backfill.common.warehouse.table_checks import MissingTables, check_tables
from gated_backfill.producer.planning.range_counts import count_range
from gated_backfill.producer.planning.reprocess import Reprocess

PLAN_FORMAT = 1  #: of what `Plan.as_json` gives
LEFT_INCOMPLETE_PREFIX = "ended "  #: how the reason begins for a date that is left alone though it is not complete


class PlanAction(Enum):
    """What a run does with a date."""

    BUILD = "build"  #: send a task for it
    DONE = "done"  #: leave it: it is checkpointed, or was tried before and is not to be tried again
    SKIP = "skip"  #: there is nothing to build on it
    BLOCKED = "blocked"  #: it would not pass the gate


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanStep:
    """One date of a plan. The reason is shown to the user as it stands."""

    day: date
    action: PlanAction
    reason: str
    expected: int | None = None
    found: Mapping[str, int] = field(default_factory=dict[str, int])
    source: str | None = None
    supplied: int | None = None  #: expected entities that the chosen source can supply

    @property
    def is_left_incomplete(self) -> bool:
        """Left alone although no run completed it."""
        return self.action is PlanAction.DONE and self.reason.startswith(LEFT_INCOMPLETE_PREFIX)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "day": self.day.isoformat(),
            "action": self.action.value,
            "found": dict(self.found),
        }


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What was asked for."""

    job: str
    days: tuple[date, ...]
    excluded: tuple[date, ...] = ()
    reprocess: Reprocess = Reprocess.FAILED
    newest_first: bool = False
    fallback: Fallback | None = None
    forced_because: str | None = None
    reason: str | None = None  #: why it is launched

    def as_json(self) -> dict[str, Any]:
        return {
            "job": self.job,
            "days": [day.isoformat() for day in self.days],
            "excluded": [day.isoformat() for day in self.excluded],
            "reprocess": self.reprocess.value,
            "newest_first": self.newest_first,
            "fallback": self.fallback.value if self.fallback else None,
            "forced_because": self.forced_because,
            "reason": self.reason,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> RunRequest:
        return cls(
            job=stored["job"],
            days=tuple(parse_date(day) for day in stored["days"]),
            excluded=tuple(parse_date(day) for day in stored["excluded"]),
            reprocess=Reprocess(stored["reprocess"]),
            newest_first=bool(stored["newest_first"]),
            fallback=Fallback(stored["fallback"]) if stored["fallback"] else None,
            forced_because=stored["forced_because"],
            reason=stored.get("reason"),
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps of a request, in the order in which they would be sent, and what is worth knowing of its tables."""

    request: RunRequest
    version: str
    steps: tuple[PlanStep, ...]
    notes: tuple[str, ...]
    has_calendar: bool = False  #: whether there is a calendar to hold the expectation against

    def steps_with(self, action: PlanAction) -> list[PlanStep]:
        return [step for step in self.steps if step.action is action]

    def digest(self) -> str:
        """A value that is the same for the same steps."""
        steps = json.dumps([step.as_json() for step in self.steps], sort_keys=True)
        return hashlib.sha256(steps.encode()).hexdigest()

    def summary(self) -> str:
        """What the request resolved to, in one line."""
        span = format_dates([*self.request.days, *self.request.excluded])
        counts = ", ".join(
            f"{len(self.steps_with(action))} {words}" for action, words in _WORDS.items() if self.steps_with(action)
        )
        cut = f", {len(self.request.excluded)} excluded" if self.request.excluded else ""
        return f"{self.request.job}, {span}: {len(self.steps)} date(s){cut}: {counts}"

    def as_json(self) -> dict[str, Any]:
        return {
            "format": PLAN_FORMAT,
            **self.request.as_json(),
            "version": self.version,
            "summary": self.summary(),
            "counts": {action.value: len(self.steps_with(action)) for action in PlanAction},
            "notes": list(self.notes),
            "steps": [step.as_json() for step in self.steps],
        }


_WORDS = {
    PlanAction.BUILD: "to build",
    PlanAction.DONE: "left as they are",
    PlanAction.SKIP: "to skip",
    PlanAction.BLOCKED: "would be blocked",
}


@dataclass(frozen=True, kw_only=True)
class PlanMeasurements:
    """Everything a plan is decided from."""

    expected: Mapping[date, int]
    found: Mapping[str, Mapping[date, int]]  #: by source
    with_primary: Mapping[str, Mapping[date, int]]  #: by fallback: what it and the primary have between them
    calendar: CalendarEvents | None
    checkpoints: Mapping[date, Checkpoint]  #: none, where every date is built again
    latest_outcomes: Mapping[
        date, DateRow
    ]  #: how the latest run left each date; none, where what failed is built again
    changed_days: Set[date] = frozenset()  #: checkpointed dates whose rows are no longer those that were proven


def resolve_days(span: DateRange | None, days: Sequence[date], excluded: Sequence[date]) -> tuple[date, ...]:
    """The dates asked for, oldest first. Raises `UserError` for one too late or too early, and when none is left."""
    asked = sorted({*(span.days() if span else ()), *days})
    if asked and asked[0] < FIRST_SUPPORTED_DATE:
        raise UserError(f"{asked[0]} is too long ago: the first date that can be asked for is {FIRST_SUPPORTED_DATE}")
    if late := [day for day in asked if day > today()]:
        raise UserError(
            f"{format_dates(late)} is in the future: the last date that can be asked for is {today()} (UTC)"
        )
    kept = tuple(day for day in asked if day not in set(excluded))
    if not kept:
        raise UserError("no date is left: every date asked for is excluded" if asked else "no date was asked for")
    return kept


def make_plan(request: RunRequest, job: Job, warehouse: Warehouse, ledger: Ledger) -> Plan:
    """Measure the whole range, reading every table once, and decide every date. Changes nothing."""
    absent = check_tables(warehouse, job)
    options = RunOptions.for_job(
        job, window=1, in_flight=1, fallback=request.fallback, forced_because=request.forced_because
    )
    measured = _measure(request, job, warehouse, ledger, absent, options)
    steps = plan_dates(request, job, measured, options)
    check_not_expired([step.day for step in steps if step.action is PlanAction.BUILD], job, warehouse)
    ordered = tuple(reversed(steps)) if request.newest_first else tuple(steps)
    return Plan(
        request=request,
        version=job.version,
        steps=ordered,
        notes=tuple(absent.notes(job)),
        has_calendar=not absent.calendar,
    )


def check_not_expired(days: Sequence[date], job: Job, warehouse: Warehouse) -> None:
    """Raises `UserError` when the target would drop one of the days at once: its partitions expire."""
    info = warehouse.describe(TableName.parse(job.target.table))
    if info is None or info.expires_after_days is None:
        return
    first_kept = today() - ONE_DAY * info.expires_after_days
    if gone := [day for day in days if day < first_kept]:
        raise UserError(
            f"{info.table} drops partitions older than {info.expires_after_days} day(s), so {len(gone)} date(s) would "
            f"vanish after they were built: {format_dates(gone)}; start at {first_kept}, or let it keep them longer"
        )


def _measure(
    request: RunRequest, job: Job, warehouse: Warehouse, ledger: Ledger, absent: MissingTables, options: RunOptions
) -> PlanMeasurements:
    """What the plan of the request turns on: what earlier runs did is looked up as far as it leaves dates alone."""
    days = request.days
    present = [source for source in job.sources if source.name not in absent.sources]
    counts = count_range(warehouse, job, present, days)
    span = enclosing_range(days)
    checkpoints: Mapping[date, Checkpoint] = {}
    if request.reprocess is not Reprocess.ALL:
        checkpoints = ledger.checkpoints.list_checkpoints(job.name, span.start, span.through)
    return PlanMeasurements(
        expected=counts.expected,
        found=counts.found,
        with_primary=counts.with_primary if options.fallback is Fallback.FILL else {},
        calendar=read_calendar(warehouse, job, days),
        checkpoints=checkpoints,
        changed_days=_changed(days, job, warehouse, checkpoints),
        latest_outcomes=ledger.dates.latest_date_outcomes(job.name, span.start, span.through)
        if request.reprocess is Reprocess.NONE
        else {},
    )


def _changed(
    days: Sequence[date], job: Job, warehouse: Warehouse, checkpoints: Mapping[date, Checkpoint]
) -> frozenset[date]:
    """The checkpointed days whose target no longer holds what was proven: somebody wrote it, or it is gone."""
    proven = {day: checkpoints[day].checksum for day in days if day in checkpoints}
    return frozenset(proven) - warehouse.matching_dates(
        TableName.parse(job.target.table), job.target.date_column, proven
    )


def plan_dates(request: RunRequest, job: Job, measured: PlanMeasurements, options: RunOptions) -> list[PlanStep]:
    """One step per date, oldest first."""
    return [_step(day, request, job, measured, options) for day in request.days]


def _step(day: date, request: RunRequest, job: Job, measured: PlanMeasurements, options: RunOptions) -> PlanStep:
    found = {source.name: measured.found.get(source.name, {}).get(day, 0) for source in job.sources}
    expected = measured.expected.get(day, 0)
    counted = partial(PlanStep, day=day, expected=expected, found=found)
    if left := _left_alone(day, request.reprocess, measured):
        return counted(action=PlanAction.DONE, reason=left)
    if skipped := job.skip(day, measured.calendar):
        return counted(action=PlanAction.SKIP, reason=skipped)
    about_truth = judge_expectation(job.date_expectation(expected, day, measured.calendar))
    if about_truth is not None and about_truth.verdict is Verdict.SKIPPED:
        return counted(action=PlanAction.SKIP, reason=about_truth.reason)
    choice = choose_source(
        list(found),
        found,
        expected,
        policy=options.policy,
        fallback=options.fallback,
        with_fill={name: counts.get(day, 0) for name, counts in measured.with_primary.items()} or None,
    )
    supplied = partial(counted, source=choice.label, supplied=choice.covered)
    reason = choice.reason
    if request.reprocess is not Reprocess.ALL and day in measured.changed_days:
        reason = f"checkpointed, but its rows were changed since; {reason}"
    if about_truth is not None:
        reason = about_truth.reason
    elif reaches_ratio(choice.covered, expected, options.accept_ratio):
        return supplied(action=PlanAction.BUILD, reason=reason)
    if request.forced_because is not None and choice.covered:
        return supplied(action=PlanAction.BUILD, reason=f"{reason}; will be forced: {request.forced_because}")
    return supplied(action=PlanAction.BLOCKED, reason=reason)


def _left_alone(day: date, reprocess: Reprocess, measured: PlanMeasurements) -> str | None:
    checkpoint, end = measured.checkpoints.get(day), measured.latest_outcomes.get(day)
    if reprocess is Reprocess.ALL:
        return None
    if checkpoint is not None and day in measured.changed_days:
        if reprocess is Reprocess.NONE:
            return (
                f"{LEFT_INCOMPLETE_PREFIX}with run {checkpoint.run_id}, "
                "but its rows were changed since, and --reprocess is none"
            )
        return None
    if checkpoint is not None:
        of = format_percent(checkpoint.matched, checkpoint.expected)
        forced = ", forced" if checkpoint.verdict is Verdict.FORCED else ""
        return f"already checkpointed ({of}{forced}, run {checkpoint.run_id})"
    if reprocess is Reprocess.NONE and end is not None and end.state in INCOMPLETE_DATES:
        return f"{LEFT_INCOMPLETE_PREFIX}{end.state.value} in run {end.run_id}, and --reprocess is none"
    return None


def find_missing_entities(
    days: Sequence[date], job: Job, steps: Mapping[date, PlanStep], warehouse: Warehouse
) -> dict[date, list[str]]:
    """For each day, the expected entities that its chosen source lacks, by name."""
    expected = read_entities(warehouse, expectation_scan(job, days))
    check_tables(warehouse, job)
    present = source_entities(warehouse, job, days, expected)

    def supplied(day: date) -> frozenset[str]:
        chosen = (steps[day].source or "").split("+")
        return frozenset[str]().union(*(present[name].get(day, frozenset()) for name in chosen if name in present))

    return {day: sorted(expected.get(day, frozenset()) - supplied(day)) for day in days}


def parse_date_list(texts: Sequence[str], option: str) -> tuple[date, ...]:
    """Dates and ranges as written on the command line: `2023-02-23,2023-03-01..2023-03-05`, any number of times."""
    found: list[date] = []
    for text in (part.strip() for one in texts for part in one.split(",")):
        if not text:
            continue
        start, dots, through = text.partition("..")
        try:
            first = parse_date(start)
            found += DateRange(start=first, through=parse_date(through) if dots else first).days()
        except UserError as exc:
            raise UserError(f"{option}: {exc}") from exc
    return tuple(sorted(set(found)))
