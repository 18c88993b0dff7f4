"""The plan of a run: the action for each date, decided before the run starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from datetime import date
from enum import Enum
from functools import partial
from typing import Any

from gated_backfill.common.audit.staleness import Staleness, find_stale_dates
from gated_backfill.common.audit.target_proofs import TargetProofs, compare_with_target
from gated_backfill.common.errors import UserError
from gated_backfill.common.ledger import Checkpoint, DateRow, Ledger, RenewedProof, UndoneDate
from gated_backfill.common.ledger.states import INCOMPLETE_DATES
from gated_backfill.common.model.coverage import (
    NO_FLOOR,
    DateExpectation,
    ExpectationFloor,
    Fallback,
    Judgement,
    Verdict,
    choose_source,
    format_percent,
    judge_expectation,
    reaches_ratio,
    split_label,
)
from gated_backfill.common.model.dates import (
    FIRST_SUPPORTED_DATE,
    ONE_DAY,
    DateRange,
    enclosing_range,
    format_dates,
    parse_date,
)
from gated_backfill.common.model.expectation_floor import CheckpointedDate, has_shrunk
from gated_backfill.common.model.job import CalendarEvents, Job
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.clock import today
from gated_backfill.common.runs.targets import check_target_free
from gated_backfill.common.warehouse.calendar_check import check_calendar_not_lost
from gated_backfill.common.warehouse.coverage_queries import (
    expectation_scan,
    find_contradictions,
    measure_dates,
    read_calendar,
    target_scan,
)
from gated_backfill.common.warehouse.floors import measure_floors
from gated_backfill.common.warehouse.labels import label_work
from gated_backfill.common.warehouse.prerequisites import Prerequisites, measure_prerequisites
from gated_backfill.common.warehouse.protocol import Warehouse
from gated_backfill.common.warehouse.table_checks import (
    MissingTables,
    check_columns_to_read,
    check_tables,
    check_target_columns,
)
from gated_backfill.producer.planning.range_counts import count_range
from gated_backfill.producer.planning.reprocess import Reprocess

PLAN_FORMAT = 1  #: version of the JSON that `Plan.as_json` returns
LEFT_INCOMPLETE_PREFIX = "ended "  #: starts the reason of an incomplete date that the plan leaves unbuilt


class PlanAction(Enum):
    """The action that a run takes on a date."""

    BUILD = "build"  #: build the date
    STALE = "stale"  #: leave the date: it is checkpointed, but its job's version, rules or inputs have changed since
    UNDONE = "undone"  #: leave the date: a run that built it was undone
    DONE = "done"  #: leave the date: it is checkpointed, or incomplete and not selected by --reprocess
    SKIP = "skip"  #: the date has nothing to build
    BLOCKED = "blocked"  #: the date would not pass the gate


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanStep:
    """The planned action for one date. The reason is shown to the user unchanged."""

    day: date
    action: PlanAction
    reason: str
    expected: int | None = None
    found: Mapping[str, int] = field(default_factory=dict[str, int])  #: expected entities by source
    source: str | None = None
    supplied: int | None = None  #: expected entities that the chosen source can supply
    floor: int = 0  #: the fewest entities that may be expected when the date is built
    floor_reason: str = ""

    @property
    def source_names(self) -> list[str]:
        """The names of the chosen source and of the one that it is filled from."""
        return split_label(self.source)

    @property
    def is_left_incomplete(self) -> bool:
        """Whether the plan leaves the date unbuilt although no run completed it."""
        return self.action is PlanAction.DONE and self.reason.startswith(LEFT_INCOMPLETE_PREFIX)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"day": self.day.isoformat(), "action": self.action.value, "found": dict(self.found)}


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """The job and dates to build, and how to treat earlier results and low coverage."""

    job: str
    days: tuple[date, ...]
    excluded: tuple[date, ...] = ()
    reprocess: Reprocess = Reprocess.FAILED
    newest_first: bool = False
    fallback: Fallback | None = None
    forced_because: str | None = None
    reason: str | None = None  #: of the launch, given by the user
    rebuilt: tuple[date, ...] = ()  #: dates to build although a run has checkpointed them

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "days": [day.isoformat() for day in self.days],
            "excluded": [day.isoformat() for day in self.excluded],
            "rebuilt": [day.isoformat() for day in self.rebuilt],
            "reprocess": self.reprocess.value,
            "fallback": self.fallback.value if self.fallback else None,
        }


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps of a request in build order, and notes about its tables."""

    request: RunRequest
    version: str
    steps: tuple[PlanStep, ...]
    notes: tuple[str, ...]
    has_calendar: bool = False  #: whether a calendar table can validate the expectation
    hashed_days: tuple[date, ...] = ()  #: checkpointed dates whose rows in the target were read
    #: By the roles of tables, the checkpointed dates for which they were read, to compare them with those recorded.
    read_roles: Mapping[frozenset[str], Sequence[date]] = field(default_factory=dict[frozenset[str], Sequence[date]])
    recounted_days: tuple[date, ...] = ()  #: checkpointed dates whose published entities were counted again
    renewed_proofs: tuple[RenewedProof, ...] = ()  #: what was read and found unchanged, for the launch to record
    #: The dates that were checkpointed when this was planned, with the runs that did so.
    checkpointed_by: Mapping[date, str] = field(default_factory=dict[date, str])

    def steps_with(self, action: PlanAction) -> list[PlanStep]:
        return [step for step in self.steps if step.action is action]

    def digest(self) -> str:
        """A hash of the job's version and the steps, equal for equal plans."""
        steps = json.dumps([self.version, *(step.as_json() for step in self.steps)], sort_keys=True)
        return hashlib.sha256(steps.encode()).hexdigest()

    def summary(self) -> str:
        """One line with the job, the range, and the number of dates by action."""
        span = format_dates([*self.request.days, *self.request.excluded])
        counts = ", ".join(
            f"{len(self.steps_with(action))} {words}" for action, words in _TEXTS.items() if self.steps_with(action)
        )
        excluded = f", {len(self.request.excluded)} excluded" if self.request.excluded else ""
        return f"{self.request.job}, {span}: {len(self.steps)} date(s){excluded}: {counts}"

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


_TEXTS = {
    PlanAction.BUILD: "to build",
    PlanAction.DONE: "left as they are",
    PlanAction.STALE: "stale",
    PlanAction.UNDONE: "undone",
    PlanAction.SKIP: "to skip",
    PlanAction.BLOCKED: "would be blocked",
}


@dataclass(frozen=True, kw_only=True)
class PlanMeasurements:
    """The measurements from which the action for each date is decided."""

    expected: Mapping[date, int]
    found: Mapping[str, Mapping[date, int]]  #: by source: expected entities it has
    with_primary: Mapping[str, Mapping[date, int]]  #: by fallback: expected entities that it or the primary has
    calendar: CalendarEvents | None
    checkpoints: Mapping[date, Checkpoint]  #: empty when every date is rebuilt
    latest_outcomes: Mapping[date, DateRow]  #: each date's row in its latest run; empty when failed dates are rebuilt
    changed_days: Set[date] = frozenset()  #: checkpointed dates whose rows were changed since
    published: Mapping[date, int] = field(default_factory=dict[date, int])  #: where the expectation has changed since
    proofs: TargetProofs = field(default_factory=TargetProofs)  #: of the checkpointed dates
    staleness: Staleness = field(default_factory=Staleness)  #: of those whose rows are unchanged
    floors: Mapping[date, ExpectationFloor] = field(default_factory=dict[date, ExpectationFloor])
    null_entities: Mapping[date, int] = field(default_factory=dict[date, int])  #: rows of the expectation without one
    contradictions: Mapping[date, str] = field(default_factory=dict[date, str])  #: see `DateExpectation`
    prerequisites: Prerequisites = field(default_factory=Prerequisites)  #: rows that the dates to build lack
    undone: Mapping[date, UndoneDate] = field(default_factory=dict[date, UndoneDate])  #: not checkpointed since
    checkpointed_by: Mapping[date, str] = field(default_factory=dict[date, str])  #: the run of every checkpoint

    def expectation_on(self, day: date, job: Job) -> DateExpectation:
        """Return the number of entities expected on the day, and what speaks against it."""
        return job.date_expectation(
            self.expected.get(day, 0),
            day,
            self.calendar,
            null_entities=self.null_entities.get(day, 0),
            contradicted_by=self.contradictions.get(day),
            floor=self.floors.get(day, NO_FLOOR),
        )


def resolve_days(span: DateRange | None, days: Sequence[date], excluded: Sequence[date]) -> tuple[date, ...]:
    """All dates but the excluded ones, oldest first. Raises `UserError` for unsupported dates and if none remains."""
    dates = sorted({*(span.days() if span else ()), *days})
    if dates and dates[0] < FIRST_SUPPORTED_DATE:
        raise UserError(f"{dates[0]} is too long ago: the first date that can be asked for is {FIRST_SUPPORTED_DATE}")
    if future := [day for day in dates if day > today()]:
        raise UserError(
            f"{format_dates(future)} is in the future: the last date that can be asked for is {today()} (UTC)"
        )
    days_to_build = tuple(day for day in dates if day not in set(excluded))
    if not days_to_build:
        raise UserError("no date is left: every date asked for is excluded" if dates else "no date was asked for")
    return days_to_build


def make_plan(request: RunRequest, job: Job, warehouse: Warehouse, ledger: Ledger) -> Plan:
    """Plan a request, reading every table once.

    Raises `UserError` when the target would drop a built date, `TableNotFound` for a table or a calendar that is gone.
    """
    check_target_free(job, ledger)
    missing_tables = check_tables(warehouse, job)
    check_calendar_not_lost(job, warehouse, ledger)
    options = RunOptions.for_job(
        job, window=1, in_flight=1, fallback=request.fallback, forced_because=request.forced_because
    )
    with label_work(job=job.name):
        measured = _measure_range(request, job, warehouse, ledger, missing_tables, options)
    steps = plan_dates(request, job, measured, options)
    check_steps_to_build(steps, job, warehouse)
    ordered = tuple(reversed(steps)) if request.newest_first else tuple(steps)
    return Plan(
        request=request,
        version=job.version,
        steps=ordered,
        notes=(*missing_tables.notes(job), *_undone_notes(steps), *_stale_notes(steps, measured)),
        has_calendar=not missing_tables.calendar,
        hashed_days=measured.proofs.read_days,
        read_roles=measured.staleness.read_roles,
        recounted_days=tuple(measured.published),
        renewed_proofs=tuple(_renewed_proofs(job, measured)),
        checkpointed_by=measured.checkpointed_by,
    )


def check_steps_to_build(steps: Iterable[PlanStep], job: Job, warehouse: Warehouse) -> None:
    """Check what the steps that build a date read and write. Raises `UserError`."""
    steps_to_build = [step for step in steps if step.action is PlanAction.BUILD]
    if steps_to_build:
        check_columns_to_read(warehouse, job, {name for step in steps_to_build for name in step.source_names})
        check_target_columns(warehouse, job)
        check_not_expired([step.day for step in steps_to_build], job, warehouse)


def check_window_publishable(plan: Plan, dates_per_window: int, warehouse: Warehouse) -> None:
    """Raise `UserError` when the plan's windows hold more dates than the warehouse can publish at once."""
    limit = warehouse.max_dates_per_publication
    largest = min(dates_per_window, len(plan.steps_with(PlanAction.BUILD)))
    if limit is not None and largest > limit:
        raise UserError(
            f"a window of {largest} dates can't be published: the warehouse takes at most {limit} dates at once; "
            f"choose a smaller --window or BACKFILL_WINDOW"
        )


def check_not_expired(days: Sequence[date], job: Job, warehouse: Warehouse) -> None:
    """Raise `UserError` when the target's partition expiration would drop one of the days at once."""
    info = warehouse.describe(TableName.parse(job.target.table))
    if info is None or info.expires_after_days is None:
        return
    first_kept = today() - ONE_DAY * info.expires_after_days
    if expired := [day for day in days if day < first_kept]:
        raise UserError(
            f"{info.table} drops partitions older than {info.expires_after_days} day(s), so {len(expired)} date(s) "
            f"would vanish after they were built: {format_dates(expired)}; start at {first_kept}, "
            "or let it keep them longer"
        )


def _measure_range(
    request: RunRequest, job: Job, warehouse: Warehouse, ledger: Ledger, missing: MissingTables, options: RunOptions
) -> PlanMeasurements:
    """Measure the days of the request; earlier runs are looked up only as far as `reprocess` needs them."""
    days, expectation = request.days, job.expectation
    existing_sources = [source for source in job.sources if source.name not in missing.sources]
    counts = count_range(warehouse, job, existing_sources, days)
    span = enclosing_range(days)
    calendar = read_calendar(warehouse, job, days)
    checkpointed_counts, checkpoints = _list_checkpoints(request, span, job, ledger)
    proofs = compare_with_target(job, {day: checkpoints[day] for day in days if day in checkpoints}, warehouse)
    changed_days = frozenset(checkpoints).intersection(days) - proofs.unchanged
    proven = {day: checkpoints[day] for day in days if day in checkpoints and day not in changed_days}
    staleness = find_stale_dates(job, proven, warehouse)
    return PlanMeasurements(
        expected=counts.expected,
        found=counts.found,
        with_primary=counts.with_primary if options.fallback is Fallback.FILL else {},
        calendar=calendar,
        checkpoints=checkpoints,
        checkpointed_by={day: checkpoint.run_id for day, checkpoint in checkpointed_counts.items()},
        changed_days=changed_days,
        proofs=proofs,
        staleness=staleness,
        published=_count_published(job, proven, staleness, counts.expected, warehouse),
        floors=measure_floors(
            warehouse,
            job,
            days,
            counts.expected,
            checkpoints=checkpointed_counts,
            accept_ratio=options.accept_ratio,
            has_calendar=calendar is not None,
        ),
        null_entities=counts.null_entities,
        contradictions=find_contradictions(
            warehouse, job, [day for day in days if not counts.expected.get(day)], counts.rows
        ),
        prerequisites=measure_prerequisites(
            warehouse,
            job,
            [day for day in days if counts.expected.get(day) and (day not in proven or day in staleness.reasons)],
            days_with_rows={
                (expectation.table, expectation.date_column, expectation.time_zone): counts.expected.keys()
            },
        ),
        undone=ledger.checkpoints.list_undone(job.name, span.start, span.through),
        latest_outcomes=ledger.dates.latest_date_outcomes(job.name, span.start, span.through)
        if request.reprocess is Reprocess.NONE
        else {},
    )


def _list_checkpoints(
    request: RunRequest, span: DateRange, job: Job, ledger: Ledger
) -> tuple[Mapping[date, CheckpointedDate], dict[date, Checkpoint]]:
    """Return what the checkpoints expected, and the checkpoints that may spare a day from being built."""
    if request.reprocess is Reprocess.ALL:  # a tenth of the columns, and of the time
        return ledger.checkpoints.list_expected(job.name, span.start, span.through), {}
    checkpoints = ledger.checkpoints.list_checkpoints(job.name, span.start, span.through)
    rebuilt = {*request.rebuilt}
    return checkpoints, {day: checkpoint for day, checkpoint in checkpoints.items() if day not in rebuilt}


def _renewed_proofs(job: Job, measured: PlanMeasurements) -> list[RenewedProof]:
    quick, parts = measured.proofs.renewed, measured.staleness.renewed_parts
    return [
        RenewedProof(
            job=job.name,
            day=day,
            run_id=measured.checkpoints[day].run_id,
            target_quick=quick.get(day),
            input_parts=parts.get(day),
        )
        for day in sorted(quick.keys() | parts.keys())
    ]


def _count_published(
    job: Job,
    proven: Mapping[date, Checkpoint],
    staleness: Staleness,
    expected: Mapping[date, int],
    warehouse: Warehouse,
) -> Mapping[date, int]:
    """Count the published expected entities of the dates that may be incomplete by the present expectation and rules.

    A forced date never reached its expectation. Where no fingerprint was recorded, the numbers tell.
    """
    days = [
        day
        for day in sorted(staleness.to_recount)
        if proven[day].verdict is not Verdict.FORCED
        and (proven[day].input_parts is not None or proven[day].expected != expected.get(day, 0))
    ]
    if not days:
        return {}
    counts = warehouse.count_entities(
        expectation_scan(job, days), {"target": target_scan(job, days)}, [("target",)]
    ).present["target",]
    return {day: counts.get(day, 0) for day in days}


def _stale_notes(steps: Sequence[PlanStep], measured: PlanMeasurements) -> list[str]:
    notes: list[str] = []
    if stale := [step.day for step in steps if step.action is PlanAction.STALE]:
        notes.append(
            f"{len(stale)} date(s) are stale and left as they are: {format_dates(stale)}; --reprocess stale builds them"
        )
    if without := measured.staleness.without_inputs:
        notes.append(
            f"{without} checkpoint(s) by an earlier version of this tool record no inputs: of these dates only the "
            "job's version is compared"
        )
    return notes


def _undone_notes(steps: Sequence[PlanStep]) -> list[str]:
    undone = [step.day for step in steps if step.action is PlanAction.UNDONE]
    days = format_dates(undone)
    note = f"{len(undone)} date(s) are undone and left as they are: {days}; --reprocess undone builds them"
    return [note] if undone else []


def plan_dates(request: RunRequest, job: Job, measured: PlanMeasurements, options: RunOptions) -> list[PlanStep]:
    """One step per date, oldest first."""
    return [_plan_date(day, request, job, measured, options) for day in request.days]


def _plan_date(day: date, request: RunRequest, job: Job, measured: PlanMeasurements, options: RunOptions) -> PlanStep:
    counts_by_source = {source.name: measured.found.get(source.name, {}).get(day, 0) for source in job.sources}
    expectation = measured.expectation_on(day, job)
    expected = expectation.expected
    make_step = partial(PlanStep, day=day, expected=expected, found=counts_by_source)
    skip_reason = job.skip_reason(day, measured.calendar)
    judgement = None if skip_reason else judge_expectation(expectation)
    reprocess = Reprocess.ALL if day in request.rebuilt else request.reprocess
    reason_to_rebuild = _reason_to_rebuild(day, expected, reprocess, measured, options)
    done_reason = _reason_to_leave(day, reprocess, measured, reason_to_rebuild)
    if done_reason and not _is_disproved(measured.checkpoints.get(day), expected, judgement, options):
        stale_reason = measured.staleness.reasons.get(day)
        action = PlanAction.DONE if stale_reason is None or reason_to_rebuild else PlanAction.STALE
        return make_step(action=action, reason=done_reason if action is PlanAction.DONE else stale_reason or "")
    if skip_reason:
        return make_step(action=PlanAction.SKIP, reason=skip_reason)
    undone = measured.undone.get(day)
    if undone is not None and not reprocess.builds_undone:
        return make_step(action=PlanAction.UNDONE, reason=undone.describe())
    if judgement is not None and judgement.verdict is Verdict.SKIPPED:
        return make_step(action=PlanAction.SKIP, reason=judgement.reason)
    choice = choose_source(
        list(counts_by_source),
        counts_by_source,
        expected,
        policy=options.policy,
        fallback=options.fallback,
        with_fill={name: counts.get(day, 0) for name, counts in measured.with_primary.items()} or None,
    )
    make_sourced_step = partial(
        make_step,
        source=choice.label,
        supplied=choice.covered,
        floor=expectation.floor,
        floor_reason=expectation.floor_reason,
    )
    earlier = reason_to_rebuild or (undone.describe() if undone is not None else None)
    reason = f"{earlier}; {choice.reason}" if earlier else choice.reason
    if judgement is not None:
        reason = judgement.reason
    elif problem := measured.prerequisites.problem_with(choice, day):
        reason = problem
    elif reaches_ratio(choice.covered, expected, options.accept_ratio):
        return make_sourced_step(action=PlanAction.BUILD, reason=reason)
    if request.forced_because is not None and choice.covered:
        return make_sourced_step(action=PlanAction.BUILD, reason=f"{reason}; will be forced: {request.forced_because}")
    return make_sourced_step(action=PlanAction.BLOCKED, reason=reason)


def _is_disproved(
    checkpoint: Checkpoint | None, expected: int, judgement: Judgement | None, options: RunOptions
) -> bool:
    """Whether the expectation, as it is now, contradicts the date's checkpoint.

    A forced checkpoint was written in spite of an incomplete expectation: it must have become smaller since.
    """
    if checkpoint is None or judgement is None or judgement.verdict is not Verdict.BLOCKED:
        return False
    return checkpoint.verdict is not Verdict.FORCED or has_shrunk(checkpoint, expected, options.accept_ratio)


def _reason_to_rebuild(
    day: date, expected: int, reprocess: Reprocess, measured: PlanMeasurements, options: RunOptions
) -> str | None:
    """Why a checkpointed date is built again; None for another date, and for one that counts as done."""
    checkpoint = measured.checkpoints.get(day)
    if checkpoint is None or reprocess is Reprocess.ALL:
        return None
    if day in measured.changed_days:
        return "checkpointed, but its rows were changed since"
    published = measured.published.get(day)
    if published is not None and expected and not reaches_ratio(published, expected, options.accept_ratio):
        present = f"{published} of {expected} ({format_percent(published, expected)})"
        before = f"checkpointed with {checkpoint.matched} of {checkpoint.expected}"
        if expected == checkpoint.expected:
            return f"{before}, but by the present expectation and rules {present} are published"
        return f"{before}, but {expected} are expected now: {present} are published"
    if published is None and _is_below_ratio(checkpoint, options.accept_ratio):
        return (
            f"checkpointed with {checkpoint.matched} of {checkpoint.expected} "
            f"({format_percent(checkpoint.matched, checkpoint.expected)}), below the {options.accept_ratio:.0%} that "
            "is required now"
        )
    return measured.staleness.reasons.get(day) if reprocess is Reprocess.STALE else None


def _is_below_ratio(checkpoint: Checkpoint, accept_ratio: float) -> bool:
    """Whether the date was accepted, without force, with a lower coverage than is accepted now."""
    return checkpoint.verdict is not Verdict.FORCED and not reaches_ratio(
        checkpoint.matched, checkpoint.expected, accept_ratio
    )


def _reason_to_leave(
    day: date, reprocess: Reprocess, measured: PlanMeasurements, reason_to_rebuild: str | None
) -> str | None:
    """The reason not to build a date that an earlier run ended; None to build it."""
    checkpoint, outcome = measured.checkpoints.get(day), measured.latest_outcomes.get(day)
    if reprocess is Reprocess.ALL:
        return None
    if checkpoint is not None and reason_to_rebuild is not None:
        if reprocess is not Reprocess.NONE:
            return None
        problem = reason_to_rebuild.removeprefix("checkpointed, ").removeprefix("checkpointed ")
        return f"{LEFT_INCOMPLETE_PREFIX}with run {checkpoint.run_id}, {problem}, and --reprocess is none"
    if checkpoint is not None:
        share = format_percent(checkpoint.matched, checkpoint.expected)
        forced = ", forced" if checkpoint.verdict is Verdict.FORCED else ""
        return f"already checkpointed ({share}{forced}, run {checkpoint.run_id})"
    if reprocess is Reprocess.NONE and outcome is not None and outcome.state in INCOMPLETE_DATES:
        return f"{LEFT_INCOMPLETE_PREFIX}{outcome.state.value} in run {outcome.run_id}, and --reprocess is none"
    return None


def compare_entities(
    days: Sequence[date], job: Job, steps: Mapping[date, PlanStep], warehouse: Warehouse
) -> dict[date, tuple[frozenset[str], frozenset[str]]]:
    """The expected entities that each day's source (with its fill) lacks, and the source's unexpected entities."""
    check_tables(warehouse, job)
    measured = measure_dates(warehouse, job, days)

    def compare_day(day: date) -> tuple[frozenset[str], frozenset[str]]:
        names = [name for name in steps[day].source_names if name in measured.sources]
        sources = [measured.sources[name] for name in names]
        present = [source.present.get(day, frozenset[str]()) for source in sources]
        # Of the source that the first one is filled from, only expected entities are taken.
        unexpected = [source.unexpected.get(day, ()) for source in sources[:1]]
        return measured.expected.get(day, frozenset[str]()).difference(*present), frozenset(*unexpected)

    return {day: compare_day(day) for day in days}


def parse_date_list(texts: Sequence[str], option: str) -> tuple[date, ...]:
    """Parse the dates and ranges of an option, like `2023-02-23,2023-03-01..2023-03-05`; `UserError` names it."""
    days: list[date] = []
    for text in (part.strip() for part in ",".join(texts).split(",")):
        if not text:
            continue
        start, dots, through = text.partition("..")
        try:
            first = parse_date(start)
            days += DateRange(start=first, through=parse_date(through) if dots else first).days()
        except UserError as exc:
            raise UserError(f"{option}: {exc}") from exc
    return tuple(sorted(set(days)))
