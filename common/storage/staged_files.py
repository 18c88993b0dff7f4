"""Reading staged files, each checked against what was staged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from gated_backfill.common.errors import OutsideRoot, StagedFileLost
from gated_backfill.common.model.publication import StagedFile
from gated_backfill.common.storage.files import checksum_of
from gated_backfill.common.storage.objects import read_bytes


def read_staged_bytes(staged: StagedFile, read: Callable[[str], bytes] = read_bytes) -> bytes:
    """The staged file's bytes. Raises `StagedFileLost` when they are gone or are not those that were staged.

    Those of a place that `read` refuses are as good as lost.
    """
    try:
        data = read(staged.location)
    except FileNotFoundError as exc:
        raise StagedFileLost("the staged file is gone", day=staged.day) from exc
    except OutsideRoot as exc:
        import structlog  # which brings what paints consoles along, for every command that may read a staged file

        structlog.get_logger().error("staged_file_refused", day=staged.day.isoformat(), error=str(exc))
        raise StagedFileLost(str(exc), day=staged.day) from exc
    check_checksum(staged, data)
    return data


def check_checksum(staged: StagedFile, data: bytes) -> None:
    """Raises `StagedFileLost` when the bytes are not those that were staged."""
    if checksum_of(data) != staged.checksum:
        raise StagedFileLost("the staged file is not what was staged", day=staged.day)


def parse_rows(data: bytes) -> pa.Table:
    """The rows in the bytes of a staged file."""
    return pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)


def read_all_rows(files: Sequence[StagedFile]) -> pa.Table:
    """The rows of several staged files, one after the other. Raises `StagedFileLost`."""
    return pa.concat_tables([parse_rows(read_staged_bytes(staged)) for staged in files])
