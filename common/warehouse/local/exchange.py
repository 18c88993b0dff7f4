"""Replacing, removing and adding a file so that nobody's write in the meantime is lost.

A check followed by a change of the same path would overwrite what another program wrote in between. So a file is taken
out in one system call, then compared with what was expected to be there, and put back if it is something else.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gated_backfill.common.errors import WarehouseUnavailable
from gated_backfill.common.storage.files import checksum_of_file, checksum_of_handle, closing_handle, sync_folder
from gated_backfill.common.warehouse.protocol import ABSENT

RENAME_NOREPLACE = 1  #: flags of renameat2(2)
RENAME_EXCHANGE = 2
AT_FDCWD = -100
UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP})  #: what a kernel or file system without them says
OUT = ".out"  #: added to a prepared file's name for the file that it replaces, where none can be exchanged
MAX_EXCHANGES = 100  #: with another program that writes the same file again and again


class FileSnapshot(NamedTuple):
    """A file as it was read: its checksum, and inode, size and modification time; `ABSENT` and None for no file."""

    checksum: str
    identity: tuple[int, int, int] | None


NO_FILE = FileSnapshot(ABSENT, None)


def take_snapshot(path: str | Path) -> FileSnapshot:
    """Read the file at a checked path; `NO_FILE` when it does not exist."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return NO_FILE
    with closing_handle(handle):
        return snapshot_of(handle)


def snapshot_of(handle: int) -> FileSnapshot:
    """Read an open file."""
    identity = file_identity(os.fstat(handle))  # first: a later write gives another one
    return FileSnapshot(checksum_of_handle(handle), identity)


def file_identity(status: os.stat_result) -> tuple[int, int, int]:
    """Return what stays the same when a file is renamed, and differs for a file that was written in its place."""
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def replace_file(path: str, prepared: str, expected: FileSnapshot) -> bool:
    """Replace the file by the prepared one if it is the expected one; return whether it was.

    If so, the replaced file is now at the path of the prepared one. If not, nothing changes; after more writes by
    others in the meantime, the path of the prepared file may hold rows of theirs.
    """
    if os.path.islink(path):  # noqa: PTH114 - a relative link would lead elsewhere from another folder
        return _link_then_rename(path, prepared, expected)
    ours = file_identity(os.lstat(prepared))
    try:
        exchanged = _exchange(prepared, path)
    except FileNotFoundError:
        if os.path.lexists(path):
            raise
        return False
    if not exchanged:
        return _link_then_rename(path, prepared, expected)
    if holds_expected(prepared, expected):
        return True
    put_back(path, prepared, ours)
    return False


def put_back(path: str, taken: str, ours: tuple[int, int, int]) -> None:
    """Exchange the taken file and the one at the path, until the path holds the latest write of another program.

    `ours` is the identity of the file that took its place. If there were more writes, the path of the taken file may
    hold an earlier one afterwards.
    """
    for _ in range(MAX_EXCHANGES):
        put = file_identity(os.lstat(taken))
        try:
            if not _exchange(taken, path):
                raise WarehouseUnavailable(f"files cannot be exchanged any more: {path}")
        except FileNotFoundError:  # another program has removed the file that took its place
            return
        if file_identity(os.lstat(taken)) == ours:
            return
        ours = put  # what came out is newer than what was put back
    raise WarehouseUnavailable(f"another program keeps writing {path}; one of its files is in {taken}")


def take_file(path: str, place: str, expected: FileSnapshot) -> bool:
    """Move the file to the place, which is free, if it is the expected one; return whether it was.

    If not, it is put back. If another program has written a new file by then, the taken one stays at the place.
    """
    if os.path.islink(path):  # noqa: PTH114 - as above
        return _copy_then_unlink(path, place, expected)
    try:
        os.rename(path, place)  # noqa: PTH104
    except FileNotFoundError:
        return False
    if holds_expected(place, expected):
        return True
    with suppress(FileExistsError, FileNotFoundError):  # written, or its folder removed, by another program
        rename_to_new(place, path)
    return False


def rename_to_new(path: str, new: str) -> None:
    """Rename the file. Raises `FileExistsError`, and changes nothing, if there is a file of the new name."""
    if _rename(path, new, RENAME_NOREPLACE):
        return
    _link_or_copy(path, new)
    os.unlink(path)  # noqa: PTH108


def move_file(path: str, new: str) -> None:
    """Move the file, also to another file system; what a link leads to is copied."""
    if not os.path.islink(path):  # noqa: PTH114
        try:
            os.replace(path, new)  # noqa: PTH105
        except OSError as exc:
            if exc.errno != errno.EXDEV:
                raise
        else:
            return
    copy_file(path, f"{new}.tmp")
    os.replace(f"{new}.tmp", new)  # noqa: PTH105
    sync_folder(os.path.dirname(new))  # noqa: PTH120
    os.unlink(path)  # noqa: PTH108


def copy_file(path: str, new: str) -> None:
    """Copy the file's content durably, except for the new name."""
    shutil.copyfile(path, new)
    with open(new, "rb+") as file:  # noqa: PTH123
        os.fsync(file.fileno())


def holds_expected(path: str, expected: FileSnapshot) -> bool:
    """Whether the file that was taken is the expected one, by its identity or else by its content."""
    status = os.lstat(path)
    if file_identity(status) == expected.identity:
        return True
    return stat.S_ISREG(status.st_mode) and checksum_of_file(path) == expected.checksum


def finish_replacement(path: str, prepared: str) -> None:
    """Finish `replace_file` after its process died: as if it had been exchanged, or as if nothing had been done."""
    out = prepared + OUT
    if not os.path.lexists(out):
        return
    if os.path.lexists(prepared) or _is_same_file(path, out):
        os.unlink(out)  # noqa: PTH108 - a second name or a copy of what was not replaced
    else:
        os.rename(out, prepared)  # noqa: PTH104


def _link_then_rename(path: str, prepared: str, expected: FileSnapshot) -> bool:
    """Do what `replace_file` does where no exchange is possible.

    A write between the last look at the file and the next system call is lost.
    """
    out = prepared + OUT
    if not _copied_as_expected(path, out, expected):
        return False
    os.replace(prepared, path)  # noqa: PTH105
    os.rename(out, prepared)  # noqa: PTH104
    return True


def _copy_then_unlink(path: str, place: str, expected: FileSnapshot) -> bool:
    """Do what `take_file` does for a link. A write between the last look at it and the next system call is lost."""
    if not _copied_as_expected(path, place, expected):
        return False
    os.unlink(path)  # noqa: PTH108
    return True


def _copied_as_expected(path: str, copy: str, expected: FileSnapshot) -> bool:
    """Give the file a second name, or copy it, if it is the expected one; return whether it was and still is."""
    try:
        identity = file_identity(os.stat(path))  # noqa: PTH116
        _link_or_copy(path, copy)
        if checksum_of_file(copy) == expected.checksum and file_identity(os.stat(path)) == identity:  # noqa: PTH116
            return True
    except FileNotFoundError:  # removed by another program
        pass
    with suppress(FileNotFoundError):
        os.unlink(copy)  # noqa: PTH108
    return False


def _is_same_file(path: str, other: str) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.lstat(other))
    except FileNotFoundError:
        return False


def _link_or_copy(path: str, new: str) -> None:
    """Give the file a second name, or copy it. Raises `FileExistsError` if there is a file of the new name."""
    if not os.path.islink(path):  # noqa: PTH114
        try:
            os.link(path, new)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if not os.path.lexists(path):
                raise
        else:
            return
    with open(path, "rb") as source, open(new, "xb") as copy:  # noqa: PTH123
        shutil.copyfileobj(source, copy)
        copy.flush()
        os.fsync(copy.fileno())


def _exchange(path: str, other: str) -> bool:
    """Exchange the files in one step; return whether the file system can do that."""
    return _rename(path, other, RENAME_EXCHANGE)


def _rename(path: str, new: str, flag: int) -> bool:
    """Rename with the flag of renameat2; return whether kernel and file system support it. Raises `OSError`."""
    if _renameat2 is None:
        return False
    if _renameat2(AT_FDCWD, os.fsencode(path), AT_FDCWD, os.fsencode(new), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), path, None, new)


_renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # glibc 2.28, musl 1.2.6
if _renameat2 is not None:
    _renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
