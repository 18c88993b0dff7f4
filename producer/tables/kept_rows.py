"""Kept rows: rows that runs, undos and restores of kept rows removed from a table, and how to put them back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from gated_backfill.common.errors import TableNotFound, UserError
from gated_backfill.common.model.dates import ALL_DATES, DateRange
from gated_backfill.common.model.publication import KeptRows
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.tables import DatedTable, TableName
from gated_backfill.common.warehouse.protocol import Scan, Warehouse, require_table
from gated_backfill.producer.context import CommandContext


@dataclass(frozen=True, kw_only=True)
class KeptRestore:
    """The effect of putting kept rows back."""

    target: DatedTable
    job: str | None  #: the job that the table belongs to, if a run has claimed it
    run: str | None  #: the run of the date's checkpoint, if it has one
    kept: KeptRows
    current: str  #: fingerprint of the date's present rows
    present_rows: int

    def describe(self) -> str:
        rows, removed_at = self.kept, f"{self.kept.kept_at:%Y-%m-%d %H:%M} UTC"
        return (
            f"{self.target} {rows.day}: {rows.rows} row(s), removed by {rows.removed_by} at {removed_at}, replace the "
            f"present {self.present_rows} row(s), which are kept in turn"
        )


def dated_table(name: str, context: CommandContext) -> tuple[DatedTable, str | None]:
    """Return the table with its date column, and the job it belongs to, if a run has claimed it.

    Raises `TableNotFound`, and `UserError` for a table without a date column.
    """
    table = TableName.parse(name)
    owner = context.ledger.targets.get_owner(str(table))
    if owner is not None:
        return DatedTable(name=table, date_column=find_job(owner.job).target.date_column), owner.job
    info = require_table(context.warehouse, table)
    if info.partitioned_by is None:
        raise UserError(f"{table} is not partitioned by a column of dates, so no rows of it are kept")
    return DatedTable(name=table, date_column=info.partitioned_by), None


def plan_kept_restore(name: str, kept_id: str, context: CommandContext) -> KeptRestore:
    """Plan to put back the kept rows of that id, without changing anything. Raises `UserError` if it can't be done."""
    target, job = dated_table(name, context)
    listed = context.warehouse.list_kept(target.name, target.date_column, ALL_DATES)
    kept = next((rows for rows in listed if rows.id == kept_id), None)
    if kept is None:
        raise UserError(
            f"{target.name} has no kept rows with the id {kept_id!r} (they may have expired): "
            f"`backfill kept list {target.name}` lists the ids"
        )
    context.warehouse.check_kept_restorable(target.name, target.date_column, kept)
    checkpoints = context.ledger.checkpoints.list_checkpoints(job, kept.day, kept.day) if job else {}
    current = _fingerprint(target, kept.day, context.warehouse)
    if current == kept.fingerprint:
        raise UserError(f"{target.name} {kept.day} has these rows already: there is nothing to restore")
    return KeptRestore(
        target=target,
        job=job,
        run=checkpoints[kept.day].run_id if kept.day in checkpoints else None,
        kept=kept,
        current=current,
        present_rows=_count(target, kept.day, context.warehouse),
    )


def restore_kept_rows(plan: KeptRestore, context: CommandContext, by: str) -> bool:
    """Put the kept rows back; return whether the date had a checkpoint.

    The checkpoint is removed first, and the date is then listed as undone, so that no run replaces the rows unasked.
    Raises `DatesInUse`, and changes nothing, when an active run has the date, or another run has checkpointed it since
    the plan was made; `BackupMissing`, `SchemaMismatch` and `UserError`, and changes nothing, when the rows can't be
    put back, or another program wrote the date since. If it does so between the removal and the restore, its rows stay,
    but the checkpoint is gone. Repeating an interrupted restore, with a new plan, completes it.
    """
    target, kept, warehouse = plan.target, plan.kept, context.warehouse
    warehouse.check_kept_restorable(target.name, target.date_column, kept)
    if _fingerprint(target, kept.day, warehouse) != plan.current:
        raise _written_error(plan, withdrawn=False)
    had_checkpoint = plan.job is not None and context.ledger.checkpoints.withdraw_date(
        plan.job, kept.day, by, run_id=plan.run
    )
    if not warehouse.restore_kept(target.name, target.date_column, kept, current=plan.current):
        raise _written_error(plan, withdrawn=had_checkpoint)
    return _withdraw_later_checkpoint(plan, context, by) or had_checkpoint


def _withdraw_later_checkpoint(plan: KeptRestore, context: CommandContext, by: str) -> bool:
    """Remove the checkpoint of a run that built the same rows again between the removal and the restore.

    Such a run can begin and end while this process is frozen in between. Returns whether there was one.
    """
    if plan.job is None:
        return False
    checkpoints, day = context.ledger.checkpoints, plan.kept.day
    later = checkpoints.list_checkpoints(plan.job, day, day).get(day)
    if later is None or _fingerprint(plan.target, day, context.warehouse) != plan.kept.fingerprint:
        return False
    return checkpoints.withdraw_date(plan.job, day, by, run_id=later.run_id)


def _written_error(plan: KeptRestore, *, withdrawn: bool) -> UserError:
    checkpoint = ", but its checkpoint was removed and it is listed as undone" if withdrawn else ""
    return UserError(
        f"{plan.target.name} {plan.kept.day} was written by another program in the meantime; its rows were not changed"
        f"{checkpoint}: check its rows, then repeat the command"
    )


def _fingerprint(target: DatedTable, day: date, warehouse: Warehouse) -> str:
    return warehouse.fingerprints(target.name, target.date_column, [day])[day]


def _count(target: DatedTable, day: date, warehouse: Warehouse) -> int:
    one_day = (DateRange(start=day, through=day),)
    scan = Scan(table=target.name, date_column=target.date_column, dates=one_day)
    try:
        return warehouse.count_rows(scan).get(day, 0)
    except TableNotFound:  # a local table without any rows
        return 0
