"""Reading staged files, each checked by its checksum."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from gated_backfill.common.errors import OutsideRoot, StagedFileLost
from gated_backfill.common.model.publication import StagedFile
from gated_backfill.common.storage.files import checksum_of
from gated_backfill.common.storage.objects import read_bytes


def read_staged_bytes(staged: StagedFile, read: Callable[[str], bytes] = read_bytes) -> bytes:
    """Read the staged file with `read`. Raises `StagedFileLost` if it is gone, changed, or outside the root."""
    try:
        data = read(staged.location)
    except FileNotFoundError as exc:
        raise StagedFileLost("the staged file is gone", day=staged.day) from exc
    except OutsideRoot as exc:
        import structlog  # slow to import, and every command imports this module

        structlog.get_logger().error("staged_file_outside_root", day=staged.day.isoformat(), error=str(exc))
        raise StagedFileLost(str(exc), day=staged.day) from exc
    check_checksum(staged, data)
    return data


def check_checksum(staged: StagedFile, data: bytes) -> None:
    """Check the bytes against the checksum of the staged file. Raises `StagedFileLost`."""
    if checksum_of(data) != staged.checksum:
        raise StagedFileLost("the staged file has changed since it was staged", day=staged.day)


def parse_rows(data: bytes) -> pa.Table:
    """Decode the rows of a staged file."""
    return pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)


def read_all_rows(files: Sequence[StagedFile]) -> pa.Table:
    """Read the rows of several staged files into one table. Raises `StagedFileLost`."""
    return pa.concat_tables([parse_rows(read_staged_bytes(staged)) for staged in files])
