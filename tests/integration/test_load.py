"""Loading a file: every value checked first, then all of it or nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, date, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gated_backfill.common.errors import SchemaMismatch, UserError
from gated_backfill.common.model.dates import consecutive_ranges
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.bigquery.warehouse import BigQueryWarehouse
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from gated_backfill.common.warehouse.protocol import Scan, Warehouse, require_table
from gated_backfill.producer.tables.load import LoadOptions, LoadResult, load_file
from gated_backfill.worker.jobs.player_composite_factors import JOB as PLAYER_JOB
from tests.builders import DAYS, FEB_23, FEB_24, TABLE, counts, rows_of, scan, span, tree

NAME = str(TABLE)
UPCOMING = PLAYER_JOB.sources[0].table


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    return tmp_path / "rows.csv"


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    return tmp_path / "rows.parquet"


def load_text(warehouse: Warehouse, csv: Path, text: str, date_column: str | None = None) -> LoadResult:
    csv.write_text(text, encoding="utf-8", newline="")
    return load_file(warehouse, NAME, csv, date_column)


def load_table(warehouse: Warehouse, parquet: Path, **columns: Any) -> LoadResult:
    pq.write_table(pa.table(columns), parquet)
    return load_file(warehouse, NAME, parquet, None)


def rows_in(warehouse: Warehouse) -> list[dict[str, Any]]:
    return warehouse.query("SELECT * FROM t", scans={"t": scan(span(FEB_23, FEB_24))}).to_pylist()


def types_in(warehouse: Warehouse) -> dict[str, str]:
    return dict(require_table(warehouse, TABLE).columns)


# -- what is loaded -----------------------------------------------------------------------------------------------


def test_a_csv_file_becomes_a_table_of_the_types_its_values_have(warehouse: Warehouse, csv: Path) -> None:
    lines = ["player,day,games,share,active,note", "a,2023-02-23,3,0.5,true,"]
    lines.append('b,2023-02-24,-4,1000.25,false,"two\nlines, ""quoted"""\n')
    loaded = load_text(warehouse, csv, "\n".join(lines))
    assert (loaded.rows, loaded.days) == (2, (FEB_23, FEB_24))
    texts = {"player": "STRING", "note": "STRING"}
    assert types_in(warehouse) == {"day": "DATE", "games": "INT64", "share": "FLOAT64", "active": "BOOL", **texts}
    assert sorted(rows_in(warehouse), key=lambda row: row["player"]) == [
        {"player": "a", "day": FEB_23, "games": 3, "share": 0.5, "active": True, "note": None},
        {"player": "b", "day": FEB_24, "games": -4, "share": 1000.25, "active": False, "note": 'two\nlines, "quoted"'},
    ]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("0042", id="leading-zeros"),
        pytest.param("-007", id="signed-leading-zeros"),
        pytest.param("00.5", id="leading-zeros-of-a-fraction"),
        pytest.param(" 0042", id="a-space-before-leading-zeros"),
        pytest.param("1_000", id="underscore"),
        pytest.param("1٣", id="digits-of-another-script"),
        pytest.param("20230223000000000042", id="more-than-64-bits"),
        pytest.param("nan", id="nan"),
        pytest.param("inf", id="infinity"),
        pytest.param("1e999", id="beyond-any-float"),
        pytest.param("0x1F", id="hexadecimal"),
        pytest.param("1,5", id="comma"),
        pytest.param("yes", id="yes"),
        pytest.param("2023-2-3", id="short-date"),
    ],
)
def test_a_text_that_a_number_would_not_keep_stays_text(warehouse: Warehouse, csv: Path, text: str) -> None:
    load_text(warehouse, csv, f'day,code\n2023-02-23,"{text}"\n')
    assert rows_in(warehouse) == [{"day": FEB_23, "code": text}]


def test_one_value_that_is_no_number_makes_its_column_text(warehouse: Warehouse, csv: Path) -> None:
    load_text(warehouse, csv, "day,code\n2023-02-23,7\n2023-02-23,007\n")
    assert sorted(row["code"] for row in rows_in(warehouse)) == ["007", "7"]


def test_a_column_without_values_is_text(warehouse: Warehouse, csv: Path) -> None:
    load_text(warehouse, csv, "day,code\n2023-02-23,\n")
    assert types_in(warehouse)["code"] == "STRING"


def test_a_byte_order_mark_windows_lines_and_empty_lines_do_no_harm(warehouse: Warehouse, csv: Path) -> None:
    load_text(warehouse, csv, "\ufeffday,n\r\n2023-02-23,1\r\n\r\n2023-02-24,2\r\n")
    assert counts(warehouse, *DAYS) == {FEB_23: 1, FEB_24: 1}


def test_loading_again_replaces_the_dates_of_the_file_only(warehouse: Warehouse, csv: Path) -> None:
    load_text(warehouse, csv, "day,n\n2023-02-23,1\n2023-02-24,1\n2023-02-24,2\n")
    load_text(warehouse, csv, "day,n\n2023-02-23,5\n2023-02-23,6\n2023-02-23,7\n")
    assert counts(warehouse, *DAYS) == {FEB_23: 3, FEB_24: 2}


def test_an_existing_table_decides_the_types(warehouse: Warehouse, csv: Path) -> None:
    warehouse.load(TABLE, "day", rows_of(FEB_23))
    load_text(warehouse, csv, "day,score,player\n2023-02-24,7,0042\n")
    assert types_in(warehouse) == {"player": "STRING", "day": "DATE", "score": "FLOAT64"}
    assert {"player": "0042", "day": FEB_24, "score": 7.0} in rows_in(warehouse)


def test_the_jobs_that_read_a_table_decide_its_types_and_date_column(warehouse: Warehouse, csv: Path) -> None:
    declared = PLAYER_JOB.declared_types()[UPCOMING]
    values = {
        name: {"STRING": "0042", "INT64": "1", "FLOAT64": "1", "BOOL": "1"}.get(kind, "2023-02-23")
        for name, kind in declared.items()
    } | {"game_date": "2023-02-23"}
    csv.write_text(",".join(values) + "\n" + ",".join(values.values()) + "\n")
    assert load_file(warehouse, UPCOMING, csv, None).days == (FEB_23,)
    found = require_table(warehouse, TableName.parse(UPCOMING))
    assert found.partitioned_by == "game_date"
    assert dict(found.columns) == {**declared, "game_date": "DATE"}


def test_a_job_that_can_not_be_loaded_stops_no_load(
    warehouse: Warehouse, csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "broken-1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[backfill.jobs]\nbroken = no_such_module:JOB\n")
    monkeypatch.syspath_prepend(package.parent)

    csv.write_text("player_lookup,game_id,game_date,season,season_type\na,0042,2023-02-23,2022-23,regular\n")
    declared = load_file(warehouse, "nba_reference.schedule", csv, None)
    new = load_text(warehouse, csv, "day,n\n2023-02-23,5\n")
    again = load_text(warehouse, csv, "day,n\n2023-02-24,6\n")

    for result in (declared, new):
        assert result.describe().endswith("; without the column types of jobs that can't be loaded: broken")
    assert again.describe() == f"{NAME}: 1 row(s) on 1 date(s) loaded: 2023-02-24"
    assert counts(warehouse, *DAYS) == {FEB_23: 1, FEB_24: 1}


def test_a_parquet_file_keeps_its_types_and_narrow_ones_are_widened(warehouse: Warehouse, parquet: Path) -> None:
    columns = {
        "day": (pa.array([FEB_23]), "DATE", FEB_23),
        "small": (pa.array([7], pa.int32()), "INT64", 7),
        "tiny": (pa.array([7], pa.uint8()), "INT64", 7),
        "single": (pa.array([0.5], pa.float32()), "FLOAT64", 0.5),
        "word": (pa.array(["0042"]).dictionary_encode(), "STRING", "0042"),
        "long": (pa.array(["x"], pa.large_string()), "STRING", "x"),
    }
    load_table(warehouse, parquet, **{name: values for name, (values, _, _) in columns.items()})
    assert types_in(warehouse) == {name: kind for name, (_, kind, _) in columns.items()}
    assert rows_in(warehouse) == [{name: value for name, (_, _, value) in columns.items()}]


def test_columns_are_added_if_that_is_asked_for(warehouse: Warehouse, csv: Path) -> None:
    warehouse.load(TABLE, "day", rows_of(FEB_23, players=1))
    text = "player,day,score,team,code\na,2023-02-24,1.5,x,007\n"
    with pytest.raises(SchemaMismatch, match=r"differing: team STRING, code STRING: add them.*--add-columns"):
        load_text(warehouse, csv, text)
    csv.write_text(text.replace("1.5", "many"))
    before = types_in(warehouse)
    with pytest.raises(UserError, match="line 2: score 'many'"):
        load_file(warehouse, NAME, csv, options=LoadOptions(add_columns=True))
    assert types_in(warehouse) == before
    csv.write_text(text)
    result = load_file(warehouse, NAME, csv, options=LoadOptions(add_columns=True))
    assert (result.is_new, result.new_columns) == (False, {"team": "STRING", "code": "STRING"})
    assert types_in(warehouse) == {**before, "team": "STRING", "code": "STRING"}
    assert sorted((row["player"], row["team"], row["code"]) for row in rows_in(warehouse)) == [
        ("a", "x", "007"),
        ("player000", None, None),
    ]
    load_file(warehouse, NAME, csv, options=LoadOptions(add_columns=True))


def test_no_column_is_added_for_rows_that_are_refused_locally(local_warehouse: LocalWarehouse, csv: Path) -> None:
    local_warehouse.load(TABLE, "day", rows_of(FEB_23, players=1))
    (partition,) = (local_warehouse.root / TABLE.dataset / TABLE.table).glob("day=*")
    shutil.copy(partition / "part.parquet", partition / "other.parquet")
    before = local_warehouse.describe(TABLE)
    csv.write_text("player,day,score,team\na,2023-02-23,1.5,x\n")

    with pytest.raises(SchemaMismatch, match=r"other\.parquet, which is not ours"):
        load_file(local_warehouse, NAME, csv, options=LoadOptions(add_columns=True))

    assert local_warehouse.describe(TABLE) == before


def test_no_column_is_added_for_more_dates_than_one_job_takes(
    bigquery_warehouse: BigQueryWarehouse, csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bigquery_warehouse.load(TABLE, "day", rows_of(FEB_23, players=1))
    monkeypatch.setattr("gated_backfill.common.warehouse.bigquery.parameters.MAX_PARTITIONS_PER_JOB", 1)
    before = types_in(bigquery_warehouse)
    csv.write_text("player,day,score,team\na,2023-02-23,1.5,x\na,2023-02-24,1.5,x\n")

    with pytest.raises(UserError, match="2 dates at once"):
        load_file(bigquery_warehouse, NAME, csv, options=LoadOptions(add_columns=True))

    assert types_in(bigquery_warehouse) == before


def test_the_date_column_can_be_named(warehouse: Warehouse, csv: Path) -> None:
    text = "born,played\n1990-01-01,2023-02-23\n"
    with pytest.raises(UserError, match="--date-column: it has 2: born, played"):
        load_text(warehouse, csv, text)
    load_text(warehouse, csv, text, "played")
    assert require_table(warehouse, TABLE).partitioned_by == "played"


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.fixture
def unharmed(warehouse: Warehouse) -> Iterator[Warehouse]:
    """A warehouse with a table that must be the same after the test."""
    warehouse.load(TABLE, "day", rows_of(*DAYS))
    before = warehouse.fingerprints(TABLE, "day", DAYS)
    yield warehouse
    assert warehouse.fingerprints(TABLE, "day", DAYS) == before
    assert counts(warehouse, date(2023, 2, 22), *DAYS, date(2023, 3, 1)) == dict.fromkeys(DAYS, 3)


HEADER = "player,day,score\n"
GOOD = "a,2023-02-23,1.5\n"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        pytest.param(HEADER + GOOD + "b,2023-02-23,many\n", "line 3: score 'many' is not a number", id="no-number"),
        pytest.param(
            HEADER + "b,2023-02-23,nan\n", "line 2: score 'nan' is not a finite number", id="no-finite-number"
        ),
        pytest.param(HEADER + "b,2023-02-30,1\n", "line 2: day 2023-02-30 is not a date", id="no-such-date"),
        pytest.param(HEADER + GOOD + GOOD + "b,,1\n", "line 4: day is empty", id="date-missing"),
        pytest.param(
            HEADER + '"two\nlines",2023-02-23,1\n"and\n\nfour",2023-02-23,2\nb,2023-02-23,x\n',
            "line 7: score 'x'",
            id="after-quoted-newlines",
        ),
        pytest.param(
            HEADER + GOOD + '"two\nlines",2023-02-23,x\n', "line 3: score 'x'", id="in-a-row-of-several-lines"
        ),
        pytest.param(HEADER + "\n\n" + "b,2023-02-23,x\n", "line 4: score 'x'", id="after-empty-lines"),
        pytest.param(HEADER + GOOD + "b,2023-02-23\n", "line 3: 2 fields, the header has 3", id="too-few-fields"),
        pytest.param(HEADER + "b,2023-02-23,1,2\n", "line 2: 4 fields, the header has 3", id="too-many-fields"),
        pytest.param("player,day,player\na,2023-02-23,1\n", "two columns have the same name", id="duplicate-column"),
        pytest.param(
            "player,day,sco re\na,2023-02-23,1\n", "'sco re' is not a valid column name", id="bad-column-name"
        ),
        pytest.param("player,day,\na,2023-02-23,1\n", "not a valid column name", id="column-without-a-name"),
        pytest.param("player,day\na,2023-02-23\n", r"lacks the column\(s\) score", id="missing-column"),
        pytest.param("player,day,score,x\na,2023-02-23,1,2\n", "differing: x INT64", id="unknown-column"),
        pytest.param("player,score\na,1\n", "no date column day", id="no-date-column"),
        pytest.param("", "is empty", id="empty"),
        pytest.param(HEADER, "holds no rows", id="header-only"),
        pytest.param(HEADER + '"a,2023-02-23,1\n', "can't be read", id="open-quote"),
        pytest.param(HEADER + '"a"b,2023-02-23,1\n', "can't be read", id="text-after-a-quote"),
    ],
)
def test_a_csv_file_that_does_not_fit_is_refused_whole(unharmed: Warehouse, csv: Path, text: str, error: str) -> None:
    with pytest.raises(UserError, match=error):
        load_text(unharmed, csv, text)


def test_the_first_problems_are_listed_in_the_order_of_the_file(unharmed: Warehouse, csv: Path) -> None:
    bad = "".join(f"a,2023-02-23,x{n}\n" for n in range(3)) + "".join(f"a,2023-02-{n},1\n" for n in (30, 31, 32, 33))
    with pytest.raises(UserError) as refused:
        load_text(unharmed, csv, HEADER + bad)
    error = str(refused.value)
    assert [error.index(f"line {n}:") for n in range(2, 7)] == sorted(error.index(f"line {n}:") for n in range(2, 7))
    assert "line 7" not in error
    assert error.endswith("and 2 more")


def test_another_date_column_than_the_tables_is_refused(unharmed: Warehouse, csv: Path) -> None:
    with pytest.raises(SchemaMismatch, match="no date column nobody"):
        load_text(unharmed, csv, HEADER + GOOD, "nobody")
    with pytest.raises(UserError):
        load_text(unharmed, csv, HEADER + GOOD, "player")


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        pytest.param("rows.csv", "größe".encode("latin-1"), "not UTF-8 text", id="not-utf-8"),
        pytest.param("rows.csv", b"\xff\xfed\0a\0y\0", "not UTF-8 text", id="utf-16"),
        pytest.param("rows.json", b"{}", r"neither \.csv nor \.parquet", id="unknown-suffix"),
        pytest.param("rows", b"", r"neither \.csv nor \.parquet", id="no-suffix"),
        pytest.param("rows.parquet", b"PAR1 not really PAR1", "can't be read", id="no-parquet"),
        pytest.param("rows.parquet", b"", "can't be read", id="empty-parquet"),
    ],
)
def test_another_file_is_refused(unharmed: Warehouse, tmp_path: Path, name: str, content: bytes, error: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=error):
        load_file(unharmed, NAME, tmp_path / name, None)


def test_a_file_that_is_not_there_or_a_folder_is_refused(unharmed: Warehouse, tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for name in ("nothing.csv", "nothing.parquet", "folder.csv"):
        with pytest.raises(UserError, match="can't be read"):
            load_file(unharmed, NAME, tmp_path / name, None)


def test_a_table_that_a_job_reads_must_have_the_columns_it_reads(warehouse: Warehouse, csv: Path) -> None:
    csv.write_text("player_lookup,game_date\na,2023-02-23\n")
    with pytest.raises(SchemaMismatch, match=r"lacks the column\(s\).*game_id"):
        load_file(warehouse, UPCOMING, csv, None)
    assert warehouse.describe(TableName.parse(UPCOMING)) is None


ROWS = {"player": ["a"], "day": [FEB_23], "score": [1.5]}
NOON = datetime(2023, 2, 23, 12)  # noqa: DTZ001 - a time without a zone
NO_DATE = pa.array([2**31 - 1], pa.int32()).view(pa.date32())


@pytest.mark.parametrize(
    ("columns", "error"),
    [
        pytest.param({**ROWS, "player": [5]}, "row 1: player 5 is not text", id="number-for-text"),
        pytest.param({**ROWS, "score": ["many"]}, "row 1: score 'many' is not a number", id="text-for-a-number"),
        pytest.param({**ROWS, "score": [float("inf")]}, "row 1: score inf is not a finite number", id="infinity"),
        pytest.param({**ROWS, "score": [True]}, "score True", id="boolean-for-a-number"),
        pytest.param({**ROWS, "day": [1]}, "row 1: day '1' is not a date", id="number-for-a-date"),
        pytest.param({**ROWS, "day": pa.array([None], pa.date32())}, "row 1: day is empty", id="date-missing"),
        pytest.param({**ROWS, "day": [NOON]}, "row 1: day .* has a time of day", id="time-of-day"),
        pytest.param({**ROWS, "day": NO_DATE}, "row 1: day is outside the years", id="beyond-any-date"),
        pytest.param({**ROWS, "score": [[1.5]]}, "column score is list", id="list"),
        pytest.param({**ROWS, "score": pa.array([2**64 - 1], pa.uint64())}, "row 1: score .* digits", id="64-bits"),
        pytest.param({"player": ["a"], "day": [FEB_23]}, r"lacks the column\(s\) score", id="missing-column"),
        pytest.param({name: pa.array([], pa.string()) for name in ROWS}, "holds no rows", id="no-rows"),
    ],
)
def test_a_misfit_parquet_file_is_refused(unharmed: Warehouse, parquet: Path, columns: Any, error: str) -> None:
    with pytest.raises(UserError, match=error):
        load_table(unharmed, parquet, **columns)


def test_a_parquet_file_with_two_columns_of_one_name_is_refused(unharmed: Warehouse, parquet: Path) -> None:
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array([FEB_23]), pa.array(["b"])], ["player", "day", "player"])
    pq.write_table(twice, parquet)
    with pytest.raises(UserError, match="player"):
        load_file(unharmed, NAME, parquet, None)


def test_moments_keep_their_zone_and_are_never_cut_to_a_date(warehouse: Warehouse, csv: Path, parquet: Path) -> None:
    moment = datetime(2023, 2, 23, 19, 30, tzinfo=UTC)
    moments = pa.array([moment], pa.timestamp("us", tz="UTC"))
    load_table(warehouse, parquet, player=["a"], day=[FEB_23], at=moments)
    assert [row["at"] for row in rows_in(warehouse)] == [moment]

    load_text(warehouse, csv, "player,day,at\na,2023-02-23,2023-02-23T20:30:00+01:00\n")
    assert [row["at"] for row in rows_in(warehouse)] == [moment]
    with pytest.raises(UserError, match="line 2: at '2023-02-23T20:30:00' has no zone"):
        load_text(warehouse, csv, "player,day,at\na,2023-02-23,2023-02-23T20:30:00\n")
    with pytest.raises(UserError, match="has a time of day"):
        load_table(warehouse, parquet, player=["a"], day=moments, at=moments)


@pytest.mark.parametrize("table", ["players", "nba.players;", "../x.y", "a.b.c"])
def test_a_wrong_table_name_is_refused(unharmed: Warehouse, csv: Path, table: str) -> None:
    csv.write_text(HEADER + GOOD)
    with pytest.raises(UserError):
        load_file(unharmed, table, csv, None)


# -- whatever a file holds ----------------------------------------------------------------------------------------

USUAL_FIELDS = ["2023-02-23", "1", "0042", "1.5", "true", "", '"a\nb"', '"', "x'y", "9" * 30]
FIELDS = st.sampled_from(USUAL_FIELDS) | st.text(max_size=6)
RAGGED = st.lists(st.lists(FIELDS, max_size=4).map(",".join), max_size=5).map("\n".join)
NEARLY_RIGHT = st.lists(
    st.tuples(st.dates().map(str) | st.just("2023-02-23"), FIELDS).map(",".join), min_size=1, max_size=5
).map(lambda rows: "\n".join(["day,n", *rows]))
numbers = count()


@settings(max_examples=200)
@given(text=NEARLY_RIGHT | RAGGED | st.text(), date_column=st.sampled_from([None, "day"]))
@example(text="day,n\n2023-02-23," + "9" * 5000, date_column=None)
@example(text="day,n\n2023-02-23," + "x" * 200_000, date_column=None)
@example(text="day,n\n0001-01-01,1\n9999-12-31,2", date_column=None)
@example(text="day,n\n2023-02-23,\0", date_column=None)
@example(text="day,day2,N,n\n2023-02-23,,1,2", date_column="day")
def test_whatever_text_a_file_holds_it_is_loaded_or_refused(
    tmp_path_factory: pytest.TempPathFactory, text: str, date_column: str | None
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"any-text-{next(numbers)}"
    folder.mkdir()
    warehouse = LocalWarehouse(folder / "warehouse")
    try:
        loaded = load_text(warehouse, folder / "rows.csv", text, date_column)
    except UserError:
        assert tree(folder) == {}
        return
    info = warehouse.describe(TABLE)
    assert info is not None
    assert info.partitioned_by is not None
    whole = Scan(table=TABLE, date_column=info.partitioned_by, dates=tuple(consecutive_ranges(loaded.days)))
    assert warehouse.read(whole).num_rows == loaded.rows > 0
