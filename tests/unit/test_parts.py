"""Parts of local tables, read whole or as they come by how big they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gated_backfill.common.warehouse.local.partition_files import PartitionFiles

Read = Callable[[PartitionFiles, str, list[str] | None], pa.Table | None]

ROWS = pa.table({"name": [f"player{n}" for n in range(500)], "points": range(500)})


@pytest.fixture(params=[pytest.param(True, id="small"), pytest.param(False, id="big")])
def parts(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PartitionFiles:
    if not request.param:
        monkeypatch.setattr(PartitionFiles, "MAX_CACHED_FILE_BYTES", 0)
    return PartitionFiles(tmp_path)


def part_of(root: Path) -> Path:
    found = root / "day=2023-02-23" / "part.parquet"
    found.parent.mkdir()
    return found


def open_files() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - no path is wanted


@pytest.mark.parametrize("reading", [PartitionFiles.rows, PartitionFiles.rows_uncached])
@pytest.mark.parametrize("columns", [None, ["name"]])
def test_rows_outlive_the_file_they_were_read_from(
    parts: PartitionFiles, tmp_path: Path, reading: Read, columns: list[str] | None
) -> None:
    part = part_of(tmp_path)
    pq.write_table(ROWS, part)
    before = open_files()
    found = reading(parts, str(part), columns)
    part.write_bytes(bytes(part.stat().st_size))
    assert found is not None
    assert found.select(columns or ROWS.column_names).equals(ROWS.select(columns or ROWS.column_names))
    assert open_files() == before


@pytest.mark.parametrize("reading", [PartitionFiles.rows, PartitionFiles.rows_uncached])
def test_a_damaged_part_raises_and_leaves_nothing_open(parts: PartitionFiles, tmp_path: Path, reading: Read) -> None:
    part = part_of(tmp_path)
    pq.write_table(ROWS, part)
    part.write_bytes(part.read_bytes()[:-100])
    before = open_files()
    with pytest.raises(pa.ArrowException):
        reading(parts, str(part), None)
    assert open_files() == before


@pytest.mark.parametrize("reading", [PartitionFiles.rows, PartitionFiles.rows_uncached])
def test_a_part_that_is_not_there_has_no_rows(parts: PartitionFiles, tmp_path: Path, reading: Read) -> None:
    assert reading(parts, str(part_of(tmp_path)), None) is None
