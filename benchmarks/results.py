"""Measurements as records and as a table."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results.json"
MACHINE = Path(__file__).parent / "machine.json"


@dataclass(frozen=True, kw_only=True)
class Measured:
    name: str
    dates: int
    dates_per_task: int | str | None
    seconds: float
    peak_mb: float | None = None  #: resident memory of all processes together
    broker_peak_mb: float | None = None
    ratio_to_bare_chord: float | None = None  #: seconds per date / those of the bare chord over the same dates
    more: dict[str, float] = field(default_factory=dict[str, float])

    def record(self) -> dict[str, Any]:
        fields = asdict(self)
        more = fields.pop("more")
        fields["seconds_per_date"] = self.seconds / self.dates
        return {name: _rounded(value) for name, value in (fields | more).items()}


def compared_with(measured: Measured, chord: Measured) -> Measured:
    """Add the ratio to the bare chord of the same round."""
    ratio = measured.seconds / measured.dates / (chord.seconds / chord.dates)
    more = {**measured.more, "bare_chord_seconds": chord.seconds}
    return replace(measured, ratio_to_bare_chord=ratio, more=more)


def median(rounds: Sequence[Measured]) -> Measured:
    """Return the median of a contestant's rounds (an odd number), with the lowest and highest result.

    A result is the ratio to the bare chord of the same round, or the seconds of a contestant without a ratio.
    """

    def result(measured: Measured) -> float:
        return measured.seconds / measured.more.get("bare_chord_seconds", 1.0)

    ordered = sorted(rounds, key=result)
    middle = ordered[len(ordered) // 2]
    spread = {"rounds": len(ordered), "lowest": result(ordered[0]), "highest": result(ordered[-1])}
    return replace(middle, more={**middle.more, **spread})


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def machine() -> dict[str, Any]:
    return {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "measured_at": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def write(measured: list[Measured]) -> None:
    records = ",\n".join(f" {json.dumps(result.record())}" for result in measured)  # a line each, to compare by
    RESULTS.write_text(f"[\n{records}\n]\n")
    MACHINE.write_text(json.dumps(machine(), indent=1) + "\n")
