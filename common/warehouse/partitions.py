"""The partitions of a local table: a folder a date, with one file of rows and a note on who published it."""

from __future__ import annotations

import os
import shutil
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import NotAllowed, SchemaMismatch, WarehouseUnavailable
from common.schema import TableName
from common.warehouse.base import ABSENT
from common.warehouse.files import checksum_of, inside, within

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


def parts_there(root: Path, folder: Path, names: Iterable[str]) -> list[str]:
    """The parts that there are in the partitions of those names. Raises `OutsideRoot` for one out of the root.

    As few looks as tell: it is asked for every file that is read.
    """
    found: list[str] = []
    for name in names:
        place = f"{folder}/{name}"
        part = f"{place}/{PART}"
        try:
            linked = stat.S_ISLNK(os.lstat(place).st_mode) or stat.S_ISLNK(os.lstat(part).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not linked or is_there(within(str(root), part)):
            found.append(part)
    return found


def link(file: Path, other: Path) -> None:
    """The file under another name too; published files are replaced, never written into."""
    try:
        os.link(file, other)
    except OSError:  # a file system without hard links
        shutil.copyfile(file, other)


Stamp = tuple[int, int, int, int]
NO_FILE: Stamp = (0, 0, 0, 0)
SETTLED_NS = 2_000_000_000  #: a file written so lately may be written again with the same stamp


def stamp_of(part: str | Path) -> Stamp:
    """What tells whether a file was replaced: its inode, its size, when it was written and linked; zeros for none.

    The last tells a file that came back after another was there meanwhile, as a published file has links elsewhere.
    """
    try:
        found = os.stat(part)  # noqa: PTH116 - asked for every file that is read
    except FileNotFoundError:
        return NO_FILE
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def is_there(part: str | Path) -> bool:
    """Whether the file exists. Raises `OSError` where that can't be told: what can't be read is not absent."""
    try:
        os.stat(part)  # noqa: PTH116 - asked for every file that is read
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def has_settled(part: str | Path, stamp: Stamp) -> bool:
    """Whether what was read of a file with that stamp is what it holds for as long as it has the stamp."""
    return time.time_ns() - stamp[2] > SETTLED_NS and stamp_of(part) == stamp


class Fingerprints:
    """The fingerprints of parts, each computed once for as long as its file is the same."""

    MOST = 20_000  #: files that are remembered

    def __init__(self) -> None:
        self._known: dict[str, tuple[Stamp, str]] = {}

    def of(self, part: str) -> str:
        stamp = stamp_of(part)
        if stamp == NO_FILE:
            return ABSENT
        known = self._known.get(part)
        if known is not None and known[0] == stamp:
            return known[1]
        found = fingerprint(part)
        if has_settled(part, stamp):
            if len(self._known) >= self.MOST:
                self._known.clear()
            self._known[part] = (stamp, found)
        return found


def read_part(part: str, columns: list[str] | None) -> pa.Table:
    """The columns of the part, or all, as far as it has them."""
    return _opened(part).read(columns=columns, use_threads=False)


def _opened(part: str) -> pq.ParquetFile:
    file = pa.OSFile(part, "r")  # a path would be looked at for what else it may name
    return pq.ParquetFile(file, pre_buffer=False)  # on a disk that is near, that takes longer than it saves


class Rows:
    """The rows of parts. Small ones are read once for as long as their file is the same.

    A date is looked at several times: who is expected, what a source has, its rows, and by dates that look back on it.
    """

    SMALL = 1024 * 1024  #: unpacked bytes, and
    FEW = 20_000  #: rows, that take hardly longer to read whole than in columns
    MOST = 16 * 1024 * 1024  #: bytes that all remembered rows may take

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[Stamp, pa.Table]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def of(self, part: str, columns: list[str] | None) -> pa.Table:
        """The columns, or all, as far as the part has them; it may have others besides."""
        stamp = stamp_of(part)
        with self._lock:
            known = self._known.get(part)
            if known is not None and known[0] == stamp:
                self._known.move_to_end(part)
                return known[1]
        file = _opened(part)
        groups = (file.metadata.row_group(n) for n in range(file.metadata.num_row_groups))
        if file.metadata.num_rows > self.FEW or sum(one.total_byte_size for one in groups) > self.SMALL:
            return file.read(columns=columns, use_threads=False)
        rows = file.read(use_threads=False)
        if stamp != NO_FILE and rows.nbytes <= self.MOST // 16 and has_settled(part, stamp):
            self._remember(part, stamp, rows)
        return rows

    def _remember(self, part: str, stamp: Stamp, rows: pa.Table) -> None:
        with self._lock:
            self._forget(part)
            self._known[part] = (stamp, rows)
            self._bytes += rows.nbytes
            while self._bytes > self.MOST:
                self._forget(next(iter(self._known)))

    def _forget(self, part: str) -> None:
        known = self._known.pop(part, None)
        if known is not None:
            self._bytes -= known[1].nbytes


def fingerprint(part: str | Path) -> str:
    try:
        with open(part, "rb") as file:  # noqa: PTH123 - asked for every file that is read
            return checksum_of(file.read())
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
