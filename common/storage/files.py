"""Atomic, durable writes of files, and reads that never leave a root folder."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal
from uuid import uuid4

from gated_backfill.common.errors import HostError, OutsideRoot

if TYPE_CHECKING:
    import pyarrow as pa

SYNC_THREADS = 8
READ_CHUNK_BYTES = 1024 * 1024
FEW_CELLS = 100_000  #: rows times columns
ROW_GROUP_BYTES = 8 * 1024 * 1024  #: in memory, of a file that is written in parts
PROBE_BYTES = 64 * 1024  #: written to learn whether a disk is full
#: Errors of a host's disks and mounts: not permitted, read-only, full, a file in place of a folder, a lost mount.
HOST_ERRNOS = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.ENODEV,
        errno.ENOTCONN,
        errno.ESTALE,
    }
)


def is_host_error(exc: OSError) -> bool:
    """Whether the error is of this host's disks, mounts or permissions."""
    return isinstance(exc, (PermissionError, NotADirectoryError, FileExistsError)) or exc.errno in HOST_ERRNOS


def checksum_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class HashingWriter:
    """Writes to a file that the caller opens and closes, and knows the checksum of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.closed = False

    def write(self, data: Any) -> int:
        self._digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self.closed = True

    def checksum(self) -> str:
        return self._digest.hexdigest()


def checksum_of_handle(handle: int) -> str:
    """Return the checksum of a file that was just opened; a part of it is in memory at a time."""
    digest = hashlib.sha256()
    while chunk := os.read(handle, READ_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def checksum_of_file(path: str | Path) -> str:
    """Return the checksum of a regular file. Raises `OutsideRoot` for a link, a pipe or a device."""
    handle = _open_regular(path)
    with closing_handle(handle):
        return checksum_of_handle(handle)


def parquet_bytes(rows: pa.Table) -> bytes:
    """Encode the rows as one Parquet file. The same rows give the same bytes: no run, time or machine is written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(rows.replace_schema_metadata(None), sink, compression=_compression(rows))
    return sink.getvalue().to_pybytes()


def write_row_groups(sink: Any, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write the batches as one Parquet file, whatever they take: one row group is in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetWriter(sink, schema.remove_metadata(), compression="zstd") as writer:
        waiting: list[pa.RecordBatch] = []
        size = 0
        for batch in batches:
            waiting.append(batch)
            size += batch.nbytes
            if size >= ROW_GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(waiting))
                waiting, size = [], 0
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting))


def write_parquet(sink: Any, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write the batches as one Parquet file: the bytes of `parquet_bytes` if they are few, or else a part at a time."""
    import pyarrow as pa

    first: list[pa.RecordBatch] = []
    size = 0
    remaining = iter(batches)
    for batch in remaining:
        first.append(batch)
        size += batch.nbytes
        if size >= ROW_GROUP_BYTES:
            write_row_groups(sink, schema, chain(first, remaining))
            return
    sink.write(parquet_bytes(pa.Table.from_batches(first, schema)))


def _compression(rows: pa.Table) -> Literal["snappy", "zstd"]:
    """Choose by size alone, as the same rows must give the same bytes.

    zstd makes smaller files, but costs a fixed time per column to write and to read.
    """
    return "snappy" if rows.num_rows * rows.num_columns <= FEW_CELLS else "zstd"


def sync_folder(folder: str | Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    with closing_handle(handle):
        os.fsync(handle)


def make_folders(folder: str | Path) -> None:
    """Create the folder and its parents, unless they exist, so that a power cut does not lose them."""
    path = os.fspath(folder)
    if os.path.isdir(path):  # noqa: PTH112 - asked for every file that is written
        return
    parent = os.path.dirname(path) or "."  # noqa: PTH120
    make_folders(parent)
    try:
        os.mkdir(path)  # noqa: PTH102
    except FileExistsError:
        if not os.path.isdir(path):  # noqa: PTH112
            raise
    sync_folder(parent)


def sync_all(paths: Iterable[str | Path]) -> None:
    """Sync files and folders to disk, in threads, as a disk writes many of them together."""
    pending = list(paths)
    if len(pending) == 1:
        _sync_each(pending)
        return
    with ThreadPoolExecutor(SYNC_THREADS) as pool:
        for _ in pool.map(_sync_each, (pending[n::SYNC_THREADS] for n in range(SYNC_THREADS))):
            pass


def _sync_each(paths: Iterable[str | Path]) -> None:
    for path in paths:
        sync_folder(path)


def write_atomically(path: str | Path, data: bytes, *, durable: bool = True) -> None:
    """Replace the file in one step, for readers and, if `durable`, also in case of a power cut."""
    with new_file(path, durable=durable) as file:
        file.write(data)


@contextmanager
def new_file(path: str | Path, *, durable: bool = True) -> Generator[BinaryIO]:
    """Open a file that replaces the one at the path, as `write_atomically` does, unless an error is raised."""
    folder, name = os.path.split(path)
    folder = folder or "."
    temporary = f"{folder}/.{name}.{uuid4().hex}.tmp"
    try:
        try:
            file = open(temporary, "wb")  # noqa: PTH123, SIM115 - called for every staged file
        except FileNotFoundError:
            make_folders(folder) if durable else os.makedirs(folder, exist_ok=True)  # noqa: PTH103
            file = open(temporary, "wb")  # noqa: PTH123, SIM115
        with file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        with suppress(OSError):  # what kept it from being written may keep it from being removed
            os.unlink(temporary)  # noqa: PTH108
        raise
    if durable:
        sync_folder(folder)


def create_atomically(path: str | Path, data: bytes) -> None:
    """Write the file unless it exists. Readers find it whole or absent, and of several callers one writes it."""
    folder, name = os.path.split(path)
    make_folders(folder or ".")
    temporary = f"{folder or '.'}/.{name}.{uuid4().hex}.tmp"
    write_atomically(temporary, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return
    except OSError as exc:
        if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):  # a file system without links
            raise
        if not os.path.exists(path):  # noqa: PTH110
            os.replace(temporary, path)  # noqa: PTH105
    finally:
        with suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108


def checked_path(root: Path, path: Path) -> Path:
    """Return the path. Raises `OutsideRoot` when `..` or a link in it leads out of the root.

    The root itself may be a link; so may folders below it, as long as they lead to places below it.
    """
    checked_path_text(str(root), str(path))
    return path


def checked_path_text(root: str, path: str) -> str:
    """Return the path, checked as `checked_path` does. Faster, as it is called for every file."""
    if path.startswith(f"{root}/"):
        joined_path(root, path[len(root) + 1 :].split("/"))
    else:
        _check_inside(root, path)
    return path


def joined_path(root: str, names: Iterable[str]) -> str:
    """Join the names of folders and a file below the root. Raises `OutsideRoot` as `checked_path` does."""
    path, suspect = root, False
    for name in names:
        path = f"{path}/{name}"
        suspect = suspect or name == ".." or os.path.islink(path)  # noqa: PTH114 - called for every file
    if suspect:
        _check_inside(root, path)
    return path


def _check_inside(root: str, path: str) -> None:
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise OutsideRoot(f"{path} leads out of {root}: files outside it are neither read, written nor removed")


def read_regular_file(path: str | Path) -> bytes:
    """Read a regular file. Raises `OutsideRoot` for a link, a pipe or a device."""
    handle = _open_regular(path)
    with closing_handle(handle):
        return read_handle(handle)


def open_regular_file(path: str | Path) -> BinaryIO:
    """Open a regular file for reading. Raises `OutsideRoot` for a link, a pipe or a device."""
    return os.fdopen(_open_regular(path), "rb")


def _open_regular(path: str | Path) -> int:
    """Return a handle, which the caller closes."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as exc:
        if exc.errno != errno.ELOOP:
            raise
        raise OutsideRoot(f"{path} is a link: only regular files are read here") from exc
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OutsideRoot(f"{path} is not a regular file")
    return handle


def read_handle(handle: int) -> bytes:
    """Read an open file to its end, with one system call for a small file."""
    size = os.fstat(handle).st_size
    chunks = [os.read(handle, size + 1)]
    if len(chunks[0]) == size:  # fewer bytes than requested: the end of the file
        return chunks[0]
    while chunk := os.read(handle, READ_CHUNK_BYTES):
        chunks.append(chunk)
    return b"".join(chunks)


@contextmanager
def closing_handle(handle: int) -> Generator[None]:
    try:
        yield
    finally:
        os.close(handle)


def check_writable(folder: Path) -> None:
    """Check that files can be written in the folder, which need not exist yet. Raises `HostError`; leaves no file."""
    existing = folder
    try:
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(bytes(PROBE_BYTES))
            probe.flush()
    except OSError as exc:
        raise HostError(f"{folder} can't be written: {exc.strerror}: {existing}") from exc
