"""The options of a run, as they are stored with it: producer and workers read the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from common.coverage import CoveragePolicy, Fallback
from common.job import Job


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How the dates of a run are built and judged."""

    fallback: Fallback
    complete_ratio: float
    accept_ratio: float
    window: int  #: dates per window
    in_flight: int  #: windows open at once
    forced_because: str | None = None
    calendar: bool = False  #: there was a calendar when the run was planned: it must still be there

    @classmethod
    def of(
        cls,
        job: Job,
        *,
        window: int,
        in_flight: int,
        fallback: Fallback | None,
        because: str | None,
        calendar: bool = False,
    ) -> RunOptions:
        return cls(
            fallback=fallback or job.fallback,
            complete_ratio=job.policy.complete_ratio,
            accept_ratio=job.policy.accept_ratio,
            window=window,
            in_flight=in_flight,
            forced_because=because,
            calendar=calendar,
        )

    @property
    def policy(self) -> CoveragePolicy:
        return CoveragePolicy(complete_ratio=self.complete_ratio, accept_ratio=self.accept_ratio)

    def stored(self) -> dict[str, Any]:
        return asdict(self) | {"fallback": self.fallback.value}

    @classmethod
    def restored(cls, stored: Mapping[str, Any]) -> RunOptions:
        values: dict[str, Any] = {name: stored[name] for name in cls.__dataclass_fields__ if name in stored}
        values["fallback"] = Fallback(stored["fallback"])
        return cls(**values)
