"""Identify processes across hosts and restarts, and tie a process to its parent."""

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
ENDED_STATES = frozenset("ZXx")  #: states in /proc of a process that has ended


@lru_cache(maxsize=1)
def _host() -> str:
    """Return the host name, with the pid namespace on Linux: containers may share a host name but not pids."""
    namespace = Path("/proc/self/ns/pid")
    try:
        return f"{socket.gethostname()}.{namespace.stat().st_ino}"
    except OSError:
        return socket.gethostname()


def process_identity(pid: int | None = None) -> str:
    """Return `host:pid:start` of a process, by default this one.

    The start time distinguishes it from a later process with the same pid. Raises `ProcessLookupError`.
    """
    pid = os.getpid() if pid is None else pid
    return f"{_host()}:{pid}:{_started(pid)}"


def _started(pid: int) -> int:
    """Return when the process started, in ticks since boot, which clock changes do not affect."""
    return _alive_since(pid)[1]


def _alive_since(pid: int) -> tuple[bool, int]:
    """Return whether the process runs (a zombie does not), and when it started. Raises `ProcessLookupError`."""
    if sys.platform != "linux":
        return _alive_since_elsewhere(pid)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError) as exc:
        raise ProcessLookupError(f"there is no process {pid}") from exc
    state, *fields = stat.rpartition(")")[2].split()  # from field 3 on; the name before it may hold anything
    return state not in ENDED_STATES, int(fields[18])


def _alive_since_elsewhere(pid: int) -> tuple[bool, int]:
    import psutil

    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE, int(process.create_time())
    except psutil.NoSuchProcess as exc:
        raise ProcessLookupError(f"there is no process {pid}") from exc


def is_dead(owner: str) -> bool:
    """Return whether the process is known to have ended: False for a process on another host."""
    host, pid, started = owner.rsplit(":", 2)
    if host != _host():
        return False
    try:
        return _alive_since(int(pid)) != (True, int(started))
    except ProcessLookupError:
        return True


def die_with_parent(sig: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel signal this process when its parent ends for any reason (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(sig), 0, 0, 0)


def limit_memory(megabytes: int) -> None:
    """Raise `MemoryError` in this process when it uses more memory (Linux only).

    The limit is on writable memory, not on address space: Arrow and DuckDB reserve five times the space they use.
    """
    if sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (megabytes * 1024**2, hard))


def kill_if_alive(owner: str) -> bool:
    """Kill the process if it still runs; returns whether it was killed."""
    if is_dead(owner) or owner.rsplit(":", 2)[0] != _host():
        return False
    try:
        os.kill(int(owner.rsplit(":", 2)[1]), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
