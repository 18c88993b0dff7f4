"""A query of big local tables, whose files DuckDB reads itself, returns what a query of small ones does."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.warehouse.local import warehouse as local_warehouse_module
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from gated_backfill.common.warehouse.protocol import Scan
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
