"""The document's tables and charts are those of the measurements that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import DOCUMENT, report, write_report
from benchmarks.results import Measured, SuiteResult, compared_with, median, read

MACHINE_OF_A_TEST = {
    "cpus": 2,
    "machine": "x86_64",
    "memory_gb": 24,
    "system": "Linux",
    "python": "3.11.7",
    "measured_at": "2026-11-26",
}


def measured(name: str, dates: int, seconds: float, **more: Any) -> dict[str, Any]:
    known = {"dates_per_task": None, "peak_mb": None, "broker_peak_mb": None, "ratio": None}
    return {"name": name, "dates": dates, "seconds": seconds, "seconds_per_date": seconds / dates} | known | more


def checked(dates: int, seconds: float, ratio: float) -> dict[str, Any]:
    return measured(
        "checked backfill",
        dates,
        seconds,
        dates_per_task=30,
        ratio=ratio,
        broker_peak_mb=2.5,
        first_checkpoint_seconds=3.21,
        whole_command_seconds=4.4,
        gate_seconds_per_window=0.456,
        producer_peak_mb=290.4,
        dates_peak_mb=200.0,
        gate_peak_mb=221.0,
    )


TRIVIAL = [
    measured("plain loop", 1000, 2.0),
    measured("bare chord", 1000, 4.0, dates_per_task=1, rounds=3, lowest=3.5, highest=4.75),
    checked(1000, 2.5, 0.625) | {"rounds": 3, "lowest": 0.551, "highest": 0.704},
    measured("bare chord", 40000, 168.0, dates_per_task=1),
    checked(40000, 100.0, 0.595),
    measured("plan", 3650, 0.925),
]
ON_SERVERS = measured("checked backfill, PostgreSQL and Redis by URL", 365, 2.0, dates_per_task=30, ratio=1.125)
BIG = {"rows_per_date": 1_000_000, "cpu_seconds": 14.0, "whole_command_seconds": 9.25}
PEAKS = {"producer_peak_mb": 290.4, "dates_peak_mb": 700.0, "gate_peak_mb": 600.6, "gate_seconds_per_window": 4.44}
SQL_JOB = measured("SQL job", 10, 7.5, ratio=1.25, **BIG)


def of_machine(*records: dict[str, Any]) -> SuiteResult:
    return {"machine": MACHINE_OF_A_TEST, "records": records}


RESULTS = {
    "trivial": of_machine(*TRIVIAL),
    "servers": of_machine(ON_SERVERS | {"rounds": 3, "lowest": 0.987, "highest": 1.3}),
    "seasons": of_machine(measured("ten seasons, backfill run", 1650, 30.0, ratio=1.5)),
    "sql": of_machine(measured("statement by hand", 10, 6.0, rows_per_date=1_000_000, cpu_seconds=9.5), SQL_JOB),
    "memory": of_machine(SQL_JOB | PEAKS),
}


@pytest.mark.parametrize(
    "line",
    [
        "| bare chord | 1,000 | 1 | 4.0 | 4.00 | 1.00 | 3.50 to 4.75 s in 3 rounds |  |  |",
        "| checked backfill | 1,000 | 30 | 2.5 | 2.50 | 0.62 | 0.55 to 0.70 in 3 rounds | 4.4 s | 3.2 s |",
        "| checked backfill | 40,000 | 30 | 100.0 | 2.50 | 0.59 |  | 4.4 s | 3.2 s |",
        "| 40,000 dates | 30 | 290 | 200 | 221 | 2.5 | 0.46 |",
        "| ten seasons, backfill run | 1,650 | 30.00 | 1.50 x the single process |",
        "| checked backfill, PostgreSQL and Redis by URL | 365 | 30 | 2.0 | 5.48 | 1.12 | 0.99 to 1.30 in 3 rounds |",
        "| statement by hand | 1,000,000 | 10 | 6.0 | 1.00 |  | 9.5 |  |",
        "| SQL job | 1,000,000 | 10 | 7.5 | 1.25 |  | 14.0 | 9.2 s |",
        "| SQL job | 1,000,000 | 10 | 7.5 | 290 | 700 | 601 | 4.4 |",
        "| plan | 3,650 | 0.93 |  |",
        '    title "ms per date by number of dates: bare chord, checked backfill, 30 per task"',
        "    line [2.5, 2.5]",
        '    x-axis ["1,000", "40,000"]',
    ],
)
def test_a_measurement_is_shown_unchanged(line: str) -> None:
    assert line in report(RESULTS).splitlines()


def test_a_report_replaces_the_one_before_and_nothing_else(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text(
        "before\n<!-- measured: seasons -->\nold\n<!-- /measured -->\nbetween\n"
        "<!-- measured: sql -->\nold\n<!-- /measured -->\nafter\n<!-- measured: memory -->\nkept\n<!-- /measured -->\n"
    )
    results = {suite: RESULTS[suite] for suite in ("sql", "seasons")}
    write_report(results, document)
    once = document.read_text()
    write_report(results, document)
    assert document.read_text() == once
    assert "old" not in once
    first, second = once.split("between\n")
    assert first.startswith("before\n<!-- measured: seasons -->\nMeasured on 2026-11-26 by")
    assert first.endswith("<!-- /measured -->\n")
    assert "ten seasons" in first
    assert second.startswith("<!-- measured: sql -->\nMeasured on 2026-11-26 by")
    assert second.endswith("<!-- /measured -->\nafter\n<!-- measured: memory -->\nkept\n<!-- /measured -->\n")


@pytest.mark.parametrize("suite", read())
def test_the_document_tells_what_is_kept(suite: str) -> None:
    assert f"<!-- measured: {suite} -->\n{report({suite: read()[suite]})}" in DOCUMENT.read_text(encoding="utf-8")


def run(name: str, seconds: float) -> Measured:
    return Measured(name=name, dates=100, dates_per_task=1, seconds=seconds)


def test_a_backfill_is_compared_with_the_chord_of_its_own_round_and_the_round_in_the_middle_counts() -> None:
    chords = [run("bare chord", seconds) for seconds in (1.0, 4.0, 2.0)]
    runs = [run("checked backfill", seconds) for seconds in (2.0, 3.0, 5.0)]
    found = median([compared_with(one, chord) for one, chord in zip(runs, chords, strict=True)]).record()
    assert (found["seconds"], found["reference_seconds"], found["ratio"]) == (2.0, 1.0, 2.0)
    assert (found["rounds"], found["lowest"], found["highest"]) == (3, 0.75, 2.5)


def test_rounds_without_a_chord_are_ordered_by_their_seconds() -> None:
    found = median([run("bare chord", seconds) for seconds in (3.0, 1.0, 2.0)]).record()
    assert (found["seconds"], found["lowest"], found["highest"]) == (2.0, 1.0, 3.0)
