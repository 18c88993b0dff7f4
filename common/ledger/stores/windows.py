"""Windows: opened in order within the concurrency limits, and leased by one gate at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import Connection, and_, bindparam, exists, func, select, update

from gated_backfill.common.ledger.database import LedgerStore, next_generation, window_leased_by
from gated_backfill.common.ledger.records import WindowRow
from gated_backfill.common.ledger.rows import window_from_row
from gated_backfill.common.ledger.states import ENDED_DATES, ENDED_RUNS, DateState, RunState, WindowState
from gated_backfill.common.ledger.tables import run_dates, runs, windows
from gated_backfill.common.model.scheduling.limits import ConcurrencyLimits, InFlight, is_next_in_line, windows_to_open
from gated_backfill.common.model.usage import Usage
from gated_backfill.common.process.clock import utcnow

NEVER = datetime.min.replace(tzinfo=UTC)
IN_FLIGHT = (WindowState.OPEN.value, WindowState.CLOSING.value)
#: Built once: a gate runs it before each of its steps.
RENEW = (
    update(windows)
    .where(
        window_leased_by(bindparam("of_run"), (bindparam("of_number"), bindparam("of_owner"))),
        exists().where(runs.c.id == windows.c.run_id, runs.c.state.not_in([state.value for state in ENDED_RUNS])),
    )
    .values(lease_until=bindparam("until"))
)


def is_never_dead(owner: str) -> bool:
    return False


class WindowStore(LedgerStore):
    """Windows of runs, and the leases of their gates."""

    def open_windows(
        self,
        run_id: str,
        *,
        in_flight: int,
        dates: int | None = None,
        job_dates: int | None = None,
        is_dead: Callable[[str], bool] = is_never_dead,
    ) -> dict[int, list[date]]:
        """Open pending windows in order while the limits allow; returns their dates by window number.

        `in_flight` limits the open windows of the run, `dates` its unfinished dates in open windows, and `job_dates`
        those dates of all active runs of the job except runs whose owner is dead. Concurrent callers never exceed a
        limit. A window larger than a limit is never opened; see `ConcurrencyLimits.window_size`.
        """
        limits = ConcurrencyLimits(windows=in_flight, dates=dates, job_dates=job_dates)
        with self._write(durable=False) as connection:
            if not _lock_runs(connection, run_id, with_job=job_dates is not None):
                return {}
            rows = connection.execute(
                select(windows.c.number, windows.c.state).where(windows.c.run_id == run_id).order_by(windows.c.number)
            ).all()
            pending = [row.number for row in rows if row.state == WindowState.PENDING.value]
            if not pending:
                return {}
            dates_by_run = _dates_in_flight(connection, [run_id])
            job = _JobInFlight(total=0, waiting=())
            if job_dates is not None:
                job = _job_in_flight(connection, run_id, is_dead)
                if not is_next_in_line(run_id, job.waiting):
                    return {}
            in_flight_now = InFlight(
                windows=sum(row.state in IN_FLIGHT for row in rows),
                dates=dates_by_run.get(run_id, 0),
                job_dates=job.total,
            )
            sizes = _window_sizes(connection, run_id, pending[: limits.windows])
            return {
                number: _open_window(connection, run_id, number)
                for number in windows_to_open(sizes, in_flight_now, limits)
            }

    def list_runs_awaiting_windows(self, run_id: str) -> list[str]:
        """Return the running runs of the run's job that have pending windows, fewest dates in flight first.

        Runs with an owner are left out, because the owner's workers open their windows.
        """
        has_pending = exists().where(windows.c.run_id == runs.c.id, windows.c.state == WindowState.PENDING.value)
        job = select(runs.c.job).where(runs.c.id == run_id).scalar_subquery()
        query = select(runs.c.id).where(
            runs.c.job == job, runs.c.state == RunState.RUNNING.value, runs.c.owner.is_(None), has_pending
        )
        with self._read() as connection:
            run_ids = list(connection.execute(query).scalars())
            dates_by_run = _dates_in_flight(connection, run_ids)
            return sorted(
                _order_by_last_opening(connection, run_ids), key=lambda waiting_id: dates_by_run.get(waiting_id, 0)
            )

    def list_windows(self, run_id: str, states: Collection[WindowState] = tuple(WindowState)) -> list[WindowRow]:
        """Return the run's windows in one of the states, in order."""
        query = select(windows).where(
            windows.c.run_id == run_id, windows.c.state.in_([state.value for state in states])
        )
        with self._read() as connection:
            rows = connection.execute(query.order_by(windows.c.number)).mappings()
            return [window_from_row(row) for row in rows]

    def list_window_numbers(self, run_id: str, states: Collection[WindowState]) -> list[int]:
        return [window.number for window in self.list_windows(run_id, states)]

    def get_window(self, run_id: str, number: int) -> WindowRow:
        query = select(windows).where(windows.c.run_id == run_id, windows.c.number == number)
        with self._read() as connection:
            return window_from_row(connection.execute(query).mappings().one())

    def claim_window(
        self, run_id: str, number: int, owner: str, until: datetime, *, is_dead: Callable[[str], bool]
    ) -> int | None:
        """Claim a window for a gate: an open one, or one whose gate is dead or past its lease (counted as a loss).

        Returns the generation of the lease, which is higher than that of any earlier lease; None if not claimed.
        """
        now = utcnow()
        is_window = and_(windows.c.run_id == run_id, windows.c.number == number)
        with self._write(durable=False) as connection:
            row = connection.execute(select(windows).where(is_window).with_for_update()).mappings().one_or_none()
            if row is None:
                return None
            is_open = row["state"] == WindowState.OPEN.value
            is_closing = row["state"] == WindowState.CLOSING.value
            is_own = is_closing and row["lease_owner"] == owner  # a gate has one window: it failed to release this one
            is_lost = is_closing and not is_own and (row["lease_until"] < now or is_dead(row["lease_owner"]))
            if not (is_open or is_own or is_lost):
                return None
            losses = row["losses"] + 1 if is_lost else row["losses"]
            generation = next_generation(row["generation"])
            connection.execute(
                update(windows)
                .where(is_window)
                .values(
                    state=WindowState.CLOSING.value,
                    lease_owner=owner,
                    lease_until=until,
                    generation=generation,
                    losses=losses,
                )
            )
        return generation

    def renew_window(self, run_id: str, number: int, owner: str, until: datetime) -> bool:
        """Extend a gate's lease to `until`; returns False if the gate has lost the lease or the run has ended."""
        key = {"of_run": run_id, "of_number": number, "of_owner": owner}
        with self._write_one(durable=False) as connection:
            return bool(connection.execute(RENEW, key | {"until": until}).rowcount)

    def release_window(
        self, run_id: str, number: int, owner: str, *, to: WindowState, usage: Usage | None = None
    ) -> bool:
        """Release a window as open or closed; returns False if this gate has lost the lease.

        `usage` is added to what the window's gates were billed.
        """
        values: dict[str, Any] = {"closed_at": utcnow()} if to is WindowState.CLOSED else {}
        if usage is not None:
            values["bytes_billed"] = func.coalesce(windows.c.bytes_billed, 0) + usage.bytes_billed
            values["slot_millis"] = func.coalesce(windows.c.slot_millis, 0) + usage.slot_millis
        return self._end_lease(run_id, number, owner, to=to, **values)

    def record_death(self, run_id: str, number: int, owner: str) -> bool:
        """End the lease of a gate that died while it worked on the window, and count the death.

        Only the gate's own worker may call this, which saw it die and did not stop it itself. Returns False if the
        gate did not have the lease.
        """
        return self._end_lease(run_id, number, owner, to=WindowState.OPEN, deaths=windows.c.deaths + 1)

    def _end_lease(self, run_id: str, number: int, owner: str, *, to: WindowState, **columns: Any) -> bool:
        """End the owner's lease, and set the columns; returns False if the owner does not have it."""
        values = {"state": to.value, "lease_owner": None, "lease_until": None, **columns}
        with self._write_one(durable=False) as connection:
            result = connection.execute(update(windows).where(window_leased_by(run_id, (number, owner))).values(values))
        return bool(result.rowcount)

    def end_leases(self, run_id: str) -> dict[int, int]:
        """Take the leases from the gates of a run that is being ended: none of them begins to publish any more.

        Returns the windows that have been open and are not closed, each with a generation that is higher than that of
        any lease on it.
        """
        in_flight = and_(windows.c.run_id == run_id, windows.c.state.in_(IN_FLIGHT))
        query = select(windows.c.number, windows.c.generation).where(in_flight).order_by(windows.c.number)
        no_lease = {"state": WindowState.OPEN.value, "lease_owner": None, "lease_until": None}
        with self._write() as connection:
            rows = connection.execute(query.with_for_update()).all()
            generations = {row.number: next_generation(row.generation) for row in rows}
            for number, generation in generations.items():
                is_window = and_(windows.c.run_id == run_id, windows.c.number == number)
                connection.execute(update(windows).where(is_window).values(no_lease | {"generation": generation}))
        return generations


@dataclass(frozen=True, kw_only=True)
class _JobInFlight:
    """The dates in flight of a job's active runs, and the runs that wait."""

    total: int  #: dates
    waiting: Sequence[str]  #: ids of runs with pending windows and nothing in flight, longest waiting first


def _lock_runs(connection: Connection, run_id: str, *, with_job: bool) -> bool:
    """Lock the run, or all active runs of its job, and return whether the run is running.

    The lock makes concurrent gates open windows one after the other. Rows are locked in the order of their ids, so
    that two runs of a job do not deadlock. On SQLite, the transaction has locked the database already.
    """
    is_locked = runs.c.id == run_id
    if with_job:
        job = select(runs.c.job).where(runs.c.id == run_id).scalar_subquery()
        is_locked = and_(runs.c.job == job, runs.c.state.not_in([state.value for state in ENDED_RUNS]))
    query = select(runs.c.id, runs.c.state).where(is_locked).order_by(runs.c.id).with_for_update(key_share=True)
    return (run_id, RunState.RUNNING.value) in {(row.id, row.state) for row in connection.execute(query)}


def _dates_in_flight(connection: Connection, run_ids: Collection[str]) -> dict[str, int]:
    """Count, by run, the unfinished dates in open windows. Reads no date of any other window."""
    is_in_flight = (windows.c.run_id.in_(run_ids), windows.c.state.in_(IN_FLIGHT))
    numbers_by_run: dict[str, list[int]] = {}
    for row in connection.execute(select(windows.c.run_id, windows.c.number).where(*is_in_flight)):
        numbers_by_run.setdefault(row.run_id, []).append(row.number)
    count_query = select(func.count()).where(
        run_dates.c.run_id == bindparam("run"),
        run_dates.c.window.in_(bindparam("numbers", expanding=True)),
        run_dates.c.state.not_in([state.value for state in ENDED_DATES]),
    )
    counts = {
        run_id: connection.execute(count_query, {"run": run_id, "numbers": numbers}).scalar_one()
        for run_id, numbers in numbers_by_run.items()
    }
    return {run_id: count for run_id, count in counts.items() if count}


def _job_in_flight(connection: Connection, run_id: str, is_dead: Callable[[str], bool]) -> _JobInFlight:
    has_pending = exists().where(windows.c.run_id == runs.c.id, windows.c.state == WindowState.PENDING.value)
    job = select(runs.c.job).where(runs.c.id == run_id).scalar_subquery()
    query = select(runs.c.id, runs.c.owner, runs.c.state, has_pending.label("has_pending")).where(
        runs.c.job == job, runs.c.state.not_in([state.value for state in ENDED_RUNS])
    )
    active = [row for row in connection.execute(query) if row.owner is None or not is_dead(row.owner)]
    dates_by_run = _dates_in_flight(connection, [row.id for row in active])
    waiting = [
        row.id
        for row in active
        if row.has_pending
        and row.id not in dates_by_run
        and row.state == RunState.RUNNING.value
        and (row.owner is None or row.id == run_id)  # others can't start a run that has an owner
    ]
    return _JobInFlight(total=sum(dates_by_run.values()), waiting=_order_by_last_opening(connection, waiting))


def _order_by_last_opening(connection: Connection, run_ids: Collection[str]) -> list[str]:
    """Return the runs by the time of their last window opening; runs without one come first, in order of launch.

    All callers must get the same order: with different orders, two runs could each give way to the other.
    """
    last_opening = func.max(windows.c.opened_at)
    query = (
        select(runs.c.id, runs.c.created_at, last_opening)
        .join_from(runs, windows, windows.c.run_id == runs.c.id)
        .where(runs.c.id.in_(run_ids))
        .group_by(runs.c.id, runs.c.created_at)
    )
    ordered = sorted((opened or NEVER, created, run_id) for run_id, created, opened in connection.execute(query))
    return [run_id for _, _, run_id in ordered]


def _window_sizes(connection: Connection, run_id: str, numbers: Sequence[int]) -> dict[int, int]:
    """Count the pending dates of each window."""
    query = (
        select(run_dates.c.window, func.count())
        .where(
            run_dates.c.run_id == run_id, run_dates.c.window.in_(numbers), run_dates.c.state == DateState.PENDING.value
        )
        .group_by(run_dates.c.window)
    )
    return dict.fromkeys(numbers, 0) | dict(connection.execute(query).all())


def _open_window(connection: Connection, run_id: str, number: int) -> list[date]:
    """Open the window; returns its dates."""
    now = utcnow()
    connection.execute(
        update(windows)
        .where(windows.c.run_id == run_id, windows.c.number == number)
        .values(state=WindowState.OPEN.value, opened_at=now)
    )
    in_window = and_(run_dates.c.run_id == run_id, run_dates.c.window == number)
    connection.execute(
        update(run_dates)
        .where(in_window, run_dates.c.state == DateState.PENDING.value)
        .values(state=DateState.QUEUED.value, queued_at=now)
    )
    return list(connection.execute(select(run_dates.c.day).where(in_window)).scalars())
