"""Gates that publish to one table take turns where their transactions would abort each other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import date, timedelta

import pytest
from structlog.testing import capture_logs

from gated_backfill.common.ledger import Run, RunState
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.identity import process_identity
from gated_backfill.common.warehouse.bigquery import client
from gated_backfill.common.warehouse.bigquery.warehouse import BigQueryWarehouse
from gated_backfill.producer.runs.launch import open_run
from gated_backfill.worker.dates.process import process_dates
from gated_backfill.worker.gate import publish_lease
from gated_backfill.worker.gate.gate import GateOutcome, advance_run, close_window
from tests.lab import Lab, until
from tests.rest_tables import FilledDouble, days_from, with_sources

PUBLISH = "backfill-publish-"  #: begins the ids of publications' jobs
TARGET = "probe.probe"
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish_lease, "POLL_SECONDS", (0.01, 0.02))
    monkeypatch.setattr(client, "CONFLICT_WAITS", (0.01, 0.02))


@pytest.fixture
def other_process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def staged_windows(lab: Lab, days: Sequence[date]) -> Run:
    """A run whose windows, of one date each, wait for their gates."""
    job, plan, deps = find_job("probe"), lab.plan(days, "probe"), lab.opened_again()
    options = RunOptions.for_job(
        job, window=1, in_flight=len(days), fallback=None, forced_because=None, calendar=plan.has_calendar
    )
    run = open_run(plan, job, options, lab.context, owned=True)
    deps.ledger.runs.move_run(run.id, expect=[RunState.PLANNED], to=RunState.RUNNING)
    advance_run(run, job, deps)
    for day in days:
        process_dates(run.id, [day], deps)
    return run


def start_gate(threads: ThreadPoolExecutor, lab: Lab, run: Run, window: int) -> Future[GateOutcome]:
    """A gate of another host, so that nobody here can tell that it is dead."""
    deps = replace(lab.opened_again(), owner=f"host-{window}:1:1")
    return threads.submit(close_window, run.id, window, deps)


@pytest.mark.parametrize("takes_turns", [True, False])
def test_two_gates_publish_without_a_conflict(
    rest_lab: Lab, filled: FilledDouble, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, takes_turns: bool
) -> None:
    monkeypatch.setattr(BigQueryWarehouse, "publications_conflict", takes_turns)
    days, double = days_from(3), filled.double
    with_sources(filled, days)
    rest_lab.run(days[:1], "probe")  # which creates the target
    run = staged_windows(rest_lab, days[1:])
    double.log.clear()
    double.hold(PUBLISH)
    with capture_logs() as logs:
        first = start_gate(threads, rest_lab, run, 1)
        until(lambda: double.calls("jobs.insert", PUBLISH), "the first publication")
        second = start_gate(threads, rest_lab, run, 2)
        waits = {"event": "publication_waits", "target": TARGET}
        if takes_turns:
            until(lambda: [log for log in logs if log | waits == log], "the second gate to wait")
        else:
            until(lambda: len(double.calls("jobs.insert", PUBLISH)) > 2, "the second publication to be aborted")
        double.let_go(PUBLISH)
        assert [first.result(60), second.result(60)] == [GateOutcome.CLOSED, GateOutcome.CLOSED]
    assert rest_lab.states(run.id) == ["checkpointed", "checkpointed"]
    assert (len(double.calls("jobs.insert", PUBLISH)) == 2) is takes_turns


def test_a_gate_that_dies_while_it_publishes_keeps_nobody_waiting(
    rest_lab: Lab, filled: FilledDouble, threads: ThreadPoolExecutor, other_process: subprocess.Popen[bytes]
) -> None:
    with_sources(filled, days_from(1))
    run = staged_windows(rest_lab, days_from(1))
    holder = process_identity(other_process.pid)
    assert rest_lab.ledger.targets.claim_publishing(TARGET, holder, utcnow() + HOUR, is_dead=lambda _: False)
    with capture_logs() as logs:
        gate = start_gate(threads, rest_lab, run, 1)
        until(lambda: any(log["event"] == "publication_waits" for log in logs), "the gate to wait")
        assert not gate.done()
        other_process.kill()
        assert gate.result(60) is GateOutcome.CLOSED
    assert rest_lab.states(run.id) == ["checkpointed"]
    is_free = rest_lab.ledger.targets.claim_publishing(TARGET, "next", utcnow() + HOUR, is_dead=lambda _: False)
    assert is_free, "the gate kept the lease"


def test_a_gate_that_waited_in_vain_publishes_all_the_same(
    rest_lab: Lab, filled: FilledDouble, threads: ThreadPoolExecutor
) -> None:
    settings = rest_lab.settings.model_copy(update={"gate_lease_seconds": 0.3, "warehouse_job_seconds": 0.1})
    with_sources(filled, days_from(1))
    run = staged_windows(rest_lab, days_from(1))
    rest_lab.ledger.targets.claim_publishing(TARGET, "frozen-host:1:1", utcnow() + HOUR, is_dead=lambda _: False)
    with capture_logs() as logs:
        deps = replace(rest_lab.opened_again(), settings=settings)
        assert close_window(run.id, 1, deps) is GateOutcome.CLOSED
    assert "publication_waited_in_vain" in {log["event"] for log in logs}
    assert rest_lab.states(run.id) == ["checkpointed"]


def test_a_gate_whose_run_is_cancelled_waits_no_longer(
    rest_lab: Lab, filled: FilledDouble, threads: ThreadPoolExecutor
) -> None:
    with_sources(filled, days_from(1))
    run = staged_windows(rest_lab, days_from(1))
    rest_lab.ledger.targets.claim_publishing(TARGET, "other-host:1:1", utcnow() + HOUR, is_dead=lambda _: False)
    with capture_logs() as logs:
        gate = start_gate(threads, rest_lab, run, 1)
        until(lambda: any(log["event"] == "publication_waits" for log in logs), "the gate to wait")
        rest_lab.ledger.windows.end_leases(run.id)
        assert gate.result(60) is GateOutcome.NOT_CLAIMED
    assert not filled.double.calls("jobs.insert", PUBLISH)


def test_gates_of_a_local_warehouse_do_not_wait(lab: Lab) -> None:
    days = days_from(1)
    lab.probe_all(days, ["ann"])
    run, deps, _ = lab.opened(days, "probe")
    process_dates(run.id, days, deps)
    lab.ledger.targets.claim_publishing(TARGET, "other-host:1:1", utcnow() + HOUR, is_dead=lambda _: False)
    with capture_logs() as logs:
        assert close_window(run.id, 1, deps) is GateOutcome.CLOSED
    assert "publication_waits" not in {log["event"] for log in logs}
