"""The situations of the incident, each against the real ledger, warehouse, staging, workers' code and gate."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest
import structlog

from gated_backfill.common.errors import Retryable, UserError
from gated_backfill.common.ledger import DateState, RunState
from gated_backfill.common.model.coverage import Fallback, Verdict
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.producer.planning.plan import PlanAction, Reprocess
from gated_backfill.producer.runs.launch import open_run
from gated_backfill.worker.dates.outcomes import RetryLater
from gated_backfill.worker.dependencies import open_deps
from gated_backfill.worker.gate.gate import GateOutcome, close_window
from gated_backfill.worker.inline import InlineDispatcher
from gated_backfill.worker.reconcile.reconcile import reconcile
from tests.builders import process_date
from tests.lab import PACKAGES, Lab, players

DAY = date(2023, 2, 23)
NEXT_DAY = date(2023, 2, 24)
TARGET = "nba_precompute.player_composite_factors"


def names_of(any_lab: Lab, day: date = DAY) -> set[str]:
    return {row["player_lookup"] for row in any_lab.published(TARGET, day)}


@pytest.mark.parametrize(
    ("found", "expected", "state", "verdict", "share"),
    [
        pytest.param(187, 187, DateState.CHECKPOINTED, Verdict.COMPLETE, "100.0 %", id="whole"),
        pytest.param(190, 200, DateState.CHECKPOINTED, Verdict.COMPLETE, "95.0 %", id="exactly-95"),
        pytest.param(180, 200, DateState.CHECKPOINTED, Verdict.ACCEPTED, "90.0 %", id="exactly-90"),
        pytest.param(899, 1000, DateState.BLOCKED, Verdict.BLOCKED, "89.9 %", id="just-below-90"),
        pytest.param(94, 187, DateState.BLOCKED, Verdict.BLOCKED, "50.2 %", id="half"),
        pytest.param(1, 187, DateState.BLOCKED, Verdict.BLOCKED, "0.5 %", id="one-stale-row"),
    ],
)
def test_a_date_is_published_only_at_sufficient_coverage(
    any_lab: Lab, found: int, expected: int, state: DateState, verdict: Verdict, share: str
) -> None:
    any_lab.summary(DAY, players(expected))
    any_lab.upcoming(DAY, players(found))

    outcome = any_lab.outcome(DAY, any_lab.run([DAY], fallback=Fallback.OFF))

    assert (outcome.state, outcome.verdict) == (state, verdict)
    assert share in (outcome.reason or "")
    assert (outcome.matched, outcome.expected) == (found, expected)
    assert len(names_of(any_lab)) == (found if verdict.is_passing else 0)
    assert (
        DAY in any_lab.ledger.checkpoints.list_checkpoints("player_composite_factors", DAY, DAY)
    ) is verdict.is_passing


def test_a_blocked_date_names_who_is_missing_and_keeps_the_refused_rows(any_lab: Lab) -> None:
    any_lab.summary(DAY, players(187))
    any_lab.upcoming(DAY, players(1))

    outcome = any_lab.outcome(DAY, any_lab.run([DAY], fallback=Fallback.OFF))

    assert list(outcome.missing) == players(187)[1:]
    assert outcome.staged_path is not None
    assert "quarantine" in outcome.staged_path
    assert Path(outcome.staged_file().location).exists()


def test_nothing_expected_off_the_calendar_is_skipped(lab: Lab) -> None:
    lab.summary(NEXT_DAY, players(40))
    lab.schedule(NEXT_DAY, games=2)

    progress = lab.run([DAY, NEXT_DAY])

    assert lab.outcome(DAY, progress).state is DateState.SKIPPED
    assert lab.outcome(DAY, progress).reason == "not on the calendar"
    assert progress.run.state is RunState.SUCCEEDED


def test_nothing_expected_without_a_calendar_is_skipped_with_just_that_reason(lab: Lab) -> None:
    lab.summary(NEXT_DAY, players(40))

    progress = lab.run([DAY, NEXT_DAY])

    assert lab.outcome(DAY, progress).reason == "nothing expected"


def test_nothing_expected_on_a_calendar_date_is_blocked(lab: Lab) -> None:
    lab.schedule(DAY, games=2)
    lab.summary(NEXT_DAY, players(40))

    outcome = lab.outcome(DAY, lab.run([DAY]))

    assert outcome.state is DateState.BLOCKED
    assert "expectation incomplete: 0 expected" in (outcome.reason or "")


def test_an_expectation_below_what_the_calendar_implies_is_blocked(any_lab: Lab) -> None:
    any_lab.schedule(DAY, games=2)
    any_lab.summary(DAY, players(31))
    any_lab.upcoming(DAY, players(31))

    outcome = any_lab.outcome(DAY, any_lab.run([DAY]))

    assert outcome.state is DateState.BLOCKED
    assert "at least 32" in (outcome.reason or "")


def test_force_without_a_reason_is_refused_and_starts_nothing(lab: Lab) -> None:
    lab.summary(DAY, players(187))

    refused = lab.command("run", "--job", "player_composite_factors", "--dates", str(DAY), "--force")

    assert refused.returncode == 2
    assert "--force needs --reason" in refused.stderr
    assert lab.ledger.runs.list_latest_runs() == []


def test_force_with_a_reason_commits_the_date_as_forced_for_ever(any_lab: Lab) -> None:
    any_lab.summary(DAY, players(187))
    any_lab.upcoming(DAY, players(94))

    progress = any_lab.run([DAY], fallback=Fallback.OFF, because="the box scores of one arena are lost")

    assert any_lab.outcome(DAY, progress).verdict is Verdict.FORCED
    checkpoint = any_lab.ledger.checkpoints.list_checkpoints("player_composite_factors", DAY, DAY)[DAY]
    assert checkpoint.verdict is Verdict.FORCED
    assert "the box scores of one arena are lost" in checkpoint.reason
    assert len(names_of(any_lab)) == 94
    assert "forced" in any_lab.plan([DAY]).steps[0].reason


def test_force_never_commits_rows_that_are_wrong_in_themselves(lab: Lab) -> None:
    lab.summary(DAY, players(20))
    lab.upcoming(DAY, [*players(20), "player000"])

    progress = lab.run([DAY], because="hurry")

    assert lab.outcome(DAY, progress).state is DateState.BLOCKED


def test_an_expectation_that_became_unreadable_before_the_gate_blocks(any_lab: Lab) -> None:
    any_lab.summary(DAY, players(187))
    any_lab.upcoming(DAY, players(187))
    run, deps, _ = any_lab.opened([DAY])
    assert process_date(run.id, DAY, deps).state == "staged"

    any_lab.drop("nba_analytics.player_game_summary")
    assert close_window(run.id, 1, deps) is GateOutcome.CLOSED

    (row,) = deps.ledger.dates.list_dates(run.id)
    assert row.state is DateState.BLOCKED
    assert "expectation unreadable" in (row.reason or "")
    assert names_of(any_lab) == set()


@pytest.mark.parametrize("gone", ["before-the-worker", "before-the-gate"])
def test_a_calendar_that_vanished_after_the_plan_blocks(any_lab: Lab, gone: str) -> None:
    any_lab.schedule(DAY, games=1)
    any_lab.summary(DAY, players(20))
    run, deps, _ = any_lab.opened([DAY])
    if gone == "before-the-gate":
        process_date(run.id, DAY, deps)
    any_lab.drop("nba_reference.schedule")
    deps = any_lab.opened_again()
    process_date(run.id, DAY, deps)
    close_window(run.id, 1, deps)

    (row,) = deps.ledger.dates.list_dates(run.id)
    assert row.state is DateState.BLOCKED
    assert "the calendar was there when the run was planned" in (row.reason or "")


def test_an_expectation_unreadable_for_the_worker_blocks(lab: Lab) -> None:
    lab.summary(DAY, players(187))
    run, deps, _ = lab.opened([DAY])

    lab.drop("nba_analytics.player_game_summary")
    process_date(run.id, DAY, deps)
    close_window(run.id, 1, deps)

    (row,) = deps.ledger.dates.list_dates(run.id)
    assert row.state is DateState.BLOCKED
    assert "expectation unreadable" in (row.reason or "")
    assert deps.ledger.runs.get_run(run.id).state is RunState.FAILED


def test_as_many_rows_of_the_wrong_players_are_blocked(any_lab: Lab) -> None:
    any_lab.summary(DAY, players(187))
    any_lab.upcoming(DAY, players(187, prefix="stranger"))

    outcome = any_lab.outcome(DAY, any_lab.run([DAY], fallback=Fallback.OFF))

    assert (outcome.state, outcome.matched, outcome.rows) == (DateState.BLOCKED, 0, 187)


def test_the_same_player_twice_is_blocked_as_a_duplicate_key(any_lab: Lab) -> None:
    any_lab.summary(DAY, players(187))
    any_lab.upcoming(DAY, [*players(187), "player005"])

    outcome = any_lab.outcome(DAY, any_lab.run([DAY]))

    assert outcome.state is DateState.BLOCKED
    assert "duplicate key" in (outcome.reason or "")


@pytest.mark.parametrize(
    ("in_primary", "chosen"),
    [
        pytest.param(None, "derived", id="no-table"),
        pytest.param(0, "derived", id="empty"),
        pytest.param(1, "derived", id="half-a-per-cent"),
        pytest.param(78, "derived", id="39-per-cent"),
        pytest.param(179, "derived", id="just-below-90-per-cent"),
        pytest.param(180, "upcoming", id="exactly-90-per-cent"),
        pytest.param(200, "upcoming", id="complete"),
    ],
)
def test_coverage_of_the_primary_decides_whether_to_fall_back(lab: Lab, in_primary: int | None, chosen: str) -> None:
    lab.summary(DAY, players(200))
    if in_primary is not None:
        lab.upcoming(NEXT_DAY, players(3))
    if in_primary:
        lab.upcoming(DAY, players(in_primary))

    with structlog.testing.capture_logs() as logs:
        outcome = lab.outcome(DAY, lab.run([DAY], preflight=True))

    assert (outcome.state, outcome.source) == (DateState.CHECKPOINTED, chosen)
    assert outcome.found == {"upcoming": in_primary or 0, "derived": 200}
    (check,) = [event for event in logs if event["event"] == "source_check"]
    assert check["expected"] == 200
    assert check["found"] == {"upcoming": in_primary or 0, "derived": 200}
    assert check["coverage"] == {"upcoming": (in_primary or 0) / 200, "derived": 1.0}
    assert check["chosen"] == chosen
    assert check["day"] == "2023-02-23"


def test_both_sources_partial_takes_the_better_one_and_the_gate_refuses_it(any_lab: Lab) -> None:
    any_lab.probe_all([DAY], players(100), first=players(30))
    any_lab.probe("second", DAY, players(100)[50:])

    outcome = any_lab.outcome(DAY, any_lab.run([DAY], "probe"))

    assert (outcome.state, outcome.source, outcome.matched) == (DateState.BLOCKED, "second", 50)
    assert list(outcome.missing) == players(100)[:50]


def test_the_source_check_of_a_blocked_date_samples_who_is_missing(lab: Lab) -> None:
    lab.probe_all([DAY], players(100), first=players(30))
    lab.probe("second", DAY, players(100)[50:])

    with structlog.testing.capture_logs() as logs:
        lab.run([DAY], "probe")

    (check,) = [event for event in logs if event["event"] == "source_check"]
    assert check["missing"] == players(100)[:12]
    assert check["missing_count"] == 50
    assert check["reason"] == "no source reaches 90%; the best has 50.0 %"


def test_fill_keeps_the_primary_rows_and_takes_only_the_missing_players(any_lab: Lab) -> None:
    any_lab.probe_all([DAY], players(100), first=players(68))
    any_lab.probe("second", DAY, players(100))

    outcome = any_lab.outcome(DAY, any_lab.run([DAY], "probe", fallback=Fallback.FILL))

    assert (outcome.state, outcome.source) == (DateState.CHECKPOINTED, "first+second")
    came_from = {row["name"]: row["source"] for row in any_lab.published("probe.probe", DAY, "day")}
    assert came_from == {name: "first" if n < 68 else "second" for n, name in enumerate(players(100))}


def test_fill_completes_a_date_that_neither_source_holds_alone(lab: Lab) -> None:
    lab.probe_all([DAY], players(100), first=players(60))
    lab.probe("second", DAY, players(100)[40:])

    assert lab.run([DAY], "probe", fallback=Fallback.FILL, preflight=True).run.state is RunState.SUCCEEDED


def test_fill_works_for_the_player_factors_too(lab: Lab) -> None:
    lab.summary(DAY, players(175))
    lab.upcoming(DAY, players(68))

    outcome = lab.outcome(DAY, lab.run([DAY], fallback=Fallback.FILL))

    assert (outcome.state, outcome.source) == (DateState.CHECKPOINTED, "upcoming+derived")
    sources = [row["context_source"] for row in lab.published(TARGET, DAY)]
    assert (sources.count("upcoming"), sources.count("derived")) == (68, 107)


@pytest.mark.parametrize(
    ("spoil", "state", "reason"),
    [
        pytest.param("duplicate", DateState.BLOCKED, "duplicate key", id="a-row-twice"),
        pytest.param("null key", DateState.BLOCKED, "null key", id="a-key-without-value"),
        pytest.param("out of range", DateState.BLOCKED, "value fails greater_than_or_equal_to(0)", id="out-of-range"),
        pytest.param("wrong day", DateState.FAILED, "rows of other dates: ['2023-02-24']", id="another-dates-rows"),
        pytest.param("no column", DateState.FAILED, "missing columns ['value']", id="a-column-less"),
        pytest.param("no frame", DateState.FAILED, "not a DataFrame", id="no-rows-at-all"),
    ],
)
def test_rows_that_are_wrong_in_themselves_never_pass(lab: Lab, spoil: str, state: DateState, reason: str) -> None:
    lab.probe_all([DAY], players(20), spoil=spoil)

    progress = lab.run([DAY], "probe")

    assert lab.outcome(DAY, progress).state is state
    assert reason in (lab.outcome(DAY, progress).reason or "")
    assert lab.published("probe.probe", DAY, "day") == []


def test_rows_may_keep_the_column_that_names_their_source(lab: Lab) -> None:
    lab.probe_all([DAY], players(20), spoil="as it came")

    progress = lab.run([DAY], "probe")

    assert lab.outcome(DAY, progress).state is DateState.CHECKPOINTED
    rows = lab.published("probe.probe", DAY, "day")
    assert [set(row) for row in rows] == [{"name", "day", "value", "source"}] * 20


def test_one_failing_date_does_not_hold_up_the_others(lab: Lab) -> None:
    for day in (DAY, NEXT_DAY):
        lab.probe("expected", day, players(20))
    lab.probe("first", DAY, players(20), trick="raise")
    lab.probe("first", NEXT_DAY, players(20))

    progress = lab.run([DAY, NEXT_DAY], "probe")

    assert progress.run.state is RunState.PARTIAL
    assert lab.outcome(DAY, progress).error == "RuntimeError: no luck on 2023-02-23"
    assert lab.outcome(NEXT_DAY, progress).state is DateState.CHECKPOINTED


def test_a_transient_error_is_retried_until_it_passes(lab: Lab) -> None:
    lab.probe_all([DAY], players(20), trick="transient:3")

    outcome = lab.outcome(DAY, lab.run([DAY], "probe"))

    assert (outcome.state, outcome.attempt) == (DateState.CHECKPOINTED, 4)


def test_a_transient_error_that_does_not_pass_fails_the_date(lab: Lab) -> None:
    lab.probe_all([DAY], players(20), trick="transient:99")

    outcome = lab.outcome(DAY, lab.run([DAY], "probe"))

    assert (outcome.state, outcome.error_kind) == (DateState.FAILED, "WarehouseUnavailable")


def test_a_target_written_by_somebody_else_in_between_is_processed_again_not_overwritten(any_lab: Lab) -> None:
    any_lab.summary(DAY, players(20))
    any_lab.upcoming(DAY, players(20))
    run, deps, dispatcher = any_lab.opened([DAY])
    process_date(run.id, DAY, deps)
    types = {name: column.type for name, column in find_job(run.job).target.columns.items()}
    any_lab.load(TARGET, DAY, [{"player_lookup": "written by the daily job"}], types)

    assert close_window(run.id, 1, deps) is GateOutcome.REQUEUED
    assert names_of(any_lab) == {"written by the daily job"}
    dispatcher.drain(deps, lambda: None)

    (row,) = deps.ledger.dates.list_dates(run.id)
    assert (row.state, row.attempt) == (DateState.CHECKPOINTED, 2)
    assert names_of(any_lab) == set(players(20))


def test_a_staged_file_that_is_lost_or_damaged_is_made_again(lab: Lab) -> None:
    lab.summary(DAY, players(20))
    run, deps, dispatcher = lab.opened([DAY])
    process_date(run.id, DAY, deps)
    Path(deps.ledger.dates.list_dates(run.id)[0].staged_file().location).write_bytes(b"half a file")

    assert close_window(run.id, 1, deps) is GateOutcome.REQUEUED
    dispatcher.drain(deps, lambda: None)

    assert deps.ledger.dates.list_dates(run.id)[0].state is DateState.CHECKPOINTED


def test_a_gate_called_early_leaves_the_window_alone_and_called_again_does_nothing(lab: Lab) -> None:
    lab.summary(DAY, players(20))
    run, deps, _ = lab.opened([DAY])

    assert close_window(run.id, 1, deps) is GateOutcome.NOT_READY
    process_date(run.id, DAY, deps)
    assert close_window(run.id, 1, deps) is GateOutcome.CLOSED
    before = lab.table_bytes(TARGET)
    assert close_window(run.id, 1, deps) is GateOutcome.NOT_CLAIMED
    assert process_date(run.id, DAY, deps).state == "not claimed"
    assert lab.table_bytes(TARGET) == before


def test_reprocessing_keeps_the_published_rows_when_the_gate_blocks(any_lab: Lab) -> None:
    any_lab.summary(DAY, players(187))
    any_lab.upcoming(DAY, players(1))
    first = any_lab.run([DAY])
    before = any_lab.table_bytes(TARGET)

    replay = any_lab.run([DAY], fallback=Fallback.OFF, reprocess=Reprocess.ALL)

    assert any_lab.outcome(DAY, replay).state is DateState.BLOCKED
    assert any_lab.table_bytes(TARGET) == before
    assert any_lab.ledger.checkpoints.list_checkpoints("player_composite_factors", DAY, DAY)[DAY].run_id == first.run.id


def test_preflight_refuses_a_date_that_would_be_blocked_and_names_it(lab: Lab) -> None:
    lab.probe("expected", DAY, players(100))
    lab.probe("expected", NEXT_DAY, players(100))
    lab.probe("first", DAY, players(30))
    lab.probe("first", NEXT_DAY, players(100))

    with pytest.raises(UserError, match=r"1 date\(s\) would be blocked: 2023-02-23 .*--allow-partial"):
        lab.run([DAY, NEXT_DAY], "probe", preflight=True)
    assert lab.ledger.runs.list_latest_runs() == []

    progress = lab.run([DAY, NEXT_DAY], "probe", preflight=True, allow_partial=True)
    assert progress.run.state is RunState.PARTIAL
    assert lab.outcome(DAY, progress).state is DateState.BLOCKED
    assert list(lab.outcome(DAY, progress).missing) == players(100)[30:]
    assert lab.outcome(NEXT_DAY, progress).state is DateState.CHECKPOINTED


def test_a_job_that_workers_can_not_load_fails_its_dates(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.probe_all((DAY, NEXT_DAY), players(20))
    run, deps, _ = lab.opened([DAY, NEXT_DAY], "probe")
    process_date(run.id, DAY, deps)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path != str(PACKAGES / "probe_jobs")])
    find_job.cache_clear()

    with pytest.raises(RetryLater):
        process_date(run.id, NEXT_DAY, deps)
    process_date(run.id, NEXT_DAY, deps, retries=deps.settings.max_retries)
    with pytest.raises(Retryable):
        close_window(run.id, 1, deps)
    assert close_window(run.id, 1, deps, is_last_attempt=True) is GateOutcome.CLOSED

    rows = deps.ledger.dates.list_dates(run.id)
    assert {row.state for row in rows} == {DateState.FAILED}
    assert all("there is no job named 'probe'" in (row.reason or "") for row in rows)
    assert deps.ledger.runs.get_run(run.id).state is RunState.FAILED


def test_a_run_whose_command_died_before_it_began_is_brought_on(lab: Lab) -> None:
    lab.probe_all([DAY], players(20))
    job = find_job("probe")
    options = RunOptions.for_job(job, window=1, in_flight=1, fallback=None, forced_because=None)
    run = open_run(lab.plan([DAY], "probe"), job, options, lab.context, owned=False)
    dispatcher = InlineDispatcher()
    deps = open_deps(lab.settings, dispatcher)

    reconcile(run.id, deps)
    assert deps.ledger.runs.get_run(run.id).state is RunState.PLANNED  # its command may be about to start it
    late = lab.settings.model_copy(update={"start_late_seconds": 0})
    reconcile(run.id, replace(deps, settings=late))
    dispatcher.drain(deps, lambda: None)

    assert deps.ledger.runs.get_run(run.id).state is RunState.SUCCEEDED


def test_a_permission_that_is_missing_ends_the_run_at_once(lab: Lab) -> None:
    days = [DAY + timedelta(days=n) for n in range(6)]
    for day in days:
        lab.probe_all([day], players(20), trick="forbid" if day == DAY else None)

    progress = lab.run(days, "probe", window=2)

    assert progress.run.state is RunState.FAILED
    assert {lab.outcome(day, progress).error_kind for day in days} == {"NotAllowed"}
    assert lab.table_bytes("probe.probe") == {}


def test_a_checkpointed_date_whose_rows_are_no_longer_there_is_built_again(any_lab: Lab) -> None:
    any_lab.probe_all((DAY, NEXT_DAY), players(20))
    any_lab.run([DAY, NEXT_DAY], "probe")
    whole = any_lab.table_bytes("probe.probe")
    types = {name: column.type for name, column in find_job("probe").target.columns.items()}
    any_lab.load("probe.probe", DAY, [{"name": "player000"}], types)

    steps = {step.day: step for step in any_lab.plan([DAY, NEXT_DAY], "probe").steps}
    assert (steps[DAY].action, steps[NEXT_DAY].action) == (PlanAction.BUILD, PlanAction.DONE)
    assert steps[DAY].reason.startswith("checkpointed, but its rows were changed since")
    left = any_lab.plan([DAY], "probe", reprocess=Reprocess.NONE).steps[0]
    assert left.is_left_incomplete

    any_lab.run([DAY, NEXT_DAY], "probe")
    assert any_lab.table_bytes("probe.probe") == whole
    any_lab.drop("probe.probe")
    assert {step.action for step in any_lab.plan([DAY, NEXT_DAY], "probe").steps} == {PlanAction.BUILD}
