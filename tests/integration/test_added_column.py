"""A column that is added to the target on BigQuery changes no row: dates stay done and can be undone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import date

import pytest
from google.cloud import bigquery

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.ledger import DateState, RunState
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.tables import Column, TableName
from gated_backfill.common.warehouse.bigquery.warehouse import BigQueryWarehouse
from gated_backfill.producer.planning.plan import PlanAction, Reprocess, make_plan
from gated_backfill.producer.runs.undo import plan_undo, undo_run
from gated_backfill.producer.tables.create import create_tables
from gated_backfill.worker.dates.process import process_dates
from gated_backfill.worker.gate.gate import GateOutcome, close_window
from tests.builders import FEB_23, FEB_24, FEB_25
from tests.emulator import Emulator
from tests.lab import Lab, players

DAYS = [FEB_23, FEB_24]


def add_column(lab: Lab, emulator: Emulator, name: str) -> None:
    client = emulator.client()
    table = client.get_table("test-project.probe.probe")
    table.schema = [*table.schema, bigquery.SchemaField(name, "STRING")]
    client.update_table(table, ["schema"])
    warehouse = lab.context.warehouse
    assert isinstance(warehouse, BigQueryWarehouse)
    warehouse._tables.forget_descriptions()


@pytest.mark.parametrize("name", ["note", "a_note"])
def test_dates_stay_done_and_can_be_undone_when_a_column_is_added(
    bigquery_lab: Lab, emulator: Emulator, name: str
) -> None:
    lab = bigquery_lab
    lab.probe_all(DAYS, players(4))
    first = lab.run(DAYS, "probe").run
    before = lab.published("probe.probe", FEB_23, "day")
    lab._load_probe("first", [FEB_23], players(4), lowest=50.0)
    second = lab.run([FEB_23], "probe", reprocess=Reprocess.ALL).run
    assert second.state is RunState.SUCCEEDED
    add_column(lab, emulator, name)
    add_column(lab, emulator, f"{name}_too")

    plan = make_plan(lab.request(DAYS, "probe"), find_job("probe"), lab.context.warehouse, lab.ledger)
    assert [step.action for step in plan.steps] == [PlanAction.DONE, PlanAction.DONE]

    assert undo_run(plan_undo(second.id, lab.context), lab.context, "a test") == [FEB_23]
    restored = [{name: row[name] for name in before[0]} for row in lab.published("probe.probe", FEB_23, "day")]
    assert sorted(restored, key=str) == sorted(before, key=str)
    checkpoints = lab.ledger.checkpoints.list_checkpoints("probe", FEB_23, FEB_24)
    assert {checkpoint.run_id for checkpoint in checkpoints.values()} == {first.id}
    plan = make_plan(lab.request(DAYS, "probe"), find_job("probe"), lab.context.warehouse, lab.ledger)
    assert {step.action for step in plan.steps} <= {PlanAction.DONE, PlanAction.STALE}
    undo_run(plan_undo(first.id, lab.context), lab.context, "a test")
    assert emulator.rows("probe.probe") == []


def built_twice(lab: Lab) -> tuple[str, str]:
    """Build a date, then build it again from other rows; return the ids of both runs."""
    lab.probe_all(DAYS, players(4))
    first = lab.run(DAYS, "probe").run
    lab._load_probe("first", [FEB_23], players(4), lowest=50.0)
    return first.id, lab.run([FEB_23], "probe", reprocess=Reprocess.ALL).run.id


def test_an_undo_killed_after_it_restored_rows_is_completed_when_a_column_was_added(
    bigquery_lab: Lab, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = bigquery_lab
    first, second = built_twice(lab)
    add_column(lab, emulator, "note")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lab.ledger.checkpoints, "reinstate", die)
        with pytest.raises(KeyboardInterrupt):
            undo_run(plan_undo(second, lab.context), lab.context, "a test")

    plan = plan_undo(second, lab.context)
    assert (plan.unchanged, plan.written) == ((FEB_23,), {})
    assert undo_run(plan, lab.context, "a test") == [FEB_23]
    checkpoints = lab.ledger.checkpoints.list_checkpoints("probe", FEB_23, FEB_24)
    assert {checkpoint.run_id for checkpoint in checkpoints.values()} == {first}


@pytest.mark.parametrize("restored", [False, True], ids=["before-the-restore", "after-the-restore"])
def test_a_column_added_after_the_undo_was_planned_does_not_stop_it(
    bigquery_lab: Lab, emulator: Emulator, *, restored: bool
) -> None:
    lab = bigquery_lab
    _, second = built_twice(lab)
    plan = plan_undo(second, lab.context)
    if restored:
        assert lab.context.warehouse.restore(plan.target, "day", second, plan.restored, generation=1) == {FEB_23}
    add_column(lab, emulator, "note")

    assert lab.context.warehouse.restore(plan.target, "day", second, plan.restored, generation=2) == {FEB_23}


def test_dates_stay_done_and_can_be_undone_when_a_column_is_added_to_files(lab: Lab) -> None:
    lab.probe_all(DAYS, players(4))
    first = lab.run(DAYS, "probe").run
    before = lab.table_bytes("probe.probe")
    lab._load_probe("first", [FEB_23], players(4), lowest=50.0)
    second = lab.run([FEB_23], "probe", reprocess=Reprocess.ALL).run
    lab.context.warehouse.add_columns(TableName("probe", "probe"), {"note": "STRING"})

    plan = make_plan(lab.request(DAYS, "probe"), find_job("probe"), lab.context.warehouse, lab.ledger)
    assert [step.action for step in plan.steps] == [PlanAction.DONE, PlanAction.DONE]
    undo_run(plan_undo(second.id, lab.context), lab.context, "a test")
    assert lab.table_bytes("probe.probe") == before
    undo_run(plan_undo(first.id, lab.context), lab.context, "a test")
    assert lab.table_bytes("probe.probe") == {}


def test_a_published_date_is_recognised_when_a_column_is_added(any_lab: Lab) -> None:
    lab = any_lab
    lab.probe_all(DAYS, players(4))
    run, deps, _ = lab.opened(DAYS, "probe")
    process_dates(run.id, DAYS, deps)

    def die(run_id: str, days: Collection[date], **_: object) -> list[date]:
        if days:
            raise KeyboardInterrupt
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deps.ledger.checkpoints, "write", die)
        with pytest.raises(KeyboardInterrupt):
            close_window(run.id, 1, deps)
    lab.context.warehouse.add_columns(TableName("probe", "probe"), {"note": "STRING"})

    assert close_window(run.id, 1, lab.opened_again()) is GateOutcome.CLOSED
    assert {row.state for row in lab.ledger.dates.list_dates(run.id)} == {DateState.CHECKPOINTED}


def test_a_value_in_the_added_column_is_a_change(bigquery_lab: Lab, emulator: Emulator) -> None:
    lab = bigquery_lab
    lab.probe_all(DAYS, players(4))
    lab.run(DAYS, "probe")
    add_column(lab, emulator, "note")
    emulator.run("UPDATE probe.probe SET note = 'by hand' WHERE day = DATE '2023-02-24'")

    target, checkpoints = TableName("probe", "probe"), lab.ledger.checkpoints.list_checkpoints("probe", FEB_23, FEB_24)
    checksums = {day: checkpoint.checksum for day, checkpoint in checkpoints.items()}

    assert lab.context.warehouse.matching_dates(target, "day", checksums) == {FEB_23}


def test_a_plan_refuses_to_build_into_a_target_with_other_columns(bigquery_lab: Lab, emulator: Emulator) -> None:
    lab = bigquery_lab
    lab.probe_all([*DAYS, FEB_25], players(4))
    lab.run(DAYS, "probe")
    add_column(lab, emulator, "note")

    assert lab.plan(DAYS, "probe").steps_with(PlanAction.DONE)
    with pytest.raises(
        SchemaMismatch, match=r"probe\.probe: the target is not as job probe declares it: it has the column"
    ):
        lab.plan([*DAYS, FEB_25], "probe")


def test_the_columns_that_a_new_version_writes_are_added(bigquery_lab: Lab, emulator: Emulator) -> None:
    lab = bigquery_lab
    lab.probe_all(DAYS, players(4))
    lab.run(DAYS, "probe")
    probe = find_job("probe")
    target = replace(probe.target, columns={**probe.target.columns, "grade": Column(type="STRING", nullable=True)})
    newer = replace(probe, version="2", target=target)
    warehouse, request = lab.context.warehouse, lab.request(DAYS, "probe", reprocess=Reprocess.STALE)

    with pytest.raises(SchemaMismatch, match=r"it lacks the column\(s\) grade: change the table .*--add-columns"):
        make_plan(request, newer, warehouse, lab.ledger)
    with pytest.raises(SchemaMismatch):
        create_tables(warehouse, [newer])
    create_tables(warehouse, [newer], add_columns=True)

    assert [step.action for step in make_plan(request, newer, warehouse, lab.ledger).steps] == [PlanAction.BUILD] * 2
    stale = make_plan(lab.request(DAYS, "probe"), newer, warehouse, lab.ledger)
    assert [step.action for step in stale.steps] == [PlanAction.STALE] * 2
