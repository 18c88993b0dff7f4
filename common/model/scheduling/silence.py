"""Find who has stopped renewing a heartbeat, without comparing the clocks of hosts."""

from __future__ import annotations

from collections.abc import Mapping

SILENT_BEATS = 3  #: intervals without a renewal after which a process is lost


class SilenceWatch:
    """Watches counters that living processes increase, by the watcher's own monotonic clock.

    Only what this watcher has seen counts: when it could not look for a while, because it was suspended or the ledger
    was unavailable, it begins anew. So nobody is lost because of an outage that also kept them from renewing.
    """

    def __init__(self, interval_seconds: float) -> None:
        self._interval = interval_seconds
        self._seen: dict[str, tuple[int, float]] = {}  #: by process: its counter, and when that was first seen
        self._looked_at: float | None = None

    def find_silent(self, counters: Mapping[str, int], now: float) -> list[str]:
        """Return the processes whose counter has not changed for `SILENT_BEATS` intervals of looking."""
        if self._looked_at is None or now - self._looked_at > 2 * self._interval:
            self._seen = {}
        self._looked_at = now
        self._seen = {
            process: seen if (seen := self._seen.get(process)) is not None and seen[0] == counter else (counter, now)
            for process, counter in counters.items()
        }
        limit = SILENT_BEATS * self._interval
        return sorted(process for process, (_, since) in self._seen.items() if now - since >= limit)
