"""Undoing a run: every date gets back what it held, or nothing is touched."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from functools import partial
from itertools import count
from typing import Any

import pytest

from gated_backfill.common.errors import (
    BackupMissing,
    DatesInUse,
    LeaseTakenOver,
    UndoIncomplete,
    UndoInProgress,
    UserError,
    WarehouseUnavailable,
)
from gated_backfill.common.ledger import RunProgress, RunState
from gated_backfill.common.model.dates import DateRange
from gated_backfill.common.model.publication import Publication
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.protocol import Scan
from gated_backfill.producer.planning.plan import PlanAction, Reprocess
from gated_backfill.producer.runs import undo
from gated_backfill.producer.runs.undo import UndoPlan, plan_undo, undo_run
from tests.builders import age_kept_rows, undo_begun
from tests.emulator import Emulator
from tests.lab import Lab, players

FIRST = date(2024, 1, 1)
DAYS = [FIRST + timedelta(days=n) for n in range(3)]
TARGET = "probe.probe"


def sources(lab: Lab, days: Sequence[date], *, more: float = 0.0) -> None:
    """What the probe job is built from; another `more` gives other rows."""
    lab.probe_all(days, players(20), lowest=more)


def built(lab: Lab, days: Sequence[date]) -> RunProgress:
    return lab.run(days, "probe", reprocess=Reprocess.ALL)


def built_twice(lab: Lab, days: Sequence[date] = DAYS) -> tuple[RunProgress, dict[str, bytes], RunProgress]:
    """A run of all dates, what the target held then, and a later run that changed the rows of the given dates."""
    sources(lab, DAYS, more=0.1)
    first = built(lab, DAYS)
    before = lab.table_bytes(TARGET)
    sources(lab, days, more=0.2)
    return first, before, built(lab, days)


def checkpoints(lab: Lab, days: Sequence[date] = DAYS) -> dict[date, str]:
    found = lab.ledger.checkpoints.list_checkpoints("probe", min(days), max(days))
    return {day: checkpoint.run_id for day, checkpoint in found.items()}


def rows_by_day(lab: Lab) -> list[bytes]:
    """What each partition holds, oldest first."""
    return [rows for _, rows in sorted(lab.table_bytes(TARGET).items())]


def undone(lab: Lab, progress: RunProgress) -> UndoPlan:
    planned = plan_undo(progress.run.id, lab.context)
    undo_run(planned, lab.context, "a test")
    return planned


def test_no_gate_of_an_undone_run_publishes_although_the_undo_changed_no_rows(any_lab: Lab) -> None:
    sources(any_lab, DAYS)
    built(any_lab, DAYS)
    second = built(any_lab, DAYS)
    planned = undone(any_lab, second)

    one_day = (DateRange(start=DAYS[0], through=DAYS[0]),)
    rows = any_lab.context.warehouse.read(Scan(table=planned.target, date_column="day", dates=one_day))
    staged = any_lab.context.staging.write(second.run.id, DAYS[0], 2, rows)
    now = any_lab.context.warehouse.fingerprints(planned.target, "day", [DAYS[0]])
    frozen = Publication(run=second.run.id, window=1, generation=2**60)
    with pytest.raises(LeaseTakenOver):
        any_lab.context.warehouse.publish(
            planned.target, "day", [staged], fingerprints_when_staged=now, publication=frozen
        )
    assert planned.unchanged == tuple(DAYS)


def test_dates_that_held_rows_get_back_exactly_those_and_their_checkpoints(any_lab: Lab) -> None:
    first, before, second = built_twice(any_lab, DAYS[1:])
    assert any_lab.table_bytes(TARGET) != before

    planned = undone(any_lab, second)

    assert any_lab.table_bytes(TARGET) == before
    assert checkpoints(any_lab) == dict.fromkeys(DAYS, first.run.id)
    assert (sorted(planned.restored), planned.emptied) == (DAYS[1:], {})
    assert any_lab.ledger.runs.get_run(second.run.id).undone_by == "a test"


def test_dates_that_held_nothing_hold_nothing_again_and_are_built_when_asked_for(any_lab: Lab) -> None:
    sources(any_lab, DAYS)
    first = built(any_lab, DAYS)
    whole = any_lab.table_bytes(TARGET)

    undone(any_lab, first)

    assert any_lab.table_bytes(TARGET) == {}
    assert checkpoints(any_lab) == {}
    plan = any_lab.plan(DAYS, "probe", reprocess=Reprocess.UNDONE)
    assert {step.action for step in plan.steps} == {PlanAction.BUILD}
    any_lab.run(DAYS, "probe", reprocess=Reprocess.UNDONE)
    assert any_lab.table_bytes(TARGET) == whole


def test_a_run_that_changed_nothing_is_undone_without_touching_a_row(any_lab: Lab) -> None:
    sources(any_lab, DAYS)
    first = built(any_lab, DAYS)
    before = any_lab.table_bytes(TARGET)

    planned = undone(any_lab, built(any_lab, DAYS))

    assert list(planned.unchanged) == DAYS
    assert any_lab.table_bytes(TARGET) == before
    assert checkpoints(any_lab) == dict.fromkeys(DAYS, first.run.id)


def test_runs_are_undone_one_after_the_other_down_to_nothing(any_lab: Lab) -> None:
    states: list[dict[str, bytes]] = [{}]
    runs: list[RunProgress] = []
    for more in (0.1, 0.2, 0.3):
        sources(any_lab, DAYS, more=more)
        runs.append(built(any_lab, DAYS))
        states.append(any_lab.table_bytes(TARGET))
    for progress in reversed(runs):
        assert any_lab.table_bytes(TARGET) == states.pop()
        undone(any_lab, progress)
    assert any_lab.table_bytes(TARGET) == states.pop() == {}


def test_a_run_that_a_later_one_published_over_is_refused_naming_it(any_lab: Lab) -> None:
    first, _, second = built_twice(any_lab, DAYS[:1])
    before, proven = any_lab.table_bytes(TARGET), checkpoints(any_lab)

    with pytest.raises(UserError, match=rf"run {second.run.id} has written 1 of its dates since: 2024-01-01"):
        plan_undo(first.run.id, any_lab.context)

    assert any_lab.table_bytes(TARGET) == before
    assert checkpoints(any_lab) == proven


def test_a_date_that_somebody_else_wrote_is_refused(any_lab: Lab) -> None:
    sources(any_lab, DAYS)
    first = built(any_lab, DAYS)
    overwrite(any_lab, DAYS[2])

    with pytest.raises(UserError, match="something other than a run of this job has written 1 of its dates"):
        plan_undo(first.run.id, any_lab.context)


def test_a_date_written_between_plan_and_undo_is_left_alone_and_said(any_lab: Lab) -> None:
    sources(any_lab, DAYS)
    planned = plan_undo(built(any_lab, DAYS).run.id, any_lab.context)
    overwrite(any_lab, DAYS[2])

    with pytest.raises(UserError, match=r"1 date\(s\) were changed by another writer meanwhile.*2024-01-03"):
        undo_run(planned, any_lab.context, "a test")

    assert [len(any_lab.published(TARGET, day, "day")) for day in DAYS] == [0, 0, 1]
    assert any_lab.ledger.runs.get_run(planned.run.id).undone_at is None
    assert checkpoints(any_lab) == {}


def test_an_undo_that_was_overtaken_on_a_date_is_ended_by_the_next(any_lab: Lab) -> None:
    first, before, second = built_twice(any_lab)
    planned = plan_undo(second.run.id, any_lab.context)
    overwrite(any_lab, DAYS[2])
    written = any_lab.published(TARGET, DAYS[2], "day")
    with pytest.raises(UndoIncomplete, match=f"`backfill undo {second.run.id}` ends the undo without them"):
        undo_run(planned, any_lab.context, "a test")
    assert checkpoints(any_lab) == dict.fromkeys(DAYS[:2], first.run.id)
    assert {step.action for step in any_lab.plan(DAYS, "probe").steps} == {PlanAction.STALE, PlanAction.UNDONE}

    again = undone(any_lab, second)

    assert (again.days, list(again.written)) == ([], [DAYS[2]])
    assert any_lab.ledger.runs.get_run(second.run.id).undone_by == "a test"
    assert any_lab.published(TARGET, DAYS[2], "day") == written
    assert rows_by_day(any_lab)[:2] == [rows for _, rows in sorted(before.items())][:2]
    assert checkpoints(any_lab) == dict.fromkeys(DAYS[:2], first.run.id)
    with pytest.raises(UserError, match=r"undone already.*left as they are: something other.*2024-01-03"):
        plan_undo(second.run.id, any_lab.context)


def test_the_next_run_does_not_build_undone_rows_again(any_lab: Lab) -> None:
    """Two dates are undone while somebody writes one of them: neither gets the undone rows back."""
    _, _, second = built_twice(any_lab)
    planned = plan_undo(second.run.id, any_lab.context)
    overwrite(any_lab, DAYS[2])
    with pytest.raises(UndoIncomplete):
        undo_run(planned, any_lab.context, "a test")
    rows = any_lab.table_bytes(TARGET)
    another = FIRST + timedelta(days=3)
    sources(any_lab, [another])

    any_lab.run([*DAYS, another], "probe")

    assert rows.items() <= any_lab.table_bytes(TARGET).items()


def test_dates_that_were_written_since_are_left_when_asked_for(any_lab: Lab) -> None:
    first, before, second = built_twice(any_lab)
    overwrite(any_lab, DAYS[0])
    third = built(any_lab, DAYS[1:2])
    written = rows_by_day(any_lab)
    with pytest.raises(UserError, match=r"nothing was changed; --leave-written undoes the other 1 date"):
        plan_undo(second.run.id, any_lab.context)

    planned = plan_undo(second.run.id, any_lab.context, leave_written=True)
    undo_run(planned, any_lab.context, "a test")

    assert planned.days == DAYS[2:]
    assert planned.written == {DAYS[0]: "something other than a run of this job", DAYS[1]: f"run {third.run.id}"}
    assert rows_by_day(any_lab) == [*written[:2], max(before.items())[1]]
    assert checkpoints(any_lab) == {DAYS[1]: third.run.id, DAYS[2]: first.run.id}
    actions = [step.action for step in any_lab.plan(DAYS, "probe").steps]
    assert actions == [PlanAction.UNDONE, PlanAction.DONE, PlanAction.STALE]


def test_rows_of_an_undone_run_that_came_back_can_be_undone(any_lab: Lab) -> None:
    first, before, second = built_twice(any_lab)
    sources(any_lab, DAYS, more=0.3)
    third = built(any_lab, DAYS[:1])
    undo_run(plan_undo(second.run.id, any_lab.context, leave_written=True), any_lab.context, "a test")
    undone(any_lab, third)
    assert checkpoints(any_lab) == {DAYS[0]: second.run.id} | dict.fromkeys(DAYS[1:], first.run.id)

    undone(any_lab, second)

    assert any_lab.table_bytes(TARGET) == before
    assert checkpoints(any_lab) == dict.fromkeys(DAYS, first.run.id)


def test_an_undo_that_is_interrupted_has_undone_its_first_dates_and_is_completed(
    any_lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, before, second = built_twice(any_lab)
    monkeypatch.setattr(undo, "DATES_PER_RESTORE", 1)
    real, calls = undo._restore, count()

    def dying(*arguments: Any) -> frozenset[date]:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(undo, "_restore", dying)
    with pytest.raises(KeyboardInterrupt):
        undone(any_lab, second)
    assert checkpoints(any_lab) == {DAYS[0]: first.run.id, DAYS[2]: second.run.id}
    assert any_lab.ledger.runs.find_conflicting_runs("probe", DAYS) == {second.run.id: DAYS[1:]}

    completed = undone(any_lab, second)

    assert completed.days == DAYS[1:]
    assert any_lab.table_bytes(TARGET) == before
    assert checkpoints(any_lab) == dict.fromkeys(DAYS, first.run.id)
    assert any_lab.ledger.runs.find_conflicting_runs("probe", DAYS) == {}


def test_an_interrupted_undo_that_can_not_be_completed_frees_its_dates(lab: Lab) -> None:
    _, _, second = built_twice(lab)
    undo_begun(lab.ledger, second.run.id, DAYS)
    for rows in (lab.home / "warehouse" / ".undo").rglob("*.parquet"):
        rows.unlink()

    refused = lab.inside("undo", second.run.id, "--yes")

    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "have expired (BACKFILL_UNDO_DAYS)" in refused.stderr
    assert "its dates are free for runs" in refused.stderr
    assert built(lab, DAYS).run.state is RunState.SUCCEEDED


def test_two_undos_at_once_leave_one_refused_in_a_clear_line(any_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    _, before, second = built_twice(any_lab)
    real = undo._restore

    def frozen(*arguments: Any) -> frozenset[date]:
        monkeypatch.setattr(undo, "_restore", real)
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(undo, "process_identity", lambda: "elsewhere:1:1")
            with pytest.raises(UndoInProgress, match=f"run {second.run.id} is being undone by"):
                undone(any_lab, second)
        return real(*arguments)

    monkeypatch.setattr(undo, "_restore", frozen)
    undone(any_lab, second)

    assert any_lab.table_bytes(TARGET) == before


def test_an_undo_that_another_has_completed_since_its_plan_changes_nothing(lab: Lab) -> None:
    first, before, second = built_twice(lab)
    planned = plan_undo(second.run.id, lab.context)
    undone(lab, second)

    with pytest.raises(UndoInProgress, match="was undone meanwhile by a test"):
        undo_run(planned, lab.context, "another test")

    assert lab.table_bytes(TARGET) == before
    assert checkpoints(lab) == dict.fromkeys(DAYS, first.run.id)
    assert lab.ledger.runs.get_run(second.run.id).undone_by == "a test"


def test_an_undo_that_was_frozen_and_taken_over_ends_in_a_clear_line(
    any_lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, before, second = built_twice(any_lab)
    real = undo._restore

    def frozen(*arguments: Any) -> frozenset[date]:
        restored = real(*arguments)
        monkeypatch.setattr(undo, "_restore", real)
        undone(any_lab, second)  # the same process, or one that believes it dead
        return restored

    monkeypatch.setattr(undo, "_restore", frozen)
    with pytest.raises(LeaseTakenOver, match=f"taken over the undo of run {second.run.id}"):
        undo_run(plan_undo(second.run.id, any_lab.context), any_lab.context, "another test")

    assert any_lab.table_bytes(TARGET) == before
    assert checkpoints(any_lab) == dict.fromkeys(DAYS, first.run.id)
    assert any_lab.ledger.runs.get_run(second.run.id).undone_by == "a test"


def undo_while_another_ends_it(lab: Lab, monkeypatch: pytest.MonkeyPatch, second: RunProgress, end: Any) -> None:
    """Undo the run in a process that is frozen before it restores rows; meanwhile, its undo is ended elsewhere.

    Then another run builds the same rows as the run that is being undone.
    """
    real = undo._restore

    def frozen(*arguments: Any) -> frozenset[date]:
        monkeypatch.setattr(undo, "_restore", real)
        lab.change_ledger("UPDATE runs SET undo_until = :expired, undo_owner = 'elsewhere:1:1'", expired=FIRST)
        end()
        assert lab.ledger.runs.find_conflicting_runs("probe", DAYS) == {}
        third.append(built(lab, DAYS))
        return real(*arguments)

    third: list[RunProgress] = []
    published = lab.table_bytes(TARGET)
    monkeypatch.setattr(undo, "_restore", frozen)
    with pytest.raises(LeaseTakenOver):
        undone(lab, second)
    assert lab.table_bytes(TARGET) == published
    assert checkpoints(lab) == dict.fromkeys(DAYS, third[0].run.id)


def test_an_undo_that_was_frozen_changes_nothing_after_a_later_one_without_dates(
    any_lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other writers have written all dates in the meantime, so the later undo has nothing to restore."""
    _, _, second = built_twice(any_lab)

    def end() -> None:
        for day in DAYS:
            overwrite(any_lab, day)
        assert undone(any_lab, second).days == []

    undo_while_another_ends_it(any_lab, monkeypatch, second, end)


def test_an_undo_that_was_frozen_changes_nothing_after_its_dates_were_released(
    any_lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, second = built_twice(any_lab)
    end = partial(undo.release_interrupted_undo, second.run.id, any_lab.context)
    undo_while_another_ends_it(any_lab, monkeypatch, second, end)


def test_the_dates_of_an_interrupted_undo_are_released_without_its_job(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, second = built_twice(lab)
    undo_begun(lab.ledger, second.run.id, DAYS)

    def not_installed(name: str) -> None:
        raise UserError(f"no job {name}")

    monkeypatch.setattr(undo, "find_job", not_installed)
    assert undo.release_interrupted_undo(second.run.id, lab.context)
    assert lab.ledger.runs.find_conflicting_runs("probe", DAYS) == {}


def test_the_dates_of_an_interrupted_undo_stay_reserved_while_the_warehouse_does_not_answer(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, before, second = built_twice(lab)
    undo_begun(lab.ledger, second.run.id, DAYS)

    def no_answer(*arguments: Any, **named: Any) -> None:
        raise WarehouseUnavailable("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(lab.context.warehouse, "raise_fence", no_answer)
        with pytest.raises(WarehouseUnavailable):
            undo.release_interrupted_undo(second.run.id, lab.context)
    assert lab.ledger.runs.find_conflicting_runs("probe", DAYS) == {second.run.id: DAYS}
    undone(lab, second)
    assert lab.table_bytes(TARGET) == before


def test_an_undo_names_the_interrupted_one_that_has_its_dates(lab: Lab) -> None:
    first, _, second = built_twice(lab)
    planned = plan_undo(second.run.id, lab.context)
    undo_begun(lab.ledger, first.run.id, [])
    lab.change_ledger("UPDATE run_dates SET active = :active WHERE run_id = :run", active=True, run=first.run.id)

    for attempt in (lambda: undone(lab, second), lambda: undo_run(planned, lab.context, "a test")):
        with pytest.raises(
            DatesInUse, match=f"being undone .*interrupted, `backfill undo {first.run.id}` completes it"
        ):
            attempt()


def test_an_undo_names_the_active_run_that_has_its_dates(lab: Lab) -> None:
    _, _, second = built_twice(lab)
    planned = plan_undo(second.run.id, lab.context)
    active, _, _ = lab.opened(DAYS, "probe", reprocess=Reprocess.ALL)

    for attempt in (lambda: undone(lab, second), lambda: undo_run(planned, lab.context, "a test")):
        with pytest.raises(DatesInUse, match=f"is active and holds 3 .*follow it with `backfill watch {active.id}`"):
            attempt()


def test_the_command_names_the_dates_it_leaves_and_exits_with_3(lab: Lab) -> None:
    _, _, second = built_twice(lab)
    overwrite(lab, DAYS[0])
    refused = lab.inside("undo", second.run.id, "--yes")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "--leave-written undoes the other 2 date(s)" in refused.stderr

    done = lab.inside("undo", second.run.id, "--yes", "--leave-written")

    assert (done.returncode, done.stderr) == (3, "")
    assert "left as they are: something other than a run of this job has written 1 of its dates" in done.stdout
    assert "undone: 2 date(s), 2 have their earlier checkpoints again" in done.stdout
    shown = " ".join(lab.inside("status", second.run.id).stdout.split())
    assert "2 date(s), 2024-01-02..2024-01-03" in shown
    assert "1 date(s) whose rows were not restored" in shown


def test_a_run_that_rebuilt_the_dates_between_plan_and_undo_keeps_its_rows_and_checkpoints(any_lab: Lab) -> None:
    _, _, second = built_twice(any_lab)
    planned = plan_undo(second.run.id, any_lab.context)
    third = built(any_lab, DAYS)  # the same rows once more
    rows, proven = any_lab.table_bytes(TARGET), checkpoints(any_lab)

    with pytest.raises(UserError, match=rf"run {third.run.id} has checkpointed"):
        undo_run(planned, any_lab.context, "a test")

    assert (any_lab.table_bytes(TARGET), checkpoints(any_lab)) == (rows, proven)
    assert set(proven.values()) == {third.run.id}


def test_no_run_takes_the_dates_of_an_undo_that_died(any_lab: Lab) -> None:
    sources(any_lab, DAYS)
    first = built(any_lab, DAYS)
    undo_begun(any_lab.ledger, first.run.id, DAYS)

    run = first.run.id
    with pytest.raises(UserError, match=rf"run {run} is being undone.*`backfill undo {run}` completes it"):
        built(any_lab, DAYS)

    undone(any_lab, first)
    assert any_lab.table_bytes(TARGET) == {}
    assert built(any_lab, DAYS).run.state is RunState.SUCCEEDED


def test_rows_lost_from_a_backup_are_noticed_before_anything_is_touched(bigquery_lab: Lab, emulator: Emulator) -> None:
    _, _, second = built_twice(bigquery_lab)
    rows, proven = bigquery_lab.table_bytes(TARGET), checkpoints(bigquery_lab)
    (backup,) = [table for table in emulator.client().list_tables("backfill") if table.table_id.startswith("undo_")]
    emulator.run(f"DELETE FROM backfill.{backup.table_id} WHERE day = DATE '2024-01-02'")

    with pytest.raises(BackupMissing, match=r"on 1 date\(s\) were deleted or have expired.*undoes the other 2 date"):
        plan_undo(second.run.id, bigquery_lab.context)

    assert (bigquery_lab.table_bytes(TARGET), checkpoints(bigquery_lab)) == (rows, proven)
    assert plan_undo(second.run.id, bigquery_lab.context, leave_written=True).missing == (DAYS[1],)


def lose_copies(lab: Lab, *days: date) -> None:
    """Delete the rows that runs replaced on the dates."""
    for day in days:
        for copy in (lab.home / "warehouse" / ".undo").rglob(f"{day}.parquet"):
            copy.unlink()


def test_dates_whose_earlier_rows_are_not_kept_are_left_when_asked_for(lab: Lab) -> None:
    first, before, second = built_twice(lab)
    now, earlier = rows_by_day(lab), [rows for _, rows in sorted(before.items())]
    lose_copies(lab, DAYS[0])
    refused = lab.inside("undo", second.run.id, "--yes")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "--leave-written undoes the other 2 date(s)" in refused.stderr
    assert (rows_by_day(lab), checkpoints(lab)) == (now, dict.fromkeys(DAYS, second.run.id))

    done = lab.inside("undo", second.run.id, "--yes", "--leave-written")

    assert (done.returncode, done.stderr) == (3, "")
    assert "left as they are: the earlier rows of 1 date(s) are not kept any more (2024-01-01)" in done.stdout
    assert rows_by_day(lab) == [now[0], *earlier[1:]]
    assert checkpoints(lab) == dict.fromkeys(DAYS[1:], first.run.id)
    again = lab.inside("undo", second.run.id, "--yes", "--leave-written")
    assert (again.returncode, len(again.stderr.splitlines())) == (2, 1)
    assert "have expired (BACKFILL_UNDO_DAYS)" in again.stderr


def restore_first_date(lab: Lab, run_id: str) -> None:
    """An undo dies when it has restored the rows of the first date, and no checkpoint."""
    planned = plan_undo(run_id, lab.context)
    generation = undo_begun(lab.ledger, run_id, planned.days)
    restored_first = {DAYS[0]: planned.restored[DAYS[0]]}
    lab.context.warehouse.restore(planned.target, "day", run_id, restored_first, generation=generation)


def test_an_interrupted_undo_is_completed_without_the_dates_whose_earlier_rows_expired(lab: Lab) -> None:
    first, before, second = built_twice(lab)
    restore_first_date(lab, second.run.id)
    now, earlier = rows_by_day(lab), [rows for _, rows in sorted(before.items())]
    lose_copies(lab, *DAYS[:2])

    completed = undone(lab, second)

    assert (completed.days, completed.missing) == ([DAYS[0], DAYS[2]], (DAYS[1],))
    assert rows_by_day(lab) == [earlier[0], now[1], earlier[2]]
    assert checkpoints(lab) == {DAYS[0]: first.run.id, DAYS[2]: first.run.id}
    assert lab.ledger.runs.find_conflicting_runs("probe", DAYS) == {}


def overwrite(lab: Lab, day: date) -> None:
    (row, *_) = lab.published(TARGET, day, "day")
    types = {name: column.type for name, column in find_job("probe").target.columns.items()}
    lab.load(TARGET, day, [row | {"value": 99.0}], types)


def test_an_undo_that_died_in_the_middle_is_completed_by_the_next(any_lab: Lab) -> None:
    _, before, second = built_twice(any_lab)
    restore_first_date(any_lab, second.run.id)

    undone(any_lab, second)

    assert any_lab.table_bytes(TARGET) == before


@pytest.mark.parametrize("id_of", [lambda run: "no-such-run", lambda run: run.id], ids=["unknown", "undone-already"])
def test_what_can_not_be_undone_is_said_in_one_line(any_lab: Lab, id_of: Any) -> None:
    sources(any_lab, DAYS)
    progress = built(any_lab, DAYS)
    undone(any_lab, progress)
    with pytest.raises(UserError, match=r"no run|undone already, by a test"):
        plan_undo(id_of(progress.run), any_lab.context)


def test_what_is_not_kept_any_more_is_refused_and_changes_nothing(lab: Lab) -> None:
    _, _, second = built_twice(lab)
    backup = lab.home / "warehouse" / ".undo" / second.run.id
    age_kept_rows(lab.home / "warehouse", days=31)
    elsewhere = [FIRST + timedelta(days=10)]
    sources(lab, elsewhere)
    built(lab, elsewhere)  # a launch finds what was kept too long
    assert len(list(backup.rglob("*.parquet"))) == len(DAYS)
    age_kept_rows(lab.home / "warehouse", days=1)
    lab.context.warehouse.delete_expired_undo()  # a later one forgets it
    before, proven = lab.table_bytes(TARGET), checkpoints(lab)

    with pytest.raises(BackupMissing, match=r"have expired \(BACKFILL_UNDO_DAYS"):
        plan_undo(second.run.id, lab.context)

    assert not list(backup.rglob("*.parquet"))
    assert (lab.table_bytes(TARGET), checkpoints(lab)) == (before, proven)


def test_the_command_shows_wants_a_yes_without_a_terminal_and_tells_the_status(lab: Lab) -> None:
    _, before, progress = built_twice(lab)
    second = progress.run.id
    after = lab.table_bytes(TARGET)

    shown = lab.command("undo", second, "--dry-run")
    assert (shown.returncode, lab.table_bytes(TARGET)) == (0, after)
    assert "3 date(s) get back the rows they held before (2024-01-01..2024-01-03)" in shown.stdout.replace("\n", " ")
    unasked = lab.command("undo", second)
    assert (unasked.returncode, lab.table_bytes(TARGET)) == (2, after)
    assert "--yes" in unasked.stderr
    done = lab.command("undo", second, "--yes")
    assert done.returncode == 0, done.stderr
    assert lab.table_bytes(TARGET) == before
    again = lab.command("undo", second, "--yes")
    assert (again.returncode, again.stdout) == (2, "")
    assert "undone already" in again.stderr
    assert lab.status(second)["undone_by"]


def test_a_history_that_cannot_be_written_is_one_line_after_an_undo(lab: Lab) -> None:
    _, _, second = built_twice(lab)
    lab.drop("backfill.backfill_metadata")
    lab.context.warehouse.create_table(TableName.parse("backfill.backfill_metadata"), {"other": "DATE"}, "other")
    undone = lab.command("undo", second.run.id, "--yes")
    assert undone.returncode == 0, undone.stderr
    (line,) = undone.stderr.splitlines()
    assert "the warehouse's history does not show the run as it is" in line
    assert "Traceback" in (lab.context.settings.home / "logs" / "command.log").read_text()
