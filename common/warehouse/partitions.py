"""The partitions of a local table: a folder a date, with one file of rows and a note on who published it."""

from __future__ import annotations

import os
import shutil
import stat
import time
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
                mode = os.lstat(f"{place}/{PART}").st_mode
            except (FileNotFoundError, NotADirectoryError):
                continue
            if entry.is_symlink() or stat.S_ISLNK(mode):
                if not (place / PART).exists():
                    continue
                inside(root, place / PART)
            yield place


def link(file: Path, other: Path) -> None:
    """The file under another name too; published files are replaced, never written into."""
    try:
        os.link(file, other)
    except OSError:  # a file system without hard links
        shutil.copyfile(file, other)


Stamp = tuple[int, int, int, int]


def stamp_of(part: str | Path) -> Stamp:
    """What tells whether a file was replaced: its inode, its size, when it was written and linked; zeros for none.

    The last tells a file that came back after another was there meanwhile, as a published file has links elsewhere.
    """
    try:
        found = os.stat(part)  # noqa: PTH116 - asked for every file that is read
    except FileNotFoundError:
        return (0, 0, 0, 0)
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class Fingerprints:
    """The fingerprints of parts, each computed once for as long as its file is the same."""

    SETTLED_NS = 2_000_000_000  #: a file written so lately may be written again with the same stamp
    MOST = 20_000  #: files that are remembered

    def __init__(self) -> None:
        self._known: dict[Path, tuple[Stamp, str]] = {}

    def of(self, part: Path) -> str:
        stamp = stamp_of(part)
        if not any(stamp):
            return ABSENT
        known = self._known.get(part)
        if known is not None and known[0] == stamp:
            return known[1]
        found = fingerprint(part)
        if time.time_ns() - stamp[2] > self.SETTLED_NS and stamp_of(part) == stamp:
            if len(self._known) >= self.MOST:
                self._known.clear()
            self._known[part] = (stamp, found)
        return found


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
