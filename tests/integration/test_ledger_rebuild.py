"""A ledger that was lost is made again from the warehouse: what it proves, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import date, timedelta
from typing import Any

import pyarrow.parquet as pq
import pytest

from gated_backfill.common.errors import CheckpointedMeanwhile, WarehouseUnavailable
from gated_backfill.common.ledger import Checkpoint, RunState
from gated_backfill.common.model.coverage import Fallback, Verdict
from gated_backfill.common.model.dates import ALL_DATES, DateRange
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.tables import TableName
from gated_backfill.producer.context import open_context
from gated_backfill.producer.demo.season import load_season
from gated_backfill.producer.planning.plan import PlanAction, Reprocess, make_plan
from gated_backfill.producer.runs.rebuild import Rebuild, plan_rebuild, write_checkpoints
from gated_backfill.producer.tables.row_file import no_progress
from tests.builders import dead_process
from tests.lab import Lab, players

DAYS = [date(2023, 2, 1) + timedelta(days=n) for n in range(4)]
FIRST, SECOND, THIRD, FOURTH = DAYS
TARGET = "probe.probe"
REBUILD = ("ledger", "rebuild", "--job", "probe")
AT = "2023-03-01 12:00:00.000000"
NO_RECORD = "nothing records which run published its rows, or something else has written them since"


def lose_ledger(lab: Lab) -> None:
    lab.ledger.close()
    for file in lab.home.glob("ledger.db*"):
        file.unlink()
    lab.context = open_context(lab.settings)


def checkpoints_of(lab: Lab, job: str = "probe") -> dict[date, Checkpoint]:
    return lab.ledger.checkpoints.list_checkpoints(job, ALL_DATES.start, ALL_DATES.through)


def proofs(checkpoints: Mapping[date, Checkpoint]) -> dict[date, dict[str, Any]]:
    """What checkpoints say of their dates, without when and by which run they were written."""
    own = ("run_id", "checkpointed_at", "reason")
    return {
        day: {name: value for name, value in asdict(checkpoint).items() if name not in own}
        for day, checkpoint in checkpoints.items()
    }


def actions_of(lab: Lab, job: str = "probe", **request: Any) -> dict[date, tuple[PlanAction, str]]:
    plan = make_plan(lab.request(DAYS, job, **request), find_job(job), lab.context.warehouse, lab.ledger)
    return {step.day: (step.action, step.reason) for step in plan.steps}


def planned(lab: Lab, *, add_missing: bool = False) -> Rebuild:
    return plan_rebuild(find_job("probe"), ALL_DATES, lab.context, add_missing=add_missing, progress=no_progress)


@pytest.fixture
def built(lab: Lab) -> Lab:
    """Four dates: complete, accepted, forced, and complete from a fallback."""
    lab.probe_all(DAYS, players(20))
    for table, day, count in (("first", SECOND, 18), ("first", THIRD, 2), ("first", FOURTH, 1), ("second", FOURTH, 20)):
        lab.probe(table, day, players(count))
    lab.run([FIRST, SECOND, FOURTH], "probe")
    lab.run([THIRD], "probe", because="it is all there is", fallback=Fallback.OFF)
    return lab


def test_every_checkpoint_of_a_lost_ledger_is_back_as_it_was(built: Lab) -> None:
    before = checkpoints_of(built)
    assert {day: checkpoint.verdict for day, checkpoint in before.items()} == {
        FIRST: Verdict.COMPLETE,
        SECOND: Verdict.ACCEPTED,
        THIRD: Verdict.FORCED,
        FOURTH: Verdict.COMPLETE,
    }
    lose_ledger(built)
    assert {action for action, _ in actions_of(built).values()} == {PlanAction.BUILD, PlanAction.BLOCKED}

    done = built.inside(*REBUILD, "--yes")

    assert (done.returncode, done.stderr) == (0, "")
    assert "probe: 4 of 4 date(s) are proven: 2023-02-01..2023-02-04" in done.stdout
    after = checkpoints_of(built)
    assert proofs(after) == proofs(before)
    run = built.latest_run()
    assert (run.state, {checkpoint.run_id for checkpoint in after.values()}) == (RunState.SUCCEEDED, {run.id})
    for day, checkpoint in after.items():
        was = before[day]
        assert checkpoint.reason == f"{was.reason}; rebuilt from the record of run {was.run_id}"
    assert {action for action, _ in actions_of(built).values()} == {PlanAction.DONE}
    assert built.ledger.alerts.list_latest_alerts(10) == []
    assert built.ledger.runs.list_unreported_runs() == []


def test_a_ledger_that_is_lost_again_is_made_again(built: Lab) -> None:
    before = checkpoints_of(built)
    for _ in range(2):
        lose_ledger(built)
        assert built.inside(*REBUILD, "--yes").returncode == 0
    after = checkpoints_of(built)
    assert proofs(after) == proofs(before)
    assert after[FIRST].reason == f"{before[FIRST].reason}; rebuilt from the record of run {before[FIRST].run_id}"


def test_a_dry_run_and_a_refusal_change_nothing(built: Lab) -> None:
    lose_ledger(built)
    shown = built.inside(*REBUILD, "--dry-run", "--json")
    result = json.loads(shown.stdout)
    assert (shown.returncode, result["dry_run"], result["exit_code"]) == (0, True, 0)
    assert [proven["verdict"] for proven in result["jobs"][0]["proven"]] == [
        "complete",
        "accepted",
        "forced",
        "complete",
    ]
    refused = built.inside(*REBUILD)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "nothing was written: there is no terminal to ask at; confirm with --yes" in refused.stderr
    assert checkpoints_of(built) == {}
    assert built.ledger.runs.list_latest_runs() == []


def test_a_rebuild_is_no_sign_of_a_broken_source(built: Lab) -> None:
    lose_ledger(built)
    assert built.inside(*REBUILD, "--yes").returncode == 0
    counted = built.ledger.gauges.built_counts_by_source(built.latest_run().created_at - timedelta(days=1))
    assert counted == {}


# -- what cannot be proven ------------------------------------------------------------------------------------------


def load_published(lab: Lab, day: date, rows: Sequence[Mapping[str, Any]]) -> None:
    """Load rows of the target as another program would."""
    info = lab.context.warehouse.describe(TableName.parse(TARGET))
    assert info is not None
    lab.load(TARGET, day, rows, {name: info.columns[name] for name in rows[0]})


def rows_were_removed(lab: Lab) -> None:
    lab.keep_only(TARGET, FIRST, "name", "player000", "day")


def others_wrote(lab: Lab) -> None:
    """Another program writes the same players with other values."""
    rows = lab.published(TARGET, FIRST, "day")
    load_published(lab, FIRST, [row | {"value": row["value"] + 1} for row in rows])


def expectation_grew(lab: Lab) -> None:
    lab.probe("expected", FIRST, players(40))


def expectation_shrank(lab: Lab) -> None:
    lab.probe("expected", FIRST, players(3))


def expectation_vanished(lab: Lab) -> None:
    lab.tables.keep(TableName("probe", "expected"), FIRST, "day", "name", "nobody")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        pytest.param(rows_were_removed, "its rows are not those that run {run} published (20 of 20)", id="removed"),
        pytest.param(others_wrote, "its rows are not those that run {run} published (20 of 20)", id="changed"),
        pytest.param(expectation_grew, "incomplete: 20 of 40 expected entities (50.0 %), below 90%", id="grown"),
        pytest.param(expectation_shrank, "expectation incomplete: 3 expected, fewer than 18", id="shrunk"),
        pytest.param(expectation_vanished, "expectation incomplete: 0 expected", id="expectation-gone"),
    ],
)
def test_what_cannot_be_proven_is_listed_with_its_reason(
    built: Lab, damage: Callable[[Lab], None], reason: str
) -> None:
    run = checkpoints_of(built)[FIRST].run_id
    damage(built)
    lose_ledger(built)

    done = built.inside(*REBUILD, "--yes")

    assert done.returncode == 3
    assert "probe: 3 of 4 date(s) are proven: 2023-02-02..2023-02-04" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("  2023-02-01  ")]
    assert reason.format(run=run) in line
    assert sorted(checkpoints_of(built)) == [SECOND, THIRD, FOURTH]


def test_rows_that_no_run_wrote_prove_nothing(lab: Lab) -> None:
    lab.probe_all(DAYS, players(4))
    lab.run([FIRST], "probe")
    load_published(lab, SECOND, lab.published(TARGET, FIRST, "day"))
    lose_ledger(lab)

    rebuild = planned(lab)

    assert (list(rebuild.proven), rebuild.unproven) == ([FIRST], {SECOND: NO_RECORD})


def test_an_undone_run_is_no_proof_and_what_came_back_is(lab: Lab) -> None:
    lab.probe_all(DAYS, players(4))
    lab.run([FIRST], "probe")
    before = checkpoints_of(lab)
    lab.probe_all(DAYS, players(4), lowest=7.0)
    later = lab.run([FIRST, SECOND], "probe", reprocess=Reprocess.ALL)
    assert lab.inside("undo", later.run.id, "--yes").returncode == 0
    assert proofs(checkpoints_of(lab)) == proofs(before)
    lose_ledger(lab)

    assert lab.inside(*REBUILD, "--yes").returncode == 0

    assert proofs(checkpoints_of(lab)) == proofs(before)


def test_a_damaged_file_is_named_and_stops_no_other_date(lab: Lab) -> None:
    lab.probe_all(DAYS, players(4))
    lab.run(DAYS, "probe")
    (lab.home / "warehouse" / "probe" / "probe" / f"day={SECOND}" / "part.parquet").write_bytes(b"PAR1 no more")
    lose_ledger(lab)

    done = lab.inside(*REBUILD, "--yes")

    assert done.returncode == 3
    assert "probe: 3 of 4 date(s) are proven" in done.stdout
    assert f"  {SECOND}  its rows are not those that run " in done.stdout


# -- what is not known ----------------------------------------------------------------------------------------------


def test_without_the_table_of_runs_the_version_is_unknown_and_the_dates_are_stale(built: Lab) -> None:
    lose_ledger(built)
    built.drop("backfill.backfill_metadata")

    done = built.inside(*REBUILD, "--yes")

    assert done.returncode == 3  # of the forced date nothing says that it was forced
    assert "3 date(s) will be stale, as it is not known which version of the job built them" in done.stdout
    assert f"  {THIRD}  incomplete: 2 of 20 expected entities (10.0 %), below 90%" in done.stdout
    first = checkpoints_of(built)[FIRST]
    assert (first.job_version, first.source, first.inputs, first.input_parts) == ("", "?", "", None)
    assert (first.expected, first.matched, first.rows, first.verdict) == (20, 20, 20, Verdict.COMPLETE)
    actions = actions_of(built)
    assert actions[FIRST] == (
        PlanAction.STALE,
        "stale: its checkpoint was rebuilt, and which version of the job built its rows is not known",
    )
    assert actions_of(built, reprocess=Reprocess.STALE)[FIRST][0] is PlanAction.BUILD
    built.run([FIRST], "probe", reprocess=Reprocess.STALE)
    assert actions_of(built)[FIRST][0] is PlanAction.DONE


def test_a_table_of_runs_without_checksums_tells_the_version_of_what_was_published(lab: Lab) -> None:
    lab.probe_all(DAYS, players(4))
    lab.run(DAYS, "probe")
    history = TableName("backfill", "backfill_metadata")
    warehouse = lab.context.warehouse
    (part,) = (lab.home / "warehouse" / "backfill" / "backfill_metadata").glob("*/part.parquet")
    rows = pq.ParquetFile(part).read().drop_columns(["checksum", "inputs", "input_parts"])
    lab.drop(str(history))
    warehouse.load(history, "run_ended_on", rows)
    lose_ledger(lab)

    assert lab.inside(*REBUILD, "--yes").returncode == 0

    first = checkpoints_of(lab)[FIRST]
    assert (first.job_version, first.source, first.input_parts) == ("1", "first", None)
    assert {action for action, _ in actions_of(lab).values()} == {PlanAction.DONE}
    plan = make_plan(lab.request(DAYS, "probe"), find_job("probe"), warehouse, lab.ledger)
    assert "4 checkpoint(s) by an earlier version of this tool record no inputs" in plan.notes[-1]


def test_a_changed_source_is_noticed_after_a_rebuild(built: Lab) -> None:
    lose_ledger(built)
    built.inside(*REBUILD, "--yes")
    built.probe("first", FIRST, players(19))
    assert actions_of(built)[FIRST] == (PlanAction.STALE, "stale: source first changed since")


# -- beside what the ledger has -------------------------------------------------------------------------------------


def test_a_ledger_with_checkpoints_is_refused_unless_only_missing_ones_are_added(built: Lab) -> None:
    kept = checkpoints_of(built)
    refused = built.inside(*REBUILD, "--yes")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "the ledger has 4 checkpoint(s) of job probe" in refused.stderr
    built.change_ledger("DELETE FROM checkpoints WHERE day = :day", day=str(SECOND))

    done = built.inside(*REBUILD, "--add-missing", "--yes")

    assert done.returncode == 0
    assert "probe: 1 of 1 date(s) are proven: 2023-02-02" in done.stdout
    now = checkpoints_of(built)
    assert proofs(now) == proofs(kept)
    assert {day: now[day] for day in (FIRST, THIRD, FOURTH)} == {day: kept[day] for day in (FIRST, THIRD, FOURTH)}
    again = built.inside(*REBUILD, "--add-missing", "--yes")
    assert (again.returncode, again.stdout) == (0, "probe: nothing to rebuild: 4 date(s) have a checkpoint\n")


def test_a_date_of_an_active_run_is_left_alone(lab: Lab) -> None:
    lab.probe_all(DAYS, players(4))
    lab.run(DAYS, "probe")
    lose_ledger(lab)
    run, deps, _ = lab.opened([SECOND], "probe")

    done = lab.inside(*REBUILD, "--yes")

    deps.ledger.close()
    assert done.returncode == 3
    assert f"  {SECOND}  run {run.id} is active on it" in done.stdout
    assert sorted(checkpoints_of(lab)) == [FIRST, THIRD, FOURTH]


def test_an_undone_date_is_not_checkpointed_again(lab: Lab) -> None:
    lab.probe_all(DAYS, players(4))
    run = lab.run(DAYS, "probe").run
    lab.change_ledger("DELETE FROM checkpoints WHERE day = :day", day=str(FIRST))
    lab.change_ledger("UPDATE run_dates SET undone_at = :at, undone_by = 'ada' WHERE day = :day", at=AT, day=str(FIRST))

    rebuild = planned(lab, add_missing=True)

    assert (rebuild.proven, rebuild.unproven) == ({}, {FIRST: f"undone by ada at 2023-03-01 12:00 UTC (run {run.id})"})


def test_a_checkpoint_that_a_run_has_written_meanwhile_is_not_replaced(lab: Lab) -> None:
    lab.probe_all(DAYS, players(4))
    lab.run(DAYS, "probe")
    lose_ledger(lab)
    rebuild = planned(lab)
    lab.run([SECOND], "probe")
    kept = checkpoints_of(lab)

    with pytest.raises(CheckpointedMeanwhile, match=str(SECOND)):
        write_checkpoints(rebuild, lab.context, "ada", no_progress)

    assert checkpoints_of(lab) == kept


def test_rows_that_change_while_they_are_verified_get_no_checkpoint(lab: Lab) -> None:
    lab.probe_all(DAYS, players(4))
    lab.run(DAYS, "probe")
    lose_ledger(lab)
    rebuild = planned(lab)
    lab.keep_only(TARGET, SECOND, "name", "player000", "day")

    run, changed = write_checkpoints(rebuild, lab.context, "ada", no_progress)

    assert (run.state, changed) == (RunState.PARTIAL, [SECOND])
    assert sorted(checkpoints_of(lab)) == [FIRST, THIRD, FOURTH]


def test_a_rebuild_that_was_interrupted_is_completed_by_the_next(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.probe_all(DAYS, players(4))
    lab.run(DAYS, "probe")
    lose_ledger(lab)
    rebuild = planned(lab)

    def fail(*_: Any) -> frozenset[date]:
        raise WarehouseUnavailable("gone")

    with monkeypatch.context() as patch:
        patch.setattr(lab.context.warehouse, "matching_dates", fail)
        with pytest.raises(WarehouseUnavailable):
            write_checkpoints(rebuild, lab.context, "ada", no_progress)
    assert lab.latest_run().state is RunState.RUNNING
    assert planned(lab).proven == {}
    lab.change_ledger("UPDATE runs SET owner = :owner", owner=dead_process())

    assert lab.inside(*REBUILD, "--add-missing", "--yes").returncode == 0

    assert sorted(checkpoints_of(lab)) == DAYS
    assert lab.ledger.runs.list_active_runs() == []


def test_a_season_around_the_incident_is_made_again(bigquery_lab: Lab) -> None:
    lab, job = bigquery_lab, "player_composite_factors"
    load_season(lab.context.warehouse, DateRange(start=date(2023, 2, 6), through=date(2023, 2, 26)))
    days = DateRange(start=date(2023, 2, 22), through=date(2023, 2, 25)).days()
    assert lab.run(days, job).run.state is RunState.SUCCEEDED
    before = checkpoints_of(lab, job)
    lose_ledger(lab)
    lab.keep_only("nba_precompute.player_composite_factors", date(2023, 2, 23), "player_lookup", "nobody")

    done = lab.inside("ledger", "rebuild", "--job", job, "--yes")

    assert done.returncode == 3
    assert f"{job}: {len(before) - 1} of {len(before)} date(s) are proven" in done.stdout
    assert "  2023-02-23  its rows are not those that run" in done.stdout
    del before[date(2023, 2, 23)]
    assert proofs(checkpoints_of(lab, job)) == proofs(before)
    plan = make_plan(lab.request(days, job), find_job(job), lab.context.warehouse, lab.ledger)
    assert [step.day for step in plan.steps_with(PlanAction.BUILD)] == [date(2023, 2, 23)]
    assert not plan.steps_with(PlanAction.STALE)
