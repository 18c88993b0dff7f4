"""What a plan counts over its range, against the same counted by hand from the same rows."""

from __future__ import annotations

import os
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from gated_backfill.common.model.job import Expectation, Job, Source, Target
from gated_backfill.common.model.tables import Column, TableName
from gated_backfill.common.warehouse.protocol import Warehouse
from gated_backfill.producer.planning.range_counts import count_range
from tests.builders import FEB_23, FEB_24, FEB_25, run_python

COLUMNS = {"who": Column(type="STRING"), "day": Column(type="DATE")}
HELD: dict[str, list[tuple[date, str | None]]] = {
    "truth": [(FEB_23, "ann"), (FEB_23, "ann"), (FEB_23, "bob"), (FEB_23, None), (FEB_24, "ann"), (FEB_24, "cid")],
    "some": [(FEB_23, "ann"), (FEB_23, "stranger"), (FEB_24, None), (FEB_24, "ann"), (FEB_24, "ann")],
    "others": [(FEB_23, "bob"), (FEB_24, "ann"), (FEB_25, "ann")],
}


def source(table: str) -> Source:
    return Source(name=f"from_{table}", table=f"nba.{table}", date_column="day")


def job(*tables: str) -> Job:
    return Job(
        name="counted",
        version="1",
        target=Target(table="nba.made", date_column="day", key=("who", "day"), columns=COLUMNS),
        expectation=Expectation(table="nba.truth", date_column="day", entity="who"),
        sources=tuple(map(source, tables)),
        process=lambda batch: batch.rows,
    )


def entities(table: str, day: date) -> set[str]:
    return {who for when, who in HELD[table] if when == day and who is not None}


def by_day(*tables: str) -> dict[date, int]:
    """Of the expected entities of each day, how many any of the tables has."""
    found = {
        day: len(entities("truth", day) & set[str]().union(*(entities(table, day) for table in tables)))
        for day in (FEB_23, FEB_24)
    }
    return {day: n for day, n in found.items() if n}


@pytest.mark.parametrize(
    ("tables", "either"),
    [
        pytest.param(("some",), {}, id="one-source"),
        pytest.param(("some", "others"), {"from_others": ("some", "others")}, id="two"),
        pytest.param(
            ("others", "some", "truth"), {"from_some": ("others", "some"), "from_truth": ("truth",)}, id="three"
        ),
        pytest.param(("truth", "some"), {"from_some": ("truth",)}, id="the-expectation-itself"),
        pytest.param(("some", "absent"), {"from_absent": ("some",)}, id="one-that-is-absent"),
        pytest.param(("absent", "some"), {"from_some": ("some",)}, id="the-first-absent"),
    ],
)
def test_a_range_is_counted_over_the_expected_only(
    warehouse: Warehouse, tables: tuple[str, ...], either: dict[str, tuple[str, ...]]
) -> None:
    for table, rows in HELD.items():
        columns = [list(column) for column in zip(*rows, strict=True)]
        made = pa.table(columns, schema=pa.schema([("day", pa.date32()), ("who", pa.string())]))
        warehouse.load(TableName("nba", table), "day", made)
    asked = job(*tables)
    present = [one for one in asked.sources if one.name != "from_absent"]

    counted = count_range(warehouse, asked, present, [FEB_23, FEB_24])

    assert counted.expected == {FEB_23: 2, FEB_24: 2}
    assert counted.found == {one.name: by_day(one.name.removeprefix("from_")) for one in present}
    assert counted.with_primary == {name: by_day(*of) for name, of in either.items()}


def test_a_long_range_is_counted_day_by_day_as_a_short_one_is(warehouse: Warehouse) -> None:
    asked = [FEB_23 + timedelta(days=n) for n in range(1500)]
    expected = {day: n % 3 + 1 for n, day in enumerate(asked) if n % 100 in (0, 99)}  # on both sides of every hundred
    names = ["ann", "bob", "cid"]
    schema = pa.schema([("day", pa.date32()), ("who", pa.string())])
    rows = [(day, who) for day, n in expected.items() for who in names[:n]]
    for table, held in {"truth": rows, "some": [row for row in rows if row[1] != "bob"]}.items():
        warehouse.load(
            TableName("nba", table), "day", pa.table(list(map(list, zip(*held, strict=True))), schema=schema)
        )
    by_some = job("some")

    counted = count_range(warehouse, by_some, by_some.sources, asked)

    assert counted.expected == expected
    assert counted.found == {"from_some": {day: n - (n > 1) for day, n in expected.items()}}


ON_CORES = """
    import os, sys
    from datetime import date, timedelta
    from pathlib import Path

    import pyarrow as pa

    from gated_backfill.producer.planning.range_counts import count_range
    from gated_backfill.common.model.tables import TableName
    from gated_backfill.common.process.forked_work import usable_processes
    from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
    from tests.integration.test_counts import FEB_23, job

    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: int(sys.argv[2])]))
    warehouse = LocalWarehouse(Path(sys.argv[1]))
    asked = [FEB_23 + timedelta(days=n) for n in range(1500)]
    rows = [(day, who) for n, day in enumerate(asked) for who in ("ann", "bob", "cid")[: n % 4]]
    schema = pa.schema([("day", pa.date32()), ("who", pa.string())])
    for table, without in {"truth": "", "some": "bob"}.items():
        held = [row for row in rows if row[1] != without]
        columns = list(map(list, zip(*held, strict=True)))
        warehouse.load(TableName("nba", table), "day", pa.table(columns, schema=schema))
    forked = []
    os.register_at_fork(before=lambda: forked.append(os.getpid()))
    counted = count_range(warehouse, job("some"), job("some").sources, asked)
    assert counted.expected == {day: n % 4 for n, day in enumerate(asked) if n % 4}
    assert counted.found == {"from_some": {day: n % 4 - (n % 4 > 1) for day, n in counted.expected.items()}}
    print(usable_processes(), max(1, len(forked)))
"""


@pytest.mark.parametrize("cores", [1, 2])
def test_a_long_range_is_counted_alike_on_one_core_and_on_several(tmp_path: Path, cores: int) -> None:
    ran = run_python(ON_CORES, tmp_path, cores)
    assert ran.stderr == ""
    possible, used = map(int, ran.stdout.split())
    assert possible == used == min(cores, len(os.sched_getaffinity(0)))
