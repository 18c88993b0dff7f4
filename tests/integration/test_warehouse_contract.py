"""What every warehouse promises: one suite, each implementation."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gated_backfill.common.errors import (
    HostError,
    OutsideRoot,
    QueryFailed,
    SchemaMismatch,
    TableNotFound,
    UserError,
    WarehouseUnavailable,
)
from gated_backfill.common.model.arrow.types import ARROW_TYPES
from gated_backfill.common.model.entities import EntityColumns
from gated_backfill.common.model.publication import PublishedDate, PublishResult, StagedFile
from gated_backfill.common.model.tables import ColumnType, ColumnTypes, TableName
from gated_backfill.common.storage.files import checksum_of
from gated_backfill.common.storage.staging import Staging
from gated_backfill.common.warehouse.bigquery.warehouse import BigQueryWarehouse
from gated_backfill.common.warehouse.local import query as local_query
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from gated_backfill.common.warehouse.protocol import ABSENT, EntityScan, Scan, StagedScan, Warehouse, require_table
from tests.buckets import path_of
from tests.builders import (
    DAYS,
    FEB_23,
    FEB_24,
    FEB_25,
    TABLE,
    answering,
    counts,
    die_at,
    publication_of,
    race,
    rows_of,
    scan,
    span,
    staged,
    tree,
)
from tests.emulator import Emulator

MISSING = TableName("nba", "nothing")
ALL = "SELECT * FROM t ORDER BY day, player"


def load(warehouse: Warehouse, *days: date, **more: Any) -> None:
    warehouse.load(TABLE, "day", rows_of(*days, **more))


def prints(warehouse: Warehouse, *days: date) -> list[str]:
    found = warehouse.fingerprints(TABLE, "day", days)
    return [found[day] for day in days]


def publish(
    warehouse: Warehouse, *files: StagedFile, since: dict[date, str] | None = None, publication: str = "run-1/0"
) -> PublishResult:
    """Publish, by default against the partitions as they are now."""
    now = warehouse.fingerprints(TABLE, "day", [file.day for file in files]) if since is None else since
    return warehouse.publish(TABLE, "day", files, fingerprints_when_staged=now, publication=publication_of(publication))


def restore(warehouse: Warehouse, run: str) -> frozenset[date]:
    """Put back what the run replaced; the dates that were put back."""
    return warehouse.restore(TABLE, "day", run, warehouse.replaced_partitions(TABLE, "day", run, DAYS), generation=1)


def published(*days: date) -> PublishResult:
    return PublishResult(published=frozenset(days))


def contents(warehouse: Warehouse, *days: date) -> list[dict[str, Any]]:
    """Every row that a reader finds on the days."""
    return warehouse.query(ALL, scans={"t": scan(*(span(day) for day in days))}).to_pylist()


def in_other_bytes(file: StagedFile) -> StagedFile:
    """The file with the same rows, written as another version of the library might."""
    path = path_of(file.location)
    pq.write_table(pq.read_table(path), path, compression="gzip")
    return replace(file, checksum=checksum_of(path.read_bytes()))


# -- tables -------------------------------------------------------------------------------------------------------


def test_a_table_is_described_by_its_columns_and_what_dates_it(warehouse: Warehouse) -> None:
    load(warehouse, FEB_23)
    found = warehouse.describe(TABLE)
    assert found is not None
    assert dict(found.columns) == {"player": "STRING", "day": "DATE", "score": "FLOAT64"}
    assert found.partitioned_by == "day"
    assert require_table(warehouse, TABLE) == found


def test_a_table_that_does_not_exist_is_nothing(warehouse: Warehouse) -> None:
    assert warehouse.describe(MISSING) is None
    with pytest.raises(TableNotFound, match=r"nba\.nothing"):
        require_table(warehouse, MISSING)


@pytest.mark.parametrize(
    ("date_column", "columns", "error"),
    [
        pytest.param("game_date", (), "no date column game_date: it is partitioned by day", id="date-column"),
        pytest.param("day", ("team",), r"lacks the column\(s\) team", id="column"),
        pytest.param("day", {"score": "INT64"}, "column score is FLOAT64, not INT64", id="type"),
    ],
)
def test_a_misfit_table_is_named(warehouse: Warehouse, date_column: str, columns: Any, error: str) -> None:
    load(warehouse, FEB_23)
    with pytest.raises(SchemaMismatch, match=error):
        require_table(warehouse, TABLE).check_columns(date_column, columns)


def test_text_is_never_summed(warehouse: Warehouse) -> None:
    load(warehouse, FEB_23)
    columns = EntityColumns(date="day", entity=("player",), sums=("player",))
    summed = EntityScan(table=TABLE, columns=columns, dates=(span(FEB_23),))
    for read in (lambda: warehouse.read_entities(summed), lambda: warehouse.count_entities(summed, {}, [])):
        with pytest.raises(
            SchemaMismatch, match=r"nba\.factors: column player is .*: a column whose sums are compared"
        ):
            read()


def test_a_table_that_was_created_is_there_without_rows(warehouse: Warehouse) -> None:
    types: ColumnTypes = {"player": "STRING", "day": "DATE", "score": "FLOAT64"}
    assert warehouse.create_table(TABLE, types, "day")
    assert not warehouse.create_table(TABLE, types, "day")
    info = require_table(warehouse, TABLE)
    assert (dict(info.columns), info.partitioned_by) == (types, "day")
    assert info.types_are_declared
    rows = read_all(warehouse, scan(span(FEB_23)))
    assert (rows.num_rows, rows.schema.equals(rows_of().schema)) == (0, True)
    load(warehouse, FEB_23)
    assert counts(warehouse, *DAYS) == {FEB_23: 3}


# -- queries ------------------------------------------------------------------------------------------------------


def test_a_scan_of_one_date_has_no_row_of_another(warehouse: Warehouse) -> None:
    load(warehouse, *DAYS)
    found = warehouse.query(ALL, scans={"t": scan(span(FEB_24))})
    assert set(found["day"].to_pylist()) == {FEB_24}
    assert found.num_rows == 3


def test_a_scan_takes_several_ranges(warehouse: Warehouse) -> None:
    days = [FEB_23 + timedelta(days=n) for n in range(10)]
    load(warehouse, *days)
    asked = scan(span(days[0], days[1]), span(days[4]), span(days[8], days[9]))
    found = warehouse.query("SELECT DISTINCT day FROM t ORDER BY day", scans={"t": asked})
    assert found["day"].to_pylist() == [days[0], days[1], days[4], days[8], days[9]]


@pytest.mark.parametrize(
    "length", [pytest.param(59, id="short"), pytest.param(60, id="60"), pytest.param(3650, id="10-years")]
)
def test_a_range_of_any_length_has_the_same_rows(warehouse: Warehouse, length: int) -> None:
    load(warehouse, FEB_23 - timedelta(days=1), *DAYS)
    asked = scan(span(FEB_23, FEB_23 + timedelta(days=length)))
    assert warehouse.query("SELECT COUNT(*) AS n FROM t", scans={"t": asked}).to_pylist() == [{"n": 9}]


def test_a_range_without_rows_gives_none_in_the_right_types(warehouse: Warehouse) -> None:
    load(warehouse, FEB_23)
    rows = query_all(warehouse, scan(span(FEB_25)))
    assert rows.num_rows == 0
    assert rows.schema.equals(rows_of().schema)
    assert query_all(warehouse, scan()).num_rows == 0


def test_every_type_comes_back_as_it_went_in(warehouse: Warehouse) -> None:
    rows = pa.table(
        {
            "player": pa.array(["a", "ä 'quoted' \n", None]),
            "day": pa.array([FEB_23] * 3),
            "whole": pa.array([2**63 - 1, -(2**63), None]),
            "share": pa.array([0.1, -1e300, None]),
            "sure": pa.array([True, False, None]),
            "born": pa.array([date(1, 1, 1), date(9999, 12, 31), None]),
            "at": pa.array([datetime(2023, 2, 23, 23, 59, 59, 999_999), datetime(1, 1, 1), None], pa.timestamp("us")),  # noqa: DTZ001
            "seen": pa.array([datetime(2023, 2, 23, 1, tzinfo=UTC), None, None], pa.timestamp("us", tz="UTC")),
            "price": pa.array(
                [Decimal("9" * 29 + ".999999999"), Decimal("-0.000000001"), None], ARROW_TYPES["NUMERIC"]
            ),
            "photo": pa.array([b"\x00\xff'\\", b"", None], pa.binary()),
            "empty": pa.array([None] * 3, pa.string()),
        }
    )
    warehouse.load(TABLE, "day", rows)
    loaded = query_all(warehouse, scan(span(FEB_23)))
    assert loaded.schema.equals(rows.schema)
    assert loaded.sort_by("whole").to_pylist() == rows.sort_by("whole").to_pylist()


PRICES = [Decimal("0.1"), Decimal("0.2"), Decimal("-12345678901234567890.123456789"), None]


def prices(day: date, *values: Decimal | None) -> pa.Table:
    """A row of a player for each price."""
    columns = {"player": [f"p{n}" for n in range(len(values))], "day": [day] * len(values)}
    return pa.table(columns).append_column("price", pa.array(values, ARROW_TYPES["NUMERIC"]))


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        pytest.param("SELECT SUM(price) AS x FROM t WHERE price > 0", Decimal("0.3"), id="sum"),
        pytest.param("SELECT MIN(price) AS x FROM t", PRICES[2], id="min"),
        pytest.param("SELECT MAX(price) * 3 AS x FROM t", Decimal("0.6"), id="times-integer"),
        pytest.param("SELECT price AS x FROM t WHERE price = @price", Decimal("0.2"), id="parameter"),
        pytest.param("SELECT CAST('1.25' AS NUMERIC) AS x FROM t LIMIT 1", Decimal("1.25"), id="cast-of-text"),
        pytest.param("SELECT COUNTIF(price IS NULL) AS x FROM t", 1, id="nulls"),
    ],
)
def test_decimal_numbers_are_exact(warehouse: Warehouse, sql: Any, expected: Any) -> None:
    warehouse.load(TABLE, "day", prices(FEB_23, *PRICES))
    found = warehouse.query(sql, scans={"t": scan(span(FEB_23))}, params={"price": Decimal("0.2")})
    assert found.to_pylist() == [{"x": expected}]


def test_decimal_numbers_and_bytes_are_published_and_recognised(warehouse: Warehouse, staging: Staging) -> None:
    rows = prices(FEB_23, *PRICES).append_column("photo", pa.array([b"\x00", b"\xff", b"", None], pa.binary()))
    file = staging.write("run-1", FEB_23, 1, rows)
    assert publish(warehouse, file) == published(FEB_23)
    info = require_table(warehouse, TABLE)
    assert (info.columns["price"], info.columns["photo"]) == ("NUMERIC", "BYTES")
    assert read_all(warehouse, scan(span(FEB_23))).sort_by("player").equals(rows)
    assert warehouse.matching_dates(TABLE, "day", {FEB_23: file.checksum}) == {FEB_23}

    other = staging.write("run-2", FEB_23, 1, rows.set_column(2, "price", pa.array([None] * 4, ARROW_TYPES["NUMERIC"])))
    assert publish(warehouse, other, publication="run-2/0") == published(FEB_23)
    assert restore(warehouse, "run-2") == {FEB_23}
    assert read_all(warehouse, scan(span(FEB_23))).sort_by("player").equals(rows)


def test_a_scan_may_rename_columns_and_hides_the_others(warehouse: Warehouse) -> None:
    load(warehouse, FEB_23, players=2)
    renamed = scan(span(FEB_23), columns={"entity": "player", "d": "day"})
    found = warehouse.query("SELECT * FROM t ORDER BY entity", scans={"t": renamed})
    assert found.to_pylist() == [{"entity": "player000", "d": FEB_23}, {"entity": "player001", "d": FEB_23}]
    with pytest.raises(QueryFailed):
        warehouse.query("SELECT score FROM t", scans={"t": renamed})


def test_a_query_joins_tables_and_staged_files(warehouse: Warehouse, staging: Staging) -> None:
    load(warehouse, FEB_23, FEB_24)
    files = (staged(staging, FEB_23, players=2), staged(staging, FEB_24, players=1))
    both = {"t": scan(span(FEB_23, FEB_24)), "s": StagedScan(files=files, columns={"d": "day", "who": "player"})}
    found = warehouse.query(
        "SELECT day, COUNT(*) AS n FROM t JOIN s ON s.who = t.player AND s.d = t.day GROUP BY day ORDER BY day",
        scans=both,
    )
    assert found.to_pylist() == [{"day": FEB_23, "n": 2}, {"day": FEB_24, "n": 1}]


def test_a_query_returns_its_rows_in_order_and_in_parts(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_query, "BATCH_ROWS", 2)
    load(warehouse, FEB_23, FEB_24, players=5)
    sql = "SELECT day, NULLIF(player, 'player002') AS who, score FROM t WHERE score < @limit"
    scans = {"t": scan(span(FEB_23, FEB_24))}
    tables = list(warehouse.query_in_order(sql, scans=scans, params={"limit": 5.0}, order=["day", "who"]))
    rows = [(row["day"], row["who"]) for table in tables for row in table.to_pylist()]
    names = ["player000", "player001", "player003", None]
    assert rows == [(day, name) for day in (FEB_23, FEB_24) for name in names]
    whole = warehouse.query(sql, scans=scans, params={"limit": 5.0})
    assert all(table.schema.equals(whole.schema) for table in tables)
    none = warehouse.query_in_order(sql, scans=scans, params={"limit": 0.0}, order=["day"])
    assert sum(table.num_rows for table in none) == 0
    with pytest.raises(QueryFailed):
        list(warehouse.query_in_order("SELECT * FROM other", scans=scans, order=["day"]))
    with pytest.raises(QueryFailed):  # while its rows are read
        list(warehouse.query_in_order("SELECT CAST(player AS INT64) AS n FROM t", scans=scans, order=["n"]))


def test_values_are_bound_never_pasted(warehouse: Warehouse) -> None:
    load(warehouse, FEB_23)
    wanted = "SELECT COUNT(*) AS n FROM t WHERE player = @name"
    scans = {"t": scan(span(FEB_23))}
    assert warehouse.query(wanted, scans=scans, params={"name": "player001"}).to_pylist() == [{"n": 1}]
    hostile = "player001' OR '1' = '1"
    assert warehouse.query(wanted, scans=scans, params={"name": hostile}).to_pylist() == [{"n": 0}]


def test_parameters_that_the_query_does_not_use_are_ignored(warehouse: Warehouse) -> None:
    load(warehouse, FEB_23)
    scans = {"t": scan(span(FEB_23))}
    assert warehouse.query("SELECT COUNT(*) AS n FROM t", scans=scans, params={"x": 1})["n"].to_pylist() == [3]


GOOGLE_SQL = [
    pytest.param("SELECT COUNTIF(score > 1) AS x FROM t", 2, id="countif"),
    pytest.param("SELECT SAFE_DIVIDE(1, 0) AS x FROM t LIMIT 1", None, id="safe-divide-by-zero"),
    pytest.param("SELECT SAFE_DIVIDE(COUNT(*), 2) AS x FROM t", 1.5, id="safe-divide"),
    pytest.param("SELECT COUNT(*) AS x FROM t WHERE day > DATE_SUB(@day, INTERVAL 1 DAY)", 3, id="date-sub"),
    pytest.param("SELECT COUNT(*) AS x FROM t WHERE day > DATE_ADD(@day, INTERVAL 1 DAY)", 0, id="date-add"),
    pytest.param("SELECT DATE_DIFF(@day, DATE '2023-02-20', DAY) AS x FROM t LIMIT 1", 3, id="date-diff"),
    pytest.param("SELECT CAST(1 AS STRING) AS x FROM t LIMIT 1", "1", id="cast-to-string"),
    pytest.param("SELECT IFNULL(NULL, 'none') AS x FROM t LIMIT 1", "none", id="ifnull"),
]


@pytest.mark.parametrize(("sql", "expected"), GOOGLE_SQL)
def test_googlesql_is_understood(warehouse: Warehouse, sql: Any, expected: Any) -> None:
    load(warehouse, FEB_23)
    found = warehouse.query(sql, scans={"t": scan(span(FEB_23))}, params={"day": FEB_23})
    assert found.to_pylist() == [{"x": expected}]


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        pytest.param("SELECT COUNTIF(score > 1) AS x FROM t", pa.int64(), id="countif"),
        pytest.param("SELECT DATE_SUB(day, INTERVAL 1 DAY) AS x FROM t", pa.date32(), id="date-sub"),
        pytest.param("SELECT COUNT(*) AS x FROM t", pa.int64(), id="count"),
        pytest.param("SELECT MIN(day) AS x FROM t", pa.date32(), id="min"),
    ],
)
def test_a_result_has_the_types_that_googlesql_gives_it(warehouse: Warehouse, sql: Any, expected: pa.DataType) -> None:
    load(warehouse, FEB_23)
    found = warehouse.query(sql, scans={"t": scan(span(FEB_23))})
    assert found.schema.field("x").type == expected


@pytest.mark.parametrize(
    "sql",
    [
        pytest.param("SELEC * FROM t", id="misspelt"),
        pytest.param("SELECT * FROM t WHERE (", id="unfinished"),
        pytest.param("SELECT 'open FROM t", id="open-quote"),
        pytest.param("SELECT nobody FROM t", id="unknown-column"),
        pytest.param("SELECT * FROM elsewhere", id="unknown-table"),
        pytest.param("SELECT * FROM t WHERE day = @day", id="parameter-without-a-value"),
        pytest.param("SELECT player + 1 FROM t", id="wrong-types"),
        pytest.param("", id="empty"),
    ],
)
def test_a_wrong_query_fails_for_good(warehouse: Warehouse, sql: Any) -> None:
    load(warehouse, FEB_23)
    with pytest.raises(QueryFailed):
        warehouse.query(sql, scans={"t": scan(span(FEB_23))})


def test_a_query_sees_its_own_scans_only(warehouse: Warehouse) -> None:
    load(warehouse, *DAYS)
    assert counts(warehouse, *DAYS) == dict.fromkeys(DAYS, 3)
    with pytest.raises(QueryFailed):
        warehouse.query("SELECT * FROM t", scans={})
    with pytest.raises(QueryFailed):
        warehouse.query("SELECT * FROM t", scans={"other": scan(span(FEB_23))})


def query_all(warehouse: Warehouse, asked: Scan) -> pa.Table:
    return warehouse.query("SELECT * FROM t", scans={"t": asked})


def read_all(warehouse: Warehouse, asked: Scan) -> pa.Table:
    return warehouse.read(asked)


@pytest.mark.parametrize("ask", [query_all, read_all])
def test_a_scan_that_does_not_fit_its_table_is_refused(warehouse: Warehouse, ask: Callable[..., pa.Table]) -> None:
    load(warehouse, FEB_23)
    with pytest.raises(TableNotFound, match=r"nba\.nothing"):
        ask(warehouse, scan(span(FEB_23), table=MISSING))
    with pytest.raises(SchemaMismatch, match="no date column player"):
        ask(warehouse, replace(scan(span(FEB_23)), date_column="player"))
    with pytest.raises(SchemaMismatch, match="team"):
        ask(warehouse, scan(span(FEB_23), columns={"x": "team"}))


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(scan(span(FEB_24)), id="one-date"),
        pytest.param(scan(span(FEB_23), span(FEB_25)), id="several-ranges"),
        pytest.param(scan(span(FEB_23, FEB_25), columns={"who": "player", "d": "day"}), id="renamed"),
        pytest.param(scan(span(date(2023, 1, 1), date(2023, 12, 31))), id="a-year"),
        pytest.param(scan(span(date(2023, 1, 1))), id="no-rows"),
        pytest.param(scan(span(date(2023, 1, 1)), columns={"who": "player"}), id="no-rows-renamed"),
        pytest.param(scan(), id="no-dates"),
    ],
)
def test_reading_a_scan_gives_what_selecting_all_of_it_does(warehouse: Warehouse, asked: Scan) -> None:
    load(warehouse, *DAYS)
    read, queried = warehouse.read(asked), query_all(warehouse, asked)
    order = [(name, "ascending") for name in queried.column_names]
    assert read.schema.equals(queried.schema)
    assert read.sort_by(order).equals(queried.sort_by(order))


def test_columns_that_come_in_another_order_are_read_by_their_names(warehouse: Warehouse) -> None:
    load(warehouse, FEB_23)
    warehouse.load(TABLE, "day", rows_of(FEB_24).select(["score", "day", "player"]))
    both = scan(span(FEB_23, FEB_24))
    order = [("day", "ascending"), ("player", "ascending")]
    for ask in (query_all, read_all):
        assert ask(warehouse, both).sort_by(order).equals(rows_of(FEB_23, FEB_24).sort_by(order))


def test_threads_may_query_at_once(warehouse: Warehouse) -> None:
    days = [FEB_23 + timedelta(days=n) for n in range(8)]
    for players, day in enumerate(days, start=1):
        load(warehouse, day, players=players)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda day: counts(warehouse, day), days))
    assert found == [{day: players} for players, day in enumerate(days, start=1)]


# -- fingerprints -------------------------------------------------------------------------------------------------


def test_a_fingerprint_changes_exactly_when_the_rows_do(warehouse: Warehouse) -> None:
    assert prints(warehouse, *DAYS) == [ABSENT] * 3
    load(warehouse, FEB_23, FEB_24)
    before = prints(warehouse, *DAYS)
    load(warehouse, FEB_23, FEB_24)
    assert prints(warehouse, *DAYS) == before
    load(warehouse, FEB_23, score=2.0)
    after = prints(warehouse, *DAYS)
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, True, True]
    assert len(set(after)) == 3


def test_the_fingerprint_of_a_set_of_columns_changes_with_these_columns_only(warehouse: Warehouse) -> None:
    names, scores = frozenset({"player"}), frozenset({"player", "score"})
    load(warehouse, FEB_23, FEB_24)
    before = warehouse.column_fingerprints(TABLE, "day", DAYS, [names, scores, None])
    load(warehouse, FEB_23, score=2.0)
    after = warehouse.column_fingerprints(TABLE, "day", DAYS, [names, scores, None])
    assert after[names] == before[names]
    assert {columns: changed_days(before[columns], after[columns]) for columns in before} == {
        names: [],
        scores: [FEB_23],
        None: [FEB_23],
    }
    assert [after[columns][FEB_25] for columns in after] == [ABSENT] * 3
    assert warehouse.column_fingerprints(TABLE, "day", DAYS, [scores]) == {scores: after[scores]}


def changed_days(before: dict[date, str], after: dict[date, str]) -> list[date]:
    return [day for day in before if before[day] != after[day]]


# -- publishing ---------------------------------------------------------------------------------------------------


def test_a_quick_fingerprint_is_the_same_while_the_rows_are_and_changes_with_them(warehouse: Warehouse) -> None:
    load(warehouse, FEB_23, FEB_24)
    before = warehouse.quick_fingerprints(TABLE, "day", DAYS)
    assert before.keys() == set(DAYS)
    assert warehouse.quick_fingerprints(TABLE, "day", DAYS) == before

    load(warehouse, FEB_24, score=2.0)  # as many rows, of the same size
    after = warehouse.quick_fingerprints(TABLE, "day", DAYS)
    assert {day for day in DAYS if after[day] != before[day]} == {FEB_24}

    load(warehouse, FEB_25)
    assert warehouse.quick_fingerprints(TABLE, "day", [FEB_25]) != {FEB_25: before[FEB_25]}


def test_a_quick_fingerprint_changes_when_a_date_is_published_or_loses_its_rows(
    warehouse: Warehouse, staging: Staging
) -> None:
    publish(warehouse, staged(staging, FEB_23), staged(staging, FEB_24))
    before = warehouse.quick_fingerprints(TABLE, "day", DAYS)

    publish(warehouse, staged(staging, FEB_24, score=3.0), publication="run-2/0")
    published = warehouse.quick_fingerprints(TABLE, "day", DAYS)
    assert {day for day in DAYS if published[day] != before[day]} == {FEB_24}

    assert restore(warehouse, "run-2") == {FEB_24}
    restore(warehouse, "run-1")
    gone = warehouse.quick_fingerprints(TABLE, "day", DAYS)
    assert gone[FEB_23] != before[FEB_23]
    assert gone[FEB_25] == before[FEB_25]  # never had rows


def test_a_table_that_does_not_exist_has_the_same_quick_fingerprint_on_each_look(warehouse: Warehouse) -> None:
    found = warehouse.quick_fingerprints(MISSING, "day", DAYS)
    assert found.keys() == set(DAYS)
    assert warehouse.quick_fingerprints(MISSING, "day", DAYS) == found
    assert warehouse.quick_fingerprints(MISSING, "day", []) == {}


def test_publishing_makes_the_table_and_replaces_a_date_wholly(warehouse: Warehouse, staging: Staging) -> None:
    assert publish(warehouse, staged(staging, FEB_23, players=187)) == published(FEB_23)
    assert publish(warehouse, staged(staging, FEB_23, players=5, attempt=2)) == published(FEB_23)
    assert counts(warehouse, *DAYS) == {FEB_23: 5}


def test_the_target_holds_exactly_the_staged_bytes(warehouse: Warehouse, staging: Staging) -> None:
    file = staged(staging, FEB_23)
    publish(warehouse, file)
    assert warehouse.matching_dates(TABLE, "day", {FEB_23: file.checksum, FEB_24: file.checksum}) == {FEB_23}
    load(warehouse, FEB_23, score=9.0)
    assert warehouse.matching_dates(TABLE, "day", {FEB_23: file.checksum}) == frozenset()


def test_publishing_leaves_the_other_dates_alone(warehouse: Warehouse, staging: Staging) -> None:
    load(warehouse, FEB_23, FEB_25)
    before = prints(warehouse, FEB_23, FEB_25)
    publish(warehouse, staged(staging, FEB_24, players=9))
    assert prints(warehouse, FEB_23, FEB_25) == before
    assert counts(warehouse, *DAYS) == {FEB_23: 3, FEB_24: 9, FEB_25: 3}


def test_publishing_twice_changes_nothing_the_second_time(warehouse: Warehouse, staging: Staging) -> None:
    files = [staged(staging, day) for day in DAYS]
    since = dict.fromkeys(DAYS, ABSENT)
    first = publish(warehouse, *files, since=since)
    before = prints(warehouse, *DAYS)
    assert publish(warehouse, *files, since=since) == first == published(*DAYS)
    assert prints(warehouse, *DAYS) == before


def test_a_date_published_already_needs_no_staged_file(warehouse: Warehouse, staging: Staging) -> None:
    file = staged(staging, FEB_23)
    publish(warehouse, file)
    staging.delete("run-1")
    assert publish(warehouse, file, since={FEB_23: ABSENT}) == published(FEB_23)


def test_a_date_that_somebody_else_wrote_meanwhile_is_left_alone(warehouse: Warehouse, staging: Staging) -> None:
    since = warehouse.fingerprints(TABLE, "day", DAYS)
    files = [staged(staging, day, players=9) for day in DAYS]
    load(warehouse, FEB_24, players=4)
    receipt = publish(warehouse, *files, since=since)
    assert receipt == PublishResult(published=frozenset({FEB_23, FEB_25}), conflicting=frozenset({FEB_24}))
    assert counts(warehouse, *DAYS) == {FEB_23: 9, FEB_24: 4, FEB_25: 9}


def test_a_date_that_vanished_meanwhile_is_a_changed_one(warehouse: Warehouse, staging: Staging) -> None:
    receipt = publish(warehouse, staged(staging, FEB_23), since={FEB_23: "f" * 64})
    assert receipt == PublishResult(published=frozenset(), conflicting=frozenset({FEB_23}))
    assert warehouse.fingerprints(TABLE, "day", [FEB_23]) == {FEB_23: ABSENT}


def test_publishing_nothing_is_nothing(warehouse: Warehouse) -> None:
    assert publish(warehouse) == published()


@pytest.mark.parametrize("change", ["further-column", "missing-column", "another-type"])
def test_rows_with_other_columns_than_the_target_are_not_published(
    warehouse: Warehouse, staging: Staging, change: str
) -> None:
    load(warehouse, FEB_23)
    rows = rows_of(FEB_24)
    rows = {
        "further-column": rows.append_column("x", pa.array([1, 2, 3])),
        "missing-column": rows.drop_columns("score"),
        "another-type": changed(rows, "score", pa.int64()),
    }[change]
    before = contents(warehouse, *DAYS)
    with pytest.raises(SchemaMismatch, match=r"nba\.factors: the rows to load do not have its columns"):
        publish(warehouse, staging.write("run-1", FEB_24, 1, rows))
    assert contents(warehouse, *DAYS) == before


DAMAGES = [
    pytest.param(lambda path: path.unlink(), id="gone"),
    pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-1]), id="cut"),
    pytest.param(lambda path: path.write_bytes(path.read_bytes() + b"\0"), id="tampered"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_lost(warehouse: Warehouse, staging: Staging, damage: Callable[[Path], object]) -> None:
    load(warehouse, FEB_23)
    before = prints(warehouse, FEB_23)
    file = staged(staging, FEB_23, players=9)
    damage(path_of(file.location))
    receipt = publish(warehouse, file, staged(staging, FEB_24, players=4))
    assert receipt == PublishResult(published=frozenset({FEB_24}), lost=frozenset({FEB_23}))
    assert prints(warehouse, FEB_23) == before
    assert counts(warehouse, *DAYS) == {FEB_23: 3, FEB_24: 4}


def test_the_publication_of_a_date_is_found_until_something_else_writes_it(
    warehouse: Warehouse, staging: Staging
) -> None:
    file = staged(staging, FEB_23, players=9)
    publish(warehouse, file, publication="run-7/3")
    load(warehouse, FEB_24)
    assert warehouse.list_dates(TABLE, "day") == [FEB_23, FEB_24]
    published = {FEB_23: PublishedDate(run="run-7", attempt=1, checksum=file.checksum)}
    assert warehouse.find_publications(TABLE, "day", DAYS) == published
    warehouse.add_columns(TABLE, {"team": "STRING"})
    assert warehouse.find_publications(TABLE, "day", DAYS) == published
    warehouse.load(TABLE, "day", rows_of(FEB_23, score=2.0).append_column("team", pa.array(["x"] * 3)))
    assert warehouse.find_publications(TABLE, "day", DAYS) == {}


def test_of_several_publications_of_the_same_rows_the_latest_is_found(warehouse: Warehouse, staging: Staging) -> None:
    first, other = staged(staging, FEB_23, players=9), staged(staging, FEB_23, players=5, attempt=2)
    publish(warehouse, first, publication="run-7/1")
    publish(warehouse, other, publication="run-8/1")
    again = replace(first, attempt=3)
    publish(warehouse, again, publication="run-9/1")
    found = warehouse.find_publications(TABLE, "day", [FEB_23])
    assert found == {FEB_23: PublishedDate(run="run-9", attempt=3, checksum=first.checksum)}


def test_no_table_has_dates_or_publications(warehouse: Warehouse) -> None:
    assert (warehouse.list_dates(TABLE, "day"), warehouse.find_publications(TABLE, "day", DAYS)) == ([], {})


def test_a_damaged_partition_is_listed_without_a_publication(local_warehouse: LocalWarehouse, staging: Staging) -> None:
    publish(local_warehouse, staged(staging, FEB_23))
    (folder,) = local_warehouse.root.glob("*/*/day=*")
    (folder / "part.parquet").write_bytes(b"no rows")
    assert local_warehouse.list_dates(TABLE, "day") == [FEB_23]
    assert local_warehouse.find_publications(TABLE, "day", [FEB_23]) == {}
    (folder / "publication.json").write_text("{")
    assert local_warehouse.find_publications(TABLE, "day", [FEB_23]) == {}


def publish_often(wait: Callable[[], object], root: str, times: int) -> int:
    """Publish one of two files in turn, so many times."""
    warehouse, staging = LocalWarehouse(Path(root) / "warehouse"), Staging(Path(root) / "staging")
    files = [staged(staging, FEB_23, players=players, attempt=players) for players in (100, 200)]
    wait()
    for number in range(times):
        assert publish(warehouse, files[number % 2], publication=f"run/{number}") == published(FEB_23)
    (Path(root) / "done").touch()
    return times


def read_meanwhile(wait: Callable[[], object], root: str, by_query: bool) -> list[int]:
    """The numbers of rows that a reader sees until all is published."""
    warehouse, numbers = LocalWarehouse(Path(root) / "warehouse"), []
    wait()
    while not (Path(root) / "done").exists():
        numbers.append(counts(warehouse, FEB_23)[FEB_23] if by_query else warehouse.read(scan(span(FEB_23))).num_rows)
    return numbers


def test_readers_see_the_old_rows_or_the_new_and_never_an_error(tmp_path: Path) -> None:
    load(LocalWarehouse(tmp_path / "warehouse"), FEB_23, players=200)
    times, *numbers_seen = race(
        (publish_often, tmp_path, 150), (read_meanwhile, tmp_path, True), (read_meanwhile, tmp_path, False)
    )
    assert times == 150
    assert all(set(numbers) <= {100, 200} for numbers in numbers_seen)
    assert set().union(*map(set, numbers_seen)) == {100, 200}  # which of them looks when is up to the machine


# -- errors in the middle of a publication ------------------------------------------------------------------------


@contextmanager
def files_stay_below(size: int) -> Generator[None]:
    """No file of this process can grow beyond so many bytes: as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def another_disk() -> Iterator[None]:
    """As if staging were on another disk than the warehouse: no file can be linked from the one to the other."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "link", refuse)
        yield


def test_what_was_staged_on_another_disk_is_published_too(local_warehouse: LocalWarehouse, staging: Staging) -> None:
    files = [staged(staging, day) for day in DAYS]
    with another_disk():
        assert publish(local_warehouse, *files) == published(*DAYS)
    assert contents(local_warehouse, *DAYS) == [row for day in DAYS for row in rows_of(day).to_pylist()]


def test_a_staged_link_is_lost_not_followed(local_warehouse: LocalWarehouse, staging: Staging, tmp_path: Path) -> None:
    file = staged(staging, FEB_23)
    Path(file.location).rename(tmp_path / "elsewhere")
    Path(file.location).symlink_to(tmp_path / "elsewhere")
    assert publish(local_warehouse, file) == PublishResult(published=frozenset(), lost=frozenset({FEB_23}))
    assert not list(local_warehouse.root.rglob("*.parquet"))


def test_a_full_disk_leaves_every_date_as_it_was(local_warehouse: LocalWarehouse, staging: Staging) -> None:
    load(local_warehouse, FEB_23)
    before = tree(local_warehouse.root / "nba")
    files = [staged(staging, FEB_23, players=9), staged(staging, FEB_24, players=20_000), staged(staging, FEB_25)]
    with another_disk(), files_stay_below(30_000), pytest.raises(WarehouseUnavailable):
        publish(local_warehouse, *files)
    assert contents(local_warehouse, *DAYS) == rows_of(FEB_23).to_pylist()
    assert before.items() <= tree(local_warehouse.root / "nba").items()
    assert publish(local_warehouse, *files) == published(*DAYS)


def test_a_transaction_that_fails_in_the_middle_leaves_every_date_as_it_was(
    bigquery_warehouse: BigQueryWarehouse, emulator: Emulator, staging: Staging
) -> None:
    load(bigquery_warehouse, FEB_23)
    publish(bigquery_warehouse, staged(staging, FEB_25))
    before, recorded = contents(bigquery_warehouse, *DAYS), emulator.rows("backfill.publications")
    emulator.run("ALTER TABLE backfill.publications RENAME COLUMN row_count TO counted")  # its last step will fail
    files = [staged(staging, day, players=9) for day in (FEB_23, FEB_24)]
    with pytest.raises(QueryFailed, match=r"nba\.factors"):
        publish(bigquery_warehouse, *files)
    assert contents(bigquery_warehouse, *DAYS) == before
    emulator.run("ALTER TABLE backfill.publications RENAME COLUMN counted TO row_count")
    assert emulator.rows("backfill.publications") == recorded
    assert publish(bigquery_warehouse, *files) == published(FEB_23, FEB_24)


# -- what a run replaced -----------------------------------------------------------------------------------------


def test_what_a_run_replaced_comes_back_row_by_row(warehouse: Warehouse, staging: Staging) -> None:
    load(warehouse, FEB_23, players=5)
    before = contents(warehouse, *DAYS)
    publish(warehouse, staged(staging, FEB_23, players=9), staged(staging, FEB_24), publication="run-a/1")

    replaced = warehouse.replaced_partitions(TABLE, "day", "run-a", DAYS)

    assert {day: one.before == ABSENT for day, one in replaced.items()} == {FEB_23: False, FEB_24: True}
    assert warehouse.restore(TABLE, "day", "run-a", replaced, generation=1) == {FEB_23, FEB_24}
    assert contents(warehouse, *DAYS) == before
    assert prints(warehouse, *DAYS) == [replaced[FEB_23].before, ABSENT, ABSENT]
    assert warehouse.restore(TABLE, "day", "run-a", replaced, generation=1) == {FEB_23, FEB_24}
    assert contents(warehouse, *DAYS) == before


def test_a_date_published_twice_by_a_run_gets_back_its_rows_before_both(warehouse: Warehouse, staging: Staging) -> None:
    load(warehouse, FEB_23, players=5)
    before = contents(warehouse, FEB_23)
    for attempt in (1, 2):
        publish(warehouse, staged(staging, FEB_23, players=9 + attempt, attempt=attempt), publication="run-b/1")

    assert restore(warehouse, "run-b") == {FEB_23}
    assert contents(warehouse, FEB_23) == before


def test_the_same_rows_under_other_bytes_are_published_and_given_back(warehouse: Warehouse, staging: Staging) -> None:
    load(warehouse, FEB_23, FEB_24)
    before = prints(warehouse, *DAYS)
    other = in_other_bytes(staged(staging, FEB_23))
    receipt = publish(warehouse, other, staged(staging, FEB_24), publication="run-g/1")
    assert receipt == published(FEB_23, FEB_24)
    assert warehouse.matching_dates(TABLE, "day", {FEB_23: other.checksum}) == {FEB_23}
    replaced = warehouse.replaced_partitions(TABLE, "day", "run-g", DAYS)
    assert restore(warehouse, "run-g") == set(replaced)
    assert prints(warehouse, *DAYS) == before


def test_a_date_that_was_written_since_is_not_restored(warehouse: Warehouse, staging: Staging) -> None:
    load(warehouse, FEB_23, FEB_24)
    publish(warehouse, staged(staging, FEB_23, players=9), staged(staging, FEB_24, players=9), publication="run-c/1")
    load(warehouse, FEB_24, players=7)

    assert restore(warehouse, "run-c") == {FEB_23}
    assert counts(warehouse, *DAYS) == {FEB_23: 3, FEB_24: 7}


def test_a_run_that_published_nothing_replaced_nothing(warehouse: Warehouse, staging: Staging) -> None:
    load(warehouse, FEB_23)
    same = staged(staging, FEB_23)
    publish(warehouse, same, publication="run-d/1")
    publish(warehouse, same, publication="run-e/1")
    assert warehouse.replaced_partitions(TABLE, "day", "run-e", DAYS) == {}
    assert warehouse.replaced_partitions(TABLE, "day", "run-f", DAYS) == {}
    warehouse.delete_expired_undo()
    assert set(warehouse.replaced_partitions(TABLE, "day", "run-d", DAYS)) <= {FEB_23}


# -- loading ------------------------------------------------------------------------------------------------------


def test_loading_replaces_exactly_the_dates_it_brings(warehouse: Warehouse) -> None:
    load(warehouse, *DAYS, players=5)
    kept = prints(warehouse, FEB_25)
    assert warehouse.load(TABLE, "day", rows_of(FEB_24, FEB_23, players=2)) == [FEB_23, FEB_24]
    assert counts(warehouse, *DAYS) == {FEB_23: 2, FEB_24: 2, FEB_25: 5}
    assert prints(warehouse, FEB_25) == kept


def stream_of(batches: Iterable[pa.RecordBatch]) -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(rows_of(FEB_23).schema, batches)


def test_a_stream_of_interleaved_dates_is_loaded_like_its_rows(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gated_backfill.common.warehouse.local.date_runs.RUN_BYTES", 2000)
    monkeypatch.setattr("gated_backfill.common.storage.files.ROW_GROUP_BYTES", 1000)
    load(warehouse, *DAYS, players=5)
    untouched = prints(warehouse, FEB_25)
    rows = pa.concat_tables(
        [rows_of(FEB_24, players=1), *(rows_of(FEB_24, FEB_23, players=20, score=100.0 * n) for n in range(30))]
    )

    assert warehouse.load(TABLE, "day", stream_of(rows.to_batches(max_chunksize=7))) == [FEB_23, FEB_24]

    assert counts(warehouse, *DAYS) == {FEB_23: 600, FEB_24: 601, FEB_25: 5}
    assert prints(warehouse, FEB_25) == untouched
    order: Any = [("day", "ascending"), ("score", "ascending"), ("player", "ascending")]
    loaded = warehouse.query(ALL, scans={"t": scan(span(FEB_23, FEB_24))}).select(rows.column_names)
    assert loaded.sort_by(order).to_pylist() == rows.sort_by(order).to_pylist()


def breaking_off() -> Iterator[pa.RecordBatch]:
    yield from rows_of(FEB_23, players=9).to_batches()
    raise UserError("the rows end here")


def without_a_date() -> Iterator[pa.RecordBatch]:
    rows = rows_of(FEB_23, players=2)
    yield from rows.to_batches()
    yield from rows.set_column(1, "day", pa.nulls(2, pa.date32())).to_batches()


@pytest.mark.parametrize("batches", [breaking_off, without_a_date])
def test_a_stream_that_fails_replaces_nothing(
    warehouse: Warehouse, batches: Callable[[], Iterator[pa.RecordBatch]]
) -> None:
    load(warehouse, *DAYS)
    before = prints(warehouse, *DAYS)
    with pytest.raises(UserError):
        warehouse.load(TABLE, "day", stream_of(batches()))
    assert prints(warehouse, *DAYS) == before
    assert counts(warehouse, *DAYS) == dict.fromkeys(DAYS, 3)


def changed(rows: pa.Table, name: str, kind: pa.DataType) -> pa.Table:
    at = rows.schema.get_field_index(name)
    return rows.set_column(at, name, rows[name].cast(kind))


@pytest.mark.parametrize(
    ("date_column", "rows"),
    [
        pytest.param("day", rows_of(FEB_23).append_column("x", pa.array([1, 2, 3])), id="further-column"),
        pytest.param("day", rows_of(FEB_23).drop_columns("score"), id="missing-column"),
        pytest.param("day", changed(rows_of(FEB_23), "score", pa.int64()), id="another-type"),
        pytest.param("born", rows_of(FEB_23).rename_columns(["player", "born", "score"]), id="another-date-column"),
    ],
)
def test_rows_of_another_shape_are_refused_whole(warehouse: Warehouse, date_column: str, rows: pa.Table) -> None:
    load(warehouse, *DAYS)
    before = prints(warehouse, *DAYS)
    with pytest.raises(SchemaMismatch):
        warehouse.load(TABLE, date_column, rows)
    assert prints(warehouse, *DAYS) == before


# -- adding columns -----------------------------------------------------------------------------------------------


def test_added_columns_are_null_in_the_rows_that_are_there(warehouse: Warehouse) -> None:
    load(warehouse, *DAYS, players=2)
    info = require_table(warehouse, TABLE)
    added: dict[str, ColumnType] = {"team": "STRING", "games": "INT64", "at": "TIMESTAMP"}

    warehouse.add_columns(TABLE, {**added, "score": "FLOAT64"})

    assert require_table(warehouse, TABLE).columns == {**info.columns, **added}
    rows = rows_of(FEB_24, players=1)
    for name, kind in added.items():
        rows = rows.append_column(name, pa.nulls(1, ARROW_TYPES[kind]))
    rows = rows.set_column(rows.schema.get_field_index("team"), "team", pa.array(["x"]))
    warehouse.load(TABLE, "day", rows)
    everything = warehouse.query(ALL, scans={"t": scan(span(FEB_23, FEB_25))}).to_pylist()
    assert sorted((row["day"], row["player"], row["team"], row["games"]) for row in everything) == [
        (FEB_23, "player000", None, None),
        (FEB_23, "player001", None, None),
        (FEB_24, "player000", "x", None),
        (FEB_25, "player000", None, None),
        (FEB_25, "player001", None, None),
    ]
    read = warehouse.read(scan(span(FEB_23, FEB_25), columns={"who": "player", "team": "team"}))
    assert sorted(map(str, read["team"].to_pylist())) == ["None"] * 4 + ["x"]


@pytest.mark.parametrize(
    "columns",
    [
        pytest.param({"team": "STRING", "Score": "FLOAT64"}, id="differs-by-case"),
        pytest.param({"team": "STRING", "Team": "STRING"}, id="differ-by-case"),
        pytest.param({"team": "STRING", "score": "INT64"}, id="another-type"),
        pytest.param({"team": "STRING", "a b": "INT64"}, id="no-name"),
    ],
)
def test_columns_that_do_not_fit_are_not_added(warehouse: Warehouse, columns: dict[str, ColumnType]) -> None:
    load(warehouse, *DAYS)
    info, before = require_table(warehouse, TABLE), prints(warehouse, *DAYS)
    with pytest.raises(UserError):
        warehouse.add_columns(TABLE, columns)
    assert require_table(warehouse, TABLE) == info
    assert prints(warehouse, *DAYS) == before


def test_columns_are_added_to_a_table_that_exists_only(warehouse: Warehouse) -> None:
    with pytest.raises(TableNotFound):
        warehouse.add_columns(TABLE, {"team": "STRING"})
    assert warehouse.describe(TABLE) is None


def load_and_die(_: object, root: str, call: str, number: int) -> None:
    die_at(call, number)
    load(LocalWarehouse(Path(root)), *DAYS, players=9)


# A load of three dates writes three files, then moves each into its place: the file, and the note that it lacks.
BEFORE, AFTER = dict.fromkeys(DAYS, 3), dict.fromkeys(DAYS, 9)
DEATHS = {
    "nothing-written": ("replace", 1, BEFORE),
    "two-dates-written": ("replace", 3, BEFORE),
    "just-before-the-first-date": ("replace", 4, BEFORE),
    "one-date-in-place": ("replace", 6, BEFORE | {FEB_23: 9}),
    "two-dates-in-place": ("replace", 8, AFTER | {FEB_25: 3}),
    "all-dates-in-place": ("unlink", 3, AFTER),
    "while-cleaning-up": ("rmdir", 1, AFTER),
}


@pytest.fixture(scope="module")
def deaths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Warehouses in which a load of 9 players a day over 3 was killed, each by the name of its death."""
    folder = tmp_path_factory.mktemp("deaths")
    load(LocalWarehouse(folder / "before"), *DAYS, players=3)
    for death in DEATHS:
        shutil.copytree(folder / "before", folder / death)
    exit_codes = race(*((load_and_die, folder / death, call, number) for death, (call, number, _) in DEATHS.items()))
    assert exit_codes == [-signal.SIGKILL] * len(DEATHS)
    return folder


@pytest.fixture(params=DEATHS)
def death(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def killed(deaths: Path, death: str, tmp_path: Path) -> LocalWarehouse:
    """A fresh reader of what such a death has left."""
    return LocalWarehouse(Path(shutil.copytree(deaths / death, tmp_path / "killed")))


def test_a_killed_load_has_replaced_each_date_or_left_it_and_is_completed_by_loading_again(
    killed: LocalWarehouse, death: str
) -> None:
    expected = DEATHS[death][2]
    assert counts(killed, *DAYS) == expected
    load(killed, FEB_23, players=4)
    assert counts(killed, *DAYS) == {**expected, FEB_23: 4}
    load(killed, *DAYS, players=9)
    assert counts(killed, *DAYS) == AFTER
    assert not list(killed.root.rglob("*.tmp"))
    assert not list(killed.root.rglob(".loading"))


def test_a_killed_load_is_whole_for_whoever_looks_at_fingerprints_first(killed: LocalWarehouse, death: str) -> None:
    first = prints(killed, *DAYS)
    assert counts(killed, *DAYS) == DEATHS[death][2]
    assert prints(killed, *DAYS) == first


def test_a_killed_load_never_overwrites_what_was_published_after_it(
    killed: LocalWarehouse, deaths: Path, death: str, staging: Staging
) -> None:
    before_the_load = LocalWarehouse(deaths / "before").fingerprints(TABLE, "day", [FEB_23])
    receipt = publish(killed, staged(staging, FEB_23, players=5), since=before_the_load)
    expected = DEATHS[death][2]
    if expected[FEB_23] == BEFORE[FEB_23]:
        assert receipt == published(FEB_23)
        assert counts(killed, *DAYS) == {**expected, FEB_23: 5}
    else:
        assert receipt.conflicting == {FEB_23}
        assert counts(killed, *DAYS) == expected


def publish_and_die(_: object, root: str, number: int, location: str, checksum: str) -> None:
    die_at("fsync", number)
    file = StagedFile(day=FEB_23, attempt=1, location=location, checksum=checksum, rows=5)
    publish(LocalWarehouse(Path(root)), file, publication="run-1/1")


SYNCS = 12  #: of a publication, at least


@pytest.mark.parametrize("is_new", [False, True], ids=["known-table", "new-table"])
def test_a_publication_that_was_killed_leaves_nothing_once_it_is_repeated(
    tmp_path: Path, staging: Staging, is_new: bool
) -> None:
    file = staged(staging, FEB_23, players=5)
    (tmp_path / "before").mkdir()
    if not is_new:
        load(LocalWarehouse(tmp_path / "before"), FEB_23, players=3)
    roots = [shutil.copytree(tmp_path / "before", tmp_path / f"killed-{n}") for n in range(SYNCS)]
    calls = [(publish_and_die, root, n, file.location, file.checksum) for n, root in enumerate(roots, 1)]
    assert race(*calls) == [-signal.SIGKILL] * SYNCS

    (before,) = prints(LocalWarehouse(tmp_path / "before"), FEB_23)
    for warehouse in map(LocalWarehouse, roots):
        assert publish(warehouse, file) == published(FEB_23)
        assert counts(warehouse, FEB_23) == {FEB_23: 5}
        replaced = warehouse.replaced_partitions(TABLE, "day", "run-1", [FEB_23])[FEB_23]
        assert (replaced.before, replaced.published) == (before, file.checksum)
        assert not list(warehouse.root.rglob("*.tmp"))
        assert not list(warehouse.root.rglob(".loading"))


# -- places where nothing may be written --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "blocked",
    [
        pytest.param((), id="the-warehouse"),
        pytest.param(("nba",), id="the-dataset"),
        pytest.param(("nba", "factors"), id="the-table"),
    ],
)
def test_a_file_where_a_folder_should_be_is_an_error_of_the_user(
    local_warehouse: LocalWarehouse, staging: Staging, blocked: Sequence[str]
) -> None:
    place = local_warehouse.root.joinpath(*blocked)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"a file")
    for act in (
        lambda: local_warehouse.check_publishable(TABLE),
        lambda: load(local_warehouse, FEB_23),
        lambda: publish(local_warehouse, staged(staging, FEB_23), since={FEB_23: ABSENT}),
    ):
        with pytest.raises(UserError):
            act()
    assert place.read_bytes() == b"a file"


def test_a_check_leaves_nothing_behind(local_warehouse: LocalWarehouse) -> None:
    local_warehouse.check_publishable(TABLE)
    assert not local_warehouse.root.exists()


@pytest.mark.parametrize("name", ["...secret", "..", "nba/../../x.t", "nba...", "../x.t", "nba.../x"])
def test_no_table_name_leads_out_of_the_warehouse(local_warehouse: LocalWarehouse, name: str) -> None:
    outside = LocalWarehouse(local_warehouse.root.parent)
    outside.load(TableName("secret", "t"), "day", rows_of(FEB_23))
    before = tree(local_warehouse.root.parent)
    with pytest.raises(UserError):
        local_warehouse.load(TableName.parse(name), "day", rows_of(FEB_23))
    with pytest.raises(UserError):
        local_warehouse.load(TABLE, "../../day", rows_of(FEB_23).rename_columns(["player", "../../day", "score"]))
    assert tree(local_warehouse.root.parent) == before


def test_a_partition_that_is_no_parquet_file_is_an_error_of_ours(local_warehouse: LocalWarehouse) -> None:
    load(local_warehouse, FEB_23)
    (part,) = local_warehouse.root.rglob("part.parquet")
    part.write_bytes(b"not a Parquet file")
    with pytest.raises(SchemaMismatch, match=rf"nba\.factors, partition day={FEB_23}: is not a readable"):
        local_warehouse.read(scan(span(FEB_23)))
    (part.parent.parent / "schema.json").unlink()  # its columns are now those of its partitions
    with pytest.raises(SchemaMismatch, match=r"nba\.factors"):
        local_warehouse.describe(TABLE)


def test_a_partition_that_can_not_be_looked_at_is_not_absent(local_warehouse: LocalWarehouse) -> None:
    load(local_warehouse, FEB_23, FEB_24)
    part = local_warehouse.root / f"nba/factors/day={FEB_24}/part.parquet"
    part.unlink()
    part.symlink_to(part)  # which goes on for ever
    asks: list[Callable[[Scan], object]] = [
        local_warehouse.read,
        lambda asked: local_warehouse.read(asked, once=True),
        lambda asked: local_warehouse.query(ALL, scans={"t": asked}),
        lambda _: prints(local_warehouse, FEB_24),
    ]
    for ask in asks:
        with pytest.raises(WarehouseUnavailable, match=str(FEB_24)):
            ask(scan(span(FEB_23, FEB_24)))


def test_a_file_in_place_of_a_partition_stops_publishing(local_warehouse: LocalWarehouse, staging: Staging) -> None:
    load(local_warehouse, FEB_23)
    (local_warehouse.root / f"nba/factors/day={FEB_24}").write_text("not a folder")
    files = [staged(staging, FEB_23), staged(staging, FEB_24)]
    before = contents(local_warehouse, FEB_23)
    with pytest.raises(HostError, match=str(FEB_24)):
        publish(local_warehouse, *files, since={FEB_23: "", FEB_24: ABSENT})
    assert contents(local_warehouse, FEB_23) == before, "and the table is read as it was"


def test_a_partition_that_became_a_link_out_is_read_anew(local_warehouse: LocalWarehouse, tmp_path: Path) -> None:
    load(local_warehouse, FEB_23)
    folder = local_warehouse.root / f"nba/factors/day={FEB_23}"
    long_ago = time.time() - 3600
    os.utime(folder / "part.parquet", (long_ago, long_ago))
    asks = (lambda: local_warehouse.read(scan(span(FEB_23))), lambda: prints(local_warehouse, FEB_23))
    for ask in asks:
        ask()
    outside = folder.rename(tmp_path / "outside")
    folder.symlink_to(outside)
    for ask in asks:
        with pytest.raises(OutsideRoot):
            ask()


@pytest.mark.parametrize("rows", [3, 30_000, 600_000])  # as they are remembered, as they are not, in a big file
def test_rows_that_were_read_are_read_again_from_a_new_file(local_warehouse: LocalWarehouse, rows: int) -> None:
    load(local_warehouse, FEB_23, players=rows)
    part = local_warehouse.root / f"nba/factors/day={FEB_23}/part.parquet"
    long_ago = part.stat().st_mtime - 3600
    os.utime(part, (long_ago, long_ago))  # it has settled
    named = scan(span(FEB_23), columns={"day": "day", "who": "player"})
    before = [local_warehouse.read(asked) for asked in (named, scan(span(FEB_23)), named)]
    assert [table.num_rows for table in before] == [rows] * 3
    assert before[0].column_names == ["day", "who"]
    assert local_warehouse.read(named, once=True).num_rows == rows
    assert prints(local_warehouse, FEB_23) == [checksum_of(part.read_bytes())]
    load(local_warehouse, FEB_23, players=rows + 1)
    os.utime(part, (long_ago, long_ago))
    assert prints(local_warehouse, FEB_23) == [checksum_of(part.read_bytes())]
    assert local_warehouse.read(named).num_rows == rows + 1
    assert local_warehouse.read(named, once=True).num_rows == rows + 1


def test_a_query_that_a_signal_cuts_off_may_be_asked_again(local_warehouse: LocalWarehouse) -> None:
    """Celery terminates what a worker is at when its broker is gone; DuckDB then drops what the handler raises."""
    load(local_warehouse, FEB_23, players=2000)
    slow = "SELECT a.player FROM t AS a CROSS JOIN t AS b CROSS JOIN t AS c ORDER BY a.score * b.score"
    counts(local_warehouse, FEB_23)  # what is imported on first use is
    with answering(signal.SIGALRM, by=SystemExit):
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(WarehouseUnavailable, match="cut off"):
            local_warehouse.query(slow, scans={"t": scan(span(FEB_23))})
    assert counts(local_warehouse, FEB_23) == {FEB_23: 2000}


def test_a_local_table_that_another_process_does_not_release_is_refused_naming_it(
    local_warehouse: LocalWarehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_warehouse.load(TABLE, "day", rows_of(FEB_23))
    monkeypatch.setattr("gated_backfill.common.warehouse.local.backups.LOCK_WAIT_SECONDS", 0.0)
    with (local_warehouse.root / TABLE.dataset / TABLE.table / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a suspended process holds it
        with pytest.raises(WarehouseUnavailable, match=f"process {os.getpid()} has been writing to the table"):
            local_warehouse.load(TABLE, "day", rows_of(FEB_24))
    assert local_warehouse.load(TABLE, "day", rows_of(FEB_24)) == [FEB_24]


def test_reads_together_give_what_each_gives_alone(warehouse: Warehouse) -> None:
    warehouse.load(TABLE, "day", rows_of(FEB_23, FEB_24))
    scan = Scan(table=TABLE, date_column="day", dates=(span(FEB_23, FEB_25),))

    def missing() -> str:
        with pytest.raises(TableNotFound):
            warehouse.count_rows(replace(scan, table=TableName("nba", "nowhere")))
        return "not found"

    reads = [
        lambda: warehouse.count_rows(scan),
        lambda: warehouse.fingerprints(TABLE, "day", [FEB_23, FEB_24, FEB_25]),
        missing,
        lambda: sorted(warehouse.read(scan)["player"].to_pylist()),
    ]
    assert warehouse.together(*reads) == [read() for read in reads]
    assert warehouse.together() == []
