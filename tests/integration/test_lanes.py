"""Runs side by side on one broker, with real workers: who gets how much of them, by the moments in the ledger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date, datetime, timedelta

import pytest

from gated_backfill.common.broker.celery_app import make_app
from gated_backfill.common.ledger import Ledger, RunState
from gated_backfill.common.model.scheduling.queues import EXPRESS_QUEUE, GATE_QUEUE, LANES, MAINTENANCE_QUEUE
from tests.brokers import broker as broker
from tests.lab import Lab, players, until
from tests.workers import celery

FIRST = date(2022, 10, 18)


@pytest.fixture
def places(broker: str) -> dict[str, str]:
    return {"BACKFILL_BROKER": broker}


@contextmanager
def workers(lab: Lab, places: dict[str, str], named: dict[str, str]) -> Iterator[None]:
    """One-process workers by their names, each of the queues given."""
    with ExitStack() as stack:
        for name, queues in named.items():
            words = ("worker", "--queues", queues, "--concurrency", "1", "--hostname", f"{name}@%h")
            stack.enter_context(celery(lab, name, *words, "--without-gossip", "--without-mingle", **places))
        yield


def days(start: int, count: int) -> list[date]:
    return [FIRST + timedelta(days=start + n) for n in range(count)]


def launch(lab: Lab, places: dict[str, str], wanted: Sequence[date], *more: str) -> str:
    span = ("--start-date", str(wanted[0]), "--end-date", str(wanted[-1]))
    ran = lab.inside("run", "--job", "probe", *span, "--detach", "--yes", *more, **places)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return lab.latest_run().id


def started(ledger: Ledger, run: str) -> list[datetime]:
    return sorted(row.started_at for row in ledger.dates.list_dates(run) if row.started_at is not None)


def consumed(lab: Lab, places: dict[str, str], workers: int) -> dict[str, set[str]]:
    """The queues of each worker, by its name; of none until all of them answer."""
    inspected = make_app(lab.settings, places["BACKFILL_BROKER"]).control.inspect(timeout=1, limit=workers)
    replies = inspected.active_queues() or {}
    found = {host.partition("@")[0]: {queue["name"] for queue in queues} for host, queues in replies.items()}
    return found if len(found) == workers else {}


def test_a_small_run_waits_for_no_long_one_and_long_ones_share_the_workers(lab: Lab, places: dict[str, str]) -> None:
    long, late, daily = days(0, 18), days(100, 18), days(200, 1)
    for wanted, trick in ((long, "wait"), (late, None), (daily, None)):
        lab.probe_all(wanted, players(2), trick=trick)
    ledger = lab.ledger
    reserved = {EXPRESS_QUEUE, GATE_QUEUE, MAINTENANCE_QUEUE}
    named = {"dates": LANES[0], "reserved": ",".join(reserved)}
    first = launch(lab, places, long, "--window", "6")
    with workers(lab, places, named):
        until(lambda: list(lab.marks.glob("waiting-*")), "the long run to hold the worker")
        queues = until(lambda: consumed(lab, places, len(named)), "the workers to answer")

        small = launch(lab, places, daily)
        until(lambda: ledger.runs.get_run(small).has_ended, "the small run to end")
        begun = len(started(ledger, first))

        second = launch(lab, places, late, "--window", "6")
        (lab.marks / "released").touch()
        until(lambda: all(ledger.runs.get_run(run).has_ended for run in (first, second)), "both long runs to end")

    runs = [ledger.runs.get_run(run) for run in (first, small, second)]
    assert queues == {"dates": {*LANES, EXPRESS_QUEUE}, "reserved": reserved}
    assert [run.options["queue"] for run in runs] == [LANES[0], EXPRESS_QUEUE, LANES[1]]
    assert {run.state for run in runs} == {RunState.SUCCEEDED}
    assert begun == 1
    of_first, of_second = started(ledger, first)[begun:], started(ledger, second)
    for count in (5, 10, 15):  # dates of one begun by the time that so many of the other were
        assert count / 2 <= sum(moment <= of_second[count - 1] for moment in of_first) <= count * 2
