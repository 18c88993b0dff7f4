"""What alerts say. Pure: from what is known of a run or of beat to the alerts to write down, and to one message."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from gated_backfill.common.ledger.records import Alert, DateRow, NewAlert, Run
from gated_backfill.common.ledger.states import INCOMPLETE_DATES, DateState, RunState
from gated_backfill.common.model.alert_kinds import ALERT_KINDS, AlertKind
from gated_backfill.common.model.coverage import MISSING_NAMES_SHOWN, Fallback, Verdict, format_percent, reaches_ratio
from gated_backfill.common.model.dates import format_dates

LOW_COVERAGE = 0.5
FALLBACKS_A_WEEK = 2  #: more than so many are told
BEAT_SILENT_AFTER = timedelta(minutes=10)
DATES_NAMED = 5
NAMES_LENGTH = 180  #: of a date, together
REASON_LENGTH = 120
MESSAGE_LENGTH = 3500  #: chat services cut or refuse what is much longer
TITLE_LENGTH = 200

_ENDED_AS = {
    RunState.SUCCEEDED: "succeeded",
    RunState.PARTIAL: "ended with dates that are not complete",
    RunState.FAILED: "failed: no date was checkpointed",
    RunState.CANCELLED: "was cancelled",
}


@dataclass(kw_only=True)
class DateTally:
    """What is told of a run's dates, counted one after the other: however many there are, few are kept."""

    states: Counter[DateState] = field(default_factory=Counter[DateState])
    forced: int = 0
    matched: int = 0  #: of `expected`, over the dates of which both are known
    expected: int = 0
    least: tuple[float, DateRow] | None = None  #: the lowest coverage, and the date that has it
    bad: list[DateRow] = field(default_factory=list[DateRow])  #: the first of those blocked or failed
    bad_days: list[date] = field(default_factory=list[date])
    low: list[DateRow] = field(default_factory=list[DateRow])  #: the first of those with little coverage
    low_count: int = 0
    fallback_sources: Counter[str] = field(
        default_factory=Counter[str]
    )  #: checkpointed dates by source, fallbacks only

    @classmethod
    def from_dates(cls, dates: Iterable[DateRow], primary: str | None) -> DateTally:
        found = cls()
        for row in dates:
            found._count(row, primary)
        return found

    def _count(self, row: DateRow, primary: str | None) -> None:
        self.states[row.state] += 1
        self.forced += row.verdict is Verdict.FORCED
        if row.expected and row.matched is not None:
            self.matched += row.matched
            self.expected += row.expected
            share = row.matched / row.expected
            if self.least is None or share < self.least[0]:
                self.least = (share, row)
        if row.state in INCOMPLETE_DATES:
            self.bad_days.append(row.day)
            if len(self.bad) < DATES_NAMED:
                self.bad.append(row)
        if is_low(row):
            self.low_count += 1
            if len(self.low) < DATES_NAMED:
                self.low.append(row)
        if row.source is not None and is_from_fallback(row, primary):
            self.fallback_sources[row.source] += 1


@dataclass(frozen=True, kw_only=True)
class EndedRun:
    """All that is told of a run's end."""

    run: Run
    dates: DateTally
    primary: str | None = None  #: the name of the job's first source; None when the job is not installed here
    fallbacks_this_week: int = 0  #: dates of the job built from a fallback by runs that ended in the last 7 days
    orders: Sequence[str] = ()  #: who paused, resumed and cancelled it, and why


@dataclass(frozen=True, kw_only=True)
class Message:
    """What an endpoint is sent."""

    title: str
    body: str


def alerts_for_run(ending: EndedRun, now: datetime) -> list[NewAlert]:
    """The alerts of an ended run: they are delivered as one message."""
    dates = ending.dates
    found = [_finished(ending)]
    if dates.bad:
        found.append(_blocked(ending.run, dates))
    if dates.low:
        found.append(_low(ending.run, dates))
    if ending.fallbacks_this_week > FALLBACKS_A_WEEK and dates.fallback_sources:
        found.append(_fallback_often(ending, now))
    return found


def is_low(row: DateRow) -> bool:
    """Whether less than half of who is expected on an ended date was there."""
    if row.state not in (DateState.CHECKPOINTED, DateState.BLOCKED) or not row.expected or row.matched is None:
        return False
    return not reaches_ratio(row.matched, row.expected, LOW_COVERAGE)


def is_from_fallback(row: DateRow, primary: str | None) -> bool:
    """Whether a checkpointed date was not built from the primary source alone; False when that is not known."""
    return primary is not None and row.state is DateState.CHECKPOINTED and row.source not in (None, primary)


def beat_silent_alert(last_seen: datetime | None, now: datetime) -> NewAlert | None:
    """The alert that beat gives no sign of life, once for each silence; None while it does, or never did."""
    if last_seen is None or now - last_seen <= BEAT_SILENT_AFTER:
        return None
    return NewAlert(
        key=f"{AlertKind.BEAT_SILENT} {last_seen.isoformat()}",
        kind=AlertKind.BEAT_SILENT,
        title=f"beat is silent since {last_seen:%Y-%m-%d %H:%M} UTC",
        body="Cleanup, audit, retention and the catching up of stuck runs are not done while it is. "
        "Start it again, and see its log for why it stopped.",
    )


def compose_message(waiting: Sequence[Alert]) -> Message:
    """Everything that waits as one message, the gravest first; what is too long is cut, and says so."""
    ordered = sorted(waiting, key=_gravity)
    first, others = ordered[0], len({alert.run_id or alert.id for alert in ordered}) - 1
    more = f" (and {others} more)" if others else ""
    of_runs: dict[str, list[Alert]] = {}
    for alert in ordered:
        of_runs.setdefault(alert.run_id or alert.id, []).append(alert)
    sections = ["\n\n".join(f"{one.title}\n{one.body}" for one in group) for group in of_runs.values()]
    return Message(title=truncate(f"backfill: {first.title}", TITLE_LENGTH - len(more)) + more, body=_joined(sections))


def truncate(text: str, length: int) -> str:
    """The text, or its beginning with an ellipsis where it is longer."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _gravity(alert: Alert) -> tuple[int, datetime, str]:
    known = ALERT_KINDS.index(alert.kind) if alert.kind in ALERT_KINDS else len(ALERT_KINDS)
    return known, alert.created_at, alert.id


def _joined(sections: Sequence[str]) -> str:
    """As many of the sections as a message holds, each cut to its share; how many are left out."""
    kept: list[str] = []
    room = MESSAGE_LENGTH
    for number, section in enumerate(sections):
        if kept and len(section) > room:
            kept.append(f"and {len(sections) - number} more: `backfill alerts` lists them")
            break
        kept.append(truncate(section, room))
        room -= len(kept[-1])
    return "\n\n----\n\n".join(kept)


def _finished(ending: EndedRun) -> NewAlert:
    run, dates = ending.run, ending.dates
    return NewAlert(
        key=f"{AlertKind.RUN_FINISHED} {run.id}",
        kind=AlertKind.RUN_FINISHED,
        title=f"run {run.id} of {run.job} {_ENDED_AS.get(run.state, run.state.value)}",
        body="\n".join(
            line
            for line in (
                f"asked: {truncate(run.requested, REASON_LENGTH)}, by {run.requested_by}",
                *(truncate(order, REASON_LENGTH) for order in ending.orders),
                f"dates: {_counts(dates)}",
                _coverage(dates),
                _fallback(dates),
                _duration(run),
            )
            if line
        ),
        job=run.job,
        run_id=run.id,
    )


def _counts(dates: DateTally) -> str:
    """How many dates ended how; in a run that was stopped, some did not end."""
    ends = [
        DateState.CHECKPOINTED,
        DateState.BLOCKED,
        DateState.FAILED,
        DateState.SKIPPED,
        DateState.CANCELLED,
    ]
    counts = {state.value: dates.states[state] for state in ends}
    counts["not reached"] = dates.states.total() - sum(counts.values())
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f"{told} ({dates.forced} of them forced)" if dates.forced else told or "none"


def _coverage(dates: DateTally) -> str | None:
    if dates.least is None:
        return None
    _, worst = dates.least
    least = format_percent(worst.matched or 0, worst.expected or 0)
    return f"coverage: {format_percent(dates.matched, dates.expected)} over all, {least} at least, on {worst.day}"


def _fallback(dates: DateTally) -> str | None:
    if not dates.fallback_sources:
        return None
    sources = ", ".join(sorted(dates.fallback_sources))
    return f"fallback: {dates.fallback_sources.total()} date(s) were built from {sources}"


def _duration(run: Run) -> str | None:
    if run.started_at is None or run.finished_at is None:
        return None
    return f"took: {(run.finished_at - run.started_at).total_seconds():.1f} s"


def _blocked(run: Run, dates: DateTally) -> NewAlert:
    counts = " and ".join(f"{n} {state.value}" for state in INCOMPLETE_DATES if (n := dates.states[state]))
    lines = [line for row in dates.bad for line in _date_lines(row)]
    if (more := len(dates.bad_days) - len(dates.bad)) > 0:
        lines.append(f"and {more} more: {truncate(format_dates(dates.bad_days), REASON_LENGTH)}")
    lines.append(f"see why: backfill status {run.id}")
    lines.append(f"once the cause is mended: backfill retry {run.id}")
    return NewAlert(
        key=f"{AlertKind.RUN_BLOCKED} {run.id}",
        kind=AlertKind.RUN_BLOCKED,
        title=f"{counts} date(s) of {run.job} in run {run.id}",
        body="\n".join(lines),
        job=run.job,
        run_id=run.id,
    )


def _date_lines(row: DateRow) -> list[str]:
    reason = " ".join((row.reason or row.error or "no reason was noted").split())
    lines = [f"{row.day} {row.state.value}: {truncate(reason, REASON_LENGTH)}"]
    missing = (row.expected or 0) - (row.matched or 0)
    if row.missing and missing > 0:
        named = _fitting(row.missing)
        more = f" and {missing - len(named)} more" if missing > len(named) else ""
        lines.append(f"  missing {missing}: {', '.join(named)}{more}")
    return lines


def _fitting(names: Sequence[str]) -> list[str]:
    """As many of the names as a line holds, one at least."""
    kept = [truncate(names[0], NAMES_LENGTH)]
    for name in names[1:MISSING_NAMES_SHOWN]:
        if len(", ".join([*kept, name])) > NAMES_LENGTH:
            break
        kept.append(name)
    return kept


def _advice(run: Run) -> str:
    if run.options.get("fallback") == Fallback.OFF.value:
        return f"The fallback was off. With it: backfill retry {run.id} --fallback replace"
    return "Their input is largely missing: load it before anything is built again."


def _low(run: Run, dates: DateTally) -> NewAlert:
    lines = [
        f"{row.day} {row.state.value}: {row.matched} of {row.expected} "
        f"({format_percent(row.matched or 0, row.expected or 0)})"
        for row in dates.low
    ]
    if dates.low_count > len(dates.low):
        lines.append(f"and {dates.low_count - len(dates.low)} more")
    return NewAlert(
        key=f"{AlertKind.LOW_COVERAGE} {run.id}",
        kind=AlertKind.LOW_COVERAGE,
        title=f"coverage below {LOW_COVERAGE:.0%} on {dates.low_count} date(s) of {run.job}",
        body="\n".join([*lines, _advice(run)]),
        job=run.job,
        run_id=run.id,
    )


def _fallback_often(ending: EndedRun, now: datetime) -> NewAlert:
    year, week, _ = now.isocalendar()
    job = ending.run.job
    return NewAlert(
        key=f"{AlertKind.FALLBACK_OFTEN} {job} {year}-W{week:02d}",
        kind=AlertKind.FALLBACK_OFTEN,
        title=f"{ending.fallbacks_this_week} dates of {job} were built from a fallback within 7 days",
        body=f"The primary source {ending.primary} was partial on these dates: see to what writes it.",
        job=job,
        run_id=ending.run.id,
    )


def count_fallbacks(built: Mapping[tuple[str, ...], int], job: str, primary: str | None) -> int:
    """How many of the dates, counted by job and source, were not built from the job's primary source alone."""
    if primary is None:
        return 0
    return sum(count for (name, source), count in built.items() if name == job and source != primary)
