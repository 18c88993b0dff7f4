"""Check of the running workers: whether they have the versions of the jobs that are installed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import BrokerUnavailable
from gated_backfill.common.model.job import Job
from gated_backfill.producer.doctor.results import CheckResult, ok, warn

ANSWER_SECONDS = 1.0  #: how long the workers have to answer


def check_workers(settings: Settings, broker_url: str | None, jobs: Sequence[Job]) -> list[CheckResult]:
    """Compare the job versions of the running workers with those installed here; none without a lasting broker."""
    if broker_url is None:
        return []
    from gated_backfill.common.broker.celery_app import make_app
    from gated_backfill.common.broker.dispatcher import CeleryDispatcher

    app = make_app(settings, broker_url)
    try:
        versions = CeleryDispatcher(app).job_versions(timeout=ANSWER_SECONDS)
    except BrokerUnavailable as exc:
        return [warn("workers", f"not asked for their versions: {exc}")]
    finally:
        pool: Any = app.pool
        pool.force_close_all()
    return compare_versions(versions, jobs)


def compare_versions(versions: Mapping[str, Mapping[str, str] | None] | None, jobs: Sequence[Job]) -> list[CheckResult]:
    """One result for each job of which a worker has another version or none, or one for all.

    `versions` has, by worker, the version of each job that it could load, as `CeleryDispatcher.job_versions` returns
    them.
    """
    if versions is None:
        return [ok("workers", "no worker uses this broker")]
    if not versions:
        message = f"the workers did not answer within {ANSWER_SECONDS:g} s: their versions are not known"
        return [warn("workers", message, "check that they run, and restart those that hang")]
    building = {worker: by_job for worker, by_job in versions.items() if by_job is not None}
    if not building:
        return [ok("workers", "no worker builds dates")]
    results: list[CheckResult] = []
    for job in jobs:
        version_by_worker = {worker: by_job.get(job.name) for worker, by_job in sorted(building.items())}
        differing = {worker: version for worker, version in version_by_worker.items() if version != job.version}
        if differing:
            listed = ", ".join(f"{worker} has {version or 'none'}" for worker, version in differing.items())
            message = f"version {job.version} is installed here, but {listed}: these workers refuse its dates"
            results.append(warn(f"{job.name}: workers", message, "restart the workers, or install their version here"))
    versions_here = ", ".join(f"{job.name} {job.version}" for job in jobs)
    return results or [ok("workers", f"{len(building)} worker(s) have the versions installed here: {versions_here}")]
