"""Reading staged files, each checked by its checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import BinaryIO

import pyarrow.parquet as pq

from gated_backfill.common.errors import OutsideRoot, StagedFileLost
from gated_backfill.common.model.publication import StagedFile
from gated_backfill.common.storage.objects import open_location

OpenFile = Callable[[str], BinaryIO]  #: opens the file at a location; raises `FileNotFoundError` or `OutsideRoot`


@contextmanager
def open_staged(staged: StagedFile, open_file: OpenFile = open_location) -> Generator[pq.ParquetFile]:
    """Open the staged file, which is read in parts, whatever it holds.

    Raises `StagedFileLost` if it is gone, changed, or outside the root.
    """
    with open_staged_bytes(staged, open_file) as file:
        yield pq.ParquetFile(file, pre_buffer=False)


def check_staged(staged: StagedFile) -> None:
    """Check that the staged file is there and unchanged. Raises `StagedFileLost`."""
    with open_staged_bytes(staged):
        pass


@contextmanager
def open_staged_bytes(staged: StagedFile, open_file: OpenFile = open_location) -> Generator[BinaryIO]:
    """Open the bytes of the staged file. Raises like `open_staged`."""
    try:
        file = open_file(staged.location)
    except FileNotFoundError as exc:
        raise StagedFileLost("the staged file is gone", day=staged.day) from exc
    except OutsideRoot as exc:
        import structlog  # slow to import, and every command imports this module

        structlog.get_logger().error("staged_file_outside_root", day=staged.day.isoformat(), error=str(exc))
        raise StagedFileLost(str(exc), day=staged.day) from exc
    with file:
        if hashlib.file_digest(file, "sha256").hexdigest() != staged.checksum:  # pyright: ignore[reportArgumentType]
            raise StagedFileLost("the staged file has changed since it was staged", day=staged.day)
        file.seek(0)
        yield file
