"""Stale dates of runs: checkpointed ones whose job's version or rules, sources or inputs have changed since.

Imports for loading jobs and reading warehouses take longer than most commands, so they are inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING

from gated_backfill.common.errors import BackfillError, UserError
from gated_backfill.common.ledger import Checkpoint, Ledger, Run

if TYPE_CHECKING:
    from gated_backfill.common.model.job import Job
    from gated_backfill.common.warehouse.protocol import Warehouse

BILLED = "reading them is billed; `backfill coverage` compares them"


@dataclass(frozen=True, kw_only=True)
class StaleDates:
    """The stale dates of some runs."""

    reasons: Mapping[str, Mapping[date, str]] = field(default_factory=dict[str, Mapping[date, str]])  #: by run
    not_compared: Mapping[str, str] = field(default_factory=dict[str, str])  #: by job: why only versions were compared

    def of(self, run: Run) -> Mapping[date, str]:
        return self.reasons.get(run.id, {})


def find_stale_dates_of_runs(
    runs: Collection[Run], ledger: Ledger, open_warehouse: Callable[[], Warehouse]
) -> StaleDates:
    """Find the dates that are still checkpointed by one of the runs, and stale. Runs that go on have none.

    Sources and inputs are compared unless reading them is billed, or fails. A job that is not installed here is left
    out. `open_warehouse` is called when there is something to compare.
    """
    checkpoints: dict[str, list[Checkpoint]] = {}
    for checkpoint in ledger.checkpoints.list_checkpoints_of_runs([run for run in runs if run.has_ended]):
        checkpoints.setdefault(checkpoint.job, []).append(checkpoint)
    reasons: dict[str, dict[date, str]] = {}
    not_compared: dict[str, str] = {}
    for name, of_job in checkpoints.items():
        job = installed_job(name)
        if job is None:
            continue
        by_day, problem = _reasons(job, {checkpoint.day: checkpoint for checkpoint in of_job}, open_warehouse)
        if problem is not None:
            not_compared[name] = problem
        for checkpoint in of_job:
            if reason := by_day.get(checkpoint.day):
                reasons.setdefault(checkpoint.run_id, {})[checkpoint.day] = reason
    return StaleDates(reasons=reasons, not_compared=not_compared)


def _reasons(
    job: Job, checkpoints: Mapping[date, Checkpoint], open_warehouse: Callable[[], Warehouse]
) -> tuple[Mapping[date, str], str | None]:
    """Return the reasons of the stale dates, and why sources and inputs were not compared."""
    from gated_backfill.common.audit.staleness import find_other_versions, find_stale_dates
    from gated_backfill.common.warehouse.table_checks import check_tables

    try:
        warehouse = open_warehouse()
        if warehouse.bills_reads:
            return find_other_versions(job, checkpoints), BILLED
        check_tables(warehouse, job)  # a table that is not here is no changed one
        staleness = find_stale_dates(job, checkpoints, warehouse)
    except BackfillError as exc:
        return find_other_versions(job, checkpoints), str(exc)
    unrecorded = f"{staleness.without_inputs} checkpoint(s) by an earlier version of this tool record no inputs"
    return staleness.reasons, unrecorded if staleness.without_inputs else None


def installed_job(name: str) -> Job | None:
    """Return the job; None for one that is not installed here, or can't be loaded."""
    from gated_backfill.common.model.registry import find_job

    try:
        return find_job(name)
    except UserError:
        return None
