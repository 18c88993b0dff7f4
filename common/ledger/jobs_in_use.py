"""The jobs that a command or a maintenance task checks when the user names none."""

from __future__ import annotations

from gated_backfill.common.ledger.ledger import Ledger
from gated_backfill.common.model.registry import EXAMPLE_JOB, job_names


def jobs_in_use(ledger: Ledger | None) -> list[str]:
    """Names of the installed jobs; the shipped example only if the ledger has a run of it."""
    return [name for name in job_names() if name != EXAMPLE_JOB or (ledger is not None and ledger.runs.has_run(name))]
