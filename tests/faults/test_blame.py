"""No date is blamed for what is not its fault: only a process that died by itself while it computed counts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date

import psutil
import pytest

from gated_backfill.common.ledger import DateRow, DateState, Ledger, Run, WindowState, open_ledger
from gated_backfill.common.process.file_lock import locked
from gated_backfill.producer.stack.embedded import free_port
from tests.brokers import kept_broker
from tests.lab import Lab, players, until
from tests.workers import CELERY_IN_AN_INTERPRETER, celery, wait_for_attempt

DAY = date(2023, 2, 20)
RUN = ("run", "--job", "probe", "--dates", str(DAY), "--detach")
#: Whoever is blamed once is given up.
STRICT = {"BACKFILL_MAX_DEATHS": "1", "BACKFILL_MAX_LOSSES": "1", "BACKFILL_RECONCILE_SECONDS": "0.5"}


@contextmanager
def service(lab: Lab, places: dict[str, str]) -> Iterator[tuple[psutil.Process, psutil.Process]]:
    """Workers and beat, each with one process; yields the worker of dates and the one of gates."""
    with ExitStack() as stack:
        words = ("worker", "--concurrency", "1", "--without-gossip", "--without-mingle", "--queues")
        real = {"program": CELERY_IN_AN_INTERPRETER, **places}
        dates = stack.enter_context(celery(lab, "dates", *words, "backfill", "--hostname", "dates@%h", **real))
        queues = "gate,maintenance,housekeeping"
        gate = stack.enter_context(celery(lab, "gate", *words, queues, "--hostname", "gate@%h", **real))
        schedule = str(lab.home.parent / "beat-schedule")
        stack.enter_context(celery(lab, "beat", "beat", "--pidfile=", "--schedule", schedule, **places))
        yield psutil.Process(dates.pid), psutil.Process(gate.pid)


def outcome(ledger: Ledger, run: Run) -> DateRow:
    until(lambda: ledger.runs.get_run(run.id).has_ended, "the end of the run")
    (row,) = ledger.dates.list_dates(run.id)
    return row


def test_a_broker_that_is_restarted_during_a_date_blames_nobody(lab: Lab, sqlite_url: str) -> None:
    lab.probe_all([DAY], players(10), trick="wait")
    port, folder = free_port(), lab.home.parent / "broker"
    places = {"BACKFILL_BROKER": f"redis://127.0.0.1:{port}/0", "BACKFILL_LEDGER": sqlite_url, **STRICT}
    ledger = open_ledger(sqlite_url)
    restarts = int(os.environ.get("RESTARTS", "3"))
    with ExitStack() as stack:
        broker = stack.enter_context(ExitStack())
        broker.enter_context(kept_broker(port, folder))
        stack.enter_context(service(lab, places))
        assert lab.command(*RUN, **places).returncode == 0
        (run,) = ledger.runs.list_latest_runs()
        for number in range(1, restarts + 1):
            wait_for_attempt(lab, ledger, run, number)
            broker.close()
            broker.enter_context(kept_broker(port, folder))
        wait_for_attempt(lab, ledger, run, restarts + 1)
        (lab.marks / "released").touch()
        row = outcome(ledger, run)
    ledger.close()

    assert (row.state, row.deaths, row.losses) == (DateState.CHECKPOINTED, 0, 0)
    assert row.attempt > restarts


def test_a_process_that_is_told_to_stop_is_not_counted_and_a_gate_that_is_killed_is(
    lab: Lab, broker: str, sqlite_url: str
) -> None:
    lab.probe_all([DAY], players(10), trick="wait")
    places = {"BACKFILL_BROKER": broker, "BACKFILL_LEDGER": sqlite_url, **STRICT, "BACKFILL_MAX_DEATHS": "2"}
    ledger = open_ledger(sqlite_url)
    with service(lab, places) as (dates, gate), ExitStack() as table:
        assert lab.command(*RUN, **places).returncode == 0
        (run,) = ledger.runs.list_latest_runs()
        wait_for_attempt(lab, ledger, run, 1)
        only_child(dates).terminate()  # as systemd tells every process of a service
        wait_for_attempt(lab, ledger, run, 2)
        table.enter_context(locked(lab.home / "warehouse" / "probe" / "probe" / ".lock"))
        (lab.marks / "released").touch()
        until(
            lambda: ledger.windows.get_window(run.id, 1).state is WindowState.CLOSING, "the gate, before it publishes"
        )
        only_child(gate).kill()
        until(lambda: ledger.windows.get_window(run.id, 1).deaths, "the record of its death")
        table.close()
        row, window = outcome(ledger, run), ledger.windows.get_window(run.id, 1)
    ledger.close()

    assert (row.state, row.deaths, row.losses) == (DateState.CHECKPOINTED, 0, 0)
    assert (window.deaths, window.losses) == (1, 0)


def only_child(worker: psutil.Process) -> psutil.Process:
    (child,) = worker.children()
    return child


@pytest.mark.parametrize("broker_is_gone", [True, False], ids=["without-its-broker", "with-a-date-in-hand"])
def test_workers_that_are_stopped_end_in_time_and_release_what_they_have(
    lab: Lab, sqlite_url: str, broker_is_gone: bool
) -> None:
    seconds = 15
    lab.probe_all([DAY], players(10), trick="wait")
    port, folder = free_port(), lab.home.parent / "broker"
    places = {"BACKFILL_BROKER": f"redis://127.0.0.1:{port}/0", "BACKFILL_LEDGER": sqlite_url, **STRICT}
    places["BACKFILL_STOP_SECONDS"] = str(seconds)
    ledger = open_ledger(sqlite_url)
    with ExitStack() as stack:
        broker = stack.enter_context(ExitStack())
        broker.enter_context(kept_broker(port, folder))
        workers = stack.enter_context(service(lab, places))
        assert lab.command(*RUN, **places).returncode == 0
        (run,) = ledger.runs.list_latest_runs()
        wait_for_attempt(lab, ledger, run, 1)
        if broker_is_gone:
            broker.close()
        stopped_at = time.monotonic()
        for worker in workers:
            worker.terminate()
        _, alive = psutil.wait_procs(workers, timeout=seconds)
        took = time.monotonic() - stopped_at
        (row,) = ledger.dates.list_dates(run.id)
    ledger.close()

    assert not alive
    assert took < seconds
    assert (row.state, row.deaths, row.losses) == (DateState.QUEUED, 0, 0)
