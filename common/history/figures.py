"""Figures of the history: outcomes, coverage, fallbacks and durations of runs over a period. Pure functions."""

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
from gated_backfill.common.model.coverage import PASSING_VERDICTS
from gated_backfill.common.model.dates import DateRange

T = TypeVar("T")

BARS = "▁▂▃▄▅▆▇█"
NOTHING = "·"  #: in a sparkline: no figure for this part


class DateOutcome(Enum):
    """The outcome of one date of a run."""

    COMPLETE = "complete"
    ACCEPTED = "accepted"
    FORCED = "forced"
    BLOCKED = "blocked"
    FAILED = "failed"
    SKIPPED = "skipped"
    UNFINISHED = "unfinished"  #: the run is active, or was cancelled before the date was finished


PUBLISHED = frozenset({DateOutcome.COMPLETE, DateOutcome.ACCEPTED, DateOutcome.FORCED})
JUDGED = PUBLISHED | {DateOutcome.BLOCKED}  #: outcomes that were decided by coverage

#: Outcomes by the state of the date or, of a checkpointed one, by its verdict: they have the same names.
_BY_STATE = {state: DateOutcome(state.value) for state in (DateState.BLOCKED, DateState.FAILED, DateState.SKIPPED)}
_BY_VERDICT = {verdict: DateOutcome(verdict.value) for verdict in PASSING_VERDICTS}


def outcome_of(row: DateRow) -> DateOutcome:
    """The outcome of the date. A verdict counts only once the date is checkpointed: until then it may change."""
    if row.state is DateState.CHECKPOINTED and row.verdict is not None:
        return _BY_VERDICT[row.verdict]
    return _BY_STATE.get(row.state, DateOutcome.UNFINISHED)


def coverage_of(row: DateRow) -> float | None:
    """The share of expected entities that the date had, 0 to 1; None unless its outcome was decided by coverage."""
    if outcome_of(row) not in JUDGED or not row.expected or row.matched is None:
        return None
    return row.matched / row.expected


def primary_of(row: DateRow) -> str | None:
    """The job's first source when the date was built; None when that was not recorded.

    `found` lists the sources in the job's order at that time, so the answer holds after the job was changed or removed.
    """
    return next(iter(row.found or ()), None)


def used_fallback(row: DateRow) -> bool | None:
    """Whether a published date has rows of another source than the primary; None if it is not published or unknown."""
    primary = primary_of(row)
    if outcome_of(row) not in PUBLISHED or row.source is None or primary is None:
        return None
    return row.source != primary  # filled from another one, a primary is written `primary+other`


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """The coverage of the dates whose outcome was decided by it."""

    dates: int  #: the number of dates with a known coverage
    least: float
    median: float


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Totals over the dates of one run or of several runs."""

    runs: int
    dates: int
    outcomes: Mapping[DateOutcome, int]
    coverage: Coverage | None  #: None when no date was judged
    sourced: int  #: published dates with a known source
    fallbacks: int  #: of these, dates not built from the primary source alone
    wall_seconds: float | None  #: sum over the ended runs
    seconds_median: float | None  #: per date
    seconds_most: float | None
    undone: int  #: dates that were undone since; they count in the outcomes as well

    def of(self, *outcomes: DateOutcome) -> int:
        return sum(self.outcomes.get(outcome, 0) for outcome in outcomes)

    @property
    def published(self) -> int:
        return self.of(*PUBLISHED)

    @property
    def fallback_rate(self) -> float | None:
        return self.fallbacks / self.sourced if self.sourced else None


def wall_seconds(run: Run) -> float | None:
    """The seconds from the run's start to its end; None if it has not ended or never started."""
    if run.started_at is None or run.finished_at is None:
        return None
    return (run.finished_at - run.started_at).total_seconds()


def totals(facts: Sequence[RunWithDates]) -> Totals:
    """Compute the totals of the runs. A date that two runs had counts twice: it was built twice."""
    rows = [row for run_dates in facts for row in run_dates.dates]
    fallbacks = [is_fallback for row in rows if (is_fallback := used_fallback(row)) is not None]
    walls = [seconds for run_dates in facts if (seconds := wall_seconds(run_dates.run)) is not None]
    seconds = [row.seconds for row in rows if row.seconds is not None]
    return Totals(
        runs=len(facts),
        dates=len(rows),
        outcomes=Counter(outcome_of(row) for row in rows),
        coverage=_coverage(rows),
        sourced=len(fallbacks),
        fallbacks=sum(fallbacks),
        wall_seconds=sum(walls) if walls else None,
        seconds_median=median(seconds) if seconds else None,
        seconds_most=max(seconds, default=None),
        undone=sum(row.undone_at is not None for row in rows),
    )


def _coverage(rows: Iterable[DateRow]) -> Coverage | None:
    shares = [share for row in rows if (share := coverage_of(row)) is not None]
    return Coverage(dates=len(shares), least=min(shares), median=median(shares)) if shares else None


# -- over time ----------------------------------------------------------------------------------------------------


def ended_per_day(facts: Iterable[RunWithDates], days: DateRange) -> list[int]:
    """The number of dates that ended on each day of the period (UTC)."""
    rows = (row for run_dates in facts for row in run_dates.dates if outcome_of(row) is not DateOutcome.UNFINISHED)
    ended = Counter(row.ended_at.date() for row in rows if row.ended_at is not None)
    return [ended[day] for day in days.days()]


def spark_coverage(shares: Sequence[float | None], *, width: int = 24) -> str:
    """Coverage as a row of bars, from 0 to 1. A bar that covers several dates shows the lowest of them."""
    return "".join(
        NOTHING if not group_shares else BARS[_step(min(group_shares), len(BARS))]
        for group in _groups(shares, width)
        for group_shares in [[share for share in group if share is not None]]
    )


def spark_counts(counts: Sequence[int], *, width: int = 30) -> str:
    """Counts as a row of bars, the highest bar for the maximum. A bar that covers several counts shows their sum."""
    sums = [sum(group) for group in _groups(counts, width)]
    maximum = max(sums, default=0)
    return "".join(BARS[_step(n / maximum, len(BARS))] if n else NOTHING for n in sums)


def _step(share: float, steps: int) -> int:
    return min(max(int(share * steps), 0), steps - 1)


def _groups(values: Sequence[T], limit: int) -> list[Sequence[T]]:
    count = min(len(values), limit)
    return [values[len(values) * n // count : len(values) * (n + 1) // count] for n in range(count)]


# -- against the period before ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FigureChange:
    """One figure now and in the period before; None if there is none."""

    now: float | None
    before: float | None

    @property
    def difference(self) -> float | None:
        return None if self.now is None or self.before is None else self.now - self.before


def trend(now: Totals, before: Totals) -> dict[str, FigureChange]:
    """The figures to compare between two periods. Shares are between 0 and 1."""

    def count_change(*outcomes: DateOutcome) -> FigureChange:
        return FigureChange(now=now.of(*outcomes), before=before.of(*outcomes) if before.runs else None)

    shares, earlier = now.coverage, before.coverage
    return {
        "runs": FigureChange(now=now.runs, before=before.runs),
        "published": count_change(*PUBLISHED),
        "coverage_median": FigureChange(now=shares and shares.median, before=earlier and earlier.median),
        "coverage_min": FigureChange(now=shares and shares.least, before=earlier and earlier.least),
        "fallback_rate": FigureChange(now=now.fallback_rate, before=before.fallback_rate),
        "blocked": count_change(DateOutcome.BLOCKED),
        "failed": count_change(DateOutcome.FAILED),
        "forced": count_change(DateOutcome.FORCED),
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
    """Whole tenths of a per cent. The small addend makes 0.29 read 29.0 %, although its float is slightly less."""
    return int(share * 1000 + 1e-9)


# -- the standing of each date ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LatestResult:
    """The latest result of a date over all runs that had it."""

    row: DateRow
    run: Run
    published: DateRow | None  #: the last result that was published and not undone, if any
    results: int  #: the number of runs that had this date
    undone: bool  #: all runs that finished the date were undone since, or undone on this date


def is_undone(run: Run, row: DateRow) -> bool:
    """Whether the run was undone, or this date of it."""
    return run.undone_at is not None or row.undone_at is not None


def latest_results(facts: Iterable[RunWithDates]) -> dict[str, dict[date, LatestResult]]:
    """The latest result by job and date. An undone result counts only if all results of the date were undone."""
    results: dict[str, dict[date, list[tuple[Run, DateRow]]]] = {}
    for run_dates in facts:
        results_by_day = results.setdefault(run_dates.run.job, {})
        for row in run_dates.dates:
            results_by_day.setdefault(row.day, []).append((run_dates.run, row))
    return {
        job: {day: _latest(day_results) for day, day_results in sorted(results_by_day.items())}
        for job, results_by_day in sorted(results.items())
    }


def _latest(results: Sequence[tuple[Run, DateRow]]) -> LatestResult:
    def order(result: tuple[Run, DateRow]) -> tuple[bool, bool, object, str]:
        run, row = result
        ended = row.ended_at or run.created_at
        return (not is_undone(run, row), outcome_of(row) is not DateOutcome.UNFINISHED, ended, run.id)

    run, row = max(results, key=order)
    published = [(run, row) for run, row in results if not is_undone(run, row) and outcome_of(row) in PUBLISHED]
    last_published = max(published, key=order)[1] if published else None
    return LatestResult(row=row, run=run, published=last_published, results=len(results), undone=is_undone(run, row))
