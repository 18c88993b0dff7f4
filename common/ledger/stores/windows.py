"""Windows: opened in order, taken by one gate at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import Connection, and_, bindparam, exists, func, select, update

from gated_backfill.common.ledger.database import LedgerStore, window_leased_by
from gated_backfill.common.ledger.records import WindowRow
from gated_backfill.common.ledger.rows import window_from_row
from gated_backfill.common.ledger.states import ENDED_DATES, ENDED_RUNS, DateState, RunState, WindowState
from gated_backfill.common.ledger.tables import run_dates, runs, windows
from gated_backfill.common.model.concurrency import ConcurrencyLimits, InFlight, is_next_in_line, windows_to_open
from gated_backfill.common.process.clock import utcnow

NEVER = datetime.min.replace(tzinfo=UTC)
UNDER_WAY = (WindowState.OPEN.value, WindowState.CLOSING.value)
#: Written once: a gate asks it before each of its steps.
RENEW = (
    update(windows)
    .where(
        window_leased_by(bindparam("of_run"), (bindparam("of_number"), bindparam("of_owner"))),
        exists().where(runs.c.id == windows.c.run_id, runs.c.state.not_in([one.value for one in ENDED_RUNS])),
    )
    .values(lease_until=bindparam("until"))
)


def nobody_is(owner: str) -> bool:
    return False


class WindowStore(LedgerStore):
    """The windows of a run."""

    def open_windows(
        self,
        run_id: str,
        *,
        in_flight: int,
        dates: int | None = None,
        job_dates: int | None = None,
        is_dead: Callable[[str], bool] = nobody_is,
    ) -> dict[int, list[date]]:
        """Open pending windows, in order, while all the caps let one more through; returns them with their dates.

        `in_flight` caps the run's open windows, `dates` its dates in flight, `job_dates` those of all active runs of
        its job but for runs whose owner is dead. Whoever calls it at once, no cap is ever exceeded. No window may be
        larger than a cap, or the run stays where it is; see `Caps.window_size`.
        """
        caps = ConcurrencyLimits(windows=in_flight, dates=dates, job_dates=job_dates)
        with self._write(durable=False) as connection:
            if not _locked(connection, run_id, with_its_job=job_dates is not None):
                return {}
            found = connection.execute(
                select(windows.c.number, windows.c.state).where(windows.c.run_id == run_id).order_by(windows.c.number)
            ).all()
            pending = [row.number for row in found if row.state == WindowState.PENDING.value]
            if not pending:
                return {}
            under_way = _dates_in_flight(connection, [run_id])
            job = _JobLoad(total=0, waiting=())
            if job_dates is not None:
                job = _job_load(connection, run_id, is_dead)
                if not is_next_in_line(run_id, job.waiting):
                    return {}
            load = InFlight(
                windows=sum(row.state in UNDER_WAY for row in found),
                dates=under_way.get(run_id, 0),
                job_dates=job.total,
            )
            sizes = _sizes(connection, run_id, pending[: caps.windows])
            return {number: _opened(connection, run_id, number) for number in windows_to_open(sizes, load, caps)}

    def list_runs_awaiting_windows(self, run_id: str) -> list[str]:
        """The running runs of the run's job with windows left to open, that with the fewest dates in flight first.

        Only those without an owner: a run with one is brought on by the owner's own workers.
        """
        left = exists().where(windows.c.run_id == runs.c.id, windows.c.state == WindowState.PENDING.value)
        job = select(runs.c.job).where(runs.c.id == run_id).scalar_subquery()
        query = select(runs.c.id).where(
            runs.c.job == job,
            runs.c.state == RunState.RUNNING.value,
            runs.c.owner.is_(None),
            left,
        )
        with self._read() as connection:
            listed = list(connection.execute(query).scalars())
            under_way = _dates_in_flight(connection, listed)
            return sorted(_longest_ago_first(connection, listed), key=lambda one: under_way.get(one, 0))

    def list_windows(self, run_id: str, states: Collection[WindowState] = tuple(WindowState)) -> list[WindowRow]:
        """The run's windows that are in one of the states, in order."""
        query = select(windows).where(
            windows.c.run_id == run_id, windows.c.state.in_([state.value for state in states])
        )
        with self._read() as connection:
            found = connection.execute(query.order_by(windows.c.number)).mappings()
            return [window_from_row(row) for row in found]

    def list_window_numbers(self, run_id: str, states: Collection[WindowState]) -> list[int]:
        """Their numbers."""
        return [one.number for one in self.list_windows(run_id, states)]

    def get_window(self, run_id: str, number: int) -> WindowRow:
        query = select(windows).where(windows.c.run_id == run_id, windows.c.number == number)
        with self._read() as connection:
            return window_from_row(connection.execute(query).mappings().one())

    def claim_window(
        self, run_id: str, number: int, owner: str, until: datetime, *, is_dead: Callable[[str], bool]
    ) -> bool:
        """Take a window for a gate: an open one, or one whose gate is dead or past its lease; that death is counted."""
        now = utcnow()
        this = and_(windows.c.run_id == run_id, windows.c.number == number)
        with self._write(durable=False) as connection:
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
        which = {"of_run": run_id, "of_number": number, "of_owner": owner}
        with self._write_one(durable=False) as connection:
            return bool(connection.execute(RENEW, which | {"until": until}).rowcount)

    def release_window(self, run_id: str, number: int, owner: str, *, to: WindowState) -> bool:
        """Give a window back, open or closed, if this gate still holds it."""
        values: dict[str, Any] = {"state": to.value, "lease_owner": None, "lease_until": None}
        if to is WindowState.CLOSED:
            values["closed_at"] = utcnow()
        with self._write_one(durable=False) as connection:
            left = connection.execute(update(windows).where(window_leased_by(run_id, (number, owner))).values(values))
        return bool(left.rowcount)


@dataclass(frozen=True, kw_only=True)
class _JobLoad:
    """What the active runs of one job have in flight."""

    total: int  #: dates
    waiting: Sequence[str]  #: runs that have windows left and nothing in flight, the one that waits longest first


def _locked(connection: Connection, run_id: str, *, with_its_job: bool) -> bool:
    """Have the run, or all active runs of its job, to ourselves; returns whether the run is running.

    Two gates that close windows at once then open one after the other. The rows are locked in one order, so that two
    runs of a job do not lock each other out. On SQLite, the transaction has the whole database anyway.
    """
    these = runs.c.id == run_id
    if with_its_job:
        job = select(runs.c.job).where(runs.c.id == run_id).scalar_subquery()
        these = and_(runs.c.job == job, runs.c.state.not_in([one.value for one in ENDED_RUNS]))
    query = select(runs.c.id, runs.c.state).where(these).order_by(runs.c.id).with_for_update(key_share=True)
    return (run_id, RunState.RUNNING.value) in {(row.id, row.state) for row in connection.execute(query)}


def _dates_in_flight(connection: Connection, of: Collection[str]) -> dict[str, int]:
    """By run, the dates without an end whose windows are open. Asks for no date of any other window."""
    open_ones = (windows.c.run_id.in_(of), windows.c.state.in_(UNDER_WAY))
    numbers: dict[str, list[int]] = {}
    for one in connection.execute(select(windows.c.run_id, windows.c.number).where(*open_ones)):
        numbers.setdefault(one.run_id, []).append(one.number)
    count = select(func.count()).where(
        run_dates.c.run_id == bindparam("run"),
        run_dates.c.window.in_(bindparam("numbers", expanding=True)),
        run_dates.c.state.not_in([one.value for one in ENDED_DATES]),
    )
    found = {
        run: connection.execute(count, {"run": run, "numbers": held}).scalar_one() for run, held in numbers.items()
    }
    return {run: dates for run, dates in found.items() if dates}


def _job_load(connection: Connection, run_id: str, is_dead: Callable[[str], bool]) -> _JobLoad:
    left = exists().where(windows.c.run_id == runs.c.id, windows.c.state == WindowState.PENDING.value)
    job = select(runs.c.job).where(runs.c.id == run_id).scalar_subquery()
    query = select(runs.c.id, runs.c.owner, runs.c.state, left.label("left")).where(
        runs.c.job == job, runs.c.state.not_in([one.value for one in ENDED_RUNS])
    )
    active = [row for row in connection.execute(query) if row.owner is None or not is_dead(row.owner)]
    under_way = _dates_in_flight(connection, [row.id for row in active])
    waiting = [
        row.id
        for row in active
        if row.left
        and row.id not in under_way
        and row.state == RunState.RUNNING.value
        and (row.owner is None or row.id == run_id)  # nobody gives way to a run that others may not be able to begin
    ]
    return _JobLoad(total=sum(under_way.values()), waiting=_longest_ago_first(connection, waiting))


def _longest_ago_first(connection: Connection, run_ids: Collection[str]) -> list[str]:
    """The runs, that which opened its latest window the longest ago first; before them, as launched, those without.

    Whoever asks for the same runs gets the same order: of two orders, each might have a run give way to another.
    """
    latest = func.max(windows.c.opened_at)
    query = (
        select(runs.c.id, runs.c.created_at, latest)
        .join_from(runs, windows, windows.c.run_id == runs.c.id)
        .where(runs.c.id.in_(run_ids))
        .group_by(runs.c.id, runs.c.created_at)
    )
    found = sorted((opened or NEVER, launched, run_id) for run_id, launched, opened in connection.execute(query))
    return [run_id for _, _, run_id in found]


def _sizes(connection: Connection, run_id: str, numbers: Sequence[int]) -> dict[int, int]:
    """How many dates each window would bring into flight."""
    query = (
        select(run_dates.c.window, func.count())
        .where(
            run_dates.c.run_id == run_id,
            run_dates.c.window.in_(numbers),
            run_dates.c.state == DateState.PENDING.value,
        )
        .group_by(run_dates.c.window)
    )
    return dict.fromkeys(numbers, 0) | dict(connection.execute(query).all())


def _opened(connection: Connection, run_id: str, number: int) -> list[date]:
    """Open the window; returns its dates."""
    now = utcnow()
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
    return list(connection.execute(select(run_dates.c.day).where(dates_of_it)).scalars())
