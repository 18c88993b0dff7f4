"""Keeping a stack up: a broker, workers, beat and Flower, each started again when it dies."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import requests
import structlog
from celery import Celery
from pydantic import SecretStr

from gated_backfill.common.broker.celery_app import CeleryDispatcher, broker_address, make_app, ping_broker
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import BackfillError, UserError
from gated_backfill.common.ledger import open_ledger
from gated_backfill.common.model.queues import (
    DATES_QUEUE,
    EXPRESS_QUEUE,
    GATE_QUEUE,
    HOUSEKEEPING_QUEUE,
    MAINTENANCE_QUEUE,
)
from gated_backfill.common.process.identity import process_identity
from gated_backfill.common.storage.files import check_writable
from gated_backfill.common.storage.staging import open_staging
from gated_backfill.producer.stack.children import BROKER, ChildProcesses, StackError, clean_up_dead_stacks
from gated_backfill.producer.stack.embedded import (
    GATE_PROCESSES,
    EmbeddedBroker,
    celery_command,
    free_port,
    is_port_free,
    new_stack_name,
    wait_until,
    worker_command,
    worker_environment,
)
from gated_backfill.producer.stack.state_file import StackState, places_digest, state_file, write_stack_state

log = structlog.get_logger()

SUPERVISOR_MODULE = "gated_backfill.producer.stack.supervisor"
LOOPBACK = "127.0.0.1"
START_TIMEOUT_SECONDS = 60.0
CHECK_INTERVAL_SECONDS = 0.5  #: between two looks at what has died
QUEUE_BY_WORKER = {
    "dates": DATES_QUEUE,
    "express": EXPRESS_QUEUE,  # a process that is free for small runs, however many dates of long ones wait
    "gate": GATE_QUEUE,
    "maintenance": MAINTENANCE_QUEUE,
    "housekeeping": HOUSEKEEPING_QUEUE,
}
TASK_HOLDING_PROCESSES = frozenset({BROKER, "dates", "express", "gate", "maintenance"})


def may_have_lost_tasks(again: Iterable[str]) -> bool:
    """Whether messages or tasks of runs may have gone with these processes."""
    return not TASK_HOLDING_PROCESSES.isdisjoint(again)


@dataclass(frozen=True, kw_only=True)
class UpOptions:
    """What `backfill up` was asked for."""

    workers: int
    flower_port: int | None = None  #: None: that of the settings, or another one where it is taken
    metrics_port: int | None = None  #: likewise


def choose_flower_port(options: UpOptions, settings: Settings) -> int:
    """Where Flower can listen. Raises `UserError` when the port that was asked for is taken."""
    asked = options.flower_port or (settings.flower_port if "flower_port" in settings.model_fields_set else None)
    return _port_for("Flower", settings.flower_address, asked, settings.flower_port)


def choose_metrics_port(options: UpOptions, settings: Settings) -> int:
    """Where the metrics can be served. Raises `UserError` when the port that was asked for is taken."""
    asked = options.metrics_port or (settings.metrics_port if "metrics_port" in settings.model_fields_set else None)
    return _port_for("the metrics server", LOOPBACK, asked, settings.metrics_port)


def check_ports(options: UpOptions, settings: Settings) -> None:
    """Raises `UserError` when a port that was asked for is taken."""
    if choose_flower_port(options, settings) == choose_metrics_port(options, settings):
        raise UserError("Flower and the metrics server can't share a port: nothing was started")


def _port_for(what: str, address: str, asked: int | None, usual: int) -> int:
    port = asked or usual
    if is_port_free(address, port):
        return port
    if asked is None:
        return free_port()
    raise UserError(f"{what} can't listen at {address} port {port}, which is taken or not allowed: nothing was started")


class SupervisedStack:
    """Everything that runs dates, and Flower. Use it as a context manager; `standing` tells where it all is."""

    def __init__(self, settings: Settings, options: UpOptions) -> None:
        self._settings = settings
        self._options = options
        self._port = choose_flower_port(options, settings)
        self._metrics_port = choose_metrics_port(options, settings)
        self._broker = EmbeddedBroker(durable=True) if settings.broker is None else None
        url = self._broker.url if self._broker else _url_of(settings)
        password = settings.flower_password or SecretStr(secrets.token_urlsafe(18))
        name = f"up-{new_stack_name()}"
        home = settings.home.absolute()
        self._children = ChildProcesses(home / "stacks" / name, home / "logs" / "up.log", gives_up=False)
        host = settings.flower_address if settings.flower_address not in ("", "0.0.0.0", "::") else LOOPBACK  # noqa: S104
        self.state = StackState(
            owner=process_identity(),
            broker_url=url,
            broker=broker_address(url),
            embedded=self._broker is not None,
            workers=options.workers,
            flower_url=f"http://{f'[{host}]' if ':' in host else host}:{self._port}",
            flower_user=settings.flower_user,
            flower_password=password.get_secret_value(),
            metrics_url=f"http://{LOOPBACK}:{self._metrics_port}/metrics",
            log_file=str(self._children.log_file),
            places=places_digest(settings),
        )
        self._app: Celery = make_app(settings, url)

    def __enter__(self) -> SupervisedStack:
        try:
            self._start()
        except BaseException:
            self._children.stop(grace=0)
            raise
        write_stack_state(self._settings.home, self.state)
        return self

    def __exit__(self, *_: object) -> None:
        state_file(self._settings.home).unlink(missing_ok=True)  # from now on no run is given to it
        try:
            self._children.stop(grace=self._settings.stop_seconds)
        except KeyboardInterrupt:  # told a second time
            self._children.stop(grace=0)
        clear_heartbeat(self._settings)

    def supervise(self) -> None:
        """Start again what dies, for ever. A signal that raises ends it."""
        lost = False
        while True:
            time.sleep(CHECK_INTERVAL_SECONDS)
            try:
                again = self._children.restart_dead(self._wait_for_broker)
                if again:
                    log.warning("processes_restarted", started_again=again)
                lost = lost or may_have_lost_tasks(again)
                if lost:
                    self._make_up_for_losses()
                    lost = False
            except (BackfillError, OSError) as exc:  # it is tried again
                log.error("processes_not_restarted", error=str(exc))

    def _start(self) -> None:
        env = worker_environment(self._settings, self.state.broker_url)
        if self._broker is not None:
            self._broker.start(self._children)
        host = socket.gethostname()
        processes = {"dates": self._options.workers, "gate": GATE_PROCESSES}
        for name, queue in QUEUE_BY_WORKER.items():
            self._children.start(name, worker_command(f"{name}@{host}", [queue], processes.get(name, 1)), env)
        self._children.start("beat", self._beat(), env)
        self._children.start("flower", celery_command("flower"), env | self._flower_env())
        self._children.start("metrics", self._metrics(), env)
        for name in QUEUE_BY_WORKER:
            answers = _pinged(self._app, f"{name}@{host}")
            wait_until(answers, self._children, name, START_TIMEOUT_SECONDS)
        for name, url in (
            ("flower", f"{self.state.flower_url}/healthcheck"),
            ("metrics", self.state.metrics_url.removesuffix("/metrics") + "/healthz"),
        ):
            wait_until(_answers(url), self._children, name, START_TIMEOUT_SECONDS)
        if not self._children.is_alive("beat"):
            raise StackError(f"the beat process does not start: see {self._children.log_file}")
        self._make_up_for_losses()

    def _beat(self) -> list[str]:
        folder = self._settings.home.absolute() / "beat"
        folder.mkdir(parents=True, exist_ok=True)
        return [*celery_command("beat"), "--schedule", str(folder / "schedule"), "--loglevel", "WARNING"]

    def _flower_env(self) -> dict[str, str]:
        one = self.state
        return {
            "FLOWER_BASIC_AUTH": f"{one.flower_user}:{one.flower_password}",
            "FLOWER_ADDRESS": self._settings.flower_address,
            "FLOWER_PORT": str(self._port),
        }

    def _metrics(self) -> list[str]:
        return [
            sys.executable,
            "-m",
            "gated_backfill.producer.cli.main",
            "metrics",
            "--address",
            LOOPBACK,
            "--port",
            str(self._metrics_port),
        ]

    def _wait_for_broker(self) -> None:
        if self._broker is not None:
            self._broker.wait_until_ready(self._children)

    def _make_up_for_losses(self) -> None:
        """Have the active runs looked after: what was queued or in progress may be lost."""
        if self._broker is None:
            return  # a broker of the user's own has lost nothing, and beat looks after what a worker took along
        dispatcher = CeleryDispatcher(self._app)
        ledger = open_ledger(self._settings.ledger_url)
        for run in ledger.runs.list_active_runs():
            if run.owner is None:
                dispatcher.send_reconcile(run.id, lost_tasks=True)
        ledger.close()


def _url_of(settings: Settings) -> str:
    assert settings.broker is not None
    return settings.broker.get_secret_value()


def _answers(url: str) -> Callable[[], bool]:
    def asked() -> bool:
        try:
            return requests.get(url, timeout=1).ok
        except requests.RequestException:
            return False

    return asked


def _pinged(app: Celery, worker: str) -> Callable[[], bool]:
    return lambda: bool(app.control.ping(destination=[worker], timeout=0.3))


def clear_heartbeat(settings: Settings) -> None:
    """Have nobody alarmed by the silence of a beat that was stopped."""
    try:
        ledger = open_ledger(settings.ledger_url)
        ledger.maintenance.clear_heartbeat()
        ledger.close()
    except BackfillError as exc:
        log.warning("heartbeat_not_cleared", error=str(exc))


def check_places(settings: Settings) -> None:
    """Make or migrate the ledger. Raises `UserError` for a place that can't be used."""
    check_writable(settings.home.absolute())
    open_ledger(settings.ledger_url).close()
    open_staging(settings.staging_url).check()
    if settings.broker is not None:
        ping_broker(settings, settings.broker.get_secret_value())
    clean_up_dead_stacks(settings.home)


def start_supervisor(options: UpOptions, settings: Settings) -> None:
    """Have a process of its own keep the stack up; returns once everything answers. Raises `UserError`."""
    folder = settings.home.absolute() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "up.log").open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", SUPERVISOR_MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stream,
            env={**os.environ, **_places(settings)},
            cwd=folder,  # not where a package of the user's may have the name of one of ours
            start_new_session=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with process.stdin as pipe:
            pipe.write(json.dumps(asdict(options)).encode())
        with process.stdout as pipe:
            first = pipe.readline().decode().strip()
    except BaseException:
        process.terminate()
        raise
    if first != "up":
        raise UserError(first.removeprefix("refused ") or f"the stack ended at once: see {folder / 'up.log'}")


def _places(settings: Settings) -> dict[str, str]:
    return {name: value for name, value in worker_environment(settings, "").items() if name != "BACKFILL_BROKER"}
