"""The settings of what brings runs on after something died: when it is looked for, and when it counts as lost."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

MIN_MEMORY_MB = 512  #: a process that has imported everything has 200 MB


class RecoverySettings(BaseSettings):
    """A part of `gated_backfill.common.config.settings.Settings`, which says from where they are read."""

    #: How often runs are looked at and brought back on their way: by beat, and by whoever follows one standing still.
    reconcile_seconds: float = Field(10.0, ge=0.1)
    stalled_seconds: float = Field(60.0, gt=0)  #: without progress for so long, what was queued is sent again
    gate_late_seconds: float = Field(10.0, ge=0)  #: after its last date, a window whose gate was not called is gated
    start_late_seconds: float = Field(10.0, ge=0)  #: after it was opened, a run that nobody has started is started
    lease_grace_seconds: float = Field(30.0, ge=0)  #: what a date's lease outlives the job's hard time limit by
    gate_lease_seconds: float = Field(300.0, gt=0)
    max_deaths: int = Field(3, ge=1)  #: of workers on a date, of gates on a window, until it is given up

    #: Memory that a process of a worker for dates may use: a date that needs more is failed. 0: no limit.
    worker_memory_mb: int = Field(2048, ge=0)
    worker_recycle_mb: int = Field(1500, ge=1)  #: a process of a worker that has used more is replaced after its task
    worker_recycle_tasks: int = Field(2000, ge=1)  #: likewise, after so many tasks

    worker_nice: int = Field(10, ge=0, le=19)  #: how far the processes of a worker step back for others, as by `nice`

    @field_validator("worker_memory_mb")
    @classmethod
    def _enough_memory(cls, megabytes: int) -> int:
        if 0 < megabytes < MIN_MEMORY_MB:
            raise ValueError(f"must be 0, for no limit, or at least {MIN_MEMORY_MB}")
        return megabytes

    @property
    def recycle_kib(self) -> int:
        """Well below the limit: a process that keeps much of what it once used would fail its next dates for it."""
        most = self.worker_memory_mb * 3 // 4 if self.worker_memory_mb else self.worker_recycle_mb
        return min(self.worker_recycle_mb, most) * 1024

    @property
    def reconcile_period(self) -> timedelta:
        return timedelta(seconds=self.reconcile_seconds)

    @property
    def lease_grace(self) -> timedelta:
        return timedelta(seconds=self.lease_grace_seconds)
