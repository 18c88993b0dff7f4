"""The document's tables and charts are those of the measurements that are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import DOCUMENT, report, write_report
from benchmarks.results import MACHINE, RESULTS, Measured, compared_with, median

MACHINE_OF_A_TEST = {
    "cpus": 2,
    "machine": "x86_64",
    "memory_gb": 24,
    "system": "Linux",
    "python": "3.11.7",
    "measured_at": "2026-11-26",
}


def measured(name: str, dates: int, seconds: float, **more: Any) -> dict[str, Any]:
    known = {"dates_per_task": None, "peak_mb": None, "broker_peak_mb": None, "ratio_to_bare_chord": None}
    return {"name": name, "dates": dates, "seconds": seconds, "seconds_per_date": seconds / dates} | known | more


def checked(dates: int, seconds: float, ratio: float) -> dict[str, Any]:
    return measured(
        "checked backfill",
        dates,
        seconds,
        dates_per_task=30,
        ratio_to_bare_chord=ratio,
        broker_peak_mb=2.5,
        first_checkpoint_seconds=3.21,
        whole_command_seconds=4.4,
        gate_seconds_per_window=0.456,
        producer_peak_mb=290.4,
        dates_peak_mb=200.0,
        gate_peak_mb=221.0,
    )


RECORDS = [
    measured("plain loop", 1000, 2.0),
    measured("bare chord", 1000, 4.0, dates_per_task=1, ratio_to_bare_chord=1.0, rounds=3, lowest=3.5, highest=4.75),
    checked(1000, 2.5, 0.625) | {"rounds": 3, "lowest": 0.551, "highest": 0.704},
    measured("bare chord", 40000, 168.0, dates_per_task=1, ratio_to_bare_chord=1.0),
    checked(40000, 100.0, 0.595),
    measured("ten seasons, backfill run", 1650, 30.0, ratio_to_vectorised=1.5),
]


@pytest.mark.parametrize(
    "line",
    [
        "| bare chord | 1,000 | 1 | 4.0 | 4.00 | 1.00 | 3.50 to 4.75 s in 3 rounds |  |  |",
        "| checked backfill | 1,000 | 30 | 2.5 | 2.50 | 0.62 | 0.55 to 0.70 in 3 rounds | 4.4 s | 3.2 s |",
        "| checked backfill | 40,000 | 30 | 100.0 | 2.50 | 0.59 |  | 4.4 s | 3.2 s |",
        "| 40,000 dates | 30 | 290 | 200 | 221 | 2.5 | 0.46 |",
        "| ten seasons, backfill run | 1,650 | 30.00 | 1.50 x the single process |",
        '    title "ms per date by number of dates: bare chord, checked backfill, 30 per task"',
        "    line [2.5, 2.5]",
        '    x-axis ["1,000", "40,000"]',
    ],
)
def test_a_measurement_is_shown_unchanged(line: str) -> None:
    assert line in report(RECORDS, MACHINE_OF_A_TEST).splitlines()


def test_a_report_replaces_the_one_before_and_nothing_else(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text("before\n<!-- measured -->\nold\n<!-- /measured -->\nafter\n")
    write_report(RECORDS, MACHINE_OF_A_TEST, document)
    once = document.read_text()
    write_report(RECORDS, MACHINE_OF_A_TEST, document)
    assert document.read_text() == once
    assert "old" not in once
    assert once.startswith("before\n<!-- measured -->\nMeasured on 2026-11-26 on 2 cores")
    assert once.endswith("<!-- /measured -->\nafter\n")


def test_the_document_tells_what_is_kept() -> None:
    kept = report(json.loads(RESULTS.read_text()), json.loads(MACHINE.read_text()))
    assert kept in DOCUMENT.read_text(encoding="utf-8")


def run(name: str, seconds: float) -> Measured:
    return Measured(name=name, dates=100, dates_per_task=1, seconds=seconds)


def test_a_backfill_is_compared_with_the_chord_of_its_own_round_and_the_round_in_the_middle_counts() -> None:
    chords = [run("bare chord", seconds) for seconds in (1.0, 4.0, 2.0)]
    runs = [run("checked backfill", seconds) for seconds in (2.0, 3.0, 5.0)]
    found = median([compared_with(one, chord) for one, chord in zip(runs, chords, strict=True)]).record()
    assert (found["seconds"], found["bare_chord_seconds"], found["ratio_to_bare_chord"]) == (2.0, 1.0, 2.0)
    assert (found["rounds"], found["lowest"], found["highest"]) == (3, 0.75, 2.5)


def test_rounds_without_a_chord_are_ordered_by_their_seconds() -> None:
    found = median([run("bare chord", seconds) for seconds in (3.0, 1.0, 2.0)]).record()
    assert (found["seconds"], found["lowest"], found["highest"]) == (2.0, 1.0, 3.0)
