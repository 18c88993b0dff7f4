"""A broker, workers and a PostgreSQL ledger of the user's own, started with the README's command lines."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta

import pytest
import redis

from common.ledger import DateState, RunState, open_ledger
from common.processes import is_dead
from tests.brokers import PASSWORD
from tests.lab import Lab, players, until
from tests.receiver import receiving

DAYS = [date(2023, 2, 20) + timedelta(days=n) for n in range(6)]
RUN = ("run", "--job", "probe", "--start-date", str(DAYS[0]), "--end-date", str(DAYS[-1]))


@pytest.fixture
def places(broker: str, postgres_url: str) -> dict[str, str]:
    return {"BACKFILL_BROKER": broker, "BACKFILL_LEDGER": postgres_url, "BACKFILL_STALLED_SECONDS": "2"}


@contextmanager
def worker(lab: Lab, places: dict[str, str], queues: str, name: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "celery", "--app", "worker.tasks", "worker", "--queues", queues]
    log = (lab.marks.parent / f"{name}.log").open("wb")
    process = subprocess.Popen(
        [*command, "--concurrency", "1", "--hostname", f"{name}@%h"],
        env=lab.environment() | places,
        stdout=log,
        stderr=log,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        log.close()


@contextmanager
def workers(lab: Lab, places: dict[str, str]) -> Iterator[None]:
    with worker(lab, places, "backfill", "dates"), worker(lab, places, "gate,maintenance", "gate"):
        yield


def prepare(lab: Lab, trick: str | None = None) -> None:
    for day in DAYS:
        lab.probe("expected", day, players(10))
        lab.probe("first", day, players(10), trick=trick)


def test_a_run_on_the_users_broker_and_postgres_completes_and_its_tasks_are_readable(
    lab: Lab, places: dict[str, str]
) -> None:
    prepare(lab)
    with redis.Redis.from_url(places["BACKFILL_BROKER"]) as client:
        detached = lab.command(*RUN, "--detach", "--window", "2", **places)
        assert detached.returncode == 0, detached.stderr
        assert client.llen("backfill") == len(DAYS)  # three windows of two are in flight
        assert b"probe 2023-02-20 run=" in client.lindex("backfill", -1)
    with receiving() as receiver, workers(lab, places | {"BACKFILL_ALERTS": receiver.url}):
        watched = lab.command("watch", **places)
        until(lambda: receiver.messages, "the alert that a worker sends when the run has ended")

    assert "6 checkpointed" in receiver.messages[0]["message"]
    assert watched.returncode == 0, watched.stdout + watched.stderr
    assert "6 checkpointed" in watched.stdout
    assert len(lab.table_bytes("probe.probe")) == len(DAYS)
    assert PASSWORD not in "".join(path.read_text() for path in lab.marks.parent.glob("*.log"))


def test_interrupting_the_command_lets_the_run_go_on_and_a_second_one_is_refused(
    lab: Lab, places: dict[str, str]
) -> None:
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
    assert "goes on at the broker" in out
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


def test_cancelling_now_stops_a_date_on_the_users_workers_and_leaves_them_ready_for_the_next_run(
    lab: Lab, places: dict[str, str]
) -> None:
    prepare(lab)
    lab.probe("first", DAYS[0], players(10), trick="sleep")
    with workers(lab, places):
        lab.command(*RUN, "--detach", "--window", "2", **places)
        ledger = open_ledger(places["BACKFILL_LEDGER"])
        run = ledger.latest_runs(1)[0]
        until(lambda: ledger.progress(run.id).of(DateState.PROCESSING), "a date in the middle of its processing")
        (asleep,) = ledger.dates(run.id, states=[DateState.PROCESSING])
        cancelled = lab.command("cancel", run.id, "--now", "--reason", "it sleeps", **places)
        at = time.monotonic()
        until(lambda: is_dead(str(asleep.lease_owner)), "the end of the process that sleeps")
        took = time.monotonic() - at
        ended = until(lambda: (now := ledger.run(run.id)).ended and now, "the end of the cancelled run")
        again = lab.command(*RUN, "--exclude", str(DAYS[0]), **places)
        ledger.close()

    assert cancelled.returncode == 0, cancelled.stderr
    assert took < 2
    assert ended.state is RunState.CANCELLED
    assert again.returncode == 0, again.stdout + again.stderr  # by a new process: there is one at a time
