"""CSV and Parquet files of any kind are loaded whole or refused in a line; staged files are what was staged or lost."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import example, given
from hypothesis import strategies as st

from gated_backfill.common.ledger import DateState
from gated_backfill.worker.gate.gate import close_window
from tests.builders import process_date
from tests.fuzz.cases import share, words
from tests.fuzz.watching import Watched
from tests.lab import Lab, players

HARMFUL = (b"\0", b"\xff\xfe", b'"', b"\r", b",,", b"\n\n", b"\xef\xbb\xbf")
VALID = b"name,day,value\nann,2023-02-23,1.5\nben,2023-02-24,2\n"
TABLES = ("probe.loaded", "probe.expected", "probe.probe", "new.table")


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """The bytes with some of them cut, doubled, swapped or replaced."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 4)):
            case 0:
                del data[at:]
            case 1:
                data[at:at] = draw(st.binary(max_size=12))
            case 2:
                data[at : at + 3] = draw(st.sampled_from(HARMFUL))
            case 3:
                data[at:at] = data[: draw(st.integers(0, 60))]
            case _:
                del data[at : at + draw(st.integers(1, 20))]
    return bytes(data)


@st.composite
def csv_files(draw: st.DrawFn) -> bytes:
    header = draw(st.lists(st.one_of(st.sampled_from(["name", "day", "value", "trick", "spoil"]), words), max_size=5))
    cells = st.one_of(st.sampled_from(["", "2023-02-23", "1", "x", "9" * 400, "1e400", "true", "0042"]), words)
    rows = draw(st.lists(st.lists(cells, max_size=6), max_size=4))
    line_end = draw(st.sampled_from(["\n", "\r\n", "\r", ""]))
    text = line_end.join(draw(st.sampled_from([",", ";", "\t"])).join(row) for row in [header, *rows])
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]))
    return text.encode(encoding, "ignore")


OPTIONS = st.lists(
    st.sampled_from(
        [
            ("--encoding", "latin-1"),
            ("--encoding", "utf-16"),
            ("--encoding", "utf-7"),
            ("--encoding", "shift_jis"),
            ("--delimiter", ";"),
            ("--delimiter", "\\t"),
            ("--date-format", "%d.%m.%Y"),
            ("--date-format", "%Y%m%d"),
            ("--rename", "name=who"),
            ("--rename", "=number"),
            ("--rename", "x=day"),
            ("--date-column", "day"),
            ("--add-columns",),
        ]
    ),
    max_size=3,
    unique_by=lambda option: option[0],
).map(lambda options: tuple(word for option in options for word in option))


@share(0.22)
@given(
    data=st.one_of(mutated(VALID), csv_files(), st.binary(max_size=200)), table=st.sampled_from(TABLES), options=OPTIONS
)
@example(data=b"day,value\n0000-00-00,1\n", table="new.table", options=())
@example(data=b"day,value\n20230223,1\n", table="new.table", options=("--date-format", "%Y%m%d"))
@example(data=b"day,value\n2023-02-23,+2AA-\n", table="new.table", options=("--encoding", "utf-7"))
@example(data=b"name,day\n" + b"x" * 200_000 + b",2023-02-23\n", table="new.table", options=())
@example(data=b"n\xc3\xa4me,day\nx,2023-02-23\n", table="new.table", options=())
@example(data=b"\xef\xbb\xbfname,day\r\nx,2023-02-23\r\n", table="new.table", options=())
@example(data=b"name,day\n" + b"9" * 5000 + b",2023-02-23\n", table="new.table", options=())
@example(data=b"v,day\n" + b"9" * 5000 + b".5,2023-02-23\n1,2023-02-23\n", table="new.table", options=())
def test_a_csv_file_of_any_kind(watched: Watched, data: bytes, table: str, options: tuple[str, ...]) -> None:
    file = watched.cwd / "x.csv"
    file.write_bytes(data)
    watched.invoke("load", table, "x.csv", *options)
    forget_loaded(watched)


NOON, LONG_AGO = datetime.fromisoformat("2023-02-23T12:00"), datetime.fromisoformat("0001-01-01T00:00")


def forget_loaded(watched: Watched) -> None:
    """What was loaded would make every later case look at more files."""
    for made in ("new", "probe/loaded"):
        shutil.rmtree(watched.lab.home / "warehouse" / made, ignore_errors=True)
    watched.rows = watched.published()


VALUES: dict[str, tuple[pa.DataType, Any]] = {
    "text": (pa.string(), "x"),
    "large": (pa.large_string(), "x" * 1000),
    "date": (pa.date32(), date(2023, 2, 23)),
    "date64": (pa.date64(), date(2023, 2, 23)),
    "stamp": (pa.timestamp("ns"), NOON),
    "zoned": (pa.timestamp("us", "America/New_York"), NOON),
    "long-ago": (pa.timestamp("s"), LONG_AGO),
    "number": (pa.float64(), 1.5),
    "nan": (pa.float64(), float("nan")),
    "half": (pa.float32(), 1e30),
    "int": (pa.int64(), 2**62),
    "uint": (pa.uint64(), 2**64 - 1),
    "bool": (pa.bool_(), True),
    "null": (pa.null(), None),
    "list": (pa.list_(pa.int64()), [1, 2]),
    "struct": (pa.struct([("a", pa.int64())]), {"a": 1}),
    "map": (pa.map_(pa.string(), pa.int64()), [("a", 1)]),
    "binary": (pa.binary(), b"\xff"),
    "decimal": (pa.decimal128(38, 2), 1),
    "time": (pa.time64("us"), None),
    "duration": (pa.duration("s"), None),
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), "x"),
}


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    kinds = draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=4))
    names = [draw(st.one_of(st.sampled_from(["name", "day", "value", "trick", "spoil"]), words)) for _ in kinds]
    rows = draw(st.integers(0, 3))
    arrays = [pa.array([VALUES[kind][1]] * rows, VALUES[kind][0]) for kind in kinds]
    fields = [pa.field(_utf8(name), VALUES[kind][0]) for name, kind in zip(names, kinds, strict=True)]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)), sink)
    return sink.getvalue()


def _utf8(name: str) -> str:
    return name.encode("utf-8", "replace").decode()


def parquet_of(**columns: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


WHOLE = parquet_of(name=["ann"], day=pa.array([date(2023, 2, 23)]), value=[1.0])


@share(0.16)
@given(data=st.one_of(tables(), tables().flatmap(mutated), mutated(WHOLE)), table=st.sampled_from(TABLES))
@example(data=b"", table="new.table")
@example(data=b"PAR1" + b"\xff" * 20 + b"PAR1", table="new.table")
@example(data=parquet_of(day=pa.array([date(2023, 2, 23)]), v=pa.array([2**64 - 1], pa.uint64())), table="new.table")
def test_a_parquet_file_of_any_kind(watched: Watched, data: bytes, table: str) -> None:
    file = watched.cwd / "x.parquet"
    file.write_bytes(data)
    watched.invoke("load", table, "x.parquet")
    forget_loaded(watched)


# -- staged files -------------------------------------------------------------------------------------------------

DAY = date(2023, 3, 1)


def replaced_by_link(path: Path, lab: Lab) -> None:
    there = lab.home.parent / "marks" / "elsewhere"
    path.replace(there)
    path.symlink_to(there)


def replaced_by_folder(path: Path, lab: Lab) -> None:
    path.unlink()
    path.mkdir()


def replaced_by_pipe(path: Path, lab: Lab) -> None:
    path.unlink()
    os.mkfifo(path)


def gone(path: Path, lab: Lab) -> None:
    path.unlink()


def with_other_rows(path: Path, lab: Lab) -> None:
    rows = pq.ParquetFile(path).read()
    pq.write_table(rows.slice(0, 1), path)


HARMS: list[Callable[[Path, Lab], None]] = [
    replaced_by_link,
    replaced_by_folder,
    replaced_by_pipe,
    gone,
    with_other_rows,
]


def harmed_by(data: bytes) -> Callable[[Path, Lab], None]:
    return lambda path, lab: path.write_bytes(data) and None


@share(0.02)
@given(
    harm=st.one_of(st.sampled_from(HARMS), st.one_of(st.binary(max_size=100), tables(), mutated(WHOLE)).map(harmed_by))
)
@example(harm=replaced_by_link)
@example(harm=replaced_by_pipe)
@example(harm=replaced_by_folder)
def test_a_staged_file_that_was_harmed_is_not_published(lab: Lab, harm: Callable[[Path, Lab], None]) -> None:
    lab.probe("expected", DAY, players(4))
    lab.probe("first", DAY, players(4))
    run, deps, _ = lab.opened([DAY], "probe")
    before = lab.table_bytes("probe.probe")
    process_date(run.id, DAY, deps)
    (row,) = deps.ledger.dates.list_dates(run.id)
    path = Path(row.staged_file().location)
    harm(path, lab)
    assert row.window is not None

    close_window(run.id, row.window, deps)

    (after,) = deps.ledger.dates.list_dates(run.id)
    assert after.state is DateState.QUEUED
    assert lab.table_bytes("probe.probe") == before
    deps.ledger.dates.fail_remaining_dates(run.id, "Fuzzed", "its file was harmed")
    close_window(run.id, row.window, deps)
    shutil.rmtree(path.parent, ignore_errors=True)
    deps.ledger.close()
