"""Windows: opened in order, taken by one gate at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import date, datetime
from typing import Any

from sqlalchemy import and_, select, update

from common.clock import utcnow
from common.ledger.database import Database, held_by
from common.ledger.records import WindowRow
from common.ledger.rows import window_row_of
from common.ledger.states import ENDED_RUNS, DateState, RunState, WindowState
from common.ledger.tables import run_dates, runs, windows


class Windows(Database):
    """The windows of a run."""

    def open_windows(self, run_id: str, *, in_flight: int) -> dict[int, list[date]]:
        """Open pending windows, in order, until `in_flight` are open; returns the new ones with their dates."""
        opened: dict[int, list[date]] = {}
        now = utcnow()
        with self._write() as connection:
            # The run's row is locked first: two gates that close windows at once then open one after the other.
            state = connection.execute(select(runs.c.state).where(runs.c.id == run_id).with_for_update()).scalar()
            if state != RunState.RUNNING.value:
                return {}
            found = connection.execute(
                select(windows.c.number, windows.c.state).where(windows.c.run_id == run_id).order_by(windows.c.number)
            ).all()
            busy = sum(row.state in (WindowState.OPEN.value, WindowState.CLOSING.value) for row in found)
            pending = [row.number for row in found if row.state == WindowState.PENDING.value]
            for number in pending[: max(in_flight - busy, 0)]:
                connection.execute(
                    update(windows)
                    .where(windows.c.run_id == run_id, windows.c.number == number)
                    .values(state=WindowState.OPEN.value, opened_at=now)
                )
                dates_of_it = and_(run_dates.c.run_id == run_id, run_dates.c.window == number)
                connection.execute(
                    update(run_dates)
                    .where(dates_of_it, run_dates.c.state == DateState.PENDING.value)
                    .values(state=DateState.QUEUED.value, queued_at=now)
                )
                opened[number] = list(connection.execute(select(run_dates.c.day).where(dates_of_it)).scalars())
        return opened

    def windows(self, run_id: str, states: Collection[WindowState] = tuple(WindowState)) -> list[WindowRow]:
        """The run's windows that are in one of the states, in order."""
        query = select(windows).where(
            windows.c.run_id == run_id, windows.c.state.in_([state.value for state in states])
        )
        with self._read() as connection:
            found = connection.execute(query.order_by(windows.c.number)).mappings()
            return [window_row_of(row) for row in found]

    def window(self, run_id: str, number: int) -> WindowRow:
        query = select(windows).where(windows.c.run_id == run_id, windows.c.number == number)
        with self._read() as connection:
            return window_row_of(connection.execute(query).mappings().one())

    def claim_window(
        self, run_id: str, number: int, owner: str, until: datetime, *, is_dead: Callable[[str], bool]
    ) -> bool:
        """Take a window for a gate: an open one, or one whose gate is dead or past its lease; that death is counted."""
        now = utcnow()
        this = and_(windows.c.run_id == run_id, windows.c.number == number)
        with self._write() as connection:
            row = connection.execute(select(windows).where(this).with_for_update()).mappings().one_or_none()
            if row is None:
                return False
            free = row["state"] == WindowState.OPEN.value
            closing = row["state"] == WindowState.CLOSING.value
            own = closing and row["lease_owner"] == owner  # a gate has one window at a time: one it could not leave
            lost = closing and not own and (row["lease_until"] < now or is_dead(row["lease_owner"]))
            if not (free or own or lost):
                return False
            deaths = row["deaths"] + 1 if lost else row["deaths"]
            connection.execute(
                update(windows)
                .where(this)
                .values(state=WindowState.CLOSING.value, lease_owner=owner, lease_until=until, deaths=deaths)
            )
        return True

    def renew_window(self, run_id: str, number: int, owner: str, until: datetime) -> bool:
        """Lengthen a gate's lease, if the window is still its own and the run has not ended."""
        on = select(runs.c.id).where(runs.c.id == run_id, runs.c.state.not_in([one.value for one in ENDED_RUNS]))
        with self._write() as connection:
            renewed = connection.execute(
                update(windows)
                .where(held_by(run_id, (number, owner)), windows.c.run_id.in_(on))
                .values(lease_until=until)
            )
        return bool(renewed.rowcount)

    def leave_window(self, run_id: str, number: int, owner: str, *, to: WindowState) -> bool:
        """Give a window back, open or closed, if this gate still holds it."""
        values: dict[str, Any] = {"state": to.value, "lease_owner": None, "lease_until": None}
        if to is WindowState.CLOSED:
            values["closed_at"] = utcnow()
        with self._write() as connection:
            left = connection.execute(update(windows).where(held_by(run_id, (number, owner))).values(values))
        return bool(left.rowcount)
