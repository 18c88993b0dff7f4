"""Closing a run whose process is gone, or was told to stop, so that nothing it proved is lost or doubted."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from gated_backfill.common.ledger import DateRow, DateState, Ledger, Run
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.storage.staging import Staging
from gated_backfill.common.warehouse.protocol import Warehouse

SYSTEM_ACTOR = "backfill"  #: who does what nobody has asked for
ITS_PROCESS_DIED = "its process died"


@dataclass(frozen=True, kw_only=True)
class ReleasedRun:
    """What a closed run had reached."""

    run: Run
    checkpointed: int
    adopted: tuple[date, ...]  #: published by its gate but not yet checkpointed: proven now, not rebuilt
    unfinished: int  #: dates that were not done, which are free


def release_run(
    run: Run, job: Job, ledger: Ledger, warehouse: Warehouse, staging: Staging, *, by: str, reason: str
) -> ReleasedRun:
    """End a run as cancelled, and with it every date that is not done. Its workers must be gone or told to stop.

    A date whose target already holds exactly the rows that its gate passed is checkpointed: the gate died between
    publish and checkpoint.
    """
    candidates = ledger.dates.list_dates(run.id, states=[DateState.STAGED, DateState.PUBLISHED])
    adopted = find_still_published(candidates, job, warehouse)
    ledger.dates.move_dates(run.id, adopted, expect=DateState.STAGED, to=DateState.PUBLISHED)
    proven = ledger.checkpoints.write(run.id, adopted)
    ledger.orders.abandon_run(run.id, by=by, reason=reason)
    staging.delete(run.id)
    progress = ledger.runs.get_progress(run.id)
    return ReleasedRun(
        run=progress.run,
        checkpointed=progress.count(DateState.CHECKPOINTED),
        adopted=tuple(proven),
        unfinished=progress.total - progress.ended + progress.count(DateState.CANCELLED),
    )


def find_still_published(rows: list[DateRow], job: Job, warehouse: Warehouse) -> list[date]:
    """The dates that the gate passed and whose target holds exactly the staged bytes now."""
    passed = {row.day: row.checksum for row in rows if row.verdict is not None and row.verdict.is_passing}
    known = {day: checksum for day, checksum in passed.items() if checksum is not None}
    return sorted(warehouse.matching_dates(TableName.parse(job.target.table), job.target.date_column, known))
