"""The texts of alerts: an ended run or a silent beat as alerts, and waiting alerts as one message. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from gated_backfill.common.ledger.records import Alert, DateRow, NewAlert, Run
from gated_backfill.common.ledger.states import INCOMPLETE_DATES, DateState, RunState
from gated_backfill.common.model.alert_kinds import ALERT_KINDS, AlertKind
from gated_backfill.common.model.coverage import Fallback, Verdict, format_percent, reaches_ratio
from gated_backfill.common.model.dates import format_dates
from gated_backfill.common.model.missing_names import MISSING_NAMES_SHOWN, list_names
from gated_backfill.common.process.printable_text import printable, printable_name

LOW_COVERAGE = 0.5  #: coverage below this ratio raises a low-coverage alert
FALLBACKS_A_WEEK = 2  #: more dates than this, built from a fallback within 7 days, raise an alert
BEAT_SILENT_AFTER = timedelta(minutes=10)
DATES_NAMED = 5  #: dates listed in one alert
NAMES_LENGTH = 180  #: characters of a date's names together
REASON_LENGTH = 120
MESSAGE_LENGTH = 3500  #: chat services cut or reject longer messages
TITLE_LENGTH = 200

_OUTCOMES = {
    RunState.SUCCEEDED: "succeeded",
    RunState.PARTIAL: "ended with dates that are not complete",
    RunState.FAILED: "failed: no date was checkpointed",
    RunState.CANCELLED: "was cancelled",
}
_END_STATES = (DateState.CHECKPOINTED, DateState.BLOCKED, DateState.FAILED, DateState.SKIPPED, DateState.CANCELLED)


@dataclass(kw_only=True)
class DateTally:
    """Figures over a run's dates. It keeps a few rows only, so its size does not grow with the run."""

    states: Counter[DateState] = field(default_factory=Counter[DateState])
    forced: int = 0
    matched: int = 0  #: sum over the dates with a known coverage, like `expected`
    expected: int = 0
    lowest: tuple[float, DateRow] | None = None  #: the lowest coverage, and its date
    incomplete: list[DateRow] = field(default_factory=list[DateRow])  #: the first blocked or failed dates
    incomplete_days: list[date] = field(default_factory=list[date])
    low_coverage: list[DateRow] = field(default_factory=list[DateRow])  #: the first dates with low coverage
    low_coverage_count: int = 0
    fallback_sources: Counter[str] = field(default_factory=Counter[str])  #: checkpointed dates by fallback source

    @classmethod
    def from_dates(cls, dates: Iterable[DateRow], primary: str | None) -> DateTally:
        """Count the dates of a run whose job's first source is `primary` (None if unknown)."""
        tally = cls()
        for row in dates:
            tally._count(row, primary)
        return tally

    def _count(self, row: DateRow, primary: str | None) -> None:
        self.states[row.state] += 1
        self.forced += row.verdict is Verdict.FORCED
        if row.expected and row.matched is not None:
            self.matched += row.matched
            self.expected += row.expected
            ratio = row.matched / row.expected
            if self.lowest is None or ratio < self.lowest[0]:
                self.lowest = (ratio, row)
        if row.state in INCOMPLETE_DATES:
            self.incomplete_days.append(row.day)
            if len(self.incomplete) < DATES_NAMED:
                self.incomplete.append(row)
        if has_low_coverage(row):
            self.low_coverage_count += 1
            if len(self.low_coverage) < DATES_NAMED:
                self.low_coverage.append(row)
        if row.source is not None and is_from_fallback(row, primary):
            self.fallback_sources[row.source] += 1


@dataclass(frozen=True, kw_only=True)
class EndedRun:
    """The facts about an ended run that its alerts are made from."""

    run: Run
    dates: DateTally
    primary: str | None = None  #: the name of the job's first source; None when the job is not installed here
    fallbacks_this_week: int = 0  #: dates of the job built from a fallback by runs that ended in the last 7 days
    orders: Sequence[str] = ()  #: pause, resume and cancel orders: by whom, and why


@dataclass(frozen=True, kw_only=True)
class Message:
    """A text for an endpoint."""

    title: str
    body: str


def alerts_for_run(ended: EndedRun, now: datetime) -> list[NewAlert]:
    """Return the alerts about an ended run. They are delivered as one message."""
    dates = ended.dates
    alerts = [_finished_alert(ended)]
    if dates.incomplete:
        alerts.append(_blocked_alert(ended.run, dates))
    if dates.low_coverage:
        alerts.append(_low_coverage_alert(ended.run, dates))
    if ended.fallbacks_this_week > FALLBACKS_A_WEEK and dates.fallback_sources:
        alerts.append(_fallback_often_alert(ended, now))
    return alerts


def has_low_coverage(row: DateRow) -> bool:
    """Return whether less than `LOW_COVERAGE` of an ended date's expected entities were present."""
    if row.state not in (DateState.CHECKPOINTED, DateState.BLOCKED) or not row.expected or row.matched is None:
        return False
    return not reaches_ratio(row.matched, row.expected, LOW_COVERAGE)


def is_from_fallback(row: DateRow, primary: str | None) -> bool:
    """Return whether a checkpointed date was not built from the primary source alone; False if unknown."""
    return primary is not None and row.state is DateState.CHECKPOINTED and row.source not in (None, primary)


def beat_silent_alert(last_seen: datetime | None, now: datetime) -> NewAlert | None:
    """Return the alert that beat is silent for over 10 minutes, one per silence; None if it is not or never ran."""
    if last_seen is None or now - last_seen <= BEAT_SILENT_AFTER:
        return None
    return NewAlert(
        key=f"{AlertKind.BEAT_SILENT} {last_seen.isoformat()}",
        kind=AlertKind.BEAT_SILENT,
        title=f"beat is silent since {last_seen:%Y-%m-%d %H:%M} UTC",
        lines=[
            "Until it runs again, cleanup, audit and retention do not run and stuck runs are not requeued. "
            "Start it again; its log says why it stopped."
        ],
    )


def compose_message(alerts: Sequence[Alert]) -> Message:
    """Compose one message of all alerts, the most severe first. Longer text is cut, and the cut is marked."""
    alerts_by_run: dict[str, list[Alert]] = {}
    for alert in sorted(alerts, key=_severity):
        alerts_by_run.setdefault(alert.run_id or alert.id, []).append(alert)
    sections = ["\n\n".join(map(_section_of, group)) for group in alerts_by_run.values()]
    first_title = next(iter(alerts_by_run.values()))[0].title
    suffix = f" (and {len(sections) - 1} more)" if len(sections) > 1 else ""
    title = truncate(f"backfill: {printable(first_title)}", TITLE_LENGTH - len(suffix)) + suffix
    return Message(title=title, body=_join_sections(sections))


def _section_of(alert: Alert) -> str:
    """Return title and body, printable: alerts that an earlier version has recorded may hold anything."""
    return "\n".join(map(printable, (alert.title, *alert.body.split("\n"))))


def truncate(text: str, length: int) -> str:
    """Cut the text to `length` characters, with an ellipsis at the end if it is longer."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _severity(alert: Alert) -> tuple[int, datetime, str]:
    rank = ALERT_KINDS.index(alert.kind) if alert.kind in ALERT_KINDS else len(ALERT_KINDS)
    return rank, alert.created_at, alert.id


def _join_sections(sections: Sequence[str]) -> str:
    """Join the sections that fit into a message, and name the number of the others."""
    parts: list[str] = []
    free_length = MESSAGE_LENGTH
    for number, section in enumerate(sections):
        if parts and len(section) > free_length:
            parts.append(f"and {len(sections) - number} more: `backfill alerts` lists them")
            break
        parts.append(truncate(section, free_length))
        free_length -= len(parts[-1])
    return "\n\n----\n\n".join(parts)


def _finished_alert(ended: EndedRun) -> NewAlert:
    run, dates = ended.run, ended.dates
    lines = [
        f"requested: {truncate(printable(run.requested), REASON_LENGTH)}, by {printable_name(run.requested_by)}",
        *(truncate(order, REASON_LENGTH) for order in ended.orders),
        f"dates: {_describe_states(dates)}",
        _describe_coverage(dates),
        _describe_fallback(dates),
        _describe_duration(run),
    ]
    title = f"run {run.id} of {run.job} {_OUTCOMES.get(run.state, run.state.value)}"
    return _run_alert(AlertKind.RUN_FINISHED, run, title, [line for line in lines if line])


def _run_alert(kind: AlertKind, run: Run, title: str, lines: Sequence[str]) -> NewAlert:
    return NewAlert(key=f"{kind} {run.id}", kind=kind, title=title, lines=lines, job=run.job, run_id=run.id)


def _describe_states(dates: DateTally) -> str:
    """Describe the number of dates by end state, and of dates that a stopped run did not reach."""
    counts = {state.value: dates.states[state] for state in _END_STATES}
    counts["not reached"] = dates.states.total() - sum(counts.values())
    text = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f"{text} ({dates.forced} of them forced)" if dates.forced else text or "none"


def _describe_coverage(dates: DateTally) -> str | None:
    if dates.lowest is None:
        return None
    _, row = dates.lowest
    lowest = format_percent(row.matched or 0, row.expected or 0)
    return f"coverage: {format_percent(dates.matched, dates.expected)} over all, lowest {lowest}, on {row.day}"


def _describe_fallback(dates: DateTally) -> str | None:
    if not dates.fallback_sources:
        return None
    sources = ", ".join(sorted(dates.fallback_sources))
    return f"fallback: {dates.fallback_sources.total()} date(s) were built from {sources}"


def _describe_duration(run: Run) -> str | None:
    if run.started_at is None or run.finished_at is None:
        return None
    return f"took: {(run.finished_at - run.started_at).total_seconds():.1f} s"


def _blocked_alert(run: Run, dates: DateTally) -> NewAlert:
    counts = " and ".join(f"{n} {state.value}" for state in INCOMPLETE_DATES if (n := dates.states[state]))
    lines = [line for row in dates.incomplete for line in _date_lines(row)]
    if (hidden := len(dates.incomplete_days) - len(dates.incomplete)) > 0:
        lines.append(f"and {hidden} more: {truncate(format_dates(dates.incomplete_days), REASON_LENGTH)}")
    lines.append(f"see why: backfill status {run.id}")
    lines.append(f"after fixing the cause: backfill retry {run.id}")
    return _run_alert(AlertKind.RUN_BLOCKED, run, f"{counts} date(s) of {run.job} in run {run.id}", lines)


def _date_lines(row: DateRow) -> list[str]:
    reason = " ".join((row.reason or row.error or "no reason was recorded").split())
    lines = [f"{row.day} {row.state.value}: {truncate(printable(reason), REASON_LENGTH)}"]
    missing_count = (row.expected or 0) - (row.matched or 0)
    if row.missing and missing_count > 0:
        names = _names_that_fit(row.missing)
        lines.append(f"  missing {missing_count}: {list_names(names, missing_count, shown=len(names))}")
    return lines


def _names_that_fit(names: Sequence[str]) -> list[str]:
    """Return the first names that fit into a line, at least one."""
    first, *others = map(printable_name, names[:MISSING_NAMES_SHOWN])
    fitting = [first]
    for name in others:
        if len(", ".join([*fitting, name])) > NAMES_LENGTH:
            break
        fitting.append(name)
    return fitting


def _low_coverage_alert(run: Run, dates: DateTally) -> NewAlert:
    lines = [
        f"{row.day} {row.state.value}: {row.matched} of {row.expected} "
        f"({format_percent(row.matched or 0, row.expected or 0)})"
        for row in dates.low_coverage
    ]
    if dates.low_coverage_count > len(dates.low_coverage):
        lines.append(f"and {dates.low_coverage_count - len(dates.low_coverage)} more")
    if run.options.get("fallback") == Fallback.OFF.value:
        lines.append(f"The fallback was off. With it: backfill retry {run.id} --fallback replace")
    else:
        lines.append("Most of their input is missing: load it before rebuilding them.")
    title = f"coverage below {LOW_COVERAGE:.0%} on {dates.low_coverage_count} date(s) of {run.job}"
    return _run_alert(AlertKind.LOW_COVERAGE, run, title, lines)


def _fallback_often_alert(ended: EndedRun, now: datetime) -> NewAlert:
    year, week, _ = now.isocalendar()
    job = ended.run.job
    return NewAlert(
        key=f"{AlertKind.FALLBACK_OFTEN} {job} {year}-W{week:02d}",
        kind=AlertKind.FALLBACK_OFTEN,
        title=f"{ended.fallbacks_this_week} dates of {job} were built from a fallback within 7 days",
        lines=[f"The primary source {ended.primary} was partial on these dates: check the process that writes it."],
        job=job,
        run_id=ended.run.id,
    )


def count_fallbacks(date_counts: Mapping[tuple[str, ...], int], job: str, primary: str | None) -> int:
    """Count the job's dates that were not built from its primary source alone.

    `date_counts` holds the number of dates by job and source. 0 if `primary` is None (unknown).
    """
    if primary is None:
        return 0
    return sum(count for (name, source), count in date_counts.items() if name == job and source != primary)
