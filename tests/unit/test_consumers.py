"""Workers that live without taking tasks, and queues whose worker was lost, are found and told."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from gated_backfill.common.alerts.consumers import consumer_alerts, fault_alerts, find_lost_consumers
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.ledger.stores.heartbeats import Ending, Heartbeat
from gated_backfill.common.model.host_fault import FaultKind, HostFault
from gated_backfill.common.runs.faulty_workers import find_faulty_workers
from gated_backfill.worker.health import find_problem
from tests.builders import NOON

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)


def worker(name: str = "gate@one", **more: Any) -> Heartbeat:
    """A worker of the gate's queue that takes tasks from it, seen a second ago."""
    values: dict[str, Any] = {
        "owner": f"{name}:1:1",
        "worker": f"{name}:1:1",
        "name": name,
        "queues": ("gate",),
        "consumed": ("gate",),
        "consumed_at": NOON - MINUTE,
        "beats": 5,
        "started_at": NOON - 10 * MINUTE,
        "seen_at": NOON - timedelta(seconds=1),
        "ended_at": None,
        "ending": None,
        "fault": None,
        "faulty_since": None,
        "read_at": NOON,
    }
    return Heartbeat(**values | more)


def deaf(name: str = "gate@one", **more: Any) -> Heartbeat:
    """A worker that lives, and from which Flower has taken its queue."""
    return worker(name, consumed=(), **more)


FAULT = HostFault(kind=FaultKind.STAGING, reason="/staging can't be written: Read-only file system")


def faulty(name: str = "gate@one", **more: Any) -> Heartbeat:
    """A worker that lives, and whose host cannot work."""
    return deaf(name, **{"fault": FAULT, "faulty_since": NOON - MINUTE, **more})


def silent(name: str = "gate@one", **more: Any) -> Heartbeat:
    return worker(name, seen_at=NOON - MINUTE, ended_at=NOON - MINUTE / 2, ending=Ending.SILENT, **more)


DEAF = "gate@one takes no tasks from the queue gate since 11:59:00 UTC"
SILENT = "gate@one silent since 11:59:00 UTC, taken over at 11:59:30 UTC"
CANNOT_WORK = "gate@one cannot work on host gate@one since 11:59:00 UTC"
UNNOTICED = "gate@one silent since 11:59:00 UTC"
ALONE = ", and no other worker takes tasks from gate"
CASES = [
    pytest.param([worker()], [], [], id="all-is-well"),
    pytest.param([deaf()], [], [DEAF + ALONE], id="deaf"),
    pytest.param([deaf(), worker("gate@two")], [], [DEAF], id="deaf-beside-another"),
    pytest.param([deaf(consumed_at=NOON - timedelta(seconds=5))], [], [], id="while-it-connects-again"),
    pytest.param([deaf("gate@embedded")], [], [], id="of-one-run"),
    pytest.param([faulty()], [], [], id="on-a-host-that-cannot-work"),
    pytest.param([], [silent()], [SILENT + ALONE], id="lost"),
    pytest.param([worker("gate@two")], [silent()], [], id="lost-and-replaced"),
    pytest.param([deaf("gate@two", consumed_at=NOON)], [silent()], [SILENT + ALONE], id="lost-beside-a-deaf-one"),
    pytest.param([], [silent("gate@embedded")], [], id="ended-with-its-run"),
    pytest.param(
        [worker(seen_at=NOON - MINUTE)], [], ["gate@one silent since 11:59:00 UTC" + ALONE], id="all-are-gone"
    ),
    pytest.param([worker(queues=None, consumed=None)], [], [], id="a-process-that-runs-tasks"),
]


@pytest.mark.parametrize(("running", "lost", "found"), CASES)
def test_lost_consumers(running: list[Heartbeat], lost: list[Heartbeat], found: list[str]) -> None:
    assert [consumer.describe() for consumer in find_lost_consumers(running, lost, 3 * SECOND)] == found


def test_a_worker_that_renews_its_heartbeat_seldom_is_not_silent_before_it_misses_some() -> None:
    settings = Settings(heartbeat_seconds=30)
    alive, lost = (worker(seen_at=NOON - age) for age in (settings.silent_after, settings.silent_after + SECOND))
    assert find_lost_consumers([alive], [], settings.silent_after) == []
    assert [consumer.worker for consumer in find_lost_consumers([lost], [], settings.silent_after)] == [lost]


def test_a_lost_consumer_is_alerted_once_for_each_time_it_is_lost() -> None:
    (first,) = consumer_alerts(find_lost_consumers([deaf()], [], SECOND))
    (again,) = consumer_alerts(find_lost_consumers([deaf(read_at=NOON + MINUTE, seen_at=NOON + MINUTE)], [], SECOND))
    (later,) = consumer_alerts(find_lost_consumers([deaf(consumed_at=NOON - MINUTE / 1.5)], [], SECOND))
    assert first.key == again.key != later.key
    assert (first.kind, first.title) == ("consumer-lost", "the queue gate has lost a worker: gate@one")
    assert DEAF in first.body


@pytest.mark.parametrize(
    ("running", "problem"),
    [
        pytest.param([worker(), deaf("gate@two")], None, id="healthy"),
        pytest.param([deaf()], "gate@one takes no tasks from gate", id="deaf"),
        pytest.param([faulty()], f"{CANNOT_WORK}: {FAULT.reason}", id="on-a-host-that-cannot-work"),
        pytest.param([worker(seen_at=NOON - MINUTE)], "gate@one silent since 11:59:00 UTC", id="silent"),
        pytest.param([worker(seen_at=NOON - MINUTE, consumed=()), worker()], None, id="started-again"),
        pytest.param([worker("gate@two")], "no worker gate@one has a heartbeat", id="not-there"),
        pytest.param([worker(queues=None)], "no worker gate@one has a heartbeat", id="a-process-that-runs-tasks"),
    ],
)
def test_the_health_of_a_worker(running: list[Heartbeat], problem: str | None) -> None:
    assert find_problem("gate@one", running, 6 * SECOND) == problem


@pytest.mark.parametrize(
    "worker_of_host",
    [
        pytest.param(faulty(faulty_since=NOON - MINUTE / 4), id="for-a-moment"),
        pytest.param(faulty("gate@embedded"), id="of-one-run"),
        pytest.param(faulty(seen_at=NOON - 4 * MINUTE), id="that-is-gone"),
        pytest.param(worker(), id="sound"),
    ],
)
def test_no_alert_of_a_host(worker_of_host: Heartbeat) -> None:
    assert fault_alerts([worker_of_host]) == []


def test_a_host_that_cannot_work_is_alerted_once() -> None:
    (first,) = fault_alerts([faulty()])
    (again,) = fault_alerts([faulty(read_at=NOON + MINUTE, seen_at=NOON + MINUTE)])
    (later,) = fault_alerts([faulty(faulty_since=NOON - MINUTE / 1.5)])
    assert first.key == again.key != later.key
    assert (first.kind, first.title) == ("host-faulty", "a host cannot work: gate@one")
    assert f"{CANNOT_WORK}: {FAULT.reason}." in first.body


DATES: dict[str, Any] = {"queues": ("backfill", "express")}
STOPS = [
    pytest.param([worker(), worker("dates@one", **DATES)], [], "", id="all-is-well"),
    pytest.param(
        [faulty(), worker("dates@one", **DATES)], ["gate@one"], f"no gate can work: gate@one: {FAULT.reason}", id="gate"
    ),
    pytest.param([faulty("dates@one", **DATES), worker("dates@two", **DATES)], ["dates@one"], "", id="one-of-two"),
    pytest.param(
        [faulty("dates@one", **DATES), faulty("dates@two", **DATES), worker()],
        ["dates@one", "dates@two"],
        f"no worker can work: dates@one: {FAULT.reason}; dates@two: {FAULT.reason}",
        id="both",
    ),
    pytest.param(
        [faulty("dates@one", **DATES), worker("dates@two", seen_at=NOON - 4 * MINUTE, **DATES)],
        ["dates@one"],
        f"no worker can work: dates@one: {FAULT.reason}",
        id="and-the-other-is-gone",
    ),
    pytest.param([], [], "", id="no-worker"),
]


@pytest.mark.parametrize(("running", "names", "stop"), STOPS)
def test_hosts_that_cannot_work_and_what_they_stop(running: list[Heartbeat], names: list[str], stop: str) -> None:
    found = find_faulty_workers(running)
    assert [one.name for one in found.workers] == names
    assert found.describe_stop() == stop
