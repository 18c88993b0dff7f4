"""Dates of runs that are stale because the job has another version now. Sources and inputs are not looked at."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date

from gated_backfill.common.errors import UserError
from gated_backfill.common.ledger import Ledger, Run
from gated_backfill.common.model.job_versions import version_reason


def stale_dates_of_run(run: Run, ledger: Ledger) -> dict[date, str]:
    """The reason for each date of the run that is still checkpointed by it, and was built by another version."""
    versions = ledger.checkpoints.list_versions(run.id)
    installed = _installed_version(run.job) if versions else None
    if installed is None:
        return {}
    reasons = {day: version_reason(version, installed) for day, version in versions.items()}
    return {day: reason for day, reason in reasons.items() if reason is not None}


def count_stale_dates(runs: Collection[Run], ledger: Ledger) -> dict[str, int]:
    """Count these dates by run, for those runs that have any."""
    stale: dict[str, int] = {}
    for job in {run.job for run in runs}:
        installed = _installed_version(job)
        if installed is None:
            continue
        for run_id, counts in ledger.checkpoints.count_versions(job).items():
            count = sum(number for version, number in counts.items() if version != installed)
            if count:
                stale[run_id] = count
    return {run.id: stale[run.id] for run in runs if run.id in stale}


def _installed_version(job: str) -> str | None:
    """The version that is installed here; None for a job that is not, or can't be loaded."""
    from gated_backfill.common.model.registry import find_job  # loading a job is slow: only when it is needed

    try:
        return find_job(job).version
    except UserError:
        return None
