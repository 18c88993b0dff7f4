"""Check that a job's calendar has not disappeared: without it, a lost expectation looks like a day off."""

from __future__ import annotations

from gated_backfill.common.errors import TableNotFound
from gated_backfill.common.ledger import Ledger
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.protocol import Warehouse


def check_calendar_not_lost(job: Job, warehouse: Warehouse, ledger: Ledger) -> None:
    """Raise `TableNotFound` if the job's calendar does not exist, and did when an earlier run was planned."""
    calendar = job.expectation.calendar
    if calendar is None or warehouse.describe(TableName.parse(calendar.table)) is not None:
        return
    run = ledger.runs.find_latest_run_with_calendar(job.name)
    if run is not None:
        raise TableNotFound(
            f"the calendar was there when run {run.id} was planned and is gone: restore it, or take the calendar out "
            "of the job",
            table=calendar.table,
        )
