"""The measurements as tables and charts of a document, from the JSON that they are kept in."""

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
    """Put the tables and charts where the document has a place for them."""
    text = document.read_text(encoding="utf-8")
    found = report(records, machine)
    document.write_text(PLACE.sub(lambda _: found, text), encoding="utf-8")


def report(records: Sequence[Record], machine: Record) -> str:
    """Markdown with a table of the trivial work, its charts, and what else was measured."""
    trivial = [one for one in records if one["name"] in ("plain loop", "bare chord", CHECKED)]
    others = [one for one in records if one not in trivial]
    parts = [_of_machine(machine), _table(_work_rows(trivial)), _bars(trivial), _growth(trivial)]
    parts += [_table(_memory_rows(trivial)), _table(_other_rows(others))]
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
            "dates a task",
            "seconds",
            "ms a date",
            "bare chord = 1",
            "lowest to highest",
            "whole command",
            "first checkpoint",
        ]
    ]
    for one in records:
        first, whole = one.get("first_checkpoint_seconds"), one.get("whole_command_seconds")
        ratio = one["ratio_to_bare_chord"]
        rows.append(
            [
                one["name"],
                f"{one['dates']:,}",
                str(one["dates_per_task"] or ""),
                f"{one['seconds']:.1f}",
                f"{1000 * one['seconds_per_date']:.2f}",
                "" if ratio is None else f"{ratio:.2f}",
                _spread(one),
                "" if whole is None else f"{whole:.1f} s",
                "" if first is None else f"{first:.1f} s",
            ]
        )
    return rows


def _spread(one: Record) -> str:
    """The lowest and the highest of several rounds: in seconds, or beside the bare chords of the same rounds."""
    if one.get("rounds", 1) < 2:
        return ""
    unit = "" if one["name"] == CHECKED else " s"
    return f"{one['lowest']:.2f} to {one['highest']:.2f}{unit} in {one['rounds']} rounds"


def _memory_rows(records: Sequence[Record]) -> list[list[str]]:
    rows = [["peak memory, MB", "dates a task", *(f"{name}" for name in PROCESSES), "broker", "gate, s a window"]]
    for one in records:
        if one["name"] == CHECKED:
            peaks = [f"{one[f'{name}_peak_mb']:.0f}" for name in PROCESSES]
            gate = f"{one['gate_seconds_per_window']:.2f}"
            rows.append(
                [f"{one['dates']:,} dates", str(one["dates_per_task"]), *peaks, f"{one['broker_peak_mb']:.1f}", gate]
            )
    return rows


def _other_rows(records: Sequence[Record]) -> list[list[str]]:
    rows = [["also measured", "dates", "seconds", ""]]
    for one in records:
        ratio = one.get("ratio_to_vectorised")
        said = "" if ratio is None else f"{ratio:.2f} x the single process"
        rows.append([one["name"], f"{one['dates']:,}", f"{one['seconds']:.2f}", said])
    return rows


def _table(rows: Sequence[Sequence[str]]) -> str:
    if len(rows) < 2:
        return ""
    head, *body = rows
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def _bars(records: Sequence[Record]) -> str:
    """What a date takes, for each contestant at the middle one of the numbers of dates."""
    counts = sorted({one["dates"] for one in records})
    if not counts:
        return ""
    count = counts[len(counts) // 2]
    shown = [one for one in records if one["dates"] == count]
    values = [round(1000 * one["seconds_per_date"], 2) for one in shown]
    return _chart(f"ms a date, {count:,} dates", map(_label, shown), [("bar", values)])


def _growth(records: Sequence[Record]) -> str:
    """What a date takes at each number of dates: a line for the bare chord and for each size of task."""
    counts = sorted({one["dates"] for one in records})
    if len(counts) < 2:
        return ""
    lines: dict[str, list[float]] = {}
    for one in sorted(records, key=lambda record: record["dates"]):
        if one["name"] != "plain loop":
            lines.setdefault(_label(one), []).append(round(1000 * one["seconds_per_date"], 2))
    title = f"ms a date by number of dates: {', '.join(lines)}"
    return _chart(title, (f"{count:,}" for count in counts), [("line", values) for values in lines.values()])


def _label(one: Record) -> str:
    return f"{one['name']}, {one['dates_per_task']} a task" if one["name"] == CHECKED else str(one["name"])


def _chart(title: str, labels: Iterable[str], series: Sequence[tuple[str, Sequence[float]]]) -> str:
    most = max(value for _, values in series for value in values)
    drawn = [f"    {kind} [{', '.join(map(str, values))}]" for kind, values in series]
    named = ", ".join(f'"{label}"' for label in labels)
    axes = [f"    x-axis [{named}]", f'    y-axis "ms" 0 --> {most * 1.1:.0f}']
    return "\n".join(["```mermaid", "xychart-beta", f'    title "{title}"', *axes, *drawn, "```"])


def main() -> None:
    """Write the document's tables and charts anew from the measurements that are kept."""
    from benchmarks.results import MACHINE, RESULTS

    write_report(json.loads(RESULTS.read_text()), json.loads(MACHINE.read_text()))


if __name__ == "__main__":
    main()
