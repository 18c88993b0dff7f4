"""Rows as Parquet files: the same rows, the same bytes."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gated_backfill.common.storage import files
from gated_backfill.common.storage.files import FEW_CELLS, parquet_bytes

ROWS = pa.table(
    {
        "name": [None if n % 7 == 3 else f"player{n % 50}" for n in range(300)],
        "minutes": [None if n % 11 == 5 else float(n) for n in range(300)],
    }
)


@given(
    begin=st.integers(0, 299), length=st.integers(0, 300), cut=st.integers(0, 300), few=st.sampled_from([0, 300, 1000])
)
def test_rows_give_the_same_bytes_wherever_they_were_cut_out_of(begin: int, length: int, cut: int, few: int) -> None:
    wanted = ROWS.slice(begin, length)
    alone = pa.Table.from_pylist(wanted.to_pylist(), schema=ROWS.schema)
    pieces = pa.concat_tables([wanted.slice(0, cut), wanted.slice(cut)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "FEW_CELLS", few)  # the lengths are on both sides of it
        assert parquet_bytes(wanted) == parquet_bytes(alone) == parquet_bytes(pieces)


@pytest.mark.parametrize(
    ("count", "compression"),
    [
        pytest.param(0, "SNAPPY", id="none"),
        pytest.param(FEW_CELLS // 2, "SNAPPY", id="few"),
        pytest.param(FEW_CELLS // 2 + 1, "ZSTD", id="many"),
    ],
)
def test_few_rows_are_packed_quickly_and_many_well(count: int, compression: str) -> None:
    rows = pa.table({"name": [f"player{n % 50}" for n in range(count)], "points": range(count)})
    data = parquet_bytes(rows)
    assert pq.read_table(pa.BufferReader(data)).equals(rows)
    metadata = pq.read_metadata(pa.BufferReader(data))
    found = {
        metadata.row_group(group).column(column).compression
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    }
    assert found == {compression}
