"""Checks of this machine's clock against those of the broker, the ledger and the warehouse."""

from __future__ import annotations

from collections.abc import Mapping

from gated_backfill.common.process.clock import ClockReading
from gated_backfill.producer.doctor.results import CheckResult, PlaceCheck, fail, ok, warn

MAX_OK_SKEW_SECONDS = 5.0
MAX_WARN_SKEW_SECONDS = 60.0


def check_clocks(places: Mapping[str, PlaceCheck]) -> list[CheckResult]:
    """Compare this machine's clock with the clock of each place that has one."""
    results = [check_clock(name, place.clock) for name, place in places.items() if place.clock is not None]
    return results or [ok("clock", "no clock but this machine's is in use")]


def check_clock(place: str, clock: ClockReading) -> CheckResult:
    """Compare this machine's clock with the clock of `place`."""
    check, skew = f"clock of {place}", clock.skew_seconds
    difference = f"{skew:.1f} s or more from this machine's" if skew else "agrees with this machine's"
    message = f"{difference}: it said {clock.other_clock:%Y-%m-%d %H:%M:%S} UTC after {clock.round_trip_seconds:.3f} s"
    next_step = "synchronize the clocks by NTP: leases and schedules depend on them"
    if skew > MAX_WARN_SKEW_SECONDS:
        return fail(check, message, next_step)
    return warn(check, message, next_step) if skew > MAX_OK_SKEW_SECONDS else ok(check, message)
