"""The partitions of a local table: a folder a date, with one file of rows and a note on who published it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from common.errors import NotAllowed, SchemaMismatch, WarehouseUnavailable
from common.schema import TableName
from common.warehouse.base import ABSENT
from common.warehouse.files import checksum_of, inside

PART = "part.parquet"
PUBLICATION = "publication.json"  #: beside the part: which run and attempt wrote it, and its checksum


def partitions_in(root: Path, folder: Path) -> Iterator[Path]:
    """The partition folders that hold a part, in no order. Raises `OutsideRoot` for one that leads out of the root."""
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        if "=" in entry.name and (entry / PART).exists():
            inside(root, entry / PART)
            yield entry


def link(file: Path, other: Path) -> None:
    """The file under another name too; published files are replaced, never written into."""
    try:
        os.link(file, other)
    except OSError:  # a file system without hard links
        shutil.copyfile(file, other)


def fingerprint(part: Path) -> str:
    try:
        return checksum_of(part.read_bytes())
    except FileNotFoundError:
        return ABSENT


@contextmanager
def translated(table: TableName) -> Generator[None]:
    try:
        yield
    except pa.ArrowInvalid as exc:
        raise SchemaMismatch(f"a partition is not a readable Parquet file: {exc}", table=str(table)) from exc
    except (PermissionError, NotADirectoryError, FileExistsError) as exc:
        raise NotAllowed(f"{exc.strerror}: {exc.filename}", table=str(table)) from exc
    except OSError as exc:
        raise WarehouseUnavailable(f"{exc.strerror or exc}: {exc.filename or ''}", table=str(table)) from exc
