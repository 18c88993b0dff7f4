"""Claims: dates that workers process under a lease, until they release them or lose them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import date, datetime
from functools import cache, lru_cache
from typing import Any

from sqlalchemy import Connection, RowMapping, Update, and_, bindparam, exists, or_, select, update

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
    worker_died_columns,
    worker_lost_columns,
)
from gated_backfill.common.ledger.states import DateState, RunState
from gated_backfill.common.ledger.stores.actions import cancellation_reason, has_discard_request
from gated_backfill.common.ledger.stores.orders import Instruction, decide_instruction
from gated_backfill.common.ledger.tables import run_dates, runs, windows
from gated_backfill.common.process.clock import utcnow

LOCK_DATES = select(run_dates).where(RUN_DAYS).order_by(run_dates.c.day).with_for_update()
CLAIMED_COLUMNS = {
    "state": DateState.PROCESSING.value,
    "attempt": run_dates.c.attempt + 1,
    "lease_owner": bindparam("owner"),
    "lease_until": bindparam("until"),
    "started_at": bindparam("now"),
}
CLAIM_LOCKED = update(run_dates).where(RUN_DAYS).values(CLAIMED_COLUMNS | {"losses": bindparam("losses_so_far")})
IS_RUN_RUNNING = exists().where(runs.c.id == run_dates.c.run_id, runs.c.state == RunState.RUNNING.value)
#: Queued dates that lost no worker, as nearly all are: they can be claimed without a check of leases.
IS_FREE = and_(
    run_dates.c.state == DateState.QUEUED.value, run_dates.c.deaths == 0, run_dates.c.losses == 0, IS_RUN_RUNNING
)
FREE_DAYS = and_(RUN_DAYS, IS_FREE)
CLAIM_FREE_DAYS = (
    update(run_dates)
    .where(
        run_dates.c.run_id == bindparam("run"),
        run_dates.c.day.in_(select(run_dates.c.day).where(FREE_DAYS).order_by(run_dates.c.day).with_for_update()),
        FREE_DAYS,  # checked again: another worker may have claimed a date while this waited for its lock
    )
    .values(CLAIMED_COLUMNS)
    .returning(*run_dates.c)
)
#: The same for one day in half the time, because a single row needs no order of locking.
CLAIM_FREE_DAY = update(run_dates).where(RUN_DAY, IS_FREE).values(CLAIMED_COLUMNS).returning(*run_dates.c)
LOCK_CLAIMED = (
    select(run_dates.c.day, runs.c.state)
    .join(runs, runs.c.id == run_dates.c.run_id)
    .where(CLAIMED_BY_OWNER)
    .with_for_update(of=run_dates)
)


class ClaimStore(LedgerStore):
    """Leases on dates. A date's lease has an owner, who is a worker process, and an end.

    A claim ends in one of three ways. Its owner releases it: that counts nothing, whatever the reason. The owner's
    worker saw it die while it processed the date: that is a death, see `record_deaths`. Or the owner is gone and nobody
    knows why, as when its host fails: that is a loss.
    """

    def claim_dates(
        self,
        run_id: str,
        days: Collection[date],
        owner: str,
        until: datetime,
        *,
        is_dead: Callable[[str], bool],
        max_losses: int,
    ) -> list[DateRow]:
        """Claim dates for `owner` with a lease until `until`; returns those claimed, oldest first.

        A date can be claimed if it is queued, or if its worker is dead or its lease has expired. The latter is counted
        as a loss, and a date with `max_losses` losses is failed instead. A date that lost a worker is claimed alone,
        after all others, so that it can kill no worker that processes other dates as well.
        """
        now = utcnow()
        lease = {"owner": owner, "until": until, "now": now}
        if free_rows := self._claim_free(run_id, days, lease):
            return free_rows
        with self._write(durable=False) as connection:
            rows = connection.execute(LOCK_DATES, {"run": run_id, "days": list(days)}).mappings().all()
            if not rows or not is_run_running(connection, run_id):
                return []
            losses_by_day = {row["day"]: _losses_if_claimed(row, owner, now, is_dead) for row in rows}
            for day, losses in losses_by_day.items():
                if losses is not None and losses >= max_losses:
                    is_date = and_(run_dates.c.run_id == run_id, run_dates.c.day == day)
                    connection.execute(update(run_dates).where(is_date).values(worker_lost_columns(losses)))
            claimable = [
                row for row in rows if (losses := losses_by_day[row["day"]]) is not None and losses < max_losses
            ]
            claimed = [row for row in claimable if not (row["deaths"] or losses_by_day[row["day"]])] or claimable[:1]
            if not claimed:
                return []
            losses = losses_by_day[claimed[0]["day"]]
            key = {"run": run_id, "days": [row["day"] for row in claimed]}
            connection.execute(CLAIM_LOCKED, key | {"losses_so_far": losses} | lease)
        values = {
            "state": DateState.PROCESSING.value,
            "losses": losses,
            "lease_owner": owner,
            "lease_until": until,
            "started_at": now,
        }
        return [date_from_row({**row, **values, "attempt": row["attempt"] + 1}) for row in claimed]

    def _claim_free(self, run_id: str, days: Collection[date], lease: Mapping[str, Any]) -> list[DateRow]:
        """Claim queued dates that lost no worker, in a separate transaction that releases all its locks at its end."""
        if not self._engine.dialect.update_returning:
            return []
        with self._write_one(durable=False) as connection:
            rows = connection.execute(*_claim_free_statement(run_id, days, lease)).mappings().all()
        return sorted(map(date_from_row, rows), key=lambda row: row.day)

    def requeue_dates(
        self, run_id: str, number: int, *, include_queued: bool, is_dead: Callable[[str], bool], max_losses: int
    ) -> list[date]:
        """Requeue the dates of window `number` whose worker is dead or whose lease has expired, which is a loss.

        Dates in state `queued` are requeued if `include_queued`, because their messages were lost, and if no message
        was sent since a worker released them. A date with `max_losses` losses is failed. In a run that is being
        cancelled, lost dates are cancelled. Returns the days for which messages are to be sent: none while the run is
        paused.
        """
        now, is_dead = utcnow(), cache(is_dead)  # an owner often has many dates
        requeued_days: list[date] = []
        is_queued = run_dates.c.state == DateState.QUEUED.value
        may_be_lost = or_(
            run_dates.c.state == DateState.PROCESSING.value,
            is_queued if include_queued else and_(is_queued, run_dates.c.queued_at.is_(None)),
        )
        query = select(run_dates).where(run_dates.c.run_id == run_id, run_dates.c.window == number, may_be_lost)
        with self._write() as connection:
            run_state = lock_run_state(connection, run_id)
            for row in connection.execute(query.order_by(run_dates.c.day).with_for_update()).mappings().all():
                is_date = and_(run_dates.c.run_id == run_id, run_dates.c.day == row["day"])
                values: dict[str, Any] = {"queued_at": now}
                if row["state"] == DateState.PROCESSING.value:
                    if row["lease_until"] >= now and not is_dead(row["lease_owner"]):
                        continue
                    losses = row["losses"] + 1
                    values = date_transition(DateState.PROCESSING, DateState.QUEUED, {"losses": losses})
                    if losses >= max_losses:
                        values = worker_lost_columns(losses)
                is_failed = values.get("state") == DateState.FAILED.value
                if run_state is RunState.CANCELLING and not is_failed:
                    values |= cancelled_columns(cancellation_reason(connection, run_id))
                connection.execute(update(run_dates).where(is_date).values(values))
                if run_state not in (RunState.PAUSED, RunState.CANCELLING) and not is_failed:
                    requeued_days.append(row["day"])
        return requeued_days

    def record_deaths(self, run_id: str, days: Collection[date], *, owner: str, max_deaths: int) -> list[date]:
        """End the claims of a worker process that died while it processed the days, and count the death of each date.

        Only the process's own worker may call this, which saw it die and did not stop it itself. A date with
        `max_deaths` deaths is failed; the others are queued again, or cancelled with their run. Returns the days that
        were claimed.
        """
        with self._write() as connection:
            run_state = lock_run_state(connection, run_id)
            claimed = select(run_dates).where(CLAIMED_BY_OWNER).order_by(run_dates.c.day).with_for_update()
            key = {"run": run_id, "days": list(days), "owner": owner}
            rows = connection.execute(claimed, key).mappings().all()
            for row in rows:
                deaths = row["deaths"] + 1
                values = date_transition(DateState.PROCESSING, DateState.QUEUED, {"deaths": deaths})
                if deaths >= max_deaths:
                    values = worker_died_columns(deaths)
                elif run_state is RunState.CANCELLING:
                    values |= cancelled_columns(cancellation_reason(connection, run_id))
                is_date = and_(run_dates.c.run_id == run_id, run_dates.c.day == row["day"])
                connection.execute(update(run_dates).where(is_date).values(values))
        return [row["day"] for row in rows]

    def return_dates(self, run_id: str, days: Collection[date], *, owner: str) -> None:
        """Undo the owner's claims: its host could not work, so the dates are queued with the attempts they had before.

        The owner must do nothing with the files of that attempt any more. In a run that is being cancelled, the dates
        are cancelled.
        """
        values = date_transition(DateState.PROCESSING, DateState.QUEUED, {"attempt": run_dates.c.attempt - 1})
        with self._write() as connection:
            if lock_run_state(connection, run_id) is RunState.CANCELLING:
                values |= cancelled_columns(cancellation_reason(connection, run_id))
            key = {"run": run_id, "days": list(days), "owner": owner}
            connection.execute(update(run_dates).where(CLAIMED_BY_OWNER).values(values), key)

    def list_lease_owners(self, run_id: str) -> set[str]:
        """Return the owners of all leases on dates and windows of the run, including expired leases."""
        dates = select(run_dates.c.lease_owner).where(
            run_dates.c.run_id == run_id, run_dates.c.lease_owner.is_not(None)
        )
        gates = select(windows.c.lease_owner).where(windows.c.run_id == run_id, windows.c.lease_owner.is_not(None))
        with self._read() as connection:
            return set(connection.execute(dates.union(gates)).scalars())

    def release_dates(
        self, run_id: str, ends: Mapping[date, tuple[DateState, DateColumns]], *, owner: str
    ) -> frozenset[date]:
        """End the owner's claims: write each date's next state and columns, in one transaction.

        Returns the days that were written. The others are no longer claimed by the owner, or are cancelled instead of
        staged because the run was cancelled with `--discard`.
        """
        if len(ends) == 1 and self._release_one(run_id, ends, owner):
            return frozenset(ends)
        key = {"run": run_id, "days": list(ends), "owner": owner}
        with self._write(durable=False) as connection:
            rows = connection.execute(LOCK_CLAIMED, key).all()
            claimed_days = frozenset(row.day for row in rows)
            if rows and _discards_staged(connection, run_id, RunState(rows[0].state)):
                discarded_days = [day for day in claimed_days if ends[day][0] is DateState.STAGED]
                values = cancelled_columns(cancellation_reason(connection, run_id))
                connection.execute(
                    update(run_dates).where(CLAIMED_BY_OWNER).values(values), key | {"days": discarded_days}
                )
                claimed_days -= frozenset(discarded_days)
            for next_state in {state for state, _ in ends.values()}:
                rows = [
                    {"of_run": run_id, "of_day": day, **date_transition(DateState.PROCESSING, state, columns)}
                    for day, (state, columns) in sorted(ends.items())
                    if day in claimed_days and state is next_state
                ]
                for group in group_by_columns(rows):
                    connection.execute(update_date_statement(group[0]), group)
        return claimed_days

    def _release_one(self, run_id: str, ends: Mapping[date, tuple[DateState, DateColumns]], owner: str) -> bool:
        """Release one date with a single statement, if the owner has its lease and the run is running."""
        ((day, (state, columns)),) = ends.items()
        values = date_transition(DateState.PROCESSING, state, columns)
        key = {"of_run": run_id, "of_day": day, "of_owner": owner}
        with self._write_one(durable=False) as connection:
            return bool(connection.execute(_release_statement(tuple(values)), key | values).rowcount)


def _claim_free_statement(
    run_id: str, days: Collection[date], lease: Mapping[str, Any]
) -> tuple[Update, dict[str, Any]]:
    if len(days) > 1:
        return CLAIM_FREE_DAYS, {"run": run_id, "days": list(days), **lease}
    (day,) = days
    return CLAIM_FREE_DAY, {"of_run": run_id, "of_day": day, **lease}


def _losses_if_claimed(row: RowMapping, owner: str, now: datetime, is_dead: Callable[[str], bool]) -> int | None:
    """Return the losses to record if the date is claimed now; None if it can't be claimed."""
    if row["state"] == DateState.QUEUED.value:
        return row["losses"]
    if row["state"] != DateState.PROCESSING.value:
        return None
    if row["lease_owner"] == owner:  # a worker runs one task at a time, so its earlier claim failed to be released
        return row["losses"]
    is_lost = row["lease_until"] < now or is_dead(row["lease_owner"])
    return row["losses"] + 1 if is_lost else None


def _discards_staged(connection: Connection, run_id: str, state: RunState) -> bool:
    if state is RunState.RUNNING:  # the usual case needs no further query
        return False
    discard = has_discard_request(connection, run_id)
    return decide_instruction(state, has_begun=True, discard=discard) is Instruction.CANCEL


@lru_cache
def _release_statement(columns: tuple[str, ...]) -> Update:
    return update_date_columns(columns).where(
        run_dates.c.state == DateState.PROCESSING.value,
        run_dates.c.lease_owner == bindparam("of_owner"),
        IS_RUN_RUNNING,
    )
