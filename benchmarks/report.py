"""Tables and charts of the stored measurements, for the document."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).parent.parent / "docs" / "performance.md"
PLACE = re.compile(r"(?<=<!-- measured -->\n).*?(?=<!-- /measured -->)", re.DOTALL)
CHECKED = "checked backfill"
PROCESSES = ("producer", "dates", "gate")
Record = Mapping[str, Any]


def write_report(records: Sequence[Record], machine: Record, document: Path = DOCUMENT) -> None:
    """Replace the tables and charts between the document's markers."""
    text = document.read_text(encoding="utf-8")
    tables = report(records, machine)
    document.write_text(PLACE.sub(lambda _: tables, text), encoding="utf-8")


def report(records: Sequence[Record], machine: Record) -> str:
    """Return Markdown with a table and charts of the trivial work, and a table of further measurements."""
    trivial = [record for record in records if record["name"] in ("plain loop", "bare chord", CHECKED)]
    further = [record for record in records if record not in trivial]
    parts = [_of_machine(machine), _table(_work_rows(trivial)), _bars(trivial), _growth(trivial)]
    parts += [_table(_memory_rows(trivial)), _table(_further_rows(further))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _of_machine(machine: Record) -> str:
    return (
        f"Measured on {machine['measured_at']} on {machine['cpus']} cores ({machine['machine']}, "
        f"{machine['memory_gb']} GB, {machine['system']}, Python {machine['python']}), all in one run of `make bench`."
    )


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
        ratio = record["ratio_to_bare_chord"]
        rows.append(
            [
                record["name"],
                f"{record['dates']:,}",
                str(record["dates_per_task"] or ""),
                f"{record['seconds']:.1f}",
                f"{1000 * record['seconds_per_date']:.2f}",
                "" if ratio is None else f"{ratio:.2f}",
                _spread(record),
                "" if whole is None else f"{whole:.1f} s",
                "" if first is None else f"{first:.1f} s",
            ]
        )
    return rows


def _spread(record: Record) -> str:
    """Format the lowest and highest of several rounds: in seconds, or as ratios to the bare chord of the same round."""
    if record.get("rounds", 1) < 2:
        return ""
    unit = "" if record["name"] == CHECKED else " s"
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


def _further_rows(records: Sequence[Record]) -> list[list[str]]:
    rows = [["also measured", "dates", "seconds", ""]]
    for record in records:
        ratio = record.get("ratio_to_vectorised")
        note = "" if ratio is None else f"{ratio:.2f} x the single process"
        rows.append([record["name"], f"{record['dates']:,}", f"{record['seconds']:.2f}", note])
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
    from benchmarks.results import MACHINE, RESULTS

    write_report(json.loads(RESULTS.read_text()), json.loads(MACHINE.read_text()))


if __name__ == "__main__":
    main()
