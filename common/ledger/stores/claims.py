"""Dates in the hands of workers: claimed under a lease, left, given back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import date, datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, RowMapping, Update, and_, bindparam, exists, func, select, update

from gated_backfill.common.ledger.database import LedgerStore
from gated_backfill.common.ledger.records import DateRow
from gated_backfill.common.ledger.rows import (
    CLAIMED_BY_OWNER,
    RUN_DAY,
    RUN_DAYS,
    DateColumns,
    cancelled_columns,
    date_from_row,
    date_transition,
    group_by_columns,
    is_run_running,
    lock_run_state,
    update_date_columns,
    update_date_statement,
    worker_lost_columns,
)
from gated_backfill.common.ledger.states import DateState, RunState
from gated_backfill.common.ledger.stores.actions import cancellation_reason, has_discard_request
from gated_backfill.common.ledger.stores.orders import Instruction, decide_instruction
from gated_backfill.common.ledger.tables import run_dates, runs, windows
from gated_backfill.common.process.clock import utcnow

CLAIMABLE = select(run_dates).where(RUN_DAYS).order_by(run_dates.c.day).with_for_update()
TAKEN = {
    "state": DateState.PROCESSING.value,
    "attempt": run_dates.c.attempt + 1,
    "lease_owner": bindparam("owner"),
    "lease_until": bindparam("until"),
    "started_at": bindparam("now"),
}
CLAIM = update(run_dates).where(RUN_DAYS).values(TAKEN | {"deaths": bindparam("deaths_seen")})
#: That the run of a date goes on.
GOES_ON = exists().where(runs.c.id == run_dates.c.run_id, runs.c.state == RunState.RUNNING.value)
#: Of what nobody holds and no worker has died on: the dates of nearly every task.
UNTOUCHED = and_(run_dates.c.state == DateState.QUEUED.value, run_dates.c.deaths == 0, GOES_ON)
FREE = and_(RUN_DAYS, UNTOUCHED)
TAKE_FREE = (
    update(run_dates)
    .where(
        run_dates.c.run_id == bindparam("run"),
        run_dates.c.day.in_(select(run_dates.c.day).where(FREE).order_by(run_dates.c.day).with_for_update()),
        FREE,  # another may have taken one while this waited for it
    )
    .values(TAKEN)
    .returning(*run_dates.c)
)
#: The same of a single date, which takes half as long: no other is locked that would have to be locked in order.
TAKE_ONE = update(run_dates).where(RUN_DAY, UNTOUCHED).values(TAKEN).returning(*run_dates.c)
HELD = (
    select(run_dates.c.day, runs.c.state)
    .join(runs, runs.c.id == run_dates.c.run_id)
    .where(CLAIMED_BY_OWNER)
    .with_for_update(of=run_dates)
)


class ClaimStore(LedgerStore):
    """Who holds which date, and until when."""

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
        lease = {"owner": owner, "until": until, "now": now}
        if taken := self._take_free(run_id, days, lease):
            return taken
        with self._write(durable=False) as connection:
            rows = connection.execute(CLAIMABLE, {"run": run_id, "days": list(days)}).mappings().all()
            if not rows or not is_run_running(connection, run_id):
                return []
            deaths = {row["day"]: _deaths(row, owner, now, is_dead) for row in rows}
            for day, seen in deaths.items():
                if seen is not None and seen >= max_deaths:
                    this = and_(run_dates.c.run_id == run_id, run_dates.c.day == day)
                    connection.execute(update(run_dates).where(this).values(worker_lost_columns(seen, now)))
            free = [row for row in rows if (seen := deaths[row["day"]]) is not None and seen < max_deaths]
            taken = [row for row in free if not deaths[row["day"]]] or free[:1]
            if not taken:
                return []
            which = {"run": run_id, "days": [row["day"] for row in taken]}
            seen = deaths[taken[0]["day"]]
            connection.execute(CLAIM, which | {"deaths_seen": seen} | lease)
        values = {
            "state": DateState.PROCESSING.value,
            "deaths": seen,
            "lease_owner": owner,
            "lease_until": until,
            "started_at": now,
        }
        return [date_from_row({**row, **values, "attempt": row["attempt"] + 1}) for row in taken]

    def _take_free(self, run_id: str, days: Collection[date], lease: Mapping[str, Any]) -> list[DateRow]:
        """Take those that nobody holds. In a transaction of its own: rows it waited for and did not get stay locked."""
        if not self._engine.dialect.update_returning:
            return []
        with self._write_one(durable=False) as connection:
            taken = connection.execute(*_taking(run_id, days, lease)).mappings().all()
        return sorted(map(date_from_row, taken), key=lambda row: row.day)

    def requeue_dates(
        self,
        run_id: str,
        number: int,
        *,
        include_queued: bool,
        is_dead: Callable[[str], bool],
        max_deaths: int,
        ignore_deaths_before: datetime | None = None,
    ) -> list[date]:
        """Queue again the dates of a window whose worker is dead or past its lease; returns the days to send again.

        With `queued_too`, what was queued counts as lost as well. A date that has seen `max_deaths` deaths is failed;
        the death of a worker that took it up before `innocent_before` is not counted: it died of something else.
        Nothing is to be sent of a run that is paused, and what is lost of one that is being cancelled is cancelled.
        """
        now = utcnow()
        again: list[date] = []
        lost_states = [DateState.PROCESSING.value, *([DateState.QUEUED.value] if include_queued else [])]
        query = select(run_dates).where(
            run_dates.c.run_id == run_id, run_dates.c.window == number, run_dates.c.state.in_(lost_states)
        )
        with self._write() as connection:
            run = lock_run_state(connection, run_id)
            for row in connection.execute(query.order_by(run_dates.c.day).with_for_update()).mappings().all():
                this = and_(run_dates.c.run_id == run_id, run_dates.c.day == row["day"])
                values: dict[str, Any] = {"queued_at": now}
                if row["state"] == DateState.PROCESSING.value:
                    if row["lease_until"] >= now and not is_dead(row["lease_owner"]):
                        continue
                    innocent = ignore_deaths_before is not None and row["started_at"] < ignore_deaths_before
                    deaths = row["deaths"] + (not innocent)
                    values |= {"deaths": deaths} | date_transition(DateState.PROCESSING, DateState.QUEUED, {})
                    if not innocent and deaths >= max_deaths:
                        values = worker_lost_columns(deaths, now)
                failed = values.get("state") == DateState.FAILED.value
                if run is RunState.CANCELLING and not failed:
                    values |= cancelled_columns(cancellation_reason(connection, run_id))
                connection.execute(update(run_dates).where(this).values(values))
                if run not in (RunState.PAUSED, RunState.CANCELLING) and not failed:
                    again.append(row["day"])
        return again

    def list_lease_owners(self, run_id: str) -> set[str]:
        """Who holds a date of the run to process it, or a window to gate it, whether or not the lease still runs."""
        dates = select(run_dates.c.lease_owner).where(
            run_dates.c.run_id == run_id, run_dates.c.lease_owner.is_not(None)
        )
        gates = select(windows.c.lease_owner).where(windows.c.run_id == run_id, windows.c.lease_owner.is_not(None))
        with self._read() as connection:
            return set(connection.execute(dates.union(gates)).scalars())

    def earliest_lease_end(self, run_id: str, days: Collection[date]) -> datetime | None:
        """When the first lease of dates that are being processed runs out; None when none is being processed."""
        query = select(func.min(run_dates.c.lease_until)).where(
            run_dates.c.run_id == run_id,
            run_dates.c.day.in_(list(days)),
            run_dates.c.state == DateState.PROCESSING.value,
        )
        with self._read() as connection:
            return connection.execute(query).scalar()

    def release_dates(
        self, run_id: str, ends: Mapping[date, tuple[DateState, DateColumns]], *, owner: str
    ) -> frozenset[date]:
        """Move dates that the worker holds to their states with their facts, in one transaction.

        Returns those that it did hold: the others are not its own any more. What would be staged for a run that was
        told to discard that is dropped instead, and not among them either.
        """
        if len(ends) == 1 and self._has_left(run_id, ends, owner):
            return frozenset(ends)
        which = {"run": run_id, "days": list(ends), "owner": owner}
        with self._write(durable=False) as connection:
            rows = connection.execute(HELD, which).all()
            held = frozenset(row.day for row in rows)
            if rows and _discarding(connection, run_id, RunState(rows[0].state)):
                unwanted = [day for day in held if ends[day][0] is DateState.STAGED]
                values = cancelled_columns(cancellation_reason(connection, run_id))
                connection.execute(update(run_dates).where(CLAIMED_BY_OWNER).values(values), which | {"days": unwanted})
                held -= frozenset(unwanted)
            for to in {to for to, _ in ends.values()}:
                rows = [
                    {"of_run": run_id, "of_day": day, **date_transition(DateState.PROCESSING, to, facts)}
                    for day, (state, facts) in sorted(ends.items())
                    if day in held and state is to
                ]
                for alike in group_by_columns(rows):
                    connection.execute(update_date_statement(alike[0]), alike)
        return held

    def _has_left(self, run_id: str, ends: Mapping[date, tuple[DateState, DateColumns]], owner: str) -> bool:
        """Move the one date, if the worker holds it and its run goes on, as is nearly always so."""
        ((day, (to, facts)),) = ends.items()
        values = date_transition(DateState.PROCESSING, to, facts)
        which = {"of_run": run_id, "of_day": day, "of_owner": owner}
        with self._write_one(durable=False) as connection:
            return bool(connection.execute(_leaving(tuple(values)), which | values).rowcount)


def _taking(run_id: str, days: Collection[date], lease: Mapping[str, Any]) -> tuple[Update, dict[str, Any]]:
    """What takes those of the days that nobody holds."""
    if len(days) > 1:
        return TAKE_FREE, {"run": run_id, "days": list(days), **lease}
    (day,) = days
    return TAKE_ONE, {"of_run": run_id, "of_day": day, **lease}


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


def _discarding(connection: Connection, run_id: str, state: RunState) -> bool:
    if state is RunState.RUNNING:  # as it is nearly always
        return False
    return (
        decide_instruction(state, has_begun=True, discard=has_discard_request(connection, run_id)) is Instruction.CANCEL
    )


@lru_cache
def _leaving(names: tuple[str, ...]) -> Update:
    return update_date_columns(names).where(
        run_dates.c.state == DateState.PROCESSING.value,
        run_dates.c.lease_owner == bindparam("of_owner"),
        GOES_ON,
    )
