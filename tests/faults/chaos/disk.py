"""A staging folder that is a small disk of its own, so that it can be filled."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
DISK_KIB = 512


def mount_small(folder: Path) -> bool:
    """Mount one on the folder, seen only by this process and its children, gone with the last of them.

    Returns False where neither root nor a user namespace may: then filling is played by errors.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    folder.mkdir(parents=True, exist_ok=True)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWNS if uid == 0 else CLONE_NEWNS | CLONE_NEWUSER):
        return False
    if uid != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    if libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
        return False
    return not libc.mount(b"chaos", os.fsencode(folder), b"tmpfs", 0, f"size={DISK_KIB}k".encode())
