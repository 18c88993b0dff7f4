"""Runs: opened, moved, followed, ended."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import date

from sqlalchemy import Connection, bindparam, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from gated_backfill.common.errors import DatesInUse, LedgerUnavailable, LedgerUnusable, UserError
from gated_backfill.common.ledger.database import LedgerStore
from gated_backfill.common.ledger.records import NewRun, Run, RunProgress
from gated_backfill.common.ledger.rows import (
    change_run_state,
    date_values,
    grouped_by_columns,
    run_from_row,
    run_values,
)
from gated_backfill.common.ledger.states import ENDED_RUNS, DateState, RunAction, RunState, WindowState, final_state
from gated_backfill.common.ledger.stores.actions import record_action
from gated_backfill.common.ledger.tables import run_dates, runs, windows
from gated_backfill.common.model.dates import format_dates
from gated_backfill.common.process.clock import utcnow

INSERTED_AT_ONCE = 1000  #: dates, whose columns take ten times the memory of what is written of them
RUN = select(runs).where(runs.c.id == bindparam("run"))


class RunStore(LedgerStore):
    """The runs of every job, and who holds which dates."""

    def open_run(self, new: NewRun, *, queue: Callable[[Collection[str]], str] | None = None) -> Run:
        """Write a run down with all its dates, as planned.

        `queue` is asked where its dates are to be sent, given the queues of all active runs on brokers of the user's,
        one for each; the answer is kept with the options.

        Raises `DatesTaken`, and writes nothing, when another active run of the job holds one of its dates.
        """
        run_id = f"{utcnow():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        days = [one.day for one in new.dates]
        try:
            try:
                self._write_run(run_id, new, queue)
            except LedgerUnavailable:
                # Two that open the same dates, some ended by the plan of one only, may deadlock on PostgreSQL, which
                # ends one of them: on its second try it waits for the other and learns that the dates are taken.
                self._write_run(run_id, new, queue)
        except IntegrityError as exc:
            raise self._taken(new.job, days, exc) from exc
        return self.get_run(run_id)

    def _write_run(self, run_id: str, new: NewRun, queue: Callable[[Collection[str]], str] | None) -> None:
        with self._write() as connection:
            if queue is not None:
                new = replace(new, options={**new.options, "queue": queue(_queues_in_use(connection))})
            connection.execute(insert(runs), run_values(run_id, new))
            record_action(connection, run_id, RunAction.LAUNCHED, by=new.requested_by, reason=new.reason)
            numbers = sorted({one.window for one in new.dates if one.window is not None})
            if numbers:
                connection.execute(
                    insert(windows),
                    [{"run_id": run_id, "number": n, "state": WindowState.PENDING.value} for n in numbers],
                )
            ordered = sorted(new.dates, key=lambda one: one.day)  # as others insert theirs
            for begin in range(0, len(ordered), INSERTED_AT_ONCE):
                some = date_values(run_id, new.job, ordered[begin : begin + INSERTED_AT_ONCE])
                for values in grouped_by_columns(some):
                    connection.execute(insert(run_dates), values)

    def get_run(self, run_id: str) -> Run:
        """The run. Raises `UserError` when there is none of that id."""
        with self._read() as connection:
            row = connection.execute(RUN, {"run": run_id}).mappings().one_or_none()
        if row is None:
            raise UserError(f"there is no run {run_id!r}: `backfill status` lists the latest")
        return run_from_row(row)

    def list_latest_runs(self, limit: int = 10) -> list[Run]:
        """The runs launched last, newest first."""
        query = select(runs).order_by(runs.c.created_at.desc()).limit(limit)
        with self._read() as connection:
            return [run_from_row(row) for row in connection.execute(query).mappings()]

    def list_unreported_runs(self) -> list[Run]:
        """The ended runs whose end was not told yet, the one that ended first first."""
        query = select(runs).where(runs.c.finished_at.is_not(None), runs.c.reported_at.is_(None))
        with self._read() as connection:
            return [run_from_row(row) for row in connection.execute(query.order_by(runs.c.finished_at)).mappings()]

    def mark_reported(self, run_id: str) -> bool:
        """Note that the end of an ended run was told; returns False when that was noted before."""
        this = (runs.c.id == run_id, runs.c.finished_at.is_not(None), runs.c.reported_at.is_(None))
        with self._write() as connection:
            return bool(connection.execute(update(runs).where(*this).values(reported_at=utcnow())).rowcount)

    def find_conflicting_runs(self, job: str, days: Collection[date]) -> dict[str, list[date]]:
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
        with self._write() as connection:
            return change_run_state(connection, run_id, expect, to)

    def finish_run(self, run_id: str) -> RunState | None:
        """End a run that is on its way if all its windows are closed; returns its end, or None if it goes on.

        A paused one ends as if it had not been paused, one that is being cancelled as cancelled.
        """
        with self._read() as connection:
            unclosed = connection.execute(
                select(func.count())
                .select_from(windows)
                .where(windows.c.run_id == run_id, windows.c.state != WindowState.CLOSED.value)
            ).scalar_one()
        if unclosed:
            return None
        progress = self.get_progress(run_id)
        if progress.run.state is RunState.CANCELLING:
            expect, end = [RunState.CANCELLING], RunState.CANCELLED
        else:
            expect, end = [RunState.RUNNING, RunState.PAUSED], final_state(dict(progress.counts))
        return end if self.move_run(run_id, expect=expect, to=end) else None

    def get_progress(self, run_id: str) -> RunProgress:
        """One indexed query, however many dates the run has."""
        query = select(run_dates.c.state, func.count()).where(run_dates.c.run_id == run_id).group_by(run_dates.c.state)
        run = self.get_run(run_id)
        with self._read() as connection:
            return RunProgress(run=run, counts={DateState(state): n for state, n in connection.execute(query)})

    def _taken(self, job: str, days: Sequence[date], exc: IntegrityError) -> DatesInUse | LedgerUnusable:
        holders = self.find_conflicting_runs(job, days)
        if not holders:
            return LedgerUnusable(f"the ledger refused the run: {exc.orig}")
        run_id, held = max(holders.items(), key=lambda item: len(item[1]))
        return dates_taken_error(self.get_run(run_id), held)


def _queues_in_use(connection: Connection) -> list[str]:
    query = select(runs.c.options).where(runs.c.state.not_in([one.value for one in ENDED_RUNS]), runs.c.owner.is_(None))
    return [options["queue"] for options in connection.execute(query).scalars() if "queue" in options]


def dates_taken_error(run: Run, held: Sequence[date]) -> DatesInUse:
    """That the run holds the days, and how to be rid of that."""
    holds = f"holds {len(held)} of these dates of job {run.job}: {format_dates(held)}"
    if run.has_ended:
        return DatesInUse(
            f"run {run.id} is being undone and {holds}; if nobody is at it any more, `backfill undo {run.id}` ends it",
            run=run.id,
        )
    return DatesInUse(f"run {run.id} is active and {holds}; follow it with `backfill watch {run.id}`", run=run.id)
