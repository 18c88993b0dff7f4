"""Release of a run whose process died or was stopped: checkpoint what it published, and free its other dates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    A gate that was believed dead, but only frozen, publishes nothing when it continues: see `fence_publications`. The
    warehouse is needed only if a gate has passed dates that are not checkpointed. If it does not answer then, the error
    is raised, the run stays active, and the same call completes it later. (Cancelling a run whose workers are alive
    never needs it: their gates end its windows.)
    """
    generations = ledger.windows.end_leases(run.id)
    candidates = ledger.dates.list_dates(run.id, states=[DateState.STAGED, DateState.PUBLISHED])
    fence_publications(run, candidates, generations, ledger.targets.list_targets(run.job), warehouse)
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


def fence_publications(
    run: Run,
    dates: Sequence[DateRow],
    generations: Mapping[int, int],
    targets: Sequence[TableName],
    warehouse: Warehouse,
) -> None:
    """Have the warehouse refuse what earlier gates may still publish of these dates.

    Whoever takes over a window, fails its dates or ends its run calls this before it reads what is published: it may
    have nothing to publish itself, and only the warehouse can stop a gate that was frozen, or a job whose answer was
    lost, in the middle of a publication. `generations` has, by window, that of the caller's lease.

    A gate records its verdicts durably before it publishes. So only dates that are staged with a passing verdict can be
    concerned. The first gate of a window finds none, and asks the warehouse nothing. Raises like `raise_fence`.
    """
    for number in sorted({row.window for row in dates if row.window is not None and _may_be_published_later(row)}):
        for target in targets:
            warehouse.raise_fence(target, run.id, window=number, generation=generations[number])


def _may_be_published_later(row: DateRow) -> bool:
    return row.state is DateState.STAGED and row.verdict is not None and row.verdict.is_passing


def find_still_published(rows: list[DateRow], job: Job, warehouse: Warehouse) -> list[date]:
    """Return the dates that the gate passed and whose target has exactly the staged rows."""
    passed = {row.day: row.checksum for row in rows if row.verdict is not None and row.verdict.is_passing}
    checksums = {day: checksum for day, checksum in passed.items() if checksum is not None}
    return sorted(warehouse.matching_dates(TableName.parse(job.target.table), job.target.date_column, checksums))
