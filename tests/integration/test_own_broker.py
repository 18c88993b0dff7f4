"""A broker, workers and a PostgreSQL ledger of the user's own, started with the README's command lines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta

import pytest
import redis

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
        assert client.llen("express") == len(DAYS)  # three windows of two are in flight
        assert b"probe 2023-02-20 run=" in client.lindex("express", -1)
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
