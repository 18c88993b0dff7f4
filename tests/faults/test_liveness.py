"""Workers and gates that are lost or frozen are replaced within 15 seconds by the default settings.

Every worker is on a host of its own, so that nobody sees the processes of another. There is no beat.
"""

from __future__ import annotations

import re
import signal
import time
from contextlib import ExitStack
from datetime import date

import pytest

from gated_backfill.common.broker.celery_app import make_app
from gated_backfill.common.broker.dispatcher import CeleryDispatcher
from gated_backfill.common.ledger import DateState, WindowState, open_ledger
from gated_backfill.common.process.file_lock import locked
from tests.hosts import lose_host, worker_of_owner, worker_on_own_host
from tests.lab import Lab, players, until
from tests.workers import wait_for_attempt

DAY = date(2023, 2, 20)
RUN = ("run", "--job", "probe", "--dates", str(DAY), "--detach")
RECOVERED_SECONDS = 15


@pytest.mark.parametrize("loss", [signal.SIGKILL, signal.SIGSTOP], ids=["lost", "frozen"])
def test_a_worker_and_a_gate_are_replaced_in_time_and_a_late_one_changes_nothing(
    lab: Lab, broker: str, postgres_url: str, loss: signal.Signals
) -> None:
    lab.probe_all([DAY], players(10), trick="wait")
    places = {"BACKFILL_BROKER": broker, "BACKFILL_LEDGER": postgres_url}
    ledger = open_ledger(postgres_url)
    seconds: dict[str, float] = {}
    with ExitStack() as stack:
        dates = [stack.enter_context(worker_on_own_host(lab, f"dates{n}", "backfill", places)) for n in range(2)]
        gates = [stack.enter_context(worker_on_own_host(lab, f"gate{n}", "gate,maintenance", places)) for n in range(2)]
        until(lambda: sum(one.is_worker for one in ledger.heartbeats.list_running()) == 4, "the workers")
        assert lab.command(*RUN, **places).returncode == 0
        (run,) = ledger.runs.list_latest_runs()

        with make_app(lab.settings, broker) as app:
            for _ in gates:  # both have done something before, as they do every few seconds where there is a beat
                CeleryDispatcher(app).send_reconcile(run.id)
        lost_worker = worker_of_owner(dates, wait_for_attempt(lab, ledger, run, 1).lease_owner)
        lose_host(lost_worker, loss)
        lost_at = time.monotonic()
        owner = wait_for_attempt(lab, ledger, run, 2).lease_owner
        seconds["worker"] = time.monotonic() - lost_at
        assert worker_of_owner(dates, owner) != lost_worker

        with locked(lab.home / "warehouse" / "probe" / "probe" / ".lock"):
            (lab.marks / "released").touch()
            closing = until(
                lambda: (found := ledger.windows.get_window(run.id, 1)).state is WindowState.CLOSING and found, "a gate"
            )
            lost_gate = worker_of_owner(gates, closing.lease_owner)
            lose_host(lost_gate, loss)
            lost_at = time.monotonic()
        until(lambda: ledger.runs.get_run(run.id).has_ended, "the end of the run")
        seconds["gate"] = time.monotonic() - lost_at
        silent = {one.name for one in ledger.heartbeats.list_silent(run.created_at) if one.is_worker}
        shown = lab.command("status", run.id, **places).stdout

        deaf = next(one for one in gates if one != lost_gate)
        with make_app(lab.settings, broker) as app:  # as Flower does
            app.control.cancel_consumer("gate", destination=[f"gate{gates.index(deaf)}@lab"])
        until(
            lambda: [one.unconsumed for one in ledger.heartbeats.list_running() if one.unconsumed] == [("gate",)],
            "the note that a gate takes no tasks any more",
        )

        before = lab.table_bytes("probe.probe"), ledger.dates.list_dates(run.id)
        if loss is signal.SIGSTOP:
            for frozen in (lost_worker, lost_gate):
                lose_host(frozen, signal.SIGCONT)
            until(lambda: not ledger.heartbeats.list_silent(run.created_at), "the return of the frozen ones")
        after = lab.table_bytes("probe.probe"), ledger.dates.list_dates(run.id)
    ledger.close()

    (row,) = before[1]
    assert max(seconds.values()) < RECOVERED_SECONDS, seconds
    assert (row.state, row.deaths, row.losses, row.attempt) == (DateState.CHECKPOINTED, 0, 1, 2)
    assert len(silent) == 2
    assert before == after
    for name in silent:
        assert re.search(rf"silent +{name} silent since [0-9:]{{8}} UTC, taken over at [0-9:]{{8}} UTC", shown), shown
    print(f"recovered after {seconds}")
