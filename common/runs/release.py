"""Release of a run whose process died or was stopped: checkpoint what it published, and free its other dates."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from gated_backfill.common.ledger import DateRow, DateState, Ledger, Run
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.storage.staging import Staging
from gated_backfill.common.warehouse.protocol import Warehouse

SYSTEM_ACTOR = "backfill"  #: recorded as the actor when no user ended the run
ITS_PROCESS_DIED = "its process died"


@dataclass(frozen=True, kw_only=True)
class ReleasedRun:
    """The result of releasing a run."""

    run: Run
    checkpointed: int
    unfinished: int  #: dates not finished, which another run can take now


def release_run(
    run: Run, job: Job, ledger: Ledger, warehouse: Warehouse, staging: Staging, *, by: str, reason: str
) -> ReleasedRun:
    """End a run as cancelled, with every date that is not finished. Its workers must be dead or have been stopped.

    A date whose target has exactly the rows that the gate passed is checkpointed: the gate died between publish and
    checkpoint. One whose published rows were changed since fails. `by` and `reason` are recorded with the run's end.
    """
    candidates = ledger.dates.list_dates(run.id, states=[DateState.STAGED, DateState.PUBLISHED])
    published_days = find_still_published(candidates, job, warehouse)
    ledger.dates.move_dates(run.id, published_days, expect=DateState.STAGED, to=DateState.PUBLISHED)
    ledger.checkpoints.write(run.id, published_days)
    ledger.orders.abandon_run(run.id, by=by, reason=reason)
    staging.delete(run.id)
    progress = ledger.runs.get_progress(run.id)
    changed = [row.day for row in candidates if row.state is DateState.PUBLISHED and row.day not in published_days]
    return ReleasedRun(
        run=progress.run,
        checkpointed=progress.count(DateState.CHECKPOINTED),
        unfinished=len(changed) + progress.count(DateState.CANCELLED),
    )


def find_still_published(rows: list[DateRow], job: Job, warehouse: Warehouse) -> list[date]:
    """Return the dates that the gate passed and whose target has exactly the staged rows."""
    passed = {row.day: row.checksum for row in rows if row.verdict is not None and row.verdict.is_passing}
    checksums = {day: checksum for day, checksum in passed.items() if checksum is not None}
    return sorted(warehouse.matching_dates(TableName.parse(job.target.table), job.target.date_column, checksums))
