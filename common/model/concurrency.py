"""How much may be in flight: which windows of a run may be opened now. Pure.

A date is in flight from when its window is opened until it has its end: sent, being processed, or waiting for the gate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ConcurrencyLimits:
    """What one run may have in flight, None for as many dates as its windows hold."""

    windows: int  #: of the run
    dates: int | None = None  #: of the run
    job_dates: int | None = None  #: of all active runs of its job together

    def window_size(self, asked: int) -> int:
        """How many dates a window may have: two fit under the caps, so that workers go on while a gate works."""
        return min([asked, *(max(cap // 2, 1) for cap in (self.dates, self.job_dates) if cap is not None)])


@dataclass(frozen=True, kw_only=True)
class InFlight:
    """What is in flight when a run asks for more."""

    windows: int  #: of the run
    dates: int  #: of the run
    job_dates: int = 0  #: of all active runs of its job, this one included


def windows_to_open(pending: Mapping[int, int], load: InFlight, caps: ConcurrencyLimits) -> list[int]:
    """The windows to open now, of those not opened yet (with their dates), in order and skipping none."""
    opened: list[int] = []
    dates = 0
    for number, size in sorted(pending.items()):
        dates += size
        if (
            load.windows + len(opened) >= caps.windows
            or _exceeds(load.dates + dates, caps.dates)
            or _exceeds(load.job_dates + dates, caps.job_dates)
        ):
            break
        opened.append(number)
    return opened


def is_next_in_line(run: str, waiting: Sequence[str]) -> bool:
    """Whether the run need not give way to others of its job.

    Those `waiting` have windows left and nothing in flight at all, in the order of how long that is so. Without that,
    a run of small windows would take what another's larger ones wait for, for ever.
    """
    return not waiting or waiting[0] == run


def _exceeds(dates: int, cap: int | None) -> bool:
    return cap is not None and dates > cap
