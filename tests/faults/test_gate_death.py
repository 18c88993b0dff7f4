"""The gate is killed with -9 between its steps: what it published is proven once, never rebuilt, never lost."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from gated_backfill.common.errors import WarehouseUnavailable
from gated_backfill.common.ledger import DateState, Run, RunState
from gated_backfill.common.model.publication import PublishResult
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.runs.release import release_run
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from gated_backfill.producer.planning.plan import PlanAction
from gated_backfill.producer.runs.undo import plan_undo, undo_run
from gated_backfill.worker.dependencies import Deps
from gated_backfill.worker.gate.gate import GateOutcome, close_window
from tests.builders import everyone_is_dead, process_date
from tests.lab import Lab, players
from tests.prepared import prepared_programs

DAYS = [date(2023, 2, 20) + timedelta(days=n) for n in range(3)]
TARGET = "probe.probe"

GATE_THAT_DIES = """
import os, signal, sys
from pathlib import Path
from gated_backfill.common.ledger import ledger
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.warehouse.local.loading import LoadingFolder
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from gated_backfill.worker.dependencies import open_deps
from gated_backfill.worker.gate.gate import close_window
from gated_backfill.worker.inline import InlineDispatcher

def die(*arguments, **named):
    if not (len(arguments) == 3 and not arguments[2]):
        os.kill(os.getpid(), signal.SIGKILL)

home, run, at = sys.argv[1:]
name = at.split(".")[1]
owner = {"LocalWarehouse": LocalWarehouse, "LoadingFolder": LoadingFolder}.get(at.split(".")[0])
owner = owner or getattr(ledger, at.split(".")[0])
setattr(owner, name, die)
close_window(run, 1, open_deps(Settings(home=Path(home)), InlineDispatcher()))
"""

DEATHS = [
    pytest.param("DateStore.record_verdicts", 0, id="before-its-verdicts-are-noted"),
    pytest.param("LocalWarehouse.publish", 0, id="before-it-publishes"),
    pytest.param("LocalWarehouse._exchange_prepared", 0, id="while-it-publishes"),
    pytest.param("DateStore.move_dates", 3, id="after-it-published"),
    pytest.param("CheckpointStore.write", 3, id="before-it-checkpoints"),
    pytest.param("WindowStore.release_window", 3, id="before-it-closes-the-window"),
]


@pytest.fixture
def opened(lab: Lab) -> tuple[Run, Deps]:
    """A run whose dates all wait for the gate."""
    lab.probe_all(DAYS, players(10))
    run, deps, _ = lab.opened(DAYS, "probe")
    for day in DAYS:
        process_date(run.id, day, deps)
    return run, deps


def kill_the_gate(lab: Lab, run: Run, at: str, *, is_seen: bool = False) -> None:
    """`is_seen`: its worker sees it die, and records that."""
    command = [prepared_programs() / "python-c", GATE_THAT_DIES, str(lab.home), run.id, at]
    died = subprocess.run(command, env=lab.environment(), capture_output=True, check=False, text=True)
    assert died.returncode == -9, died.stderr
    if is_seen:
        owner = lab.ledger.windows.get_window(run.id, 1).lease_owner
        assert lab.ledger.windows.record_death(run.id, 1, str(owner))


def written(lab: Lab) -> dict[Path, int]:
    """When each published file was written."""
    parts = (lab.home / "warehouse" / "probe" / "probe").glob("day=*/part.parquet")
    return {part: part.stat().st_mtime_ns for part in parts}


@pytest.mark.parametrize(("at", "published"), DEATHS)
def test_the_next_gate_completes_the_window_and_rewrites_nothing(
    lab: Lab, opened: tuple[Run, Deps], at: str, published: int
) -> None:
    staged, deps = opened
    kill_the_gate(lab, staged, at)
    before = written(lab)
    assert len(before) == published

    assert close_window(staged.id, 1, deps) is GateOutcome.CLOSED

    assert {row.state for row in deps.ledger.dates.list_dates(staged.id)} == {DateState.CHECKPOINTED}
    assert deps.ledger.runs.get_run(staged.id).state is RunState.SUCCEEDED
    assert len(lab.table_bytes(TARGET)) == len(DAYS)
    assert before.items() <= written(lab).items()


@pytest.mark.parametrize(
    ("at", "published"),
    [
        pytest.param("LocalWarehouse.publish", 0, id="before-it-publishes"),
        pytest.param("CheckpointStore.write", 3, id="after-it-published"),
    ],
)
def test_a_window_that_kills_every_gate_is_given_up_and_what_it_published_is_proven(
    lab: Lab, opened: tuple[Run, Deps], at: str, published: int
) -> None:
    staged, deps = opened
    for _ in range(deps.settings.max_deaths):
        kill_the_gate(lab, staged, at, is_seen=True)

    assert close_window(staged.id, 1, deps) is GateOutcome.CLOSED

    rows = deps.ledger.dates.list_dates(staged.id)
    left = "the gate died 3 times on it (out of memory, or a crash)"
    assert (
        len(deps.ledger.checkpoints.list_checkpoints("probe", DAYS[0], DAYS[-1]))
        == published
        == len(lab.table_bytes(TARGET))
    )
    assert {(row.state, row.error_kind) for row in rows} == (
        {(DateState.CHECKPOINTED, None)} if published else {(DateState.FAILED, "GateLost")}
    )
    assert published or {row.reason for row in rows} == {left}
    assert deps.ledger.runs.get_run(staged.id).state is (RunState.SUCCEEDED if published else RunState.FAILED)


def test_a_window_whose_gates_are_lost_is_gated_until_that_happens_too_often(
    lab: Lab, opened: tuple[Run, Deps]
) -> None:
    staged, deps = opened
    settings = deps.settings.model_copy(update={"max_deaths": 1, "max_losses": 2})
    kill_the_gate(lab, staged, "LocalWarehouse.publish")
    kill_the_gate(lab, staged, "LocalWarehouse.publish")

    assert close_window(staged.id, 1, replace(deps, settings=settings)) is GateOutcome.CLOSED

    (reason,) = {row.reason for row in deps.ledger.dates.list_dates(staged.id)}
    assert str(reason).startswith("the gate was lost 2 times on it, and no cause was reported")
    assert deps.ledger.windows.get_window(staged.id, 1).deaths == 0


def test_a_window_is_given_up_even_if_looking_up_what_it_published_kills_the_gate(
    lab: Lab, opened: tuple[Run, Deps]
) -> None:
    staged, deps = opened
    for _ in range(deps.settings.max_deaths + 1):
        kill_the_gate(lab, staged, "LocalWarehouse.matching_dates", is_seen=True)

    assert close_window(staged.id, 1, deps) is GateOutcome.CLOSED

    assert {row.state for row in deps.ledger.dates.list_dates(staged.id)} == {DateState.FAILED}
    assert deps.ledger.runs.get_run(staged.id).state is RunState.FAILED


def test_a_published_date_that_somebody_overwrote_is_built_again_not_checkpointed(
    lab: Lab, opened: tuple[Run, Deps]
) -> None:
    staged, deps = opened
    kill_the_gate(lab, staged, "CheckpointStore.write")
    kinds = {name: column.type for name, column in find_job("probe").target.columns.items()}
    lab.load(TARGET, DAYS[0], [{"name": "written by the daily job"}], kinds)

    assert close_window(staged.id, 1, deps) is GateOutcome.REQUEUED

    assert set(deps.ledger.checkpoints.list_checkpoints("probe", DAYS[0], DAYS[-1])) == set(DAYS[1:])
    (row,) = deps.ledger.dates.list_dates(staged.id, days=[DAYS[0]])
    assert row.state is DateState.QUEUED


@pytest.mark.parametrize(
    "at",
    [
        pytest.param("LoadingFolder._make", id="before-anything-was-replaced"),
        pytest.param("CheckpointStore.write", id="after-all-was-published"),
    ],
)
@pytest.mark.parametrize("has_rows", [True, False], ids=["rows-before", "no-rows-before"])
def test_rows_that_a_daily_job_writes_between_two_gates_come_back_with_an_undo(
    lab: Lab, at: str, has_rows: bool
) -> None:
    kinds = {name: column.type for name, column in find_job("probe").target.columns.items()}

    def write(value: float) -> None:
        lab.load(TARGET, DAYS[0], [{"name": name, "value": value} for name in players(10)], kinds)

    if has_rows:
        write(100.5)
    lab.probe_all(DAYS[:1], players(10))
    run, deps, _ = lab.opened(DAYS[:1], "probe")
    process_date(run.id, DAYS[0], deps)
    kill_the_gate(lab, run, at)
    write(700.5)

    assert close_window(run.id, 1, deps) is GateOutcome.REQUEUED
    process_date(run.id, DAYS[0], deps)
    assert close_window(run.id, 1, deps) is GateOutcome.CLOSED

    assert deps.ledger.runs.get_run(run.id).state is RunState.SUCCEEDED
    assert max(row["value"] for row in lab.published(TARGET, DAYS[0], "day")) < 100
    undo_run(plan_undo(run.id, lab.context), lab.context, "a test")
    assert {row["value"] for row in lab.published(TARGET, DAYS[0], "day")} == {700.5}


@pytest.mark.parametrize(("at", "published"), DEATHS)
def test_closing_the_run_proves_what_was_published_and_frees_the_rest(
    lab: Lab, opened: tuple[Run, Deps], at: str, published: int
) -> None:
    staged, deps = opened
    kill_the_gate(lab, staged, at)

    released = release_run(
        staged, find_job("probe"), deps.ledger, deps.warehouse, lab.context.staging, by="a test", reason="it died"
    )

    assert (released.checkpointed, released.unfinished) == (published, len(DAYS) - published)
    assert len(deps.ledger.checkpoints.list_checkpoints("probe", DAYS[0], DAYS[-1])) == published
    assert deps.ledger.runs.get_run(staged.id).state is RunState.CANCELLED
    assert deps.ledger.runs.find_conflicting_runs("probe", DAYS) == {}
    again = lab.run(DAYS, "probe") if published < len(DAYS) else None
    assert again is None or again.run.state is RunState.SUCCEEDED
    assert len(lab.table_bytes(TARGET)) == len(DAYS)


def test_closing_the_run_ends_a_published_date_that_somebody_wrote(lab: Lab, opened: tuple[Run, Deps]) -> None:
    staged, deps = opened
    kill_the_gate(lab, staged, "CheckpointStore.write")
    lab.keep_only(TARGET, DAYS[0], "name", "player001", "day")

    released = release_run(
        staged, find_job("probe"), deps.ledger, deps.warehouse, lab.context.staging, by="a test", reason="it died"
    )

    assert (released.checkpointed, released.unfinished) == (2, 1)
    assert lab.states(staged.id) == ["failed", "checkpointed", "checkpointed"]
    progress = deps.ledger.runs.get_progress(staged.id)
    assert progress.ended == progress.total
    assert [step.action for step in lab.plan(DAYS, "probe").steps_with(PlanAction.BUILD)] == [PlanAction.BUILD]
    assert lab.inside("status", staged.id).stdout.count("another writer changed them") == 1


class OvertakenWarehouse(LocalWarehouse):
    """A warehouse so slow that, before it has answered, another gate has the window and has sent its dates back."""

    def __init__(self, root: Path, run: Run, deps: Deps) -> None:
        super().__init__(root)
        self._of_run, self._deps = run, deps

    def publish(self, *arguments: Any, **named: Any) -> PublishResult:
        receipt = super().publish(*arguments, **named)
        later = utcnow() + timedelta(minutes=5)
        assert self._deps.ledger.windows.claim_window(self._of_run.id, 1, "another", later, is_dead=everyone_is_dead)
        for day in DAYS:
            self._deps.ledger.dates.move_date(self._of_run.id, day, expect=DateState.STAGED, to=DateState.QUEUED)
        return receipt


def test_a_gate_that_was_overtaken_proves_nothing(lab: Lab, opened: tuple[Run, Deps]) -> None:
    staged, deps = opened
    slow = replace(deps, warehouse=OvertakenWarehouse(lab.home / "warehouse", staged, deps))

    assert close_window(staged.id, 1, slow) is GateOutcome.NOT_CLAIMED

    assert {row.state for row in deps.ledger.dates.list_dates(staged.id)} == {DateState.QUEUED}
    assert deps.ledger.checkpoints.list_checkpoints("probe", DAYS[0], DAYS[-1]) == {}


class LostWarehouse(LocalWarehouse):
    """A warehouse that publishes and is out of reach before it can say so."""

    out_of_reach = False

    def publish(self, *arguments: Any, **named: Any) -> PublishResult:
        super().publish(*arguments, **named)
        self.out_of_reach = True
        raise WarehouseUnavailable("no answer")

    def matching_dates(self, *arguments: Any, **named: Any) -> frozenset[date]:
        if self.out_of_reach:
            raise WarehouseUnavailable("no answer")
        return super().matching_dates(*arguments, **named)


def test_dates_of_which_nobody_knows_whether_they_are_published_are_neither_failed_nor_proven(
    lab: Lab, opened: tuple[Run, Deps]
) -> None:
    staged, deps = opened
    lost = LostWarehouse(lab.home / "warehouse")

    assert close_window(staged.id, 1, replace(deps, warehouse=lost), is_last_attempt=True) is GateOutcome.NOT_READY
    assert {row.state for row in deps.ledger.dates.list_dates(staged.id)} == {DateState.STAGED}
    before = written(lab)
    assert close_window(staged.id, 1, deps) is GateOutcome.CLOSED

    assert {row.state for row in deps.ledger.dates.list_dates(staged.id)} == {DateState.CHECKPOINTED}
    assert written(lab) == before
