"""Files as other programs write them: loaded without loss, or refused by the place of the fault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from pyarrow.csv import WriteOptions, write_csv

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.dates import DateRange
from gated_backfill.common.model.tables import ColumnTypes, TableName
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from gated_backfill.common.warehouse.protocol import require_table
from gated_backfill.producer.cli.tables.load import load as load_command
from gated_backfill.producer.tables.csv_file import MAX_FIELD_CHARACTERS
from gated_backfill.producer.tables.load import LoadOptions, LoadResult, load_file
from tests.builders import FEB_23, FEB_24, TABLE, files_below, scan, span

NAME = str(TABLE)
HEADER = "day,name\n"
GOOD = "2023-02-23,a\n"
Load = Callable[..., LoadResult]


@pytest.fixture
def load(local_warehouse: LocalWarehouse, tmp_path: Path) -> Load:
    """Load bytes, text or a Parquet table."""

    def load_content(content: Any, date_column: str | None = None, **options: Any) -> LoadResult:
        file = tmp_path / ("rows.parquet" if isinstance(content, pa.Table) else "rows.csv")
        if isinstance(content, pa.Table):
            pq.write_table(content, file)
        else:
            file.write_bytes(content.encode() if isinstance(content, str) else content)
        return load_file(local_warehouse, NAME, file, date_column, LoadOptions(**options))

    return load_content


def loaded(warehouse: LocalWarehouse) -> list[dict[str, Any]]:
    return warehouse.query("SELECT * FROM t", scans={"t": scan(span(FEB_23, FEB_24))}).to_pylist()


def types_of(warehouse: LocalWarehouse) -> dict[str, str]:
    return dict(require_table(warehouse, TABLE).columns)


# -- faults of CSV files ------------------------------------------------------------------------------------------

LATIN = "\n".join(["day,name", *["2023-02-23,ann"] * 1500, "2023-02-23,Mu\xf1oz", ""]).encode("latin-1")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        pytest.param(LATIN, f"line 1502, byte {LATIN.index(0xF1)} of the file.*--encoding", id="latin-1"),
        pytest.param(b"\xef\xbb\xbf" + LATIN, f"line 1502, byte {LATIN.index(0xF1) + 3} of", id="latin-1-after-a-mark"),
        pytest.param(LATIN.replace(b"\n", b"\r\n"), "line 1502, byte", id="latin-1-windows-lines"),
        pytest.param(HEADER.encode() + b"2023-02-23,\xe4", "line 2, byte 20 of the file", id="half-a-character"),
        pytest.param((HEADER + GOOD).encode("utf-16-le"), "line 1 has a NUL.*--encoding", id="utf-16"),
        pytest.param(HEADER + GOOD + "2023-02-23,a\0b\n", "line 3 has a NUL", id="nul"),
        pytest.param(
            HEADER + GOOD * 9 + '2023-02-23,"The "Big" One"\n' + GOOD, "line 11: text after", id="stray-quote"
        ),
        pytest.param(HEADER + '2023-02-23,"a\n\nb"\n' + '2023-02-23,"a"b\n', "line 5: text after", id="long-rows"),
        pytest.param(HEADER + GOOD + '2023-02-23,"a\n' + GOOD * 9, "line 3: the quote that opens", id="open-quote"),
        pytest.param(HEADER + '"2023\n-02-23","a""\n' + GOOD, "line 3: the quote that opens", id="open-quote-later"),
        pytest.param('day,"name\n' + GOOD, "line 1: the quote that opens", id="open-quote-in-the-header"),
        pytest.param(
            HEADER + GOOD + '2023-02-23,"a\n' + GOOD * 20_000,
            "line 3: the quoted field that begins",
            id="open-quote-far",
        ),
        pytest.param(
            HEADER + GOOD + f"2023-02-23,{'x' * (MAX_FIELD_CHARACTERS + 1)}\n",
            "line 3: a field has more",
            id="huge-field",
        ),
        pytest.param(HEADER + GOOD + "2023-02-23\n" + GOOD + "1,2,3\n", "line 3: 1 fields.*line 5: 3", id="ragged"),
        pytest.param("\n" + HEADER + GOOD, "line 1, the header, is empty", id="empty-header"),
        pytest.param(",day,name\n0,2023-02-23,a\n", "column 1 of the header has none.*--rename '=", id="no-name"),
        pytest.param("day,first name\n2023-02-23,a\n", "--rename 'first name=NEW_NAME'", id="blank-in-a-name"),
        pytest.param("day,gr\xf6\xdfe\n2023-02-23,a\n", "--rename 'gr\xf6\xdfe=NEW_NAME'", id="name-with-umlauts"),
        pytest.param("day;name\n2023-02-23;a\n", "separated by ';', say so with --delimiter", id="semicolons"),
        pytest.param("day,name,Name\n2023-02-23,a,b\n", "name and Name.*upper and lower case.*--rename", id="case"),
        pytest.param("day,n\n23.2.2023,1\n", "--date-column: it has none.*--date-format", id="no-dates"),
    ],
)
def test_a_fault_of_a_csv_file_is_named_by_its_line(load: Load, tmp_path: Path, content: Any, error: str) -> None:
    with pytest.raises(UserError, match=error) as refused:
        load(content)
    assert "rows.csv" in str(refused.value) or "--date-column" in error
    assert len(str(refused.value)) < 600
    assert set(files_below(tmp_path)) == {"rows.csv"}


def test_the_byte_that_is_no_text_is_found_beyond_the_first_block(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gated_backfill.producer.tables.csv_file.DECODED_BYTES", 7)
    windows = LATIN.replace(b"\n", b"\r\n")
    for content in (LATIN, windows, windows.replace(b"ann", b"\xc3\xa4n")):
        with pytest.raises(UserError, match=f"line 1502, byte {content.index(0xF1)} of"):
            load(content)


def test_problems_beyond_a_limit_are_not_counted(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gated_backfill.producer.tables.row_file.MAX_PROBLEMS", 20)
    with pytest.raises(UserError, match=r"line 6: day 'x' is not a date.* and at least 15 more"):
        load("day,n\n" + "x,1\n" * 1000, "day")


# -- options ------------------------------------------------------------------------------------------------------


def test_columns_are_renamed(load: Load, local_warehouse: LocalWarehouse) -> None:
    load(",day,first name,Day\n0,2023-02-23,ann,x\n", renames={"": "number", "first name": "name", "Day": "other"})
    assert loaded(local_warehouse) == [{"number": 0, "day": FEB_23, "name": "ann", "other": "x"}]


@pytest.mark.parametrize(
    ("renames", "error"),
    [
        ({"nobody": "x"}, "--rename: there is no column 'nobody'; the columns are 'day', 'name'"),
        ({"name": "day"}, "same name"),
        ({"name": "day"}, "two columns would be named day"),
        ({"name": "n", "day": "n"}, "two columns would be named n"),
        ({"name": "DAY"}, "the columns day and DAY have the same name, but for .*--rename name=NEW_NAME"),
        ({"name": "a b"}, "'a b' is not a valid column name"),
    ],
)
def test_a_name_that_does_not_fit_is_refused(load: Load, renames: dict[str, str], error: str) -> None:
    with pytest.raises(UserError, match=error):
        load(HEADER + GOOD, renames=renames)


def test_a_date_of_another_form_is_refused_with_the_option_that_reads_it(load: Load) -> None:
    with pytest.raises(UserError, match=r"line 2: day '23\.2\.2023' is not a date: .*--date-format"):
        load("day,n\n23.2.2023,1\n", "day")


def test_dates_are_read_by_a_format(load: Load, local_warehouse: LocalWarehouse) -> None:
    load("day,until,name\n23.02.2023,1.3.2023,a\n24.02.2023,,b\n", "day", date_format="%d.%m.%Y")
    assert types_of(local_warehouse) == {"day": "DATE", "until": "DATE", "name": "STRING"}
    rows = {row["name"]: (row["day"], row["until"]) for row in loaded(local_warehouse)}
    assert rows == {"a": (FEB_23, date(2023, 3, 1)), "b": (FEB_24, None)}
    with pytest.raises(UserError, match=r"line 3: day '2023-02-24' is not a date of the form %d\.%m\.%Y"):
        load("day,until,name\n23.02.2023,1.3.2023,a\n2023-02-24,,b\n", date_format="%d.%m.%Y")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252", "latin-1", "UTF8"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_encodings_and_delimiters(load: Load, local_warehouse: LocalWarehouse, encoding: str, delimiter: str) -> None:
    text = (HEADER + '2023-02-23,"Mu\xf1oz"\n').replace(",", delimiter)
    load(text.encode(encoding), encoding=encoding, delimiter=delimiter)
    assert loaded(local_warehouse) == [{"day": FEB_23, "name": "Mu\xf1oz"}]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"encoding": "klingon"}, "--encoding 'klingon' is not known"),
        ({"encoding": "base64"}, "--encoding 'base64' is not known"),
        ({"encoding": "ascii"}, "is not ascii text: .* on line 2, byte"),
        ({"delimiter": ";;"}, "--delimiter ';;' is not one character"),
        ({"delimiter": '"'}, "--delimiter .* is not one character"),
        ({"delimiter": ""}, "--delimiter '' is not one character"),
        ({"encoding": ""}, "--encoding '' is not known"),
    ],
)
def test_options_that_do_not_fit_are_refused(load: Load, options: dict[str, str], error: str) -> None:
    with pytest.raises(UserError, match=error):
        load(HEADER + "2023-02-23,\xf1\n", **options)


@pytest.mark.parametrize("data", [b"na\x00\xd8me", (HEADER + GOOD).encode("utf-16-le")], ids=["surrogate", "text"])
def test_a_file_without_the_byte_order_mark_of_its_encoding_is_refused(load: Load, data: bytes) -> None:
    with pytest.raises(UserError, match="is not utf-16 text"):
        load(data, encoding="utf-16")


def test_options_of_csv_files_are_refused_for_parquet(load: Load) -> None:
    for options in ({"encoding": "utf-8"}, {"delimiter": ";"}):
        with pytest.raises(UserError, match="are for CSV files"):
            load(pa.table({"day": [FEB_23]}), **options)


def test_the_command_takes_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKFILL_HOME", str(tmp_path / "home"))
    file = tmp_path / "rows.csv"
    file.write_bytes("Tag;Name (voll);a=b\n23.02.2023;M\xfcller;007\n".encode("cp1252"))
    arguments = ["x.t", str(file), "--encoding", "cp1252", "--delimiter", ";", "--date-format", "%d.%m.%Y"]
    arguments += ["--rename", "Tag=day", "--rename", "Name (voll)=name", "--rename", "a=b=code"]
    result = CliRunner().invoke(load_command, arguments)
    assert result.exit_code == 0, result.output
    assert "new table, with the columns day DATE, name STRING, code STRING" in result.output
    warehouse = LocalWarehouse(tmp_path / "home" / "warehouse")
    rows = warehouse.query("SELECT * FROM t", scans={"t": scan(span(FEB_23), table=TableName("x", "t"))})
    assert rows.to_pylist() == [{"day": FEB_23, "name": "M\xfcller", "code": "007"}]


# -- Parquet as pandas writes it ----------------------------------------------------------------------------------


@pytest.fixture
def pandas_file(tmp_path: Path) -> Callable[[pd.DataFrame], Path]:
    def write(frame: pd.DataFrame) -> Path:
        frame.to_parquet(tmp_path / "frame.parquet")
        return tmp_path / "frame.parquet"

    return write


WritePandas = Callable[[pd.DataFrame], Path]


def frame_of(**more: Any) -> pd.DataFrame:
    days = pd.to_datetime(["2023-02-23", "2023-02-24"])
    return pd.DataFrame({"day": days, "name": ["a", "b"], **more})


def test_midnights_are_dates(local_warehouse: LocalWarehouse, pandas_file: WritePandas) -> None:
    frame = frame_of(
        at=pd.to_datetime(["2023-02-23 10:00:00.5", "2023-02-24"], format="mixed"), team=pd.Categorical(["x", None])
    )
    result = load_file(local_warehouse, NAME, pandas_file(frame))
    assert result.days == (FEB_23, FEB_24)
    assert types_of(local_warehouse) == {"day": "DATE", "name": "STRING", "at": "DATETIME", "team": "STRING"}
    assert {row["name"]: row["at"] for row in loaded(local_warehouse)} == {
        "a": datetime(2023, 2, 23, 10, 0, 0, 500_000),  # noqa: DTZ001
        "b": datetime(2023, 2, 24),  # noqa: DTZ001
    }


def test_whole_floats_are_integers_where_integers_are_declared(
    local_warehouse: LocalWarehouse, pandas_file: WritePandas
) -> None:
    schema = pa.schema([("day", pa.date32()), ("name", pa.string()), ("n", pa.int64())])
    local_warehouse.load(TABLE, "day", pa.table({"day": [FEB_23], "name": ["x"], "n": [1]}, schema=schema))
    load_file(local_warehouse, NAME, pandas_file(frame_of(n=[9.0, None])))
    assert {row["name"]: row["n"] for row in loaded(local_warehouse)} == {"a": 9, "b": None}
    for value, error in (
        (9.5, "row 2: n 9.5 is not a whole number"),
        (2.0**53 + 2, "row 2: n .* several whole numbers"),
    ):
        with pytest.raises(UserError, match=error):
            load_file(local_warehouse, NAME, pandas_file(frame_of(n=[9.0, value])))


def test_whole_floats_stay_floats_where_nothing_is_declared(
    local_warehouse: LocalWarehouse, pandas_file: WritePandas
) -> None:
    load_file(local_warehouse, NAME, pandas_file(frame_of(n=[9.0, None])))
    assert types_of(local_warehouse)["n"] == "FLOAT64"


def test_an_index_that_counts_the_rows_is_dropped(local_warehouse: LocalWarehouse, tmp_path: Path) -> None:
    file = tmp_path / "indexed.parquet"
    frame_of().to_parquet(file, index=True)
    stored = pa.table({"day": [FEB_23, FEB_24], "name": ["a", "b"], "__index_level_0__": [0, 1]})
    other = pa.table({"day": [FEB_23, FEB_24], "name": ["a", "b"], "__index_level_0__": [5, 7]})
    for table in (stored, None):
        if table is not None:
            pq.write_table(table, file)
        load_file(local_warehouse, NAME, file)
        assert types_of(local_warehouse) == {"day": "DATE", "name": "STRING"}
    pq.write_table(other, file)
    with pytest.raises(UserError, match=r"__index_level_0__ is an index of pandas.*--rename.*index=False"):
        load_file(local_warehouse, NAME, file)
    load_file(local_warehouse, "new.table", file, options=LoadOptions(renames={"__index_level_0__": "number"}))
    assert require_table(local_warehouse, TableName("new", "table")).columns["number"] == "INT64"


@pytest.mark.parametrize(
    ("start", "step", "numbers"), [(0, 1, [0, 1]), (5, 1, [5, 6]), (5, 2, [5, 7]), (1, -1, [1, 0])]
)
def test_an_index_with_a_name_is_a_column(
    local_warehouse: LocalWarehouse, tmp_path: Path, start: int, step: int, numbers: list[int]
) -> None:
    file = tmp_path / "indexed.parquet"
    frame_of().set_index(pd.RangeIndex(start, start + 2 * step, step, name="number")).to_parquet(file)
    assert pq.read_schema(file).names == ["day", "name"]  # the index is in the metadata only
    load_file(local_warehouse, NAME, file)
    assert [row["number"] for row in sorted(loaded(local_warehouse), key=lambda row: row["name"])] == numbers
    load_file(local_warehouse, "new.table", file, options=LoadOptions(renames={"number": "place"}))
    assert require_table(local_warehouse, TableName("new", "table")).columns["place"] == "INT64"


def test_an_index_with_a_name_is_read_in_batches(
    local_warehouse: LocalWarehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gated_backfill.producer.tables.parquet_file.MAX_BATCH_ROWS", 3)
    file = tmp_path / "indexed.parquet"
    index = pd.RangeIndex(7, 27, 2, name="number")
    pd.DataFrame({"day": [FEB_23] * 10, "name": [str(number) for number in index]}, index=index).to_parquet(file)
    load_file(local_warehouse, NAME, file)
    assert all(row["name"] == str(row["number"]) for row in loaded(local_warehouse))


def test_an_index_that_would_be_lost_is_refused(local_warehouse: LocalWarehouse, tmp_path: Path) -> None:
    file = tmp_path / "indexed.parquet"
    frame_of().set_index(pd.RangeIndex(5, 7)).to_parquet(file)
    with pytest.raises(UserError, match=r"index of pandas has no name and does not count the rows: .*reset_index"):
        load_file(local_warehouse, NAME, file)
    table = pa.Table.from_pandas(frame_of().set_index(pd.RangeIndex(5, 7, name="number")))
    pq.write_table(table.slice(1), file)
    with pytest.raises(UserError, match=r"index of pandas, number, was for 2 row\(s\), not for these: .*reset_index"):
        load_file(local_warehouse, NAME, file)
    pq.write_table(table.replace_schema_metadata({"pandas": '{"index_columns": [{}]}'}), file)
    with pytest.raises(UserError, match="metadata of pandas can't be read"):
        load_file(local_warehouse, NAME, file)
    pq.write_table(pa.Table.from_pandas(frame_of()).slice(1), file)
    load_file(local_warehouse, NAME, file)
    assert types_of(local_warehouse) == {"day": "DATE", "name": "STRING"}


NANOSECOND = pa.array([1_677_146_400_000_000_001], pa.timestamp("ns"))


@pytest.mark.parametrize(
    ("columns", "error"),
    [
        pytest.param({"n": pa.array([2**64 - 1], pa.uint64())}, "row 1: n .* does not fit in 64 bits", id="64-bits"),
        pytest.param({"at": NANOSECOND}, "row 1: at .* beyond microseconds", id="nanoseconds"),
        pytest.param({"at": NANOSECOND.cast(pa.timestamp("ns", "UTC"))}, "row 1: at .* beyond micro", id="zoned"),
        pytest.param({"at": pa.array([2**60], pa.timestamp("us"))}, "row 1: at is outside the years", id="far"),
        pytest.param({"n": pa.array([1.5, float("nan")][1:])}, "row 1: n nan is not a finite number", id="nan"),
    ],
)
def test_a_parquet_value_that_is_not_kept_is_refused_by_row(load: Load, columns: dict[str, Any], error: str) -> None:
    with pytest.raises(UserError, match=error):
        load(pa.table({"day": [FEB_23], **columns}))


PRICED: ColumnTypes = {"day": "DATE", "price": "NUMERIC", "photo": "BYTES"}


@pytest.mark.parametrize(
    ("price", "expected"),
    [
        (pa.array(["12345678901234567890.123456789"]), "12345678901234567890.123456789"),
        (pa.array(["1e2"]), "100"),
        (pa.array(["-.5000000000"]), "-0.5"),
        (pa.array(["0e99"]), "0"),
        (pa.array([7]), "7"),
        (pa.array([Decimal("2.50")]), "2.5"),
        (pa.array([Decimal(8)]), "8"),
    ],
)
def test_decimal_numbers_are_loaded_exactly(
    load: Load, local_warehouse: LocalWarehouse, price: Any, expected: str
) -> None:
    local_warehouse.create_table(TABLE, PRICED, "day")
    load(pa.table({"day": [FEB_23], "price": price, "photo": pa.array([b"\x00"])}))
    assert loaded(local_warehouse) == [{"day": FEB_23, "price": Decimal(expected), "photo": b"\x00"}]


@pytest.mark.parametrize(
    ("price", "error"),
    [
        (pa.array(["1.0000000001"]), "row 1: price '1.0000000001' has more digits than a NUMERIC keeps"),
        (pa.array(["1e29"]), "row 1: price '1e29' has more digits than a NUMERIC keeps"),
        (pa.array(["nan"]), "row 1: price 'nan' is not a decimal number"),
        (pa.array(["1,5"]), "row 1: price '1,5' is not a decimal number"),
        (pa.array([Decimal("0.0000000001")], pa.decimal128(38, 10)), r"column price is decimal128\(38, 10\)"),
        (pa.array([0.1]), "row 1: price 0.1 is a FLOAT64, which is no exact decimal number"),
        (pa.array([True]), "row 1: price True is not a decimal number"),
    ],
)
def test_what_is_no_decimal_number_is_refused_by_row(
    load: Load, local_warehouse: LocalWarehouse, price: Any, error: str
) -> None:
    local_warehouse.create_table(TABLE, PRICED, "day")
    with pytest.raises(UserError, match=error):
        load(pa.table({"day": [FEB_23], "price": price, "photo": pa.array([b""])}))
    assert loaded(local_warehouse) == []


def test_text_is_no_bytes(load: Load, local_warehouse: LocalWarehouse) -> None:
    local_warehouse.create_table(TABLE, PRICED, "day")
    with pytest.raises(UserError, match="line 2: photo 'x' is not bytes: load them from a Parquet file"):
        load("day,price,photo\n2023-02-23,1,x\n")


def test_a_date_column_of_midnights_in_another_zone_is_refused(load: Load) -> None:
    midnight = pa.array([datetime(2023, 2, 23, 5, tzinfo=UTC)], pa.timestamp("us", "America/New_York"))
    with pytest.raises(UserError, match=r"row 1: day .* is a time in a zone, not a date"):
        load(pa.table({"day": midnight}), "day")
    utc = pa.array([datetime(2023, 2, 23, tzinfo=UTC)], pa.timestamp("us", "UTC"))
    assert load(pa.table({"day": utc}), "day").days == (FEB_23,)


def test_a_folder_without_room_for_a_temporary_file_is_named(
    local_warehouse: LocalWarehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(HEADER + GOOD)
    with pytest.raises(UserError, match="nowhere: no temporary file can be written there: No such file"):
        load_file(local_warehouse, NAME, file, spool_folder=tmp_path / "nowhere")
    full = os.open("/dev/full", os.O_RDWR)
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: os.fdopen(full, "w+b"))
    with pytest.raises(UserError, match="no temporary file can be written there: No space left"):
        load_file(local_warehouse, NAME, file, spool_folder=tmp_path)
    assert not local_warehouse.root.exists()


# -- memory -------------------------------------------------------------------------------------------------------

MEASURE = """
import json, resource, sys
from pathlib import Path
import pandas, pyarrow
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from gated_backfill.producer.tables.load import load_file
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = load_file(LocalWarehouse(Path(sys.argv[2])), "x.t", Path(sys.argv[1]), "day").rows
print(json.dumps([rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024]))
"""
MEMORY_MB = 110  #: more than before the load, of a file of 50 MB
BLOCKS, BLOCK_ROWS = 40, 10_000


def blocks() -> Iterator[pa.Table]:
    days = pa.array([date.fromordinal(738_000 + n % 300) for n in range(BLOCK_ROWS)])
    names = [
        f"the name of player {n:09d} with some more text as there is in a comment or in an address"
        for n in range(BLOCK_ROWS)
    ]
    for block in range(BLOCKS):
        numbers = pa.array(range(block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS))
        yield pa.table({"day": days, "name": names, "n": numbers, "share": [n / 7 for n in range(BLOCK_ROWS)]})


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_file_need_not_fit_into_memory(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"rows.{suffix}"
    if suffix == "csv":
        with pa.OSFile(str(file), "wb") as sink:
            for n, block in enumerate(blocks()):
                write_csv(block, sink, WriteOptions(include_header=n == 0, quoting_style="none"))
    else:
        pq.write_table(pa.concat_tables(blocks()), file, compression="none", use_dictionary=False)
    assert file.stat().st_size > 45_000_000
    command = [sys.executable, "-c", MEASURE, str(file), str(tmp_path / "warehouse")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ}).stdout
    rows, megabytes = json.loads(printed)
    assert rows == BLOCKS * BLOCK_ROWS
    assert megabytes < MEMORY_MB
    whole = LocalWarehouse(tmp_path / "warehouse").row_counts(
        TableName("x", "t"), "day", DateRange(start=date(2000, 1, 1), through=date(2100, 1, 1))
    )
    assert sum(whole.values()) == rows
    assert len(whole) == 300
