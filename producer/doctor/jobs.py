"""Checks of the jobs: which are in use, whether they load, and their time limits."""

from __future__ import annotations

from collections.abc import Sequence

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.ledger.jobs_in_use import jobs_in_use, open_existing_ledger, read_jobs_in_use
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.registry import job_names, load_jobs
from gated_backfill.common.runs.targets import describe_conflict
from gated_backfill.producer.doctor.results import CheckResult, fail, ok


def jobs_to_check(settings: Settings, *, ledger_is_usable: bool) -> list[str]:
    """Return the names of the jobs in use, or the shipped example if there is no other. The ledger stays unchanged."""
    return read_jobs_in_use(settings.ledger_url) if ledger_is_usable else jobs_in_use(None) or job_names()


def load_jobs_to_check(names: Sequence[str]) -> tuple[list[Job], list[CheckResult]]:
    """Load the jobs. A job that can't be loaded becomes a failed check."""
    jobs, errors = load_jobs(names)
    next_step = "correct the job's module, or install its package again"
    return jobs, [fail(f"{name}: job", error, next_step) for name, error in errors.items()]


def check_shared_targets(settings: Settings, jobs: Sequence[Job], *, ledger_is_usable: bool) -> list[CheckResult]:
    """Check that no job declares a target that belongs to another installed job. The ledger is not migrated."""
    ledger = open_existing_ledger(settings.ledger_url) if ledger_is_usable else None
    installed, _ = load_jobs()
    next_step = "declare another target in one of the jobs, or uninstall one"
    try:
        conflicts = {job.name: describe_conflict(job, ledger, installed) for job in jobs}
    finally:
        if ledger is not None:
            ledger.close()
    return [fail(f"{name}: shared target", conflict, next_step) for name, conflict in conflicts.items() if conflict]


def check_time_limits(settings: Settings, jobs: Sequence[Job]) -> list[CheckResult]:
    """Check that each job's time limit is below the time after which the broker delivers a task again."""
    visible_seconds = settings.visibility_seconds
    failures = [
        fail(
            f"{job.name}: time limit",
            f"a date may take {job.time_limit_seconds} s, and the broker delivers it again after {visible_seconds} s",
            f"set BACKFILL_VISIBILITY_SECONDS to more than {job.time_limit_seconds}, here and for the workers",
        )
        for job in jobs
        if visible_seconds <= job.time_limit_seconds
    ]
    if failures or not jobs:
        return failures
    longest = max(job.time_limit_seconds for job in jobs)
    message = f"BACKFILL_VISIBILITY_SECONDS {visible_seconds} is more than any date may take ({longest} s)"
    return [ok("time limits", message)]
