"""The state now of all jobs: dates that are not complete, the newest checkpoints, and the windows in flight.

What counts is the last result of each date, whatever other runs do. No query reads all dates ever built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from sqlalchemy import ColumnElement, Subquery, and_, case, exists, func, literal_column, select

from gated_backfill.common.ledger.database import LedgerStore
from gated_backfill.common.ledger.states import (
    INCOMPLETE_DATES,
    READY_FOR_GATE,
    DateState,
    OutstandingState,
    RunState,
    WindowState,
)
from gated_backfill.common.ledger.tables import checkpoints, run_dates, runs, windows

COMPLETING = (DateState.CHECKPOINTED.value, DateState.SKIPPED.value)
#: States of runs whose dates are to move. Those of a paused run are not.
MOVING_RUNS = (RunState.RUNNING.value, RunState.CANCELLING.value)
IN_FLIGHT = (WindowState.OPEN.value, WindowState.CLOSING.value)


@dataclass(frozen=True, kw_only=True)
class OutstandingCount:
    """How many dates of a job are not complete."""

    job: str
    state: OutstandingState
    has_checkpoint: bool  #: an earlier run has checkpointed them: they were to be rebuilt, and their rows stay
    dates: int


@dataclass(frozen=True, kw_only=True)
class OutstandingDate:
    """A date that is not complete, with the run that ended it last."""

    job: str
    day: date
    state: OutstandingState
    has_checkpoint: bool  #: see `OutstandingCount`
    run_id: str
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class VersionCount:
    """How many dates are checkpointed by one version of a job, and the newest of them."""

    job: str
    job_version: str
    dates: int
    newest: date


@dataclass(frozen=True, kw_only=True)
class DateClaim:
    """The dates of a window that one worker has claimed."""

    owner: str
    until: datetime  #: the end of its last lease


@dataclass(frozen=True, kw_only=True)
class WindowInFlight:
    """A window that was opened and is not closed, of a run that is neither paused nor ended."""

    job: str
    run_id: str
    number: int
    run_owner: str | None
    gate: DateClaim | None  #: the gate that has claimed the window
    claims: Sequence[DateClaim]
    waits_for_gate: bool  #: none of its dates needs a worker any more
    moved_at: datetime  #: when it was opened, or one of its dates was last claimed or ended


class CurrentStateStore(LedgerStore):
    """Read-only queries about what is true now."""

    def count_outstanding(self, *, job: str | None = None) -> list[OutstandingCount]:
        """Count the blocked and failed dates that no run has checkpointed or skipped since, each once.

        A checkpoint that was undone since does not count. Neither does a result of an undone run, on a date that has a
        checkpoint again. `job` limits the count to one job.
        """
        latest = _latest_outstanding(job)
        keys = (latest.c.job, latest.c.state, latest.c.has_checkpoint)
        query = select(*keys, func.count()).group_by(*keys).order_by(*keys)
        with self._read() as connection:
            return [
                OutstandingCount(
                    job=name, state=OutstandingState(state), has_checkpoint=bool(has_checkpoint), dates=dates
                )
                for name, state, has_checkpoint, dates in connection.execute(query)
            ]

    def list_outstanding(self, *, job: str | None = None) -> list[OutstandingDate]:
        """Return the dates that `count_outstanding` counts, by job, the oldest first."""
        latest = _latest_outstanding(job)
        with self._read() as connection:
            rows = connection.execute(select(latest).order_by(latest.c.job, latest.c.day)).mappings()
            return [
                OutstandingDate(
                    job=row["job"],
                    day=row["day"],
                    state=OutstandingState(row["state"]),
                    has_checkpoint=bool(row["has_checkpoint"]),
                    run_id=row["run_id"],
                    reason=row["reason"],
                )
                for row in rows
            ]

    def count_by_version(self, *, job: str | None = None) -> list[VersionCount]:
        """Count the checkpointed dates by job and the version of the job that built them."""
        keys = (checkpoints.c.job, checkpoints.c.job_version)
        query = select(*keys, func.count(), func.max(checkpoints.c.day)).group_by(*keys).order_by(*keys)
        if job is not None:
            query = query.where(checkpoints.c.job == job)
        with self._read() as connection:
            return [
                VersionCount(job=name, job_version=version, dates=dates, newest=newest)
                for name, version, dates, newest in connection.execute(query)
            ]

    def latest_versions(self) -> dict[str, str]:
        """Return, by each job that has a run, the version that its latest run was launched with."""
        last = select(runs.c.job, func.max(runs.c.created_at).label("at")).group_by(runs.c.job).subquery()
        query = select(runs.c.job, runs.c.job_version).join(
            last, and_(runs.c.job == last.c.job, runs.c.created_at == last.c.at)
        )
        with self._read() as connection:
            return {str(row.job): str(row.job_version) for row in connection.execute(query)}

    def list_windows_in_flight(self) -> list[WindowInFlight]:
        """Return the windows in flight of all runs that are neither paused nor ended, with the claims on them."""
        c = run_dates.c
        is_claimed = c.state == _literal(DateState.PROCESSING)  # PostgreSQL groups by no expression with a parameter
        claimed_by = case((is_claimed, c.lease_owner))
        query = (
            select(
                windows.c.run_id,
                windows.c.number,
                windows.c.lease_owner,
                windows.c.lease_until,
                windows.c.opened_at,
                runs.c.job,
                runs.c.owner.label("run_owner"),
                claimed_by.label("claimed_by"),
                func.max(case((is_claimed, c.lease_until))).label("claimed_until"),
                func.max(c.started_at).label("started_at"),
                func.max(c.ended_at).label("ended_at"),
                func.sum(case((c.state.in_([state.value for state in READY_FOR_GATE]), 0), else_=1)).label("to_build"),
            )
            .join_from(windows, runs, runs.c.id == windows.c.run_id)
            .outerjoin(run_dates, and_(c.run_id == windows.c.run_id, c.window == windows.c.number))
            .where(runs.c.finished_at.is_(None), runs.c.state.in_(MOVING_RUNS), windows.c.state.in_(IN_FLIGHT))
            .group_by(windows.c.run_id, windows.c.number, runs.c.id, claimed_by)
            .order_by(windows.c.run_id, windows.c.number)
        )
        with self._read() as connection:
            rows = connection.execute(query).mappings().all()
        groups: dict[tuple[str, int], list[Any]] = {}
        for row in rows:
            groups.setdefault((row["run_id"], row["number"]), []).append(row)
        return [_window_in_flight(group) for group in groups.values()]


def _latest_outstanding(job: str | None) -> Subquery:
    """Return the latest of the results that make a date outstanding, for each such date."""
    incomplete = run_dates.alias("incomplete")
    has_checkpoint = exists().where(checkpoints.c.job == incomplete.c.job, checkpoints.c.day == incomplete.c.day)
    is_withdrawn = and_(runs.c.undone_at.is_not(None), has_checkpoint)
    latest_first = func.row_number().over(
        partition_by=(incomplete.c.job, incomplete.c.day),
        order_by=(incomplete.c.ended_at.desc(), incomplete.c.run_id.desc()),
    )
    results = (
        select(
            incomplete.c.job,
            incomplete.c.day,
            incomplete.c.run_id,
            func.coalesce(incomplete.c.reason, incomplete.c.error).label("reason"),
            _outstanding_state(incomplete.c).label("state"),
            has_checkpoint.label("has_checkpoint"),
            latest_first.label("place"),
        )
        .join_from(incomplete, runs, runs.c.id == incomplete.c.run_id)
        .where(_is_incomplete(incomplete.c), ~_is_completed_since(incomplete.c), ~is_withdrawn)
    )
    if job is not None:
        results = results.where(incomplete.c.job == job)
    ordered = results.subquery()
    return select(ordered).where(ordered.c.place == 1).subquery()


def _is_incomplete(c: Any) -> ColumnElement[bool]:
    """Return the condition of the index of incomplete dates, without parameters: SQLite would not use it with them."""
    return c.state.in_([_literal(state) for state in INCOMPLETE_DATES])


def _literal(state: DateState) -> ColumnElement[str]:
    """Return the state as a part of the statement: it is a word of ours, never one of a user."""
    return literal_column(f"'{state.value}'")


def _is_completed_since(c: Any) -> ColumnElement[bool]:
    """Return whether the date was checkpointed or skipped after this result, and that was not undone."""
    later = run_dates.alias("later")
    return exists().where(
        later.c.job == c.job,
        later.c.day == c.day,
        later.c.state.in_(COMPLETING),
        later.c.undone_at.is_(None),
        later.c.ended_at > c.ended_at,
    )


def _outstanding_state(c: Any) -> ColumnElement[str]:
    """Return the state of an incomplete date. The reason of a date blocked by a loss of rows alone begins with it."""
    is_held = and_(c.loss.is_not(None), func.substr(c.reason, 1, func.length(c.loss)) == c.loss)
    return case(
        (c.state == DateState.FAILED.value, OutstandingState.FAILED.value),
        (is_held, OutstandingState.HELD.value),
        else_=OutstandingState.BLOCKED.value,
    )


def _window_in_flight(rows: Sequence[Any]) -> WindowInFlight:
    """Make a window of its rows, one for each worker that has dates of it, and one for its other dates."""
    first = rows[0]
    moments = [row[name] for row in rows for name in ("opened_at", "started_at", "ended_at")]
    gate, until = first["lease_owner"], first["lease_until"]
    return WindowInFlight(
        job=first["job"],
        run_id=first["run_id"],
        number=first["number"],
        run_owner=first["run_owner"],
        gate=None if gate is None else DateClaim(owner=gate, until=until),
        claims=tuple(
            DateClaim(owner=row["claimed_by"], until=row["claimed_until"])
            for row in rows
            if row["claimed_by"] is not None
        ),
        waits_for_gate=not any(row["to_build"] for row in rows),
        moved_at=max(moment for moment in moments if moment is not None),
    )
