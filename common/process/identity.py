"""Identify processes across hosts and restarts, and tie a process to its parent.

An identity is `host:pid:start`, and a host is `name.namespace/machine/boot`. Machines may share a name (clones,
`localhost`), so the boot id says whether a process id is one of this kernel's. After a reboot, the machine's own digest
tells that the earlier processes have ended; without it, nothing is known of them. Earlier versions wrote
`name.namespace` only.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import resource
import signal
import socket
import sys
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

PR_SET_PDEATHSIG = 1
INITIAL_PID_NAMESPACE = 4026531836  #: its number on every Linux machine; containers have others
NAMESPACE = re.compile(r"\.[0-9]{10}$")  #: of a host's name in identities
DIGEST_LENGTH = 8  #: characters; identities are stored in 128
ENDED_STATES = frozenset("ZXx")  #: states in /proc of a process that has ended
SUSPENDED_STATES = frozenset("Tt")  #: states in /proc of a process that was stopped by a signal or a debugger


class _Host(NamedTuple):
    """A host as it is written in identities; the last two are empty where they are not known."""

    name: str
    machine: str
    boot: str


@lru_cache(maxsize=1)
def _host() -> str:
    """Return this host. Its name has the pid namespace on Linux: containers may share a host name but not pids."""
    name = socket.gethostname()
    try:
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return name
    boot = _read("/proc/sys/kernel/random/boot_id").replace("-", "")[:DIGEST_LENGTH]
    # The image of a container may bring a machine id, which all its containers have.
    machine = _machine() if namespace == INITIAL_PID_NAMESPACE else ""
    return f"{name}.{namespace}/{machine}/{boot}"


def _parse_host(host: str) -> _Host:
    name, _, place = host.partition("/")
    machine, _, boot = place.partition("/")
    return _Host(name, machine, boot)


def _host_of(owner: str) -> _Host:
    return _parse_host(owner.rsplit(":", 2)[0])


def _machine() -> str:
    """Return a digest that stays the same across reboots.

    Clones may share the machine id, but not the addresses of built-in wired network cards.
    """
    cards = [card for card in Path("/sys/class/net").glob("*/device") if "/usb" not in str(card.resolve())]
    wired = [card.parent for card in cards if not (card.parent / "wireless").exists()]
    facts = [_read("/etc/machine-id"), *sorted(_read(f"{card}/address") for card in wired)]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:DIGEST_LENGTH] if any(facts) else ""


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def host_name(owner: str) -> str:
    """Return the name of a process's host, as its users know it. In a container, it is that of the container."""
    return NAMESPACE.sub("", _host_of(owner).name)


def is_on_this_host(owner: str) -> bool:
    """Return whether the process is, or was, one of this host since its boot."""
    host, own = _host_of(owner), _parse_host(_host())
    return host.name == own.name and host.boot in ("", own.boot)


def _is_of_earlier_boot(owner: str) -> bool:
    """Return whether the process was one of this machine before its latest boot."""
    host, own = _host_of(owner), _parse_host(_host())
    return bool(host.machine) and host[:2] == own[:2] and host.boot != own.boot


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
    state, fields = _read_stat(pid)
    return state not in ENDED_STATES, int(fields[18])


def _read_stat(pid: int) -> tuple[str, list[str]]:
    """Return the state of a process and the fields of /proc that follow it. Raises `ProcessLookupError`."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError) as exc:
        raise ProcessLookupError(f"there is no process {pid}") from exc
    state, *fields = stat.rpartition(")")[2].split()  # from field 3 on; the name before it may hold anything
    return state, fields


def is_suspended(owner: str) -> bool:
    """Return whether a process of this host is suspended, as by SIGSTOP. False where that is not known."""
    if sys.platform != "linux":
        return False
    try:
        return _read_stat(int(owner.rsplit(":", 2)[1]))[0] in SUSPENDED_STATES
    except ProcessLookupError:
        return False


def _alive_since_elsewhere(pid: int) -> tuple[bool, int]:
    import psutil

    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE, int(process.create_time())
    except psutil.NoSuchProcess as exc:
        raise ProcessLookupError(f"there is no process {pid}") from exc


def is_dead(owner: str) -> bool:
    """Return whether the process is known to have ended: False for a process on another host."""
    _, pid, started = owner.rsplit(":", 2)
    if not is_on_this_host(owner):
        return _is_of_earlier_boot(owner)
    try:
        return _alive_since(int(pid)) != (True, int(started))
    except ProcessLookupError:
        return True


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent, a process id, ends for any reason (Linux only).

    The kernel says nothing of a parent that ended before this call, so this process then ends at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def limit_memory(megabytes: int) -> None:
    """Raise `MemoryError` in this process when it uses more memory (Linux only).

    The limit is on writable memory, not on address space: Arrow and DuckDB reserve five times the space they use.
    """
    if sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (megabytes * 1024**2, hard))


def kill_if_alive(owner: str) -> bool:
    """Kill the process if it still runs; returns whether it was killed."""
    if is_dead(owner) or not is_on_this_host(owner):
        return False
    try:
        os.kill(int(owner.rsplit(":", 2)[1]), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
