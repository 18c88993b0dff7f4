"""Undo a run, date by date: restore the rows that its target had before, except on dates that were written since."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime

from gated_backfill.common.errors import BackupMissing, UndoIncomplete, UserError
from gated_backfill.common.ledger import Checkpoint, DateRow, DateState, Run
from gated_backfill.common.model.dates import chunk_dates, format_dates
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.identity import is_dead, process_identity
from gated_backfill.common.warehouse.protocol import ABSENT, ReplacedPartition
from gated_backfill.producer.context import CommandContext

DATES_PER_RESTORE = 1000  #: an undo that is interrupted repeats at most these
NOT_A_RUN = "something other than a run of this job"


@dataclass(frozen=True, kw_only=True)
class UndoPlan:
    """The effect that undoing a run has on each date it published and that is not undone yet."""

    run: Run
    job: Job
    restored: Mapping[date, ReplacedPartition]  #: dates that get their earlier rows back
    emptied: Mapping[date, ReplacedPartition]  #: dates that had no rows before
    unchanged: tuple[date, ...]  #: dates whose rows the run did not change
    written: Mapping[date, str] = field(default_factory=dict[date, str])  #: left as they are: who wrote them
    missing: tuple[date, ...] = ()  #: left as they are: the rows that the run replaced are not kept any more
    leave_written: bool = False  #: finish the undo although further dates are written meanwhile

    @property
    def days(self) -> list[date]:
        return sorted({*self.restored, *self.emptied, *self.unchanged})

    @property
    def left(self) -> list[date]:
        return sorted({*self.written, *self.missing})

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
        if self.written:
            parts.append(f"left as they are: {describe_writers(self.written)}")
        if self.missing:
            parts.append(
                f"left as they are: the earlier rows of {len(self.missing)} date(s) are not kept any more "
                f"({format_dates(self.missing)})"
            )
        return f"{self.target}: {'; '.join(parts) or 'no date is left to undo'}"


def plan_undo(run_id: str, context: CommandContext, *, leave_written: bool = False) -> UndoPlan:
    """Plan the undo of a run, or the rest of one that has begun, without changing anything.

    Raises `UserError` when the run is active, was undone, or published nothing, and when dates were written since,
    unless `leave_written` is set or the undo has begun; `BackupMissing` when the rows it replaced were deleted, unless
    such dates are to be left in the same way and others can be undone.
    """
    run = context.ledger.runs.get_run(run_id)
    if not run.has_ended:
        raise UserError(f"run {run_id} is still {run.state.value}: wait for its end with `backfill watch {run_id}`")
    job = find_job(run.job)
    target, date_column = TableName.parse(job.target.table), job.target.date_column
    date_rows = context.ledger.dates.list_dates(run_id)
    replaced = context.warehouse.replaced_partitions(target, date_column, run_id, [row.day for row in date_rows])
    fingerprints = context.warehouse.fingerprints(target, date_column, [row.day for row in date_rows])
    rows = [row for row in date_rows if _is_published(row, replaced.get(row.day), fingerprints[row.day])]
    if not rows:
        raise UserError(f"run {run_id} published nothing: there is nothing to undo")
    remaining = [row for row in rows if not row.undo_restored]
    checksums = {row.day: row.checksum for row in remaining if row.day not in replaced and row.checksum is not None}
    written = find_later_writers(
        run,
        remaining,
        replaced,
        fingerprints=fingerprints,
        unchanged=context.warehouse.matching_dates(target, date_column, checksums),
        checkpoints=context.ledger.checkpoints.list_checkpoints(job.name, rows[0].day, rows[-1].day),
    )
    to_undo = [row for row in remaining if row.day not in written]
    has_begun = any(row.active or (run.undo_generation and row.undone_at is not None) for row in rows)
    leaves_others = leave_written or has_begun
    _check_undoable(run, to_undo, written, leave_written=leaves_others)
    context.ledger.runs.check_dates_free(run.job, [row.day for row in to_undo], apart_from=run.id)
    replaced = {row.day: replaced[row.day] for row in to_undo if row.day in replaced}
    not_restored = {day: partition for day, partition in replaced.items() if fingerprints[day] != partition.before}
    missing = _find_missing(run, job, to_undo, not_restored, context, leaves_others=leaves_others)
    to_undo = [row for row in to_undo if row.day not in missing]
    replaced = {day: partition for day, partition in replaced.items() if day not in missing}
    return classify_dates(run, job, to_undo, replaced, written=written, missing=missing, leave_written=leave_written)


def _is_published(row: DateRow, replaced: ReplacedPartition | None, fingerprint: str) -> bool:
    """Whether the run published the date; a late load job may have published one that is recorded as failed."""
    if row.state in (DateState.CHECKPOINTED, DateState.PUBLISHED) or row.undone_at is not None:
        return True
    return replaced is not None and fingerprint == replaced.published != replaced.before


def find_later_writers(
    run: Run,
    rows: Sequence[DateRow],
    replaced: Mapping[date, ReplacedPartition],
    *,
    fingerprints: Mapping[date, str],
    unchanged: Collection[date],
    checkpoints: Mapping[date, Checkpoint],
) -> dict[date, str]:
    """Return the dates that were written after the run published them, with who wrote them, in words.

    `fingerprints` are those of the current rows, `unchanged` the dates whose rows still match the run's checksums.
    """
    writers: dict[date, str] = {}
    for row in rows:
        checkpoint = checkpoints.get(row.day)
        if checkpoint is not None and checkpoint.run_id != run.id:
            writers[row.day] = f"run {checkpoint.run_id}"
        elif not _is_from_run(row.day, replaced.get(row.day), fingerprints[row.day], unchanged):
            writers[row.day] = NOT_A_RUN
    return writers


def _is_from_run(day: date, replaced: ReplacedPartition | None, fingerprint: str, unchanged: Collection[date]) -> bool:
    """Whether the date has the rows that the run, or an interrupted undo of it, wrote."""
    return day in unchanged if replaced is None else fingerprint in (replaced.published, replaced.before)


def describe_writers(written: Mapping[date, str]) -> str:
    """Describe who has written which dates since the run."""
    days_by_writer: dict[str, list[date]] = {}
    for day, writer in sorted(written.items()):
        days_by_writer.setdefault(writer, []).append(day)
    return "; ".join(
        f"{writer} has written {len(days)} of its dates since: {format_dates(days)}"
        for writer, days in days_by_writer.items()
    )


def _check_undoable(run: Run, to_undo: Sequence[DateRow], written: Mapping[date, str], *, leave_written: bool) -> None:
    """Raise `UserError` when the run was undone, or dates were written since that are not to be left."""
    if run.undone_at is not None and not to_undo:
        left = f"; left as they are: {describe_writers(written)}" if written else ""
        raise UserError(
            f"run {run.id} was undone already, by {run.undone_by} at {run.undone_at:%Y-%m-%d %H:%M} UTC{left}"
        )
    if written and not leave_written:
        others = f"; --leave-written undoes the other {len(to_undo)} date(s)" if to_undo else ""
        raise UserError(f"run {run.id} can't be undone: {describe_writers(written)}; nothing was changed{others}")


def _find_missing(
    run: Run,
    job: Job,
    rows: Sequence[DateRow],
    not_restored: Mapping[date, ReplacedPartition],
    context: CommandContext,
    *,
    leaves_others: bool,
) -> frozenset[date]:
    """Return the dates that are left because the rows that the run replaced on them are not kept any more.

    Raises `BackupMissing` if the undo has no other dates, or is not to leave any.
    """
    try:
        context.warehouse.check_restorable(
            TableName.parse(job.target.table), job.target.date_column, run.id, not_restored
        )
    except BackupMissing as exc:
        others = len(rows) - len(exc.days)
        if not (others and leaves_others):
            hint = f"; --leave-written undoes the other {others} date(s)" if others else ""
            raise BackupMissing(f"{exc}{hint}") from exc
        return exc.days
    return frozenset()


def classify_dates(
    run: Run,
    job: Job,
    rows: Sequence[DateRow],
    replaced: Mapping[date, ReplacedPartition],
    *,
    written: Mapping[date, str],
    missing: Collection[date],
    leave_written: bool,
) -> UndoPlan:
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
        written=written,
        missing=tuple(sorted(missing)),
        leave_written=leave_written,
    )


def undo_run(plan: UndoPlan, context: CommandContext, by: str) -> list[date]:
    """Carry out the plan; returns the dates whose earlier checkpoints are valid again. Repeating it completes it.

    Dates are undone in chunks. Of each, the run's checkpoints are removed before its rows, and earlier checkpoints
    return after their rows, so that no checkpoint lacks its rows. Raises `UndoIncomplete` when another writer changed a
    date meanwhile, after the others were undone; `UndoInProgress`, or `LeaseTakenOver`, when another undo of the run
    has begun since the plan was made.
    """
    checkpoints, run_id = context.ledger.checkpoints, plan.run.id
    until, latest_undo = _lease_end(context), plan.run.undo_generation
    generation = checkpoints.begin_undo(
        run_id, plan.days, process_identity(), until, after=latest_undo, is_dead=is_dead
    )
    if latest_undo:
        # The process of an earlier undo may be frozen in its restore. This undo may release dates without a restore.
        context.warehouse.raise_fence(plan.target, run_id, window=None, generation=generation)
    try:
        if plan.left:
            checkpoints.withdraw(run_id, plan.left, by, generation, _lease_end(context))
        earlier = checkpoints.list_replaced_checkpoints(run_id)
        changed: list[date] = []
        proven: list[date] = []
        for days in chunk_dates(plan.days, DATES_PER_RESTORE):
            checkpoints.withdraw(run_id, days, by, generation, _lease_end(context))
            restored = _restore(plan, days, context, generation)
            checksums = {day: earlier[day].checksum for day in restored if day in earlier}
            valid_again = context.warehouse.matching_dates(plan.target, plan.job.target.date_column, checksums)
            checkpoints.reinstate(run_id, days, restored, valid_again, generation)
            changed += sorted({*days} - restored)
            proven += sorted(valid_again)
    except UserError:
        checkpoints.release_undo(run_id, generation)
        raise
    if changed and not plan.leave_written:
        checkpoints.release_undo(run_id, generation)
    else:
        checkpoints.finish_undo(run_id, by, generation)
    _check_none_changed(plan, changed)
    return proven


def _check_none_changed(plan: UndoPlan, changed: Sequence[date]) -> None:
    """Raise `UndoIncomplete` with the dates that another writer changed during the undo."""
    if changed:
        next_step = "" if plan.leave_written else f"; `backfill undo {plan.run.id}` ends the undo without them"
        raise UndoIncomplete(
            f"{plan.target}: {len(changed)} date(s) were changed by another writer meanwhile and are left alone: "
            f"{format_dates(changed)}; the other {len(plan.days) - len(changed)} are restored{next_step}"
        )


def _lease_end(context: CommandContext) -> datetime:
    return utcnow() + context.settings.operation_lease


def _restore(plan: UndoPlan, days: Sequence[date], context: CommandContext, generation: int) -> frozenset[date]:
    """Restore the rows of the days; returns those that have their earlier rows now."""
    replaced = {**plan.restored, **plan.emptied}
    of_days = {day: replaced[day] for day in days if day in replaced}
    unchanged = frozenset(days) - of_days.keys()
    arguments = plan.target, plan.job.target.date_column, plan.run.id, of_days
    return unchanged | context.warehouse.restore(*arguments, generation=generation)


def release_interrupted_undo(run_id: str, context: CommandContext) -> bool:
    """Release the dates that an interrupted undo of the run had reserved; returns whether there were any.

    For an undo that can't be completed: other runs can build its dates then. A process that was frozen in that undo has
    no effect when it continues: the warehouse is told first. The job need not be installed here. Raises
    `WarehouseUnavailable`, and releases nothing, when the warehouse does not answer; `UndoInProgress`.
    """
    run = context.ledger.runs.get_run(run_id)
    if run.undo_owner is None or run.undo_until is None:
        return False
    if run.undo_until > utcnow() and not is_dead(run.undo_owner):
        return False
    checkpoints = context.ledger.checkpoints
    until, latest_undo = _lease_end(context), run.undo_generation
    generation = checkpoints.begin_undo(run_id, [], process_identity(), until, after=latest_undo, is_dead=is_dead)
    for target in context.ledger.targets.list_targets(run.job):
        context.warehouse.raise_fence(target, run_id, window=None, generation=generation)
    checkpoints.release_undo(run_id, generation)
    return True
