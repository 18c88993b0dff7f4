"""The versions of the jobs that this worker has loaded, told on request to `backfill doctor`.

A worker imports the jobs before it forks, so that all its processes have the same versions until it is restarted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import structlog
from celery.worker.control import inspect_command

from gated_backfill.common.broker.celery_app import JOB_VERSIONS
from gated_backfill.common.model.registry import load_jobs

log = structlog.get_logger()


@dataclass
class LoadedJobs:
    versions: dict[str, str] | None = None  #: by job; None in a worker that builds and judges no dates


loaded_jobs = LoadedJobs()


def preload_jobs() -> None:
    """Import every installed job. One that can't be loaded is tried again when a run needs it."""
    jobs, errors = load_jobs()
    loaded_jobs.versions = {job.name: job.version for job in jobs}
    for name, error in errors.items():
        log.warning("job_not_loaded", job=name, error_kind=error.kind, error=str(error))


@inspect_command(name=JOB_VERSIONS)
def job_versions(state: Any, **_: Any) -> dict[str, str] | None:
    """The version of each job that this worker has loaded; None from a worker that builds and judges no dates."""
    return loaded_jobs.versions
