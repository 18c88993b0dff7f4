"""Rows that a run or an undo removed: listed, and put back by a command."""

from __future__ import annotations

import json
import shutil
from datetime import date, timedelta
from typing import Any

import pytest

from gated_backfill.common.errors import BackupMissing, DatesInUse, SchemaMismatch, UserError
from gated_backfill.common.ledger import Ledger
from gated_backfill.common.warehouse.bigquery.warehouse import BigQueryWarehouse
from gated_backfill.common.warehouse.protocol import Warehouse
from gated_backfill.producer.planning.plan import PlanAction, Reprocess
from gated_backfill.producer.runs.undo import plan_undo, undo_run
from gated_backfill.producer.tables.kept_rows import plan_kept_restore, restore_kept_rows
from tests.builders import FEB_23, FEB_24, JOB, checkpointed_date, queued_run, undo_begun
from tests.emulator import Emulator
from tests.lab import Lab, players

DAYS = [FEB_23, FEB_24]
TARGET = "probe.probe"


def kept_rows(lab: Lab, *options: str) -> list[dict[str, Any]]:
    done = lab.inside("kept", "list", TARGET, "--json", *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def built_twice(lab: Lab) -> tuple[dict[str, bytes], str]:
    """What the target held after a first run, and a second run that replaced it."""
    lab.probe_all(DAYS, players(20))
    lab.run(DAYS, "probe")
    before = lab.table_bytes(TARGET)
    lab.probe_all(DAYS, players(20), lowest=0.5)
    return before, lab.run(DAYS, "probe", reprocess=Reprocess.ALL).run.id


def checkpoint_runs(lab: Lab) -> dict[date, str]:
    """The run of each date's checkpoint."""
    checkpoints = lab.ledger.checkpoints.list_checkpoints("probe", *DAYS)
    return {day: checkpoint.run_id for day, checkpoint in checkpoints.items()}


def without_column(emulator: Emulator, warehouse: Warehouse, name: str) -> None:
    """Drop a column of the target."""
    client = emulator.client()
    table = client.get_table(f"test-project.{TARGET}")
    table.schema = [field for field in table.schema if field.name != name]
    emulator.run(f"CREATE TABLE probe.copied AS SELECT * EXCEPT ({name}) FROM {TARGET}")
    client.delete_table(table.reference)
    client.create_table(table)
    emulator.run(f"INSERT INTO {TARGET} SELECT * FROM probe.copied")
    assert isinstance(warehouse, BigQueryWarehouse)
    warehouse._tables.forget_descriptions()


def test_replaced_rows_are_listed_and_put_back_and_stay(any_lab: Lab) -> None:
    before, second = built_twice(any_lab)
    after = any_lab.table_bytes(TARGET)
    listed = kept_rows(any_lab)
    assert {(rows["date"], rows["rows"], rows["removed_by"]) for rows in listed} == {
        (str(day), 20, f"run {second}") for day in DAYS
    }
    (of_day,) = kept_rows(any_lab, "--start-date", str(FEB_24), "--end-date", str(FEB_24))

    assert any_lab.inside("kept", "restore", TARGET, of_day["id"], "--dry-run").returncode == 0
    assert any_lab.inside("kept", "restore", TARGET, of_day["id"]).returncode == 2
    assert any_lab.table_bytes(TARGET) == after
    done = any_lab.inside("kept", "restore", TARGET, of_day["id"], "--yes")

    assert done.returncode == 0, done.stderr
    assert "20 row(s), removed by run" in done.stdout
    assert "its checkpoint is removed: `backfill coverage --job probe --dates 2023-02-24`" in done.stdout
    restored = any_lab.table_bytes(TARGET)
    assert [restored[name] == before[name] for name in sorted(restored)] == [False, True]
    assert [step.action for step in any_lab.plan(DAYS, "probe").steps] == [PlanAction.DONE, PlanAction.UNDONE]
    (replaced, *_) = kept_rows(any_lab, "--start-date", str(FEB_24))
    assert (replaced["removed_by"], replaced["rows"]) == ("restore of kept rows", 20)
    again = any_lab.inside("kept", "restore", TARGET, of_day["id"], "--yes")
    assert (again.returncode, "there is nothing to restore" in again.stderr) == (2, True)


def test_what_an_undo_removed_can_be_put_back(lab: Lab) -> None:
    lab.probe_all(DAYS, players(20))
    run = lab.run(DAYS, "probe").run
    whole = lab.table_bytes(TARGET)
    undo_run(plan_undo(run.id, lab.context), lab.context, "a test")
    assert lab.table_bytes(TARGET) == {}

    for rows in kept_rows(lab):
        assert rows["removed_by"] == f"undo of run {run.id}"
        assert lab.inside("kept", "restore", TARGET, rows["id"], "--yes").returncode == 0

    assert lab.table_bytes(TARGET) == whole


def test_a_run_of_which_a_date_was_put_back_is_not_undone_in_part(lab: Lab) -> None:
    _, second = built_twice(lab)
    plan = plan_kept_restore(TARGET, kept_rows(lab)[0]["id"], lab.context)
    restore_kept_rows(plan, lab.context, "ada")
    shown = " ".join(lab.inside("status", second).stdout.split())
    assert f"by ada: 1 date(s), {plan.kept.day}" in shown
    assert "in part only" not in shown

    (other,) = {*DAYS} - {plan.kept.day}
    lab.keep_only(TARGET, other, "name", "player001", "day")
    with pytest.raises(UserError, match=f"has written 1 of its dates since: {other}; nothing was changed"):
        plan_undo(second, lab.context)


def test_a_date_that_was_written_meanwhile_is_left_alone(lab: Lab) -> None:
    built_twice(lab)
    plan = plan_kept_restore(TARGET, kept_rows(lab)[0]["id"], lab.context)
    lab.keep_only(TARGET, plan.kept.day, "name", "player001", "day")
    written, proven = lab.table_bytes(TARGET), checkpoint_runs(lab)

    with pytest.raises(UserError, match="was written by another program in the meantime"):
        restore_kept_rows(plan, lab.context, "a test")

    assert (lab.table_bytes(TARGET), checkpoint_runs(lab)) == (written, proven)


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_a_checkpoint_that_was_written_after_the_plan_is_left_alone(any_lab: Lab, *, has_checkpoint: bool) -> None:
    """A later run builds the same rows again, while the command waits for its confirmation."""
    built_twice(any_lab)
    kept_id = kept_rows(any_lab)[0]["id"]
    checkpoints = any_lab.ledger.checkpoints
    if not has_checkpoint:
        for day, run_id in checkpoint_runs(any_lab).items():
            assert checkpoints.withdraw_date("probe", day, "a test", run_id=run_id)
    plan = plan_kept_restore(TARGET, kept_id, any_lab.context)
    later = any_lab.run(DAYS, "probe", reprocess=Reprocess.ALL).run.id
    rows = any_lab.table_bytes(TARGET)

    with pytest.raises(DatesInUse, match=f"run {later} has checkpointed {plan.kept.day} meanwhile"):
        restore_kept_rows(plan, any_lab.context, "a test")

    assert (any_lab.table_bytes(TARGET), checkpoint_runs(any_lab)) == (rows, dict.fromkeys(DAYS, later))
    assert checkpoints.list_undone("probe", *DAYS) == {}


def test_a_restore_whose_rows_expire_before_it_changes_nothing(any_lab: Lab) -> None:
    built_twice(any_lab)
    plan = plan_kept_restore(TARGET, kept_rows(any_lab)[0]["id"], any_lab.context)
    proven = checkpoint_runs(any_lab)
    warehouse = any_lab.context.warehouse
    if isinstance(warehouse, BigQueryWarehouse):
        for name in warehouse._tables.list_own("undo_"):
            warehouse._tables.drop(warehouse._tables.own(name))
    else:
        shutil.rmtree(any_lab.home / "warehouse" / ".undo")

    with pytest.raises(BackupMissing, match="have expired"):
        restore_kept_rows(plan, any_lab.context, "a test")

    assert checkpoint_runs(any_lab) == proven


def test_a_restore_of_a_column_that_the_table_lacks_changes_nothing(bigquery_lab: Lab, emulator: Emulator) -> None:
    lab = bigquery_lab
    built_twice(lab)
    kept_id = kept_rows(lab)[0]["id"]
    plan, proven = plan_kept_restore(TARGET, kept_id, lab.context), checkpoint_runs(lab)
    without_column(emulator, lab.context.warehouse, "value")

    for restore in (
        lambda: restore_kept_rows(plan, lab.context, "a test"),
        lambda: plan_kept_restore(TARGET, kept_id, lab.context),
    ):
        with pytest.raises(SchemaMismatch, match="value"):
            restore()

    assert checkpoint_runs(lab) == proven


@pytest.mark.parametrize("restored", [False, True], ids=["before-the-restore", "after-the-restore"])
def test_a_restore_that_died_is_completed_by_the_next(
    any_lab: Lab, monkeypatch: pytest.MonkeyPatch, *, restored: bool
) -> None:
    before, _ = built_twice(any_lab)
    listed = kept_rows(any_lab)
    warehouse = any_lab.context.warehouse
    put_back = warehouse.restore_kept

    def die(*arguments: Any, **named: Any) -> None:
        if restored:
            put_back(*arguments, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(warehouse, "restore_kept", die)
        for rows in listed:
            with pytest.raises(KeyboardInterrupt):
                restore_kept_rows(plan_kept_restore(TARGET, rows["id"], any_lab.context), any_lab.context, "ada")

    for rows in listed:
        if restored:
            with pytest.raises(UserError, match="there is nothing to restore"):
                plan_kept_restore(TARGET, rows["id"], any_lab.context)
        else:
            assert not restore_kept_rows(plan_kept_restore(TARGET, rows["id"], any_lab.context), any_lab.context, "ada")

    assert any_lab.table_bytes(TARGET) == before
    assert (checkpoint_runs(any_lab), sorted(any_lab.ledger.checkpoints.list_undone("probe", *DAYS))) == ({}, DAYS)


def test_a_checkpoint_that_was_written_while_the_restore_was_frozen_is_removed(
    any_lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run builds the same rows again between the removal of the date's checkpoint and the restore of its rows."""
    before, _ = built_twice(any_lab)
    warehouse = any_lab.context.warehouse
    put_back = warehouse.restore_kept

    def build_first(*arguments: Any, **named: Any) -> bool:
        any_lab.run(DAYS, "probe", reprocess=Reprocess.ALL)
        return put_back(*arguments, **named)

    listed = kept_rows(any_lab)
    with monkeypatch.context() as patch:
        patch.setattr(warehouse, "restore_kept", build_first)
        assert restore_kept_rows(plan_kept_restore(TARGET, listed[0]["id"], any_lab.context), any_lab.context, "ada")

    day = date.fromisoformat(listed[0]["date"])
    (other,) = set(DAYS) - {day}
    rows_of_day = [name for name in before if str(day) in name]
    assert rows_of_day
    assert all(any_lab.table_bytes(TARGET)[name] == before[name] for name in rows_of_day)
    assert (list(checkpoint_runs(any_lab)), list(any_lab.ledger.checkpoints.list_undone("probe", *DAYS))) == (
        [other],
        [day],
    )


def test_rows_of_a_date_that_a_run_is_at_work_on_are_left_alone(lab: Lab) -> None:
    built_twice(lab)
    rows, proven = lab.table_bytes(TARGET), lab.ledger.checkpoints.list_checkpoints("probe", *DAYS)
    kept_id = kept_rows(lab)[0]["id"]
    lab.probe_all([FEB_24 + timedelta(days=1)], players(3))
    queued_run(lab.ledger, DAYS, job="probe")

    refused = lab.inside("kept", "restore", TARGET, kept_id, "--yes")

    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "is active and holds 1 of these dates" in refused.stderr
    assert (lab.table_bytes(TARGET), lab.ledger.checkpoints.list_checkpoints("probe", *DAYS)) == (rows, proven)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(
            ("restore", TARGET, "no-such-id", "--yes"), "`backfill kept list probe.probe` lists the ids", id="id"
        ),
        pytest.param(("list", "probe.nothing"), "no such table", id="table"),
        pytest.param(("list", TARGET, "--start-date", "yesterday"), "yesterday", id="date"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(lab: Lab, arguments: tuple[str, ...], says: str) -> None:
    lab.probe_all(DAYS, players(20))
    lab.run(DAYS, "probe")
    refused = lab.inside("kept", *arguments)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert says in refused.stderr


def test_a_table_shows_kept_rows_with_the_time_until_which_they_are_kept(lab: Lab) -> None:
    _, second = built_twice(lab)
    shown = lab.inside("kept", "list", TARGET).stdout
    assert "kept until" in shown
    assert shown.count(f"run {second}") == 2
    assert "no rows of probe.probe are kept" in lab.inside("kept", "list", TARGET, "--end-date", "2023-02-01").stdout


def test_a_withdrawn_date_is_undone_and_one_in_use_is_not_withdrawn(ledger: Ledger) -> None:
    run = queued_run(ledger, DAYS)
    checkpointed_date(ledger, run, FEB_23)
    with pytest.raises(DatesInUse, match=rf"run {run.id} is active and holds 1 .*2023-02-23; .* `backfill watch"):
        ledger.checkpoints.withdraw_date(JOB, FEB_23, "ada", run_id=run.id)
    ledger.orders.abandon_run(run.id, by="a test", reason="it is not needed")
    generation = undo_begun(ledger, run.id, [FEB_23])
    with pytest.raises(DatesInUse, match=rf"being undone .*2023-02-23; .* `backfill undo {run.id}` completes it"):
        ledger.checkpoints.withdraw_date(JOB, FEB_23, "ada", run_id=run.id)
    ledger.checkpoints.release_undo(run.id, generation)

    for other in (None, "another"):
        with pytest.raises(DatesInUse, match=f"run {run.id} has checkpointed 2023-02-23 meanwhile"):
            ledger.checkpoints.withdraw_date(JOB, FEB_23, "ada", run_id=other)

    assert ledger.checkpoints.withdraw_date(JOB, FEB_23, "ada", run_id=run.id)
    assert not ledger.checkpoints.withdraw_date(JOB, FEB_23, "ada", run_id=run.id)
    assert not ledger.checkpoints.withdraw_date(JOB, FEB_24, "ada", run_id=None)

    assert ledger.checkpoints.list_checkpoints(JOB, FEB_23, FEB_24) == {}
    (undone,) = ledger.checkpoints.list_undone(JOB, FEB_23, FEB_24).values()
    assert (undone.run_id, undone.by, undone.restored) == (run.id, "ada", True)
