"""The settings of what brings runs on after something died: when it is looked for, and when it counts as lost."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field
from pydantic_settings import BaseSettings


class RecoverySettings(BaseSettings):
    """A part of `common.settings.Settings`, which says from where they are read."""

    #: How often runs are looked at and brought back on their way: by beat, and by whoever follows one standing still.
    reconcile_seconds: float = Field(10.0, ge=0.1)
    stalled_seconds: float = Field(60.0, gt=0)  #: without progress for so long, what was queued is sent again
    gate_late_seconds: float = Field(10.0, ge=0)  #: after its last date, a window whose gate was not called is gated
    start_late_seconds: float = Field(10.0, ge=0)  #: after it was opened, a run that nobody has started is started
    lease_grace_seconds: float = Field(30.0, ge=0)  #: what a date's lease outlives the job's hard time limit by
    gate_lease_seconds: float = Field(300.0, gt=0)
    max_deaths: int = Field(3, ge=1)  #: of workers on a date, of gates on a window, until it is given up

    @property
    def reconcile_period(self) -> timedelta:
        return timedelta(seconds=self.reconcile_seconds)

    @property
    def lease_grace(self) -> timedelta:
        return timedelta(seconds=self.lease_grace_seconds)
