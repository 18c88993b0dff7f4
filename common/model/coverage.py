"""Decide whether an expectation is complete, which source to build from, and whether a date passes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import lru_cache

from gated_backfill.common.model.field_checks import check_fields
from gated_backfill.common.model.missing_names import list_names

INCOMPLETE_EXPECTATION = "expectation incomplete"  #: begins the reason of a date whose expectation is not trusted


class Verdict(Enum):
    """The gate's decision on a date."""

    COMPLETE = "complete"  #: published and checkpointed
    ACCEPTED = "accepted"  #: published and checkpointed, with a warning: some entities are missing
    FORCED = "forced"  #: published and checkpointed at the user's request, and marked as forced for ever
    BLOCKED = "blocked"  #: not published; its staged rows are kept in quarantine
    SKIPPED = "skipped"  #: nothing to build on this date
    FAILED = "failed"  #: it could not be built

    @property
    def is_passing(self) -> bool:
        """Whether the date is published and checkpointed."""
        return self in PASSING_VERDICTS


PASSING_VERDICTS = frozenset({Verdict.COMPLETE, Verdict.ACCEPTED, Verdict.FORCED})


class Fallback(Enum):
    """How to build a date when the primary source's coverage is too low."""

    REPLACE = "replace"  #: take all rows from the best fallback
    FILL = "fill"  #: keep the primary's rows and add the missing entities from the best fallback
    OFF = "off"  #: build from the primary at any coverage, and let the gate judge


@dataclass(frozen=True, kw_only=True)
class CoveragePolicy:
    """The coverage that a date needs, as shares of the expected entities.

    Raises `ValueError` for impossible shares, and `UserError` for values that are no numbers.

    Two questions have a ratio of their own: from which coverage on the primary source is taken without looking for
    another one (`fallback_below`), and from which coverage on a date may be published (`accept_ratio`).
    """

    complete_ratio: float = 0.95  #: from this ratio on, a date is complete
    accept_ratio: float = 0.90  #: from this ratio on, a date is accepted with a warning; below it, the date is blocked
    #: Below this ratio the primary gives way to a better source. None: `accept_ratio`, or 1 with `Fallback.FILL`.
    fallback_below: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, "a CoveragePolicy")
        if not 0 < self.accept_ratio <= self.complete_ratio <= 1:
            raise ValueError("a coverage policy needs 0 < accept_ratio <= complete_ratio <= 1")
        if self.fallback_below is not None and not 0 <= self.fallback_below <= 1:
            raise ValueError("a coverage policy needs 0 <= fallback_below <= 1")

    def fallback_threshold(self, fallback: Fallback) -> float:
        """Return the coverage below which the primary gives way to another source, or is filled from one."""
        if self.fallback_below is not None:
            return self.fallback_below
        return 1.0 if fallback is Fallback.FILL else self.accept_ratio


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verdict with its reason, as it is shown to the user."""

    verdict: Verdict
    reason: str


@dataclass(frozen=True, kw_only=True)
class ExpectationFloor:
    """The fewest entities that may be expected on a date, and where that number comes from."""

    count: int = 0
    reason: str = ""


NO_FLOOR = ExpectationFloor()


@dataclass(frozen=True, kw_only=True)
class DateExpectation:
    """The number of entities expected on one date, and what speaks against that number."""

    expected: int  #: distinct expected entities
    events: int | None = None  #: entries of the calendar on this date; None when there is no calendar
    floor_per_event: int = 0  #: the fewest entities that one calendar entry implies
    null_entities: int = 0  #: rows of the expectation whose entity is null
    contradicted_by: str | None = None  #: what has rows on a date without expected entities, in words
    floor: int = 0  #: the fewest entities that may be expected
    floor_reason: str = ""  #: where the floor comes from, in words
    table: str = "the expectation"  #: the expectation's table, for messages

    def with_floor(self, floor: int | None, reason: str | None) -> DateExpectation:
        """Return this expectation with the floor that was stored with the date; None for no floor."""
        return DateExpectation(  # `dataclasses.replace` takes ten times as long, and every date needs this three times
            expected=self.expected,
            events=self.events,
            floor_per_event=self.floor_per_event,
            null_entities=self.null_entities,
            contradicted_by=self.contradicted_by,
            floor=floor or 0,
            floor_reason=reason or "",
            table=self.table,
        )


def describe_contradiction(rows_by_source: Mapping[str, int], *, target_has_rows: bool) -> str | None:
    """Say what has rows on a date on which nothing is expected; None if nothing has."""
    facts = [f"source {name} has {rows} row(s)" for name, rows in rows_by_source.items() if rows]
    return " and ".join([*facts, "the target has rows"] if target_has_rows else facts) or None


def format_percent(part: int, whole: int) -> str:
    """Format `part` of `whole` in per cent with one decimal, rounded down: 99.96 % never reads as 100 %."""
    if not whole:
        return "0.0 %"
    return f"{part * 1000 // whole / 10:.1f} %"


def reaches_ratio(part: int, whole: int, ratio: float) -> bool:
    """Return whether `part` of `whole` is at least the ratio. One function, so that all callers agree."""
    return not whole or part / whole >= ratio


@lru_cache
def least_count(whole: float, ratio: float) -> int:
    """Return the smallest number that `reaches_ratio` accepts as this share of `whole`."""
    count = max(int(ratio * whole) - 1, 0)
    while whole and count / whole < ratio:
        count += 1
    return count


def judge_expectation(expectation: DateExpectation) -> Judgement | None:
    """Return the verdict that the expectation alone decides: skipped or blocked; None when the date can be built.

    A date is skipped only if nothing speaks for it: no expected entity, no event on the calendar, no null entity, no
    row in a source or the target, no checkpoint.
    """
    if problem := _expectation_problem(expectation):
        return Judgement(verdict=Verdict.BLOCKED, reason=f"{INCOMPLETE_EXPECTATION}: {problem}")
    if expectation.expected:
        return None
    reason = "nothing expected" if expectation.events is None else "not on the calendar"
    return Judgement(verdict=Verdict.SKIPPED, reason=reason)


def _expectation_problem(expectation: DateExpectation) -> str | None:
    """Return the first reason why more entities must be expected than are, or None."""
    expected, events = expectation.expected, expectation.events or 0
    if expectation.null_entities:
        return f"{expectation.null_entities} row(s) of {expectation.table} have a null entity: fill or delete them"
    if events and expected < (implied := max(events * expectation.floor_per_event, 1)):
        return f"{expected} expected, but the calendar has {events} event(s), which imply at least {implied}"
    if expected < expectation.floor:
        return f"{expected} expected, fewer than {expectation.floor}: {expectation.floor_reason}"
    if not expected and expectation.contradicted_by:
        off_calendar = "" if expectation.events is None else " and the calendar has no event"
        return f"nothing is expected{off_calendar}, but {expectation.contradicted_by}"
    return None


@dataclass(frozen=True, kw_only=True)
class SourceChoice:
    """The source that a date is built from."""

    source: str
    reason: str
    fill_from: str | None = None  #: in fill mode, the source of the entities that `source` lacks
    covered: int = 0  #: expected entities that the choice can supply

    @property
    def label(self) -> str:
        return f"{self.source}+{self.fill_from}" if self.fill_from else self.source


def split_label(label: str | None) -> list[str]:
    """Return the names of the sources in a `SourceChoice.label`; none without one."""
    return label.split("+") if label else []


def choose_source(
    order: Sequence[str],
    covered: Mapping[str, int],
    expected: int,
    *,
    policy: CoveragePolicy,
    fallback: Fallback,
    with_fill: Mapping[str, int] | None = None,
) -> SourceChoice:
    """Choose the source to build a date from by its coverage, not by whether it has rows.

    `order` lists the sources by preference. `covered` counts the expected entities in each source, and `with_fill` the
    expected entities in each fallback and the primary together. A primary that reaches `policy.fallback_threshold` is
    chosen; otherwise the best source, which the gate blocks if it is below the accept ratio. In fill mode, the primary
    is filled from the fallback that adds most, if one of them adds anything.
    """
    primary, fallbacks = order[0], order[1:]
    threshold = policy.fallback_threshold(fallback)
    share = format_percent(covered[primary], expected)
    if reaches_ratio(covered[primary], expected, threshold):
        return SourceChoice(source=primary, reason=f"primary at {share}", covered=covered[primary])
    reason = f"primary below {threshold:.0%} at {share}"
    alone = SourceChoice(source=primary, reason=reason, covered=covered[primary])
    if fallback is Fallback.OFF or not fallbacks:
        cause = "fallback is off" if fallback is Fallback.OFF else "there is no fallback"
        return replace(alone, reason=f"{reason}, {cause}")
    if fallback is Fallback.FILL and with_fill is not None:
        best = max(fallbacks, key=lambda name: with_fill[name])
        if with_fill[best] == covered[primary]:
            return replace(alone, reason=f"{reason}, no fallback adds any")
        reason = f"{reason}, filled from {best}"
        return SourceChoice(source=primary, fill_from=best, reason=reason, covered=with_fill[best])
    best = max(order, key=lambda name: covered[name])
    if not reaches_ratio(covered[best], expected, policy.accept_ratio):
        share = format_percent(covered[best], expected)
        reason = f"no source reaches {policy.accept_ratio:.0%}; the best has {share}"
    return SourceChoice(source=best, reason=reason, covered=covered[best])


@dataclass(frozen=True, kw_only=True)
class TargetCounts:
    """What the target has on one date, compared with the staged rows that are to replace it."""

    rows: int = 0
    matched: int = 0  #: expected entities among its rows, by the same rule as those of the staged rows
    held: int = 0  #: expected entities that have a row, whatever else the rule compares
    entities: int = 0  #: distinct entities that have a row, unexpected ones included
    lost: tuple[str, ...] = ()  #: expected entities that it has and the staged rows lack, sorted
    dropped: tuple[str, ...] = ()  #: unexpected entities that it has and the staged rows lack, sorted
    thinned: tuple[str, ...] = ()  #: expected entities of which it has more rows than were staged, sorted


def describe_loss(target: TargetCounts, *, expected: int, policy: CoveragePolicy, writer: str | None) -> str | None:
    """Say what a publication would lose of the rows that the target has; None if it would lose nothing that counts.

    `writer` is the run that wrote these rows; None if no run is known to have written them. Rows of a run were counted
    against their expectation when they were published, so of these only expected entities count. Of other rows nothing
    is known: fewer rows of an entity count, too, and so do unexpected entities if hardly any entity of the target would
    be left: then it is the expectation that may be incomplete.
    """
    if target.lost:
        lost = f"{len(target.lost)} of {target.held} expected entities that the target holds"
        return f"would lose {lost}: {_names(target.lost)}; {_written_by(writer)}"
    if writer is not None:
        return None
    if target.thinned:
        lost = f"rows of {len(target.thinned)} of {target.held} expected entities that the target holds"
        return f"would lose {lost}: {_names(target.thinned)}; {_written_by(writer)}"
    left = target.entities - len(target.dropped)
    if any(reaches_ratio(count, target.entities, policy.accept_ratio) for count in (expected, left)):
        return None
    return (
        f"{INCOMPLETE_EXPECTATION}: {expected} expected, but the target holds {target.entities} entities, and would "
        f"lose {len(target.dropped)} unexpected ones: {_names(target.dropped)}; {_written_by(writer)}"
    )


def _names(names: Sequence[str]) -> str:
    return list_names(names, len(names))


def _written_by(writer: str | None) -> str:
    return "no run of this job wrote them" if writer is None else f"run {writer} wrote them"


@dataclass(frozen=True, kw_only=True)
class Recount:
    """The gate's counts over the staged rows of one date."""

    expectation: DateExpectation
    matched: int  #: expected entities in the staged rows; unexpected entities do not count
    rows: int
    duplicate_keys: int = 0
    null_keys: int = 0
    schema_problem: str | None = None  #: the first way in which the rows break the job's output schema
    lacking: str | None = None  #: the rows that a forced date was built without, of an input or a lookback
    target: TargetCounts | None = None  #: None if it was not compared
    loss: str | None = None  #: what a publication would lose of the target's rows, or why they were not compared
    missing: tuple[str, ...] = field(default=())
    unexpected: tuple[str, ...] = field(default=())


def judge_date(recount: Recount, *, policy: CoveragePolicy, forced_because: str | None = None) -> Judgement:
    """Return the verdict on one date.

    A reason in `forced_because` accepts low coverage, an incomplete expectation, or a loss of rows of the target. It
    never accepts duplicate or null keys, a broken schema, or a date without rows or without expected entities.
    """
    if defect := _row_defect(recount):
        return Judgement(verdict=Verdict.BLOCKED, reason=defect)
    judgement = _judge_completeness(recount, policy)
    if recount.loss is None or judgement.verdict is Verdict.SKIPPED:
        return _unless_forced(judgement, recount, forced_because)
    if judgement.verdict.is_passing:
        blocked = Judgement(verdict=Verdict.BLOCKED, reason=f"{recount.loss}; {judgement.reason}")
        return _unless_forced(blocked, recount, forced_because)
    forced = _unless_forced(replace(judgement, reason=f"{judgement.reason}; {recount.loss}"), recount, forced_because)
    return forced if forced.verdict is Verdict.FORCED else judgement


def is_blocked_by_loss_only(recount: Recount, *, policy: CoveragePolicy) -> bool:
    """Return whether the date would pass if its publication did not lose rows of the target."""
    without_loss = judge_date(replace(recount, loss=None), policy=policy)
    return recount.loss is not None and without_loss.verdict.is_passing


def _judge_completeness(recount: Recount, policy: CoveragePolicy) -> Judgement:
    """Judge the staged rows against the expectation."""
    if expectation_judgement := judge_expectation(_contradicted_by_rows(recount)):
        return expectation_judgement
    if recount.lacking:
        return Judgement(verdict=Verdict.BLOCKED, reason=recount.lacking)
    expected = recount.expectation.expected
    share = f"{recount.matched} of {expected} expected entities ({format_percent(recount.matched, expected)})"
    if reaches_ratio(recount.matched, expected, policy.complete_ratio):
        return Judgement(verdict=Verdict.COMPLETE, reason=share)
    if reaches_ratio(recount.matched, expected, policy.accept_ratio):
        return Judgement(verdict=Verdict.ACCEPTED, reason=f"{share}, below {policy.complete_ratio:.0%}")
    return Judgement(verdict=Verdict.BLOCKED, reason=f"{share}, below {policy.accept_ratio:.0%}")


def _contradicted_by_rows(recount: Recount) -> DateExpectation:
    """Return the expectation, contradicted if rows were staged for a date on which nothing is expected."""
    expectation = recount.expectation
    if expectation.expected or expectation.contradicted_by or not recount.rows:
        return expectation
    return replace(expectation, contradicted_by=f"{recount.rows} row(s) were built")


def _row_defect(recount: Recount) -> str | None:
    if recount.null_keys:
        return describe_null_keys(recount.null_keys)
    if recount.duplicate_keys:
        return f"duplicate key: {describe_duplicate_keys(recount.duplicate_keys)}"
    return describe_schema_problem(recount.schema_problem) if recount.schema_problem else None


def describe_null_keys(rows: int) -> str:
    """Say that rows have a null in a column of the key."""
    return f"{rows} row(s) with a null key"


def describe_duplicate_keys(keys: int) -> str:
    """Say how many keys several rows have."""
    return f"{keys} key(s) appear more than once"


def describe_schema_problem(problem: str) -> str:
    """Say which rule of the output columns the rows break."""
    return f"output schema: {problem}"


def _unless_forced(judgement: Judgement, recount: Recount, because: str | None) -> Judgement:
    has_rows = bool(recount.rows and recount.expectation.expected)
    if judgement.verdict is not Verdict.BLOCKED or because is None or not has_rows:
        return judgement
    return Judgement(verdict=Verdict.FORCED, reason=f"{judgement.reason}; forced: {because}")
