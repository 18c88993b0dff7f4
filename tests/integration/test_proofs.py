"""A checkpointed date counts as done only while it satisfies the expectation, and is listed when it is stale."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gated_backfill.common.errors import TableNotFound
from gated_backfill.common.ledger import RunState
from gated_backfill.common.model.coverage import CoveragePolicy, Fallback
from gated_backfill.common.model.job import Input, Job
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.runs.stale_dates import find_stale_dates_of_runs
from gated_backfill.common.warehouse.coverage_queries import measure_dates
from gated_backfill.common.warehouse.protocol import EntityScan, Warehouse
from gated_backfill.producer.planning.plan import Plan, PlanAction, Reprocess, make_plan
from gated_backfill.worker.dates import process as processing
from gated_backfill.worker.gate import gate
from tests.builders import FEB_23, FEB_24
from tests.lab import Lab, players

DAYS = [FEB_23, FEB_24]
RULES_CHANGED = "stale: the job's rules for complete rows changed since"
RUN = ("run", "--job", "probe", "--start-date", str(FEB_23), "--end-date", str(FEB_24), "--sequential")


@pytest.fixture
def built(any_lab: Lab) -> Lab:
    any_lab.probe_all(DAYS, players(4))
    any_lab.probe("second", FEB_23, players(4))
    assert any_lab.run(DAYS, "probe").run.state is RunState.SUCCEEDED
    return any_lab


def plan_of(lab: Lab, job: Job | None = None, **request: Any) -> Plan:
    return make_plan(lab.request(DAYS, "probe", **request), job or find_job("probe"), lab.context.warehouse, lab.ledger)


def actions(plan: Plan) -> list[PlanAction]:
    return [step.action for step in plan.steps]


def test_nothing_is_stale_that_did_not_change(built: Lab) -> None:
    plan = plan_of(built)
    assert actions(plan) == [PlanAction.DONE, PlanAction.DONE]
    assert plan.notes == ()
    assert (plan.read_roles, plan.recounted_days) == ({}, ())


def test_a_date_whose_expectation_has_grown_is_built_again(built: Lab) -> None:
    for table in ("expected", "first"):
        built.probe(table, FEB_23, players(20))

    plan = plan_of(built)

    assert actions(plan) == [PlanAction.BUILD, PlanAction.DONE]
    reason = "checkpointed with 4 of 4, but 20 are expected now: 4 of 20 (20.0 %) are published; "
    assert plan.steps[0].reason.startswith(reason)
    assert plan.recounted_days == (FEB_23,)
    built.run(DAYS, "probe")
    assert len(built.published("probe.probe", FEB_23, "day")) == 20
    assert actions(plan_of(built)) == [PlanAction.DONE, PlanAction.DONE]


def test_other_entities_in_the_same_number_are_noticed(built: Lab) -> None:
    for table in ("expected", "first"):
        built.probe(table, FEB_23, players(4, "other"))

    (step, _) = plan_of(built).steps

    assert step.action is PlanAction.BUILD
    assert "but by the present expectation and rules 0 of 4 (0.0 %) are published" in step.reason


def test_an_expectation_that_is_still_satisfied_makes_nothing_stale(built: Lab) -> None:
    built.probe("expected", FEB_23, [*players(4), *players(1)])  # one of them twice
    assert actions(plan_of(built)) == [PlanAction.DONE, PlanAction.DONE]


def test_a_checkpoint_without_recorded_inputs_is_compared_by_its_number(built: Lab) -> None:
    built.change_ledger("UPDATE checkpoints SET input_parts = NULL")
    built.probe("expected", FEB_23, players(20))

    plan = plan_of(built)

    assert "but 20 are expected now" in plan.steps[0].reason
    assert plan.steps[1].action is PlanAction.DONE
    (note,) = plan.notes
    assert note.startswith("2 checkpoint(s) by an earlier version of this tool record no inputs")


def test_a_forced_date_stays_done(any_lab: Lab) -> None:
    any_lab.probe_all(DAYS, players(10), first=players(2))
    any_lab.run(DAYS, "probe", because="it is all there is", fallback=Fallback.OFF)
    any_lab.probe("expected", FEB_23, players(11))
    assert actions(plan_of(any_lab)) == [PlanAction.DONE, PlanAction.DONE]


def test_dates_of_another_version_are_stale(built: Lab) -> None:
    newer = replace(find_job("probe"), version="2")

    plan = plan_of(built, newer)

    assert actions(plan) == [PlanAction.STALE, PlanAction.STALE]
    assert {step.reason for step in plan.steps} == {"stale: built by version 1, the job is version 2 now"}
    assert plan.summary().endswith("2 date(s): 2 stale")
    (note,) = plan.notes
    assert note == "2 date(s) are stale and left as they are: 2023-02-23..2023-02-24; --reprocess stale builds them"
    assert actions(plan_of(built, newer, reprocess=Reprocess.STALE)) == [PlanAction.BUILD, PlanAction.BUILD]


def test_a_date_below_a_stricter_policy_is_not_done(any_lab: Lab) -> None:
    any_lab.probe_all(DAYS, players(10), first=players(9))
    any_lab.run(DAYS, "probe", fallback=Fallback.OFF)
    assert actions(plan_of(any_lab)) == [PlanAction.DONE, PlanAction.DONE]
    stricter = replace(find_job("probe"), policy=CoveragePolicy(accept_ratio=0.95))

    plan = plan_of(any_lab, stricter)

    assert actions(plan) == [PlanAction.BLOCKED, PlanAction.BLOCKED]
    reason = "checkpointed with 9 of 10 (90.0 %), below the 95% that is required now; "
    assert plan.steps[0].reason.startswith(reason)
    any_lab.probe("first", FEB_23, players(10))
    assert actions(plan_of(any_lab, stricter)) == [PlanAction.BUILD, PlanAction.BLOCKED]


def test_rows_are_counted_again_by_rules_that_were_added(any_lab: Lab) -> None:
    any_lab.probe_all(DAYS, players(4))
    any_lab.probe("expected", FEB_23, [*players(4), *players(1)])  # one of them twice
    any_lab.run(DAYS, "probe")
    job = find_job("probe")
    counts_rows = replace(job, expectation=replace(job.expectation, rows="equal"))

    plan = plan_of(any_lab, counts_rows)

    assert actions(plan) == [PlanAction.BLOCKED, PlanAction.STALE]
    assert "but by the present expectation and rules 3 of 4 (75.0 %) are published" in plan.steps[0].reason
    assert plan.steps[1].reason == RULES_CHANGED


def test_a_date_that_other_rules_judged_is_stale(built: Lab) -> None:
    job = find_job("probe")
    bounded = {**job.target.columns, "value": replace(job.target.columns["value"], le=1e9)}
    stricter = replace(job, target=replace(job.target, columns=bounded))

    assert {step.reason for step in plan_of(built, stricter).steps} == {RULES_CHANGED}
    assert actions(plan_of(built, stricter, reprocess=Reprocess.STALE)) == [PlanAction.BUILD, PlanAction.BUILD]
    built.change_ledger("UPDATE checkpoints SET input_parts = NULL")  # as in a checkpoint of an earlier version
    assert actions(plan_of(built, stricter)) == [PlanAction.DONE, PlanAction.DONE]


def test_a_date_that_worker_and_gate_judged_by_different_rules_is_stale(
    any_lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    any_lab.probe_all(DAYS, players(4))
    job = find_job("probe")
    bounded = {**job.target.columns, "value": replace(job.target.columns["value"], le=1e9)}
    stricter = replace(job, target=replace(job.target, columns=bounded))
    monkeypatch.setattr(processing, "find_job", lambda name: stricter)  # this worker was restarted, the gate was not

    any_lab.run(DAYS, "probe")

    for version in (job, stricter):
        assert {step.reason for step in plan_of(any_lab, version).steps} == {RULES_CHANGED}


@pytest.mark.parametrize(
    ("table", "reason"), [("first", "stale: source first changed since"), ("second", None)], ids=["used", "unused"]
)
def test_a_date_is_stale_when_a_source_changed_that_decided_its_rows(
    built: Lab, table: str, reason: str | None
) -> None:
    built.probe(table, FEB_23, players(5))

    (step, other) = plan_of(built).steps

    assert (step.action, other.action) == (PlanAction.STALE if reason else PlanAction.DONE, PlanAction.DONE)
    assert reason in (None, step.reason)


def test_a_date_from_a_fallback_is_stale_when_the_preferred_source_changed(any_lab: Lab) -> None:
    any_lab.probe_all(DAYS, players(4), first=players(1))
    any_lab.probe("second", FEB_23, players(4))
    any_lab.probe("second", FEB_24, players(4))
    any_lab.run(DAYS, "probe")
    any_lab.probe("first", FEB_23, players(4))

    (step, other) = plan_of(any_lab).steps

    assert (step.reason, other.action) == ("stale: source first changed since", PlanAction.DONE)


def with_input(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Job:
    """The probe job with an input, also in the workers of this process."""
    lab.probe("weather", FEB_23, ["sun"])
    lab.probe("weather", FEB_24, ["rain"])
    weather = Input(name="weather", table="probe.weather", date_column="day", columns={"name": "STRING"})
    job = replace(find_job("probe"), inputs=(weather,))
    for module in (processing, gate):
        monkeypatch.setattr(module, "find_job", lambda name: job)
    return job


def test_a_date_is_stale_when_an_input_changed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.probe_all(DAYS, players(4))
    job = with_input(lab, monkeypatch)
    lab.run(DAYS, "probe")
    assert actions(plan_of(lab, job)) == [PlanAction.DONE, PlanAction.DONE]
    lab.probe("weather", FEB_24, ["snow"])

    (other, step) = plan_of(lab, job).steps

    assert (other.action, step.reason) == (PlanAction.DONE, "stale: input weather changed since")


def test_a_view_of_a_table_that_is_gone_is_no_source_without_rows(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.probe_all(DAYS, players(4))
    warehouse = lab.context.warehouse
    read_entities = warehouse.read_entities

    def read_view(scan: EntityScan) -> Any:
        if scan.table == TableName("probe", "first"):
            raise TableNotFound("Not found: Table project:probe.base")
        return read_entities(scan)

    monkeypatch.setattr(warehouse, "read_entities", read_view)
    with pytest.raises(TableNotFound, match=r"probe\.base"):
        measure_dates(warehouse, find_job("probe"), DAYS)


def test_a_plan_over_fresh_dates_fingerprints_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.probe_all(DAYS, players(4))

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("fingerprints are read")

    monkeypatch.setattr(lab.context.warehouse, "column_fingerprints", fail)
    assert actions(plan_of(lab)) == [PlanAction.BUILD, PlanAction.BUILD]


def test_run_tells_of_stale_dates_at_its_end_and_is_content(lab: Lab) -> None:
    lab.probe_all(DAYS, players(4))
    assert lab.inside(*RUN).returncode == 0
    lab.probe("first", FEB_23, players(5))

    again = lab.inside(*RUN)
    as_json = lab.inside(*RUN, "--json")
    rebuilt = lab.inside(*RUN, "--reprocess", "stale")

    assert again.returncode == 0
    assert "1 date(s) are stale (2023-02-23: source first changed since)" in " ".join(again.stdout.split())
    assert json.loads(as_json.stdout)["stale"] == [{"day": "2023-02-23", "reason": "stale: source first changed since"}]
    assert rebuilt.returncode == 0
    assert "1 to build" in rebuilt.stdout
    assert actions(plan_of(lab)) == [PlanAction.DONE, PlanAction.DONE]


def newer_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 2 of the probe job is installed now."""
    newer = replace(find_job("probe"), version="2")
    monkeypatch.setattr("gated_backfill.producer.cli.tables.coverage.find_job", lambda name: newer)
    monkeypatch.setattr("gated_backfill.common.runs.stale_dates.installed_job", lambda name: newer)


def test_status_coverage_and_history_show_stale(lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lab.probe_all(DAYS, players(4))
    run = lab.run(DAYS, "probe").run.id
    assert json.loads(lab.inside("status", "--json").stdout)["stale"] == []
    assert "stale" not in lab.inside("status").stdout

    newer_everywhere(monkeypatch)

    reason = "stale: built by version 1, the job is version 2 now"
    expected = [{"day": "2023-02-23", "reason": reason}, {"day": "2023-02-24", "reason": reason}]
    status = lab.inside("status")
    assert f"stale    2 date(s), 2023-02-23..2023-02-24: {reason.removeprefix('stale: ')}" in status.stdout
    assert status.returncode == 0
    assert json.loads(lab.inside("status", run, "--json").stdout)["stale"] == expected
    cover = ("coverage", "--job", "probe", "--start-date", str(FEB_23), "--end-date", str(FEB_24))
    report = lab.inside(*cover, "--json")
    assert report.returncode == 0
    assert json.loads(report.stdout)["stale"] == expected
    assert "stale: 2 date(s): 2023-02-23..2023-02-24; `--reprocess stale` builds them" in lab.inside(*cover).stdout
    (listed,) = json.loads(lab.inside("history", "--json").stdout)["runs"]
    assert listed["stale"] == 2
    assert "2 stale" in lab.inside("history").stdout
    page = tmp_path / "history.html"
    assert lab.inside("history", "--html", str(page)).returncode == 0
    assert "2 stale" in page.read_text()


def test_status_and_history_show_dates_whose_source_changed(lab: Lab) -> None:
    lab.probe_all(DAYS, players(4))
    run = lab.run(DAYS, "probe").run.id
    lab.probe("first", FEB_23, players(5))

    as_json = json.loads(lab.inside("status", run, "--json").stdout)

    assert as_json["stale"] == [{"day": "2023-02-23", "reason": "stale: source first changed since"}]
    assert as_json["stale_not_compared"] is None
    assert "stale    1 date(s), 2023-02-23: source first changed since" in lab.inside("status").stdout
    (listed,) = json.loads(lab.inside("history", "--json").stdout)["runs"]
    assert listed["stale"] == 1


def test_status_and_history_say_when_sources_cannot_be_compared(lab: Lab) -> None:
    lab.probe_all(DAYS, players(4))
    run = lab.run(DAYS, "probe").run.id
    lab.probe("first", FEB_23, players(5))
    part = lab.home / "warehouse" / "probe" / "first" / "day=2023-02-23" / "part.parquet"
    part.with_name("other.parquet").write_bytes(part.read_bytes())

    as_json = json.loads(lab.inside("status", run, "--json").stdout)
    page = lab.home / "history.html"
    status, history = lab.inside("status"), lab.inside("history")
    assert lab.inside("history", "--html", str(page)).returncode == 0

    assert "Stale dates of probe: sources and inputs were not compared" in page.read_text()
    assert as_json["stale"] == []
    assert "holds other.parquet, which is not ours" in as_json["stale_not_compared"]
    assert "stale    sources and inputs were not compared: " in status.stdout
    assert (status.returncode, history.returncode) == (0, 0)
    assert "stale dates of probe: sources and inputs were not compared: " in history.stdout


def test_dates_are_not_stale_because_their_tables_are_somewhere_else(lab: Lab) -> None:
    lab.probe_all(DAYS, players(4))
    run = lab.run(DAYS, "probe").run.id
    (lab.home / "warehouse").rename(lab.home / "elsewhere")

    as_json = json.loads(lab.inside("status", run, "--json").stdout)

    assert as_json["stale"] == []
    assert "probe.expected" in as_json["stale_not_compared"]


def test_a_run_that_goes_on_is_not_compared(lab: Lab) -> None:
    lab.probe_all(DAYS, players(4))
    run = lab.run(DAYS, "probe").run

    def open_warehouse() -> Warehouse:
        raise AssertionError("opened")

    going_on = replace(run, state=RunState.RUNNING)
    assert find_stale_dates_of_runs([going_on], lab.ledger, open_warehouse).reasons == {}
    with pytest.raises(AssertionError, match="opened"):
        find_stale_dates_of_runs([run], lab.ledger, open_warehouse)


def test_coverage_shows_dates_whose_source_changed(lab: Lab) -> None:
    lab.probe_all(DAYS, players(4))
    lab.run(DAYS, "probe")
    lab.probe("first", FEB_23, players(5))

    report = lab.inside("coverage", "--job", "probe", "--dates", "2023-02-23,2023-02-24", "--json")

    assert json.loads(report.stdout)["stale"] == [{"day": "2023-02-23", "reason": "stale: source first changed since"}]


# -- retry --


def fail_dates_after(lab: Lab, first_run: Callable[[], object]) -> str:
    """A second run of all dates leaves the second one failed, after a first run built both; returns its id."""
    lab.probe_all(DAYS, players(4))
    first_run()
    lab.probe("first", FEB_24, players(4), trick="raise")
    assert lab.run(DAYS, "probe", reprocess=Reprocess.ALL).run.state is RunState.PARTIAL
    lab.probe("first", FEB_24, players(4))
    return lab.latest_run().id


def test_retry_builds_what_a_run_left_that_was_to_build_it_again(lab: Lab) -> None:
    run = fail_dates_after(lab, lambda: lab.run(DAYS, "probe"))

    retried = lab.inside("retry", run, "--sequential", "--json")

    result = json.loads(retried.stdout)
    assert retried.returncode == 0
    assert [date["day"] for date in result["dates"]] == ["2023-02-24"]
    assert result["completed_since"] == []
    assert lab.ledger.checkpoints.list_checkpoints("probe", FEB_24, FEB_24)[FEB_24].run_id == result["run"]


def test_retry_leaves_what_a_later_run_has_completed_and_says_so(lab: Lab) -> None:
    run = fail_dates_after(lab, lambda: lab.run(DAYS, "probe"))
    later = lab.run([FEB_24], "probe", reprocess=Reprocess.ALL).run.id

    retried = lab.inside("retry", run, "--sequential")
    as_json = lab.inside("retry", run, "--sequential", "--json")

    assert retried.returncode == 0
    assert f"1 date(s) were completed by run {later} since: 2023-02-24" in retried.stdout
    assert "nothing to do" in retried.stdout
    assert json.loads(as_json.stdout)["completed_since"] == [{"run": later, "days": ["2023-02-24"]}]
    assert lab.latest_run().id == later


def test_retry_builds_what_was_cancelled(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.probe_all(DAYS, players(4))
    lab.run(DAYS, "probe")
    all_dates = lab.plan(DAYS, "probe", reprocess=Reprocess.ALL)
    monkeypatch.setattr(lab, "plan", lambda days, job: all_dates)
    run, *_ = lab.opened(DAYS, "probe")
    lab.context.ledger.orders.cancel_run(run.id, by="a test", reason=None, discard=False, now=False)
    lab.context.ledger.runs.finish_run(run.id)

    retried = lab.inside("retry", run.id, "--sequential", "--json")

    assert [date["state"] for date in json.loads(retried.stdout)["dates"]] == ["checkpointed", "checkpointed"]
