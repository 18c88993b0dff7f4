"""Heartbeats in the ledger: who lives, who was lost, and what others may take over."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from signal import SIGCONT, SIGSTOP

import pytest

from gated_backfill.common.ledger import DateState, Ledger
from gated_backfill.common.ledger.stores.heartbeats import Ending, Heartbeat
from gated_backfill.common.model.host_fault import FaultKind, HostFault
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.identity import is_suspended, process_identity
from tests.builders import FEB_23, LEASE, claim_date, claimed_date, queued_run
from tests.lab import until

WORKER, PROCESS = "elsewhere:1:1", "elsewhere:2:2"
QUEUES = ("gate", "maintenance")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits for its input to end."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def begin(ledger: Ledger) -> None:
    """A worker on another host, with one process that runs tasks."""
    ledger.heartbeats.register(WORKER, worker=WORKER, name="gate@elsewhere", queues=QUEUES)
    ledger.heartbeats.register(PROCESS, worker=WORKER, name="gate@elsewhere")


def beats(ledger: Ledger) -> dict[str, int]:
    return {one.owner: one.beats for one in ledger.heartbeats.list_running()}


def test_a_worker_renews_the_heartbeats_of_its_processes(ledger: Ledger) -> None:
    before = utcnow()
    begin(ledger)
    ledger.heartbeats.renew([WORKER, PROCESS])
    ledger.heartbeats.renew([WORKER])

    assert beats(ledger) == {WORKER: 2, PROCESS: 1}
    (worker,) = [one for one in ledger.heartbeats.list_running() if one.is_worker]
    assert (worker.name, worker.queues, worker.consumed, worker.unconsumed) == ("gate@elsewhere", QUEUES, QUEUES, ())
    assert before - timedelta(seconds=5) < worker.started_at < worker.seen_at <= worker.read_at


def test_a_queue_that_a_worker_no_longer_takes_tasks_from_is_known(ledger: Ledger) -> None:
    begin(ledger)
    ledger.heartbeats.renew([WORKER], consumed={WORKER: ["maintenance"]})
    (worker,) = [one for one in ledger.heartbeats.list_running() if one.is_worker]
    assert worker.unconsumed == ("gate",)


def test_what_keeps_a_host_from_working_is_known_until_it_is_mended_or_the_worker_begins_anew(ledger: Ledger) -> None:
    def worker() -> Heartbeat:
        (found,) = [one for one in ledger.heartbeats.list_running() if one.is_worker]
        return found

    fault = HostFault(kind=FaultKind.WRONG_STAGING, reason="/staging is not the staging of run r")
    begin(ledger)
    assert (worker().fault, worker().faulty_since) == (None, None)
    ledger.heartbeats.record_fault(WORKER, fault)
    ledger.heartbeats.renew([WORKER, PROCESS])
    assert worker().fault == fault
    assert " UTC: /staging is not the staging of run r" in worker().describe_fault()
    ledger.heartbeats.record_fault(WORKER, None)
    assert (worker().fault, worker().faulty_since) == (None, None)
    ledger.heartbeats.record_fault(WORKER, fault)
    begin(ledger)
    assert worker().fault is None


def test_who_was_renewed_meanwhile_is_not_ended(ledger: Ledger) -> None:
    begin(ledger)
    seen = beats(ledger)
    ledger.heartbeats.renew([WORKER])
    assert ledger.heartbeats.end(seen, Ending.SILENT) == [PROCESS]
    assert ledger.heartbeats.end(seen, Ending.SILENT) == []  # by another one that has seen the same
    assert list(beats(ledger)) == [WORKER]


def test_the_work_of_a_process_that_is_silent_is_given_to_others(ledger: Ledger) -> None:
    begin(ledger)
    run = queued_run(ledger)
    claimed_date(ledger, run, FEB_23, owner=PROCESS)
    assert claim_date(ledger, run, owner="other:1:1", is_dead=ledger.heartbeats.is_lost) is None

    ledger.heartbeats.end(beats(ledger), Ending.SILENT)

    assert claim_date(ledger, run, owner="other:1:1", is_dead=ledger.heartbeats.is_lost) is not None


def test_the_processes_of_a_silent_worker_are_lost_with_it(ledger: Ledger) -> None:
    begin(ledger)
    ledger.heartbeats.end({WORKER: 0}, Ending.SILENT)
    assert ledger.heartbeats.is_lost(PROCESS)
    ledger.heartbeats.renew([WORKER])
    assert not ledger.heartbeats.is_lost(PROCESS)


def test_a_process_that_was_only_frozen_goes_on_without_what_was_taken_over(ledger: Ledger) -> None:
    begin(ledger)
    run = queued_run(ledger)
    claimed_date(ledger, run, FEB_23, owner=PROCESS)
    ledger.heartbeats.end(beats(ledger), Ending.SILENT)
    assert claim_date(ledger, run, owner="other:1:1", is_dead=ledger.heartbeats.is_lost) is not None
    (worker, _) = ledger.heartbeats.list_silent(utcnow() - LEASE)
    assert " silent since " in worker.describe_silence()
    assert ", taken over at " in worker.describe_silence()

    own = [one.owner for one in ledger.heartbeats.list_running(worker=WORKER)]
    ledger.heartbeats.renew(own)

    assert sorted(beats(ledger)) == sorted([WORKER, PROCESS])
    assert ledger.heartbeats.list_silent(utcnow() - LEASE) == []
    assert not ledger.heartbeats.is_lost(PROCESS)
    assert not ledger.dates.move_date(run.id, FEB_23, expect=DateState.PROCESSING, to=DateState.STAGED, owner=PROCESS)


def test_a_worker_that_is_stopped_leaves_nothing_to_wait_for(ledger: Ledger) -> None:
    begin(ledger)
    ledger.heartbeats.end_worker(WORKER)
    assert ledger.heartbeats.is_lost(PROCESS)
    assert beats(ledger) == {}
    assert ledger.heartbeats.list_running(worker=WORKER) == []


def test_a_process_that_died_is_left_to_its_worker_as_long_as_that_lives(
    ledger: Ledger, child: subprocess.Popen[bytes]
) -> None:
    """The worker counts the death first; others do when it is dead itself."""
    worker, process = process_identity(child.pid), process_identity().replace(f":{os.getpid()}:", ":1:")
    ledger.heartbeats.register(process, worker=worker, name="dates@here")
    assert not ledger.heartbeats.is_lost(process)
    child.kill()
    child.wait()
    assert ledger.heartbeats.is_lost(process)


def test_without_a_heartbeat_only_a_process_of_this_host_is_known_to_be_dead(
    ledger: Ledger, child: subprocess.Popen[bytes]
) -> None:
    owner = process_identity(child.pid)
    assert not ledger.heartbeats.is_lost("elsewhere:9:9")
    assert not ledger.heartbeats.is_lost(owner)
    child.kill()
    child.wait()
    assert ledger.heartbeats.is_lost(owner)


def test_a_suspended_process_is_known(child: subprocess.Popen[bytes]) -> None:
    owner = process_identity(child.pid)
    assert not is_suspended(owner)
    child.send_signal(SIGSTOP)
    until(lambda: is_suspended(owner), "the suspension")
    child.send_signal(SIGCONT)
    until(lambda: not is_suspended(owner), "its end")
    assert not is_suspended("here:999999999:1")
