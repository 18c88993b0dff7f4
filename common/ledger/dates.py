"""The dates of runs: claimed, moved, given back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import date, datetime
from typing import Any

from sqlalchemy import and_, exists, func, select, true, update

from common.clock import utcnow
from common.coverage import Verdict
from common.ledger.actions import cancelled_because
from common.ledger.database import Database, held_by
from common.ledger.records import DateRow
from common.ledger.rows import Facts, date_row_of, dropped, locked_state, moved, poisoned, run_is_on
from common.ledger.states import DateState, RunState, WindowState
from common.ledger.tables import run_dates, windows


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

    def claim_date(
        self,
        run_id: str,
        day: date,
        owner: str,
        until: datetime,
        *,
        is_dead: Callable[[str], bool],
        max_deaths: int,
    ) -> DateRow | None:
        """Take a date to process it, or learn that it is not to be processed (None).

        A queued date is free. One that another worker holds is free when that worker is dead or its lease has run
        out; the death is counted, and a date that has seen `max_deaths` of them is failed instead.
        """
        now = utcnow()
        this = and_(run_dates.c.run_id == run_id, run_dates.c.day == day)
        with self._write() as connection:
            row = connection.execute(select(run_dates).where(this).with_for_update()).mappings().one_or_none()
            if row is None or not run_is_on(connection, run_id):
                return None
            deaths = row["deaths"]
            if row["state"] == DateState.PROCESSING.value:
                if row["lease_owner"] != owner:  # a worker has one date at a time: its own is one it could not end
                    if row["lease_until"] >= now and not is_dead(row["lease_owner"]):
                        return None
                    deaths += 1
            elif row["state"] != DateState.QUEUED.value:
                return None
            if deaths >= max_deaths:
                connection.execute(update(run_dates).where(this).values(poisoned(deaths, now)))
                return None
            values = {
                "state": DateState.PROCESSING.value,
                "attempt": row["attempt"] + 1,
                "deaths": deaths,
                "lease_owner": owner,
                "lease_until": until,
                "started_at": now,
            }
            connection.execute(update(run_dates).where(this).values(values))
        return date_row_of({**row, **values})

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

    def lease_of(self, run_id: str, day: date) -> datetime | None:
        """When the lease of a date that is being processed runs out; None when it is not being processed."""
        query = select(run_dates.c.lease_until).where(
            run_dates.c.run_id == run_id,
            run_dates.c.day == day,
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
        this = and_(run_dates.c.run_id == run_id, run_dates.c.day == day, run_dates.c.state == expect.value)
        if owner is not None:
            this = and_(this, run_dates.c.lease_owner == owner)
        if gate is not None:
            this = and_(this, exists().where(held_by(run_id, gate)))
        values = moved(expect, to, facts)
        with self._write() as connection:
            if to is DateState.QUEUED and locked_state(connection, run_id) is RunState.CANCELLING:
                values |= dropped(cancelled_because(connection, run_id))
            return bool(connection.execute(update(run_dates).where(this).values(values)).rowcount)

    def move_dates(
        self,
        run_id: str,
        days: Collection[date],
        *,
        expect: DateState,
        to: DateState,
        gate: tuple[int, str] | None = None,
    ) -> int:
        """Change the state of several dates at once; returns how many were in the state expected.

        With `gate`, only while that gate holds its window.
        """
        if not days:
            return 0
        held = true() if gate is None else exists().where(held_by(run_id, gate))
        with self._write() as connection:
            return connection.execute(
                update(run_dates)
                .where(
                    run_dates.c.run_id == run_id,
                    run_dates.c.day.in_(list(days)),
                    run_dates.c.state == expect.value,
                    held,
                )
                .values(moved(expect, to, {}))
            ).rowcount

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

    def note_verdicts(self, run_id: str, facts: Mapping[date, Facts], *, gate: tuple[int, str] | None = None) -> None:
        """Record what the gate counted and decided, before it acts on it; only while it holds its window."""
        held = true() if gate is None else exists().where(held_by(run_id, gate))
        with self._write() as connection:
            for day, values in facts.items():
                connection.execute(
                    update(run_dates)
                    .where(
                        run_dates.c.run_id == run_id,
                        run_dates.c.day == day,
                        run_dates.c.state == DateState.STAGED.value,
                        held,
                    )
                    .values(dict(values))
                )

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
