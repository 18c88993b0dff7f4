"""What is counted over runs: tables for each rule, and a naive recount of anything."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gated_backfill.common.history.figures import (
    JUDGED,
    PUBLISHED,
    DateOutcome,
    FigureChange,
    count_in_words,
    coverage_of,
    ended_per_day,
    latest_results,
    outcome_of,
    points_in_words,
    share_in_words,
    spark_counts,
    spark_coverage,
    totals,
    trend,
    used_fallback,
)
from gated_backfill.common.ledger import DateRow, DateState, RunWithDates
from gated_backfill.common.model.coverage import Verdict
from gated_backfill.common.model.dates import DateRange
from tests.builders import FEB_23, NOON, a_date, a_run


def row(state: DateState = DateState.CHECKPOINTED, verdict: str | None = "complete", **more: Any) -> DateRow:
    counts = {"expected": 100, "matched": 100, "source": "first", "found": {"first": 100, "second": 90}}
    return a_date(state, **counts | {"verdict": Verdict(verdict) if verdict else None} | more)


def facts(*rows: DateRow, number: int = 0, **more: Any) -> RunWithDates:
    took = {"id": f"run-{number}", "started_at": NOON, "finished_at": NOON + timedelta(seconds=10)}
    return RunWithDates(run=a_run(**took | more), dates=rows)


@pytest.mark.parametrize(
    ("found", "outcome"),
    [
        pytest.param(row(), DateOutcome.COMPLETE, id="checkpointed"),
        pytest.param(row(verdict="accepted"), DateOutcome.ACCEPTED, id="accepted"),
        pytest.param(row(verdict="forced"), DateOutcome.FORCED, id="forced"),
        pytest.param(row(DateState.BLOCKED, "blocked"), DateOutcome.BLOCKED, id="blocked"),
        pytest.param(row(DateState.FAILED, "failed"), DateOutcome.FAILED, id="failed"),
        pytest.param(row(DateState.FAILED, "complete"), DateOutcome.FAILED, id="passed-but-not-published"),
        pytest.param(row(DateState.SKIPPED, "skipped"), DateOutcome.SKIPPED, id="skipped"),
        pytest.param(row(DateState.STAGED, "complete"), DateOutcome.UNFINISHED, id="judged-but-not-published-yet"),
        pytest.param(row(DateState.PENDING, None), DateOutcome.UNFINISHED, id="not-begun"),
    ],
)
def test_what_became_of_a_date(found: DateRow, outcome: DateOutcome) -> None:
    assert outcome_of(found) is outcome


@pytest.mark.parametrize(
    ("found", "share"),
    [
        pytest.param(row(matched=98), 0.98, id="published"),
        pytest.param(row(DateState.BLOCKED, "blocked", matched=1), 0.01, id="blocked"),
        pytest.param(row(DateState.BLOCKED, "blocked", expected=0, matched=0), None, id="nobody-was-expected"),
        pytest.param(row(DateState.BLOCKED, "blocked", expected=None, matched=None), None, id="expectation-unreadable"),
        pytest.param(row(DateState.SKIPPED, "skipped"), None, id="skipped"),
        pytest.param(row(DateState.FAILED, "failed"), None, id="failed"),
        pytest.param(row(DateState.QUEUED, None), None, id="not-judged-yet"),
    ],
)
def test_only_judged_dates_have_a_coverage(found: DateRow, share: float | None) -> None:
    assert coverage_of(found) == share


@pytest.mark.parametrize(
    ("found", "fell"),
    [
        pytest.param(row(), False, id="primary"),
        pytest.param(row(source="second"), True, id="fallback"),
        pytest.param(row(source="first+second"), True, id="filled"),
        pytest.param(row(source="a+b", found={"a+b": 100}), False, id="a-primary-with-a-plus-in-its-name"),
        pytest.param(row(found=None), None, id="nothing-is-known-of-the-sources"),
        pytest.param(row(DateState.BLOCKED, "blocked", source="second"), None, id="not-published"),
    ],
)
def test_a_published_date_fell_back_if_any_row_is_of_another_source_than_the_first(
    found: DateRow, fell: bool | None
) -> None:
    assert used_fallback(found) is fell


@st.composite
def date_rows(draw: st.DrawFn) -> DateRow:
    state = draw(st.sampled_from(list(DateState)))
    passing = ["complete", "accepted", "forced"]
    verdict = draw(st.sampled_from(passing if state is DateState.CHECKPOINTED else [None, *[v.value for v in Verdict]]))
    expected = draw(st.none() | st.integers(0, 200))
    return row(
        state,
        verdict,
        day=FEB_23 + timedelta(days=draw(st.integers(0, 400))),
        expected=expected,
        matched=None if expected is None else draw(st.integers(0, expected)),
        source=draw(st.sampled_from([None, "first", "second", "first+second"])),
        found=draw(st.sampled_from([None, {"first": 1, "second": 2}])),
        seconds=draw(st.none() | st.floats(0, 1000)),
        ended_at=draw(st.none() | st.integers(0, 30).map(lambda n: NOON - timedelta(days=n))),
    )


runs_of_dates = st.lists(st.lists(date_rows(), max_size=8), max_size=5).map(
    lambda listed: [facts(*rows, number=number) for number, rows in enumerate(listed)]
)


@given(runs_of_dates)
def test_the_totals_are_those_of_a_naive_recount(found: Sequence[RunWithDates]) -> None:
    rows = [one for run_facts in found for one in run_facts.dates]
    built = [one for one in rows if one.state is DateState.CHECKPOINTED]
    judged = [one for one in rows if one.state in (DateState.CHECKPOINTED, DateState.BLOCKED) and one.expected]
    shares = sorted(one.matched / one.expected for one in judged)  # pyright: ignore
    known = [one for one in built if one.source and one.found]

    counted = totals(found)

    assert (counted.runs, counted.dates) == (len(found), len(rows))
    assert sum(counted.outcomes.values()) == len(rows)
    assert counted.published == len(built) == counted.of(*PUBLISHED)
    assert counted.of(DateOutcome.BLOCKED) == len([one for one in rows if one.state is DateState.BLOCKED])
    if shares:
        assert counted.coverage is not None
        assert (counted.coverage.dates, counted.coverage.least) == (len(shares), shares[0])
        assert counted.coverage.median == median(shares)
    else:
        assert counted.coverage is None
    assert (counted.sourced, counted.fallbacks) == (len(known), len([one for one in known if one.source != "first"]))
    assert counted.seconds_most == max((one.seconds for one in rows if one.seconds is not None), default=None)
    assert counted.wall_seconds == (10.0 * len(found) if found else None)


@given(runs_of_dates)
def test_every_date_of_every_run_stands_in_the_calendar_once_with_one_of_its_results(
    found: Sequence[RunWithDates],
) -> None:
    standing = latest_results(found).get("players", {})

    assert set(standing) == {one.day for run_facts in found for one in run_facts.dates}
    for day, one in standing.items():
        results = [other for run_facts in found for other in run_facts.dates if other.day == day]
        assert one.row in results
        assert one.results == len(results)


def test_the_latest_result_stands_unless_its_run_was_undone() -> None:
    first = facts(row(ended_at=NOON), number=1)
    later = facts(row(DateState.BLOCKED, "blocked", ended_at=NOON + timedelta(hours=1)), number=2)
    undone = facts(row(ended_at=NOON + timedelta(hours=2)), number=3, undone_at=NOON + timedelta(hours=3))

    assert latest_results([undone, later, first])["players"][FEB_23].run.id == "run-2"
    only = latest_results([undone])["players"][FEB_23]
    assert (only.run.id, only.undone) == ("run-3", True)


def test_a_run_that_has_not_reached_a_date_does_not_hide_its_last_result() -> None:
    done = facts(row(ended_at=NOON), number=1)
    under_way = facts(row(DateState.PENDING, None), number=2, created_at=NOON + timedelta(days=1))

    assert latest_results([under_way, done])["players"][FEB_23].run.id == "run-1"


def test_dates_count_on_the_day_on_which_they_ended() -> None:
    rows = [row(ended_at=NOON), row(ended_at=NOON), row(ended_at=NOON + timedelta(days=1)), row(ended_at=None)]
    days = DateRange(start=NOON.date() - timedelta(days=1), through=NOON.date() + timedelta(days=1))

    assert ended_per_day([facts(*rows)], days) == [0, 2, 1]


@pytest.mark.parametrize(
    ("shares", "bars"),
    [
        pytest.param([], "", id="none"),
        pytest.param([None], "·", id="nothing-judged"),
        pytest.param([0.0, 0.5, 1.0], "▁▅█", id="from-nothing-to-all"),
        pytest.param([1.0, 0.01, 1.0, 1.0], "▁█", id="the-lowest-of-neighbours-is-shown"),
        pytest.param([1.0, 1.0, None, None], "█·", id="neighbours-without-any"),
    ],
)
def test_coverage_as_a_row_of_bars(shares: Sequence[float | None], bars: str) -> None:
    assert spark_coverage(shares, width=3 if len(shares) < 4 else 2) == bars


@given(st.lists(st.none() | st.floats(0, 1), max_size=500), st.integers(1, 40))
def test_a_sparkline_is_never_wider_than_asked_and_shows_every_dip(shares: list[float | None], width: int) -> None:
    bars = spark_coverage(shares, width=width)

    assert len(bars) == min(len(shares), width)
    assert ("▁" in bars) == any(share is not None and share < 1 / 8 for share in shares)


@given(st.lists(st.integers(0, 9), max_size=200))
def test_a_sparkline_of_counts_is_empty_only_where_nothing_was_counted(counts: list[int]) -> None:
    bars = spark_counts(counts, width=len(counts) or 1)

    assert [bar == "·" for bar in bars] == [count == 0 for count in counts]


@pytest.mark.parametrize(
    ("now", "before", "words"),
    [
        pytest.param(1.0, 0.979, "+2.1 points", id="up"),
        pytest.param(0.5, 0.75, "-25.0 points", id="down"),
        pytest.param(0.98, 0.98, "as before", id="same"),
        pytest.param(0.98, None, "none before", id="none-before"),
        pytest.param(None, 0.98, "", id="none-now"),
    ],
)
def test_a_share_s_trend_in_words(now: float | None, before: float | None, words: str) -> None:
    assert points_in_words(FigureChange(now=now, before=before)) == words


def test_the_trend_is_against_the_period_before_and_unknown_without_one() -> None:
    now, before = totals([facts(row(), row(DateState.BLOCKED, "blocked", matched=50))]), totals([facts(row())])

    assert trend(now, before)["blocked"].difference == 1
    assert trend(now, before)["coverage_min"].difference == -0.5
    assert trend(now, totals([]))["blocked"].difference is None
    assert count_in_words(trend(now, totals([]))["blocked"]) == "none before"
    assert count_in_words(trend(now, before)["blocked"]) == "+1"


@given(st.integers(1, 3000), st.integers(0, 3000))
def test_a_share_reads_as_all_only_when_it_is_all(expected: int, lacking: int) -> None:
    matched = max(expected - lacking, 0)

    assert (share_in_words(matched / expected) == "100.0 %") == (matched == expected)
    assert {DateOutcome.SKIPPED, DateOutcome.FAILED, DateOutcome.UNFINISHED}.isdisjoint(JUDGED)
