"""Between the ledger's tables and its records: the values that are written, the rows that are read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, RowMapping, Update, and_, bindparam, func, select, update

from gated_backfill.common.ledger.records import Checkpoint, DateRow, NewDate, NewRun, Run, WindowRow
from gated_backfill.common.ledger.states import DATE_TRANSITIONS, ENDED_RUNS, DateState, RunState, WindowState
from gated_backfill.common.ledger.tables import run_dates, runs
from gated_backfill.common.model.coverage import Verdict
from gated_backfill.common.process.clock import utcnow

DateColumns = Mapping[str, Any]
#: Written once: a worker asks these for every task, and to put one together takes longer than to carry it out.
RUN_DAYS = and_(run_dates.c.run_id == bindparam("run"), run_dates.c.day.in_(bindparam("days", expanding=True)))
RUN_DAY = and_(run_dates.c.run_id == bindparam("of_run"), run_dates.c.day == bindparam("of_day"))
CLAIMED_BY_OWNER = and_(
    RUN_DAYS, run_dates.c.state == DateState.PROCESSING.value, run_dates.c.lease_owner == bindparam("owner")
)
STATE = select(runs.c.state).where(runs.c.id == bindparam("run"))


def date_transition(expect: DateState, to: DateState, facts: DateColumns) -> dict[str, Any]:
    if to not in DATE_TRANSITIONS[expect]:
        raise ValueError(f"a date never moves from {expect.value} to {to.value}")
    values = dict(facts) | {"state": to.value, "lease_owner": None, "lease_until": None}
    if not DATE_TRANSITIONS[to]:
        values["ended_at"] = utcnow()
    if to is DateState.QUEUED:
        values["queued_at"] = utcnow()
    return values


def worker_lost_columns(deaths: int, now: datetime) -> dict[str, Any]:
    return {
        "state": DateState.FAILED.value,
        "verdict": Verdict.FAILED.value,
        "deaths": deaths,
        "lease_owner": None,
        "lease_until": None,
        "error_kind": "WorkerLost",
        "error": f"its worker died {deaths} times while processing it (out of memory, a crash, or the time limit)",
        "reason": f"killed its worker {deaths} times",
        "ended_at": now,
    }


def cancelled_columns(why: str) -> dict[str, Any]:
    """What a date becomes that its cancelled run does not finish. It is free for other runs."""
    return date_transition(DateState.STAGED, DateState.CANCELLED, {"reason": why, "verdict": None, "active": False})


def is_run_running(connection: Connection, run_id: str) -> bool:
    return connection.execute(STATE, {"run": run_id}).scalar() == RunState.RUNNING.value


def lock_run_state(connection: Connection, run_id: str) -> RunState:
    """The run's state, which nobody else changes until this transaction ends."""
    return RunState(connection.execute(select(runs.c.state).where(runs.c.id == run_id).with_for_update()).scalar_one())


def change_run_state(connection: Connection, run_id: str, expect: Collection[RunState], to: RunState) -> bool:
    """Change a run's state if it is one of those expected; an ended run gives its dates free."""
    values: dict[str, Any] = {"state": to.value}
    if to is RunState.RUNNING:
        values["started_at"] = func.coalesce(runs.c.started_at, utcnow())
    if to in ENDED_RUNS:
        values["finished_at"] = utcnow()
    this = (runs.c.id == run_id, runs.c.state.in_([state.value for state in expect]))
    changed = bool(connection.execute(update(runs).where(*this).values(values)).rowcount)
    if changed and to in ENDED_RUNS:
        connection.execute(
            update(run_dates).where(run_dates.c.run_id == run_id, run_dates.c.active).values(active=False)
        )
    return changed


def run_values(run_id: str, new: NewRun) -> dict[str, Any]:
    days = [one.day for one in new.dates]
    return {
        "id": run_id,
        "job": new.job,
        "job_version": new.job_version,
        "state": RunState.PLANNED.value,
        "options": dict(new.options),
        "requested": new.requested,
        "requested_by": new.requested_by,
        "reason": new.reason,
        "owner": new.owner,
        "first_date": min(days),
        "last_date": max(days),
        "created_at": utcnow(),
    }


def date_values(run_id: str, job: str, dates: Iterable[NewDate]) -> list[dict[str, Any]]:
    now = utcnow()
    return [
        dict(one.columns)
        | {
            "run_id": run_id,
            "day": one.day,
            "job": job,
            "window": one.window,
            "state": one.state.value,
            "active": one.state is DateState.PENDING,
            "ended_at": None if one.state is DateState.PENDING else now,
        }
        for one in dates
    ]


def grouped_by_columns(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows by the columns they set: one statement can insert only rows that set the same ones."""
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(sorted(row)), []).append(row)
    return list(found.values())


def run_from_row(row: RowMapping) -> Run:
    values: dict[str, Any] = {**row, "state": RunState(row["state"])}
    return Run(**values)


def window_from_row(row: Mapping[Any, Any]) -> WindowRow:
    values: dict[str, Any] = {**row, "state": WindowState(row["state"])}
    return WindowRow(**values)


def date_from_row(row: Mapping[Any, Any]) -> DateRow:
    verdict = Verdict(row["verdict"]) if row["verdict"] else None
    changed = {"state": DateState(row["state"]), "verdict": verdict, "missing": tuple(row["missing"] or ())}
    values: dict[str, Any] = {**row, **changed}
    return DateRow(**values)


def checkpoint_from_row(row: Mapping[Any, Any]) -> Checkpoint:
    values: dict[str, Any] = {**row, "verdict": Verdict(row["verdict"])}
    return Checkpoint(**values)


def update_date(values: Mapping[str, Any]) -> Update:
    """The change of one date (`of_run`, `of_day`) to such values, for many dates at once."""
    return update_date_columns(tuple(name for name in values if not name.startswith("of_")))


@lru_cache
def update_date_columns(names: tuple[str, ...]) -> Update:
    """The same, by the names of the values: put together once for each set of them."""
    return update(run_dates).where(RUN_DAY).values({name: bindparam(name) for name in names})
