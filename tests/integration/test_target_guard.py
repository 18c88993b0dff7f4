"""A publication loses no entities that the target holds, whoever wrote them, unless somebody says so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tests.lab
from gated_backfill.common.history.metadata import COLUMNS, write_metadata
from gated_backfill.common.ledger import DateRow, DateState, RunState
from gated_backfill.common.model.coverage import Verdict
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.tables import ColumnTypes, TableName
from gated_backfill.common.warehouse.protocol import EntityScan
from gated_backfill.producer.planning.plan import Reprocess
from gated_backfill.worker.dates import process as processing
from gated_backfill.worker.gate import gate
from gated_backfill.worker.gate.gate import GateOutcome, close_window
from tests.builders import FEB_23, FEB_24, process_date
from tests.lab import Lab, players

DAYS = [FEB_23, FEB_24]
TARGET = TableName("probe", "probe")
NOT_OURS = "no run of this job wrote them"


def write_daily(lab: Lab, day: date, names: Sequence[str], *, value: float = 7.0, step: float = 0.0) -> None:
    """A daily job writes these rows to the target, with nothing of a run."""
    rows = [{"name": name, "day": day, "value": value + step * n, "source": "daily"} for n, name in enumerate(names)]
    schema = pa.schema([("name", pa.string()), ("day", pa.date32()), ("value", pa.float64()), ("source", pa.string())])
    lab.context.warehouse.load(TARGET, "day", pa.Table.from_pylist(rows, schema=schema))


def names_on(lab: Lab, day: date) -> list[str]:
    return sorted(row["name"] for row in lab.published(str(TARGET), day, "day"))


def run_one(lab: Lab, **options: Any) -> DateRow:
    return lab.outcome(FEB_23, lab.run([FEB_23], "probe", **options))


def install(monkeypatch: pytest.MonkeyPatch, job: Job) -> None:
    """Everybody loads this declaration of the job."""
    for module in (processing, gate, tests.lab):
        monkeypatch.setattr(module, "find_job", lambda name: job)


def keyed_by_value(job: Job) -> Job:
    """The job with several rows for each entity."""
    return replace(job, target=replace(job.target, key=("name", "value")))


# -- what a rebuild would lose --


def test_a_rebuild_that_loses_proven_entities_is_blocked(any_lab: Lab) -> None:
    any_lab.probe_all([FEB_23], players(187))
    first = any_lab.run([FEB_23], "probe").run
    any_lab.probe("first", FEB_23, players(169))

    progress = any_lab.run([FEB_23], "probe", reprocess=Reprocess.ALL)

    row = any_lab.outcome(FEB_23, progress)
    assert (progress.run.state, row.state, row.verdict) == (RunState.FAILED, DateState.BLOCKED, Verdict.BLOCKED)
    lost = ", ".join(players(187)[169:181])
    assert row.reason == (
        f"would lose 18 of 187 expected entities that the target holds: {lost} and 6 more; run {first.id} wrote them; "
        "169 of 187 expected entities (90.3 %), below 95%"
    )
    assert (row.target_rows, row.target_matched, row.lost_count, row.rows) == (187, 187, 18, 169)
    assert list(row.lost) == players(187)[169:]
    assert len(names_on(any_lab, FEB_23)) == 187
    assert any_lab.ledger.checkpoints.list_checkpoints("probe", FEB_23, FEB_23)[FEB_23].run_id == first.id


def test_a_first_build_over_more_rows_of_a_daily_job_is_blocked(any_lab: Lab) -> None:
    any_lab.probe_all(DAYS, players(20), first=players(19))
    write_daily(any_lab, FEB_23, players(20))

    progress = any_lab.run(DAYS, "probe")

    row, other = any_lab.outcome(FEB_23, progress), any_lab.outcome(FEB_24, progress)
    assert row.state is DateState.BLOCKED
    assert row.reason is not None
    assert row.reason.startswith(
        f"would lose 1 of 20 expected entities that the target holds: player019; {NOT_OURS}; 19 of 20"
    )
    assert {row["source"] for row in any_lab.published(str(TARGET), FEB_23, "day")} == {"daily"}
    assert (other.state, other.target_rows, other.loss) == (DateState.CHECKPOINTED, 0, None)


def test_a_date_is_compared_with_what_a_daily_job_wrote_while_it_was_staged(any_lab: Lab) -> None:
    any_lab.probe_all([FEB_23], players(20), first=players(19))
    run, deps, dispatcher = any_lab.opened([FEB_23], "probe")
    process_date(run.id, FEB_23, deps)
    write_daily(any_lab, FEB_23, players(20))

    assert close_window(run.id, 1, deps) is GateOutcome.REQUEUED
    dispatcher.drain(deps, lambda: None)

    (row,) = deps.ledger.dates.list_dates(run.id)
    assert (row.state, row.attempt, row.target_rows) == (DateState.BLOCKED, 2, 20)
    assert row.reason is not None
    assert row.reason.startswith("would lose 1 of 20 expected entities that the target holds: player019")
    assert names_on(any_lab, FEB_23) == players(20)


def test_a_date_whose_target_changed_again_is_built_again_not_blocked(lab: Lab) -> None:
    lab.probe_all([FEB_23], players(20), first=players(19))
    write_daily(lab, FEB_23, players(1))
    run, deps, dispatcher = lab.opened([FEB_23], "probe")
    process_date(run.id, FEB_23, deps)
    for table in ("expected", "first"):
        lab.probe(table, FEB_23, players(20))  # the daily job loads the sources, then the target
    write_daily(lab, FEB_23, players(20))

    assert close_window(run.id, 1, deps) is GateOutcome.REQUEUED
    dispatcher.drain(deps, lambda: None)

    (row,) = deps.ledger.dates.list_dates(run.id)
    assert (row.state, row.attempt, row.verdict) == (DateState.CHECKPOINTED, 2, Verdict.COMPLETE)
    assert (row.target_rows, row.target_matched, row.loss) == (20, 20, None)


@pytest.mark.parametrize("window", [1, 100])
def test_only_the_date_that_loses_entities_is_blocked(lab: Lab, window: int) -> None:
    lab.probe_all(DAYS, players(20))
    lab.run(DAYS, "probe")
    lab.probe("first", FEB_23, players(19))

    progress = lab.run(DAYS, "probe", reprocess=Reprocess.ALL, window=window)

    assert progress.run.state is RunState.PARTIAL
    assert lab.states(progress.run.id) == ["blocked", "checkpointed"]


# -- what it may replace --


def test_a_rebuild_that_loses_nothing_passes_and_shows_both_numbers(any_lab: Lab) -> None:
    any_lab.probe_all([FEB_23], players(20))
    write_daily(any_lab, FEB_23, [*players(20), *players(1)])  # one of them twice

    row = run_one(any_lab)

    assert (row.state, row.verdict) == (DateState.CHECKPOINTED, Verdict.COMPLETE)
    assert (row.target_matched, row.target_rows, row.matched, row.rows) == (20, 21, 20, 20)
    assert (row.lost, row.lost_count, row.loss) == ((), 0, None)


def test_entities_that_left_the_expectation_are_no_loss(any_lab: Lab) -> None:
    any_lab.probe_all([FEB_23], players(20))
    run_one(any_lab)
    any_lab.probe_all([FEB_23], players(19))

    row = run_one(any_lab, reprocess=Reprocess.ALL)

    assert (row.state, row.verdict, row.loss) == (DateState.CHECKPOINTED, Verdict.COMPLETE, None)
    assert names_on(any_lab, FEB_23) == players(19)


def test_an_expectation_that_has_hardly_any_of_a_daily_job_s_entities_is_not_believed(any_lab: Lab) -> None:
    any_lab.probe_all([FEB_23], players(12))  # 12 of 187 have been loaded so far
    write_daily(any_lab, FEB_23, players(187))

    row = run_one(any_lab)

    assert row.state is DateState.BLOCKED
    assert row.reason is not None
    assert row.reason.startswith(
        "expectation incomplete: 12 expected, but the target holds 187 entities, and would lose 175 unexpected ones: "
    )
    assert f" and 163 more; {NOT_OURS}; 12 of 12 expected" in row.reason


def test_unexpected_entities_of_a_run_may_go(lab: Lab) -> None:
    lab.probe_all([FEB_23], players(10), first=players(40))
    run_one(lab)
    lab.probe("first", FEB_23, players(10))

    row = run_one(lab, reprocess=Reprocess.ALL)

    assert (row.state, row.target_rows, row.target_matched, row.rows) == (DateState.CHECKPOINTED, 40, 10, 10)


def test_a_stale_row_and_an_unexpected_one_may_go(lab: Lab) -> None:
    lab.probe_all([FEB_23], players(20))
    write_daily(lab, FEB_23, ["somebody", *players(1)])

    assert run_one(lab).state is DateState.CHECKPOINTED


def test_a_changed_rule_blocks_no_rebuild_that_loses_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.probe_all([FEB_23], players(20))
    run_one(lab)
    job = find_job("probe")
    install(monkeypatch, replace(job, target=replace(job.target, required=("value",))))

    row = run_one(lab, reprocess=Reprocess.STALE)

    assert (row.state, row.verdict, row.target_rows) == (DateState.CHECKPOINTED, Verdict.COMPLETE, 20)


# -- rows of an entity --


@pytest.fixture
def several_rows(any_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    install(monkeypatch, keyed_by_value(find_job("probe")))
    any_lab.probe_all([FEB_23], players(4))
    return any_lab


def test_fewer_rows_of_an_entity_than_a_daily_job_wrote_are_a_loss(several_rows: Lab) -> None:
    write_daily(several_rows, FEB_23, [*players(4), *players(2)], step=1.0)

    row = run_one(several_rows)

    assert row.state is DateState.BLOCKED
    assert row.loss == (
        f"would lose rows of 2 of 4 expected entities that the target holds: player000, player001; {NOT_OURS}"
    )
    assert (row.target_rows, row.target_matched, row.lost_count, row.rows) == (6, 4, 0, 4)


def test_duplicates_of_a_daily_job_may_go(several_rows: Lab) -> None:
    write_daily(several_rows, FEB_23, [*players(4), *players(2)], step=0.0)

    row = run_one(several_rows)

    assert (row.state, row.target_rows, row.loss) == (DateState.CHECKPOINTED, 6, None)


def test_fewer_rows_of_an_entity_than_a_run_wrote_are_the_job_s_own_change(several_rows: Lab) -> None:
    several_rows.probe("first", FEB_23, [*players(4), *players(2)])
    run_one(several_rows)
    several_rows.probe("first", FEB_23, players(4))

    row = run_one(several_rows, reprocess=Reprocess.ALL)

    assert (row.state, row.target_rows, row.rows, row.loss) == (DateState.CHECKPOINTED, 6, 4, None)


# -- force, and gates that die --


def test_a_forced_loss_is_published_and_recorded(any_lab: Lab) -> None:
    any_lab.probe_all([FEB_23], players(20))
    run_one(any_lab)
    any_lab.probe("first", FEB_23, players(19))

    row = run_one(any_lab, reprocess=Reprocess.ALL, because="he was never there")

    assert (row.state, row.verdict) == (DateState.CHECKPOINTED, Verdict.FORCED)
    assert row.reason is not None
    assert row.reason.startswith("would lose 1 of 20 expected entities that the target holds: player019; run ")
    assert row.reason.endswith("forced: he was never there")
    assert names_on(any_lab, FEB_23) == players(19)


class GateKilled(BaseException):
    """What `kill -9` would do."""


def test_the_next_gate_still_knows_what_a_dead_one_has_replaced(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.probe_all([FEB_23], players(20))
    run_one(lab)
    lab.probe("first", FEB_23, players(19))
    run, deps, _ = lab.opened([FEB_23], "probe", because="he was never there", reprocess=Reprocess.ALL)
    process_date(run.id, FEB_23, deps)

    def die(*_: Any, **__: Any) -> None:
        raise GateKilled

    with monkeypatch.context() as patch:
        patch.setattr("gated_backfill.worker.gate.publish.checkpoint_published", die)
        with pytest.raises(GateKilled):
            close_window(run.id, 1, deps)
    assert len(names_on(lab, FEB_23)) == 19
    assert close_window(run.id, 1, deps) is GateOutcome.CLOSED

    (row,) = deps.ledger.dates.list_dates(run.id)
    assert (row.state, row.verdict, row.target_rows) == (DateState.CHECKPOINTED, Verdict.FORCED, 20)
    assert row.reason is not None
    assert row.reason.startswith("would lose 1 of 20 expected entities")


# -- what is read --


def test_the_target_is_not_read_where_it_has_no_rows(any_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    any_lab.probe_all(DAYS, players(4))
    write_daily(any_lab, FEB_24, players(2))
    warehouse_type = type(any_lab.context.warehouse)
    read_entities, scans = warehouse_type.read_entities, list[EntityScan]()

    def record(self: Any, scan: EntityScan) -> pa.Table:
        scans.append(scan)
        return read_entities(self, scan)

    monkeypatch.setattr(warehouse_type, "read_entities", record)

    any_lab.run(DAYS, "probe")

    (target_scan,) = [scan for scan in scans if scan.table == TARGET]
    assert [str(dates) for dates in target_scan.dates] == [str(FEB_24)]


def test_a_target_that_cannot_be_read_blocks_its_own_date_only(lab: Lab) -> None:
    lab.probe_all(DAYS, players(4))
    for day in DAYS:
        write_daily(lab, day, players(4))
    part = Path(lab.home) / "warehouse" / "probe" / "probe" / f"day={FEB_23}" / "part.parquet"
    rows = pq.ParquetFile(part).read()
    pq.write_table(rows.set_column(0, "name", pa.array([[name] for name in players(4)])), part)

    progress = lab.run(DAYS, "probe")

    assert lab.states(progress.run.id) == ["blocked", "checkpointed"]
    row = lab.outcome(FEB_23, progress)
    assert row.reason is not None
    assert row.reason.startswith("cannot be compared with what the target holds: ")
    assert (row.target_rows, row.lost_count) == (None, None)
    assert run_one(lab, because="it is broken").verdict is Verdict.FORCED


# -- what is shown --


def test_status_shows_what_the_target_had(lab: Lab) -> None:
    lab.probe_all([FEB_23], players(20), first=players(19))
    write_daily(lab, FEB_23, [*players(20), *players(1)])
    progress = lab.run([FEB_23], "probe")

    said = lab.inside("status", progress.run.id)
    (shown,) = json.loads(lab.inside("status", progress.run.id, "--json").stdout)["dates"]
    page = lab.home / "page.html"
    lab.inside("history", "--html", str(page))

    assert "would lose 1 of 20 expected entities that the target holds: player019" in said.stdout
    assert "target had 20 expected entities in 21 row(s); staged: 19 in 19 row(s)" in said.stdout
    assert (shown["target_matched"], shown["target_rows"], shown["lost"]) == (20, 21, ["player019"])
    assert shown["lost_count"] == 1
    assert shown["loss"].startswith("would lose 1 of 20")
    assert "target had 20 expected entities in 21 row(s); staged: 19 in 19 row(s)" in page.read_text()


def test_a_history_table_of_an_earlier_version_gets_the_new_columns(any_lab: Lab) -> None:
    any_lab.probe_all([FEB_23], players(4))
    run = any_lab.run([FEB_23], "probe").run
    context = any_lab.context
    table = context.settings.history_table
    assert table is not None
    earlier: ColumnTypes = {
        name: kind for name, kind in COLUMNS.items() if name not in ("target_rows", "target_matched", "lost_count")
    }
    any_lab.drop(str(table))
    context.warehouse.create_table(table, earlier, "run_ended_on")

    write_metadata(context.ledger, context.warehouse, context.settings, run.id)

    described = context.warehouse.describe(table)
    assert described is not None
    assert dict(described.columns) == dict(COLUMNS)
