"""What warehouse jobs were billed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The bytes that jobs were billed for, and the time for which they used the warehouse's slots."""

    bytes_billed: int = 0
    slot_millis: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            bytes_billed=self.bytes_billed + other.bytes_billed, slot_millis=self.slot_millis + other.slot_millis
        )

    def describe(self) -> str:
        """In words, e.g. `1.5 GiB, 40 s of slot time`."""
        return f"{format_bytes(self.bytes_billed)}, {self.slot_millis / 1000:,.0f} s of slot time"

    def as_json(self) -> dict[str, int]:
        return {"bytes": self.bytes_billed, "slot_millis": self.slot_millis}


def format_bytes(count: int) -> str:
    """The bytes in the largest unit that keeps the number above one, e.g. `1.5 GiB`."""
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"


def split_usage(usage: Usage, count: int) -> list[Usage]:
    """Split into so many nearly equal parts, which add up to the whole."""
    return [
        Usage(bytes_billed=bytes_billed, slot_millis=slot_millis)
        for bytes_billed, slot_millis in zip(
            _parts(usage.bytes_billed, count), _parts(usage.slot_millis, count), strict=True
        )
    ]


def _parts(total: int, count: int) -> Sequence[int]:
    return [total * (n + 1) // count - total * n // count for n in range(count)]
