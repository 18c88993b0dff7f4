"""The values of the self-contained HTML history page; its markup and style are in `templates/`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

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
from gated_backfill.common.model.coverage import MISSING_NAMES_SHOWN
from gated_backfill.producer.history.charts import (
    Axis,
    CalendarChart,
    DurationBar,
    SourceLane,
    calendar_chart,
    date_axis,
    duration_bars,
    source_lanes,
)
from gated_backfill.producer.history.report import HistoryReport, format_duration

MAX_RUNS_LISTED = 200
MAX_DATES_TO_REVIEW = 25  #: for each job

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
    """One number of the header."""

    name: str
    value: str
    more: str = ""
    trend: str = ""
    tone: str = ""  #: `bad` or `warn` for a figure that needs attention


@dataclass(frozen=True, kw_only=True)
class DateCell:
    """One date of a job."""

    day: date
    kind: str  #: an outcome, or `undone`
    mark: str
    shade: int | None  #: index into the shades; None for a date without a coverage
    label: str  #: the same as text, for screen readers


@dataclass(frozen=True, kw_only=True)
class DateToReview:
    """A date that is not complete and was not skipped."""

    day: date
    kind: str
    mark: str
    coverage: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class JobSection:
    """The part of the page about one job."""

    name: str
    summary: str
    calendar: CalendarChart[DateCell]
    kinds: tuple[tuple[str, str, str], ...]  #: (kind, mark, words) of the outcomes that occur, for the legend
    looks: Sequence[DateToReview]
    unlisted: int  #: number of dates to review that are not listed
    axis: Axis
    lanes: Sequence[SourceLane]
    columns: Sequence[DurationBar]
    slowest: str
    middle: str  #: seconds of the median date, in words


@dataclass(frozen=True, kw_only=True)
class RunTableRow:
    """A line of the table of runs."""

    id: str
    job: str
    state: str
    marks: str
    span: str
    ended: str
    dates: int
    parts: tuple[tuple[str, int, float], ...]  #: (outcome, dates, share in per cent), for the bar
    least: str
    middle: str
    fallback: str
    took: str
    share: float  #: of the longest run's wall time, in per cent
    each: str


def render_page(history: HistoryReport) -> str:
    """Render the page, with every script and style inside."""
    by_job = latest_results(history.facts)
    environment = Environment(
        loader=PackageLoader("gated_backfill.producer.history"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("history.html.j2").render(
        history=history,
        figures=_figures(history),
        spark=_spark(history),
        jobs=[_job_view(name, found) for name, found in by_job.items()],
        details=[[_details(one) for one in found.values()] for found in by_job.values()],
        shades=list(enumerate(COVERAGE_SHADES)),
        runs=_run_views(history),
        unlisted=max(len(history.facts) - MAX_RUNS_LISTED, 0),
    )


# -- the header ---------------------------------------------------------------------------------------------------


def _figures(history: HistoryReport) -> list[HeaderFigure]:
    found, change, cover = history.totals, history.trend, history.totals.coverage

    def trend(text: str) -> str:
        return text if history.before else ""

    def counted(outcome: DateOutcome, tone: str) -> HeaderFigure:
        n = found.of(outcome)
        words = trend(count_in_words(change[outcome.value]))
        return HeaderFigure(name=outcome.value.capitalize(), value=str(n), trend=words, tone=tone if n else "")

    return [
        HeaderFigure(name="Runs", value=str(found.runs), trend=trend(count_in_words(change["runs"]))),
        HeaderFigure(
            name="Published",
            value=str(found.published),
            more=f"of {found.dates} dates, {found.of(DateOutcome.SKIPPED)} skipped",
            trend=trend(count_in_words(change["published"])),
        ),
        HeaderFigure(
            name="Coverage",
            value=share_in_words(cover.median if cover else None),
            more=f"median of {cover.dates}; lowest {share_in_words(cover.least)}" if cover else "no date was judged",
            trend=trend(points_in_words(change["coverage_median"])),
        ),
        HeaderFigure(
            name="Fallback rate",
            value=share_in_words(found.fallback_rate),
            more=f"{found.fallbacks} of {found.sourced} published dates",
            trend=trend(points_in_words(change["fallback_rate"])),
        ),
        counted(DateOutcome.BLOCKED, "bad"),
        counted(DateOutcome.FAILED, "bad"),
        counted(DateOutcome.FORCED, "warn"),
        HeaderFigure(
            name="A date took",
            value=format_duration(found.seconds_median),
            more=f"median; {format_duration(found.seconds_most)} at most",
        ),
    ]


def _spark(history: HistoryReport) -> list[tuple[str, int, float]]:
    """For each day of the period, or of its last year, the dates that ended on it, with the height of its bar."""
    days = history.days.days()[-366:]
    counts = ended_per_day(history.facts, history.days)[-366:]
    most = max(counts, default=0) or 1
    return [
        (str(day), n, max(n / most * 100, 100 / len(BARS)) if n else 0) for day, n in zip(days, counts, strict=True)
    ]


# -- one job ------------------------------------------------------------------------------------------------------


def _job_view(name: str, found: Mapping[date, LatestResult]) -> JobSection:
    rows = {day: one.row for day, one in found.items()}
    kinds = Counter(_kind(one) for one in found.values())
    looks = [_look(day, one) for day, one in found.items() if _kind(one) not in ("complete", "skipped")]
    seconds = {day: row.seconds for day, row in rows.items() if row.seconds is not None}
    published = {day: one.published for day, one in found.items() if one.published is not None}
    sources = {day: (row.source, bool(used_fallback(row))) for day, row in published.items() if row.source is not None}
    axis = date_axis(found)
    ordered = sorted(seconds.values())
    return JobSection(
        name=name,
        summary=", ".join(f"{n} {kind}" for kind, n in kinds.most_common()),
        calendar=calendar_chart({day: _cell(day, one) for day, one in found.items()}),
        kinds=tuple((kind, mark, words) for kind, (mark, words) in OUTCOME_MARKS.items() if kinds[kind]),
        looks=looks[-MAX_DATES_TO_REVIEW:][::-1],
        unlisted=max(len(looks) - MAX_DATES_TO_REVIEW, 0),
        axis=axis,
        lanes=source_lanes(sources, axis),
        columns=duration_bars(seconds, axis),
        slowest=format_duration(ordered[-1] if ordered else None),
        middle=format_duration(ordered[len(ordered) // 2] if ordered else None),
    )


def _kind(one: LatestResult) -> str:
    return "undone" if one.undone else outcome_of(one.row).value


def _mark(kind: str) -> str:
    return OUTCOME_MARKS.get(kind, ("", ""))[0]


def _cell(day: date, one: LatestResult) -> DateCell:
    kind, share = _kind(one), coverage_of(one.row)
    shade = None if share is None else next(at for at, (least, _) in enumerate(COVERAGE_SHADES) if share >= least)
    counted = f", {_counted(one)}" if share is not None else ""
    return DateCell(day=day, kind=kind, mark=_mark(kind), shade=shade, label=f"{day:%a} {day}: {kind}{counted}")


def _counted(one: LatestResult) -> str:
    return _count_of(one.row)


def _count_of(row: DateRow) -> str:
    if row.expected is None or row.matched is None:
        return ""
    share = share_in_words(row.matched / row.expected if row.expected else None)
    return f"{row.matched} of {row.expected} ({share})" if row.expected else f"{row.matched} of 0"


def _look(day: date, one: LatestResult) -> DateToReview:
    kind = _kind(one)
    reason = one.row.reason or one.row.error or ""
    return DateToReview(day=day, kind=kind, mark=_mark(kind), coverage=_counted(one), reason=reason)


def _details(one: LatestResult) -> list[Any]:
    """The values of a cell's tooltip, in the order in which the page's script reads them."""
    row, lacking = one.row, max((one.row.expected or 0) - (one.row.matched or 0), 0)
    return [
        f"{row.day:%a %d %b %Y}",
        _kind(one),
        _counted(one),
        row.source or "",
        row.source_reason or "",
        row.reason or row.error or "",
        one.run.id,
        format_duration(row.seconds) if row.seconds is not None else "",
        ", ".join(row.missing[:MISSING_NAMES_SHOWN]),
        max(lacking - MISSING_NAMES_SHOWN, 0) if row.missing else 0,
        one.results,
        row.attempt,
        _standing_before(one),
    ]


def _standing_before(one: LatestResult) -> str:
    """The rows that readers see when the latest result was not published, as far as these runs show."""
    if one.published is None or one.published is one.row:
        return ""
    row = one.published
    return f"{_count_of(row)} from {row.source}, by run {row.run_id}"


# -- runs ---------------------------------------------------------------------------------------------------------


def _run_views(history: HistoryReport) -> list[RunTableRow]:
    shown = history.facts[:MAX_RUNS_LISTED]
    longest = max((wall_seconds(one.run) or 0 for one in shown), default=0) or 1
    views: list[RunTableRow] = []
    for one in shown:
        run, found = one.run, totals([one])
        cover, wall = found.coverage, wall_seconds(run)
        views.append(
            RunTableRow(
                id=run.id,
                job=run.job,
                state=run.state.value,
                marks="undone" if run.undone_at else "",
                span=f"{run.first_date} – {run.last_date}" if run.first_date != run.last_date else str(run.first_date),
                ended=f"{run.finished_at:%Y-%m-%d %H:%M}" if run.finished_at else "",
                dates=found.dates,
                parts=tuple((o.value, n, n / found.dates * 100) for o in DateOutcome if (n := found.of(o))),
                least=share_in_words(cover.least if cover else None),
                middle=share_in_words(cover.median if cover else None),
                fallback=share_in_words(found.fallback_rate),
                took=format_duration(wall),
                share=(wall or 0) / longest * 100,
                each=format_duration(found.seconds_median),
            )
        )
    return views
