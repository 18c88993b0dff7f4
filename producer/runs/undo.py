"""Undo a run: restore the rows that its target had before, except on dates that were written meanwhile."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from gated_backfill.common.errors import UserError
from gated_backfill.common.ledger import Checkpoint, DateRow, DateState, Run
from gated_backfill.common.model.dates import chunk_dates, format_dates
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.identity import is_dead, process_identity
from gated_backfill.common.warehouse.protocol import ABSENT, ReplacedPartition
from gated_backfill.producer.context import CommandContext

DATES_PER_RESTORE = 1000


@dataclass(frozen=True, kw_only=True)
class UndoPlan:
    """The effect that undoing a run has on each date it published."""

    run: Run
    job: Job
    restored: Mapping[date, ReplacedPartition]  #: dates that get their earlier rows back
    emptied: Mapping[date, ReplacedPartition]  #: dates that had no rows before
    unchanged: tuple[date, ...]  #: dates whose rows the run did not change

    @property
    def days(self) -> list[date]:
        return sorted({*self.restored, *self.emptied, *self.unchanged})

    @property
    def target(self) -> TableName:
        return TableName.parse(self.job.target.table)

    def describe(self) -> str:
        parts = [
            f"{len(days)} date(s) {words} ({format_dates(days)})"
            for days, words in (
                (self.restored, "get back the rows they held before"),
                (self.emptied, "held no rows before and will hold none"),
                (self.unchanged, "keep their rows, which the run did not change"),
            )
            if days
        ]
        return f"{self.target}: {'; '.join(parts)}"


def plan_undo(run_id: str, context: CommandContext) -> UndoPlan:
    """Plan the undo of a run, without changing anything.

    Raises `UserError` when the run is active, was undone, published nothing, or was published over since;
    `BackupMissing` when the rows it replaced were deleted.
    """
    run = context.ledger.runs.get_run(run_id)
    if not run.has_ended:
        raise UserError(f"run {run_id} is still {run.state.value}: wait for its end with `backfill watch {run_id}`")
    if run.undone_at is not None:
        raise UserError(f"run {run_id} was undone already, by {run.undone_by} at {run.undone_at:%Y-%m-%d %H:%M} UTC")
    job = find_job(run.job)
    target, date_column = TableName.parse(job.target.table), job.target.date_column
    date_rows = context.ledger.dates.list_dates(run_id)
    replaced = context.warehouse.replaced_partitions(target, date_column, run_id, [row.day for row in date_rows])
    fingerprints = context.warehouse.fingerprints(target, date_column, [row.day for row in date_rows])
    rows = [row for row in date_rows if _is_published(row, replaced.get(row.day), fingerprints[row.day])]
    if not rows:
        raise UserError(f"run {run_id} published nothing: there is nothing to undo")
    days = [row.day for row in rows]
    replaced = {day: replaced[day] for day in days if day in replaced}
    unchanged = {row.day: row.checksum for row in rows if row.day not in replaced and row.checksum is not None}
    check_no_active_run(run, days, context)
    check_not_published_over(
        run,
        rows,
        replaced,
        fingerprints=fingerprints,
        unchanged=context.warehouse.matching_dates(target, date_column, unchanged),
        checkpoints=context.ledger.checkpoints.list_checkpoints(job.name, min(days), max(days)),
    )
    context.warehouse.check_restorable(target, date_column, run_id, replaced)
    return classify_dates(run, job, rows, replaced)


def _is_published(row: DateRow, replaced: ReplacedPartition | None, fingerprint: str) -> bool:
    """Whether the run published the date; a late load job may have published one that is recorded as failed."""
    if row.state in (DateState.CHECKPOINTED, DateState.PUBLISHED):
        return True
    return replaced is not None and fingerprint == replaced.published != replaced.before


def check_no_active_run(run: Run, days: Sequence[date], context: CommandContext) -> None:
    """Raise `UserError` when an active run of the job has one of the dates."""
    for active_id, used_days in context.ledger.runs.find_conflicting_runs(run.job, days).items():
        if active_id == run.id:
            continue  # an interrupted undo of this run
        raise UserError(
            f"run {active_id} is active and holds {len(used_days)} date(s) that {run.id} published "
            f"({format_dates(used_days)}): wait for its end with `backfill watch {active_id}`"
        )


def check_not_published_over(
    run: Run,
    rows: Sequence[DateRow],
    replaced: Mapping[date, ReplacedPartition],
    *,
    fingerprints: Mapping[date, str],
    unchanged: Collection[date],
    checkpoints: Mapping[date, Checkpoint],
) -> None:
    """Raise `UserError` with the dates that were written after the run published them.

    `fingerprints` are those of the current rows, `unchanged` the dates whose rows still match the run's checksums.
    """
    days_by_writer: dict[str, list[date]] = {}
    for row in rows:
        checkpoint = checkpoints.get(row.day)
        if checkpoint is not None and checkpoint.run_id != run.id:
            days_by_writer.setdefault(f"run {checkpoint.run_id}", []).append(row.day)
        elif not _is_from_run(row.day, replaced.get(row.day), fingerprints[row.day], unchanged):
            days_by_writer.setdefault("something other than a run of this job", []).append(row.day)
    if days_by_writer:
        writers = "; ".join(
            f"{writer} has written {len(days)} of its dates since: {format_dates(days)}"
            for writer, days in days_by_writer.items()
        )
        raise UserError(f"run {run.id} can't be undone: {writers}; nothing was changed")


def _is_from_run(day: date, replaced: ReplacedPartition | None, fingerprint: str, unchanged: Collection[date]) -> bool:
    """Whether the date has the rows that the run, or an interrupted undo of it, wrote."""
    return day in unchanged if replaced is None else fingerprint in (replaced.published, replaced.before)


def classify_dates(run: Run, job: Job, rows: Sequence[DateRow], replaced: Mapping[date, ReplacedPartition]) -> UndoPlan:
    """Group the dates by the effect of the undo."""
    return UndoPlan(
        run=run,
        job=job,
        restored={day: part for day, part in replaced.items() if part.before not in (ABSENT, part.published)},
        emptied={day: part for day, part in replaced.items() if part.before == ABSENT != part.published},
        unchanged=tuple(
            row.day
            for row in rows
            if row.day not in replaced or replaced[row.day].before == replaced[row.day].published
        ),
    )


def undo_run(plan: UndoPlan, context: CommandContext, by: str) -> list[date]:
    """Carry out the plan; returns the dates whose earlier checkpoints are valid again. Repeating it is harmless.

    The run's checkpoints are removed before its rows, and earlier checkpoints return after their rows, so that no
    checkpoint lacks its rows. Raises `UserError` when another writer changed a date meanwhile; the others are restored.
    """
    target, date_column, run_id = plan.target, plan.job.target.date_column, plan.run.id
    until = utcnow() + context.settings.operation_lease
    generation = context.ledger.checkpoints.begin_undo(run_id, plan.days, process_identity(), until, is_dead=is_dead)
    try:
        _restore(plan, context, generation)
        earlier = context.ledger.checkpoints.list_replaced_checkpoints(run_id)
        checksums = {day: checkpoint.checksum for day, checkpoint in earlier.items()}
        valid_again = context.warehouse.matching_dates(target, date_column, checksums)
    except UserError:
        context.ledger.checkpoints.release_undo(run_id, generation)
        raise
    context.ledger.checkpoints.finish_undo(run_id, valid_again, by, generation)
    return sorted(valid_again)


def _restore(plan: UndoPlan, context: CommandContext, generation: int) -> None:
    target, date_column = plan.target, plan.job.target.date_column
    replaced = {**plan.restored, **plan.emptied}
    restored: set[date] = set()
    for days in chunk_dates(sorted(replaced), DATES_PER_RESTORE):
        restored |= context.warehouse.restore(
            target, date_column, plan.run.id, {day: replaced[day] for day in days}, generation=generation
        )
    if changed := sorted(set(replaced) - restored):
        raise UserError(
            f"{target}: {len(changed)} date(s) were changed by another writer meanwhile and are left alone: "
            f"{format_dates(changed)}; the other {len(restored)} are restored"
        )
