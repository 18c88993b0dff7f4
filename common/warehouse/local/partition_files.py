"""What the parts of local tables hold, each looked up, opened and read as rarely as can be.

A date is looked at several times: who is expected, what a source has, its rows, its fingerprint, and by dates that look
back on it. To find a file takes about as long as to read a small one, so a small one is read whole, once, for all that.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gated_backfill.common.storage.files import checked_path_text, checksum_of, closing_handle, read_handle
from gated_backfill.common.warehouse.protocol import ABSENT

FileStamp = tuple[int, int, int, int]
SETTLED_NS = 2_000_000_000  #: a file written so lately may be written again with the same stamp
TO_READ = os.O_RDONLY | os.O_NONBLOCK  # a pipe that lies there is not waited for


def file_stamp(part: str | Path | int) -> FileStamp | None:
    """What tells whether a file was replaced: its inode, its size, when it was written and linked; None for no file.

    The last tells a file that came back after another was there meanwhile, as a published file has links elsewhere.
    """
    try:
        found = os.stat(part)  # noqa: PTH116 - asked for every file that is read
    except FileNotFoundError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class PartitionFiles:
    """The parts below a warehouse's root. Raises `OutsideRoot` for one that leads out of it. Safe for several threads.

    A part is given by its path, of which all but the last two names were looked at already.
    """

    MAX_CACHED_FILE_BYTES = 1024 * 1024  #: bytes, packed and unpacked, and
    MAX_CACHED_ROWS = 20_000  #: rows, that take hardly longer to read whole than in columns
    MOST_BYTES = 16 * 1024 * 1024  #: that all remembered rows may take
    MOST_FINGERPRINTS = 20_000

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._fingerprints: dict[str, tuple[FileStamp, str]] = {}
        self._rows: OrderedDict[str, tuple[FileStamp, pa.Table]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def fingerprint(self, part: str) -> str:
        """That of its bytes, computed once for as long as the file is the same; `ABSENT` where there is none."""
        known = self._fingerprints.get(part)
        if known is not None and _is_still(part, known[0]):
            return known[1]
        with self._opened(part) as handle:
            return ABSENT if handle is None else self._summed(part, handle)[1]

    def fingerprint_uncached(self, part: str) -> str:
        """That of its bytes as they are now, whatever is known of the file."""
        with self._opened(part) as handle:
            return ABSENT if handle is None else checksum_of(read_handle(handle))

    def rows(self, part: str, columns: list[str] | None) -> pa.Table | None:
        """The columns, or all, as far as the part has them; it may have others besides. None where there is none."""
        with self._lock:
            known = self._rows.get(part)
            if known is not None:
                self._rows.move_to_end(part)
        if known is not None and _is_still(part, known[0]):
            return known[1]
        with self._opened(part, folder_required=False) as handle:
            if handle is None:
                return None
            if not self._is_small(handle):
                return _parquet(_big_file(handle)).read(columns=columns, use_threads=False)
            data, _, settled = self._summed(part, handle)
        file = _parquet(pa.BufferReader(data))
        groups = (file.metadata.row_group(n) for n in range(file.metadata.num_row_groups))
        if (
            file.metadata.num_rows > self.MAX_CACHED_ROWS
            or sum(one.total_byte_size for one in groups) > self.MAX_CACHED_FILE_BYTES
        ):
            return file.read(columns=columns, use_threads=False)
        rows = file.read(use_threads=False)
        if settled is not None and rows.nbytes <= self.MOST_BYTES // 16:
            self._remember(part, settled, rows)
        return rows

    def rows_uncached(self, part: str, columns: list[str] | None) -> pa.Table | None:
        """The columns of a part that nobody asks for again: they are not remembered."""
        with self._opened(part, folder_required=False) as handle:
            if handle is None:
                return None
            file = pa.BufferReader(read_handle(handle)) if self._is_small(handle) else _big_file(handle)
            return _parquet(file).read(columns=columns, use_threads=False)

    def _is_small(self, handle: int) -> bool:
        return os.fstat(handle).st_size <= self.MAX_CACHED_FILE_BYTES

    @contextmanager
    def _opened(self, part: str, *, folder_required: bool = True) -> Generator[int | None]:
        """The file to read from; None where there is none.

        A file where the part's folder would be counts as none for readers alone: nothing can be published there.
        """
        try:
            handle = self._handle(part)
        except (FileNotFoundError, NotADirectoryError) as exc:
            if folder_required and isinstance(exc, NotADirectoryError):
                raise
            yield None
            return
        with closing_handle(handle):
            yield handle

    def _handle(self, part: str) -> int:
        if not stat.S_ISLNK(os.lstat(_folder_of(part)).st_mode):
            try:
                return os.open(part, TO_READ | os.O_NOFOLLOW)
            except OSError as exc:
                if exc.errno != errno.ELOOP:
                    raise
        return os.open(checked_path_text(self._root, part), TO_READ)

    def _summed(self, part: str, handle: int) -> tuple[bytes, str, FileStamp | None]:
        """The bytes, their fingerprint, and the stamp to remember them by; None if the file may still change."""
        stamp = file_stamp(handle)
        data = read_handle(handle)
        found = checksum_of(data)
        if stamp is None or time.time_ns() - stamp[2] <= SETTLED_NS or file_stamp(handle) != stamp:
            return data, found, None
        if len(self._fingerprints) >= self.MOST_FINGERPRINTS:
            self._fingerprints.clear()
        self._fingerprints[part] = (stamp, found)
        return data, found, stamp

    def _remember(self, part: str, stamp: FileStamp, rows: pa.Table) -> None:
        with self._lock:
            self._forget(part)
            self._rows[part] = (stamp, rows)
            self._bytes += rows.nbytes
            while self._bytes > self.MOST_BYTES:
                self._forget(next(iter(self._rows)))

    def _forget(self, part: str) -> None:
        known = self._rows.pop(part, None)
        if known is not None:
            self._bytes -= known[1].nbytes


def _is_still(part: str, stamp: FileStamp) -> bool:
    """Whether the file is the one that was read. Its folder may have come back as a link, with the same file in it."""
    return file_stamp(part) == stamp and not os.path.islink(_folder_of(part))  # noqa: PTH114


def _folder_of(part: str) -> str:
    return part.rpartition("/")[0]


def _big_file(handle: int) -> pa.NativeFile:
    """The open file itself, for as long as it is open: its path may lead elsewhere by now."""
    return pa.PythonFile(os.fdopen(handle, "rb", closefd=False), mode="r")


def _parquet(file: pa.NativeFile) -> pq.ParquetFile:
    return pq.ParquetFile(file, pre_buffer=False)  # on a disk that is near, that takes longer than it saves
