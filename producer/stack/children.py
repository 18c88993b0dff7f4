"""Processes that live exactly as long as the one that needs them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from gated_backfill.common.errors import BackfillError
from gated_backfill.common.process.identity import die_with_parent, is_dead, kill_if_alive, process_identity

log = structlog.get_logger()

BROKER = "broker"
MAX_RESTARTS = 10  #: of one process, within one stack
MAX_RESTART_DELAY_SECONDS = 60.0  #: seconds between two restarts of what keeps dying, in a stack that never gives up
STABLE_SECONDS = 600.0  #: what has lived for so long has its restarts forgotten


class StackError(BackfillError):
    """A process of a stack can't be started or keeps dying."""


@dataclass(kw_only=True)
class _Child:
    """One process of the stack and how to start it again."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    feed: bytes  #: handed to its standard input
    process: subprocess.Popen[bytes]
    started: float
    restarts: int = 0

    @property
    def pause(self) -> float:
        """How long it must have been started ago before it is started again."""
        return min(0.25 * 2**self.restarts, MAX_RESTART_DELAY_SECONDS) if self.restarts else 0.0


class ChildProcesses:
    """Processes in sessions of their own, so that a Ctrl-C reaches only the command that started them.

    The kernel kills them when that command dies. A state file lets the next start clean up where the kernel can't.
    """

    def __init__(self, folder: Path, log_file: Path, *, gives_up: bool = True) -> None:
        self.folder = folder
        self.log_file = log_file
        self._gives_up = gives_up
        self._children: list[_Child] = []
        folder.mkdir(parents=True)
        log_file.parent.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str], feed: bytes = b"") -> None:
        process = self._spawn(command, env, feed)
        self._children.append(
            _Child(name=name, command=command, env=env, feed=feed, process=process, started=time.monotonic())
        )
        self._write_state()

    def is_alive(self, name: str) -> bool:
        return any(child.name == name and child.process.poll() is None for child in self._children)

    def restart_dead(self, broker_is_ready: Callable[[], None]) -> list[str]:
        """Start again what has died; returns the names of what was. Raises `StackFailed` when it keeps dying.

        A stack that does not give up waits ever longer instead, a minute at most; likewise for what can't be started.
        """
        dead = [child for child in self._children if child.process.poll() is not None]
        if not self._gives_up:
            dead = [child for child in dead if time.monotonic() - child.started >= child.pause]
        if not dead:
            return []
        if any(child.name == BROKER for child in dead):
            # Workers that lost their broker are started anew too: they may stay deaf after reconnecting.
            for child in self._children:
                kill(child.process)
            dead = self._children
        again: list[str] = []
        for child in dead:
            if self._start_again(child):
                again.append(child.name)
            if child.name == BROKER:
                broker_is_ready()
        self._write_state()
        return again

    def stop(self, *, grace: float) -> None:
        """End every process, the broker last, and remove the folder; what is in progress has so many seconds."""
        others = [child.process for child in self._children if child.name != BROKER and grace > 0]
        for process in others:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        deadline = time.monotonic() + grace
        for process in others:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0.1))
        for child in self._children:
            kill(child.process)
        self._children.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start_again(self, child: _Child) -> bool:
        """Whether it could be; where not, the time of this try counts as its start."""
        lived = time.monotonic() - child.started
        child.restarts = child.restarts + 1 if self._gives_up or lived < STABLE_SECONDS else 1
        if self._gives_up and child.restarts > MAX_RESTARTS:
            raise StackError(f"the {child.name} process keeps dying: see {self.log_file}")
        child.started = time.monotonic()
        try:
            child.process = self._spawn(child.command, child.env, child.feed)
        except OSError as exc:
            if self._gives_up:
                raise StackError(f"the {child.name} process can't be started: {exc}") from exc
            log.error("process_start_failed", process=child.name, error=str(exc))
            return False
        return True

    def _spawn(self, command: Sequence[str], env: Mapping[str, str], feed: bytes) -> subprocess.Popen[bytes]:
        with self.log_file.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **env},
                cwd=self.folder,  # Python would import what lies in the user's folder before what is installed
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        assert process.stdin is not None
        try:
            with process.stdin as pipe:
                pipe.write(feed)
        except OSError:  # it ended before it had read; nobody else knows of it
            kill(process)
            raise
        return process

    def _write_state(self) -> None:
        alive = [child.process.pid for child in self._children if child.process.poll() is None]
        state = {"owner": process_identity(), "children": [process_identity(pid) for pid in alive]}
        (self.folder / "state.json").write_text(json.dumps(state))


def clean_up_dead_stacks(home: Path) -> None:
    """Kill what a stack whose command is gone may have left behind, and remove its folder."""
    for state_file in (home.absolute() / "stacks").glob("*/state.json"):
        try:
            state = json.loads(state_file.read_text())
        except (FileNotFoundError, ValueError):
            continue  # being written, or being removed, by its owner
        if is_dead(state["owner"]):
            for child in state["children"]:
                kill_if_alive(child)
            shutil.rmtree(state_file.parent, ignore_errors=True)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and whatever it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
