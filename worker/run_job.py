"""The version of a run's job in this process: only in the version that the run needs may it build or judge dates."""

from __future__ import annotations

import socket

from gated_backfill.common.errors import UserError
from gated_backfill.common.ledger import Run
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.job_versions import VersionMismatch
from gated_backfill.common.model.scheduling.retry import RetryPolicy

MAX_VERSION_RETRIES = 2  #: a process keeps the version that it has loaded, so only another process can help


class WrongJobVersion(UserError):
    """This process has loaded another version of the job than the run needs."""


def check_job_version(run: Run, job: Job, role: str) -> None:
    """Raise `WrongJobVersion` unless the job has the version that the run needs. `role`: `worker` or `gate`."""
    if job.version == run.job_version:
        return
    mismatch = VersionMismatch(
        process=f"the {role} on {socket.gethostname()}",
        job=job.name,
        run=run.id,
        loaded=job.version,
        needed=run.job_version,
    )
    raise WrongJobVersion(mismatch.describe())


def can_ask_another(exc: UserError, policy: RetryPolicy, retries: int) -> bool:
    """Whether another process may be asked for the job that this one lacks, after `retries` earlier ones."""
    if isinstance(exc, WrongJobVersion) and retries >= MAX_VERSION_RETRIES:
        return False
    return policy.can_retry(retries)


def describe_missing_job(exc: UserError, role: str) -> str:
    """The reason with which a date fails whose job this process lacks."""
    if isinstance(exc, WrongJobVersion):
        return str(exc)
    return f"the {role} on {socket.gethostname()} can't load the job: {exc}"
