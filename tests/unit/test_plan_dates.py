"""What a run would do with each date, and that a saved plan is what runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from gated_backfill.common.audit.staleness import Staleness
from gated_backfill.common.errors import UserError
from gated_backfill.common.ledger import Checkpoint, DateRow, DateState, UndoneDate
from gated_backfill.common.model.coverage import NO_FLOOR, ExpectationFloor, Fallback, Verdict
from gated_backfill.common.model.job import Batch, Calendar, CalendarEvents, Expectation, Job, Source, Target
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.model.tables import Column
from gated_backfill.common.process.clock import today
from gated_backfill.producer.planning.plan import (
    Plan,
    PlanAction,
    PlanMeasurements,
    PlanStep,
    Reprocess,
    RunRequest,
    parse_date_list,
    plan_dates,
    resolve_days,
)
from gated_backfill.producer.planning.saved_plan import check_plan_unchanged, read_saved_plan, save_plan
from tests.builders import FEB_23 as DAY
from tests.builders import FEB_24 as NEXT
from tests.builders import NOON, a_checkpoint, a_date


def not_on_mondays(day: date, calendar: CalendarEvents | None) -> str | None:
    return "a Monday" if day.weekday() == 0 else None


def process(batch: Batch) -> Any:
    return batch.rows


JOB = Job(
    name="players",
    version="3",
    target=Target(
        table="nba.factors",
        date_column="day",
        key=("player",),
        columns={"player": Column(type="STRING"), "day": Column(type="DATE")},
    ),
    expectation=Expectation(
        table="nba.summary",
        date_column="day",
        entity="player",
        calendar=Calendar(table="nba.schedule", date_column="day", floor_per_event=16),
    ),
    sources=(
        Source(name="upcoming", table="nba.upcoming", date_column="day"),
        Source(name="derived", table="nba.summary", date_column="day"),
    ),
    process=process,
    skip=not_on_mondays,
)


def ended(state: DateState) -> DateRow:
    return a_date(state, run_id="run-0", ended_at=NOON)


DONE = a_checkpoint(DAY)
FORCED = a_checkpoint(DAY, verdict=Verdict.FORCED, matched=94)


def measured(
    *,
    day: date = DAY,
    expected: int = 187,
    upcoming: int = 187,
    derived: int = 187,
    games: int | None = 9,
    either: int | None = None,
    checkpoint: Checkpoint | None = None,
    end: DateRow | None = None,
    floor: ExpectationFloor = NO_FLOOR,
) -> PlanMeasurements:
    """One date, by default with nothing wrong about it."""
    return PlanMeasurements(
        expected={day: expected} if expected else {},
        found={"upcoming": {day: upcoming}, "derived": {day: derived}},
        with_primary={} if either is None else {"derived": {day: either}},
        calendar=None if games is None else CalendarEvents(count_by_date={day: games} if games else {}),
        checkpoints={day: checkpoint} if checkpoint else {},
        latest_outcomes={day: end} if end else {},
        floors={day: floor},
    )


def step_of(facts: PlanMeasurements, *, day: date = DAY, job: Job = JOB, **request: Any) -> PlanStep:
    asked = RunRequest(job=job.name, days=(day,), **request)
    options = RunOptions.for_job(
        job, window=1, in_flight=1, fallback=asked.fallback, forced_because=asked.forced_because
    )
    (step,) = plan_dates(asked, job, facts, options)
    assert step.day == day
    return step


# -- dates that an earlier run dealt with -------------------------------------------------------------------------

ALL = tuple(Reprocess)
NOT_NONE = ALL[1:]


STALE = Staleness(reasons={DAY: "stale: built by version 2, the job is version 3 now"})


@pytest.mark.parametrize(
    ("reprocess", "action"),
    [
        (Reprocess.NONE, PlanAction.STALE),
        (Reprocess.FAILED, PlanAction.STALE),
        (Reprocess.STALE, PlanAction.BUILD),
        (Reprocess.UNDONE, PlanAction.STALE),
        (Reprocess.ALL, PlanAction.BUILD),
    ],
)
def test_a_stale_date_is_listed_and_built_when_asked_for(reprocess: Reprocess, action: PlanAction) -> None:
    step = step_of(replace(measured(checkpoint=DONE), staleness=STALE), reprocess=reprocess)
    assert step.action is action
    if reprocess is not Reprocess.ALL:
        assert step.reason.startswith("stale: built by version 2, the job is version 3 now")


GROWN = replace(measured(checkpoint=a_checkpoint(DAY, expected=20, matched=20)), published={DAY: 20})


def test_a_date_that_does_not_satisfy_the_expectation_as_it_is_now_is_built_again() -> None:
    step = step_of(GROWN)
    assert step.action is PlanAction.BUILD
    told = "checkpointed with 20 of 20, but 187 are expected now: 20 of 187 (10.6 %) are published; "
    assert step.reason.startswith(told)


def test_such_a_date_is_incomplete_when_nothing_is_reprocessed() -> None:
    step = step_of(GROWN, reprocess=Reprocess.NONE)
    assert (step.action, step.is_left_incomplete) == (PlanAction.DONE, True)
    assert "but 187 are expected now" in step.reason


def test_a_date_that_satisfies_a_changed_expectation_is_done() -> None:
    assert step_of(replace(GROWN, published={DAY: 187})).action is PlanAction.DONE


def test_a_changed_expectation_comes_before_staleness() -> None:
    assert step_of(replace(GROWN, staleness=STALE)).action is PlanAction.BUILD


UNDONE = UndoneDate(day=DAY, run_id="run-0", by="ada", at=NOON, restored=True)


def undone(**facts: Any) -> PlanMeasurements:
    return replace(measured(**facts), undone={DAY: UNDONE})


def test_an_undone_date_is_left_with_who_and_when_also_if_it_would_be_blocked() -> None:
    for facts in (undone(), undone(upcoming=0, derived=0), undone(expected=0), undone(end=ended(DateState.BLOCKED))):
        step = step_of(facts)
        assert step.action is PlanAction.UNDONE
        assert step.reason == f"undone by ada at {NOON:%Y-%m-%d %H:%M} UTC (run run-0)"
        assert not step.is_left_incomplete


def test_an_undone_date_that_is_flagged_is_built() -> None:
    step = step_of(undone(), rebuilt=(DAY,))
    assert step.action is PlanAction.BUILD
    assert step.reason.startswith("undone by ada")


@pytest.mark.parametrize(
    ("facts", "built_with"),
    [
        pytest.param(measured(), ALL, id="new"),
        pytest.param(measured(checkpoint=DONE), (Reprocess.ALL,), id="checkpointed"),
        pytest.param(measured(checkpoint=FORCED), (Reprocess.ALL,), id="forced"),
        pytest.param(undone(), (Reprocess.UNDONE, Reprocess.ALL), id="undone"),
        pytest.param(undone(end=ended(DateState.FAILED)), (Reprocess.UNDONE, Reprocess.ALL), id="undone-and-failed"),
        pytest.param(measured(checkpoint=DONE, end=ended(DateState.FAILED)), (Reprocess.ALL,), id="rebuilt-in-vain"),
        pytest.param(measured(end=ended(DateState.FAILED)), NOT_NONE, id="failed"),
        pytest.param(measured(end=ended(DateState.BLOCKED)), NOT_NONE, id="blocked"),
        pytest.param(measured(end=ended(DateState.SKIPPED)), ALL, id="skipped-then"),
    ],
)
def test_reprocess_says_what_is_built_again(facts: PlanMeasurements, built_with: tuple[Reprocess, ...]) -> None:
    assert tuple(mode for mode in Reprocess if step_of(facts, reprocess=mode).action is PlanAction.BUILD) == built_with


def test_a_date_left_alone_says_how_complete_it_is() -> None:
    done = step_of(measured(checkpoint=FORCED))
    assert (done.action, done.reason) == (PlanAction.DONE, "already checkpointed (50.2 %, forced, run run-0)")


def test_a_failed_date_left_alone_says_whose_failure_it_was() -> None:
    left = step_of(measured(end=ended(DateState.FAILED)), reprocess=Reprocess.NONE)
    assert (left.action, left.reason) == (PlanAction.DONE, "ended failed in run run-0, and --reprocess is none")


THEN = ExpectationFloor(
    count=169, reason="187 were expected when run run-0 checkpointed it, and 90% of that is required"
)


@pytest.mark.parametrize("reprocess", Reprocess)
@pytest.mark.parametrize("checkpoint", [pytest.param(DONE, id="complete"), pytest.param(FORCED, id="forced")])
@pytest.mark.parametrize(
    "now",
    [
        pytest.param({"expected": 12, "upcoming": 12, "derived": 12}, id="shrunk"),
        pytest.param({"expected": 0, "upcoming": 0, "derived": 0}, id="vanished"),
    ],
)
def test_a_checkpointed_date_is_not_done_once_fewer_are_expected(
    now: dict[str, Any], checkpoint: Checkpoint, reprocess: Reprocess
) -> None:
    step = step_of(measured(**now, games=0, checkpoint=checkpoint, floor=THEN), reprocess=reprocess)
    assert step.action is PlanAction.BLOCKED
    assert step.reason == f"expectation incomplete: {now['expected']} expected, fewer than 169: {THEN.reason}"


def test_a_date_forced_over_an_incomplete_expectation_stays_done() -> None:
    forced = a_checkpoint(DAY, verdict=Verdict.FORCED, expected=100, matched=100)
    assert step_of(measured(expected=100, checkpoint=forced)).action is PlanAction.DONE
    complete = replace(forced, verdict=Verdict.COMPLETE)
    assert step_of(measured(expected=100, checkpoint=complete)).action is PlanAction.BLOCKED


def test_a_date_that_the_job_skips_is_not_judged_by_its_expectation() -> None:
    monday = date(2023, 2, 20)
    step = step_of(measured(day=monday, expected=12, floor=THEN), day=monday)
    assert (step.action, step.reason) == (PlanAction.SKIP, "a Monday")


def test_a_step_to_build_names_its_floor() -> None:
    step = step_of(measured(floor=THEN))
    assert (step.action, step.floor, step.floor_reason) == (PlanAction.BUILD, 169, THEN.reason)


# -- dates with nothing to build ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "action", "reason"),
    [
        pytest.param(measured(), PlanAction.BUILD, "primary at 100.0 %", id="whole"),
        pytest.param(measured(upcoming=1), PlanAction.BUILD, "primary below 90% at 0.5 %", id="falls-back"),
        pytest.param(
            measured(upcoming=0, derived=94),
            PlanAction.BLOCKED,
            "no source reaches 90%; the best has 50.2 %",
            id="no-source-reaches",
        ),
        pytest.param(measured(expected=0, games=0), PlanAction.SKIP, "not on the calendar", id="off-the-calendar"),
        pytest.param(measured(expected=0, games=None), PlanAction.SKIP, "nothing expected", id="no-calendar"),
        pytest.param(
            measured(expected=0, upcoming=0, derived=0),
            PlanAction.BLOCKED,
            "expectation incomplete: 0 expected, but the calendar has 9 event(s), which imply at least 144",
            id="nobody-expected-on-a-game-day",
        ),
        pytest.param(
            measured(expected=100, upcoming=100, derived=100),
            PlanAction.BLOCKED,
            "expectation incomplete: 100 expected, but the calendar has 9 event(s), which imply at least 144",
            id="below-the-floor",
        ),
    ],
)
def test_a_date_is_decided_from_what_was_measured(facts: PlanMeasurements, action: PlanAction, reason: str) -> None:
    step = step_of(facts)
    assert (step.action, step.reason) == (action, reason)


def test_the_skip_rule_of_the_job_comes_with_its_reason() -> None:
    monday = date(2023, 2, 20)
    skipped = step_of(measured(day=monday), day=monday)
    assert (skipped.action, skipped.reason) == (PlanAction.SKIP, "a Monday")


def test_a_source_that_does_not_exist_has_nothing() -> None:
    facts = replace(measured(), found={"derived": {DAY: 187}})
    step = step_of(facts)
    assert (step.found, step.source) == ({"upcoming": 0, "derived": 187}, "derived")


def test_a_step_says_what_each_source_has_and_what_the_choice_supplies() -> None:
    step = step_of(measured(upcoming=68))
    assert (step.expected, step.found) == (187, {"upcoming": 68, "derived": 187})
    assert (step.source, step.supplied) == ("derived", 187)


# -- fallback and force -------------------------------------------------------------------------------------------


def test_with_the_fallback_off_a_partial_primary_would_be_blocked() -> None:
    step = step_of(measured(upcoming=1), fallback=Fallback.OFF)
    assert (step.action, step.reason) == (PlanAction.BLOCKED, "primary below 90% at 0.5 %, fallback is off")


def test_filling_counts_what_both_have_between_them() -> None:
    step = step_of(measured(upcoming=100, derived=100, either=187), fallback=Fallback.FILL)
    assert (step.action, step.source, step.supplied) == (PlanAction.BUILD, "upcoming+derived", 187)


def test_filling_that_does_not_suffice_would_be_blocked() -> None:
    step = step_of(measured(upcoming=100, derived=100, either=120), fallback=Fallback.FILL)
    assert (step.action, step.supplied) == (PlanAction.BLOCKED, 120)


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param(measured(upcoming=94, derived=94), id="low-coverage"),
        pytest.param(measured(expected=100, upcoming=100), id="expectation-incomplete"),
    ],
)
def test_force_builds_what_would_be_blocked_and_says_so(facts: PlanMeasurements) -> None:
    step = step_of(facts, forced_because="all there is")
    assert step.action is PlanAction.BUILD
    assert step.reason.endswith("will be forced: all there is")


def test_force_builds_nothing_from_nothing() -> None:
    assert step_of(measured(upcoming=0, derived=0), forced_because="all there is").action is PlanAction.BLOCKED
    nobody = measured(expected=0, upcoming=0, derived=0)
    assert step_of(nobody, forced_because="all there is").action is PlanAction.BLOCKED


# -- what was asked for -------------------------------------------------------------------------------------------

DAYS = st.dates(min_value=date(2015, 1, 1), max_value=date(2023, 1, 1))
REQUESTS = st.builds(
    RunRequest,
    job=st.just("players"),
    days=st.lists(DAYS, min_size=1, max_size=5, unique=True).map(lambda days: tuple(sorted(days))),
    excluded=st.lists(DAYS, max_size=3, unique=True).map(lambda days: tuple(sorted(days))),
    reprocess=st.sampled_from(Reprocess),
    newest_first=st.booleans(),
    fallback=st.none() | st.sampled_from(Fallback),
    forced_because=st.none() | st.text(min_size=1),
)


@given(REQUESTS)
def test_a_request_survives_being_written_down(request: RunRequest) -> None:
    saved = json.dumps(request.as_json())
    assert TypeAdapter(RunRequest).validate_json(saved, strict=True) == request


def test_dates_are_asked_for_by_range_and_by_list_and_taken_out() -> None:
    listed = parse_date_list(["2023-02-26, 2023-02-20..2023-02-22", "2023-02-26"], "--dates")
    assert resolve_days(None, listed, [date(2023, 2, 21)]) == (date(2023, 2, 20), date(2023, 2, 22), date(2023, 2, 26))


def test_today_can_be_asked_for_and_tomorrow_cannot() -> None:
    assert resolve_days(None, [today()], []) == (today(),)
    with pytest.raises(UserError, match="in the future"):
        resolve_days(None, [today() + timedelta(days=1)], [])


def test_a_request_for_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="no date was asked for"):
        resolve_days(None, [], [])
    with pytest.raises(UserError, match="every date asked for is excluded"):
        resolve_days(None, [DAY], [DAY])


@pytest.mark.parametrize("text", ["2023-02-30", "2023-02-23..", "..2023-02-23", "2023-02-24..2023-02-23", "x"])
def test_a_wrong_list_of_dates_is_refused_by_the_name_of_its_option(text: str) -> None:
    with pytest.raises(UserError, match="--exclude"):
        parse_date_list([text], "--exclude")


# -- saved plans --------------------------------------------------------------------------------------------------


def plan_of(*steps: PlanStep) -> Plan:
    request = RunRequest(job="players", days=tuple(step.day for step in steps), reprocess=Reprocess.ALL)
    return Plan(request=request, version="3", steps=steps, notes=())


def built(day: date, **more: Any) -> PlanStep:
    return PlanStep(day=day, action=PlanAction.BUILD, reason="primary at 100.0 %", expected=187, **more)


PLAN = plan_of(
    built(DAY, found={"upcoming": 187, "derived": 180}, source="upcoming", supplied=187),
    built(NEXT, found={"upcoming": 0, "derived": 187}, source="derived", supplied=187),
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "plan.json"


def test_a_saved_plan_is_read_back_and_runs_while_nothing_changed(file: Path) -> None:
    save_plan(PLAN, file)
    saved = read_saved_plan(file)
    assert saved.request == PLAN.request
    check_plan_unchanged(saved, PLAN, file)


def changed_step(**changes: Any) -> Plan:
    return replace(PLAN, steps=(PLAN.steps[0], replace(PLAN.steps[1], **changes)))


ONE_DIFFERS = r"the plan is no longer the one in.*1 date\(s\) differ \(2023-02-2"


@pytest.mark.parametrize(
    ("now", "message"),
    [
        pytest.param(changed_step(expected=188), ONE_DIFFERS, id="one-more-expected"),
        pytest.param(changed_step(found={"upcoming": 1, "derived": 187}), ONE_DIFFERS, id="one-more-found"),
        pytest.param(changed_step(supplied=186), ONE_DIFFERS, id="one-less-supplied"),
        pytest.param(
            changed_step(action=PlanAction.DONE, reason="already checkpointed"), ONE_DIFFERS, id="done-meanwhile"
        ),
        pytest.param(changed_step(reason="primary at 99.4 %"), ONE_DIFFERS, id="another-reason"),
        pytest.param(changed_step(day=date(2023, 2, 24) + timedelta(days=1)), ONE_DIFFERS, id="another-date"),
        pytest.param(plan_of(PLAN.steps[0]), "the plan is no longer the one in", id="a-date-gone"),
        pytest.param(replace(PLAN, version="4"), r"version was 3 in .* and is 4 now", id="another-version"),
    ],
)
def test_a_plan_is_refused_when_anything_has_changed_since(file: Path, now: Plan, message: str) -> None:
    save_plan(PLAN, file)
    with pytest.raises(UserError, match=message) as refused:
        check_plan_unchanged(read_saved_plan(file), now, file)
    assert "2023-02-23" not in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="cut"),
        pytest.param(b"\xff\xfe", id="bytes"),
        pytest.param(b"[1, 2]", id="list"),
        pytest.param(b"null", id="null"),
        pytest.param(b'{"format": 99}', id="another-format"),
    ],
)
def test_what_is_no_plan_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"plan\.json is not a plan"):
        read_saved_plan(file)


def test_a_plan_that_is_not_there_is_refused(file: Path) -> None:
    with pytest.raises(UserError, match="can't be read"):
        read_saved_plan(file)


def test_a_plan_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be written"):
        save_plan(PLAN, tmp_path / "no-such-folder" / "plan.json")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param({"days": None}, id="no-days"),
        pytest.param({"days": ["2023-02-30"]}, id="no-such-day"),
        pytest.param({"days": [20230223]}, id="a-number-for-a-day"),
        pytest.param({"reprocess": "sometimes"}, id="unknown-word"),
        pytest.param({"steps": [{}]}, id="a-step-without-a-day"),
        pytest.param({"steps": [1]}, id="a-number-for-a-step"),
        pytest.param({"steps": None}, id="no-steps"),
    ],
)
def test_a_damaged_plan_is_refused(file: Path, damage: Mapping[str, Any]) -> None:
    file.write_text(json.dumps({**PLAN.as_json(), **damage}))
    with pytest.raises(UserError):
        check_plan_unchanged(read_saved_plan(file), PLAN, file)


def test_a_plan_counts_what_it_will_do() -> None:
    plan = replace(PLAN, steps=(PLAN.steps[0], replace(PLAN.steps[1], action=PlanAction.SKIP, reason="a Monday")))
    assert plan.summary() == "players, 2023-02-23..2023-02-24: 2 date(s): 1 to build, 1 to skip"
    assert plan.as_json()["counts"] == {"build": 1, "stale": 0, "undone": 0, "done": 0, "skip": 1, "blocked": 0}
