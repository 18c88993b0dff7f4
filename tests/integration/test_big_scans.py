"""A query of big local tables, whose files DuckDB reads itself, returns what a query of small ones does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import date
from pathlib import Path
from typing import Any, LiteralString

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gated_backfill.common.errors import QueryFailed, SchemaMismatch
from gated_backfill.common.model.arrow.types import ARROW_TYPES
from gated_backfill.common.model.entities import EntityColumns
from gated_backfill.common.model.tables import ColumnType, ColumnTypes
from gated_backfill.common.warehouse.entities import group_entities
from gated_backfill.common.warehouse.local import warehouse as local_warehouse_module
from gated_backfill.common.warehouse.local.partition_files import PartitionFiles
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from gated_backfill.common.warehouse.protocol import EntityScan, Scan
from tests.builders import FEB_23, FEB_24, FEB_25, TABLE, rows_of, scan, span

SQL = "SELECT * FROM t"


def write(warehouse: LocalWarehouse, day: date, rows: pa.Table) -> None:
    """Write a partition as another program does."""
    folder = warehouse.root / TABLE.dataset / TABLE.table / f"day={day}"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, folder / "part.parquet")


def with_column(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    return lambda rows: rows.set_column(rows.column_names.index(name), name, values)


SHAPES = [
    pytest.param(lambda rows: rows, True, id="as-declared"),
    pytest.param(lambda rows: rows.select(["score", "day", "player"]), True, id="another-order"),
    pytest.param(with_column("score", pa.array([1, 2, None], pa.int32())), False, id="integers"),
    pytest.param(with_column("player", pa.array(["a", "a", "b"]).dictionary_encode()), False, id="dictionary"),
    pytest.param(lambda rows: rows.drop_columns("score"), False, id="without-a-column"),
    pytest.param(lambda rows: rows.drop_columns("day"), False, id="without-the-date"),
    pytest.param(lambda rows: rows.slice(0, 0), True, id="no-rows"),
]


@pytest.mark.parametrize(("shape", "is_read_by_duckdb"), SHAPES)
def test_a_big_scan_has_the_rows_of_a_small_one(
    local_warehouse: LocalWarehouse,
    monkeypatch: pytest.MonkeyPatch,
    shape: Callable[[pa.Table], pa.Table],
    is_read_by_duckdb: bool,
) -> None:
    local_warehouse.load(TABLE, "day", rows_of(FEB_23, FEB_25))
    write(local_warehouse, FEB_24, shape(rows_of(FEB_24)))
    for scanned in (scan(span(FEB_23, FEB_25)), scan(span(FEB_24), columns={"d": "day", "s": "score"})):
        assert outcome(local_warehouse, scanned, monkeypatch, big=True) == outcome(
            local_warehouse, scanned, monkeypatch, big=False
        )
    monkeypatch.setattr(local_warehouse_module, "BIG_SCAN_BYTES", 0)
    files = local_warehouse._find_big_files(scan(span(FEB_23, FEB_25)))
    assert (files is not None) is is_read_by_duckdb


def outcome(warehouse: LocalWarehouse, scanned: Scan, monkeypatch: pytest.MonkeyPatch, *, big: bool) -> Any:
    """The types and rows of a query, or its error."""
    with monkeypatch.context() as patched:
        if big:
            patched.setattr(local_warehouse_module, "BIG_SCAN_BYTES", 0)
        try:
            result = warehouse.query(SQL, scans={"t": scanned})
        except SchemaMismatch as exc:
            return str(exc)
    return result.schema, sorted(map(repr, result.to_pylist()))


def test_a_row_of_another_date_is_refused_in_a_big_file_too(
    local_warehouse: LocalWarehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_warehouse_module, "BIG_SCAN_BYTES", 0)
    local_warehouse.load(TABLE, "day", rows_of(FEB_23))
    write(local_warehouse, FEB_24, rows_of(FEB_25))
    with pytest.raises(SchemaMismatch, match="the rows of a partition must have its date"):
        local_warehouse.query(SQL, scans={"t": scan(span(FEB_23, FEB_24))})


# -- files that DuckDB writes -------------------------------------------------------------------------------------

COLUMNS: ColumnTypes = {"player": "STRING", "day": "DATE", "value": "INT64"}


@pytest.mark.parametrize(
    ("value", "kind", "values"),
    [
        pytest.param("SUM(CAST(score AS INT64))", "INT64", [1, 2, 3], id="a-sum-has-128-bits"),
        pytest.param("COUNT(*)", "INT64", [1, 1, 1], id="a-count"),
        pytest.param("1", "INT64", [1, 1, 1], id="a-literal-has-32-bits"),
        pytest.param("MIN(score)", "FLOAT64", [1.0, 2.0, 3.0], id="numbers"),
        pytest.param("MIN(IF(score > 1, player, NULL))", "STRING", [None, "player001", "player002"], id="gaps"),
        pytest.param("MIN(score) > 1", "BOOL", [False, True, True], id="booleans"),
        pytest.param("MIN(score)", "INT64", None, id="numbers-for-whole-ones"),
        pytest.param("COUNT(*)", "FLOAT64", None, id="whole-numbers-for-others"),
        pytest.param("SUM(CAST(score AS NUMERIC))", "NUMERIC", None, id="money"),
    ],
)
def test_a_query_is_written_if_every_value_stays_as_it_is(
    local_warehouse: LocalWarehouse, tmp_path: Path, value: LiteralString, kind: ColumnType, values: list[Any] | None
) -> None:
    local_warehouse.load(TABLE, "day", rows_of(FEB_23))
    columns: ColumnTypes = {"player": "STRING", "day": "DATE", "value": kind}

    with written(
        local_warehouse, f"SELECT day, {value} AS value, player FROM t GROUP BY player, day", columns
    ) as write:
        assert (write is not None) is (values is not None)
        if write is not None:
            write(str(tmp_path / "rows.parquet"))

    if values is not None:
        rows = pq.ParquetFile(tmp_path / "rows.parquet").read()
        assert [(field.name, field.type) for field in rows.schema] == [*arrow_fields(columns)]
        assert rows["value"].to_pylist() == values


def test_a_whole_number_beyond_64_bits_is_not_written(local_warehouse: LocalWarehouse, tmp_path: Path) -> None:
    local_warehouse.load(TABLE, "day", rows_of(FEB_23))
    sql = "SELECT day, player, 9223372036854775807 + SUM(1) AS value FROM t GROUP BY player, day"

    def write_all() -> None:
        with written(local_warehouse, sql, COLUMNS) as write:
            assert write is not None
            write(str(tmp_path / "rows.parquet"))

    with pytest.raises(QueryFailed, match="out of range"):
        write_all()


@pytest.mark.parametrize("column", ["value", "day"])
def test_a_query_without_a_column_is_not_written(local_warehouse: LocalWarehouse, column: str) -> None:
    local_warehouse.load(TABLE, "day", rows_of(FEB_23))
    columns = {name: kind for name, kind in COLUMNS.items() if name != column}
    with written(
        local_warehouse, f"SELECT {', '.join(columns)} FROM (SELECT *, 1 AS value FROM t) AS t1", COLUMNS
    ) as write:
        assert write is None


def test_the_same_rows_in_another_order_give_the_same_file(local_warehouse: LocalWarehouse, tmp_path: Path) -> None:
    rows = rows_of(FEB_23, players=5000)
    files: list[bytes] = []
    for ordered in (rows, rows.take(list(range(4999, -1, -1)))):
        local_warehouse.load(TABLE, "day", ordered)
        with written(local_warehouse, "SELECT player, day, CAST(score AS INT64) AS value FROM t", COLUMNS) as write:
            assert write is not None
            write(str(tmp_path / "rows.parquet"))
        files.append((tmp_path / "rows.parquet").read_bytes())
    assert files[0] == files[1]
    assert pq.ParquetFile(tmp_path / "rows.parquet").read()["player"].to_pylist() == sorted(rows["player"].to_pylist())


def written(
    warehouse: LocalWarehouse, sql: LiteralString, columns: ColumnTypes
) -> AbstractContextManager[Callable[[str], None] | None]:
    assert warehouse.query_files is not None
    scans = {"t": scan(span(FEB_23))}
    return warehouse.query_files.writable_query(sql, scans=scans, params={}, columns=columns, order=["player"])


def arrow_fields(columns: ColumnTypes) -> Iterator[tuple[str, pa.DataType]]:
    return ((name, ARROW_TYPES[kind]) for name, kind in columns.items())


# -- entities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entity", "is_counted_by_query"),
    [(("player",), True), (("player", "day"), False), (("number", "player"), True), (("score",), False)],
)
def test_entities_of_a_big_table_are_those_of_a_small_one(
    local_warehouse: LocalWarehouse, monkeypatch: pytest.MonkeyPatch, entity: tuple[str, ...], is_counted_by_query: bool
) -> None:
    rows = pa.concat_tables([rows_of(FEB_23, FEB_24), rows_of(FEB_24, players=2), rows_of(FEB_25, score=7.0)])
    rows = rows.append_column("number", pa.array([None if n % 4 == 0 else n % 3 for n in range(len(rows))], pa.int64()))
    names = pa.array([None if n % 5 == 0 else name for n, name in enumerate(rows["player"].to_pylist())])
    local_warehouse.load(TABLE, "day", rows.set_column(0, "player", names))
    scanned = EntityScan(table=TABLE, columns=EntityColumns(date="day", entity=entity), dates=(span(FEB_23, FEB_25),))

    small = group_entities([local_warehouse.read_entities(scanned)])
    monkeypatch.setattr(PartitionFiles, "MAX_CACHED_FILE_BYTES", 0)
    assert local_warehouse._is_grouped_by_query(scanned) is is_counted_by_query
    big = group_entities([local_warehouse.read_entities(scanned)])

    def as_rows(entities: pa.Table) -> list[str]:
        return sorted(map(repr, entities.to_pylist()))

    assert as_rows(big) == as_rows(small)
    assert len(big) > 5
