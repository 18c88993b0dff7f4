"""What must hold once a schedule's faults are spent and the tool has been left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from tests.faults.chaos import schedule as of
from tests.faults.chaos.others import Write
from tests.faults.chaos.schedule import Fault, Schedule
from tests.faults.chaos.shapes import OLD_DAYS, Day, Kind, Row, old_rows

ENDED_RUNS = ("succeeded", "partial", "failed", "cancelled")
ENDED_DATES = ("checkpointed", "failed", "blocked", "skipped", "cancelled")
MAX_DEATHS = 3
#: What can cost a worker its date: its death, an order, or a lease that ran out while it was frozen or its clock wrong.
FATAL = (of.KILL, of.FREEZE, of.CLOCK, of.RESTART, of.ORDER, of.COPY)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was found in ledger, warehouse and staging. Days are in ISO form."""

    runs: list[dict[str, Any]]
    windows: list[dict[str, Any]]
    dates: list[dict[str, Any]]  #: of every run
    checkpoints: dict[str, dict[str, Any]]  #: by day
    held: list[str]  #: the days whose partitions hold what their checkpoint says
    published: dict[str, list[list[Any]]]  #: by day, the rows in the target
    old: dict[str, list[list[Any]]]  #: likewise, in the table that is cleaned up
    covered: dict[str, list[str]]  #: by day, the expected names that the target has
    expected: dict[str, list[str]]  #: by day
    writers: dict[str, str | None]  #: by day, the run that wrote the target's partition; None where that is not told
    staged: list[str]  #: files in staging, without the quarantine
    strays: list[str]  #: temporary files in the warehouse
    marked: list[str]  #: days with the file that another program leaves beside its rows
    writes: list[Write]  #: of other programs

    def rows(self, day: Day) -> list[Row]:
        return [(name, value, source) for name, value, source in self.published[day.day.isoformat()]]

    def written(self, day: Day) -> list[Write]:
        """What other programs wrote on the date."""
        return [write for write in self.writes if write.day == day.day.isoformat()]

    def holds_others(self, day: Day) -> bool:
        """Whether the target holds what another program wrote: after the run did, or so that the run left it alone."""
        return self.rows(day) in [write.rows for write in self.written(day)]


@dataclass(frozen=True, kw_only=True)
class Violation:
    """An invariant that does not hold, and the facts."""

    invariant: str
    facts: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.facts}"


def violations(schedule: Schedule, seen: Seen, fired: Sequence[Fault], *, final: bool | None) -> list[Violation]:
    """Everything that does not hold.

    `final`: the user has taken the next step since, without any fault. None: the run, or a part of it, was undone.
    """
    found = [*_runs(seen), *_published(schedule, seen), *_respected(schedule, seen), *_checkpoints(schedule, seen)]
    found += [*_owners(seen), *_left(seen)]
    if final:
        found += _complete(schedule, seen)
    elif final is not None:
        found += [*_named(schedule, seen, fired), *_deaths(seen, fired)]
    return found


def undone(schedule: Schedule, seen: Seen) -> list[Day]:
    """The dates that did not come to the end that an undisturbed run gives them."""
    return [day for day in schedule.shape if not _is_done(day, seen)]


def _is_done(day: Day, seen: Seen) -> bool:
    """A date with nothing to build is known to no run where nothing else of the range was left to build."""
    state = _state(day, seen)[0]
    if state == "blocked" and day.kind is Kind.ACCEPTED and seen.written(day):
        return True  # it would have lost the entity that it lacks
    return state == day.end or (state == "unknown" and day.end == "skipped")


def _state(day: Day, seen: Seen) -> tuple[str, str]:
    """Where the date is, and why."""
    iso = day.day.isoformat()
    last = [row for row in sorted(seen.dates, key=lambda row: row["run_id"]) if row["day"] == iso][-1:]
    state = "checkpointed" if iso in seen.checkpoints else last[0]["state"] if last else "unknown"
    return state, str(last[0]["reason"]) if last else "no run knows of it"


def _runs(seen: Seen) -> Iterator[Violation]:
    for run in seen.runs:
        if run["state"] not in ENDED_RUNS:
            yield Violation(invariant="a run is active for ever", facts=f"{run['id']} is {run['state']}")
    ended = {run["id"] for run in seen.runs if run["state"] in ENDED_RUNS}
    for row in seen.dates:
        if row["run_id"] in ended and (row["state"] not in ENDED_DATES or row["active"]):
            yield Violation(
                invariant="a date of an ended run has no end",
                facts=f"{row['day']} of {row['run_id']} is {row['state']}{', held' if row['active'] else ''}",
            )
    for window in seen.windows:
        if window["run_id"] in ended and window["state"] != "closed":
            yield Violation(
                invariant="a window of an ended run is not closed",
                facts=f"window {window['number']} of {window['run_id']} is {window['state']}",
            )


def _published(schedule: Schedule, seen: Seen) -> Iterator[Violation]:
    for day in schedule.shape:
        iso = day.day.isoformat()
        found = seen.rows(day)
        if seen.holds_others(day):
            continue
        proven = iso in seen.checkpoints
        if found == sorted(day.after) and (proven or not day.kind.passes):
            continue
        if not proven and found in (sorted(day.before), sorted(day.after)):
            continue
        what = "blocked or skipped" if not day.kind.passes else "checkpointed" if proven else "not complete"
        yield Violation(
            invariant="published rows are not those of an undisturbed run",
            facts=f"{iso}, {day.kind.value}, {what}, has {len(found)} row(s) {found[:2]}, not {len(day.after)}",
        )


def _respected(schedule: Schedule, seen: Seen) -> Iterator[Violation]:
    """That the tool replaced what another program wrote by nothing poorer."""
    for day in schedule.shape:
        if seen.holds_others(day):
            continue
        names = {name for name, _, _ in seen.rows(day)}
        for write in removed_writes(seen, day):
            if lost := sorted({name for name, _, _ in write.rows} - names):
                yield Violation(
                    invariant="a rebuild lost entities of another program's rows",
                    facts=f"{day.day}, {day.kind.value}: {', '.join(lost[:4])}, of {write.rows[0][2]}",
                )


def removed_writes(seen: Seen, day: Day) -> list[Write]:
    """What other programs wrote on the date and the tool has removed: it is not there, and none of them replaced it."""
    return [write for write in seen.written(day) if write.done and write.rows in _removed(seen, day, [write.rows])]


def removed_rows(schedule: Schedule, looks: Sequence[Seen]) -> dict[str, list[list[Row]]]:
    """Everything that was in the target, as far as is known, and that the tool has removed, by day.

    `looks`: what was seen at some moments, the last of which is now.
    """
    removed: dict[str, list[list[Row]]] = {}
    for day in schedule.shape:
        seen_rows = [sorted(day.before), *(look.rows(day) for look in looks)]
        seen_rows += [write.rows for write in looks[-1].written(day) if write.done]
        removed[day.day.isoformat()] = _removed(looks[-1], day, seen_rows)
    return removed


def _removed(seen: Seen, day: Day, listed: Sequence[list[Row]]) -> list[list[Row]]:
    return _gone(seen.rows(day), seen.written(day), listed)


def _gone(current: list[Row], writes: Sequence[Write], listed: Sequence[list[Row]]) -> list[list[Row]]:
    """Those of the rows that are not on the date any more and that no other program replaced, each once.

    None where another program was killed before it could say what it had replaced.
    """
    if not all(write.done for write in writes):
        return []
    there = [[], current, *(write.replaced for write in writes)]
    return [rows for number, rows in enumerate(listed) if rows not in there and rows not in listed[:number]]


def checkpointed_by(run: str, schedule: Schedule, seen: Seen) -> list[Day]:
    """The dates of which the run wrote the checkpoint."""
    days = {iso for iso, checkpoint in seen.checkpoints.items() if checkpoint["run_id"] == run}
    return [day for day in schedule.shape if day.day.isoformat() in days]


def not_undone(run: str, days: Sequence[Day], schedule: Schedule, seen: Seen) -> Iterator[Violation]:
    """What is left of a run that was undone, on dates of which it wrote the checkpoint.

    The same rows may be those of another run that has checkpointed the date, or that an older ledger does not know.
    """
    for day in days:
        iso = day.day.isoformat()
        if iso in seen.checkpoints and seen.checkpoints[iso]["run_id"] == run:
            yield Violation(invariant="an undone run has a checkpoint", facts=f"{iso} of {run}")
        of_others = any(
            row["day"] == iso and row["run_id"] != run and row["state"] == "checkpointed" for row in seen.dates
        )
        if seen.rows(day) == sorted(day.after) and not of_others and schedule.put_back != of.RUN:
            yield Violation(invariant="rows of an undone run are in the target", facts=f"{iso} of {run}")


def late_effects(days: Sequence[Day], before: Seen, seen: Seen, invariant: str) -> Iterator[Violation]:
    """Dates that nothing of the tool's may change any more, but that have other rows than before."""
    for day in days:
        iso = day.day.isoformat()
        if seen.rows(day) != before.rows(day) and not seen.holds_others(day):
            facts = f"{iso}: {len(before.rows(day))} row(s) before, now {len(seen.rows(day))} {seen.rows(day)[:2]}"
            yield Violation(invariant=invariant, facts=facts)


def late_effects_on_old_rows(before: Seen, seen: Seen) -> Iterator[Violation]:
    """Restored dates that something changed which had been frozen beyond its lease, and no other program."""
    for day in OLD_DAYS:
        rows = _old_rows(seen, day)
        if rows != _old_rows(before, day) and rows not in [write.rows for write in seen.writes]:
            facts = f"chaos.old, {day}: {len(_old_rows(before, day))} row(s) before, now {len(rows)}"
            yield Violation(invariant="what was frozen beyond its lease had an effect", facts=facts)


def not_cleaned(seen: Seen) -> Iterator[Violation]:
    """Stale rows that a cleanup has left which said that it was done."""
    for day in OLD_DAYS:
        if _old_rows(seen, day) == sorted(old_rows(day)):
            yield Violation(invariant="stale rows are left after a cleanup", facts=str(day))


def removed_old_rows(seen: Seen) -> dict[str, list[list[Row]]]:
    """Everything that was in the old table and that the tool has removed, by day, as `removed_rows` says."""
    removed: dict[str, list[list[Row]]] = {}
    for day in OLD_DAYS:
        writes = [write for write in seen.writes if write.day == day.isoformat()]
        listed = [sorted(old_rows(day)), *(write.rows for write in writes if write.done)]
        removed[day.isoformat()] = _gone(_old_rows(seen, day), writes, listed)
    return removed


def _old_rows(seen: Seen, day: date) -> list[Row]:
    return [(name, value, source) for name, value, source in seen.old[day.isoformat()]]


def _checkpoints(schedule: Schedule, seen: Seen) -> Iterator[Violation]:
    for day in schedule.shape:
        iso = day.day.isoformat()
        checkpoint = seen.checkpoints.get(iso)
        if checkpoint is None:
            continue
        if not day.kind.passes:
            yield Violation(invariant="a date that must be blocked is checkpointed", facts=f"{iso}, {day.kind.value}")
            continue
        if seen.holds_others(day):
            continue
        if iso not in seen.held:
            yield Violation(invariant="a checkpoint without its rows", facts=f"{iso} of {checkpoint['run_id']}")
        counted = {
            "expected": len(seen.expected[iso]),
            "matched": len(seen.covered[iso]),
            "rows": len(seen.published[iso]),
            "source": day.source,
        }
        noted = {name: checkpoint[name] for name in counted}
        if noted != counted:
            yield Violation(invariant="a checkpoint's coverage is wrong", facts=f"{iso}: {noted}, counted {counted}")


def _owners(seen: Seen) -> Iterator[Violation]:
    """That each date's publication is one run's."""
    written = {write.day for write in seen.writes}  # a later run builds such a date again
    provers = Counter(
        row["day"]
        for row in seen.dates
        if row["state"] == "checkpointed" and row["undone_at"] is None and row["day"] not in written
    )
    for day, count in sorted(provers.items()):
        if count > 1:
            yield Violation(invariant="a date was published by two runs", facts=f"{day}: checkpointed by {count} runs")
    states = {(row["run_id"], row["day"]): row["state"] for row in seen.dates}
    for day, checkpoint in sorted(seen.checkpoints.items()):
        if states.get((checkpoint["run_id"], day)) != "checkpointed":
            yield Violation(
                invariant="a checkpoint's run does not know of it",
                facts=f"{day}: {checkpoint['run_id']} says {states.get((checkpoint['run_id'], day))}",
            )
        writer = seen.writers.get(day)
        if writer is not None and (writer, day) not in states:
            yield Violation(invariant="a date was written by a run that did not hold it", facts=f"{day}: {writer}")
    holders = Counter(row["day"] for row in seen.dates if row["active"])
    for day, count in sorted(holders.items()):
        if count > 1:
            yield Violation(invariant="a date is held by two runs", facts=f"{day}: by {count} runs")


def _left(seen: Seen) -> Iterator[Violation]:
    if seen.staged:
        yield Violation(invariant="something is left in staging", facts=", ".join(seen.staged[:4]))
    if removed := sorted({write.day for write in seen.writes if write.done} - set(seen.marked)):
        yield Violation(invariant="a file of another program was removed", facts=", ".join(removed))
    if seen.strays:
        yield Violation(invariant="a temporary file is left in the warehouse", facts=", ".join(seen.strays[:4]))


def _named(schedule: Schedule, seen: Seen, fired: Sequence[Fault]) -> Iterator[Violation]:
    """That each date that is not complete has its state and its reason, and that a fault explains it."""
    last = {row["day"]: row for row in sorted(seen.dates, key=lambda row: row["run_id"])}
    for day in schedule.shape:
        iso = day.day.isoformat()
        row = last.get(iso)
        if iso in seen.checkpoints or row is None:
            continue
        if row["state"] in ENDED_DATES and not row["reason"]:
            yield Violation(invariant="a date is not complete and nothing says why", facts=f"{iso} is {row['state']}")
        if row["state"] == "failed" and not _explained(row, fired):
            yield Violation(
                invariant="a date failed though no fault explains it",
                facts=f"{iso}: {row['error_kind']}: {row['reason']}, deaths: {row['deaths']}, losses: {row['losses']}",
            )


def _deaths(seen: Seen, fired: Sequence[Fault]) -> Iterator[Violation]:
    """That nobody was taken for dead where nobody was killed or held up."""
    if any(fault.action in FATAL for fault in fired):
        return
    for row in seen.dates:
        if row["deaths"] or row["losses"]:
            facts = f"{row['day']} of {row['run_id']}: {row['deaths']} death(s), {row['losses']} loss(es)"
            yield Violation(invariant="a worker was taken for dead that lives", facts=facts)


def _explained(row: dict[str, Any], fired: Sequence[Fault]) -> bool:
    if row["error_kind"] in ("WorkerLost", "GateLost"):
        return sum(fault.action in FATAL for fault in fired) >= MAX_DEATHS
    if any(fault.action == of.COPY for fault in fired):
        return True  # of what an older ledger knows, much is gone
    if row["error_kind"] == "RequeuedTooOften" and any(fault.action == of.WRITE for fault in fired):
        return True
    return any(fault.action in (of.ERROR, of.FILL) for fault in fired)


def _complete(schedule: Schedule, seen: Seen) -> Iterator[Violation]:
    """That the end is that of an undisturbed run."""
    for day in undone(schedule, seen):
        state, why = _state(day, seen)
        yield Violation(
            invariant="the end is not that of an undisturbed run",
            facts=f"{day.day}, {day.kind.value}, is {state}: {why}, not {day.end}",
        )
