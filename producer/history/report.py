"""`backfill history`: the state now and the figures of a period, as values, as JSON, and for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from rich.table import Table

from gated_backfill.common.history.figures import (
    DateOutcome,
    FigureChange,
    Totals,
    count_in_words,
    coverage_of,
    ended_per_day,
    points_in_words,
    share_in_words,
    spark_counts,
    spark_coverage,
    totals,
    trend,
    wall_seconds,
)
from gated_backfill.common.ledger import Run, RunWithDates
from gated_backfill.common.model.dates import DateRange
from gated_backfill.common.model.usage import Usage, format_bytes
from gated_backfill.common.runs.interrupted import is_interrupted
from gated_backfill.common.runs.stale_dates import StaleDates
from gated_backfill.producer.history.now import HistoryNow, print_now
from gated_backfill.producer.terminal.console import Console, StyledText, line, styled
from gated_backfill.producer.terminal.runs import styled_state

MAX_RUNS_LISTED = 40
SPARK_WIDTH = 12
OPTIONAL_OUTCOMES = (
    DateOutcome.BLOCKED,
    DateOutcome.FAILED,
    DateOutcome.FORCED,
    DateOutcome.SKIPPED,
    DateOutcome.UNFINISHED,
)


@dataclass(frozen=True)
class HistoryReport:
    """The state now, and the runs of a period and of the equally long period before it."""

    days: DateRange
    job: str | None  #: None for all jobs
    facts: Sequence[RunWithDates]  #: newest first
    before: Sequence[RunWithDates]  #: runs of the period before
    made_at: datetime
    now: HistoryNow
    stale: StaleDates = field(default_factory=StaleDates)
    usage: Mapping[str, Usage] = field(default_factory=dict[str, Usage])  #: what runs were billed, as far as known

    @property
    def total_usage(self) -> Usage | None:
        """What the runs of the period were billed together; None if nothing is known of any."""
        known = [self.usage[run_dates.run.id] for run_dates in self.facts if run_dates.run.id in self.usage]
        return sum(known, Usage()) if known else None

    @cached_property
    def totals(self) -> Totals:
        return totals(self.facts)

    @cached_property
    def totals_before(self) -> Totals:
        return totals(self.before)

    @cached_property
    def trend(self) -> dict[str, FigureChange]:
        return trend(self.totals, self.totals_before)

    def as_json(self) -> dict[str, Any]:
        return {
            "now": self.now.as_json() | {"at": self.made_at},
            "days": {"first": self.days.start, "last": self.days.through, "count": len(self.days)},
            "job": self.job,
            "totals": totals_json(self.totals) | {"billed": _usage_json(self.total_usage)},
            "before": totals_json(self.totals_before) if self.before else None,
            "trend": {name: change.difference for name, change in self.trend.items()} if self.before else None,
            "ended_per_day": dict(
                zip((str(day) for day in self.days.days()), ended_per_day(self.facts, self.days), strict=True)
            ),
            "runs": [
                _run_json(run_dates)
                | {"stale": len(self.stale.of(run_dates.run)), "billed": _usage_json(self.usage.get(run_dates.run.id))}
                for run_dates in self.facts
            ],
            "stale_not_compared": dict(self.stale.not_compared),
        }


def totals_json(figures: Totals) -> dict[str, Any]:
    coverage = figures.coverage
    return {
        "runs": figures.runs,
        "dates": figures.dates,
        **{outcome.value: figures.of(outcome) for outcome in DateOutcome},
        "published": figures.published,
        "undone": figures.undone,
        "coverage": {"dates": coverage.dates, "min": coverage.least, "median": coverage.median} if coverage else None,
        "fallbacks": figures.fallbacks,
        "fallback_rate": figures.fallback_rate,
        "wall_seconds": figures.wall_seconds,
        "seconds_median": figures.seconds_median,
        "seconds_max": figures.seconds_most,
    }


def _usage_json(usage: Usage | None) -> dict[str, int] | None:
    return usage.as_json() if usage else None


def _run_json(run_dates: RunWithDates) -> dict[str, Any]:
    run = run_dates.run
    return {
        "run": run.id,
        "job": run.job,
        "version": run.job_version,
        "state": run.state.value,
        "requested": run.requested,
        "requested_by": run.requested_by,
        "first_date": run.first_date,
        "last_date": run.last_date,
        "created_at": run.created_at,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
        "undone_at": run.undone_at,
        **{name: value for name, value in totals_json(totals([run_dates])).items() if name != "runs"},
    }


# -- on a terminal ------------------------------------------------------------------------------------------------


def print_history(console: Console, history: HistoryReport) -> None:
    """Print the state now, the period's figures with their trend, then a line for each run."""
    if history.now.state.jobs:
        print_now(console, history.now)
        console.print()
    scope = f"job {history.job}" if history.job else "all jobs"
    heading = styled(f"History of {scope}, {history.days}", "bold")
    console.print(line(heading, f" ({len(history.days)} days, UTC)"))
    if not history.facts:
        console.print("no run ended or was opened in these days" + _describe_runs_before(history))
        return
    _print_figures(console, history)
    console.print()
    _print_runs(console, history)


def _describe_runs_before(history: HistoryReport) -> str:
    count = len(history.before)
    return f"; {count} in the {len(history.days)} days before" if count else ", nor in those before"


def _print_figures(console: Console, history: HistoryReport) -> None:
    figures, change = history.totals, history.trend
    coverage = figures.coverage
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(3):
        table.add_column(no_wrap=True)
    table.add_column(style="dim")

    def add(name: str, value: str | StyledText, detail: str, trend: str) -> None:
        table.add_row(f"  {name}", value, detail, trend if history.before else "")

    outcomes = ", ".join(f"{n} {outcome.value}" for outcome in DateOutcome if (n := figures.of(outcome)))
    per_day = spark_counts(ended_per_day(history.facts, history.days))
    add("runs", str(figures.runs), per_day + "  dates a day", count_in_words(change["runs"]))
    add("dates", str(figures.dates), outcomes, f"published {count_in_words(change['published'])}")
    if coverage is not None:
        add("coverage, median", share_in_words(coverage.median), "", points_in_words(change["coverage_median"]))
        judged_dates = f"of {coverage.dates} judged dates"
        add("coverage, lowest", share_in_words(coverage.least), judged_dates, points_in_words(change["coverage_min"]))
    fallbacks = f"{figures.fallbacks} of {figures.sourced} published dates"
    add("fallback rate", share_in_words(figures.fallback_rate), fallbacks, points_in_words(change["fallback_rate"]))
    for outcome, style in (
        (DateOutcome.BLOCKED, "bold red"),
        (DateOutcome.FAILED, "bold red"),
        (DateOutcome.FORCED, "yellow"),
    ):
        count = figures.of(outcome)
        value = styled(str(count), style) if count else "0"
        add(outcome.value, value, "", count_in_words(change[outcome.value]))
    if figures.seconds_median is not None:
        longest = f"{format_duration(figures.seconds_most)} at most"
        add("a date took", format_duration(figures.seconds_median), longest, _slowdown(change["seconds_median"]))
    if (usage := history.total_usage) is not None:
        add("billed", format_bytes(usage.bytes_billed), f"{usage.slot_millis / 1000:,.0f} s of slot time", "")
    console.print(table)
    if not history.before:
        console.print(styled(f"  no runs in the {len(history.days)} days before: there is no trend", "dim"))


def _slowdown(change: FigureChange) -> str:
    if change.difference is None or not change.before:
        return ""
    return f"{change.difference / change.before:+.0%}"


def _print_runs(console: Console, history: HistoryReport) -> None:
    facts = history.facts
    listed = [(run_dates, totals([run_dates])) for run_dates in facts[:MAX_RUNS_LISTED]]
    outcomes = [outcome for outcome in OPTIONAL_OUTCOMES if any(figures.of(outcome) for _, figures in listed)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("dates", "done", *(outcome.value for outcome in outcomes)):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("coverage", no_wrap=True)
    has_usage = any(run_dates.run.id in history.usage for run_dates, _ in listed)
    for name in ("min", "median", "fallback", "took", *(("billed",) if has_usage else ())):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("job, dates", overflow="fold")
    for run_dates, figures in listed:
        usage = history.usage.get(run_dates.run.id)
        billed = [format_bytes(usage.bytes_billed) if usage else "-"] if has_usage else []
        table.add_row(*_run_row(run_dates, figures, outcomes, len(history.stale.of(run_dates.run)), billed))
    console.print(table)
    for job, problem in history.stale.not_compared.items():
        console.print(f"stale dates of {job}: sources and inputs were not compared: {problem}")
    if len(facts) > MAX_RUNS_LISTED:
        console.print(f"and {len(facts) - MAX_RUNS_LISTED} earlier ones; all are in --json and --csv")


def _run_row(
    run_dates: RunWithDates, figures: Totals, outcomes: Sequence[DateOutcome], stale: int, billed: Sequence[str]
) -> list[str | StyledText]:
    run, coverage = run_dates.run, figures.coverage
    return [
        run.id,
        line(styled_state(run), *describe_marks(run, figures.undone, stale)),
        str(figures.dates),
        str(figures.published),
        *(str(figures.of(outcome) or "-") for outcome in outcomes),
        spark_coverage([coverage_of(row) for row in run_dates.dates], width=SPARK_WIDTH),
        share_in_words(coverage.least if coverage else None),
        share_in_words(coverage.median if coverage else None),
        share_in_words(figures.fallback_rate),
        format_duration(wall_seconds(run)),
        *billed,
        f"{run.job} {DateRange(start=run.first_date, through=run.last_date)}",
    ]


def describe_undone(run: Run, undone: int) -> str:
    """Describe whether the run was undone, in whole or in part; empty if it was not."""
    if run.undone_at is not None:
        return "undone"
    return f"{undone} undone" if undone else ""


def describe_marks(run: Run, undone_dates: int, stale: int) -> list[StyledText]:
    """Mark a run that was undone or interrupted, and its number of stale dates."""
    undone = describe_undone(run, undone_dates)
    marks = [styled(f" {mark}", "yellow") for mark in (undone, f"{stale} stale" if stale else "") if mark]
    return [*marks, styled(" interrupted", "red")] if is_interrupted(run) else marks


def format_duration(seconds: float | None) -> str:
    """Format a duration: 40 ms, 3.2 s, 4:05, 2:03:10."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    text = str(timedelta(seconds=round(seconds)))
    return text.removeprefix("0:").removeprefix("0")
