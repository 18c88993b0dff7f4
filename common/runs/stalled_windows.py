"""Windows that do not move: no living gate works on them, or no living worker builds their dates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from functools import cache

from gated_backfill.common.config.recovery import RecoverySettings
from gated_backfill.common.ledger import Ledger
from gated_backfill.common.ledger.stores.current import DateClaim, WindowInFlight
from gated_backfill.common.ledger.stores.heartbeats import Heartbeat
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.identity import is_dead


class Stall(Enum):
    """Why a window does not move."""

    GATE = "gate"  #: its gate is silent, or none has taken it although its dates are ready
    DATES = "dates"  #: no living worker has a date of it, and none was claimed or has ended for a while


@dataclass(frozen=True, kw_only=True)
class StalledWindow:
    window: WindowInFlight
    stall: Stall


def find_stall(
    window: WindowInFlight, now: datetime, *, stalled_after: timedelta, is_gone: Callable[[str], bool]
) -> Stall | None:
    """Return why a window does not move; None if it does, or may still do.

    `stalled_after`: the time without progress from which a window that nobody has claimed counts. `is_gone` tells
    whether a process is dead, or silent for longer than a living one. Sending a date again is no progress.
    """

    def is_alive(claim: DateClaim) -> bool:
        return claim.until >= now and not is_gone(claim.owner)

    if window.gate is not None:
        return None if is_alive(window.gate) else Stall.GATE
    is_built = any(map(is_alive, window.claims)) and not (window.run_owner is not None and is_gone(window.run_owner))
    if is_built or now - window.moved_at <= stalled_after:
        return None
    return Stall.GATE if window.waits_for_gate else Stall.DATES


def list_stalled_windows(
    ledger: Ledger, settings: RecoverySettings, running: Sequence[Heartbeat]
) -> list[StalledWindow]:
    """Return the windows of all active runs that do not move now. `running`: the processes that have not ended."""
    windows = ledger.current.list_windows_in_flight()
    is_gone = _liveness_check(ledger, settings.silent_after, running)
    stalled_after, now = timedelta(seconds=settings.stalled_seconds), utcnow()
    stalls = [(window, find_stall(window, now, stalled_after=stalled_after, is_gone=is_gone)) for window in windows]
    return [StalledWindow(window=window, stall=stall) for window, stall in stalls if stall is not None]


def _liveness_check(ledger: Ledger, silent_after: timedelta, running: Sequence[Heartbeat]) -> Callable[[str], bool]:
    """Return the check whether a process is gone. Those without a heartbeat, as of a command, are known on their host.

    A worker's process that fell silent may not be recorded as lost, if no other worker is left to notice it.
    """
    silent = {process.owner: process.is_silent(silent_after) for process in running}

    @cache
    def is_gone(owner: str) -> bool:
        if owner not in silent:
            return ledger.heartbeats.is_lost(owner)
        return silent[owner] or is_dead(owner)

    return is_gone
