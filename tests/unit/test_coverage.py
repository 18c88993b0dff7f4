"""The decisions: is the expectation complete, which source, does a date pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gated_backfill.common.model.coverage import (
    PASSING_VERDICTS,
    CoveragePolicy,
    DateExpectation,
    Fallback,
    Judgement,
    Recount,
    SourceChoice,
    TargetCounts,
    Verdict,
    choose_source,
    describe_loss,
    format_percent,
    is_blocked_by_loss_only,
    judge_date,
    judge_expectation,
    least_count,
)

POLICY = CoveragePolicy()
BEST_FIRST = [Verdict.COMPLETE, Verdict.ACCEPTED, Verdict.BLOCKED]

# -- the verdict --------------------------------------------------------------------------------------------------


def counted(matched: int, expected: int, **more: object) -> Recount:
    values: dict[str, object] = {"expectation": DateExpectation(expected=expected), "matched": matched, "rows": matched}
    return Recount(**values | more)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("matched", "expected", "verdict", "reason"),
    [
        pytest.param(187, 187, Verdict.COMPLETE, "187 of 187 expected entities (100.0 %)", id="whole"),
        pytest.param(190, 200, Verdict.COMPLETE, "190 of 200 expected entities (95.0 %)", id="exactly-95"),
        pytest.param(949, 1000, Verdict.ACCEPTED, "949 of 1000 expected entities (94.9 %), below 95%", id="below-95"),
        pytest.param(180, 200, Verdict.ACCEPTED, "180 of 200 expected entities (90.0 %), below 95%", id="exactly-90"),
        pytest.param(899, 1000, Verdict.BLOCKED, "899 of 1000 expected entities (89.9 %), below 90%", id="below-90"),
        pytest.param(94, 187, Verdict.BLOCKED, "94 of 187 expected entities (50.2 %), below 90%", id="half"),
        pytest.param(1, 187, Verdict.BLOCKED, "1 of 187 expected entities (0.5 %), below 90%", id="one-stale-row"),
        pytest.param(0, 187, Verdict.BLOCKED, "0 of 187 expected entities (0.0 %), below 90%", id="nothing"),
    ],
)
def test_coverage_decides_the_verdict(matched: int, expected: int, verdict: Verdict, reason: str) -> None:
    assert judge_date(counted(matched, expected), policy=POLICY) == Judgement(verdict=verdict, reason=reason)


BROKEN = [
    pytest.param({"null_keys": 2}, "2 row(s) with a null key", id="null-keys"),
    pytest.param({"duplicate_keys": 1}, "duplicate key: 1 key(s) appear more than once", id="duplicate-keys"),
    pytest.param({"schema_problem": "score fails le"}, "output schema: score fails le", id="schema"),
]


@pytest.mark.parametrize("because", [pytest.param(None, id="unforced"), pytest.param("I insist", id="forced")])
@pytest.mark.parametrize(("wrong", "reason"), BROKEN)
def test_rows_wrong_in_themselves_are_blocked_even_when_forced(
    wrong: dict[str, object], reason: str, because: str | None
) -> None:
    found = judge_date(counted(187, 187, **wrong), policy=POLICY, forced_because=because)
    assert found == Judgement(verdict=Verdict.BLOCKED, reason=reason)


def test_force_keeps_the_reason_it_overrules_and_the_one_given() -> None:
    found = judge_date(counted(94, 187), policy=POLICY, forced_because="half is all there is")
    assert found.verdict is Verdict.FORCED
    assert "94 of 187" in found.reason
    assert found.reason.endswith("forced: half is all there is")


def test_force_does_not_mark_a_date_that_passes_by_itself() -> None:
    assert judge_date(counted(187, 187), policy=POLICY, forced_because="to be sure").verdict is Verdict.COMPLETE
    assert judge_date(counted(180, 200), policy=POLICY, forced_because="to be sure").verdict is Verdict.ACCEPTED


def test_force_does_not_publish_nothing() -> None:
    assert judge_date(counted(0, 187), policy=POLICY, forced_because="so what").verdict is Verdict.BLOCKED


def test_force_accepts_an_incomplete_expectation_if_there_are_rows() -> None:
    partial = counted(5, 5, expectation=DateExpectation(expected=5, events=2, floor_per_event=16))
    assert judge_date(partial, policy=POLICY).verdict is Verdict.BLOCKED
    assert judge_date(partial, policy=POLICY, forced_because="a short game").verdict is Verdict.FORCED


def test_force_builds_nothing_on_a_date_that_is_skipped() -> None:
    off = counted(0, 0, expectation=DateExpectation(expected=0, events=0, floor_per_event=16))
    assert judge_date(off, policy=POLICY, forced_because="I insist").verdict is Verdict.SKIPPED


@pytest.mark.parametrize("because", [pytest.param(None, id="unforced"), pytest.param("I insist", id="forced")])
@pytest.mark.parametrize("events", [pytest.param(None, id="no-calendar"), pytest.param(0, id="off-the-calendar")])
def test_rows_for_a_date_without_expected_entities_are_blocked(events: int | None, because: str | None) -> None:
    off = counted(0, 0, expectation=DateExpectation(expected=0, events=events, floor_per_event=16), rows=3)
    judgement = judge_date(off, policy=POLICY, forced_because=because)
    assert judgement.verdict is Verdict.BLOCKED
    assert judgement.reason.startswith("expectation incomplete: nothing is expected")
    assert judgement.reason.endswith("but 3 row(s) were built")


RECOUNTS = st.integers(min_value=0, max_value=300).flatmap(
    lambda expected: st.builds(
        Recount,
        expectation=st.builds(DateExpectation, expected=st.just(expected), events=st.none() | st.integers(0, 20)),
        matched=st.integers(min_value=0, max_value=expected),
        rows=st.integers(min_value=0, max_value=400),
        duplicate_keys=st.integers(min_value=0, max_value=1),
        null_keys=st.integers(min_value=0, max_value=1),
        schema_problem=st.sampled_from([None, None, "broken"]),
    )
)
POLICIES = st.tuples(st.integers(1, 100), st.integers(1, 100)).map(
    lambda two: CoveragePolicy(accept_ratio=min(two) / 100, complete_ratio=max(two) / 100)
)


@given(RECOUNTS, POLICIES)
def test_nothing_below_the_accept_ratio_passes_unforced(recount: Recount, policy: CoveragePolicy) -> None:
    verdict = judge_date(recount, policy=policy).verdict
    assert verdict is not Verdict.FORCED
    if verdict.is_passing:
        assert recount.expectation.expected
        assert recount.matched / recount.expectation.expected >= policy.accept_ratio
        assert (recount.null_keys, recount.duplicate_keys, recount.schema_problem) == (0, 0, None)


@given(RECOUNTS, POLICIES, st.integers(min_value=0, max_value=300))
def test_more_matched_never_gives_a_worse_verdict(recount: Recount, policy: CoveragePolicy, more: int) -> None:
    better = replace(recount, matched=min(recount.matched + more, recount.expectation.expected))
    before, after = (judge_date(one, policy=policy).verdict for one in (recount, better))
    if Verdict.SKIPPED in (before, after):
        assert before is after
    else:
        assert BEST_FIRST.index(after) <= BEST_FIRST.index(before)


@given(RECOUNTS, POLICIES)
def test_force_changes_only_what_was_blocked(recount: Recount, policy: CoveragePolicy) -> None:
    plain = judge_date(recount, policy=policy)
    forced = judge_date(recount, policy=policy, forced_because="why")
    assert forced == plain or (plain.verdict, forced.verdict) == (Verdict.BLOCKED, Verdict.FORCED)
    assert forced.verdict is not Verdict.FORCED or recount.rows


@given(st.integers(min_value=1, max_value=10**6), st.data())
def test_a_share_reads_100_only_when_whole(whole: int, data: st.DataObject) -> None:
    part = data.draw(st.integers(min_value=0, max_value=whole) | st.integers(max(0, whole - 3), whole))
    assert (format_percent(part, whole) == "100.0 %") is (part == whole)


def test_a_share_of_nothing_is_no_share() -> None:
    assert format_percent(0, 0) == "0.0 %"


def test_exactly_the_published_verdicts_pass() -> None:
    assert {verdict for verdict in Verdict if verdict.is_passing} == PASSING_VERDICTS
    assert {Verdict.COMPLETE, Verdict.ACCEPTED, Verdict.FORCED} == PASSING_VERDICTS


@pytest.mark.parametrize(
    ("complete", "accept"),
    [
        pytest.param(0.9, 0.95, id="accept-above-complete"),
        pytest.param(1.1, 0.9, id="above-one"),
        pytest.param(0.9, 0.0, id="accept-all"),
    ],
)
def test_a_policy_without_sense_is_refused(complete: float, accept: float) -> None:
    with pytest.raises(ValueError, match="coverage policy"):
        CoveragePolicy(complete_ratio=complete, accept_ratio=accept)


# -- what a publication would lose --------------------------------------------------------------------------------

NOT_OURS = "no run of this job wrote them"
OURS = "run run-1 wrote them"
WHOLE = TargetCounts(rows=20, matched=20, held=20, entities=20)


@pytest.mark.parametrize(
    ("target", "expected", "writer", "loss"),
    [
        pytest.param(TargetCounts(), 20, None, None, id="nothing-there"),
        pytest.param(WHOLE, 20, None, None, id="nothing-lost"),
        pytest.param(
            replace(WHOLE, lost=("ada",)),
            20,
            None,
            f"would lose 1 of 20 expected entities that the target holds: ada; {NOT_OURS}",
            id="one-lost-of-others",
        ),
        pytest.param(
            replace(WHOLE, lost=("ada", "bob")),
            20,
            "run-1",
            f"would lose 2 of 20 expected entities that the target holds: ada, bob; {OURS}",
            id="two-lost-of-a-run",
        ),
        pytest.param(
            replace(WHOLE, lost=tuple(f"p{n:02d}" for n in range(14))),
            20,
            "run-1",
            "would lose 14 of 20 expected entities that the target holds: p00, p01, p02, p03, p04, p05, p06, p07, p08, "
            f"p09, p10, p11 and 2 more; {OURS}",
            id="more-than-are-named",
        ),
        pytest.param(
            replace(WHOLE, rows=80, thinned=("ada",)),
            20,
            None,
            f"would lose rows of 1 of 20 expected entities that the target holds: ada; {NOT_OURS}",
            id="rows-of-others",
        ),
        pytest.param(replace(WHOLE, rows=80, thinned=("ada",)), 20, "run-1", None, id="rows-of-a-run"),
        pytest.param(
            TargetCounts(rows=22, matched=20, held=20, entities=22, dropped=("x", "y")), 20, None, None, id="few-drop"
        ),
        pytest.param(
            TargetCounts(rows=40, matched=20, held=20, entities=40, dropped=("x", "y")), 20, None, None, id="most-stay"
        ),
        pytest.param(
            TargetCounts(rows=3, matched=1, held=1, entities=3, dropped=("x", "y")),
            1,
            None,
            "expectation incomplete: 1 expected, but the target holds 3 entities, and would lose 2 unexpected ones: "
            f"x, y; {NOT_OURS}",
            id="hardly-any-stays-of-others",
        ),
        pytest.param(
            TargetCounts(rows=3, matched=1, held=1, entities=3, dropped=("x", "y")), 1, "run-1", None, id="of-a-run"
        ),
        pytest.param(
            TargetCounts(rows=20, entities=20, dropped=tuple("abcdefghijklmnopqrst")), 18, None, None, id="other-names"
        ),
    ],
)
def test_a_loss_is_said_with_numbers_names_and_who_wrote_them(
    target: TargetCounts, expected: int, writer: str | None, loss: str | None
) -> None:
    assert describe_loss(target, expected=expected, policy=POLICY, writer=writer) == loss


LOSS = "would lose 1 of 20 expected entities that the target holds: ada; run run-1 wrote them"


def test_a_loss_blocks_a_date_that_would_pass_and_keeps_its_coverage() -> None:
    whole, most = counted(20, 20, loss=LOSS), counted(19, 20, loss=LOSS)
    for recount, share in (
        (whole, "20 of 20 expected entities (100.0 %)"),
        (most, "19 of 20 expected entities (95.0 %)"),
    ):
        judgement = judge_date(recount, policy=POLICY)
        assert judgement == Judgement(verdict=Verdict.BLOCKED, reason=f"{LOSS}; {share}")
        assert is_blocked_by_loss_only(recount, policy=POLICY)


def test_a_date_below_the_accept_ratio_keeps_its_own_reason() -> None:
    below = counted(10, 20, loss=LOSS)
    assert judge_date(below, policy=POLICY) == judge_date(replace(below, loss=None), policy=POLICY)
    assert not is_blocked_by_loss_only(below, policy=POLICY)


@pytest.mark.parametrize("matched", [10, 19, 20])
def test_force_accepts_a_loss_and_records_it(matched: int) -> None:
    judgement = judge_date(counted(matched, 20, loss=LOSS), policy=POLICY, forced_because="he has left")
    assert judgement.verdict is Verdict.FORCED
    assert LOSS in judgement.reason
    assert f"{matched} of 20" in judgement.reason
    assert judgement.reason.endswith("forced: he has left")


NAMES = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8).map(lambda names: tuple(sorted(names)))
TARGETS = st.builds(
    lambda held, unexpected, rows, lost, dropped, thinned: TargetCounts(
        rows=held + unexpected + rows,
        matched=held,
        held=held,
        entities=held + unexpected,
        lost=lost[:held],
        dropped=dropped[:unexpected],
        thinned=thinned[:held],
    ),
    st.integers(0, 20),
    st.integers(0, 20),
    st.integers(0, 20),
    NAMES,
    NAMES,
    NAMES,
)
WRITERS = st.none() | st.just("run-1")


@given(TARGETS, st.integers(0, 40), POLICIES, WRITERS)
def test_a_lost_entity_is_always_a_loss(
    target: TargetCounts, expected: int, policy: CoveragePolicy, writer: str | None
) -> None:
    loss = describe_loss(target, expected=expected, policy=policy, writer=writer)
    assert loss is not None or not target.lost
    assert loss is None or target.lost or target.thinned or target.dropped
    assert loss is None or target.lost or writer is None


@given(TARGETS, st.integers(0, 40), POLICIES)
def test_what_is_no_loss_of_other_rows_is_none_of_a_run_s(
    target: TargetCounts, expected: int, policy: CoveragePolicy
) -> None:
    of_others, of_run = (
        describe_loss(target, expected=expected, policy=policy, writer=writer) for writer in (None, "run-1")
    )
    assert of_run is None or of_others is not None


@given(RECOUNTS, POLICIES, st.none() | st.just("why"))
def test_nothing_that_loses_rows_passes_unforced(recount: Recount, policy: CoveragePolicy, because: str | None) -> None:
    losing = judge_date(replace(recount, loss=LOSS), policy=policy, forced_because=because)
    harmless = judge_date(recount, policy=policy, forced_because=because)
    assert not losing.verdict.is_passing or (losing.verdict is Verdict.FORCED and LOSS in losing.reason)
    assert harmless.verdict.is_passing or not losing.verdict.is_passing


# -- the expectation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "events", "floor", "verdict", "reason"),
    [
        pytest.param(187, 9, 16, None, "", id="whole"),
        pytest.param(144, 9, 16, None, "", id="exactly-at-the-floor"),
        pytest.param(143, 9, 16, Verdict.BLOCKED, "expectation incomplete: 143 expected", id="below-the-floor"),
        pytest.param(0, 9, 16, Verdict.BLOCKED, "at least 144", id="on-the-calendar-but-nobody"),
        pytest.param(0, 1, 0, Verdict.BLOCKED, "at least 1", id="on-the-calendar-but-nobody-without-a-floor"),
        pytest.param(0, 0, 16, Verdict.SKIPPED, "not on the calendar", id="off-the-calendar"),
        pytest.param(12, 0, 16, None, "", id="somebody-off-the-calendar"),
        pytest.param(0, None, 0, Verdict.SKIPPED, "nothing expected", id="no-calendar-and-nobody"),
        pytest.param(3, None, 0, None, "", id="no-calendar"),
    ],
)
def test_the_expectation_is_judged_first(
    expected: int, events: int | None, floor: int, verdict: Verdict | None, reason: str
) -> None:
    found = judge_expectation(DateExpectation(expected=expected, events=events, floor_per_event=floor))
    assert (found.verdict if found else None) is verdict
    assert reason in (found.reason if found else "")


NULLS = {"null_entities": 3, "table": "shop.x"}
SOURCE_ROWS = {"contradicted_by": "source first has 20 row(s)"}
FLOOR = {"floor": 169, "floor_reason": "187 were expected when run run-1 checkpointed it, and 90% of that is required"}


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        pytest.param(
            {"expected": 187, **NULLS}, "3 row(s) of shop.x have a null entity: fill or delete them", id="null"
        ),
        pytest.param(
            {"expected": 0, **NULLS}, "3 row(s) of shop.x have a null entity: fill or delete them", id="no-ids"
        ),
        pytest.param(
            {"expected": 0, **SOURCE_ROWS}, "nothing is expected, but source first has 20 row(s)", id="source"
        ),
        pytest.param(
            {"expected": 0, "events": 0, **SOURCE_ROWS},
            "nothing is expected and the calendar has no event, but source first has 20 row(s)",
            id="source-off-the-calendar",
        ),
        pytest.param(
            {"expected": 0, "events": 9, "floor_per_event": 16, **SOURCE_ROWS},
            "0 expected, but the calendar has 9 event(s), which imply at least 144",
            id="the-calendar-says-more-than-a-source",
        ),
        pytest.param(
            {"expected": 168, **FLOOR}, f"168 expected, fewer than 169: {FLOOR['floor_reason']}", id="below-the-floor"
        ),
        pytest.param(
            {"expected": 0, "events": 0, **FLOOR},
            "0 expected, fewer than 169: 187 were expected when run run-1 checkpointed it, and 90% of that is required",
            id="vanished",
        ),
    ],
)
def test_what_speaks_against_the_expectation_blocks_the_date(facts: dict[str, Any], reason: str) -> None:
    blocked = Judgement(verdict=Verdict.BLOCKED, reason=f"expectation incomplete: {reason}")
    assert judge_expectation(DateExpectation(**facts)) == blocked


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param({"expected": 169, **FLOOR}, id="exactly-at-the-floor"),
        pytest.param({"expected": 1, **SOURCE_ROWS}, id="rows-of-a-date-with-entities"),
        pytest.param({"expected": 12, "events": 0}, id="off-the-calendar"),
    ],
)
def test_an_expectation_that_nothing_speaks_against_is_built(facts: dict[str, Any]) -> None:
    assert judge_expectation(DateExpectation(**facts)) is None


EXPECTATIONS = st.builds(
    DateExpectation,
    expected=st.integers(0, 30),
    events=st.none() | st.integers(0, 3),
    floor_per_event=st.integers(0, 10),
    null_entities=st.integers(0, 2),
    contradicted_by=st.none() | st.just("source first has 1 row(s)"),
    floor=st.integers(0, 30),
)


@given(EXPECTATIONS)
def test_a_date_is_skipped_exactly_when_nothing_speaks_for_it(expectation: DateExpectation) -> None:
    facts = (expectation.expected, expectation.events, expectation.null_entities, expectation.floor)
    judgement = judge_expectation(expectation)
    is_skipped = judgement is not None and judgement.verdict is Verdict.SKIPPED
    assert is_skipped is (not any(facts) and expectation.contradicted_by is None)


@given(EXPECTATIONS, st.integers(0, 30))
def test_more_expected_entities_never_block_a_date(expectation: DateExpectation, more: int) -> None:
    larger = judge_expectation(replace(expectation, expected=expectation.expected + more))
    assert judge_expectation(expectation) is not None or larger is None


@given(st.integers(0, 400) | st.integers(1, 400).map(lambda n: n / 2), st.integers(0, 100).map(lambda n: n / 100))
def test_the_least_count_is_the_smallest_that_reaches_the_ratio(whole: float, ratio: float) -> None:
    count = least_count(whole, ratio)
    assert not whole or count / whole >= ratio
    assert count == 0 or (count - 1) / whole < ratio


@given(RECOUNTS)
def test_zero_is_never_nothing_to_do_on_a_calendar_date(recount: Recount) -> None:
    found = judge_expectation(replace(recount.expectation, events=1))
    assert found is None or found.verdict is Verdict.BLOCKED


# -- the source ---------------------------------------------------------------------------------------------------

ORDER = ["upcoming", "derived", "archive"]


def choose(
    found: list[int],
    *,
    expected: int = 200,
    fallback: Fallback = Fallback.REPLACE,
    policy: CoveragePolicy = POLICY,
    **more: object,
) -> SourceChoice:
    names = ORDER[: len(found)]
    counts = dict(zip(names, found, strict=True))
    return choose_source(names, counts, expected, policy=policy, fallback=fallback, **more)  # pyright: ignore


@pytest.mark.parametrize(
    ("found", "expected", "source", "reason"),
    [
        pytest.param([200, 200], 200, "upcoming", "primary at 100.0 %", id="primary-whole"),
        pytest.param([180, 200], 200, "upcoming", "primary at 90.0 %", id="primary-at-exactly-90"),
        pytest.param([179, 200], 200, "derived", "primary below 90% at 89.5 %", id="primary-just-below"),
        pytest.param([68, 175], 175, "derived", "primary below 90% at 38.8 %", id="primary-at-39"),
        pytest.param([1, 187], 187, "derived", "primary below 90% at 0.5 %", id="one-stale-row"),
        pytest.param([0, 187], 187, "derived", "primary below 90% at 0.0 %", id="primary-empty"),
        pytest.param([0, 185, 199], 200, "archive", "primary below 90% at 0.0 %", id="best-fallback"),
        pytest.param([80, 120], 200, "derived", "no source reaches 90%; the best has 60.0 %", id="both-partial"),
        pytest.param([120, 80], 200, "upcoming", "no source reaches 90%; the best has 60.0 %", id="primary-is-best"),
        pytest.param([80, 80], 200, "upcoming", "no source reaches 90%; the best has 40.0 %", id="a-tie-is-primary's"),
        pytest.param([80], 200, "upcoming", "primary below 90% at 40.0 %, there is no fallback", id="no-fallback"),
    ],
)
def test_the_source_is_chosen_by_coverage_never_by_emptiness(
    found: list[int], expected: int, source: str, reason: str
) -> None:
    choice = choose(found, expected=expected)
    assert (choice.source, choice.fill_from, choice.reason) == (source, None, reason)
    assert choice.covered == found[ORDER.index(source)]


def test_with_the_fallback_off_the_primary_is_taken_as_it_is() -> None:
    choice = choose([1, 187], expected=187, fallback=Fallback.OFF)
    assert (choice.source, choice.covered) == ("upcoming", 1)
    assert choice.reason == "primary below 90% at 0.5 %, fallback is off"


def test_filling_keeps_the_primary_and_takes_the_rest_from_the_best_fallback() -> None:
    choice = choose([80, 150, 60], fallback=Fallback.FILL, with_fill={"derived": 160, "archive": 190})
    assert (choice.source, choice.fill_from, choice.covered) == ("upcoming", "archive", 190)
    assert choice.label == "upcoming+archive"
    assert choice.reason == "primary below 100% at 40.0 %, filled from archive"


def test_whatever_a_fallback_has_is_filled_also_above_the_accept_ratio() -> None:
    choice = choose([180, 150, 60], fallback=Fallback.FILL, with_fill={"derived": 199, "archive": 190})
    assert (choice.source, choice.fill_from, choice.covered) == ("upcoming", "derived", 199)
    assert choice.reason == "primary below 100% at 90.0 %, filled from derived"


def test_nothing_is_filled_from_a_fallback_that_adds_nothing() -> None:
    choice = choose([180, 150], fallback=Fallback.FILL, with_fill={"derived": 180})
    assert (choice.source, choice.fill_from, choice.label) == ("upcoming", None, "upcoming")
    assert choice.reason == "primary below 100% at 90.0 %, no fallback adds any"


@pytest.mark.parametrize(
    ("found", "fallback_below", "fallback", "label", "reason"),
    [
        pytest.param([190, 200], 1.0, Fallback.REPLACE, "derived", "primary below 100% at 95.0 %", id="sooner"),
        pytest.param([190, 180], 1.0, Fallback.REPLACE, "upcoming", "primary below 100% at 95.0 %", id="primary-best"),
        pytest.param([150, 200], 0.5, Fallback.REPLACE, "upcoming", "primary at 75.0 %", id="later"),
        pytest.param([180, 200], 0.9, Fallback.FILL, "upcoming", "primary at 90.0 %", id="fill-later"),
        pytest.param([0, 200], 0.0, Fallback.REPLACE, "upcoming", "primary at 0.0 %", id="never"),
    ],
)
def test_the_ratio_of_the_fallback_is_apart_from_the_ratio_of_the_gate(
    found: list[int], fallback_below: float, fallback: Fallback, label: str, reason: str
) -> None:
    policy = CoveragePolicy(fallback_below=fallback_below)
    choice = choose(found, fallback=fallback, with_fill={"derived": 200}, policy=policy)
    assert (choice.label, choice.reason) == (label, reason)


@given(st.lists(st.integers(0, 200), min_size=1, max_size=3), st.sampled_from(Fallback))
def test_the_choice_says_how_much_it_supplies(found: list[int], fallback: Fallback) -> None:
    filled = {name: max(found[0], n) for name, n in zip(ORDER[1:], found[1:], strict=False)}
    choice = choose(found, fallback=fallback, with_fill=filled)
    expected = filled[choice.fill_from] if choice.fill_from else found[ORDER.index(choice.source)]
    assert choice.covered == expected
    assert choice.covered >= found[0]


@example(ratio=55, counts=(55, 100))  # 0.55 * 100 is a little more than 55 in floating point
@given(st.integers(1, 100), st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_primary_is_good_enough_exactly_when_the_gate_would_pass_it(ratio: int, counts: tuple[int, int]) -> None:
    found, expected = counts
    policy = CoveragePolicy(accept_ratio=ratio / 100, complete_ratio=1.0)
    choice = choose_source(["upcoming"], {"upcoming": found}, expected, policy=policy, fallback=Fallback.REPLACE)
    passes = judge_date(counted(found, expected), policy=policy).verdict.is_passing
    assert choice.reason.startswith("primary at") is passes
