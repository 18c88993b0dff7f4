"""Whose a job's target is: a table is built by one job."""

from __future__ import annotations

from collections.abc import Sequence

from gated_backfill.common.errors import UserError
from gated_backfill.common.ledger import Ledger
from gated_backfill.common.ledger.stores.targets import TargetOwner, target_taken_error
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.registry import find_job, job_names


def check_target_free(job: Job, ledger: Ledger) -> str | None:
    """Raise `TargetTaken` when the job's target belongs to another job.

    Returns the name of a job that has given the target up, and which a run of this job may replace as its owner.
    """
    owner = ledger.targets.get_owner(job.target.table)
    if owner is None or owner.job == job.name:
        return None
    if not has_given_up(owner):
        raise target_taken_error(owner.target, owner.job, owner.run_id)
    return owner.job


def has_given_up(owner: TargetOwner) -> bool:
    """Whether the owner is not installed any more, or declares another target."""
    if owner.job not in job_names():
        return True
    try:
        return find_job(owner.job).target.table != owner.target
    except UserError:  # it can't be loaded here, so what it declares is unknown
        return False


def shared_targets(jobs: Sequence[Job]) -> dict[str, list[str]]:
    """The tables that several of the jobs declare as their target, with the names of these jobs."""
    jobs_by_target: dict[str, list[str]] = {}
    for job in jobs:
        jobs_by_target.setdefault(job.target.table, []).append(job.name)
    return {target: names for target, names in jobs_by_target.items() if len(names) > 1}


def describe_conflict(job: Job, ledger: Ledger | None, jobs: Sequence[Job]) -> str | None:
    """What prevents the job from building its target, or would: another job that owns it, or declares it as well."""
    owner = None if ledger is None else ledger.targets.get_owner(job.target.table)
    if owner is not None and owner.job != job.name and not has_given_up(owner):
        return str(target_taken_error(owner.target, owner.job, owner.run_id))
    other_jobs = [name for name in shared_targets(jobs).get(job.target.table, []) if name != job.name]
    if not other_jobs or (owner is not None and owner.job == job.name):
        return None
    return f"{job.target.table} is also the target of job {', '.join(other_jobs)}: it goes to the job that is run first"
