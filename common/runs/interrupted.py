"""When a run counts as interrupted."""

from __future__ import annotations

from gated_backfill.common.ledger import Run
from gated_backfill.common.process.identity import is_dead


def is_interrupted(run: Run) -> bool:
    """Whether an active run cannot continue, because the process that owns it is dead."""
    return not run.has_ended and run.owner is not None and is_dead(run.owner)
