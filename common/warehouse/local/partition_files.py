"""The files of local tables, with a cache of rows and fingerprints of small ones.

The file of a date is read several times: for the expectation, coverage, rows, fingerprints and lookbacks. Opening it
takes about as long as reading a small one, so a small file is read completely and kept.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.storage.files import (
    checked_path_text,
    checksum_of,
    checksum_of_handle,
    closing_handle,
    read_handle,
)
from gated_backfill.common.warehouse.local.exchange import NO_FILE, FileSnapshot, snapshot_of
from gated_backfill.common.warehouse.local.partitions import check_no_other_files, is_damage, partition_mismatch
from gated_backfill.common.warehouse.protocol import ABSENT

FileStamp = tuple[int, int, int, int]
FolderStamp = tuple[int, int, int]
BATCH_ROWS = 1 << 18  #: read at once of a big file
SETTLED_NS = 2_000_000_000  #: a file younger than this may change without a new stamp
READ_FLAGS = os.O_RDONLY | os.O_NONBLOCK  # does not block on a pipe


def file_stamp(part: str | Path | int) -> FileStamp | None:
    """Return inode, size, and times of modification and linking, which differ after a replacement; None for no file.

    The time of linking detects a file that was replaced and then linked back from the undo folder or a backup.
    """
    try:
        status = os.stat(part)  # noqa: PTH116 - asked for every file that is read
    except FileNotFoundError:
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def folder_stamp(status: os.stat_result) -> FolderStamp:
    """Return inode, and times of modification and change, which differ after a file was added, replaced or removed."""
    return (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)


def has_settled(stamp: FileStamp | FolderStamp) -> bool:
    """Whether the file or folder is old enough for its next change to be visible in its times."""
    return time.time_ns() - stamp[-2] > SETTLED_NS


class FileSchema(NamedTuple):
    """The columns of a Parquet file, as Parquet describes them and in the Arrow types in which its rows are read.

    `ParquetSchema.to_arrow_schema` gives other types for some columns, such as UUID and JSON, than reading the file.
    """

    parquet: pq.ParquetSchema  #: of two files, compared in a hundredth of the time of making an Arrow schema
    read_arrow: Callable[[], pa.Schema]

    @classmethod
    def of_file(cls, file: pq.ParquetFile) -> FileSchema:
        return cls(file.schema, lambda: file.schema_arrow)

    @classmethod
    def of_rows(cls, rows: pa.Table, parquet: pq.ParquetSchema) -> FileSchema:
        """Return the schema of the file from which all columns of the rows were read."""
        return cls(parquet, lambda: rows.schema)


SchemaCheck = Callable[[str, FileSchema], None]


def _accept(part: str, schema: FileSchema) -> None:
    """Accept any schema."""


class PartitionSchema(NamedTuple):
    """The columns of a partition's file."""

    columns: pa.Schema
    has_rows: bool


class PartitionFiles:
    """Reads files below a warehouse's root. Raises `OutsideRoot` for a link out of it. Thread-safe.

    Callers have checked the path of a file, except for its last two names. Raises `SchemaMismatch` when the file's
    folder has rows in other files.
    """

    MAX_CACHED_FILE_BYTES = 1024 * 1024  #: compressed and uncompressed
    MAX_CACHED_ROWS = 20_000  #: reading all columns of fewer rows is hardly slower
    MAX_CACHED_BYTES = 16 * 1024 * 1024  #: of all cached rows
    MAX_FINGERPRINTS = 20_000

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._fingerprints: dict[str, tuple[FileStamp, str]] = {}
        self._rows: OrderedDict[str, tuple[FileStamp, pa.Table, pq.ParquetSchema]] = OrderedDict()
        self._schemas: dict[str, tuple[FileStamp, PartitionSchema]] = {}
        self._listed: dict[str, FolderStamp] = {}  #: folders in which no other files were found
        self._bytes = 0
        self._lock = threading.Lock()

    def fingerprint(self, part: str) -> str:
        """Return the checksum of the file, cached until the file changes; `ABSENT` when it does not exist."""
        cached = self._fingerprints.get(part)
        if cached is not None and self._is_unchanged(part, cached[0]):
            return cached[1]
        with self._opened(part) as handle:
            if handle is None:
                return ABSENT
            stamp = file_stamp(handle)
            checksum = checksum_of_handle(handle)
            self._remember_checksum(part, handle, stamp, checksum)
            return checksum

    def fingerprint_uncached(self, part: str) -> str:
        """Return the checksum of the file, read again."""
        with self._opened(part) as handle:
            return ABSENT if handle is None else checksum_of_handle(handle)

    def snapshot(self, part: str) -> FileSnapshot:
        """Read the file again; `NO_FILE` when it does not exist."""
        with self._opened(part) as handle:
            return NO_FILE if handle is None else snapshot_of(handle)

    def rows_fingerprint(self, part: str, checksum: str) -> str:
        """Return the checksum that the file was found to have; `ABSENT` when the file has no rows."""
        if checksum == ABSENT:
            return ABSENT
        with self._opened(part) as handle:
            try:
                has_rows = handle is None or _parquet(self._file(handle)).metadata.num_rows > 0
            except (pa.ArrowException, OSError) as exc:
                if not is_damage(exc):
                    raise
                return checksum  # its readers refuse it
        return checksum if has_rows else ABSENT

    def schema(self, part: str) -> PartitionSchema | None:
        """Read the file's columns, cached until the file changes; None when it does not exist."""
        cached = self._schemas.get(part)
        if cached is not None and self._is_unchanged(part, cached[0]):
            return cached[1]
        with self._opened(part, folder_required=False) as handle:
            if handle is None:
                return None
            stamp = file_stamp(handle)
            file = _parquet(self._file(handle))
            schema = PartitionSchema(
                FileSchema.of_file(file).read_arrow().remove_metadata(), has_rows=file.metadata.num_rows > 0
            )
        if stamp is not None and has_settled(stamp):
            self._schemas[part] = (stamp, schema)
        return schema

    def rows(self, part: str, columns: list[str] | None, check_schema: SchemaCheck = _accept) -> pa.Table | None:
        """Read the columns that the file has, or all; may return further columns.

        Returns None when the file does not exist or has no rows; else all columns of the file are checked first.
        """
        with self._lock:
            cached = self._rows.get(part)
            if cached is not None:
                self._rows.move_to_end(part)
        if cached is not None and self._is_unchanged(part, cached[0]):
            check_schema(part, FileSchema.of_rows(cached[1], cached[2]))
            return cached[1]
        with self._opened(part, folder_required=False) as handle:
            if handle is None:
                return None
            if not self._is_small(handle):
                return _read_columns(part, _parquet(_big_file(handle)), columns, check_schema)
            data, _, settled = self._read_with_checksum(part, handle)
        file = _parquet(pa.BufferReader(data))
        groups = (file.metadata.row_group(n) for n in range(file.metadata.num_row_groups))
        if (
            file.metadata.num_rows > self.MAX_CACHED_ROWS
            or sum(group.total_byte_size for group in groups) > self.MAX_CACHED_FILE_BYTES
        ):
            return _read_columns(part, file, columns, check_schema)
        rows = _read_columns(part, file, None, check_schema)
        if rows is not None and settled is not None and rows.nbytes <= self.MAX_CACHED_BYTES // 16:
            self._remember(part, settled, rows, file.schema)
        return rows

    def rows_uncached(
        self, part: str, columns: list[str] | None, check_schema: SchemaCheck = _accept
    ) -> pa.Table | None:
        """Read as `rows` does, the columns only, without caching them."""
        try:
            handle = self._handle(part)
        except FileNotFoundError:
            return None
        except NotADirectoryError as exc:
            raise _no_folder(part) from exc
        try:
            return _read_columns(part, _parquet(self._file(handle)), columns, check_schema)
        finally:
            os.close(handle)

    def size(self, part: str) -> int:
        """Return the size of the file in bytes, 0 if it does not exist or what is there cannot be read."""
        try:
            stamp = file_stamp(part)
        except NotADirectoryError:  # whoever reads it is told
            return 0
        return 0 if stamp is None else stamp[1]

    def is_big(self, part: str) -> bool:
        """Whether the file is too big to be read at once."""
        return self.size(part) > self.MAX_CACHED_FILE_BYTES

    def batches(self, part: str, columns: list[str], check_schema: SchemaCheck = _accept) -> Generator[pa.Table]:
        """Read the columns that the file has, a limited number of rows at a time; none if it does not exist."""
        with self._opened(part, folder_required=False) as handle:
            if handle is None:
                return
            file = _parquet(_big_file(handle))
            if not file.metadata.num_rows:
                return
            check_schema(part, FileSchema.of_file(file))
            for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
                yield pa.Table.from_batches([batch])

    def check_no_other_files(self, part: str) -> None:
        """Check that the folder of the file, if it exists, has no rows in other files. Raises `SchemaMismatch`."""
        with self._opened(part, folder_required=False):
            pass

    def _file(self, handle: int) -> pa.NativeFile:
        size = os.fstat(handle).st_size
        if size > self.MAX_CACHED_FILE_BYTES:
            return _big_file(handle)
        data = os.read(handle, size + 1)  # with one system call, unless the file grows
        return pa.BufferReader(data if len(data) == size else data + read_handle(handle))

    def _is_small(self, handle: int) -> bool:
        return os.fstat(handle).st_size <= self.MAX_CACHED_FILE_BYTES

    @contextmanager
    def _opened(self, part: str, *, folder_required: bool = True) -> Generator[int | None]:
        """Open the file; None when it does not exist.

        A file in the place of the partition's folder raises `SchemaMismatch` for readers, `NotADirectoryError` for
        others: its rows must not pass for none.
        """
        try:
            handle = self._handle(part)
        except FileNotFoundError:
            yield None
            return
        except NotADirectoryError as exc:
            if folder_required:
                raise
            raise _no_folder(part) from exc
        with closing_handle(handle):
            yield handle

    def _handle(self, part: str) -> int:
        """Open the file. Raises `SchemaMismatch` for a folder or a pipe in its place."""
        handle = self._open(part)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            name = part.rpartition("/")[2]
            raise partition_mismatch(
                part,
                f"has a folder or a pipe named {name}, where a file must be: replace it by one file with all rows of "
                "the date",
            )
        return handle

    def _open(self, part: str) -> int:
        folder = _folder_of(part)
        status = os.lstat(folder)
        if not stat.S_ISLNK(status.st_mode):
            self._check_listed(folder, status)
            try:
                return os.open(part, READ_FLAGS | os.O_NOFOLLOW)
            except OSError as exc:
                if exc.errno != errno.ELOOP:
                    raise
        checked_path_text(self._root, part)
        check_no_other_files(folder)
        return os.open(part, READ_FLAGS)

    def _check_listed(self, folder: str, status: os.stat_result) -> None:
        """Check that the folder has no other files, unless it was listed since it changed."""
        stamp = folder_stamp(status)
        if self._listed.get(folder) == stamp:
            return
        check_no_other_files(folder)
        if has_settled(stamp):
            if len(self._listed) >= self.MAX_FINGERPRINTS:
                self._listed.clear()
            self._listed[folder] = stamp

    def _is_unchanged(self, part: str, stamp: FileStamp) -> bool:
        """Whether the file is unchanged. A link in the place of its folder, to the same file, counts as a change.

        Raises `SchemaMismatch` when other files with rows were added beside it.
        """
        if file_stamp(part) != stamp:
            return False
        folder = _folder_of(part)
        try:
            status = os.lstat(folder)
            if stat.S_ISLNK(status.st_mode):
                return False
            self._check_listed(folder, status)
        except FileNotFoundError:  # removed since
            return False
        return True

    def _read_with_checksum(self, part: str, handle: int) -> tuple[bytes, str, FileStamp | None]:
        """Return the bytes, their checksum, and the stamp to cache them by; no stamp if the file may still change."""
        stamp = file_stamp(handle)
        data = read_handle(handle)
        checksum = checksum_of(data)
        return data, checksum, self._remember_checksum(part, handle, stamp, checksum)

    def _remember_checksum(self, part: str, handle: int, stamp: FileStamp | None, checksum: str) -> FileStamp | None:
        """Return the stamp, and keep the checksum by it, unless the file may still change: then return None."""
        if stamp is None or not has_settled(stamp) or file_stamp(handle) != stamp:
            return None
        if len(self._fingerprints) >= self.MAX_FINGERPRINTS:
            self._fingerprints.clear()
        self._fingerprints[part] = (stamp, checksum)
        return stamp

    def _remember(self, part: str, stamp: FileStamp, rows: pa.Table, schema: pq.ParquetSchema) -> None:
        with self._lock:
            self._forget(part)
            self._rows[part] = (stamp, rows, schema)
            self._bytes += rows.nbytes
            while self._bytes > self.MAX_CACHED_BYTES:
                self._forget(next(iter(self._rows)))

    def _forget(self, part: str) -> None:
        cached = self._rows.pop(part, None)
        if cached is not None:
            self._bytes -= cached[1].nbytes


def _no_folder(part: str) -> SchemaMismatch:
    return partition_mismatch(
        part, f"is a file and no folder: a partition is a folder with one {part.rpartition('/')[2]}"
    )


def _folder_of(part: str) -> str:
    return part.rpartition("/")[0]


def _read_columns(
    part: str, file: pq.ParquetFile, columns: list[str] | None, check_schema: SchemaCheck
) -> pa.Table | None:
    if not file.metadata.num_rows:  # pandas writes any types for a frame without rows
        return None
    check_schema(part, FileSchema.of_file(file))
    return file.read(columns=columns, use_threads=False)


def _big_file(handle: int) -> pa.NativeFile:
    """Wrap the open file, as its path may lead to another file by now."""
    return pa.PythonFile(os.fdopen(handle, "rb", closefd=False), mode="r")


def _parquet(file: pa.NativeFile) -> pq.ParquetFile:
    return pq.ParquetFile(file, pre_buffer=False)  # on a local disk, buffering takes longer than it saves
