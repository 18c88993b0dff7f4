"""An expectation that cannot be complete blocks its date, wherever it became so: plan, worker, gate and audit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

import pytest

from gated_backfill.common.audit.audit import audit_dates
from gated_backfill.common.audit.findings import AuditFinding
from gated_backfill.common.ledger import DateState, RunState
from gated_backfill.common.model.coverage import Verdict
from gated_backfill.common.model.registry import find_job
from gated_backfill.producer.planning.plan import PlanAction, Reprocess
from gated_backfill.worker.gate.gate import close_window
from tests.builders import process_date
from tests.lab import PLAYER_JOB, PROBE_TYPES, Lab, players

DAY = date(2023, 2, 23)
AROUND = [DAY + timedelta(days=n) for n in range(-3, 4)]
PROVEN_187 = "fewer than 169: 187 were expected when run"


def planned(lab: Lab, days: Sequence[date] = (DAY,), **request: Any) -> list[tuple[PlanAction, str]]:
    return [(step.action, step.reason) for step in lab.plan(days, "probe", **request).steps]


# -- a rebuild ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preflight", [pytest.param(True, id="plan"), pytest.param(False, id="gate")])
def test_a_rebuild_against_an_expectation_that_shrank_is_blocked(any_lab: Lab, preflight: bool) -> None:
    any_lab.probe_all([DAY], players(187))
    any_lab.run([DAY], "probe")
    before = any_lab.table_bytes("probe.probe")
    any_lab.probe_all([DAY], players(12))

    progress = any_lab.run([DAY], "probe", reprocess=Reprocess.ALL, preflight=preflight, allow_partial=True)

    outcome = any_lab.outcome(DAY, progress)
    assert outcome.state is DateState.BLOCKED
    assert f"expectation incomplete: 12 expected, {PROVEN_187}" in (outcome.reason or "")
    assert any_lab.table_bytes("probe.probe") == before

    forced = any_lab.run([DAY], "probe", reprocess=Reprocess.ALL, because="the others have left")
    assert any_lab.outcome(DAY, forced).verdict is Verdict.FORCED
    assert len(any_lab.published("probe.probe", DAY, "day")) == 12


@pytest.mark.parametrize("now", [pytest.param(12, id="shrunk"), pytest.param(0, id="vanished")])
def test_a_checkpointed_date_whose_expectation_is_lost_is_not_done(lab: Lab, now: int) -> None:
    lab.probe_all([DAY, DAY + timedelta(days=1)], players(187))
    lab.run([DAY], "probe")
    if now:
        lab.probe("expected", DAY, players(now))
    else:
        part = lab.home / "warehouse" / "probe" / "expected" / f"day={DAY}" / "part.parquet"
        part.unlink()

    ((action, reason),) = planned(lab)
    assert action is PlanAction.BLOCKED
    assert reason.startswith(f"expectation incomplete: {now} expected, {PROVEN_187}")
    arguments = ("--job", "probe", "--start-date", str(DAY), "--end-date", str(DAY))
    assert lab.inside("plan", *arguments).returncode == 3
    assert lab.inside("run", *arguments, "--sequential", "--allow-partial").returncode == 3
    refused = lab.inside("run", *arguments, "--sequential")
    assert refused.returncode == 3
    assert "expectation incomplete" in refused.stderr
    covered = lab.inside("coverage", *arguments, "--json")
    assert covered.returncode == 3
    assert json.loads(covered.stdout)["dates"][0]["finding"] == "expectation incomplete"


def test_an_expectation_that_shrinks_during_the_run_blocks_the_date(lab: Lab) -> None:
    days = [DAY, DAY + timedelta(days=1)]
    lab.probe_all(days, players(187))
    run, deps, _ = lab.opened(days, "probe")
    lab.probe("expected", DAY, players(100))
    for day in days:
        process_date(run.id, day, deps)
    lab.probe("expected", days[1], players(100))
    close_window(run.id, 1, deps)

    rows = deps.ledger.dates.list_dates(run.id)
    assert [row.state for row in rows] == [DateState.BLOCKED] * 2
    reason = "expectation incomplete: 100 expected, fewer than 169: 187 were expected when the run was planned, "
    reason += "and 90% of that is required"
    assert [row.reason for row in rows] == [reason] * 2
    assert deps.ledger.runs.get_run(run.id).state is RunState.FAILED


# -- the dates around it ------------------------------------------------------------------------------------------


def test_a_date_with_far_fewer_entities_than_the_dates_around_it_is_blocked(any_lab: Lab) -> None:
    any_lab.probe_all(AROUND, players(20))
    any_lab.probe_all([DAY], players(1))

    reason = "expectation incomplete: 1 expected, fewer than 2: 20 are usual on the 6 dates around it, "
    reason += "and 10% of that is required"
    assert planned(any_lab) == [(PlanAction.BLOCKED, reason)]
    assert planned(any_lab, AROUND)[3] == (PlanAction.BLOCKED, reason)
    progress = any_lab.run([DAY], "probe")
    assert (any_lab.outcome(DAY, progress).state, any_lab.outcome(DAY, progress).reason) == (DateState.BLOCKED, reason)
    audited = audit_dates(find_job("probe"), [DAY], any_lab.context.warehouse, any_lab.ledger).dates[0]
    assert (audited.finding, audited.reason) == (AuditFinding.EXPECTATION_INCOMPLETE, reason)


# -- what speaks against an empty expectation, and rows without an entity ------------------------------------------


def judged(any_lab: Lab, day: date = DAY) -> set[str]:
    """What plan, worker and audit say of the date, which they all block."""
    ((action, reason),) = planned(any_lab, [day])
    assert action is PlanAction.BLOCKED
    outcome = any_lab.outcome(day, any_lab.run([day], "probe"))  # without pre-flight
    assert (outcome.state, outcome.verdict) == (DateState.BLOCKED, Verdict.BLOCKED)
    audited = audit_dates(find_job("probe"), [day], any_lab.context.warehouse, any_lab.ledger).dates[0]
    assert audited.finding is AuditFinding.EXPECTATION_INCOMPLETE
    return {reason, outcome.reason or "", audited.reason}


def test_an_empty_expectation_is_blocked_where_sources_have_rows(any_lab: Lab) -> None:
    any_lab.probe_all([DAY + timedelta(days=1)], players(20))
    any_lab.probe("first", DAY, players(20))
    any_lab.probe("second", DAY, players(3))

    reason = "nothing is expected, but source first has 20 row(s) and source second has 3 row(s)"
    assert judged(any_lab) == {f"expectation incomplete: {reason}"}


def test_an_empty_expectation_is_blocked_where_the_target_has_rows(any_lab: Lab) -> None:
    any_lab.probe_all([DAY + timedelta(days=1)], players(20))
    types = {name: column.type for name, column in find_job("probe").target.columns.items()}
    any_lab.load("probe.probe", DAY, [{"name": "by the daily job"}], types)

    assert judged(any_lab) == {"expectation incomplete: nothing is expected, but the target has rows"}


def test_a_date_that_nothing_speaks_for_is_skipped(any_lab: Lab) -> None:
    any_lab.probe_all([DAY + timedelta(days=1)], players(20))

    assert planned(any_lab) == [(PlanAction.SKIP, "nothing expected")]
    assert any_lab.run([DAY], "probe").run.state is RunState.SUCCEEDED
    audited = audit_dates(find_job("probe"), [DAY], any_lab.context.warehouse, any_lab.ledger).dates[0]
    assert (audited.finding, audited.reason) == (AuditFinding.SKIPPED, "nothing expected")


@pytest.mark.parametrize("named", [pytest.param(20, id="some"), pytest.param(0, id="all")])
def test_rows_of_the_expectation_without_an_entity_block_the_date(any_lab: Lab, named: int) -> None:
    rows = [{"name": name} for name in [*players(named), None, None, None]]
    any_lab.load("probe.expected", DAY, rows, PROBE_TYPES)
    any_lab.probe("first", DAY, players(20))

    reason = "3 row(s) of probe.expected have a null entity: fill or delete them"
    assert judged(any_lab) == {f"expectation incomplete: {reason}"}


def test_an_entity_that_is_lost_before_the_gate_blocks_the_date(lab: Lab) -> None:
    lab.probe_all([DAY], players(20))
    run, deps, _ = lab.opened([DAY], "probe")
    process_date(run.id, DAY, deps)
    lab.load("probe.expected", DAY, [{"name": name} for name in [*players(19), None]], PROBE_TYPES)
    close_window(run.id, 1, deps)

    (row,) = deps.ledger.dates.list_dates(run.id)
    assert row.reason == "expectation incomplete: 1 row(s) of probe.expected have a null entity: fill or delete them"


# -- the calendar -------------------------------------------------------------------------------------------------


def test_a_calendar_that_an_earlier_run_had_is_missed(any_lab: Lab) -> None:
    any_lab.summary(DAY, players(20))
    any_lab.upcoming(DAY, players(20))
    any_lab.schedule(DAY, 1)
    first = any_lab.run([DAY], preflight=True)
    any_lab.drop("nba_reference.schedule")

    arguments = ("--job", PLAYER_JOB.name, "--start-date", str(DAY), "--end-date", str(DAY))
    for command in ("plan", "coverage"):
        refused = any_lab.inside(command, *arguments)
        assert refused.returncode == 2
        gone = f"nba_reference.schedule: the calendar was there when run {first.run.id} was planned and is gone"
        assert gone in refused.stderr


def test_rows_of_a_source_on_a_day_without_events_block_the_date(lab: Lab) -> None:
    for day, games in ((DAY, 0), (DAY + timedelta(days=1), 1)):
        lab.upcoming(day, players(20))
        lab.schedule(day, games) if games else None
    lab.summary(DAY + timedelta(days=1), players(20))

    (step,) = lab.plan([DAY]).steps
    reason = "nothing is expected and the calendar has no event, but source upcoming has 20 row(s)"
    assert (step.action, step.reason) == (PlanAction.BLOCKED, f"expectation incomplete: {reason}")


def test_a_calendar_that_was_never_there_is_named_in_a_note(lab: Lab) -> None:
    lab.summary(DAY, players(20))
    lab.upcoming(DAY, players(20))
    lab.run([DAY])

    plan = lab.plan([DAY])
    assert [note for note in plan.notes if note.startswith("calendar nba_reference.schedule does not exist")]
    assert plan.steps[0].action is PlanAction.DONE
