"""The stack of `backfill up`: a broker, workers, beat, Flower and metrics, each restarted when it dies."""

from __future__ import annotations

import json
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import requests
import structlog
from celery import Celery
from pydantic import SecretStr

from gated_backfill.common.broker.celery_app import make_app
from gated_backfill.common.broker.dispatcher import CeleryDispatcher
from gated_backfill.common.broker.health import ping_broker
from gated_backfill.common.config.broker_url import parse_broker_url
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import BackfillError, UserError
from gated_backfill.common.ledger import open_ledger_of_command
from gated_backfill.common.model.scheduling.queues import (
    DATES_QUEUE,
    EXPRESS_QUEUE,
    GATE_QUEUE,
    HOUSEKEEPING_QUEUE,
    MAINTENANCE_QUEUE,
)
from gated_backfill.common.process.identity import process_identity
from gated_backfill.common.process.private_files import make_private_folder
from gated_backfill.common.storage.files import check_writable
from gated_backfill.common.storage.staging import open_staging
from gated_backfill.producer.stack.background_process import exchange_lines, start_background_process
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
CHECK_INTERVAL_SECONDS = 0.5  #: between two checks for dead processes
QUEUE_BY_WORKER = {
    "dates": DATES_QUEUE,
    "express": EXPRESS_QUEUE,  # keeps a process free for small runs while long ones queue
    "gate": GATE_QUEUE,
    "maintenance": MAINTENANCE_QUEUE,
    "housekeeping": HOUSEKEEPING_QUEUE,
}
PROCESSES_WITH_TASKS = frozenset({BROKER, "dates", "express", "gate", "maintenance"})


def may_have_lost_tasks(restarted: Iterable[str]) -> bool:
    """Whether messages or tasks of runs may be lost when these processes die."""
    return not PROCESSES_WITH_TASKS.isdisjoint(restarted)


@dataclass(frozen=True, kw_only=True)
class UpOptions:
    workers: int
    flower_port: int | None = None  #: None: the port of the settings, or a free one if that is taken
    metrics_port: int | None = None  #: None: as for Flower


def choose_flower_port(options: UpOptions, settings: Settings) -> int:
    """Choose the port for Flower. Raises `UserError` when the requested port is taken."""
    requested = options.flower_port or (settings.flower_port if "flower_port" in settings.model_fields_set else None)
    return _select_port("Flower", settings.flower_address, requested, settings.flower_port)


def choose_metrics_port(options: UpOptions, settings: Settings) -> int:
    """Choose the port for the metrics. Raises `UserError` when the requested port is taken."""
    requested = options.metrics_port or (settings.metrics_port if "metrics_port" in settings.model_fields_set else None)
    return _select_port("the metrics server", LOOPBACK, requested, settings.metrics_port)


def check_ports(options: UpOptions, settings: Settings) -> None:
    """Raise `UserError` when a requested port is taken."""
    if choose_flower_port(options, settings) == choose_metrics_port(options, settings):
        raise UserError("Flower and the metrics server can't share a port: nothing was started")


def _select_port(server: str, address: str, requested: int | None, default: int) -> int:
    port = requested or default
    if is_port_free(address, port):
        return port
    if requested is None:
        return free_port()
    raise UserError(f"{server} can't listen at {address} port {port}: it is taken or not allowed; nothing was started")


class SupervisedStack:
    """A broker, workers, beat, Flower and metrics, as a context manager. `state` holds their addresses."""

    def __init__(self, settings: Settings, options: UpOptions) -> None:
        self._settings = settings
        self._options = options
        self._flower_port = choose_flower_port(options, settings)
        self._metrics_port = choose_metrics_port(options, settings)
        self._broker = EmbeddedBroker(durable=True) if settings.broker is None else None
        url = self._broker.url if self._broker else _broker_url(settings)
        password = settings.flower_password or SecretStr(secrets.token_urlsafe(18))
        name = f"up-{new_stack_name()}"
        home = settings.home.absolute()
        self._children = ChildProcesses(home / "stacks" / name, home / "logs" / "up.log", gives_up=False)
        host = settings.flower_address if settings.flower_address not in ("", "0.0.0.0", "::") else LOOPBACK  # noqa: S104
        self.state = StackState(
            owner=process_identity(),
            broker_url=url,
            broker=parse_broker_url(url).address,
            embedded=self._broker is not None,
            workers=options.workers,
            flower_url=f"http://{f'[{host}]' if ':' in host else host}:{self._flower_port}",
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
        state_file(self._settings.home).unlink(missing_ok=True)  # new runs no longer find the stack
        try:
            self._children.stop(grace=self._settings.stop_seconds)
        except KeyboardInterrupt:  # a second signal
            self._children.stop(grace=0)
        clear_heartbeat(self._settings)

    def supervise(self) -> None:
        """Restart dead processes until a signal handler raises."""
        tasks_lost = False
        while True:
            time.sleep(CHECK_INTERVAL_SECONDS)
            try:
                restarted = self._children.restart_dead(self._wait_for_broker)
                if restarted:
                    log.warning("processes_restarted", processes=restarted)
                tasks_lost = tasks_lost or may_have_lost_tasks(restarted)
                if tasks_lost:
                    self._reconcile_active_runs()
                    tasks_lost = False
            except (BackfillError, OSError) as exc:  # retried at the next check
                log.error("processes_not_restarted", error=str(exc))

    def _start(self) -> None:
        env = worker_environment(self._settings, self.state.broker_url)
        if self._broker is not None:
            self._broker.start(self._children)
        host = socket.gethostname()
        concurrency = {"dates": self._options.workers, "gate": GATE_PROCESSES}
        for name, queue in QUEUE_BY_WORKER.items():
            self._children.start(name, worker_command(f"{name}@{host}", [queue], concurrency.get(name, 1)), env)
        self._children.start("beat", self._beat_command(), env)
        self._children.start("flower", celery_command("flower"), env | self._flower_env())
        module = [sys.executable, "-m", "gated_backfill.producer.cli.main"]
        options = ["--address", LOOPBACK, "--port", str(self._metrics_port)]
        self._children.start("metrics", [*module, "metrics", *options], env)
        for name in QUEUE_BY_WORKER:
            answers_ping = _ping_check(self._app, f"{name}@{host}")
            wait_until(answers_ping, self._children, name, START_TIMEOUT_SECONDS)
        for name, url in (
            ("flower", f"{self.state.flower_url}/healthcheck"),
            ("metrics", self.state.metrics_url.removesuffix("/metrics") + "/healthz"),
        ):
            wait_until(_url_check(url), self._children, name, START_TIMEOUT_SECONDS)
        if not self._children.is_alive("beat"):
            raise StackError(f"the beat process does not start: see {self._children.log_file}")
        self._reconcile_active_runs()

    def _beat_command(self) -> list[str]:
        folder = self._settings.home.absolute() / "beat"
        make_private_folder(folder)
        return [*celery_command("beat"), "--schedule", str(folder / "schedule"), "--loglevel", "WARNING"]

    def _flower_env(self) -> dict[str, str]:
        state = self.state
        return {
            "FLOWER_BASIC_AUTH": f"{state.flower_user}:{state.flower_password}",
            "FLOWER_ADDRESS": self._settings.flower_address,
            "FLOWER_PORT": str(self._flower_port),
        }

    def _wait_for_broker(self) -> None:
        if self._broker is not None:
            self._broker.wait_until_ready(self._children)

    def _reconcile_active_runs(self) -> None:
        """Have the active runs reconciled, since their queued or running tasks may be lost."""
        if self._broker is None:
            return  # the user's broker kept its messages, and beat reconciles what a worker lost
        dispatcher = CeleryDispatcher(self._app)
        ledger = open_ledger_of_command(self._settings.ledger_url)
        for run in ledger.runs.list_active_runs():
            if run.owner is None:
                dispatcher.send_reconcile(run.id, lost_tasks=True)
        ledger.close()


def _broker_url(settings: Settings) -> str:
    assert settings.broker is not None
    return settings.broker.get_secret_value()


def _url_check(url: str) -> Callable[[], bool]:
    def is_answering() -> bool:
        try:
            return requests.get(url, timeout=1).ok
        except requests.RequestException:
            return False

    return is_answering


def _ping_check(app: Celery, worker: str) -> Callable[[], bool]:
    return lambda: bool(app.control.ping(destination=[worker], timeout=0.3))


def clear_heartbeat(settings: Settings) -> None:
    """Clear beat's heartbeat, so that no alert is recorded for a beat that was stopped on purpose."""
    try:
        ledger = open_ledger_of_command(settings.ledger_url)
        ledger.maintenance.clear_heartbeat()
        ledger.close()
    except BackfillError as exc:
        log.warning("heartbeat_not_cleared", error=str(exc))


def check_places(settings: Settings) -> None:
    """Open the ledger, and check the other places. Raises `UserError` if one can't be used."""
    check_writable(settings.home.absolute())
    open_ledger_of_command(settings.ledger_url).close()
    open_staging(settings.staging_url).check()
    if settings.broker is not None:
        ping_broker(settings, settings.broker.get_secret_value())
    clean_up_dead_stacks(settings.home)


def start_supervisor(options: UpOptions, settings: Settings) -> None:
    """Start the supervisor process, and wait until the stack answers. Raises `UserError` when it does not start."""
    log_file = settings.home.absolute() / "logs" / "up.log"
    process = start_background_process(SUPERVISOR_MODULE, settings, log_file)
    try:
        answer = exchange_lines(process, json.dumps(asdict(options)))
    except BaseException:
        process.terminate()
        raise
    if answer != "up":
        raise UserError(answer.removeprefix("refused ") or f"the stack ended at once: see {log_file}")
