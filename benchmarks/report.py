"""Tables and charts of the stored measurements, for the document."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.results import SuiteResult

DOCUMENT = Path(__file__).parent.parent / "docs" / "performance.md"
PLACE = re.compile(r"(?<=<!-- measured: )(?P<suite>\w+)( -->\n).*?(?=<!-- /measured -->)", re.DOTALL)
CHECKED = "checked backfill"
CHORD = "bare chord"
PROCESSES = ("producer", "dates", "gate")
Record = Mapping[str, Any]


def write_report(measured: Mapping[str, SuiteResult], document: Path = DOCUMENT) -> None:
    """Replace the tables and charts between the document's markers, each of which names a suite."""
    text = document.read_text(encoding="utf-8")

    def section(place: re.Match[str]) -> str:
        suite = place["suite"]
        return f"{suite}{place[2]}{report({suite: measured[suite]})}" if suite in measured else place[0]

    document.write_text(PLACE.sub(section, text), encoding="utf-8")


def report(measured: Mapping[str, SuiteResult]) -> str:
    """Return Markdown with the tables and charts of the suites."""
    parts: list[str] = []
    for suite, result in measured.items():
        parts += [_of_machine(suite, result["machine"]), *SECTIONS[suite](result["records"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _of_machine(suite: str, machine: Record) -> str:
    return (
        f"Measured on {machine['measured_at']} by `python -m benchmarks {suite}`, on {machine['cpus']} cores "
        f"({machine['machine']}, {machine['memory_gb']} GB, {machine['system']}, Python {machine['python']})."
    )


def _trivial(records: Sequence[Record]) -> list[str]:
    contestants = [record for record in records if record["name"] in ("plain loop", CHORD, CHECKED)]
    others = [record for record in records if record not in contestants]
    tables = [_table(_work_rows(contestants)), _bars(contestants), _growth(contestants)]
    return [*tables, _table(_memory_rows(contestants)), *_further(others)]


def _servers(records: Sequence[Record]) -> list[str]:
    rows = [["trivial work", "dates", "dates per task", "seconds", "ms per date", "embedded = 1", "lowest to highest"]]
    for record in records:
        cells = [
            record["name"],
            f"{record['dates']:,}",
            str(record["dates_per_task"] or ""),
            f"{record['seconds']:.1f}",
        ]
        rows.append([*cells, f"{1000 * record['seconds_per_date']:.2f}", _ratio(record), _spread(record)])
    return [_table(rows)]


def _sql(records: Sequence[Record]) -> list[str]:
    rows = [
        ["", "rows per date", "dates", "seconds", "by hand = 1", "lowest to highest", "CPU seconds", "whole command"]
    ]
    for record in records:
        whole = record.get("whole_command_seconds")
        rows.append(
            [
                record["name"],
                f"{record['rows_per_date']:,}",
                f"{record['dates']:,}",
                f"{record['seconds']:.1f}",
                _ratio(record) or "1.00",
                _spread(record),
                f"{record['cpu_seconds']:.1f}",
                "" if whole is None else f"{whole:.1f} s",
            ]
        )
    return [_table(rows)]


def _memory(records: Sequence[Record]) -> list[str]:
    rows = [["peak memory, MB", "rows per date", "dates", "seconds", *PROCESSES, "gate, s per window"]]
    for record in records:
        cells = [record["name"], f"{record['rows_per_date']:,}", f"{record['dates']:,}", f"{record['seconds']:.1f}"]
        peaks = [f"{record[f'{name}_peak_mb']:.0f}" for name in PROCESSES]
        rows.append([*cells, *peaks, f"{record['gate_seconds_per_window']:.1f}"])
    return [_table(rows)]


def _further(records: Sequence[Record]) -> list[str]:
    rows = [["also measured", "dates", "seconds", ""]]
    for record in records:
        ratio = record["ratio"]
        note = "" if ratio is None else f"{ratio:.2f} x the single process"
        rows.append([record["name"], f"{record['dates']:,}", f"{record['seconds']:.2f}", note])
    return [_table(rows)]


SECTIONS: dict[str, Callable[[Sequence[Record]], list[str]]] = {
    "trivial": _trivial,
    "servers": _servers,
    "seasons": _further,
    "sql": _sql,
    "memory": _memory,
}


def _work_rows(records: Sequence[Record]) -> list[list[str]]:
    rows = [
        [
            "trivial work",
            "dates",
            "dates per task",
            "seconds",
            "ms per date",
            "bare chord = 1",
            "lowest to highest",
            "whole command",
            "first checkpoint",
        ]
    ]
    for record in records:
        first, whole = record.get("first_checkpoint_seconds"), record.get("whole_command_seconds")
        rows.append(
            [
                record["name"],
                f"{record['dates']:,}",
                str(record["dates_per_task"] or ""),
                f"{record['seconds']:.1f}",
                f"{1000 * record['seconds_per_date']:.2f}",
                "1.00" if record["name"] == CHORD else _ratio(record),
                _spread(record),
                "" if whole is None else f"{whole:.1f} s",
                "" if first is None else f"{first:.1f} s",
            ]
        )
    return rows


def _ratio(record: Record) -> str:
    return "" if record["ratio"] is None else f"{record['ratio']:.2f}"


def _spread(record: Record) -> str:
    """Format the lowest and highest of several rounds: in seconds, or as ratios to the reference of the same round."""
    if record.get("rounds", 1) < 2:
        return ""
    unit = " s" if record["ratio"] is None else ""
    return f"{record['lowest']:.2f} to {record['highest']:.2f}{unit} in {record['rounds']} rounds"


def _memory_rows(records: Sequence[Record]) -> list[list[str]]:
    rows = [["peak memory, MB", "dates per task", *(f"{name}" for name in PROCESSES), "broker", "gate, s per window"]]
    for record in records:
        if record["name"] == CHECKED:
            peaks = [f"{record[f'{name}_peak_mb']:.0f}" for name in PROCESSES]
            gate = f"{record['gate_seconds_per_window']:.2f}"
            broker = f"{record['broker_peak_mb']:.1f}"
            rows.append([f"{record['dates']:,} dates", str(record["dates_per_task"]), *peaks, broker, gate])
    return rows


def _table(rows: Sequence[Sequence[str]]) -> str:
    if len(rows) < 2:
        return ""
    head, *body = rows
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def _bars(records: Sequence[Record]) -> str:
    """Chart the time per date of each contestant at the median number of dates."""
    counts = sorted({record["dates"] for record in records})
    if not counts:
        return ""
    count = counts[len(counts) // 2]
    selected = [record for record in records if record["dates"] == count]
    values = [round(1000 * record["seconds_per_date"], 2) for record in selected]
    return _chart(f"ms per date, {count:,} dates", map(_label, selected), [("bar", values)])


def _growth(records: Sequence[Record]) -> str:
    """Chart the time per date by number of dates, with a line for the bare chord and for each task size."""
    counts = sorted({record["dates"] for record in records})
    if len(counts) < 2:
        return ""
    lines: dict[str, list[float]] = {}
    for record in sorted(records, key=lambda record: record["dates"]):
        if record["name"] != "plain loop":
            lines.setdefault(_label(record), []).append(round(1000 * record["seconds_per_date"], 2))
    title = f"ms per date by number of dates: {', '.join(lines)}"
    return _chart(title, (f"{count:,}" for count in counts), [("line", values) for values in lines.values()])


def _label(record: Record) -> str:
    per_task = f", {record['dates_per_task']} per task" if record["name"] == CHECKED else ""
    return f"{record['name']}{per_task}"


def _chart(title: str, labels: Iterable[str], series: Sequence[tuple[str, Sequence[float]]]) -> str:
    highest = max(value for _, values in series for value in values)
    series_lines = [f"    {kind} [{', '.join(map(str, values))}]" for kind, values in series]
    quoted = ", ".join(f'"{label}"' for label in labels)
    axes = [f"    x-axis [{quoted}]", f'    y-axis "ms" 0 --> {highest * 1.1:.0f}']
    return "\n".join(["```mermaid", "xychart-beta", f'    title "{title}"', *axes, *series_lines, "```"])


def main() -> None:
    """Update the document's tables and charts from the stored measurements."""
    write_report(results.read())


if __name__ == "__main__":
    main()
