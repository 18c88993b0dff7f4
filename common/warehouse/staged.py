"""Reading staged files, each checked against what was staged."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import OutsideRoot, StagedFileLost
from common.objects import read_bytes
from common.warehouse.base import StagedFile
from common.warehouse.files import checksum_of


def read_staged_bytes(staged: StagedFile) -> bytes:
    """The staged file's bytes. Raises `StagedFileLost` when they are gone or are not those that were staged."""
    try:
        data = read_bytes(staged.location)
    except FileNotFoundError as exc:
        raise StagedFileLost("the staged file is gone", day=staged.day) from exc
    except OutsideRoot as exc:
        raise StagedFileLost(str(exc), day=staged.day) from exc
    refuse_other(staged, data)
    return data


def staged_rows(staged: StagedFile, data: bytes) -> pa.Table:
    """The rows in the bytes of a staged file. Raises `StagedFileLost` when they are not those that were staged."""
    refuse_other(staged, data)
    return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)


def rows_of_all(files: Sequence[StagedFile]) -> pa.Table:
    """The rows of several staged files, one after the other. Raises `StagedFileLost`."""
    return pa.concat_tables([staged_rows(staged, read_staged_bytes(staged)) for staged in files])


def refuse_other(staged: StagedFile, data: bytes) -> None:
    if checksum_of(data) != staged.checksum:
        raise StagedFileLost("the staged file is not what was staged", day=staged.day)
