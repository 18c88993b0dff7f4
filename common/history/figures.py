"""What runs did over a period, counted: pure functions over the facts that the ledger keeps of every date."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import Enum
from statistics import median
from typing import TypeVar

from gated_backfill.common.ledger.records import DateRow, Run, RunWithDates
from gated_backfill.common.ledger.states import DateState
from gated_backfill.common.model.coverage import Verdict
from gated_backfill.common.model.dates import DateRange

T = TypeVar("T")

BARS = "▁▂▃▄▅▆▇█"
NOTHING = "·"  #: in a sparkline: nothing is known of this stretch


class DateOutcome(Enum):
    """What became of one date of a run."""

    COMPLETE = "complete"
    ACCEPTED = "accepted"
    FORCED = "forced"
    BLOCKED = "blocked"
    FAILED = "failed"
    SKIPPED = "skipped"
    UNFINISHED = "unfinished"  #: the run goes on, or was cancelled before the date was done


PUBLISHED = frozenset({DateOutcome.COMPLETE, DateOutcome.ACCEPTED, DateOutcome.FORCED})
JUDGED = PUBLISHED | {DateOutcome.BLOCKED}  #: those whose coverage somebody has weighed

_ENDS = {
    DateState.BLOCKED: DateOutcome.BLOCKED,
    DateState.FAILED: DateOutcome.FAILED,
    DateState.SKIPPED: DateOutcome.SKIPPED,
}
_PROVEN = {
    Verdict.COMPLETE: DateOutcome.COMPLETE,
    Verdict.ACCEPTED: DateOutcome.ACCEPTED,
    Verdict.FORCED: DateOutcome.FORCED,
}


def outcome_of(row: DateRow) -> DateOutcome:
    """What became of the date. A verdict counts only once the date is checkpointed: until then it may change."""
    if row.state is DateState.CHECKPOINTED and row.verdict is not None:
        return _PROVEN[row.verdict]
    return _ENDS.get(row.state, DateOutcome.UNFINISHED)


def coverage_of(row: DateRow) -> float | None:
    """The share of expected entities that the date had; None unless it was judged by that."""
    if outcome_of(row) not in JUDGED or not row.expected or row.matched is None:
        return None
    return row.matched / row.expected


def primary_of(row: DateRow) -> str | None:
    """The job's first choice when the date was built; None when that was not written down.

    `found` lists the sources in the job's order of that time, so this stays right when the job changes or is removed.
    """
    return next(iter(row.found or ()), None)


def used_fallback(row: DateRow) -> bool | None:
    """Whether a published date holds rows of anything but the primary; None for other dates and where it is unknown."""
    primary = primary_of(row)
    if outcome_of(row) not in PUBLISHED or row.source is None or primary is None:
        return None
    return row.source != primary  # filled from another one, a primary is written `primary+other`


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """The coverage of dates that were judged."""

    dates: int  #: of which the coverage is known
    least: float
    median: float


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What was counted over the dates of one run, or of several."""

    runs: int
    dates: int
    outcomes: Mapping[DateOutcome, int]
    coverage: Coverage | None  #: None when no date was judged
    sourced: int  #: published dates of which it is known whether their source was the primary
    fallbacks: int  #: those of them whose source was not
    wall_seconds: float | None  #: of the runs that have ended, added up
    seconds_median: float | None  #: of one date
    seconds_most: float | None

    def of(self, *outcomes: DateOutcome) -> int:
        return sum(self.outcomes.get(one, 0) for one in outcomes)

    @property
    def published(self) -> int:
        return self.of(*PUBLISHED)

    @property
    def fallback_rate(self) -> float | None:
        return self.fallbacks / self.sourced if self.sourced else None


def wall_seconds(run: Run) -> float | None:
    """From the run's start to its end; None while it has none, or when it never started."""
    if run.started_at is None or run.finished_at is None:
        return None
    return (run.finished_at - run.started_at).total_seconds()


def totals(facts: Sequence[RunWithDates]) -> Totals:
    """Everything that is counted over these runs. A date that two runs had is counted twice: it was built twice."""
    rows = [row for one in facts for row in one.dates]
    used = [fell for row in rows if (fell := used_fallback(row)) is not None]
    walls = [seconds for one in facts if (seconds := wall_seconds(one.run)) is not None]
    seconds = [row.seconds for row in rows if row.seconds is not None]
    return Totals(
        runs=len(facts),
        dates=len(rows),
        outcomes=Counter(outcome_of(row) for row in rows),
        coverage=_coverage(rows),
        sourced=len(used),
        fallbacks=sum(used),
        wall_seconds=sum(walls) if walls else None,
        seconds_median=median(seconds) if seconds else None,
        seconds_most=max(seconds, default=None),
    )


def _coverage(rows: Iterable[DateRow]) -> Coverage | None:
    known = [share for row in rows if (share := coverage_of(row)) is not None]
    return Coverage(dates=len(known), least=min(known), median=median(known)) if known else None


# -- over time ----------------------------------------------------------------------------------------------------


def lowest_by_date(facts: RunWithDates) -> list[float | None]:
    """The coverage of each date of a run, oldest first."""
    return [coverage_of(row) for row in facts.dates]


def ended_per_day(facts: Iterable[RunWithDates], days: DateRange) -> list[int]:
    """For each day of the period, how many dates came to their end on it (UTC)."""
    done = (row for one in facts for row in one.dates if outcome_of(row) is not DateOutcome.UNFINISHED)
    ended = Counter(row.ended_at.date() for row in done if row.ended_at is not None)
    return [ended[day] for day in days.days()]


def spark_coverage(shares: Sequence[float | None], *, width: int = 24) -> str:
    """Coverage as a row of bars, from nothing to all. Of dates that share a bar the lowest is shown."""
    return "".join(
        NOTHING if not known else BARS[_step(min(known), len(BARS))]
        for group in _groups(shares, width)
        for known in [[share for share in group if share is not None]]
    )


def spark_counts(counts: Sequence[int], *, width: int = 30) -> str:
    """Counts as a row of bars, the highest bar for the most. Neighbours that share a bar are added up."""
    sums = [sum(group) for group in _groups(counts, width)]
    most = max(sums, default=0)
    return "".join(BARS[_step(n / most, len(BARS))] if n else NOTHING for n in sums)


def _step(share: float, steps: int) -> int:
    return min(max(int(share * steps), 0), steps - 1)


def _groups(values: Sequence[T], most: int) -> list[Sequence[T]]:
    count = min(len(values), most)
    return [values[len(values) * n // count : len(values) * (n + 1) // count] for n in range(count)]


# -- against the period before ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FigureChange:
    """One figure now and in the period before; None where there is none."""

    now: float | None
    before: float | None

    @property
    def difference(self) -> float | None:
        return None if self.now is None or self.before is None else self.now - self.before


def trend(now: Totals, before: Totals) -> dict[str, FigureChange]:
    """The figures that are worth comparing; shares are between 0 and 1."""

    def counted(*outcomes: DateOutcome) -> FigureChange:
        return FigureChange(now=now.of(*outcomes), before=before.of(*outcomes) if before.runs else None)

    shares, earlier = now.coverage, before.coverage
    return {
        "runs": FigureChange(now=now.runs, before=before.runs),
        "published": counted(*PUBLISHED),
        "coverage_median": FigureChange(now=shares and shares.median, before=earlier and earlier.median),
        "coverage_min": FigureChange(now=shares and shares.least, before=earlier and earlier.least),
        "fallback_rate": FigureChange(now=now.fallback_rate, before=before.fallback_rate),
        "blocked": counted(DateOutcome.BLOCKED),
        "failed": counted(DateOutcome.FAILED),
        "forced": counted(DateOutcome.FORCED),
        "seconds_median": FigureChange(now=now.seconds_median, before=before.seconds_median),
    }


def share_in_words(share: float | None) -> str:
    """A share in per cent, cut rather than rounded: 99.96 % never reads as 100 %."""
    return "-" if share is None else f"{_tenths(share) / 10:.1f} %"


def points_in_words(change: FigureChange) -> str:
    """How a share has changed, in percentage points, as the two shares read."""
    if change.now is None:
        return ""
    if change.before is None:
        return "none before"
    points = _tenths(change.now) - _tenths(change.before)
    return f"{points / 10:+.1f} points" if points else "as before"


def count_in_words(change: FigureChange) -> str:
    """How a count has changed."""
    if change.now is None:
        return ""
    if change.before is None:
        return "none before"
    return f"{change.now - change.before:+.0f}" if change.now != change.before else "as before"


def _tenths(share: float) -> int:
    """Whole tenths of a per cent. A hair is added, so that 0.29 is 29 % although it is stored as a little less."""
    return int(share * 1000 + 1e-9)


# -- the standing of each date ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LatestResult:
    """How the latest run over a date left it."""

    row: DateRow
    run: Run
    published: DateRow | None  #: what was last published and not undone; None when none of the runs did
    results: int  #: how many of the runs had this date
    undone: bool  #: every run that ended the date was undone since


def latest_results(facts: Iterable[RunWithDates]) -> dict[str, dict[date, LatestResult]]:
    """By job and date, the latest result that was not undone; where all were, the latest of those."""
    found: dict[str, dict[date, list[tuple[Run, DateRow]]]] = {}
    for one in facts:
        of_job = found.setdefault(one.run.job, {})
        for row in one.dates:
            of_job.setdefault(row.day, []).append((one.run, row))
    return {
        job: {day: _latest(results) for day, results in sorted(of_job.items())} for job, of_job in sorted(found.items())
    }


def _latest(results: Sequence[tuple[Run, DateRow]]) -> LatestResult:
    def order(result: tuple[Run, DateRow]) -> tuple[bool, bool, object, str]:
        run, row = result
        ended = row.ended_at or run.created_at
        return (run.undone_at is None, outcome_of(row) is not DateOutcome.UNFINISHED, ended, run.id)

    run, row = max(results, key=order)
    published = [one for one in results if one[0].undone_at is None and outcome_of(one[1]) in PUBLISHED]
    seen = max(published, key=order)[1] if published else None
    return LatestResult(row=row, run=run, published=seen, results=len(results), undone=run.undone_at is not None)
