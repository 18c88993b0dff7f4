"""The dates of runs: claimed, moved, given back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import date, datetime
from functools import lru_cache
from statistics import median
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Update,
    and_,
    bindparam,
    exists,
    func,
    select,
    true,
    update,
)

from common.clock import utcnow
from common.coverage import Verdict
from common.ledger.actions import cancelled_because, discards
from common.ledger.database import Database, held_by
from common.ledger.orders import Order, order_of
from common.ledger.records import DateRow, Digest, Run, SourceUse
from common.ledger.rows import (
    IN_HAND,
    OF_DAYS,
    Facts,
    date_row_of,
    dropped,
    grouped_by_columns,
    locked_state,
    moved,
    poisoned,
    run_is_on,
)
from common.ledger.states import DateState, RunState, WindowState
from common.ledger.tables import run_dates, runs, windows

PACE_WINDOWS, PACE_RUNS, PACE_DATES = 4, 5, 100  #: of which it is told how long a date takes

CLAIMABLE = select(run_dates).where(OF_DAYS).order_by(run_dates.c.day).with_for_update()
CLAIM = (
    update(run_dates)
    .where(OF_DAYS)
    .values(
        state=DateState.PROCESSING.value,
        attempt=run_dates.c.attempt + 1,
        deaths=bindparam("deaths_seen"),
        lease_owner=bindparam("owner"),
        lease_until=bindparam("until"),
        started_at=bindparam("now"),
    )
)
HELD = (
    select(run_dates.c.day, runs.c.state)
    .join(runs, runs.c.id == run_dates.c.run_id)
    .where(IN_HAND)
    .with_for_update(of=run_dates)
)


class Dates(Database):
    """The dates of runs, each in one state at a time."""

    def dates(
        self,
        run_id: str,
        *,
        window: int | None = None,
        states: Collection[DateState] | None = None,
        days: Collection[date] | None = None,
    ) -> list[DateRow]:
        """The run's dates, oldest first: all, or those of one window, of some states, or among some days."""
        query = select(run_dates).where(run_dates.c.run_id == run_id).order_by(run_dates.c.day)
        if window is not None:
            query = query.where(run_dates.c.window == window)
        if states is not None:
            query = query.where(run_dates.c.state.in_([state.value for state in states]))
        if days is not None:
            query = query.where(run_dates.c.day.in_(list(days)))
        with self._read() as connection:
            return [date_row_of(row) for row in connection.execute(query).mappings()]

    def digest(self, run_id: str) -> Digest:
        """What there is to tell of the run's dates."""
        of_run = run_dates.c.run_id == run_id
        used = (
            select(
                run_dates.c.source,
                func.count(),
                func.sum(func.coalesce(run_dates.c.matched, 0)),
                func.sum(func.coalesce(run_dates.c.expected, 0)),
            )
            .where(of_run, run_dates.c.state == DateState.CHECKPOINTED.value, run_dates.c.source.is_not(None))
            .group_by(run_dates.c.source)
            .order_by(run_dates.c.source)
        )
        noted = select(run_dates).where(of_run, run_dates.c.verdict.in_([Verdict.ACCEPTED.value, Verdict.FORCED.value]))
        with self._read() as connection:
            sources = tuple(
                SourceUse(source=source, dates=dates, matched=int(matched), expected=int(expected))
                for source, dates, matched, expected in connection.execute(used)
            )
            rows = connection.execute(noted.order_by(run_dates.c.day)).mappings()
            told = tuple(date_row_of(row) for row in rows)
        incomplete = self.dates(run_id, states=[DateState.BLOCKED, DateState.FAILED])
        return Digest(sources=sources, incomplete=tuple(incomplete), noted=told)

    def claim_dates(
        self,
        run_id: str,
        days: Collection[date],
        owner: str,
        until: datetime,
        *,
        is_dead: Callable[[str], bool],
        max_deaths: int,
    ) -> list[DateRow]:
        """Take dates to process them together, oldest first; nothing is returned when none is to be processed (yet).

        A queued date is free. One that another worker holds is free when that worker is dead or its lease has run
        out; the death is counted, and a date that has seen `max_deaths` of them is failed instead. One that has seen
        any is taken alone, once no other is left, so that it kills no worker that has others in hand.
        """
        now = utcnow()
        with self._write(durable=False) as connection:
            rows = connection.execute(CLAIMABLE, {"run": run_id, "days": list(days)}).mappings().all()
            if not rows or not run_is_on(connection, run_id):
                return []
            deaths = {row["day"]: _deaths(row, owner, now, is_dead) for row in rows}
            for day, seen in deaths.items():
                if seen is not None and seen >= max_deaths:
                    this = and_(run_dates.c.run_id == run_id, run_dates.c.day == day)
                    connection.execute(update(run_dates).where(this).values(poisoned(seen, now)))
            free = [row for row in rows if (seen := deaths[row["day"]]) is not None and seen < max_deaths]
            taken = [row for row in free if not deaths[row["day"]]] or free[:1]
            if not taken:
                return []
            which = {"run": run_id, "days": [row["day"] for row in taken]}
            seen = deaths[taken[0]["day"]]
            connection.execute(CLAIM, which | {"deaths_seen": seen, "owner": owner, "until": until, "now": now})
        values = {
            "state": DateState.PROCESSING.value,
            "deaths": seen,
            "lease_owner": owner,
            "lease_until": until,
            "started_at": now,
        }
        return [date_row_of({**row, **values, "attempt": row["attempt"] + 1}) for row in taken]

    def give_back(
        self,
        run_id: str,
        number: int,
        *,
        queued_too: bool,
        is_dead: Callable[[str], bool],
        max_deaths: int,
        innocent_before: datetime | None = None,
    ) -> list[date]:
        """Queue again the dates of a window whose worker is dead or past its lease; returns the days to send again.

        With `queued_too`, what was queued counts as lost as well. A date that has seen `max_deaths` deaths is failed;
        the death of a worker that took it up before `innocent_before` is not counted: it died of something else.
        Nothing is to be sent of a run that is paused, and what is lost of one that is being cancelled is cancelled.
        """
        now = utcnow()
        again: list[date] = []
        lost_states = [DateState.PROCESSING.value, *([DateState.QUEUED.value] if queued_too else [])]
        query = select(run_dates).where(
            run_dates.c.run_id == run_id, run_dates.c.window == number, run_dates.c.state.in_(lost_states)
        )
        with self._write() as connection:
            run = locked_state(connection, run_id)
            for row in connection.execute(query.order_by(run_dates.c.day).with_for_update()).mappings().all():
                this = and_(run_dates.c.run_id == run_id, run_dates.c.day == row["day"])
                values: dict[str, Any] = {"queued_at": now}
                if row["state"] == DateState.PROCESSING.value:
                    if row["lease_until"] >= now and not is_dead(row["lease_owner"]):
                        continue
                    innocent = innocent_before is not None and row["started_at"] < innocent_before
                    deaths = row["deaths"] + (not innocent)
                    values |= {"deaths": deaths} | moved(DateState.PROCESSING, DateState.QUEUED, {})
                    if not innocent and deaths >= max_deaths:
                        values = poisoned(deaths, now)
                failed = values.get("state") == DateState.FAILED.value
                if run is RunState.CANCELLING and not failed:
                    values |= dropped(cancelled_because(connection, run_id))
                connection.execute(update(run_dates).where(this).values(values))
                if run not in (RunState.PAUSED, RunState.CANCELLING) and not failed:
                    again.append(row["day"])
        return again

    def lease_holders(self, run_id: str) -> set[str]:
        """Who holds a date of the run to process it, or a window to gate it, whether or not the lease still runs."""
        dates = select(run_dates.c.lease_owner).where(
            run_dates.c.run_id == run_id, run_dates.c.lease_owner.is_not(None)
        )
        gates = select(windows.c.lease_owner).where(windows.c.run_id == run_id, windows.c.lease_owner.is_not(None))
        with self._read() as connection:
            return set(connection.execute(dates.union(gates)).scalars())

    def lease_of(self, run_id: str, days: Collection[date]) -> datetime | None:
        """When the first lease of dates that are being processed runs out; None when none is being processed."""
        query = select(func.min(run_dates.c.lease_until)).where(
            run_dates.c.run_id == run_id,
            run_dates.c.day.in_(list(days)),
            run_dates.c.state == DateState.PROCESSING.value,
        )
        with self._read() as connection:
            return connection.execute(query).scalar()

    def move_date(
        self,
        run_id: str,
        day: date,
        *,
        expect: DateState,
        to: DateState,
        owner: str | None = None,
        gate: tuple[int, str] | None = None,
        **facts: Any,
    ) -> bool:
        """Change one date's state and record facts, if it is in the state expected.

        With `owner`, only if that worker holds the date; with `gate` (a window and an owner), only if that gate still
        holds the window. What would be queued again of a run that is being cancelled is cancelled instead: nobody
        takes it up any more.
        """
        return bool(self.move_dates(run_id, [day], expect=expect, to=to, owner=owner, gate=gate, **facts))

    def move_dates(
        self,
        run_id: str,
        days: Collection[date],
        *,
        expect: DateState,
        to: DateState,
        owner: str | None = None,
        gate: tuple[int, str] | None = None,
        **facts: Any,
    ) -> int:
        """Change the state of several dates at once, as `move_date` does; returns how many were in that expected."""
        if not days:
            return 0
        these = and_(
            run_dates.c.run_id == run_id,
            run_dates.c.day.in_(list(days)),
            run_dates.c.state == expect.value,
            *([run_dates.c.lease_owner == owner] if owner is not None else []),
            *([exists().where(held_by(run_id, gate))] if gate is not None else []),
        )
        values = moved(expect, to, facts)
        with self._write() as connection:
            if to is DateState.QUEUED and locked_state(connection, run_id) is RunState.CANCELLING:
                values |= dropped(cancelled_because(connection, run_id))
            return connection.execute(update(run_dates).where(these).values(values)).rowcount

    def leave_dates(self, run_id: str, ends: Mapping[date, tuple[DateState, Facts]], *, owner: str) -> frozenset[date]:
        """Move dates that the worker holds to their states with their facts, in one transaction.

        Returns those that it did hold: the others are not its own any more. What would be staged for a run that was
        told to discard that is dropped instead, and not among them either.
        """
        which = {"run": run_id, "days": list(ends), "owner": owner}
        with self._write(durable=False) as connection:
            rows = connection.execute(HELD, which).all()
            held = frozenset(row.day for row in rows)
            if rows and _discarding(connection, run_id, RunState(rows[0].state)):
                unwanted = [day for day in held if ends[day][0] is DateState.STAGED]
                values = dropped(cancelled_because(connection, run_id))
                connection.execute(update(run_dates).where(IN_HAND).values(values), which | {"days": unwanted})
                held -= frozenset(unwanted)
            for to in {to for to, _ in ends.values()}:
                rows = [
                    {"of_run": run_id, "of_day": day, **moved(DateState.PROCESSING, to, facts)}
                    for day, (state, facts) in sorted(ends.items())
                    if day in held and state is to
                ]
                for alike in grouped_by_columns(rows):
                    connection.execute(_changing(alike[0]), alike)
        return held

    def fail_rest(self, run_id: str, kind: str, why: str) -> int:
        """Fail every date of a run that no worker has begun and close its unopened windows: no retry would help."""
        waiting = [DateState.PENDING.value, DateState.QUEUED.value]
        facts = {"verdict": Verdict.FAILED.value, "error_kind": kind, "error": why, "reason": f"{kind}: {why}"}
        with self._write() as connection:
            connection.execute(
                update(windows)
                .where(windows.c.run_id == run_id, windows.c.state == WindowState.PENDING.value)
                .values(state=WindowState.CLOSED.value, closed_at=utcnow())
            )
            return connection.execute(
                update(run_dates)
                .where(run_dates.c.run_id == run_id, run_dates.c.state.in_(waiting))
                .values(moved(DateState.PENDING, DateState.FAILED, facts))
            ).rowcount

    def last_activity(self, run_id: str) -> datetime | None:
        """When a date of the run was last queued, taken up or ended; None while one is being processed."""
        query = select(
            func.max(run_dates.c.queued_at).label("queued"),
            func.max(run_dates.c.started_at).label("started"),
            func.max(run_dates.c.ended_at).label("ended"),
            func.count().filter(run_dates.c.state == DateState.PROCESSING.value).label("processing"),
        ).where(run_dates.c.run_id == run_id)
        with self._read() as connection:
            row = connection.execute(query).one()
        known = [moment for moment in (row.queued, row.started, row.ended) if moment is not None]
        return max(known) if known and not row.processing else None

    def pace(self, run: Run, window: int) -> float | None:
        """Seconds of work that a date takes, by those lately built of the run before that window, or of its job.

        None when no run of this version of the job has built any. The median: a worker's first date is no measure.
        """
        near = and_(run_dates.c.run_id == run.id, run_dates.c.window.between(window - PACE_WINDOWS, window))
        before = (
            select(runs.c.id)
            .where(runs.c.job == run.job, runs.c.job_version == run.job_version, runs.c.id != run.id)
            .order_by(runs.c.created_at.desc())
            .limit(PACE_RUNS)
        )
        with self._read() as connection:
            if known := _seconds(connection, near):
                return median(known)
            for earlier in connection.execute(before).scalars().all():
                if known := _seconds(connection, run_dates.c.run_id == earlier):
                    return median(known)
        return None

    def note_verdicts(self, run_id: str, facts: Mapping[date, Facts], *, gate: tuple[int, str] | None = None) -> None:
        """Record what the gate counted and decided, before it acts on it; only while it holds its window."""
        held = true() if gate is None else exists().where(held_by(run_id, gate))
        staged = run_dates.c.state == DateState.STAGED.value
        rows = [{"of_run": run_id, "of_day": day, **values} for day, values in facts.items()]
        with self._write() as connection:
            for alike in grouped_by_columns(rows):
                connection.execute(_changing(alike[0]).where(staged, held), alike)

    def last_ends(self, job: str, start: date, through: date) -> dict[date, DateRow]:
        """For each day, how the latest run that ended it left it; a run that was cancelled before has not ended it."""
        query = (
            select(run_dates)
            .where(
                run_dates.c.job == job,
                run_dates.c.day.between(start, through),
                run_dates.c.ended_at.is_not(None),
                run_dates.c.state != DateState.CANCELLED.value,
            )
            .order_by(run_dates.c.ended_at)
        )
        with self._read() as connection:
            return {row["day"]: date_row_of(row) for row in connection.execute(query).mappings()}


def _deaths(row: RowMapping, owner: str, now: datetime, is_dead: Callable[[str], bool]) -> int | None:
    """The deaths that a date has seen, should it be taken now; None when it is not to be had."""
    if row["state"] == DateState.QUEUED.value:
        return row["deaths"]
    if row["state"] != DateState.PROCESSING.value:
        return None
    if row["lease_owner"] == owner:  # a worker has one task at a time: its own is one that it could not end
        return row["deaths"]
    gone = row["lease_until"] < now or is_dead(row["lease_owner"])
    return row["deaths"] + 1 if gone else None


def _seconds(connection: Connection, of: ColumnElement[bool]) -> list[float]:
    """What some of the dates that were built took."""
    built = (run_dates.c.checksum.is_not(None), run_dates.c.seconds.is_not(None))
    query = select(run_dates.c.seconds).where(of, *built).limit(PACE_DATES)
    return list(connection.execute(query).scalars())


def _discarding(connection: Connection, run_id: str, state: RunState) -> bool:
    if state is RunState.RUNNING:  # as it is nearly always
        return False
    return order_of(state, begun=True, discard=discards(connection, run_id)) is Order.DROP


def _changing(values: Mapping[str, Any]) -> Update:
    """The change of one date (`of_run`, `of_day`) to such values, for many dates at once."""
    return _setting(tuple(name for name in values if not name.startswith("of_")))


@lru_cache
def _setting(names: tuple[str, ...]) -> Update:
    this = and_(run_dates.c.run_id == bindparam("of_run"), run_dates.c.day == bindparam("of_day"))
    return update(run_dates).where(this).values({name: bindparam(name) for name in names})
