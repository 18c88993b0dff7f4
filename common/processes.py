"""Who a process is, whether another one still lives, and dying with one's parent."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from functools import lru_cache

import psutil

PR_SET_PDEATHSIG = 1


@lru_cache(maxsize=1)
def _host() -> str:
    return socket.gethostname()


def identity(pid: int | None = None) -> str:
    """`host:pid:start` of a process, ours by default: the start tells it from a later one with the same pid."""
    process = psutil.Process(pid)
    return f"{_host()}:{process.pid}:{int(process.create_time() * 100)}"


def is_dead(owner: str) -> bool:
    """Whether that process is known to have ended. One on another host is not known to, so: False."""
    host, pid, started = owner.rsplit(":", 2)
    if host != _host():
        return False
    try:
        process = psutil.Process(int(pid))
        return process.status() == psutil.STATUS_ZOMBIE or int(process.create_time() * 100) != int(started)
    except psutil.NoSuchProcess:
        return True


def die_with_parent(sig: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process the signal when its parent ends, however it ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(sig), 0, 0, 0)


def kill_if_same(owner: str) -> bool:
    """Kill the process of that identity if it still lives; returns whether it did."""
    if is_dead(owner) or owner.rsplit(":", 2)[0] != _host():
        return False
    try:
        os.kill(int(owner.rsplit(":", 2)[1]), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
