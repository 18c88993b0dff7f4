"""The partitions of a local table: one folder per date, with a file of rows and a note on its publication."""

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
PUBLICATION_FILE = "publication.json"  #: the run and attempt that wrote the rows, and their checksum


def partition_folders(root: Path, folder: Path) -> Iterator[Path]:
    """List the partition folders with rows, unordered. Raises `OutsideRoot` for a link out of the root."""
    try:
        entries = os.scandir(folder)  # lazy: a caller may need the first entry only
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            if "=" not in entry.name:
                continue
            partition = folder / entry.name
            try:
                mode = os.lstat(f"{partition}/{ROWS_FILE}").st_mode
            except (FileNotFoundError, NotADirectoryError):
                continue
            if entry.is_symlink() or stat.S_ISLNK(mode):
                if not (partition / ROWS_FILE).exists():
                    continue
                checked_path(root, partition / ROWS_FILE)
            yield partition


def existing_parts(root: Path, parts: Iterable[str]) -> list[str]:
    """Return the files that exist. Raises `OutsideRoot` for a link out of the root.

    Called for every file of a query, so with as few system calls as possible.
    """
    existing: list[str] = []
    for part in parts:
        try:
            linked = any(stat.S_ISLNK(os.lstat(path).st_mode) for path in (part.rpartition("/")[0], part))
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not linked or file_exists(checked_path_text(str(root), part)):
            existing.append(part)
    return existing


def hard_link(file: Path, other: Path) -> None:
    """Link the file under a second name. Safe, as published files are replaced and never modified."""
    try:
        os.link(file, other)
    except OSError:  # a file system without hard links
        shutil.copyfile(file, other)


def file_exists(part: str | Path) -> bool:
    """Whether the file exists. Raises `OSError` for a folder that cannot be searched."""
    try:
        os.stat(part)  # noqa: PTH116 - called for every file read
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def file_fingerprint(file: str | Path) -> str:
    """Return the checksum of a file at a checked path; `ABSENT` when it does not exist."""
    try:
        return checksum_of(Path(file).read_bytes())
    except FileNotFoundError:
        return ABSENT


@contextmanager
def translate_file_errors(table: TableName) -> Generator[None]:
    """Raise `SchemaMismatch`, `NotAllowed` or `WarehouseUnavailable` for errors of files."""
    try:
        yield
    except pa.ArrowInvalid as exc:
        raise SchemaMismatch(f"a partition is not a readable Parquet file: {exc}", table=str(table)) from exc
    except (PermissionError, NotADirectoryError, FileExistsError) as exc:
        raise NotAllowed(f"{exc.strerror}: {exc.filename}", table=str(table)) from exc
    except OSError as exc:
        raise WarehouseUnavailable(f"{exc.strerror or exc}: {exc.filename or ''}", table=str(table)) from exc
