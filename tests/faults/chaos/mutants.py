"""Ways to break the tool on purpose, which the harness must notice. Each is a patch of a forked process."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

from tests.faults.chaos.schedule import CLEANUP, SPOIL, TO_THE_END, UNDO, Schedule


def checkpoint_before_publish() -> None:
    """The order of the commit, turned round."""
    from gated_backfill.common.ledger import DateState
    from gated_backfill.worker.gate import gate

    publish = gate.publish_and_checkpoint

    def turned_round(window: Any, passing: Sequence[Any]) -> Any:
        holder = (window.number, window.deps.owner)
        days = [row.day for row in passing]
        ledger = window.deps.ledger
        ledger.dates.move_dates(window.run.id, days, expect=DateState.STAGED, to=DateState.PUBLISHED, gate=holder)
        ledger.checkpoints.write(window.run.id, days)
        return publish(window, passing)

    gate.publish_and_checkpoint = turned_round


def no_duplicate_guard() -> None:
    """A date of a run that is on is taken whatever state it is in."""
    from sqlalchemy import select, update

    from gated_backfill.common.ledger import DateRow
    from gated_backfill.common.ledger.rows import date_from_row, is_run_running
    from gated_backfill.common.ledger.stores.claims import ClaimStore
    from gated_backfill.common.ledger.tables import run_dates
    from gated_backfill.common.process.clock import utcnow

    def claim_dates(
        self: ClaimStore, run_id: str, days: Collection[date], owner: str, until: datetime, **_: Any
    ) -> list[DateRow]:
        query = select(run_dates).where(run_dates.c.run_id == run_id, run_dates.c.day.in_(list(days)))
        with self._write() as connection:
            if not is_run_running(connection, run_id):
                return []
            rows = connection.execute(query.order_by(run_dates.c.day).with_for_update()).mappings().all()
            values = {"state": "processing", "lease_owner": owner, "lease_until": until, "started_at": utcnow()}
            for row in rows:
                this = (run_dates.c.run_id == run_id, run_dates.c.day == row["day"])
                connection.execute(update(run_dates).where(*this).values(values | {"attempt": row["attempt"] + 1}))
        return [date_from_row({**row, **values, "attempt": row["attempt"] + 1}) for row in rows]

    ClaimStore.claim_dates = claim_dates


def lease_ignored() -> None:
    """Whoever holds a date or a window counts as dead."""
    _nobody_but(dead=True)


def lease_never_ends() -> None:
    """Nobody is ever known to be dead, and no lease runs out."""
    from datetime import timedelta

    from gated_backfill.common.config.settings import Settings

    _nobody_but(dead=False)
    Settings.lease_grace = Settings.gate_lease = property(lambda self: timedelta(hours=3))


def _nobody_but(*, dead: bool) -> None:
    from gated_backfill.common.ledger.stores.heartbeats import HeartbeatStore

    HeartbeatStore.is_lost = lambda self, owner: dead


def recount_believed() -> None:
    """What a worker said of its rows, instead of a recount."""
    from gated_backfill.common.model.coverage import DateExpectation, Recount
    from gated_backfill.common.model.job import Job
    from gated_backfill.common.warehouse.protocol import Warehouse
    from gated_backfill.worker.gate import verdicts

    def believed(warehouse: Warehouse, job: Job, staged: Mapping[date, Any], **_: Any) -> dict[date, Recount]:
        return {
            day: Recount(expectation=DateExpectation(expected=13), matched=13, rows=contents.rows)
            for day, contents in staged.items()
        }

    verdicts.recount = believed


def floor_ignored() -> None:
    """However few entities are expected, the expectation is complete."""
    from gated_backfill.common.model.coverage import NO_FLOOR, DateExpectation
    from gated_backfill.common.model.job import Job

    def without_floor(self: DateExpectation, floor: int | None, reason: str | None) -> DateExpectation:
        return self

    DateExpectation.with_floor = without_floor
    date_expectation = Job.date_expectation

    def date_expectation_without_floor(self: Job, *arguments: Any, **facts: Any) -> DateExpectation:
        return date_expectation(self, *arguments, **{**facts, "floor": NO_FLOOR})

    Job.date_expectation = date_expectation_without_floor


def another_reading_in_the_worker() -> None:
    """The worker takes names that differ in blanks for the same; the gate does not."""
    from dataclasses import replace

    from gated_backfill.common.warehouse.coverage_queries import SourceEntities
    from gated_backfill.worker.dates import sources

    measure_dates = sources.measure_dates

    def without_blanks(*arguments: Any) -> Any:
        measured = measure_dates(*arguments)

        def read(source: SourceEntities) -> SourceEntities:
            stripped = {day: {name.strip() for name in names} for day, names in source.unexpected.items()}
            present = {
                day: source.present.get(day, frozenset()) | (expected & stripped.get(day, set()))
                for day, expected in measured.expected.items()
            }
            return replace(source, present=present)

        return replace(measured, sources={name: read(source) for name, source in measured.sources.items()})

    sources.measure_dates = without_blanks


def version_mismatch_ignored() -> None:
    """Workers that were not restarted after a deploy build with the job as it was, and nobody asks for its version."""
    from dataclasses import replace

    from gated_backfill.worker.dates import process as processing
    from gated_backfill.worker.gate import gate

    find_installed = processing.find_job

    def find_earlier_job(name: str) -> Any:
        job = find_installed(name)

        def process_as_before(batch: Any) -> Any:
            rows = job.process(batch)
            return rows.assign(value=rows["value"] + 1000.0)

        return replace(job, version="0", process=process_as_before)

    def believe(*_: Any) -> None:
        """Take any version."""

    processing.find_job = find_earlier_job
    processing.check_job_version = believe
    gate.check_job_version = believe


def loss_ignored() -> None:
    """A rebuild that loses entities of the target passes like any other."""
    from gated_backfill.worker.gate import target

    def find_none(*_: Any, **__: Any) -> None:
        """Find no loss."""

    target.describe_loss = find_none


def first_replacement_only() -> None:
    """Of what a run replaces on a date, more than once, the first is kept."""
    from gated_backfill.common.warehouse.local.loading import LoadingFolder, PartitionChange

    keep = LoadingFolder._keep

    def keep_the_first(self: LoadingFolder, change: PartitionChange, kept: Path) -> None:
        keep(self, change, kept)
        if any(copy != kept for copy in kept.parent.parent.glob(f"rows-*/{kept.name}")):
            kept.unlink()

    LoadingFolder._keep = keep_the_first


def check_outside_the_swap() -> None:
    """The rows to replace are looked at first, and replaced later, whatever they are then."""
    import os

    from gated_backfill.common.warehouse.local import loading

    def replace_unchecked(path: str, prepared: str, _: Any) -> bool:
        os.link(path, f"{prepared}.kept")
        Path(prepared).replace(path)
        Path(f"{prepared}.kept").rename(prepared)
        return True

    loading.replace_file = replace_unchecked


def fencing_ignored() -> None:
    """Whoever has lost its lease goes on."""
    from gated_backfill.common.warehouse.local.backups import LocalBackups
    from gated_backfill.common.warehouse.local.undo_folder import UndoFolder

    def believe(*_: Any, **__: Any) -> None:
        """Take any generation."""

    for fence in ("fence_publication", "fence_window", "fence_undo"):
        setattr(UndoFolder, fence, believe)
    LocalBackups._fence = believe


def ledger_believed_about_deletions() -> None:
    """A cleanup of which the ledger does not know that it deleted anything has deleted nothing."""
    from gated_backfill.common.cleanup import cleanup
    from gated_backfill.common.cleanup.operation import move_operation
    from gated_backfill.common.ledger.stores.cleanups import CleanupState

    def abandon(operation: Any, context: Any) -> None:
        move_operation(operation, CleanupState.ABANDONED, context, error="nothing was deleted")

    cleanup.abandon_unless_deleted = abandon


def retention_by_folder_time() -> None:
    """What a run replaced expires by the time of the run's folder, and at once."""
    import shutil
    from datetime import timedelta

    from gated_backfill.common.process import clock
    from gated_backfill.common.warehouse.local.undo_folder import UndoFolder

    def delete_expired(self: UndoFolder, period: timedelta) -> None:
        if self.path.stat().st_mtime < (clock.utcnow() - period).timestamp():
            for copies in self.path.glob("rows-*"):
                shutil.rmtree(copies)

    UndoFolder.delete_expired = delete_expired


def staging_table_believed() -> None:
    """A staging table is published without a check that its content is still what was staged."""
    from gated_backfill.common.warehouse.bigquery import transactions
    from gated_backfill.common.warehouse.bigquery.query_staging import BigQueryQueryStaging

    def believe(self: BigQueryQueryStaging, staged: Sequence[Any], columns: Any) -> dict[date, str]:
        return {rows.day: rows.checksum for rows in staged}

    BigQueryQueryStaging.read_staged_contents = believe
    transactions.CHOOSE_UNCHANGED = transactions.CHOOSE_UNCHANGED.replace("AND s.content = w.staged", "")


MUTANTS: dict[str, Callable[[], None]] = {
    "checkpoint-before-publish": checkpoint_before_publish,
    "no-duplicate-guard": no_duplicate_guard,
    "lease-ignored": lease_ignored,
    "lease-never-ends": lease_never_ends,
    "recount-believed": recount_believed,
    "version-mismatch-ignored": version_mismatch_ignored,
    "another-reading": another_reading_in_the_worker,
    "floor-ignored": floor_ignored,
    "loss-ignored": loss_ignored,
    "first-replacement-only": first_replacement_only,
    "check-outside-the-swap": check_outside_the_swap,
    "fencing-ignored": fencing_ignored,
    "ledger-believed": ledger_believed_about_deletions,
    "retention-by-folder-time": retention_by_folder_time,
    "staging-table-believed": staging_table_believed,
}


def can_show(mutant: str | None, schedule: Schedule) -> bool:
    """Whether the schedule may show the mutant.

    All on the local warehouse may, the faster one, except for what only BigQuery or a long frozen command shows.
    """
    if mutant == "staging-table-believed":
        return schedule.warehouse == "bigquery" and any(fault.action == SPOIL for fault in schedule.faults)
    if schedule.warehouse != "local":
        return False
    if mutant != "fencing-ignored":
        return True
    return any(fault.role in (UNDO, CLEANUP) and fault.target == TO_THE_END for fault in schedule.faults)
