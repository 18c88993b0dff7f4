"""Settings for recovery: how often to look for lost work, when work counts as lost, and the limits of workers."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

from gated_backfill.common.model.scheduling.silence import SILENT_BEATS

MIN_MEMORY_MB = 512  #: a process that has imported everything has 200 MB


class RecoverySettings(BaseSettings):
    """The part of `Settings` for recovery and for the limits of worker processes."""

    #: Interval at which beat, and `run` and `watch` while nothing moves, reconcile runs.
    reconcile_seconds: float = Field(10.0, ge=0.1)
    stalled_seconds: float = Field(60.0, gt=0)  #: time without progress until queued tasks count as lost
    gate_late_seconds: float = Field(10.0, ge=0)  #: time after a window's last date until its gate call counts as lost
    start_late_seconds: float = Field(10.0, ge=0)  #: time after a run's opening until its start counts as lost
    lease_grace_seconds: float = Field(30.0, ge=0)  #: time by which a date's lease exceeds the hard time limit
    #: Interval at which a worker renews its heartbeat. One that is silent for three intervals is lost.
    heartbeat_seconds: float = Field(2.0, ge=0.1, le=60)
    gate_lease_seconds: float = Field(300.0, gt=0)
    max_deaths: int = Field(3, ge=1)  #: of worker processes by a date, or of gates by a window, until it is abandoned
    max_losses: int = Field(10, ge=1)  #: of workers or gates for an unknown reason, until a date or window is abandoned

    #: Memory limit of a worker process for dates. A date that exceeds it fails. 0: no limit.
    worker_memory_mb: int = Field(2048, ge=0)
    worker_recycle_mb: int = Field(1500, ge=1)  #: memory after which a worker process is replaced
    worker_recycle_tasks: int = Field(2000, ge=1)  #: tasks after which a worker process is replaced

    worker_nice: int = Field(10, ge=0, le=19)  #: priority of worker processes, as of `nice`

    @field_validator("worker_memory_mb")
    @classmethod
    def _validate_memory(cls, megabytes: int) -> int:
        if 0 < megabytes < MIN_MEMORY_MB:
            raise ValueError(f"must be 0, for no limit, or at least {MIN_MEMORY_MB}")
        return megabytes

    @property
    def recycle_kib(self) -> int:
        """Memory in KiB after which a process is replaced: below the limit, so that its next date does not fail."""
        max_megabytes = self.worker_memory_mb * 3 // 4 if self.worker_memory_mb else self.worker_recycle_mb
        return min(self.worker_recycle_mb, max_megabytes) * 1024

    @property
    def silent_after(self) -> timedelta:
        """Time without a renewal after which a heartbeat is not that of a living process."""
        return timedelta(seconds=SILENT_BEATS * self.heartbeat_seconds)

    @property
    def reconcile_period(self) -> timedelta:
        return timedelta(seconds=self.reconcile_seconds)

    @property
    def lease_grace(self) -> timedelta:
        return timedelta(seconds=self.lease_grace_seconds)
