"""What an audit says of a date, for everything that it can find there."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gated_backfill.common.audit.audit import newly_flagged
from gated_backfill.common.audit.findings import (
    AuditedDate,
    AuditFinding,
    AuditResult,
    DateObservation,
    classify,
    describe_findings,
)
from gated_backfill.common.ledger import Checkpoint, NewAlert
from gated_backfill.common.model.coverage import CoveragePolicy, DateExpectation, Verdict, describe_contradiction
from gated_backfill.common.model.expectation_floor import compute_floors
from gated_backfill.common.model.job import Expectation
from gated_backfill.common.model.missing_names import MISSING_NAMES_SHOWN
from gated_backfill.worker.maintenance.audit import alert_lines, audit_alert, recent_days
from tests.builders import a_checkpoint

DAY = date(2023, 2, 23)
POLICY = CoveragePolicy()
PROVEN = a_checkpoint(DAY, run_id="R1")
BY_FORCE = a_checkpoint(DAY, run_id="R1", verdict=Verdict.FORCED, matched=1)


def expectation(expected: int, events: int | None = None) -> DateExpectation:
    return DateExpectation(expected=expected, events=events, floor_per_event=16)


def with_facts(observed: DateObservation) -> DateObservation:
    """The observation with what its checkpoint and its rows say of the expectation, as `observe_dates` adds it."""
    checkpoints = {} if observed.checkpoint is None else {DAY: observed.checkpoint}
    floors = compute_floors(
        Expectation(table="w.expected", date_column="day", entity="name"),
        [DAY],
        {DAY: observed.expectation.expected},
        checkpoints=checkpoints,
        accept_ratio=POLICY.accept_ratio,
        has_calendar=True,
    )
    facts = observed.expectation.with_floor(floors[DAY].count, floors[DAY].reason)
    if not facts.expected:
        facts = replace(facts, contradicted_by=describe_contradiction({}, target_has_rows=bool(observed.rows)))
    return replace(observed, expectation=facts)


def observed_date(
    *, expected: int = 187, events: int | None = None, proof: Checkpoint | None = None, **changed: Any
) -> DateObservation:
    """A complete date but for these facts; its rows are those of the proof, if there is one."""
    facts: dict[str, Any] = {"day": DAY, "expectation": expectation(expected, events), "matched": 187, "rows": 187}
    facts |= {"checkpoint": proof, "matches_checkpoint": proof is not None, **changed}
    return DateObservation(**facts)


def case(name: str, finding: AuditFinding, message: str, **observed: Any) -> Any:
    """A date that differs from a complete one in these facts, with its finding and words of its reason."""
    return pytest.param(observed_date(**observed), finding, message, id=name)


@pytest.mark.parametrize(
    ("observed", "finding", "message"),
    [
        case("whole, written by anybody", AuditFinding.COMPLETE, "187 of 187"),
        case("whole and proven", AuditFinding.COMPLETE, "187 of 187", proof=PROVEN),
        case("at the complete ratio", AuditFinding.COMPLETE, "95.1 %", matched=178),
        case("below it", AuditFinding.ACCEPTED, "below 95%", matched=177),
        case("at the accept ratio", AuditFinding.ACCEPTED, "below 95%", matched=169),
        case("below that", AuditFinding.INCOMPLETE, "168 of 187", matched=168),
        case("incident", AuditFinding.INCOMPLETE, "1 of 187 expected entities (0.5 %)", matched=1, rows=1),
        case("unexpected entities only", AuditFinding.INCOMPLETE, "0 of 187", matched=0, rows=300),
        case("never built", AuditFinding.MISSING, "no rows are published", matched=0, rows=0),
        case(
            "rewritten, whole", AuditFinding.CHANGED, "differ from the ones that run R1 checkpointed", checkpoint=PROVEN
        ),
        case(
            "186 deleted behind the tool's back",
            AuditFinding.INCOMPLETE,
            "1 of 187 expected entities (0.5 %), below 90%; its rows differ from the ones that run R1 checkpointed "
            "(187 of 187)",
            matched=1,
            rows=1,
            checkpoint=PROVEN,
        ),
        case("all of them deleted", AuditFinding.MISSING, "run R1 checkpointed", matched=0, rows=0, checkpoint=PROVEN),
        case("33 players turned up late", AuditFinding.INCOMPLETE, "187 of 220", expected=220, proof=PROVEN),
        case("twice", AuditFinding.DUPLICATED, "2 key(s) appear more than once", rows=189, duplicates=2),
        case("twice and incomplete", AuditFinding.INCOMPLETE, "more than once", matched=1, rows=2, duplicates=1),
        case("null keys", AuditFinding.INVALID, "2 row(s) with a null key; 187 of 187", null_keys=2),
        case("a broken rule", AuditFinding.INVALID, "output schema: n is null; 187 of 187", schema_problem="n is null"),
        case(
            "a broken rule and incomplete",
            AuditFinding.INCOMPLETE,
            "below 90%; output schema: n is null",
            matched=1,
            schema_problem="n is null",
        ),
        case(
            "null keys and twice",
            AuditFinding.INVALID,
            "1 row(s) with a null key; 187 of 187 expected entities (100.0 %); 1 key(s) appear more than once",
            null_keys=1,
            duplicates=1,
        ),
        case(
            "forced, and the rules are stricter now",
            AuditFinding.INVALID,
            "output schema: n is null",
            proof=BY_FORCE,
            schema_problem="n is null",
        ),
        case(
            "forced",
            AuditFinding.FORCED,
            "forced by run R1, rows unchanged since; now 1 of 187 expected entities (0.5 %)",
            matched=1,
            rows=1,
            proof=BY_FORCE,
        ),
        case("forced, whole by now", AuditFinding.FORCED, "now 187 of 187", proof=BY_FORCE),
        case(
            "forced over a partial expectation",
            AuditFinding.FORCED,
            "8 of 8",
            expected=8,
            events=1,
            matched=8,
            proof=a_checkpoint(DAY, run_id="R1", verdict=Verdict.FORCED, expected=8, matched=8),
        ),
        case(
            "forced, and the expectation shrank since",
            AuditFinding.EXPECTATION_INCOMPLETE,
            "8 expected, but the calendar has 1 event(s)",
            expected=8,
            events=1,
            matched=8,
            proof=BY_FORCE,
        ),
        case("forced, then changed", AuditFinding.INCOMPLETE, "had forced it", matched=1, rows=1, checkpoint=BY_FORCE),
        case(
            "half a game",
            AuditFinding.EXPECTATION_INCOMPLETE,
            "imply at least 16",
            expected=8,
            events=1,
            matched=8,
            rows=8,
        ),
        case(
            "games, but no players", AuditFinding.EXPECTATION_INCOMPLETE, "0 expected", expected=0, events=1, matched=0
        ),
        case("no game", AuditFinding.SKIPPED, "not on the calendar", expected=0, events=0, matched=0, rows=0),
        case("no calendar", AuditFinding.SKIPPED, "nothing expected", expected=0, matched=0, rows=0),
        case("skipped by the job", AuditFinding.SKIPPED, "bootstrap", matched=0, rows=0, skip_reason="bootstrap"),
        case(
            "skipped, yet changed",
            AuditFinding.CHANGED,
            "bootstrap; its rows",
            skip_reason="bootstrap",
            checkpoint=PROVEN,
        ),
        case("being built", AuditFinding.IN_PROGRESS, "run R9 is working on it", matched=1, rows=1, active_run="R9"),
    ],
)
def test_a_date_gets_its_worst_finding_and_every_fact(
    observed: DateObservation, finding: AuditFinding, message: str
) -> None:
    audited = classify(observed, POLICY)
    assert audited.finding is finding
    assert message in audited.reason


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        pytest.param(
            {"events": 0, "rows": 3},
            "nothing is expected and the calendar has no event, but the target has rows",
            id="stray-rows",
        ),
        pytest.param({"proof": PROVEN}, "187 were expected when run R1 checkpointed it", id="lost-after-the-run"),
    ],
)
def test_a_date_that_something_speaks_for_is_not_skipped(facts: dict[str, Any], reason: str) -> None:
    audited = classify(with_facts(observed_date(expected=0, matched=0, **facts)), POLICY)

    assert audited.finding is AuditFinding.EXPECTATION_INCOMPLETE
    assert reason in audited.reason


def test_a_repair_that_the_job_would_skip_is_not_asked_for() -> None:
    assert classify(observed_date(checkpoint=PROVEN), POLICY).needs_flag
    assert not classify(observed_date(checkpoint=PROVEN, skip_reason="bootstrap"), POLICY).needs_flag


ANY_DATE = st.builds(
    DateObservation,
    day=st.just(DAY),
    expectation=st.builds(expectation, st.integers(0, 200), st.none() | st.integers(0, 12)),
    rows=st.integers(0, 300),
    duplicates=st.integers(0, 2),
    checkpoint=st.none() | st.sampled_from([PROVEN, BY_FORCE]),
    matches_checkpoint=st.booleans(),
    skip_reason=st.none() | st.just("bootstrap"),
    active_run=st.none() | st.just("R9"),
).flatmap(
    lambda observed: st.builds(
        lambda matched: replace(observed, matched=matched),
        st.integers(0, min(observed.rows, observed.expectation.expected)),
    )
)


@given(ANY_DATE)
def test_low_coverage_is_never_fine_unless_forced_or_skipped(observed: DateObservation) -> None:
    audited = classify(observed, POLICY)
    expected = observed.expectation.expected
    sufficient = [AuditFinding.COMPLETE, AuditFinding.ACCEPTED, AuditFinding.CHANGED]
    if not (observed.checkpoint is BY_FORCE and observed.matches_checkpoint):  # its coverage was forced, its keys not
        sufficient.append(AuditFinding.DUPLICATED)
    if audited.finding in sufficient and not observed.skip_reason:
        assert observed.matched / expected >= POLICY.accept_ratio
    if audited.finding is AuditFinding.FORCED:
        assert observed.checkpoint is BY_FORCE
        assert observed.matches_checkpoint
    if audited.finding is AuditFinding.SKIPPED and not observed.skip_reason:
        assert not expected


@given(ANY_DATE)
def test_a_date_is_skipped_only_if_nothing_speaks_for_it(observed: DateObservation) -> None:
    audited = classify(with_facts(observed), POLICY)
    if audited.finding is AuditFinding.SKIPPED and not observed.skip_reason:
        assert not observed.rows
        assert observed.checkpoint is None


@given(ANY_DATE)
def test_a_date_whose_rows_are_no_longer_the_proven_ones_is_never_fine(observed: DateObservation) -> None:
    audited = classify(with_facts(replace(observed, checkpoint=PROVEN, matches_checkpoint=False)), POLICY)
    assert not audited.finding.is_fine


@given(ANY_DATE)
def test_what_is_flagged_is_not_fine_and_is_not_held(observed: DateObservation) -> None:
    audited = classify(observed, POLICY)
    if audited.needs_flag:
        assert not audited.finding.is_fine
        assert observed.active_run is None
        assert observed.expectation.expected


def test_names_tell_how_many_more_there_are() -> None:
    names = tuple(f"p{n}" for n in range(MISSING_NAMES_SHOWN))
    audited = replace(classify(observed_date(matched=1, rows=1), POLICY), missing=names)
    assert audited.describe_missing() == f"missing 186: {', '.join(names)} and {186 - len(names)} more"
    assert replace(audited, missing=()).describe_missing() == ""


def audited_date(day: date, **changed: Any) -> AuditedDate:
    return classify(observed_date(day=day, **changed), POLICY)


def test_newly_flagged_dates_are_not_flagged_yet_or_flagged_for_something_else() -> None:
    days = [DAY + timedelta(days=n) for n in range(4)]
    audit = AuditResult(
        job="players",
        dates=(
            audited_date(days[0], matched=1),
            audited_date(days[1], matched=1),
            audited_date(days[2], matched=0, rows=0),
            audited_date(days[3]),
        ),
    )
    open_findings = {days[0]: "incomplete", days[2]: "changed", days[3]: "missing"}
    assert [audited.day for audited in newly_flagged(audit, open_findings)] == days[1:3]
    assert describe_findings(audit.dates) == "1 complete, 2 incomplete, 1 missing"


def test_an_alert_lists_so_many_dates_and_counts_the_others() -> None:
    dates = tuple(audited_date(DAY + timedelta(days=n), matched=1) for n in range(40))
    body = "\n".join(alert_lines(AuditResult(job="players", dates=dates), dates))
    assert body.count("1/187 (0.5 %)") == 15
    assert "and 25 more date(s)" in body
    assert "backfill run --job players --flagged" in body


def test_what_no_run_can_repair_is_told_once_for_each_set_of_dates() -> None:
    def alert(*dates: AuditedDate) -> NewAlert:
        recorded = audit_alert(AuditResult(job="players", dates=dates), [], DAY)
        assert recorded is not None
        return recorded

    unknown = [
        classify(observed_date(day=DAY - timedelta(days=n), expected=8, events=1, matched=8), POLICY) for n in (0, 1)
    ]
    skipped = classify(observed_date(checkpoint=PROVEN, skip_reason="bootstrap"), POLICY)
    keys = {alert(*dates).key for dates in (unknown[:1], unknown, [skipped], [*unknown, skipped])}
    assert len(keys) == 4
    assert alert(*unknown).key == alert(*unknown).key
    assert alert(skipped).title == "players: 1 date(s) that the job skips were changed"
    assert f"{DAY} changed: bootstrap; its rows differ from the ones that run R1 checkpointed" in alert(skipped).body
    assert audit_alert(AuditResult(job="players", dates=(classify(observed_date(), POLICY),)), [], DAY) is None


@pytest.mark.parametrize(
    ("first_day", "count", "days"),
    [
        pytest.param(date(2020, 1, 1), 2, [date(2023, 2, 23), date(2023, 2, 24)], id="long ago"),
        pytest.param(date(2023, 2, 24), 30, [date(2023, 2, 24)], id="since yesterday"),
        pytest.param(date(2023, 2, 25), 30, [], id="since today"),
    ],
)
def test_recent_days_end_yesterday_and_begin_no_earlier_than_the_job(
    first_day: date, count: int, days: list[date]
) -> None:
    assert recent_days(first_day, date(2023, 2, 25), count) == days
