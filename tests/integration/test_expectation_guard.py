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
from tests.lab import PLAYER_JOB, Lab, players

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


def test_a_calendar_that_was_never_there_is_named_in_a_note(lab: Lab) -> None:
    lab.summary(DAY, players(20))
    lab.upcoming(DAY, players(20))
    lab.run([DAY])

    plan = lab.plan([DAY])
    assert [note for note in plan.notes if note.startswith("calendar nba_reference.schedule does not exist")]
    assert plan.steps[0].action is PlanAction.DONE
