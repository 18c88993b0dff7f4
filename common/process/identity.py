"""Who a process is, whether another one still lives, and dying with one's parent."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys
from functools import lru_cache
from pathlib import Path

PR_SET_PDEATHSIG = 1
GONE = frozenset("ZXx")  #: states of a process that has ended: as a zombie, it is only not collected yet


@lru_cache(maxsize=1)
def _host() -> str:
    """The host, and on Linux the process namespace: containers may share a name, but not their pids."""
    namespace = Path("/proc/self/ns/pid")
    try:
        return f"{socket.gethostname()}.{namespace.stat().st_ino}"
    except OSError:
        return socket.gethostname()


def process_identity(pid: int | None = None) -> str:
    """`host:pid:start` of a process, ours by default: the start tells it from a later one with the same pid."""
    of = os.getpid() if pid is None else pid
    return f"{_host()}:{of}:{_started(of)}"


def _started(pid: int) -> int:
    """When the process started, in ticks that a step of the clock does not move. Raises `ProcessLookupError`."""
    return _alive_since(pid)[1]


def _alive_since(pid: int) -> tuple[bool, int]:
    """Whether the process is more than a zombie, and when it started. Raises `ProcessLookupError`."""
    if sys.platform != "linux":
        return _alive_since_elsewhere(pid)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError) as exc:
        raise ProcessLookupError(f"there is no process {pid}") from exc
    state, *others = stat.rpartition(")")[2].split()  # from field 3 on; the name before it may hold anything
    return state not in GONE, int(others[18])


def _alive_since_elsewhere(pid: int) -> tuple[bool, int]:
    import psutil

    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE, int(process.create_time())
    except psutil.NoSuchProcess as exc:
        raise ProcessLookupError(f"there is no process {pid}") from exc


def is_dead(owner: str) -> bool:
    """Whether that process is known to have ended. One on another host is not known to, so: False."""
    host, pid, started = owner.rsplit(":", 2)
    if host != _host():
        return False
    try:
        return _alive_since(int(pid)) != (True, int(started))
    except ProcessLookupError:
        return True


def die_with_parent(sig: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process the signal when its parent ends, however it ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(sig), 0, 0, 0)


def limit_memory(megabytes: int) -> None:
    """Have this process get a `MemoryError` where it would use more (Linux only).

    What counts is the memory it may write to. Its address space would not do: Arrow and DuckDB reserve five times as
    much of it as they use.
    """
    if sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (megabytes * 1024**2, hard))


def kill_if_alive(owner: str) -> bool:
    """Kill the process of that identity if it still lives; returns whether it did."""
    if is_dead(owner) or owner.rsplit(":", 2)[0] != _host():
        return False
    try:
        os.kill(int(owner.rsplit(":", 2)[1]), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
