"""Whether published rows are still those of their checkpoints: told by quick fingerprints, or by reading the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date

from gated_backfill.common.ledger import Checkpoint
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.protocol import Warehouse


@dataclass(frozen=True, kw_only=True)
class TargetProofs:
    """How the rows of checkpointed dates compare with their checkpoints."""

    unchanged: frozenset[date] = frozenset()  #: the target has exactly the rows of the checkpoint
    read_days: tuple[date, ...] = ()  #: their rows were read, as the quick fingerprints did not tell enough
    #: Quick fingerprints of the dates whose rows were read and are unchanged, for the next comparison.
    renewed: Mapping[date, str] = field(default_factory=dict[date, str])


def compare_with_target(
    job: Job, checkpoints: Mapping[date, Checkpoint], warehouse: Warehouse, *, reads_all: bool = False
) -> TargetProofs:
    """Compare the target's rows with those that the checkpoints prove.

    A checkpoint records the quick fingerprint that its rows had when they were last read. While the partition still has
    it, its rows are the same. All other dates are read, and so is every date with `reads_all` or where reading is free.
    Raises like `Warehouse.matching_dates`.
    """
    target, date_column = TableName.parse(job.target.table), job.target.date_column
    # Before the rows are read: a quick fingerprint may only be older than what was compared.
    quick = warehouse.quick_fingerprints(target, date_column, list(checkpoints)) if warehouse.bills_reads else {}
    told = frozenset[date]()
    if not reads_all:
        told = frozenset(day for day in quick if quick[day] == checkpoints[day].target_quick)
    to_read = {day: checkpoint.checksum for day, checkpoint in checkpoints.items() if day not in told}
    matching = warehouse.matching_dates(target, date_column, to_read)
    return TargetProofs(
        unchanged=told | matching,
        read_days=tuple(sorted(to_read)),
        renewed={day: quick[day] for day in matching if day in quick and quick[day] != checkpoints[day].target_quick},
    )
