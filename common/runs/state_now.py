"""The state now of jobs and workers, for metrics and reports: what is not complete, how fresh it is, and who works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from gated_backfill.common.config.recovery import RecoverySettings
from gated_backfill.common.ledger import Ledger
from gated_backfill.common.ledger.states import OutstandingState
from gated_backfill.common.ledger.stores.current import OutstandingCount, VersionCount
from gated_backfill.common.ledger.stores.heartbeats import Heartbeat
from gated_backfill.common.model.scheduling.queues import QUEUES
from gated_backfill.common.runs.stale_dates import installed_job
from gated_backfill.common.runs.stalled_windows import StalledWindow, list_stalled_windows


@dataclass(frozen=True, kw_only=True)
class JobNow:
    """The dates of one job, as they are now."""

    job: str
    outstanding: Sequence[OutstandingCount]
    checkpointed: int
    newest: date | None  #: the newest checkpointed date
    other_versions: int  #: checkpointed dates that another version of the job has built: they are stale
    flagged: Mapping[str, int]  #: by finding of an audit

    def count(self, state: OutstandingState, *, has_checkpoint: bool | None = None) -> int:
        """Count the outstanding dates in the state; None counts those with and without an earlier checkpoint."""
        return sum(
            one.dates for one in self.outstanding if one.state is state and has_checkpoint in (None, one.has_checkpoint)
        )


@dataclass(frozen=True, kw_only=True)
class StateNow:
    """What is true now, whatever runs did before."""

    jobs: Sequence[JobNow]  #: those that have a run, sorted
    workers: Sequence[Heartbeat]  #: the workers that renew their heartbeat
    stalled: Sequence[StalledWindow]

    @property
    def consumers(self) -> dict[str, int]:
        """The number of living workers that take tasks from each queue, without those of one run's own stack."""
        consumed = [queue for worker in self.workers if not worker.is_embedded for queue in worker.consumed or ()]
        return {queue: consumed.count(queue) for queue in QUEUES}


def read_state_now(ledger: Ledger, settings: RecoverySettings, *, job: str | None = None) -> StateNow:
    """Read the state of all jobs, or of one. Takes a few grouped queries, for any number of runs.

    Stale dates are found by the job's version alone: comparing sources and inputs would read them at each call. The
    version is that of the job as it is installed here, else of the latest run.
    """
    outstanding, by_version = ledger.current.count_outstanding(job=job), ledger.current.count_by_version(job=job)
    flagged, latest_versions = ledger.gauges.flagged_counts(), ledger.current.latest_versions()
    running = ledger.heartbeats.list_running()
    return StateNow(
        jobs=[
            _job_now(
                name,
                latest_versions[name],
                [count for count in outstanding if count.job == name],
                [count for count in by_version if count.job == name],
                {finding: dates for (of_job, finding), dates in flagged.items() if of_job == name},
            )
            for name in sorted(latest_versions)
            if job in (None, name)
        ],
        workers=[worker for worker in running if worker.is_worker and not worker.is_silent(settings.silent_after)],
        stalled=[one for one in list_stalled_windows(ledger, settings, running) if job in (None, one.window.job)],
    )


def _job_now(
    name: str,
    latest_version: str,
    outstanding: Sequence[OutstandingCount],
    by_version: Sequence[VersionCount],
    flagged: Mapping[str, int],
) -> JobNow:
    installed = installed_job(name)
    version = latest_version if installed is None else installed.version
    return JobNow(
        job=name,
        outstanding=tuple(outstanding),
        checkpointed=sum(count.dates for count in by_version),
        newest=max((count.newest for count in by_version), default=None),
        other_versions=sum(count.dates for count in by_version if count.job_version != version),
        flagged=flagged,
    )
