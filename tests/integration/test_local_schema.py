"""One reading of local tables, whatever other programs wrote into their partitions."""

from __future__ import annotations

import os
import random
import re
import shutil
import time
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.model.job import Expectation, Input, Job, Source, Target
from gated_backfill.common.model.publication import Backup
from gated_backfill.common.model.tables import Column, ColumnTypes
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.storage.staging import Staging
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from gated_backfill.common.warehouse.protocol import ABSENT, Scan, require_table
from gated_backfill.worker.dates.sources import read_inputs
from tests.builders import (
    DAYS,
    FEB_23,
    FEB_24,
    FEB_25,
    TABLE,
    counts,
    publication_of,
    rows_of,
    scan,
    span,
    staged,
    tree,
)

ALL_DAYS = scan(span(FEB_23, FEB_25))
PLAYER, N = frozenset({"player"}), frozenset({"n"})
NAIVE_NOON = datetime(2023, 2, 23, 12)  # noqa: DTZ001 - a DATETIME has no zone


def part_of(warehouse: LocalWarehouse, day: date) -> Path:
    return warehouse.root / "nba" / "factors" / f"day={day}" / "part.parquet"


def write_foreign(warehouse: LocalWarehouse, day: date, name: str = "part.parquet", /, **columns: Any) -> Path:
    """Write rows as another program does; the date column is a DATE unless it is given."""
    length = len(next(iter(columns.values())))
    file = part_of(warehouse, day).with_name(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    values = {"day": pa.array([day] * length, pa.date32())} | columns
    pq.write_table(pa.table(values), file.with_name(".x.tmp"))
    file.with_name(".x.tmp").replace(file)
    return file


def settle(warehouse: LocalWarehouse) -> None:
    """Make all files and folders look old, so that what was read of them is cached."""
    long_ago = time.time() - 3600
    for path in (warehouse.root, *warehouse.root.rglob("*")):
        os.utime(path, (long_ago, long_ago))


def described(warehouse: LocalWarehouse) -> dict[str, str]:
    info = warehouse.describe(TABLE)
    assert info is not None
    return dict(info.columns)


def values(rows: pa.Table, column: str = "n") -> list[Any]:
    return rows.sort_by("day")[column].to_pylist()


def read(warehouse: LocalWarehouse, **more: Any) -> pa.Table:
    return warehouse.read(Scan(table=TABLE, date_column="day", dates=(span(FEB_23, FEB_25),), **more))


# -- types ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", range(3))
def test_a_narrow_integer_on_any_day_changes_nothing(local_warehouse: LocalWarehouse, odd: int) -> None:
    for number, day in enumerate(DAYS):
        write_foreign(local_warehouse, day, n=pa.array([number], pa.int32() if number == odd else pa.int64()))
    assert described(local_warehouse) == {"day": "DATE", "n": "INT64"}
    for once in (True, False):
        rows = local_warehouse.read(ALL_DAYS, once=once)
        assert (values(rows), rows["n"].type) == ([0, 1, 2], pa.int64())
    asked = {"t": scan(span(DAYS[odd]))}
    assert local_warehouse.query("SELECT n FROM t", scans=asked).schema.field("n").type == pa.int64()


def test_integers_that_pandas_wrote_as_floats_are_integers_where_the_job_says_so(
    local_warehouse: LocalWarehouse,
) -> None:
    write_foreign(local_warehouse, FEB_23, n=pa.array([1]))
    write_foreign(local_warehouse, FEB_24, n=pa.array([5.0, float("nan")]))
    assert described(local_warehouse)["n"] == "FLOAT64"
    info = local_warehouse.describe(TABLE)
    assert info is not None
    info.check_columns("day", {"n": "INT64"})
    assert values(read(local_warehouse, types={"n": "INT64"})) == [1, 5, None]
    write_foreign(local_warehouse, FEB_25, n=pa.array([5.5]))
    error = rf"nba\.factors, partition day={FEB_25}: column n holds 5.5, the job declares it as INT64"
    with pytest.raises(SchemaMismatch, match=error):
        read(local_warehouse, types={"n": "INT64"})


def test_process_gets_the_types_that_the_job_declares(local_warehouse: LocalWarehouse) -> None:
    write_foreign(local_warehouse, FEB_23, who=pa.array(["a"]), n=pa.array([1]))
    write_foreign(local_warehouse, FEB_24, who=pa.array(["a", "b"]), n=pa.array([5.0, float("nan")]))
    types: ColumnTypes = {"who": "STRING", "n": "INT64"}
    columns = {"who": Column(type="STRING"), "day": Column(type="DATE")}
    job = Job(
        name="typed",
        version="1",
        target=Target(table="nba.made", date_column="day", key=("who",), columns=columns),
        expectation=Expectation(table=str(TABLE), date_column="day", entity="who"),
        sources=(Source(name="main", table=str(TABLE), date_column="day", columns=types),),
        inputs=(Input(name="more", table=str(TABLE), date_column="day", columns=types),),
        process=lambda batch: batch.rows,
    )
    for days in ([FEB_24], [FEB_23, FEB_24]):
        frame = read_inputs(local_warehouse, job, days)["more"]
        assert frame is not None
        assert str(frame["n"].dtype) == "Int64"
        assert frame["n"].to_list()[-2] == 5
        assert frame["n"].isna().to_list()[-2:] == [False, True]


def test_a_column_of_two_kinds_is_refused_once_it_is_asked_for(local_warehouse: LocalWarehouse) -> None:
    write_foreign(local_warehouse, FEB_23, n=pa.array([5]), x=pa.array([1]))
    write_foreign(local_warehouse, FEB_24, n=pa.array(["five"]), x=pa.array([2]))
    assert values(read(local_warehouse, columns={"day": "day", "x": "x"}), "x") == [1, 2]
    error = rf"column n is INT64 in partition day={FEB_23} and STRING in partition day={FEB_24}"
    for columns in (None, {"day": "day", "entity": "n"}):
        with pytest.raises(SchemaMismatch, match=error):
            read(local_warehouse, columns=columns)


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("expression", ["uuid()", "'{}'::JSON", "INTERVAL 3 DAY", "[1, 2]"])
def test_a_column_of_an_unsupported_type_is_refused_only_when_it_is_read(
    local_warehouse: LocalWarehouse, expression: str, once: bool
) -> None:
    for number, day in enumerate(DAYS):
        file = part_of(local_warehouse, day)
        file.parent.mkdir(parents=True)
        select = f"SELECT DATE '{day}' AS day, {number}::BIGINT AS n, {expression} AS x"
        duckdb.sql(f"COPY ({select}) TO '{file}' (FORMAT parquet)")  # its UUID and JSON are extension types of Arrow
    settle(local_warehouse)
    for _ in range(2):  # the second time, rows that are read more than once come from the cache
        rows = local_warehouse.read(scan(span(FEB_23, FEB_25), columns={"day": "day", "n": "n"}), once=once)
        assert values(rows) == [0, 1, 2]
    with pytest.raises(SchemaMismatch, match=r"^nba\.factors: column x is .*, not STRING$"):
        require_table(local_warehouse, TABLE).check_columns("day", {"x": "STRING"})
    with pytest.raises(
        SchemaMismatch, match=rf"partition day={FEB_23}: column x holds .*, the job declares it as STRING"
    ):
        read(local_warehouse, columns={"day": "day", "x": "x"}, types={"x": "STRING"})
    with pytest.raises(SchemaMismatch, match=r"column x is .*; a table without a schema\.json may have such columns"):
        local_warehouse.refresh_schema(TABLE)


def test_values_that_do_not_fit_a_declared_schema_are_named(local_warehouse: LocalWarehouse) -> None:
    local_warehouse.load(TABLE, "day", rows_of(FEB_23))
    write_foreign(local_warehouse, FEB_24, player=pa.array(["a"]), score=pa.array(["high"]))
    error = rf"nba\.factors, partition day={FEB_24}: column score holds text, the table's column is FLOAT64"
    for ask in (lambda: read(local_warehouse), lambda: counts(local_warehouse, *DAYS)):
        with pytest.raises(SchemaMismatch, match=error):
            ask()
    assert local_warehouse.read(scan(span(FEB_23))).num_rows == 3


def test_a_partition_that_is_replaced_by_one_of_another_type_is_noticed(local_warehouse: LocalWarehouse) -> None:
    for day in DAYS:
        write_foreign(local_warehouse, day, n=pa.array([1]))
    settle(local_warehouse)
    assert values(read(local_warehouse)) == [1, 1, 1]
    write_foreign(local_warehouse, FEB_24, n=pa.array([1.5]), more=pa.array(["x"]))
    settle(local_warehouse)
    rows = read(local_warehouse)
    assert (values(rows), values(rows, "more")) == ([1.0, 1.5, 1.0], [None, "x", None])


COLUMN = st.one_of(
    st.lists(st.none() | st.integers(-9, 9), min_size=1, max_size=3).map(lambda found: pa.array(found, pa.int8())),
    st.lists(st.none() | st.sampled_from([1.0, 2.5, float("nan")]), min_size=1, max_size=3).map(
        lambda found: pa.array(found, pa.float64())
    ),
    st.just(pa.nulls(1)),
    st.just(None),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(COLUMN, min_size=2, max_size=4), st.sampled_from([None, "INT64", "FLOAT64"]), st.integers(0, 99))
def test_a_date_has_the_same_rows_alone_and_with_others_in_whatever_order_folders_are_listed(
    tmp_path: Path, columns: list[Any], kind: Any, seed: int
) -> None:
    warehouse, shuffled = LocalWarehouse(tmp_path / uuid4().hex), random.Random(seed)
    days = [FEB_23 + timedelta(days=n) for n in range(len(columns))]
    for day, column in zip(days, columns, strict=True):
        given_columns = {} if column is None else {"n": column}
        write_foreign(warehouse, day, place=pa.array(range(1 if column is None else len(column))), **given_columns)
    if "n" not in described(warehouse):
        return
    types: Mapping[str, Any] | None = {"n": kind} if kind else None

    def rows_of_days(*asked: date) -> list[Any] | None:
        found = Scan(table=TABLE, date_column="day", dates=tuple(span(day) for day in asked), types=types)
        listing = os.listdir

        def in_another_order(path: Any) -> list[str]:
            names = listing(path)
            shuffled.shuffle(names)
            return names

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "listdir", in_another_order)
            try:
                rows = LocalWarehouse(warehouse.root).read(found)
            except SchemaMismatch:
                return None
        order: list[Any] = [("day", "ascending"), ("place", "ascending")]
        return [(str(rows["n"].type), *map(repr, row.values())) for row in rows.sort_by(order).to_pylist()]

    alone = [rows_of_days(day) for day in days]
    together = rows_of_days(*days)
    assert (together is None) == (None in alone)
    assert together is None or together == [row for rows in alone if rows for row in rows]


# -- columns --------------------------------------------------------------------------------------------------------


def test_a_column_that_was_added_later_is_null_before(local_warehouse: LocalWarehouse) -> None:
    write_foreign(local_warehouse, FEB_23, n=pa.array([1]))
    write_foreign(local_warehouse, FEB_24, n=pa.array([2]), weight=pa.array([10.0]))
    assert values(read(local_warehouse), "weight") == [None, 10.0]
    assert values(local_warehouse.read(scan(span(FEB_23))), "weight") == [None]


def test_a_column_that_the_schema_lacks_is_refused_until_it_is_refreshed(local_warehouse: LocalWarehouse) -> None:
    local_warehouse.load(TABLE, "day", rows_of(FEB_23, players=1))
    write_foreign(local_warehouse, FEB_24, player=pa.array(["a"]), score=pa.array([2]), extra=pa.array([7]))
    error = rf"partition day={FEB_24}: has the column extra, .*`backfill tables refresh nba\.factors` adds it"
    asks: list[Callable[[], object]] = [
        lambda: read(local_warehouse),
        lambda: read(local_warehouse, columns={"day": "day"}),
        lambda: counts(local_warehouse, FEB_24),
        lambda: local_warehouse.column_fingerprints(TABLE, "day", [FEB_24], [PLAYER]),
    ]
    for ask in asks:
        with pytest.raises(SchemaMismatch, match=error):
            ask()
    info = local_warehouse.refresh_schema(TABLE)
    assert (
        dict(info.columns)
        == {"player": "STRING", "day": "DATE", "score": "FLOAT64", "extra": "INT64"}
        == dict(sorted(info.columns.items(), key=lambda column: ["player", "day", "score", "extra"].index(column[0])))
    )
    assert values(read(local_warehouse), "extra") == [None, 7]


def test_a_table_dated_by_times_in_a_zone_is_refreshed(local_warehouse: LocalWarehouse) -> None:
    noon = datetime(2023, 2, 23, 12, tzinfo=UTC)
    write_foreign(local_warehouse, FEB_23, day=pa.array([noon], pa.timestamp("us", tz="UTC")), n=pa.array([1]))
    info = local_warehouse.refresh_schema(TABLE)
    assert (dict(info.columns), info.types_are_declared) == ({"day": "TIMESTAMP", "n": "INT64"}, True)
    assert values(read(local_warehouse, time_zone="America/New_York")) == [1]


def test_a_schema_that_is_no_schema_is_an_error_of_the_user(local_warehouse: LocalWarehouse) -> None:
    local_warehouse.load(TABLE, "day", rows_of(FEB_23))
    file = part_of(local_warehouse, FEB_23).parent.parent / "schema.json"
    for content in ("", "[]", '{"date_column": "day"}', '{"date_column": "day", "columns": {"n": "NUMBER"}}'):
        file.write_text(content)
        with pytest.raises(SchemaMismatch, match=r"nba\.factors: its schema\.json is not a schema"):
            local_warehouse.describe(TABLE)


def test_a_refresh_writes_a_schema_that_is_no_schema_again(local_warehouse: LocalWarehouse) -> None:
    local_warehouse.load(TABLE, "day", rows_of(FEB_23))
    types = dict(require_table(local_warehouse, TABLE).columns)
    partition = part_of(local_warehouse, FEB_23).parent
    file = partition.parent / "schema.json"
    for content in ("", "\xff", "[]", '{"date_column": "day"}', '{"date_column": "day", "columns": {"n": "NUMBER"}}'):
        file.write_text(content, encoding="latin-1")
        info = local_warehouse.refresh_schema(TABLE)
        assert (dict(info.columns), info.partitioned_by, info.types_are_declared) == (types, "day", True)

    file.write_text("")
    partition.rename(partition.parent / "elsewhere")
    for needs_rows_in_partitions in ("holds elsewhere, which is no partition", "delete the file"):
        with pytest.raises(SchemaMismatch, match=needs_rows_in_partitions):
            local_warehouse.refresh_schema(TABLE)
        assert file.read_text() == ""
        shutil.rmtree(partition.parent / "elsewhere", ignore_errors=True)


# -- dates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dates", "time_zone", "held"),
    [
        pytest.param(pa.array([FEB_23, FEB_24]), None, "2023-02-24", id="date"),
        pytest.param(pa.array([FEB_23, None]), None, "a null", id="null"),
        pytest.param(pa.array([NAIVE_NOON + timedelta(days=1)]), None, "2023-02-24 12", id="datetime"),
        pytest.param(pa.array([datetime(2023, 2, 23, 23, tzinfo=UTC)]), "Europe/Berlin", "2023-02-23 23", id="zone"),
    ],
)
def test_rows_of_another_date_than_their_partition_are_refused(
    local_warehouse: LocalWarehouse, dates: Any, time_zone: str | None, held: str
) -> None:
    write_foreign(local_warehouse, FEB_23, day=dates, n=pa.array(range(len(dates))))
    error = rf"nba\.factors, partition day={FEB_23}: column day holds {held}"
    for columns in (None, {"n": "n"}):
        with pytest.raises(SchemaMismatch, match=error):
            read(local_warehouse, columns=columns, time_zone=time_zone)


@pytest.mark.parametrize(
    ("moment", "time_zone"),
    [
        pytest.param(pa.array([NAIVE_NOON], pa.timestamp("ns")), None, id="datetime"),
        pytest.param(pa.array([datetime(2023, 2, 22, 23, tzinfo=UTC)]), "Europe/Berlin", id="zone"),
        pytest.param(pa.array([FEB_23], pa.date64()), None, id="date64"),
    ],
)
def test_rows_whose_time_is_on_the_date_are_read(local_warehouse: LocalWarehouse, moment: Any, time_zone: Any) -> None:
    write_foreign(local_warehouse, FEB_23, day=moment, n=pa.array([1]))
    assert values(read(local_warehouse, time_zone=time_zone)) == [1]


# -- files ----------------------------------------------------------------------------------------------------------

BACKUP = Backup(id="cleanup-1", table=TABLE, date_column="day")


@pytest.mark.parametrize("name", ["data_0.parquet", "rows.csv", "000000_0"])
@pytest.mark.parametrize("has_ours", [True, False])
def test_rows_beside_ours_are_refused_by_everyone(
    local_warehouse: LocalWarehouse, staging: Staging, name: str, has_ours: bool
) -> None:
    local_warehouse.load(TABLE, "day", rows_of(*DAYS))
    settle(local_warehouse)
    read(local_warehouse)
    asks: list[Callable[[], object]] = [
        lambda: read(local_warehouse),
        lambda: local_warehouse.read(scan(span(FEB_24)), once=True),
        lambda: counts(local_warehouse, FEB_24),
        lambda: local_warehouse.read(scan(span(date(2020, 1, 1), date(2024, 1, 1)))),
        lambda: local_warehouse.fingerprints(TABLE, "day", [FEB_24]),
        lambda: local_warehouse.column_fingerprints(TABLE, "day", [FEB_24], [PLAYER]),
        lambda: local_warehouse.matching_dates(TABLE, "day", {FEB_24: "x"}),
        lambda: local_warehouse.load(TABLE, "day", rows_of(FEB_23, FEB_24, score=9.0)),
        lambda: local_warehouse.row_counts(TABLE, "day", span(FEB_23, FEB_25)),
        lambda: local_warehouse.back_up(BACKUP, [FEB_24], until=utcnow()),
        lambda: local_warehouse.publish(
            TABLE,
            "day",
            [staged(staging, FEB_23, score=9.0), staged(staging, FEB_24, score=9.0)],
            fingerprints_when_staged=dict.fromkeys(DAYS, ABSENT),
            publication=publication_of("run-1/1"),
        ),
    ]
    write_foreign(local_warehouse, FEB_24, name, player=pa.array(["a"]), score=pa.array([1.0]))
    if not has_ours:
        part_of(local_warehouse, FEB_24).unlink()
    settle(local_warehouse)
    before = tree(local_warehouse.root / "nba")
    for ask in asks:
        with pytest.raises(SchemaMismatch, match=rf"nba\.factors, partition day={FEB_24}: holds {name}, which is not"):
            ask()
    assert {name: data for name, data in tree(local_warehouse.root / "nba").items() if ".loading" not in name} == before


def test_rows_beside_ours_stop_an_undo(local_warehouse: LocalWarehouse, staging: Staging) -> None:
    file = staged(staging, FEB_24)
    fingerprints = {FEB_24: ABSENT}
    local_warehouse.publish(
        TABLE, "day", [file], fingerprints_when_staged=fingerprints, publication=publication_of("run-1/1")
    )
    write_foreign(local_warehouse, FEB_24, "data_0.parquet", player=pa.array(["a"]), score=pa.array([1.0]))
    before = tree(local_warehouse.root)
    replaced = local_warehouse.replaced_partitions(TABLE, "day", "run-1", [FEB_24])
    with pytest.raises(SchemaMismatch, match=r"holds data_0\.parquet"):
        local_warehouse.restore(TABLE, "day", "run-1", replaced, generation=1)
    assert tree(local_warehouse.root) == before


def test_hidden_files_beside_ours_are_ignored(local_warehouse: LocalWarehouse) -> None:
    local_warehouse.load(TABLE, "day", rows_of(*DAYS))
    for name in ("_SUCCESS", ".part.parquet.crc"):
        part_of(local_warehouse, FEB_24).with_name(name).touch()
    assert read(local_warehouse).num_rows == 9


def test_a_table_that_consists_of_other_files_only_does_exist(local_warehouse: LocalWarehouse) -> None:
    write_foreign(local_warehouse, FEB_24, "part-00000.snappy.parquet", n=pa.array([1]))
    with pytest.raises(SchemaMismatch, match=r"holds part-00000\.snappy\.parquet"):
        local_warehouse.describe(TABLE)


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("day=2023-02-24 00%3A00%3A00/part.parquet", id="timestamp"),
        pytest.param("day=20230224/part.parquet", id="compact"),
        pytest.param("day=2023-2-24/part.parquet", id="short"),
        pytest.param("day=__HIVE_DEFAULT_PARTITION__/part.parquet", id="null"),
        pytest.param("other=2023-02-24/part.parquet", id="other"),
        pytest.param("region=north/day=2023-02-24/part.parquet", id="outer"),
        pytest.param("2023-02-24/part.parquet", id="unnamed"),
        pytest.param("loose.parquet", id="loose"),
        pytest.param("loose.csv", id="csv"),
    ],
)
@pytest.mark.parametrize("is_declared", [True, False])
def test_rows_outside_of_partitions_are_refused_by_everyone(
    local_warehouse: LocalWarehouse, staging: Staging, place: str, is_declared: bool
) -> None:
    local_warehouse.load(TABLE, "day", rows_of(*DAYS))
    table = part_of(local_warehouse, FEB_23).parent.parent
    if not is_declared:
        (table / "schema.json").unlink()
    settle(local_warehouse)
    asks: list[Callable[[], object]] = [
        lambda: local_warehouse.describe(TABLE),
        lambda: read(local_warehouse),
        lambda: local_warehouse.read(scan(span(FEB_24)), once=True),
        lambda: counts(local_warehouse, FEB_24),
        lambda: local_warehouse.column_fingerprints(TABLE, "day", [FEB_24], [PLAYER]),
        lambda: local_warehouse.load(TABLE, "day", rows_of(FEB_23, FEB_24, score=9.0)),
        lambda: local_warehouse.row_counts(TABLE, "day", span(FEB_23, FEB_25)),
        lambda: local_warehouse.refresh_schema(TABLE),
        lambda: local_warehouse.publish(
            TABLE,
            "day",
            [staged(staging, FEB_23, score=9.0)],
            fingerprints_when_staged=local_warehouse.fingerprints(TABLE, "day", [FEB_23]),
            publication=publication_of("run-1/1"),
        ),
    ]
    for ask in asks[:4]:
        ask()
    (table / place).parent.mkdir(parents=True, exist_ok=True)
    (part_of(local_warehouse, FEB_24)).rename(table / place)
    before = tree(local_warehouse.root / "nba")
    for ask in asks:
        if place.startswith("other") and not is_declared:
            error = r"nba\.factors: has partitions by several columns: day, other"
        else:
            error = (
                rf"nba\.factors: holds {re.escape(place.partition('/')[0])}, which is no partition of a date: .*move"
            )
        with pytest.raises(SchemaMismatch, match=error):
            ask()
    assert {name: data for name, data in tree(local_warehouse.root / "nba").items() if ".loading" not in name} == before


def test_rows_below_a_partition_are_refused(local_warehouse: LocalWarehouse) -> None:
    local_warehouse.load(TABLE, "day", rows_of(*DAYS))
    hour = part_of(local_warehouse, FEB_24).with_name("hour=3")
    hour.mkdir()
    part_of(local_warehouse, FEB_24).rename(hour / "part.parquet")
    with pytest.raises(SchemaMismatch, match=rf"nba\.factors, partition day={FEB_24}: holds hour=3, which is not ours"):
        read(local_warehouse)


def test_an_empty_folder_among_the_partitions_is_ignored_until_it_has_rows(local_warehouse: LocalWarehouse) -> None:
    local_warehouse.load(TABLE, "day", rows_of(*DAYS))
    table = part_of(local_warehouse, FEB_23).parent.parent
    for name in ("day=soon", "_temporary", ".hidden"):
        (table / name).mkdir()
    (table / "_SUCCESS").touch()
    (table / "_temporary" / "rows.parquet").touch()
    settle(local_warehouse)
    assert read(local_warehouse).num_rows == 9
    (table / "day=soon" / "rows.parquet").touch()
    with pytest.raises(SchemaMismatch, match=r"holds day=soon, which is no partition"):
        read(local_warehouse)


@pytest.mark.parametrize("is_declared", [True, False])
def test_names_with_an_ignored_prefix_are_no_partitions(local_warehouse: LocalWarehouse, is_declared: bool) -> None:
    local_warehouse.load(TABLE, "day", rows_of(*DAYS))
    table = part_of(local_warehouse, FEB_23).parent.parent
    if not is_declared:
        (table / "schema.json").unlink()
    (table / "_tmp=1").write_text("no folder")
    for name, content in {
        f".day={FEB_24}.x7": b"half a file",
        f".day={FEB_24}": b"half a file",
        "_job=7": part_of(local_warehouse, FEB_24).read_bytes(),
        "_SUCCESS=": b"",
    }.items():
        (table / name).mkdir()
        (table / name / "part.parquet").write_bytes(content)
    assert read(local_warehouse).num_rows == 9
    assert local_warehouse.row_counts(TABLE, "day", span(FEB_23, FEB_25)) == dict.fromkeys(DAYS, 3)
    local_warehouse.check_loadable(TABLE, "day")
    assert local_warehouse.refresh_schema(TABLE).partitioned_by == "day"


@pytest.mark.parametrize("is_declared", [True, False])
def test_a_date_column_may_begin_with_an_ignored_prefix(local_warehouse: LocalWarehouse, is_declared: bool) -> None:
    local_warehouse.load(TABLE, "_day", rows_of(*DAYS).rename_columns({"day": "_day"}))
    table = local_warehouse.root / "nba" / "factors"
    if not is_declared:
        (table / "schema.json").unlink()
    rows = Scan(table=TABLE, date_column="_day", dates=(span(FEB_23, FEB_25),))
    assert local_warehouse.read(rows).num_rows == 9
    assert local_warehouse.row_counts(TABLE, "_day", span(FEB_23, FEB_25)) == dict.fromkeys(DAYS, 3)
    shutil.copytree(table / f"_day={FEB_24}", table / f"_other={FEB_24}")
    if is_declared:
        assert local_warehouse.read(rows).num_rows == 9
        assert local_warehouse.refresh_schema(TABLE).partitioned_by == "_day"
    else:  # it cannot be told which of the two are the table's
        with pytest.raises(SchemaMismatch, match="has partitions by several columns: _day, _other"):
            local_warehouse.read(rows)


def test_the_listing_of_a_table_is_not_repeated_while_it_is_unchanged(
    local_warehouse: LocalWarehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_warehouse.load(TABLE, "day", rows_of(*DAYS))
    listing, listed = os.listdir, list[str]()

    def counted(path: Any) -> list[str]:
        listed.append(str(path))
        return listing(path)

    monkeypatch.setattr("gated_backfill.common.warehouse.local.table_schema.has_settled", lambda _stamp: True)
    monkeypatch.setattr(os, "listdir", counted)
    for _ in range(3):
        local_warehouse.describe(TABLE)
    assert listed == [str(part_of(local_warehouse, FEB_23).parent.parent)]


# -- fingerprints and publications ------------------------------------------------------------------------------------


def test_a_fingerprint_of_columns_is_of_what_they_hold(local_warehouse: LocalWarehouse) -> None:
    def fingerprint(**columns: Any) -> str:
        write_foreign(local_warehouse, FEB_23, **columns)
        return local_warehouse.column_fingerprints(TABLE, "day", [FEB_23], [N])[N][FEB_23]

    write_foreign(local_warehouse, FEB_24, n=pa.array([1.5]))
    first = fingerprint(n=pa.array([1, 2]))
    assert fingerprint(n=pa.array([1, 2], pa.int32())) == first
    assert fingerprint(n=pa.array([1.0, 2.0]), more=pa.array([1, 2])) == first
    assert fingerprint(n=pa.array([1, 3])) != first
    assert fingerprint(more=pa.array([1, 2])) == fingerprint(n=pa.array([None, None], pa.int64())) != first
    absent = local_warehouse.column_fingerprints(TABLE, "day", [FEB_25], [N])[N][FEB_25]
    assert absent == ABSENT


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("declared", [True, False])
def test_the_types_of_a_partition_without_rows_do_not_matter(
    local_warehouse: LocalWarehouse, declared: bool, once: bool
) -> None:
    """pandas writes floats, or nulls, for the columns of a frame without rows."""
    if declared:
        local_warehouse.load(TABLE, "day", rows_of(FEB_24))
    else:
        write_foreign(local_warehouse, FEB_24, player=pa.array(["a"]), score=pa.array([1.0]))
    floats = pa.array([], pa.float64())
    write_foreign(local_warehouse, FEB_23, player=floats, score=floats, day=floats, more=floats)
    write_foreign(local_warehouse, FEB_25, player=pa.nulls(0), score=pa.nulls(0), day=pa.nulls(0))
    before = local_warehouse.column_fingerprints(TABLE, "day", DAYS, [PLAYER])[PLAYER]
    assert set(local_warehouse.read(ALL_DAYS, once=once)["day"].to_pylist()) == {FEB_24}
    assert described(local_warehouse)["player"] == "STRING"
    assert [day for day, fingerprint in before.items() if fingerprint != ABSENT] == [FEB_24]


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("damaged", [slice(4, 40), slice(-60, -40)], ids=["page", "footer"])
def test_a_damaged_partition_is_refused_by_its_name(
    local_warehouse: LocalWarehouse, damaged: slice, declared: bool
) -> None:
    local_warehouse.load(TABLE, "day", rows_of(FEB_23))
    part = part_of(local_warehouse, FEB_23)
    if not declared:
        (part.parent.parent / "schema.json").unlink()
    content = bytearray(part.read_bytes())
    content[damaged] = b"\xff" * len(content[damaged])
    part.write_bytes(content)
    for read in (
        lambda: local_warehouse.read(ALL_DAYS, once=True),
        lambda: local_warehouse.read(ALL_DAYS),
        lambda: local_warehouse.column_fingerprints(TABLE, "day", [FEB_23], [PLAYER]),
    ):
        with pytest.raises(SchemaMismatch, match="partition day=2023-02-23: is not a readable Parquet file"):
            read()
    assert local_warehouse.fingerprints(TABLE, "day", [FEB_23])[FEB_23] != ABSENT


def test_a_damaged_partition_that_no_date_needs_refuses_nothing_else(local_warehouse: LocalWarehouse) -> None:
    local_warehouse.load(TABLE, "day", rows_of(*DAYS))
    part = part_of(local_warehouse, FEB_23)
    (part.parent.parent / "schema.json").unlink()
    part.write_bytes(b"garbage")
    assert described(local_warehouse)["player"] == "STRING"
    assert local_warehouse.read(scan(span(FEB_24, FEB_25))).num_rows == 6
    assert counts(local_warehouse, FEB_24) == {FEB_24: 3}
    assert local_warehouse.column_fingerprints(TABLE, "day", [FEB_24], [PLAYER])[PLAYER][FEB_24] != ABSENT
    for read in (lambda: local_warehouse.read(ALL_DAYS), lambda: local_warehouse.refresh_schema(TABLE)):
        with pytest.raises(SchemaMismatch, match="partition day=2023-02-23: is not a readable Parquet file"):
            read()


def test_a_table_without_a_schema_takes_it_from_what_is_published(
    local_warehouse: LocalWarehouse, staging: Staging
) -> None:
    write_foreign(local_warehouse, FEB_23, player=pa.array(["a"]), score=pa.array([1]))

    def publish(day: date, rows: pa.Table) -> None:
        file = staging.write("run-1", day, 1, rows)
        now = local_warehouse.fingerprints(TABLE, "day", [day])
        local_warehouse.publish(
            TABLE, "day", [file], fingerprints_when_staged=now, publication=publication_of("run-1/1")
        )

    with pytest.raises(SchemaMismatch, match="differing: extra STRING"):
        publish(FEB_24, rows_of(FEB_24).append_column("extra", pa.array(["x"] * 3)))
    publish(FEB_24, rows_of(FEB_24))
    info = local_warehouse.describe(TABLE)
    assert info is not None
    assert (info.types_are_declared, dict(info.columns)) == (
        True,
        {"player": "STRING", "day": "DATE", "score": "FLOAT64"},
    )
    assert read(local_warehouse).num_rows == 4


def test_files_of_one_publication_have_the_same_columns_or_none_is_published(
    local_warehouse: LocalWarehouse, staging: Staging
) -> None:
    files = [staged(staging, FEB_23), staging.write("run-1", FEB_24, 1, rows_of(FEB_24).drop_columns("score"))]
    with pytest.raises(SchemaMismatch, match="differing: score FLOAT64"):
        local_warehouse.publish(
            TABLE,
            "day",
            files,
            fingerprints_when_staged=dict.fromkeys(DAYS, ABSENT),
            publication=publication_of("run-1/1"),
        )
    assert local_warehouse.describe(TABLE) is None


def test_a_file_without_rows_counts_as_no_rows_and_is_published_over_and_put_back(
    local_warehouse: LocalWarehouse, staging: Staging
) -> None:
    local_warehouse.load(TABLE, "day", rows_of(FEB_23))
    empty = write_foreign(local_warehouse, FEB_24, player=pa.array([], pa.string()), score=pa.array([], pa.float64()))
    before = empty.read_bytes()
    for columns in (None, frozenset({"day"})):
        now = local_warehouse.column_fingerprints(TABLE, "day", [FEB_23, FEB_24], [columns])[columns]
        assert (now[FEB_23] == ABSENT, now[FEB_24]) == (False, ABSENT)
    for players in (3, 0):
        file = staged(staging, FEB_24, players=players)
        publication = f"run-{players}/1"
        result = local_warehouse.publish(
            TABLE, "day", [file], fingerprints_when_staged={FEB_24: ABSENT}, publication=publication_of(publication)
        )
        assert result.published == {FEB_24}
        assert local_warehouse.matching_dates(TABLE, "day", {FEB_24: file.checksum}) == {FEB_24}
        replaced = local_warehouse.replaced_partitions(TABLE, "day", f"run-{players}", [FEB_24])
        now = local_warehouse.fingerprints(TABLE, "day", [FEB_24])
        assert now == {FEB_24: replaced[FEB_24].published}
        assert local_warehouse.restore(TABLE, "day", f"run-{players}", replaced, generation=1) == {FEB_24}
        assert empty.read_bytes() == before


def test_a_file_in_the_place_of_a_partition_does_not_read_as_no_rows(local_warehouse: LocalWarehouse) -> None:
    local_warehouse.load(TABLE, "day", rows_of(*DAYS))
    folder = part_of(local_warehouse, FEB_24).parent
    shutil.rmtree(folder)
    folder.write_text("rows of another program")
    asks: list[Callable[[], object]] = [
        lambda: local_warehouse.read(scan(span(FEB_24))),
        lambda: local_warehouse.read(scan(span(FEB_24)), once=True),
        lambda: counts(local_warehouse, FEB_24),
        lambda: local_warehouse.column_fingerprints(TABLE, "day", [FEB_24], [PLAYER]),
    ]
    for ask in asks:
        with pytest.raises(SchemaMismatch, match=rf"partition day={FEB_24}: is a file and no folder"):
            ask()


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_file_in_the_place_of_the_rows_is_refused_by_its_partition(
    local_warehouse: LocalWarehouse, staging: Staging, make: Callable[[Path], None]
) -> None:
    local_warehouse.load(TABLE, "day", rows_of(*DAYS))
    settle(local_warehouse)
    read(local_warehouse)
    part = part_of(local_warehouse, FEB_24)
    part.unlink()
    make(part)
    asks: list[Callable[[], object]] = [
        lambda: local_warehouse.read(scan(span(FEB_24))),
        lambda: local_warehouse.read(scan(span(FEB_24)), once=True),
        lambda: counts(local_warehouse, FEB_24),
        lambda: local_warehouse.fingerprints(TABLE, "day", [FEB_24]),
        lambda: local_warehouse.column_fingerprints(TABLE, "day", [FEB_24], [PLAYER]),
        lambda: local_warehouse.row_counts(TABLE, "day", span(FEB_23, FEB_25)),
        lambda: local_warehouse.back_up(BACKUP, [FEB_24], until=utcnow()),
        lambda: local_warehouse.load(TABLE, "day", rows_of(FEB_24, score=9.0)),
        lambda: local_warehouse.publish(
            TABLE,
            "day",
            [staged(staging, FEB_24, score=9.0)],
            fingerprints_when_staged={FEB_24: ABSENT},
            publication=publication_of("run-1/1"),
        ),
        lambda: local_warehouse.refresh_schema(TABLE),
    ]
    for ask in asks:
        with pytest.raises(
            SchemaMismatch, match=rf"^nba\.factors, partition day={FEB_24}: has a folder or a pipe named part\.parquet"
        ):
            ask()
