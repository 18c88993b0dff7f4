"""Runs: open, change state, follow progress, finish."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import date, datetime
from typing import Any

from sqlalchemy import Connection, Select, bindparam, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from gated_backfill.common.errors import CheckpointedMeanwhile, DatesInUse, LedgerUnavailable, LedgerUnusable, UserError
from gated_backfill.common.ledger.database import LedgerStore
from gated_backfill.common.ledger.records import NewRun, Run, RunProgress
from gated_backfill.common.ledger.rows import change_run_state, date_values, group_by_columns, run_from_row, run_values
from gated_backfill.common.ledger.states import (
    ENDED_DATES,
    ENDED_RUNS,
    DateState,
    RunAction,
    RunState,
    WindowState,
    final_state,
)
from gated_backfill.common.ledger.stores.actions import record_action
from gated_backfill.common.ledger.stores.targets import claim_target
from gated_backfill.common.ledger.tables import checkpoints, run_dates, runs, windows
from gated_backfill.common.model.dates import format_dates
from gated_backfill.common.model.usage import Usage
from gated_backfill.common.process.clock import utcnow

DATES_PER_INSERT = 1000  #: bounds memory: a row's parameters take ten times the memory of its date
IDS_PER_QUERY = 500
RUN = select(runs).where(runs.c.id == bindparam("run"))


class RunStore(LedgerStore):
    """The runs of all jobs."""

    def open_run(self, new: NewRun, *, queue: Callable[[Collection[str]], str] | None = None) -> Run:
        """Insert a run in state `planned`, with all its dates and windows.

        `queue` chooses the run's Celery queue: it gets the queues in use by active runs without an owner, one entry a
        run, and its answer is stored in the options. Raises, and writes nothing, `DatesInUse` when another active run
        of the job has one of the dates, `CheckpointedMeanwhile` when the checkpoints of unfinished dates are not those
        of `NewRun.planned_with`, `TargetTaken` when the target belongs to another job.
        """
        run_id = f"{utcnow():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        days = [new_date.day for new_date in new.dates]
        try:
            try:
                self._insert_run(run_id, new, queue)
            except (LedgerUnavailable, IntegrityError):
                # PostgreSQL aborts one of two transactions that deadlock on the same dates. The second attempt waits
                # for the other transaction and then finds the dates in use. The same goes for two first claims of a
                # target: the second attempt finds its owner.
                self._insert_run(run_id, new, queue)
        except IntegrityError as exc:
            raise self._conflict_error(new.job, days, exc) from exc
        return self.get_run(run_id)

    def _insert_run(self, run_id: str, new: NewRun, queue: Callable[[Collection[str]], str] | None) -> None:
        with self._write() as connection:
            if queue is not None:
                new = replace(new, options={**new.options, "queue": queue(_queues_in_use(connection))})
            connection.execute(insert(runs), run_values(run_id, new))
            claim_target(connection, run_id, new)
            record_action(connection, run_id, RunAction.LAUNCHED, by=new.requested_by, reason=new.reason)
            numbers = sorted({new_date.window for new_date in new.dates if new_date.window is not None})
            if numbers:
                connection.execute(
                    insert(windows),
                    [{"run_id": run_id, "number": n, "state": WindowState.PENDING.value} for n in numbers],
                )
            ordered = sorted(new.dates, key=lambda new_date: new_date.day)  # one order for all, against deadlocks
            for start in range(0, len(ordered), DATES_PER_INSERT):
                rows = date_values(run_id, new.job, ordered[start : start + DATES_PER_INSERT])
                for rows_of_columns in group_by_columns(rows):
                    connection.execute(insert(run_dates), rows_of_columns)
            _check_planned_checkpoints(connection, new)

    def get_run(self, run_id: str) -> Run:
        """Return the run. Raises `UserError` when the ledger has no run of that id."""
        with self._read() as connection:
            return _get_run(connection, run_id)

    def list_latest_runs(self, limit: int = 10) -> list[Run]:
        """Return the runs launched last, newest first."""
        return self._select(select(runs).order_by(runs.c.created_at.desc()).limit(limit))

    def list_active_runs(self) -> list[Run]:
        """Return every run that has not ended, oldest first."""
        active = [state.value for state in RunState if state not in ENDED_RUNS]
        return self._select(select(runs).where(runs.c.state.in_(active)).order_by(runs.c.created_at))

    def list_runs_ended_before(self, run_ids: Sequence[str], moment: datetime) -> list[str]:
        """Return the given run ids whose runs ended before the moment; unknown ids are left out."""
        ended = [state.value for state in ENDED_RUNS]
        ended_ids: list[str] = []
        with self._read() as connection:
            for start in range(0, len(run_ids), IDS_PER_QUERY):
                in_chunk = runs.c.id.in_(run_ids[start : start + IDS_PER_QUERY])
                query = select(runs.c.id).where(in_chunk, runs.c.state.in_(ended), runs.c.finished_at < moment)
                ended_ids += connection.execute(query).scalars()
        return ended_ids

    def has_run(self, job: str) -> bool:
        """Whether the job was ever launched."""
        with self._read() as connection:
            return connection.execute(select(runs.c.id).where(runs.c.job == job).limit(1)).first() is not None

    def find_latest_run_with_calendar(self, job: str) -> Run | None:
        """Return the job's latest run that was planned with a calendar (`RunOptions.calendar`), or None."""
        query = select(runs).where(runs.c.job == job, runs.c.options["calendar"].as_boolean())
        return next(iter(self._select(query.order_by(runs.c.created_at.desc()).limit(1))), None)

    def list_unreported_runs(self) -> list[Run]:
        """Return the ended runs whose post-run steps are not recorded as done, in the order in which they ended."""
        query = select(runs).where(runs.c.finished_at.is_not(None), runs.c.reported_at.is_(None))
        return self._select(query.order_by(runs.c.finished_at))

    def sum_usage(self, run_ids: Sequence[str]) -> dict[str, Usage]:
        """Return what the plans, tasks and gates of these runs were billed; without runs of which nothing is known."""
        sums: dict[str, Usage] = {}
        with self._read() as connection:
            for start in range(0, len(run_ids), IDS_PER_QUERY):
                for query in _usage_queries(run_ids[start : start + IDS_PER_QUERY]):
                    for run_id, bytes_billed, slot_millis in connection.execute(query):
                        part = Usage(bytes_billed=int(bytes_billed), slot_millis=int(slot_millis))
                        sums[run_id] = sums.get(run_id, Usage()) + part
        return sums

    def _select(self, query: Select[Any]) -> list[Run]:
        with self._read() as connection:
            return [run_from_row(row) for row in connection.execute(query).mappings()]

    def mark_reported(self, run_id: str) -> bool:
        """Record that an ended run's post-run steps are done; returns False if they were recorded before."""
        is_unreported = (runs.c.id == run_id, runs.c.finished_at.is_not(None), runs.c.reported_at.is_(None))
        with self._write() as connection:
            return bool(connection.execute(update(runs).where(*is_unreported).values(reported_at=utcnow())).rowcount)

    def find_conflicting_runs(self, job: str, days: Collection[date]) -> dict[str, list[date]]:
        """Return, by run id, the days that active runs of the job have."""
        with self._read() as connection:
            return _find_days_in_use(connection, job, days)

    def check_dates_free(self, job: str, days: Collection[date], *, apart_from: str | None = None) -> None:
        """Raise `DatesInUse` when another run of the job than `apart_from` is active, or being undone, on the days."""
        with self._read() as connection:
            check_dates_free(connection, job, days, apart_from=apart_from)

    def move_run(self, run_id: str, *, expect: Collection[RunState], to: RunState) -> bool:
        """Change the run's state if it is in one of `expect`. A run that ends releases its dates."""
        with self._write() as connection:
            return change_run_state(connection, run_id, expect, to)

    def finish_run(self, run_id: str) -> RunState | None:
        """End the run if all its windows are closed; returns its final state, or None if it is not finished.

        A paused run gets the final state of its dates; a run that is being cancelled ends as cancelled.
        """
        with self._read() as connection:
            open_windows = connection.execute(
                select(func.count())
                .select_from(windows)
                .where(windows.c.run_id == run_id, windows.c.state != WindowState.CLOSED.value)
            ).scalar_one()
        if open_windows:
            return None
        progress = self.get_progress(run_id)
        if progress.run.state is RunState.CANCELLING:
            expect, end = [RunState.CANCELLING], RunState.CANCELLED
        else:
            expect, end = [RunState.RUNNING, RunState.PAUSED], final_state(dict(progress.counts))
        return end if self.move_run(run_id, expect=expect, to=end) else None

    def get_progress(self, run_id: str) -> RunProgress:
        """Count the run's dates by state, in one indexed query."""
        query = select(run_dates.c.state, func.count()).where(run_dates.c.run_id == run_id).group_by(run_dates.c.state)
        run = self.get_run(run_id)
        with self._read() as connection:
            return RunProgress(run=run, counts={DateState(state): n for state, n in connection.execute(query)})

    def _conflict_error(self, job: str, days: Sequence[date], exc: IntegrityError) -> DatesInUse | LedgerUnusable:
        days_by_run = self.find_conflicting_runs(job, days)
        if not days_by_run:
            return LedgerUnusable(f"the ledger refused the run: {exc.orig}")
        run_id, run_days = max(days_by_run.items(), key=lambda item: len(item[1]))
        return _dates_in_use_error(self.get_run(run_id), run_days)


def _check_planned_checkpoints(connection: Connection, new: NewRun) -> None:
    """Raise `CheckpointedMeanwhile` unless the checkpoints of the run's unfinished dates are those it was planned with.

    Called when the run has the dates: whoever had them before has checkpointed them by then, and nobody else can.
    """
    days = {new_date.day for new_date in new.dates if new_date.state not in ENDED_DATES}
    if new.planned_with is None or not days:
        return
    query = select(checkpoints.c.day, checkpoints.c.run_id).where(
        checkpoints.c.job == new.job, checkpoints.c.day.between(min(days), max(days))
    )
    now = {row.day: row.run_id for row in connection.execute(query) if row.day in days}
    changed = [day for day, run_id in now.items() if new.planned_with.get(day) != run_id]
    if changed:
        runs_now = ", ".join(sorted({now[day] for day in changed}))
        raise CheckpointedMeanwhile(
            f"run {runs_now} has checkpointed {format_dates(changed)} since this run was planned"
        )


def check_dates_free(
    connection: Connection, job: str, days: Collection[date], *, apart_from: str | None = None
) -> None:
    """See `RunStore.check_dates_free`."""
    for run_id, used_days in _find_days_in_use(connection, job, days).items():
        if run_id != apart_from:
            raise _dates_in_use_error(_get_run(connection, run_id), used_days)


def _get_run(connection: Connection, run_id: str) -> Run:
    row = connection.execute(RUN, {"run": run_id}).mappings().one_or_none()
    if row is None:
        raise UserError(f"there is no run {run_id!r}: `backfill status` lists the latest")
    return run_from_row(row)


def _find_days_in_use(connection: Connection, job: str, days: Collection[date]) -> dict[str, list[date]]:
    if not days:
        return {}
    query = select(run_dates.c.run_id, run_dates.c.day).where(
        run_dates.c.job == job, run_dates.c.active, run_dates.c.day.between(min(days), max(days))
    )
    requested_days, days_by_run = set(days), dict[str, list[date]]()
    for row in connection.execute(query.order_by(run_dates.c.run_id, run_dates.c.day)):
        if row.day in requested_days:
            days_by_run.setdefault(row.run_id, []).append(row.day)
    return days_by_run


def _usage_queries(run_ids: Sequence[str]) -> list[Select[Any, Any, Any]]:
    """The queries of what was billed for the plans, gates and tasks, by run."""
    return [
        select(key, func.sum(key.table.c.bytes_billed), func.sum(key.table.c.slot_millis))
        .where(key.in_(run_ids), key.table.c.bytes_billed.is_not(None))
        .group_by(key)
        for key in (runs.c.id, windows.c.run_id, run_dates.c.run_id)
    ]


def _queues_in_use(connection: Connection) -> list[str]:
    ended = [state.value for state in ENDED_RUNS]
    query = select(runs.c.options).where(runs.c.state.not_in(ended), runs.c.owner.is_(None))
    return [options["queue"] for options in connection.execute(query).scalars() if "queue" in options]


def _dates_in_use_error(run: Run, days: Sequence[date]) -> DatesInUse:
    """Return the error for dates that the run has, with the command that helps."""
    holds = f"holds {len(days)} of these dates of job {run.job}: {format_dates(days)}"
    if run.has_ended:
        return DatesInUse(
            f"run {run.id} is being undone and {holds}; if that was interrupted, `backfill undo {run.id}` completes it",
            run=run.id,
        )
    return DatesInUse(f"run {run.id} is active and {holds}; follow it with `backfill watch {run.id}`", run=run.id)
