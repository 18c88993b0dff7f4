"""Another program: a daily job that writes its own rows of a date, whatever the tool does at that moment.

It says what it is going to write before it does, and afterwards what it has replaced: it may be killed in between, as
it runs in the process that meets the fault.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from tests.faults.chaos.shapes import NAMES, Day, Row
from tests.faults.chaos.world import open_tables

VALUE = 7.0
COMPLETE = "all entities"
HALF = "half of the entities"
_number = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class Write:
    """The rows that another program wrote, which tell by their source which write they are of."""

    day: str  #: in ISO form
    rows: list[Row]  #: sorted
    done: bool  #: whether it is known that they were in the table
    replaced: list[Row]  #: what the date held at that moment

    @property
    def complete(self) -> bool:
        return len(self.rows) == len(NAMES)


def write_date(day: date, entities: str, warehouse_url: str, record: Path) -> None:
    """Replace the rows of a date in one step, as a job does that knows nothing of the tool."""
    label = f"daily job {os.getpid()}-{next(_number)}"
    names = NAMES if entities == COMPLETE else NAMES[: len(NAMES) // 2]
    rows: list[Row] = [(name, VALUE, label) for name in names]
    write = Write(day=day.isoformat(), rows=rows, done=False, replaced=[])
    _append(record, write)
    replaced = open_tables(warehouse_url).replace_date(day, rows)
    _append(record, Write(day=write.day, rows=rows, done=True, replaced=replaced))


def read_writes(record: Path) -> list[Write]:
    """The writes in the order in which they were recorded, each once."""
    try:
        lines = record.read_text().splitlines()
    except FileNotFoundError:
        return []
    writes: dict[str, Write] = {}
    for line in lines:
        values = json.loads(line)
        rows, replaced = (
            [(name, value, source) for name, value, source in values[key]] for key in ("rows", "replaced")
        )
        write = Write(day=values["day"], rows=rows, done=values["done"], replaced=replaced)
        label = rows[0][2]
        if label not in writes or write.done:
            writes[label] = write
    return list(writes.values())


def can_be_written(shape: Sequence[Day]) -> list[int]:
    """The numbers of the dates on which a daily job has something to write."""
    return [number for number, day in enumerate(shape) if day.expected]


def _append(record: Path, write: Write) -> None:
    with record.open("ab", buffering=0) as file:  # one line arrives whole
        file.write(json.dumps(asdict(write)).encode() + b"\n")
