"""The jobs that a command or a maintenance task looks at when the user names none."""

from __future__ import annotations

from gated_backfill.common.errors import BackfillError
from gated_backfill.common.ledger.ledger import Ledger, open_ledger
from gated_backfill.common.model.registry import EXAMPLE_JOB, job_names


def jobs_in_use(ledger: Ledger | None) -> list[str]:
    """Names of the installed jobs; the shipped example only if the ledger has a run of it."""
    return [name for name in job_names() if name != EXAMPLE_JOB or (ledger is not None and ledger.runs.has_run(name))]


def open_existing_ledger(ledger_url: str) -> Ledger | None:
    """Open the ledger; None if it does not exist yet, has the tables of an older version, or can't be reached."""
    try:
        return open_ledger(ledger_url, create=False)
    except BackfillError:
        return None


def read_jobs_in_use(ledger_url: str) -> list[str]:
    """Names of the jobs in use, or the example if there is no other. The ledger is neither created nor migrated."""
    if job_names() == [EXAMPLE_JOB]:
        return [EXAMPLE_JOB]
    ledger = open_existing_ledger(ledger_url)
    if ledger is None:
        return jobs_in_use(None) or job_names()
    try:
        return jobs_in_use(ledger) or job_names()
    finally:
        ledger.close()
