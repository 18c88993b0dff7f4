"""The partitions of a local table: a folder a date, with one file of rows and a note on who published it."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from gated_backfill.common.errors import NotAllowed, SchemaMismatch, WarehouseUnavailable
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.storage.files import checked_path, checked_path_text, checksum_of
from gated_backfill.common.warehouse.protocol import ABSENT

ROWS_FILE = "part.parquet"
PUBLICATION_FILE = "publication.json"  #: beside the part: which run and attempt wrote it, and its checksum


def partition_folders(root: Path, folder: Path) -> Iterator[Path]:
    """The partition folders that hold a part, in no order. Raises `OutsideRoot` for one that leads out of the root."""
    try:
        entries = os.scandir(folder)  # which does not read a folder of ten years for the first of it
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            if "=" not in entry.name:
                continue
            place = folder / entry.name
            try:
                mode = os.lstat(f"{place}/{ROWS_FILE}").st_mode
            except (FileNotFoundError, NotADirectoryError):
                continue
            if entry.is_symlink() or stat.S_ISLNK(mode):
                if not (place / ROWS_FILE).exists():
                    continue
                checked_path(root, place / ROWS_FILE)
            yield place


def existing_parts(root: Path, parts: Iterable[str]) -> list[str]:
    """Those of the parts that there are. Raises `OutsideRoot` for one out of the root.

    As few looks as tell: it is asked for every file that a query is to read.
    """
    found: list[str] = []
    for part in parts:
        try:
            linked = any(stat.S_ISLNK(os.lstat(place).st_mode) for place in (part.rpartition("/")[0], part))
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not linked or file_exists(checked_path_text(str(root), part)):
            found.append(part)
    return found


def hard_link(file: Path, other: Path) -> None:
    """The file under another name too; published files are replaced, never written into."""
    try:
        os.link(file, other)
    except OSError:  # a file system without hard links
        shutil.copyfile(file, other)


def file_exists(part: str | Path) -> bool:
    """Whether the file exists. Raises `OSError` where that can't be told: what can't be read is not absent."""
    try:
        os.stat(part)  # noqa: PTH116 - asked for every file that is read
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def file_fingerprint(file: str | Path) -> str:
    """That of the bytes of any file of the warehouse's, at a path that was looked at; `ABSENT` where there is none."""
    try:
        return checksum_of(Path(file).read_bytes())
    except FileNotFoundError:
        return ABSENT


@contextmanager
def translate_file_errors(table: TableName) -> Generator[None]:
    try:
        yield
    except pa.ArrowInvalid as exc:
        raise SchemaMismatch(f"a partition is not a readable Parquet file: {exc}", table=str(table)) from exc
    except (PermissionError, NotADirectoryError, FileExistsError) as exc:
        raise NotAllowed(f"{exc.strerror}: {exc.filename}", table=str(table)) from exc
    except OSError as exc:
        raise WarehouseUnavailable(f"{exc.strerror or exc}: {exc.filename or ''}", table=str(table)) from exc
