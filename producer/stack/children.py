"""Child processes that end together with the process that started them."""

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
from functools import partial
from pathlib import Path

import structlog

from gated_backfill.common.config.secret_files import SUFFIX, secret_file_variable
from gated_backfill.common.config.settings import SECRETS
from gated_backfill.common.errors import BackfillError
from gated_backfill.common.model.scheduling.retry import RetryPolicy
from gated_backfill.common.process.identity import die_with_parent, is_dead, kill_if_alive, process_identity
from gated_backfill.common.process.logs import open_log
from gated_backfill.common.process.private_files import make_private_folder

log = structlog.get_logger()

BROKER = "broker"
#: Of one process, with the delay counted from its last start. A stack that never gives up ignores `max_retries`.
RESTARTS = RetryPolicy(max_retries=10, first_delay_seconds=0.5, max_delay_seconds=60.0)
STABLE_SECONDS = 600.0  #: after running this long, a process has its restart count reset


class StackError(BackfillError):
    """A process of a stack can't be started or keeps dying."""


@dataclass(kw_only=True)
class _Child:
    """One process of the stack and how to restart it."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    stdin: bytes  #: written to its standard input
    process: subprocess.Popen[bytes]
    started: float
    restarts: int = 0

    @property
    def restart_delay(self) -> float:
        """Seconds between the last start and a restart."""
        return RESTARTS.delay_seconds(self.restarts - 1) if self.restarts else 0.0


class ChildProcesses:
    """Child processes, each in its own session, so that a Ctrl-C reaches only the command that started them.

    Linux kills them when that command dies. On other systems, the next start kills the ones listed in a state file.
    With `gives_up`, a process that keeps dying raises `StackError`; otherwise it is restarted for ever.
    """

    def __init__(self, folder: Path, log_file: Path, *, gives_up: bool = True) -> None:
        self.folder = folder
        self.log_file = log_file
        self._gives_up = gives_up
        self._children: list[_Child] = []
        make_private_folder(folder)

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str], stdin: bytes = b"") -> None:
        process = self._spawn(command, env, stdin)
        self._children.append(
            _Child(name=name, command=command, env=env, stdin=stdin, process=process, started=time.monotonic())
        )
        self._write_state()

    def is_alive(self, name: str) -> bool:
        return any(child.name == name and child.process.poll() is None for child in self._children)

    def restart_dead(self, broker_is_ready: Callable[[], None]) -> list[str]:
        """Restart processes that died, and return their names. Raises `StackError` when one keeps dying.

        A stack that never gives up waits longer before each restart instead, a minute at most.
        """
        dead = [child for child in self._children if child.process.poll() is not None]
        if not self._gives_up:
            dead = [child for child in dead if time.monotonic() - child.started >= child.restart_delay]
        if not dead:
            return []
        if any(child.name == BROKER for child in dead):
            # Restart the workers too: after losing their broker, they may reconnect but receive no messages.
            for child in self._children:
                kill(child.process)
            dead = self._children
        restarted: list[str] = []
        for child in dead:
            if self._restart(child):
                restarted.append(child.name)
            if child.name == BROKER:
                broker_is_ready()
        self._write_state()
        return restarted

    def stop(self, *, grace: float) -> None:
        """End every process, the broker last, and remove the folder. Tasks in progress get `grace` seconds."""
        clients = [child.process for child in self._children if child.name != BROKER and grace > 0]
        for process in clients:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        deadline = time.monotonic() + grace
        for process in clients:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0.1))
        for child in self._children:
            kill(child.process)
        self._children.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _restart(self, child: _Child) -> bool:
        """Restart the process; returns whether it started. A failed attempt counts as a restart."""
        ran_seconds = time.monotonic() - child.started
        child.restarts = child.restarts + 1 if self._gives_up or ran_seconds < STABLE_SECONDS else 1
        if self._gives_up and child.restarts > RESTARTS.max_retries:
            raise StackError(f"the {child.name} process keeps dying: see {self.log_file}")
        child.started = time.monotonic()
        try:
            child.process = self._spawn(child.command, child.env, child.stdin)
        except OSError as exc:
            if self._gives_up:
                raise StackError(f"the {child.name} process can't be started: {exc}") from exc
            log.error("process_start_failed", process=child.name, error=str(exc))
            return False
        return True

    def _spawn(self, command: Sequence[str], env: Mapping[str, str], stdin: bytes) -> subprocess.Popen[bytes]:
        with open_log(self.log_file) as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=child_environment(env),
                cwd=self.folder,  # not the user's folder: Python would import modules from there first
                start_new_session=True,
                preexec_fn=partial(die_with_parent, os.getpid()),
            )
        assert process.stdin is not None
        try:
            with process.stdin as pipe:
                pipe.write(stdin)
        except OSError:  # it ended before reading, and is not in the list of children yet
            kill(process)
            raise
        return process

    def _write_state(self) -> None:
        alive = [child.process.pid for child in self._children if child.process.poll() is None]
        state = {"owner": process_identity(), "children": [process_identity(pid) for pid in alive]}
        (self.folder / "state.json").write_text(json.dumps(state))


def clean_up_dead_stacks(home: Path) -> None:
    """Kill the processes of stacks whose command has died, and remove their folders."""
    for state_file in (home.absolute() / "stacks").glob("*/state.json"):
        try:
            state = json.loads(state_file.read_text())
        except (FileNotFoundError, ValueError):
            continue  # being written, or being removed, by its owner
        if is_dead(state["owner"]):
            for child in state["children"]:
                kill_if_alive(child)
            shutil.rmtree(state_file.parent, ignore_errors=True)


def child_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with the variables, for a process in another folder.

    A variable replaces the one that names a file with the same secret. Of the others, relative paths become absolute.
    """
    files = {secret_file_variable(name) for name in SECRETS}
    replaced = {f"{name}{SUFFIX}" for name in variables}
    inherited = {
        name: str(Path(value).absolute()) if name.upper() in files and value else value
        for name, value in os.environ.items()
        if name.upper() not in replaced
    }
    return inherited | dict(variables)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and its descendants."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
