"""Limit how much is in flight: decide which windows of a run may be opened now. Pure.

A date is in flight from the opening of its window until its final state: queued, processing, or waiting for the gate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ConcurrencyLimits:
    """The limits of one run. None: no limit on dates, only on windows."""

    windows: int  #: of the run
    dates: int | None = None  #: of the run
    job_dates: int | None = None  #: of all active runs of its job together

    def window_size(self, asked: int) -> int:
        """Limit the window size so that two windows fit: workers stay busy while one is gated."""
        return min([asked, *(max(cap // 2, 1) for cap in (self.dates, self.job_dates) if cap is not None)])


@dataclass(frozen=True, kw_only=True)
class InFlight:
    """What is in flight when a run wants to open windows."""

    windows: int  #: of the run
    dates: int  #: of the run
    job_dates: int = 0  #: of all active runs of its job, this one included


def windows_to_open(pending: Mapping[int, int], load: InFlight, caps: ConcurrencyLimits) -> list[int]:
    """Return the windows to open now, in order. `pending` maps unopened windows to their number of dates."""
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
    """Return whether the run may open windows before the other runs of its job.

    `waiting` lists the job's runs that have windows left and nothing in flight, the longest waiting first. Without this
    rule, a run of small windows would starve a run of larger ones.
    """
    return not waiting or waiting[0] == run


def _exceeds(dates: int, cap: int | None) -> bool:
    return cap is not None and dates > cap
