"""Files that are never seen half written."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from uuid import uuid4

from gated_backfill.common.errors import NotAllowed, OutsideRoot

if TYPE_CHECKING:
    import pyarrow as pa

SYNCS_AT_ONCE = 8
READ_AT_ONCE = 1024 * 1024  #: bytes
FEW_CELLS = 100_000  #: rows times columns


def checksum_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def parquet_bytes(rows: pa.Table) -> bytes:
    """The rows as one Parquet file. The same rows give the same bytes: no run, time or machine is written into it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(rows.replace_schema_metadata(None), sink, compression=_compression(rows))
    return sink.getvalue().to_pybytes()


def _compression(rows: pa.Table) -> Literal["snappy", "zstd"]:
    """zstd makes smaller files, but costs a fixed time for every column, to write and to read: few rows go without.

    It depends on nothing but how many there are, as the same rows have to give the same bytes.
    """
    return "snappy" if rows.num_rows * rows.num_columns <= FEW_CELLS else "zstd"


def sync_folder(folder: str | Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    with closing_handle(handle):
        os.fsync(handle)


def sync_all(places: Iterable[str | Path]) -> None:
    """Have files and folders outlive a power cut. Many at once: a disk writes them together."""
    wanted = list(places)
    if len(wanted) == 1:
        _sync_each(wanted)
        return
    with ThreadPoolExecutor(SYNCS_AT_ONCE) as pool:
        for _ in pool.map(_sync_each, (wanted[n::SYNCS_AT_ONCE] for n in range(SYNCS_AT_ONCE))):
            pass


def _sync_each(places: Iterable[str | Path]) -> None:
    for place in places:
        sync_folder(place)


def write_atomically(path: str | Path, data: bytes, *, durable: bool = True) -> None:
    """Write the file so that a reader finds the old bytes or the new; if `durable`, a power cut loses neither."""
    folder, name = os.path.split(path)
    folder = folder or "."
    temporary = f"{folder}/.{name}.{uuid4().hex}.tmp"
    try:
        try:
            file = open(temporary, "wb")  # noqa: PTH123, SIM115 - asked for every file that is staged
        except FileNotFoundError:
            os.makedirs(folder, exist_ok=True)  # noqa: PTH103
            file = open(temporary, "wb")  # noqa: PTH123, SIM115
        with file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)  # noqa: PTH108
        raise
    if durable:
        sync_folder(folder)


def checked_path(root: Path, place: Path) -> Path:
    """The place. Raises `OutsideRoot` when `..` or a link on the way to it leads out of the root.

    The root itself may be a link, and so may be what is below it as long as that stays below it.
    """
    checked_path_text(str(root), str(place))
    return place


def checked_path_text(root: str, place: str) -> str:
    """The same of texts: asked for every file."""
    if place.startswith(f"{root}/"):
        joined_path(root, place[len(root) + 1 :].split("/"))
    else:
        _refuse_outside(root, place)
    return place


def joined_path(root: str, names: Iterable[str]) -> str:
    """The path of these folders and this file, each below the one before. Raises as `inside` does, and is quicker."""
    path, suspect = root, False
    for name in names:
        path = f"{path}/{name}"
        suspect = suspect or name == ".." or os.path.islink(path)  # noqa: PTH114 - asked for every file
    if suspect:
        _refuse_outside(root, path)
    return path


def _refuse_outside(root: str, path: str) -> None:
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise OutsideRoot(f"{path} leads out of {root}: nothing outside is read, written or removed")


def read_regular_file(path: str | Path) -> bytes:
    """The bytes of a plain file. Raises `OutsideRoot` for a link, a pipe and whatever else is none."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as exc:
        if exc.errno != errno.ELOOP:
            raise
        raise OutsideRoot(f"{path} is a link, where only a file of ours can be") from exc
    with closing_handle(handle):
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OutsideRoot(f"{path} is no plain file")
        return read_handle(handle)


def read_handle(handle: int) -> bytes:
    """What is left of an open file: asked for every file, of which most are small."""
    size = os.fstat(handle).st_size
    read = [os.read(handle, size + 1)]
    if len(read[0]) == size:  # one byte less than was asked for: that was all
        return read[0]
    while more := os.read(handle, READ_AT_ONCE):
        read.append(more)
    return read[0] if len(read) == 1 else b"".join(read)


@contextmanager
def closing_handle(handle: int) -> Generator[None]:
    try:
        yield
    finally:
        os.close(handle)


def check_writable(folder: Path) -> None:
    """Raises `NotAllowed` unless files can be made in the folder, which need not exist yet. Leaves nothing behind."""
    existing = folder
    try:
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as exc:
        raise NotAllowed(f"{folder} can't be written: {exc.strerror}: {existing}") from exc
