"""The values of the self-contained HTML history page; its markup and style are in `templates/`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gated_backfill.common.history.figures import (
    BARS,
    DateOutcome,
    LatestResult,
    count_in_words,
    coverage_of,
    ended_per_day,
    latest_results,
    outcome_of,
    points_in_words,
    share_in_words,
    totals,
    used_fallback,
    wall_seconds,
)
from gated_backfill.common.ledger import DateRow
from gated_backfill.common.model.missing_names import MISSING_NAMES_SHOWN
from gated_backfill.common.process.printable_text import printable, printable_name, shorten
from gated_backfill.common.runs.state_now import JobNow
from gated_backfill.producer.history.charts import calendar_chart, date_axis, duration_bars, source_lanes
from gated_backfill.producer.history.now import HistoryNow, describe_outstanding, describe_stall, format_newest
from gated_backfill.producer.history.report import HistoryReport, describe_undone, format_duration
from gated_backfill.producer.terminal.runs import describe_replacement

MAX_RUNS_LISTED = 200
MAX_DATES_TO_REVIEW = 25  #: for each job
MAX_OUTSTANDING_LISTED = 100

#: The mark of an outcome in its cell, so that colour is not needed to read it, and its text in the legend.
OUTCOME_MARKS: Mapping[str, tuple[str, str]] = {
    "accepted": ("~", "accepted with a warning"),
    "blocked": ("×", "blocked, not published"),
    "failed": ("!", "failed"),
    "forced": ("F", "forced"),
    "skipped": ("·", "skipped: nothing to build"),
    "unfinished": ("…", "not finished"),
    "undone": ("↶", "undone since"),
}
#: The lowest coverage of each shade, and its text in the legend.
COVERAGE_SHADES = ((1.0, "100 %"), (0.95, "95 to 100"), (0.90, "90 to 95"), (0.50, "50 to 90"), (0.0, "below 50 %"))


@dataclass(frozen=True, kw_only=True)
class HeaderFigure:
    name: str
    value: str
    more: str = ""  #: detail under the value
    trend: str = ""
    tone: str = ""  #: `bad` or `warn` for a figure that needs attention


@dataclass(frozen=True, kw_only=True)
class DateCell:
    day: date
    kind: str  #: an outcome, or `undone`
    mark: str
    shade: int | None  #: index into the shades; None for a date without a coverage
    label: str  #: the same as text, for screen readers


def render_page(history: HistoryReport) -> str:
    """Render the page, with every script and style inside."""
    by_job = latest_results(history.facts)
    environment = Environment(
        loader=PackageLoader("gated_backfill.producer.history"),
        autoescape=True,
        finalize=_to_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("history.html.j2").render(
        history=history,
        now=_now_figures(history.now),
        jobs_now=[_job_now(job, history.now) for job in history.now.state.jobs],
        outstanding=history.now.outstanding[:MAX_OUTSTANDING_LISTED],
        outstanding_unlisted=max(len(history.now.outstanding) - MAX_OUTSTANDING_LISTED, 0),
        shorten=shorten,
        stalled=[describe_stall(stalled) for stalled in history.now.state.stalled],
        figures=_header_figures(history),
        spark=_ended_bars(history),
        jobs=[_job_section(name, results) for name, results in by_job.items()],
        details=[[_tooltip_texts(result) for result in results.values()] for results in by_job.values()],
        shades=list(enumerate(COVERAGE_SHADES)),
        runs=_run_rows(history),
        unlisted=max(len(history.facts) - MAX_RUNS_LISTED, 0),
    )


# -- the state now ------------------------------------------------------------------------------------------------


def _now_figures(now: HistoryNow) -> list[HeaderFigure]:
    """The figures over all jobs."""
    jobs = now.state.jobs
    incomplete = [one for one in now.outstanding if not one.has_checkpoint]
    rebuilds = [one for one in now.outstanding if one.has_checkpoint]
    newest = max((job.newest for job in jobs if job.newest is not None), default=None)
    flagged = sum(sum(job.flagged.values()) for job in jobs)
    shared_workers = sum(not worker.is_embedded for worker in now.state.workers)
    idle = f"none takes tasks from {', '.join(now.idle_queues)}" if now.idle_queues else ""
    return [
        HeaderFigure(
            name="Not complete",
            value=str(len(incomplete)),
            more=describe_outstanding(incomplete) or "every date that was run is complete or skipped",
            tone="bad" if incomplete else "",
        ),
        HeaderFigure(
            name="To look at",
            value=str(len(rebuilds) + flagged),
            more=f"{len(rebuilds)} rebuild(s) that did not pass, {flagged} flagged by an audit",
            tone="warn" if rebuilds or flagged else "",
        ),
        HeaderFigure(
            name="Newest date",
            value=format_newest(newest),
            more=f"{sum(job.checkpointed for job in jobs)} dates are checkpointed",
        ),
        HeaderFigure(
            name="Live workers",
            value=str(len(now.state.workers)),
            more=idle or f"{shared_workers} shared, {len(now.state.workers) - shared_workers} of one run's own stack",
            tone="bad" if now.idle_queues else "",
        ),
    ]


def _job_now(job: JobNow, now: HistoryNow) -> dict[str, Any]:
    """The values of a job's line in the table of the state now."""
    return {
        "name": job.job,
        "incomplete": describe_outstanding(now.outstanding_of(job, has_checkpoint=False)),
        "rebuilds": describe_outstanding(now.outstanding_of(job, has_checkpoint=True)),
        "flagged": sum(job.flagged.values()),
        "other_versions": job.other_versions,
        "checkpointed": job.checkpointed,
        "newest": format_newest(job.newest),
    }


# -- the figures of the period -------------------------------------------------------------------------------------


def _header_figures(history: HistoryReport) -> list[HeaderFigure]:
    period, change, coverage = history.totals, history.trend, history.totals.coverage
    lowest = share_in_words(coverage.least if coverage else None)

    def trend(text: str) -> str:
        return text if history.before else ""

    def count(outcome: DateOutcome) -> HeaderFigure:
        difference = trend(count_in_words(change[outcome.value]))
        return HeaderFigure(name=outcome.value.capitalize(), value=str(period.of(outcome)), trend=difference)

    return [
        HeaderFigure(name="Runs", value=str(period.runs), trend=trend(count_in_words(change["runs"]))),
        HeaderFigure(
            name="Published",
            value=str(period.published),
            more=f"of {period.dates} dates, {period.of(DateOutcome.SKIPPED)} skipped",
            trend=trend(count_in_words(change["published"])),
        ),
        HeaderFigure(
            name="Coverage",
            value=share_in_words(coverage.median if coverage else None),
            more=f"median of {coverage.dates}; lowest {lowest}" if coverage else "no date was judged",
            trend=trend(points_in_words(change["coverage_median"])),
        ),
        HeaderFigure(
            name="Fallback rate",
            value=share_in_words(period.fallback_rate),
            more=f"{period.fallbacks} of {period.sourced} published dates",
            trend=trend(points_in_words(change["fallback_rate"])),
        ),
        count(DateOutcome.BLOCKED),
        count(DateOutcome.FAILED),
        count(DateOutcome.FORCED),
        HeaderFigure(
            name="A date took",
            value=format_duration(period.seconds_median),
            more=f"median; {format_duration(period.seconds_most)} at most",
        ),
    ]


def _ended_bars(history: HistoryReport) -> list[tuple[str, int, float]]:
    """The day, the number of dates that ended on it and its bar's height in per cent, for the last 366 days at most."""
    days = history.days.days()[-366:]
    counts = ended_per_day(history.facts, history.days)[-366:]
    highest = max(counts, default=0) or 1
    return [
        (str(day), n, max(n / highest * 100, 100 / len(BARS)) if n else 0) for day, n in zip(days, counts, strict=True)
    ]


# -- one job ------------------------------------------------------------------------------------------------------


def _job_section(name: str, results: Mapping[date, LatestResult]) -> dict[str, Any]:
    """The values of the part of the page about one job."""
    kinds = Counter(_kind_of(result) for result in results.values())
    to_review = [
        _date_to_review(day, result)
        for day, result in results.items()
        if _kind_of(result) not in ("complete", "skipped")
    ]
    seconds = {day: result.row.seconds for day, result in results.items() if result.row.seconds is not None}
    published = {day: result.published for day, result in results.items() if result.published is not None}
    sources = {day: (row.source, bool(used_fallback(row))) for day, row in published.items() if row.source is not None}
    axis = date_axis(results)
    sorted_seconds = sorted(seconds.values())
    return {
        "name": name,
        "summary": ", ".join(f"{n} {kind}" for kind, n in kinds.most_common()),
        "calendar": calendar_chart({day: _date_cell(day, result) for day, result in results.items()}),
        "kinds": tuple((kind, mark, text) for kind, (mark, text) in OUTCOME_MARKS.items() if kinds[kind]),
        "dates_to_review": to_review[-MAX_DATES_TO_REVIEW:][::-1],
        "unlisted": max(len(to_review) - MAX_DATES_TO_REVIEW, 0),
        "axis": axis,
        "lanes": source_lanes(sources, axis),
        "columns": duration_bars(seconds, axis),
        "slowest": format_duration(sorted_seconds[-1] if sorted_seconds else None),
        "middle": format_duration(sorted_seconds[len(sorted_seconds) // 2] if sorted_seconds else None),
    }


def _kind_of(result: LatestResult) -> str:
    return "undone" if result.undone else outcome_of(result.row).value


def _mark_of(kind: str) -> str:
    return OUTCOME_MARKS.get(kind, ("", ""))[0]


def _date_cell(day: date, result: LatestResult) -> DateCell:
    kind, share = _kind_of(result), coverage_of(result.row)
    shade = None if share is None else next(i for i, (lowest, _) in enumerate(COVERAGE_SHADES) if share >= lowest)
    coverage = f", {_describe_coverage(result.row)}" if share is not None else ""
    return DateCell(day=day, kind=kind, mark=_mark_of(kind), shade=shade, label=f"{day:%a} {day}: {kind}{coverage}")


def _describe_coverage(row: DateRow) -> str:
    if row.expected is None or row.matched is None:
        return ""
    share = share_in_words(row.matched / row.expected if row.expected else None)
    return f"{row.matched} of {row.expected} ({share})" if row.expected else f"{row.matched} of 0"


def _date_to_review(day: date, result: LatestResult) -> dict[str, Any]:
    """The values of a date that is not complete and was not skipped."""
    kind, row = _kind_of(result), result.row
    coverage, reason = _describe_coverage(row), _describe_reason(result)
    return {"day": day, "kind": kind, "mark": _mark_of(kind), "coverage": coverage, "reason": reason}


def _to_printable(value: object) -> object:
    """Make a text printable; markup of the page itself stays as it is."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _tooltip_texts(result: LatestResult) -> list[Any]:
    return [_to_printable(value) for value in _tooltip_values(result)]


def _tooltip_values(result: LatestResult) -> list[Any]:
    """The values of a cell's tooltip, in the order in which the page's script reads them."""
    row = result.row
    missing_count = max((row.expected or 0) - (row.matched or 0), 0)
    return [
        f"{row.day:%a %d %b %Y}",
        _kind_of(result),
        _describe_coverage(row),
        row.source or "",
        shorten(row.source_reason or ""),
        _describe_reason(result),
        result.run.id,
        format_duration(row.seconds) if row.seconds is not None else "",
        ", ".join(map(printable_name, row.missing[:MISSING_NAMES_SHOWN])),
        max(missing_count - MISSING_NAMES_SHOWN, 0) if row.missing else 0,
        result.results,
        row.attempt,
        _describe_published(result),
        describe_replacement(row),
    ]


def _describe_reason(result: LatestResult) -> str:
    """The reason of the date's outcome and, of an undone date, by whom and when it was undone."""
    row, run = result.row, result.run
    by, at = (row.undone_by, row.undone_at) if row.undone_at else (run.undone_by, run.undone_at)
    undone = (
        f"undone by {printable_name(by or '')} at {at:%Y-%m-%d %H:%M} UTC" if result.undone and at is not None else ""
    )
    return "; ".join(filter(None, (undone, shorten(row.reason or row.error or ""))))


def _describe_published(result: LatestResult) -> str:
    """Describe the published rows when the latest result was not published, as far as the listed runs show."""
    row = result.published
    if row is None or row is result.row:
        return ""
    return f"{_describe_coverage(row)} from {row.source}, by run {row.run_id}"


# -- runs ---------------------------------------------------------------------------------------------------------


def _run_rows(history: HistoryReport) -> list[dict[str, Any]]:
    """The values of the lines of the table of runs; shares are in per cent."""
    listed = history.facts[:MAX_RUNS_LISTED]
    longest = max((wall_seconds(run_dates.run) or 0 for run_dates in listed), default=0) or 1
    rows: list[dict[str, Any]] = []
    for run_dates in listed:
        run, figures = run_dates.run, totals([run_dates])
        coverage, seconds = figures.coverage, wall_seconds(run)
        first, last = run.first_date, run.last_date
        rows.append(
            {
                "id": run.id,
                "job": run.job,
                "state": run.state.value,
                "marks": describe_undone(run, figures.undone),
                "stale": len(history.stale.of(run)),
                "span": f"{first} – {last}" if first != last else str(first),
                "ended": f"{run.finished_at:%Y-%m-%d %H:%M}" if run.finished_at else "",
                "dates": figures.dates,
                "parts": tuple(
                    (outcome.value, n, n / figures.dates * 100) for outcome in DateOutcome if (n := figures.of(outcome))
                ),
                "least": share_in_words(coverage.least if coverage else None),
                "middle": share_in_words(coverage.median if coverage else None),
                "fallback": share_in_words(figures.fallback_rate),
                "took": format_duration(seconds),
                "share": (seconds or 0) / longest * 100,
                "each": format_duration(figures.seconds_median),
            }
        )
    return rows
