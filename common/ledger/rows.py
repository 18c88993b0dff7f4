"""Conversion between table rows and records, and the statements and column values that several stores share."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, RowMapping, Update, and_, bindparam, func, select, update

from gated_backfill.common.ledger.records import Checkpoint, DateRow, NewDate, NewRun, Run, UndoneDate, WindowRow
from gated_backfill.common.ledger.states import (
    DATE_TRANSITIONS,
    ENDED_DATES,
    ENDED_RUNS,
    DateState,
    RunState,
    WindowState,
)
from gated_backfill.common.ledger.tables import run_dates, runs
from gated_backfill.common.model.coverage import TargetCounts, Verdict
from gated_backfill.common.model.missing_names import MISSING_NAMES_STORED
from gated_backfill.common.model.usage import Usage
from gated_backfill.common.process.clock import utcnow

DateColumns = Mapping[str, Any]  #: values of columns of `run_dates`
#: Built once: a worker runs these for every task, and building a statement takes longer than executing it.
RUN_DAYS = and_(run_dates.c.run_id == bindparam("run"), run_dates.c.day.in_(bindparam("days", expanding=True)))
RUN_DAY = and_(run_dates.c.run_id == bindparam("of_run"), run_dates.c.day == bindparam("of_day"))
CLAIMED_BY_OWNER = and_(
    RUN_DAYS, run_dates.c.state == DateState.PROCESSING.value, run_dates.c.lease_owner == bindparam("owner")
)
#: Columns of a date that no gate has compared with the target in its present attempt.
NOT_COMPARED: DateColumns = dict.fromkeys(("target_rows", "target_matched", "lost", "lost_count", "loss"))
#: The columns from which an undone date is read.
UNDONE_DATE = (
    run_dates.c.day,
    run_dates.c.run_id,
    run_dates.c.undone_by.label("by"),
    run_dates.c.undone_at.label("at"),
    run_dates.c.undo_restored.label("restored"),
)
RUN_STATE = select(runs.c.state).where(runs.c.id == bindparam("run"))


def date_transition(expect: DateState, to: DateState, columns: DateColumns) -> dict[str, Any]:
    """Return the values to write when a date changes its state. Raises `ValueError` for a forbidden transition."""
    if to not in DATE_TRANSITIONS[expect]:
        raise ValueError(f"a date never moves from {expect.value} to {to.value}")
    values = dict(columns) | {"state": to.value, "lease_owner": None, "lease_until": None}
    if not DATE_TRANSITIONS[to]:
        values["ended_at"] = utcnow()
    if to is DateState.QUEUED:
        values.setdefault("queued_at", utcnow())
    return values


def failure_columns(kind: str, error: str, reason: str, job_place: str | None = None) -> dict[str, Any]:
    """Return the verdict and the error of a failed date. `job_place`: the file and line of the job that raised it."""
    columns = {"verdict": Verdict.FAILED.value, "reason": reason}
    return {**columns, "error_kind": kind, "error": error, "error_place": job_place}


def worker_died_columns(deaths: int) -> dict[str, Any]:
    """Return the values of a date that is failed because it killed too many worker processes."""
    error = f"its worker process died {deaths} times while processing it (out of memory, or a crash)"
    columns = failure_columns("WorkerLost", error, f"killed its worker {deaths} times") | {"deaths": deaths}
    return date_transition(DateState.PROCESSING, DateState.FAILED, columns)


def worker_lost_columns(losses: int) -> dict[str, Any]:
    """Return the values of a date that is failed because its workers were lost too often, for an unknown reason."""
    error = (
        f"its worker was lost {losses} times while processing it, and no cause was reported "
        "(its host or network failed, or its whole container ran out of memory)"
    )
    columns = failure_columns("WorkerLost", error, f"its worker was lost {losses} times") | {"losses": losses}
    return date_transition(DateState.PROCESSING, DateState.FAILED, columns)


def entity_columns(missing: Collection[str], unexpected: Collection[str]) -> dict[str, Any]:
    """Return a date's missing and unexpected entities: names up to a limit, and the number of unexpected ones.

    The number of missing entities is in the columns `expected` and `matched`.
    """
    return {
        "missing": sorted(missing)[:MISSING_NAMES_STORED],
        "unexpected": sorted(unexpected)[:MISSING_NAMES_STORED],
        "unexpected_count": len(unexpected),
    }


def target_count_columns(target: TargetCounts, loss: str | None) -> dict[str, Any]:
    """Return what the target had on a date, and what its publication would lose: names up to a limit."""
    return {
        "target_rows": target.rows,
        "target_matched": target.matched,
        "lost": list(target.lost[:MISSING_NAMES_STORED]),
        "lost_count": len(target.lost),
        "loss": loss,
    }


def cancelled_columns(reason: str) -> dict[str, Any]:
    """Return the values of a date that is cancelled with its run; other runs may take the date at once."""
    return date_transition(DateState.STAGED, DateState.CANCELLED, {"reason": reason, "verdict": None, "active": False})


def is_run_running(connection: Connection, run_id: str) -> bool:
    return connection.execute(RUN_STATE, {"run": run_id}).scalar() == RunState.RUNNING.value


def lock_run_state(connection: Connection, run_id: str) -> RunState:
    """Lock the run's row until the transaction ends, and return its state."""
    return RunState(connection.execute(select(runs.c.state).where(runs.c.id == run_id).with_for_update()).scalar_one())


def change_run_state(connection: Connection, run_id: str, expect: Collection[RunState], to: RunState) -> bool:
    """Change the run's state if it is in one of `expect`. A run that ends releases its dates."""
    values: dict[str, Any] = {"state": to.value}
    if to is RunState.RUNNING:
        values["started_at"] = func.coalesce(runs.c.started_at, utcnow())
    if to in ENDED_RUNS:
        values["finished_at"] = utcnow()
    is_expected = (runs.c.id == run_id, runs.c.state.in_([state.value for state in expect]))
    is_changed = bool(connection.execute(update(runs).where(*is_expected).values(values)).rowcount)
    if is_changed and to in ENDED_RUNS:
        connection.execute(
            update(run_dates).where(run_dates.c.run_id == run_id, run_dates.c.active).values(active=False)
        )
    return is_changed


def run_values(run_id: str, new: NewRun) -> dict[str, Any]:
    days = [new_date.day for new_date in new.dates]
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
        **usage_values(new.usage),
    }


def usage_values(usage: Usage | None, before: DateRow | None = None) -> dict[str, Any]:
    """Return the values of the columns for usage, added to those of the date before; none if nothing is known."""
    if usage is None:
        return {}
    if before is not None:
        usage += Usage(bytes_billed=before.bytes_billed or 0, slot_millis=before.slot_millis or 0)
    return {"bytes_billed": usage.bytes_billed, "slot_millis": usage.slot_millis}


def date_values(run_id: str, job: str, dates: Iterable[NewDate]) -> list[dict[str, Any]]:
    now = utcnow()
    return [
        dict(new_date.columns)
        | {
            "run_id": run_id,
            "day": new_date.day,
            "job": job,
            "window": new_date.window,
            "state": new_date.state.value,
            "active": new_date.state not in ENDED_DATES,
            "ended_at": now if new_date.state in ENDED_DATES else None,
        }
        for new_date in dates
    ]


def group_by_columns(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Group rows that set the same columns: one statement can write only such rows."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(sorted(row)), []).append(row)
    return list(groups.values())


def run_from_row(row: RowMapping) -> Run:
    values: dict[str, Any] = {**row, "state": RunState(row["state"])}
    return Run(**values)


def window_from_row(row: Mapping[Any, Any]) -> WindowRow:
    values: dict[str, Any] = {**row, "state": WindowState(row["state"])}
    return WindowRow(**values)


def date_from_row(row: Mapping[Any, Any]) -> DateRow:
    verdict = Verdict(row["verdict"]) if row["verdict"] else None
    names = {column: tuple(row[column] or ()) for column in ("missing", "unexpected", "lost")}
    values: dict[str, Any] = {**row, "state": DateState(row["state"]), "verdict": verdict, **names}
    return DateRow(**values)


def checkpoint_from_row(row: Mapping[Any, Any]) -> Checkpoint:
    values: dict[str, Any] = {**row, "verdict": Verdict(row["verdict"])}
    return Checkpoint(**values)


def undone_from_row(row: Mapping[Any, Any]) -> UndoneDate:
    values: dict[str, Any] = {**row}
    return UndoneDate(**values)


def update_date_statement(values: Mapping[str, Any]) -> Update:
    """Return the statement that writes these columns of one date, whose key it takes as `of_run` and `of_day`."""
    return update_date_columns(tuple(name for name in values if not name.startswith("of_")))


@lru_cache
def update_date_columns(names: tuple[str, ...]) -> Update:
    """Return the same for column names; cached, see `RUN_DAYS`."""
    return update(run_dates).where(RUN_DAY).values({name: bindparam(name) for name in names})
