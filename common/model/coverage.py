"""The decisions: is the truth itself whole, which source to build from, and does a date pass. All pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

MISSING_NAMES_SHOWN = 12  #: names of missing entities of one date, wherever some are shown
MISSING_NAMES_STORED = 500  #: names of missing entities of one date in the ledger; their number is always exact


class Verdict(Enum):
    """What the gate says of a date."""

    COMPLETE = "complete"  #: published and checkpointed
    ACCEPTED = "accepted"  #: published and checkpointed, with a warning: some entities are missing
    FORCED = "forced"  #: published and checkpointed because somebody insisted, and marked so for ever
    BLOCKED = "blocked"  #: not published; its staged rows are kept in quarantine
    SKIPPED = "skipped"  #: there is nothing to build on this date
    FAILED = "failed"  #: it could not be built

    @property
    def is_passing(self) -> bool:
        return self in PASSING_VERDICTS


PASSING_VERDICTS = frozenset({Verdict.COMPLETE, Verdict.ACCEPTED, Verdict.FORCED})


class Fallback(Enum):
    """What to do when the primary source is partial."""

    REPLACE = "replace"  #: take all rows from the best fallback
    FILL = "fill"  #: keep the primary's rows, take only the missing entities from the best fallback
    OFF = "off"  #: build from the primary whatever it holds, and let the gate judge


@dataclass(frozen=True, kw_only=True)
class CoveragePolicy:
    """The shares of expected entities at which a date is complete, and at which it is still accepted."""

    complete_ratio: float = 0.95
    accept_ratio: float = 0.90

    def __post_init__(self) -> None:
        if not 0 < self.accept_ratio <= self.complete_ratio <= 1:
            raise ValueError("a coverage policy needs 0 < accept_ratio <= complete_ratio <= 1")


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verdict with its reason, which is shown to the user as it stands."""

    verdict: Verdict
    reason: str


@dataclass(frozen=True, kw_only=True)
class DateExpectation:
    """What is known about who must be there on one date."""

    expected: int  #: distinct expected entities
    events: int | None = None  #: entries of the calendar on this date; None when there is no calendar
    floor_per_event: int = 0  #: the fewest entities that one calendar entry implies


def format_percent(part: int, whole: int) -> str:
    """`part` of `whole` in per cent with one decimal, cut rather than rounded: 99.96 % never reads as 100 %."""
    if not whole:
        return "0.0 %"
    return f"{part * 1000 // whole / 10:.1f} %"


def reaches_ratio(part: int, whole: int, ratio: float) -> bool:
    """Whether `part` of `whole` is at least the ratio: asked in this one way everywhere, so that answers agree."""
    return not whole or part / whole >= ratio


def judge_expectation(truth: DateExpectation) -> Judgement | None:
    """Skip or block a date for what its expectation is; None when the date can be built.

    A count of zero is never "nothing to do" on a date that the calendar lists.
    """
    if truth.events is None:
        return None if truth.expected else Judgement(verdict=Verdict.SKIPPED, reason="nothing expected")
    if truth.events == 0:
        return None if truth.expected else Judgement(verdict=Verdict.SKIPPED, reason="not on the calendar")
    floor = truth.events * truth.floor_per_event
    if truth.expected and truth.expected >= floor:
        return None
    return Judgement(
        verdict=Verdict.BLOCKED,
        reason=f"truth incomplete: {truth.expected} expected, but the calendar has {truth.events} "
        f"event(s), which imply at least {max(floor, 1)}",
    )


@dataclass(frozen=True, kw_only=True)
class SourceChoice:
    """The source that a date is built from."""

    source: str
    reason: str
    fill_from: str | None = None  #: in fill mode, the source that supplies what the first one lacks
    covered: int = 0  #: expected entities that the choice can supply

    @property
    def label(self) -> str:
        return f"{self.source}+{self.fill_from}" if self.fill_from else self.source


def choose_source(
    order: Sequence[str],
    found: Mapping[str, int],
    expected: int,
    *,
    policy: CoveragePolicy,
    fallback: Fallback,
    with_fill: Mapping[str, int] | None = None,
) -> SourceChoice:
    """Choose by coverage, never by emptiness.

    `found` counts the expected entities each source has; `with_fill` counts, for each fallback, those that it and
    the primary have between them. A primary that reaches the accept ratio is used; else the best source that does;
    else the best there is, and the gate will refuse it.
    """
    primary, others = order[0], order[1:]
    threshold = f"{policy.accept_ratio:.0%}"
    if reaches_ratio(found[primary], expected, policy.accept_ratio):
        return SourceChoice(
            source=primary, reason=f"primary at {format_percent(found[primary], expected)}", covered=found[primary]
        )
    if fallback is Fallback.OFF or not others:
        why = "fallback is off" if fallback is Fallback.OFF else "there is no fallback"
        reason = f"primary below {threshold} at {format_percent(found[primary], expected)}, {why}"
        return SourceChoice(source=primary, reason=reason, covered=found[primary])
    if fallback is Fallback.FILL and with_fill is not None:
        best = max(others, key=lambda name: with_fill[name])
        reason = f"primary below {threshold} at {format_percent(found[primary], expected)}, filled from {best}"
        return SourceChoice(source=primary, fill_from=best, reason=reason, covered=with_fill[best])
    best = max(order, key=lambda name: found[name])
    if reaches_ratio(found[best], expected, policy.accept_ratio):
        reason = f"primary below {threshold} at {format_percent(found[primary], expected)}"
    else:
        reason = f"no source reaches {threshold}; the best has {format_percent(found[best], expected)}"
    return SourceChoice(source=best, reason=reason, covered=found[best])


@dataclass(frozen=True, kw_only=True)
class Recount:
    """What the gate counted in the staged rows of one date."""

    expectation: DateExpectation
    matched: int  #: expected entities that the staged rows hold; strangers do not count
    rows: int
    duplicate_keys: int = 0
    null_keys: int = 0
    schema_problem: str | None = None  #: the first way in which the rows break the job's output schema
    missing: tuple[str, ...] = field(default=())


def judge_date(counted: Recount, *, policy: CoveragePolicy, forced_because: str | None = None) -> Judgement:
    """The verdict on one date.

    Force accepts low coverage or a partial truth. It never accepts rows that are wrong in themselves: duplicate or
    null keys, a broken schema, or no rows at all.
    """
    if broken := _broken(counted):
        return Judgement(verdict=Verdict.BLOCKED, reason=broken)
    if about_truth := judge_expectation(counted.expectation):
        return _unless_forced(about_truth, counted, forced_because)
    expected = counted.expectation.expected
    found = f"{counted.matched} of {expected} expected entities ({format_percent(counted.matched, expected)})"
    if reaches_ratio(counted.matched, expected, policy.complete_ratio):
        return Judgement(verdict=Verdict.COMPLETE, reason=found)
    if reaches_ratio(counted.matched, expected, policy.accept_ratio):
        return Judgement(verdict=Verdict.ACCEPTED, reason=f"{found}, below {policy.complete_ratio:.0%}")
    blocked = Judgement(verdict=Verdict.BLOCKED, reason=f"{found}, below {policy.accept_ratio:.0%}")
    return _unless_forced(blocked, counted, forced_because)


def _broken(counted: Recount) -> str | None:
    if counted.null_keys:
        return f"{counted.null_keys} row(s) with a null key"
    if counted.duplicate_keys:
        return f"duplicate key: {counted.duplicate_keys} key(s) appear more than once"
    return f"output schema: {counted.schema_problem}" if counted.schema_problem else None


def _unless_forced(judgement: Judgement, counted: Recount, because: str | None) -> Judgement:
    if judgement.verdict is not Verdict.BLOCKED or because is None or not counted.rows:
        return judgement
    return Judgement(verdict=Verdict.FORCED, reason=f"{judgement.reason}; forced: {because}")
