"""A gate that was frozen while it published has no effect once its window was taken over, or its run was ended."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from gated_backfill.common.errors import UserError, WarehouseUnavailable
from gated_backfill.common.ledger import DateState, Run
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.runs.release import release_run
from gated_backfill.producer.planning.plan import Reprocess
from gated_backfill.worker.dates.process import process_dates
from gated_backfill.worker.dependencies import Deps
from gated_backfill.worker.gate import gate
from gated_backfill.worker.gate.gate import GateOutcome, close_window
from tests.builders import FEB_23
from tests.lab import Lab, players

TARGET = "probe.probe"


def staged_run(lab: Lab) -> tuple[Run, Deps]:
    """A run whose date waits for the gate, of a target that has other rows on the date."""
    lab.probe_all([FEB_23], players(4))
    lab.run([FEB_23], "probe")
    lab.probe_all([FEB_23], players(4), lowest=50.0)
    run, deps, _ = lab.opened([FEB_23], "probe", reprocess=Reprocess.ALL)
    process_dates(run.id, [FEB_23], deps)
    return run, deps


def published_rows(lab: Lab) -> Any:
    return lab.published(TARGET, FEB_23, "day")


def freeze_publication(lab: Lab, deps: Deps, meanwhile: Callable[[], None]) -> None:
    """Have that happen while the process publishes, just before the publication takes effect.

    In BigQuery, that is before its transaction. Local files are exchanged under the table's lock, so nothing else can
    be published after it is taken: there it is before that.
    """
    warehouse: Any = deps.warehouse
    owner, name = (warehouse._jobs, "run_script") if lab.settings.warehouse else (warehouse, "publish")
    continue_publication = getattr(owner, name)

    def frozen(*arguments: Any, **named: Any) -> Any:
        setattr(owner, name, continue_publication)
        expire_leases(lab)
        meanwhile()
        return continue_publication(*arguments, **named)

    setattr(owner, name, frozen)


def expire_leases(lab: Lab) -> None:
    lab.change_ledger("UPDATE windows SET lease_until = :expired", expired=utcnow() - timedelta(seconds=1))


def another_gate(lab: Lab, run: Run, **options: Any) -> GateOutcome:
    return close_window(run.id, 1, replace(lab.opened_again(), owner="otherhost:1:1"), **options)


def block_the_date(lab: Lab, run: Run) -> None:
    lab.probe("expected", FEB_23, players(5))
    assert another_gate(lab, run) is GateOutcome.CLOSED


def abandon_the_window(lab: Lab, run: Run) -> None:
    lab.change_ledger("UPDATE windows SET deaths = :deaths", deaths=lab.settings.max_deaths)
    assert another_gate(lab, run) is GateOutcome.CLOSED


def release_the_run(lab: Lab, run: Run) -> None:
    context = lab.context
    release_run(
        run, find_job(run.job), context.ledger, context.warehouse, context.staging, by="a test", reason="it died"
    )


def fail_without_the_job(lab: Lab, run: Run) -> None:
    def not_installed(name: str) -> None:
        raise UserError(f"no job {name}")

    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.setattr(gate, "find_job", not_installed)
        assert another_gate(lab, run, is_last_attempt=True) is GateOutcome.CLOSED


ENDS = [
    pytest.param(block_the_date, DateState.BLOCKED, id="blocked"),
    pytest.param(abandon_the_window, DateState.FAILED, id="abandoned"),
    pytest.param(release_the_run, DateState.CANCELLED, id="released"),
]


@pytest.mark.parametrize(
    ("end", "state"), [*ENDS, pytest.param(fail_without_the_job, DateState.FAILED, id="without-job")]
)
def test_a_frozen_gate_publishes_nothing_after_its_window_has_ended_without_a_publication(
    any_lab: Lab, end: Callable[[Lab, Run], None], state: DateState
) -> None:
    lab = any_lab
    run, frozen = staged_run(lab)
    before = published_rows(lab)

    def end_the_window() -> None:
        end(lab, run)
        assert lab.states(run.id) == [state.value]

    freeze_publication(lab, frozen, end_the_window)

    assert close_window(run.id, 1, frozen) is GateOutcome.NOT_CLAIMED

    assert published_rows(lab) == before
    assert lab.states(run.id) == [state.value]


@pytest.mark.parametrize("end", [block_the_date, abandon_the_window, release_the_run])
def test_a_gate_that_is_frozen_between_the_steps_of_its_publication_is_waited_for(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, end: Callable[[Lab, Run], None]
) -> None:
    """It holds the lock of the table, and its rows are prepared. What it publishes when it continues is proven."""
    run, frozen = staged_run(lab)
    before = published_rows(lab)
    warehouse: Any = frozen.warehouse
    exchange = warehouse._exchange_prepared
    with ThreadPoolExecutor(1) as elsewhere:

        def continued(*arguments: Any) -> Any:
            expire_leases(lab)
            ended.append(elsewhere.submit(end, lab, run))
            with suppress(StillRunning):
                ended[0].result(timeout=1)
            return exchange(*arguments)

        ended: list[Future[None]] = []
        monkeypatch.setattr(warehouse, "_exchange_prepared", continued)
        assert close_window(run.id, 1, frozen) is GateOutcome.NOT_CLAIMED
        ended[0].result(timeout=30)

    assert published_rows(lab) != before
    assert lab.states(run.id) == ["checkpointed"]


def test_a_gate_that_does_not_know_whether_it_published_fails_no_date_that_may_be_published_later(any_lab: Lab) -> None:
    """The warehouse's answer is lost, and its job goes on after the gate has failed the date."""
    lab = any_lab
    run, deps = staged_run(lab)
    before = published_rows(lab)
    warehouse: Any = deps.warehouse
    owner, name = (warehouse._jobs, "run_script") if lab.settings.warehouse else (warehouse, "publish")
    real: Any = getattr(owner, name)
    late: list[Callable[[], Any]] = []

    def lost(*arguments: Any, **named: Any) -> Any:
        setattr(owner, name, real)
        late.append(lambda: real(*arguments, **named))
        raise WarehouseUnavailable("no answer")

    setattr(owner, name, lost)
    assert close_window(run.id, 1, deps, is_last_attempt=True) is GateOutcome.CLOSED
    assert {row.state for row in deps.ledger.dates.list_dates(run.id)} == {DateState.FAILED}

    with pytest.raises(Exception, match="taken over"):
        late[0]()
    assert published_rows(lab) == before
