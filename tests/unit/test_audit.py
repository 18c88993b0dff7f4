"""What an audit says of a date, for everything that it can find there."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta

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
from gated_backfill.common.model.coverage import MISSING_NAMES_SHOWN, CoveragePolicy, DateExpectation, Verdict
from gated_backfill.common.process.clock import utcnow
from gated_backfill.worker.maintenance.audit import alert_body, audit_alert, recent_days

DAY = date(2023, 2, 23)
POLICY = CoveragePolicy()


def checkpoint(verdict: Verdict = Verdict.COMPLETE, *, matched: int = 187, expected: int = 187) -> Checkpoint:
    return Checkpoint(
        job="players",
        day=DAY,
        run_id="R1",
        job_version="1",
        verdict=verdict,
        reason="",
        expected=expected,
        matched=matched,
        rows=matched,
        source="upcoming",
        checksum="c",
        inputs="i",
        checkpointed_at=utcnow(),
    )


PROVEN = checkpoint()
BY_FORCE = checkpoint(Verdict.FORCED, matched=1)
FULL = DateObservation(day=DAY, expectation=DateExpectation(expected=187), matched=187, rows=187)


def observed_date(**changed: object) -> DateObservation:
    return replace(FULL, **changed)  # type: ignore[arg-type]


def expectation(expected: int, events: int | None = None) -> DateExpectation:
    return DateExpectation(expected=expected, events=events, floor_per_event=16)


@pytest.mark.parametrize(
    ("observed", "finding", "message"),
    [
        pytest.param(observed_date(), AuditFinding.COMPLETE, "187 of 187", id="whole, written by anybody"),
        pytest.param(
            observed_date(checkpoint=PROVEN, matches_checkpoint=True),
            AuditFinding.COMPLETE,
            "187 of 187",
            id="whole and proven",
        ),
        pytest.param(observed_date(matched=178), AuditFinding.COMPLETE, "95.1 %", id="at the complete ratio"),
        pytest.param(observed_date(matched=177), AuditFinding.ACCEPTED, "below 95%", id="below it"),
        pytest.param(observed_date(matched=169), AuditFinding.ACCEPTED, "below 95%", id="at the accept ratio"),
        pytest.param(observed_date(matched=168), AuditFinding.INCOMPLETE, "168 of 187", id="below that"),
        pytest.param(
            observed_date(matched=1, rows=1),
            AuditFinding.INCOMPLETE,
            "1 of 187 expected entities (0.5 %)",
            id="incident",
        ),
        pytest.param(
            observed_date(matched=0, rows=300), AuditFinding.INCOMPLETE, "0 of 187", id="unexpected entities only"
        ),
        pytest.param(observed_date(matched=0, rows=0), AuditFinding.MISSING, "no rows are published", id="never built"),
        pytest.param(
            observed_date(checkpoint=PROVEN),
            AuditFinding.CHANGED,
            "differ from the ones that run R1 checkpointed",
            id="rewritten, whole",
        ),
        pytest.param(
            observed_date(matched=1, rows=1, checkpoint=PROVEN),
            AuditFinding.INCOMPLETE,
            "1 of 187 expected entities (0.5 %), below 90%; its rows differ from the ones that run R1 checkpointed "
            "(187 of 187)",
            id="186 deleted behind the tool's back",
        ),
        pytest.param(
            observed_date(matched=0, rows=0, checkpoint=PROVEN),
            AuditFinding.MISSING,
            "run R1 checkpointed",
            id="all of them deleted",
        ),
        pytest.param(
            observed_date(expectation=expectation(220), checkpoint=PROVEN, matches_checkpoint=True),
            AuditFinding.INCOMPLETE,
            "187 of 220",
            id="33 players turned up late",
        ),
        pytest.param(
            observed_date(rows=189, duplicates=2), AuditFinding.DUPLICATED, "2 key(s) appear more than once", id="twice"
        ),
        pytest.param(
            observed_date(matched=1, rows=2, duplicates=1),
            AuditFinding.INCOMPLETE,
            "more than once",
            id="twice and incomplete",
        ),
        pytest.param(
            observed_date(matched=1, rows=1, checkpoint=BY_FORCE, matches_checkpoint=True),
            AuditFinding.FORCED,
            "forced by run R1, rows unchanged since; now 1 of 187 expected entities (0.5 %)",
            id="forced",
        ),
        pytest.param(
            observed_date(checkpoint=BY_FORCE, matches_checkpoint=True),
            AuditFinding.FORCED,
            "now 187 of 187",
            id="forced, whole by now",
        ),
        pytest.param(
            observed_date(expectation=expectation(8, 1), matched=8, checkpoint=BY_FORCE, matches_checkpoint=True),
            AuditFinding.FORCED,
            "8 of 8",
            id="forced over a partial expectation",
        ),
        pytest.param(
            observed_date(matched=1, rows=1, checkpoint=BY_FORCE),
            AuditFinding.INCOMPLETE,
            "had forced it",
            id="forced, then changed",
        ),
        pytest.param(
            observed_date(expectation=expectation(8, 1), matched=8, rows=8),
            AuditFinding.EXPECTATION_INCOMPLETE,
            "imply at least 16",
            id="half a game",
        ),
        pytest.param(
            observed_date(expectation=expectation(0, 1), matched=0),
            AuditFinding.EXPECTATION_INCOMPLETE,
            "0 expected",
            id="games, but no players",
        ),
        pytest.param(
            observed_date(expectation=expectation(0, 0), matched=0, rows=0),
            AuditFinding.SKIPPED,
            "not on the calendar",
            id="no game",
        ),
        pytest.param(
            observed_date(expectation=expectation(0), matched=0, rows=0),
            AuditFinding.SKIPPED,
            "nothing expected",
            id="no calendar",
        ),
        pytest.param(
            observed_date(expectation=expectation(0, 0), matched=0, rows=3),
            AuditFinding.SKIPPED,
            "3 row(s) are",
            id="stray rows",
        ),
        pytest.param(
            observed_date(expectation=expectation(0), matched=0, checkpoint=PROVEN, matches_checkpoint=True),
            AuditFinding.EXPECTATION_INCOMPLETE,
            "187 were expected when run R1 checkpointed it",
            id="the expectation was lost after the run",
        ),
        pytest.param(
            observed_date(matched=0, rows=0, skip_reason="bootstrap"),
            AuditFinding.SKIPPED,
            "bootstrap",
            id="skipped by the job",
        ),
        pytest.param(
            observed_date(skip_reason="bootstrap", checkpoint=PROVEN),
            AuditFinding.CHANGED,
            "bootstrap; its rows",
            id="skipped, yet changed",
        ),
        pytest.param(
            observed_date(matched=1, rows=1, active_run="R9"),
            AuditFinding.IN_PROGRESS,
            "run R9 is working on it",
            id="being built",
        ),
    ],
)
def test_a_date_gets_its_worst_finding_and_every_fact(
    observed: DateObservation, finding: AuditFinding, message: str
) -> None:
    audited = classify(observed, POLICY)
    assert audited.finding is finding
    assert message in audited.reason


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
    if (
        audited.finding in (AuditFinding.COMPLETE, AuditFinding.ACCEPTED, AuditFinding.CHANGED, AuditFinding.DUPLICATED)
        and not observed.skip_reason
    ):
        assert observed.matched / expected >= POLICY.accept_ratio
    if audited.finding is AuditFinding.FORCED:
        assert observed.checkpoint is BY_FORCE
        assert observed.matches_checkpoint
    if audited.finding is AuditFinding.SKIPPED and not observed.skip_reason:
        assert not expected


@given(ANY_DATE)
def test_a_date_whose_rows_are_no_longer_the_proven_ones_is_never_fine(observed: DateObservation) -> None:
    audited = classify(replace(observed, checkpoint=PROVEN, matches_checkpoint=False), POLICY)
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


def audited_date(day: date, **changed: object) -> AuditedDate:
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
    body = alert_body(AuditResult(job="players", dates=dates), dates)
    assert body.count("1/187 (0.5 %)") == 15
    assert "and 25 more date(s)" in body
    assert "backfill run --job players --flagged" in body


def test_what_no_run_can_repair_is_told_once_for_each_set_of_dates() -> None:
    def alert(*dates: AuditedDate) -> NewAlert:
        recorded = audit_alert(AuditResult(job="players", dates=dates), [], DAY)
        assert recorded is not None
        return recorded

    unknown = [
        classify(observed_date(day=DAY - timedelta(days=n), expectation=expectation(8, 1), matched=8), POLICY)
        for n in (0, 1)
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
