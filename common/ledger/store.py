"""The ledger: every change of state names the state it expects, so a late or repeated message changes nothing."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from typing import Any

from sqlalchemy import Connection, Engine, and_, delete, func, insert, select, update
from sqlalchemy.exc import DatabaseError, IntegrityError, OperationalError

from common.clock import utcnow
from common.coverage import Verdict
from common.dates import describe
from common.errors import DatesTaken, LedgerUnavailable, LedgerUnusable, UserError
from common.ledger.engine import make_engine, migrate
from common.ledger.records import Checkpoint, DateRow, NewRun, Progress, Run
from common.ledger.rows import (
    Facts,
    checkpoint_of,
    checkpoint_values,
    date_row_of,
    date_values,
    grouped_by_columns,
    moved,
    poisoned,
    run_is_on,
    run_of,
    run_values,
)
from common.ledger.states import ENDED_RUNS, DateState, RunState, WindowState, final_state
from common.ledger.tables import checkpoints, run_dates, runs, windows


class Ledger:
    """Runs, dates, windows and checkpoints in one database. Safe for any number of processes at once.

    Raises `LedgerUnavailable` (repeat) and `LedgerUnusable` (do not).
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # -- runs -----------------------------------------------------------------------------------------------

    def open_run(self, new: NewRun) -> Run:
        """Write a run down with all its dates, as planned.

        Raises `DatesTaken`, and writes nothing, when another active run of the job holds one of its dates.
        """
        run_id = f"{utcnow():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        days = [one.day for one in new.dates]
        try:
            try:
                self._write_run(run_id, new)
            except LedgerUnavailable:
                # Two that open the same dates in different orders deadlock on PostgreSQL, which ends one of them: on
                # its second try it waits for the other and learns that the dates are taken.
                self._write_run(run_id, new)
        except IntegrityError as exc:
            raise self._taken(new.job, days, exc) from exc
        return self.run(run_id)

    def _write_run(self, run_id: str, new: NewRun) -> None:
        with self._write() as connection:
            connection.execute(insert(runs), run_values(run_id, new))
            numbers = sorted({one.window for one in new.dates if one.window is not None})
            if numbers:
                connection.execute(
                    insert(windows),
                    [{"run_id": run_id, "number": n, "state": WindowState.PENDING.value} for n in numbers],
                )
            for values in grouped_by_columns(date_values(run_id, new)):
                connection.execute(insert(run_dates), values)

    def run(self, run_id: str) -> Run:
        """The run. Raises `UserError` when there is none of that id."""
        with self._read() as connection:
            row = connection.execute(select(runs).where(runs.c.id == run_id)).mappings().one_or_none()
        if row is None:
            raise UserError(f"there is no run {run_id!r}: `backfill status` lists the latest")
        return run_of(row)

    def latest_runs(self, limit: int = 10) -> list[Run]:
        """The runs launched last, newest first."""
        query = select(runs).order_by(runs.c.created_at.desc()).limit(limit)
        with self._read() as connection:
            return [run_of(row) for row in connection.execute(query).mappings()]

    def active_holders(self, job: str, days: Collection[date]) -> dict[str, list[date]]:
        """The active runs of the job that hold one of the days, each with those days."""
        if not days:
            return {}
        query = select(run_dates.c.run_id, run_dates.c.day).where(
            run_dates.c.job == job,
            run_dates.c.active,
            run_dates.c.day.between(min(days), max(days)),
        )
        wanted, found = set(days), dict[str, list[date]]()
        with self._read() as connection:
            for row in connection.execute(query):
                if row.day in wanted:
                    found.setdefault(row.run_id, []).append(row.day)
        return found

    def move_run(self, run_id: str, *, expect: Collection[RunState], to: RunState) -> bool:
        """Change a run's state if it is one of those expected; an ended run gives its dates free."""
        values: dict[str, Any] = {"state": to.value}
        if to is RunState.RUNNING:
            values["started_at"] = func.coalesce(runs.c.started_at, utcnow())
        if to in ENDED_RUNS:
            values["finished_at"] = utcnow()
        with self._write() as connection:
            changed = connection.execute(
                update(runs)
                .where(runs.c.id == run_id, runs.c.state.in_([state.value for state in expect]))
                .values(values)
            ).rowcount
            if changed and to in ENDED_RUNS:
                connection.execute(
                    update(run_dates).where(run_dates.c.run_id == run_id, run_dates.c.active).values(active=False)
                )
        return bool(changed)

    def finish_run(self, run_id: str) -> RunState | None:
        """End a running run if all its windows are closed; returns its end, or None if it goes on."""
        with self._read() as connection:
            unclosed = connection.execute(
                select(func.count())
                .select_from(windows)
                .where(windows.c.run_id == run_id, windows.c.state != WindowState.CLOSED.value)
            ).scalar_one()
        if unclosed:
            return None
        end = final_state(dict(self.progress(run_id).counts))
        return end if self.move_run(run_id, expect=[RunState.RUNNING], to=end) else None

    def progress(self, run_id: str) -> Progress:
        """One indexed query, however many dates the run has."""
        query = select(run_dates.c.state, func.count()).where(run_dates.c.run_id == run_id).group_by(run_dates.c.state)
        run = self.run(run_id)
        with self._read() as connection:
            return Progress(run=run, counts={DateState(state): n for state, n in connection.execute(query)})

    # -- windows --------------------------------------------------------------------------------------------

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

    def windows_in(self, run_id: str, states: Collection[WindowState]) -> list[int]:
        query = select(windows.c.number).where(
            windows.c.run_id == run_id, windows.c.state.in_([state.value for state in states])
        )
        with self._read() as connection:
            return list(connection.execute(query.order_by(windows.c.number)).scalars())

    def claim_window(
        self, run_id: str, number: int, owner: str, until: datetime, *, is_dead: Callable[[str], bool]
    ) -> bool:
        """Take a window for a gate: an open one, or one whose gate is dead or past its lease."""
        now = utcnow()
        this = and_(windows.c.run_id == run_id, windows.c.number == number)
        with self._write() as connection:
            row = connection.execute(select(windows).where(this).with_for_update()).mappings().one_or_none()
            if row is None:
                return False
            free = row["state"] == WindowState.OPEN.value
            lost = row["state"] == WindowState.CLOSING.value and (
                row["lease_until"] < now or is_dead(row["lease_owner"])
            )
            if not (free or lost):
                return False
            connection.execute(
                update(windows)
                .where(this)
                .values(state=WindowState.CLOSING.value, lease_owner=owner, lease_until=until)
            )
        return True

    def holds_window(self, run_id: str, number: int, owner: str) -> bool:
        """Whether this gate still has the window and the run still runs: asked just before a publish."""
        query = (
            select(windows.c.lease_owner, windows.c.state, runs.c.state.label("run_state"))
            .join(runs, runs.c.id == windows.c.run_id)
            .where(windows.c.run_id == run_id, windows.c.number == number)
        )
        with self._read() as connection:
            row = connection.execute(query).one()
        held = (row.lease_owner, row.state) == (owner, WindowState.CLOSING.value)
        return held and row.run_state not in {state.value for state in ENDED_RUNS}

    def leave_window(self, run_id: str, number: int, owner: str, *, to: WindowState) -> bool:
        """Give a window back, open or closed, if this gate still holds it."""
        values: dict[str, Any] = {"state": to.value, "lease_owner": None, "lease_until": None}
        if to is WindowState.CLOSED:
            values["closed_at"] = utcnow()
        with self._write() as connection:
            left = connection.execute(
                update(windows)
                .where(windows.c.run_id == run_id, windows.c.number == number, windows.c.lease_owner == owner)
                .values(values)
            )
        return bool(left.rowcount)

    # -- dates ----------------------------------------------------------------------------------------------

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
        self, run_id: str, number: int, *, queued_too: bool, is_dead: Callable[[str], bool], max_deaths: int
    ) -> list[date]:
        """Queue again the dates of a window whose worker is dead or past its lease; returns the days to send again.

        With `queued_too`, what was queued counts as lost as well. A date that has seen `max_deaths` deaths is failed.
        """
        now = utcnow()
        again: list[date] = []
        lost_states = [DateState.PROCESSING.value, *([DateState.QUEUED.value] if queued_too else [])]
        query = select(run_dates).where(
            run_dates.c.run_id == run_id, run_dates.c.window == number, run_dates.c.state.in_(lost_states)
        )
        with self._write() as connection:
            for row in connection.execute(query.with_for_update()).mappings().all():
                this = and_(run_dates.c.run_id == run_id, run_dates.c.day == row["day"])
                values: dict[str, Any] = {"queued_at": now}
                if row["state"] == DateState.PROCESSING.value:
                    if row["lease_until"] >= now and not is_dead(row["lease_owner"]):
                        continue
                    deaths = row["deaths"] + 1
                    values |= {"deaths": deaths} | moved(DateState.PROCESSING, DateState.QUEUED, {})
                    if deaths >= max_deaths:
                        values = poisoned(deaths, now)
                connection.execute(update(run_dates).where(this).values(values))
                if values.get("state") != DateState.FAILED.value:
                    again.append(row["day"])
        return again

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
        **facts: Any,
    ) -> bool:
        """Change one date's state and record facts, if it is in the state expected (and held by `owner`)."""
        this = and_(run_dates.c.run_id == run_id, run_dates.c.day == day, run_dates.c.state == expect.value)
        if owner is not None:
            this = and_(this, run_dates.c.lease_owner == owner)
        with self._write() as connection:
            return bool(connection.execute(update(run_dates).where(this).values(moved(expect, to, facts))).rowcount)

    def move_dates(self, run_id: str, days: Collection[date], *, expect: DateState, to: DateState) -> int:
        """Change the state of several dates at once; returns how many were in the state expected."""
        if not days:
            return 0
        with self._write() as connection:
            return connection.execute(
                update(run_dates)
                .where(
                    run_dates.c.run_id == run_id,
                    run_dates.c.day.in_(list(days)),
                    run_dates.c.state == expect.value,
                )
                .values(moved(expect, to, {}))
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

    def note_verdicts(self, run_id: str, facts: Mapping[date, Facts]) -> None:
        """Record what the gate counted and decided, before it acts on it."""
        with self._write() as connection:
            for day, values in facts.items():
                connection.execute(
                    update(run_dates)
                    .where(
                        run_dates.c.run_id == run_id,
                        run_dates.c.day == day,
                        run_dates.c.state == DateState.STAGED.value,
                    )
                    .values(dict(values))
                )

    def last_ends(self, job: str, start: date, through: date) -> dict[date, DateRow]:
        """For each day, how the latest run that ended it left it."""
        query = (
            select(run_dates)
            .where(
                run_dates.c.job == job,
                run_dates.c.day.between(start, through),
                run_dates.c.ended_at.is_not(None),
            )
            .order_by(run_dates.c.ended_at)
        )
        with self._read() as connection:
            return {row["day"]: date_row_of(row) for row in connection.execute(query).mappings()}

    # -- checkpoints ----------------------------------------------------------------------------------------

    def checkpoint(self, run_id: str, days: Collection[date]) -> list[date]:
        """Prove published dates complete; returns those that were in that state. One transaction.

        Only a published date with a passing verdict can be checkpointed: there is no other way to write one.
        """
        if not days:
            return []
        now = utcnow()
        passing = [verdict.value for verdict in Verdict if verdict.passes]
        with self._write() as connection:
            query = (
                select(run_dates, runs.c.job_version)
                .join(runs, runs.c.id == run_dates.c.run_id)
                .where(
                    run_dates.c.run_id == run_id,
                    run_dates.c.day.in_(list(days)),
                    run_dates.c.state == DateState.PUBLISHED.value,
                    run_dates.c.active,  # a run that was closed meanwhile no longer holds its dates
                    run_dates.c.verdict.in_(passing),
                )
                .with_for_update()
            )
            found = connection.execute(query).mappings().all()
            if not found:
                return []
            proven = [row["day"] for row in found]
            job = found[0]["job"]
            connection.execute(delete(checkpoints).where(checkpoints.c.job == job, checkpoints.c.day.in_(proven)))
            connection.execute(insert(checkpoints), [checkpoint_values(row, now) for row in found])
            connection.execute(
                update(run_dates)
                .where(run_dates.c.run_id == run_id, run_dates.c.day.in_(proven))
                .values(moved(DateState.PUBLISHED, DateState.CHECKPOINTED, {}))
            )
        return proven

    def checkpoints(self, job: str, start: date, through: date) -> dict[date, Checkpoint]:
        """The job's checkpoints in the range, by day."""
        query = select(checkpoints).where(checkpoints.c.job == job, checkpoints.c.day.between(start, through))
        with self._read() as connection:
            return {row["day"]: checkpoint_of(row) for row in connection.execute(query).mappings()}

    # -- connections ----------------------------------------------------------------------------------------

    @contextmanager
    def _write(self) -> Generator[Connection]:
        with _translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _read(self) -> Generator[Connection]:
        with (
            _translated(),
            self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        ):
            yield connection

    def _taken(self, job: str, days: Sequence[date], exc: IntegrityError) -> DatesTaken | LedgerUnusable:
        holders = self.active_holders(job, days)
        if not holders:
            return LedgerUnusable(f"the ledger refused the run: {exc.orig}")
        run_id, held = max(holders.items(), key=lambda item: len(item[1]))
        return DatesTaken(
            f"run {run_id} is active and holds {len(held)} of these dates of job {job}: {describe(held)}; "
            f"follow it with `backfill watch {run_id}`",
            run=run_id,
        )

    def close(self) -> None:
        self._engine.dispose()


def open_ledger(url: str, *, create: bool = True) -> Ledger:
    """The ledger at the URL, its tables at this version's state.

    With `create`, a missing or older ledger is migrated first. Raises `LedgerUnusable` for a file that is no ledger or
    was written by a newer version, `LedgerUnavailable` when the database does not answer.
    """
    engine = make_engine(url)
    with _translated():
        migrate(engine, create=create)
    return Ledger(engine)


@contextmanager
def _translated() -> Generator[None]:
    try:
        yield
    except IntegrityError:
        raise
    except OperationalError as exc:
        if getattr(exc.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR:  # a table or column is not there
            raise LedgerUnusable(f"the ledger can't be used: {exc.orig}") from exc
        raise LedgerUnavailable(f"the ledger does not answer: {exc.orig}") from exc
    except DatabaseError as exc:
        raise LedgerUnusable(f"the ledger can't be used: {exc.orig}") from exc
