"""The options of a run. They are stored with the run, so producer and workers use the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from gated_backfill.common.model.coverage import CoveragePolicy, Fallback
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.scheduling.limits import ConcurrencyLimits
from gated_backfill.common.model.scheduling.queues import DATES_QUEUE


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How the dates of a run are built and judged."""

    fallback: Fallback
    complete_ratio: float
    accept_ratio: float
    fallback_below: float | None = None  #: see `CoveragePolicy.fallback_threshold`
    window: int  #: dates per window
    in_flight: int  #: windows open at once
    forced_because: str | None = None
    calendar: bool = False  #: the calendar existed when the run was planned, so it must exist later
    max_in_flight: int | None = None  #: dates in flight at once, of this run
    job_max_in_flight: int | None = None  #: dates in flight at once, of all active runs of its job together
    queue: str = DATES_QUEUE  #: receives the run's dates
    dates_per_task: int | None = None  #: None: about a second of work
    rebuilt: bool = False  #: nothing was built: its checkpoints were made again after the ledger was lost
    staging: str | None = None  #: identity of the staging that it was launched with; None: not compared

    @classmethod
    def for_job(
        cls,
        job: Job,
        *,
        window: int,
        in_flight: int,
        fallback: Fallback | None,
        forced_because: str | None,
        calendar: bool = False,
        max_in_flight: int | None = None,
        job_max_in_flight: int | None = None,
        dates_per_task: int | None = None,
        rebuilt: bool = False,
    ) -> RunOptions:
        """Return the options of a new run of the job. The window size is reduced to what the limits on dates allow."""
        limits = ConcurrencyLimits(
            windows=in_flight, dates=max_in_flight, job_dates=lowest_limit(job.max_in_flight, job_max_in_flight)
        )
        return cls(
            fallback=fallback or job.fallback,
            complete_ratio=job.policy.complete_ratio,
            accept_ratio=job.policy.accept_ratio,
            fallback_below=job.policy.fallback_below,
            window=limits.window_size(window),
            in_flight=in_flight,
            forced_because=forced_because,
            calendar=calendar,
            max_in_flight=limits.dates,
            job_max_in_flight=limits.job_dates,
            dates_per_task=dates_per_task,
            rebuilt=rebuilt,
        )

    @cached_property
    def policy(self) -> CoveragePolicy:
        return CoveragePolicy(
            complete_ratio=self.complete_ratio, accept_ratio=self.accept_ratio, fallback_below=self.fallback_below
        )

    @property
    def limits(self) -> ConcurrencyLimits:
        return ConcurrencyLimits(windows=self.in_flight, dates=self.max_in_flight, job_dates=self.job_max_in_flight)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"fallback": self.fallback.value}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> RunOptions:
        values: dict[str, Any] = {name: stored[name] for name in cls.__dataclass_fields__ if name in stored}
        values["fallback"] = Fallback(stored["fallback"])
        return cls(**values)


def lowest_limit(*limits: int | None) -> int | None:
    """Return the lowest of the limits that are set, or None."""
    return min((limit for limit in limits if limit is not None), default=None)
