"""Measurements as records, kept by the suite that measured them."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

Report = Callable[[str, "Sequence[Measured]"], None]  #: shows what was measured in a round
SuiteResult = Mapping[str, Any]  #: the machine, and the records
RESULTS = Path(__file__).parent / "results.json"


@dataclass(frozen=True, kw_only=True)
class Measured:
    name: str
    dates: int
    dates_per_task: int | str | None
    seconds: float
    peak_mb: float | None = None  #: resident memory of all processes together
    broker_peak_mb: float | None = None
    ratio: float | None = None  #: seconds per date / those of the contestant's reference over the same dates
    more: dict[str, float] = field(default_factory=dict[str, float])

    def record(self) -> dict[str, Any]:
        fields = asdict(self)
        more = fields.pop("more")
        fields["seconds_per_date"] = self.seconds / self.dates
        return {name: _rounded(value) for name, value in (fields | more).items()}


def compared_with(measured: Measured, reference: Measured) -> Measured:
    """Add the ratio of the seconds per date to those of the reference of the same round."""
    ratio = measured.seconds / measured.dates / (reference.seconds / reference.dates)
    return replace(measured, ratio=ratio, more={**measured.more, "reference_seconds": reference.seconds})


def median(rounds: Sequence[Measured]) -> Measured:
    """Return the median of a contestant's rounds (an odd number), with the lowest and highest result.

    A result is the ratio to the reference of the same round, or the seconds of a contestant without a reference.
    """

    def result(measured: Measured) -> float:
        return measured.seconds / measured.more.get("reference_seconds", 1.0)

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


def read() -> dict[str, SuiteResult]:
    """Return what is kept of each suite."""
    return json.loads(RESULTS.read_text())


def of_suite(measured: Iterable[Measured]) -> SuiteResult:
    """Return the records of a suite that was measured now, on this machine."""
    return {"machine": machine(), "records": [result.record() for result in measured]}


def write(suite: str, result: SuiteResult) -> None:
    """Replace the records of the suite."""
    RESULTS.write_text(_text(read() | {suite: result}))


def _text(results: Mapping[str, SuiteResult]) -> str:
    """JSON with a line for each record, to compare by."""
    suites: list[str] = []
    for suite, result in results.items():
        records = ",\n".join(f"  {json.dumps(record)}" for record in result["records"])
        suites.append(f' "{suite}": {{"machine": {json.dumps(result["machine"])}, "records": [\n{records}\n ]}}')
    return "{\n" + ",\n".join(suites) + "\n}\n"
