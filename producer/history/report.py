"""`backfill history`: the figures of a period as values, as JSON, and for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gated_backfill.common.history.figures import (
    DateOutcome,
    FigureChange,
    Totals,
    count_in_words,
    ended_per_day,
    lowest_by_date,
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
from gated_backfill.common.runs.interrupted import is_interrupted
from gated_backfill.producer.terminal.runs import RUN_STYLES

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
    """The runs of a period and of the one before it."""

    days: DateRange
    job: str | None  #: None for all jobs
    facts: Sequence[RunWithDates]  #: newest first
    before: Sequence[RunWithDates]
    made_at: datetime

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
            "days": {"first": self.days.start, "last": self.days.through, "count": len(self.days)},
            "job": self.job,
            "totals": totals_json(self.totals),
            "before": totals_json(self.totals_before) if self.before else None,
            "trend": {name: change.difference for name, change in self.trend.items()} if self.before else None,
            "ended_per_day": dict(
                zip((str(day) for day in self.days.days()), ended_per_day(self.facts, self.days), strict=True)
            ),
            "runs": [_run_json(one) for one in self.facts],
        }


def totals_json(found: Totals) -> dict[str, Any]:
    cover = found.coverage
    return {
        "runs": found.runs,
        "dates": found.dates,
        **{outcome.value: found.of(outcome) for outcome in DateOutcome},
        "published": found.published,
        "coverage": {"dates": cover.dates, "min": cover.least, "median": cover.median} if cover else None,
        "fallbacks": found.fallbacks,
        "fallback_rate": found.fallback_rate,
        "wall_seconds": found.wall_seconds,
        "seconds_median": found.seconds_median,
        "seconds_max": found.seconds_most,
    }


def _run_json(facts: RunWithDates) -> dict[str, Any]:
    run = facts.run
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
        **{name: value for name, value in totals_json(totals([facts])).items() if name != "runs"},
    }


# -- on a terminal ------------------------------------------------------------------------------------------------


def print_history(console: Console, history: HistoryReport) -> None:
    """The period's figures with their trend, then a line for each run."""
    whose = f"job {history.job}" if history.job else "all jobs"
    console.print(f"[bold]History of {escape(whose)}, {history.days}[/bold] ({len(history.days)} days, UTC)")
    if not history.facts:
        console.print("no run ended or was opened in these days" + _before_in_words(history))
        return
    _print_figures(console, history)
    console.print()
    _print_runs(console, history.facts)


def _before_in_words(history: HistoryReport) -> str:
    count = len(history.before)
    return f"; {count} in the {len(history.days)} days before" if count else ", nor in those before"


def _print_figures(console: Console, history: HistoryReport) -> None:
    found, change = history.totals, history.trend
    cover = found.coverage
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(3):
        table.add_column(no_wrap=True)
    table.add_column(style="dim")

    def line(name: str, value: str, more: str, trend: str) -> None:
        table.add_row(f"  {name}", value, more, trend if history.before else "")

    counts = {one.value: found.of(one) for one in DateOutcome if found.of(one)}
    outcomes = ", ".join(f"{n} {name}" for name, n in counts.items())
    per_day = spark_counts(ended_per_day(history.facts, history.days))
    line("runs", str(found.runs), per_day + "  dates a day", count_in_words(change["runs"]))
    line("dates", str(found.dates), outcomes, f"published {count_in_words(change['published'])}")
    if cover is not None:
        line("coverage, median", share_in_words(cover.median), "", points_in_words(change["coverage_median"]))
        least = f"of {cover.dates} judged dates"
        line("coverage, lowest", share_in_words(cover.least), least, points_in_words(change["coverage_min"]))
    fell = f"{found.fallbacks} of {found.sourced} published dates"
    line("fallback rate", share_in_words(found.fallback_rate), fell, points_in_words(change["fallback_rate"]))
    for outcome, style in (
        (DateOutcome.BLOCKED, "bold red"),
        (DateOutcome.FAILED, "bold red"),
        (DateOutcome.FORCED, "yellow"),
    ):
        count = found.of(outcome)
        shown = f"[{style}]{count}[/]" if count else "0"
        line(outcome.value, shown, "", count_in_words(change[outcome.value]))
    if found.seconds_median is not None:
        most = f"{format_duration(found.seconds_most)} at most"
        line("a date took", format_duration(found.seconds_median), most, _slower(change["seconds_median"]))
    console.print(table)
    if not history.before:
        console.print(f"  [dim]no runs in the {len(history.days)} days before: there is no trend[/dim]")


def _slower(change: FigureChange) -> str:
    if change.difference is None or not change.before:
        return ""
    return f"{change.difference / change.before:+.0%}"


def _print_runs(console: Console, facts: Sequence[RunWithDates]) -> None:
    shown = [(one, totals([one])) for one in facts[:MAX_RUNS_LISTED]]
    counted = [outcome for outcome in OPTIONAL_OUTCOMES if any(found.of(outcome) for _, found in shown)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("dates", "done", *(one.value for one in counted)):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("coverage", no_wrap=True)
    for name in ("min", "median", "fallback", "took"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("job, dates", overflow="fold")
    for one, found in shown:
        table.add_row(*_run_row(one, found, counted))
    console.print(table)
    if len(facts) > MAX_RUNS_LISTED:
        console.print(f"and {len(facts) - MAX_RUNS_LISTED} earlier ones; all are in --json and --csv")


def _run_row(facts: RunWithDates, found: Totals, counted: Sequence[DateOutcome]) -> list[str]:
    run, cover = facts.run, found.coverage
    style = RUN_STYLES.get(run.state, "bold")
    return [
        run.id,
        f"[{style}]{run.state.value}[/]" + describe_marks(run),
        str(found.dates),
        str(found.published),
        *(str(found.of(one)) if found.of(one) else "-" for one in counted),
        spark_coverage(lowest_by_date(facts), width=SPARK_WIDTH),
        share_in_words(cover.least if cover else None),
        share_in_words(cover.median if cover else None),
        share_in_words(found.fallback_rate),
        format_duration(wall_seconds(run)),
        escape(f"{run.job} {DateRange(start=run.first_date, through=run.last_date)}"),
    ]


def describe_marks(run: Run) -> str:
    """Mark a run that was undone or interrupted."""
    undone = " [yellow]undone[/]" if run.undone_at is not None else ""
    return undone + (" [red]interrupted[/]" if is_interrupted(run) else "")


def format_duration(seconds: float | None) -> str:
    """A duration, shorter the longer it is: 40 ms, 3.2 s, 4:05, 2:03:10."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    text = str(timedelta(seconds=round(seconds)))
    return text.removeprefix("0:").removeprefix("0")
