"""The floor of an expectation: from the job, from the dates around it, and from a date's checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gated_backfill.common.ledger import Checkpoint
from gated_backfill.common.model.coverage import ExpectationFloor, reaches_ratio
from gated_backfill.common.model.expectation_floor import NEIGHBOUR_DAYS, compute_floors, neighbour_days
from gated_backfill.common.model.job import Expectation
from tests.builders import FEB_23 as DAY
from tests.builders import a_checkpoint


def day_at(offset: int) -> date:
    return DAY + timedelta(days=offset)


def floor_of(
    counts: Mapping[int, int], *, checkpoint: Checkpoint | None = None, has_calendar: bool = False, **declared: Any
) -> ExpectationFloor:
    """The floor of `DAY`, from the numbers of expected entities by distance from it."""
    return compute_floors(
        Expectation(table="nba.summary", date_column="day", entity="player", **declared),
        [DAY],
        {day_at(offset): count for offset, count in counts.items()},
        checkpoints={DAY: checkpoint} if checkpoint else {},
        accept_ratio=0.9,
        has_calendar=has_calendar,
    )[DAY]


USUAL = dict.fromkeys([*range(-10, 0), *range(1, 11)], 187)


@pytest.mark.parametrize(
    ("counts", "declared", "floor", "reason"),
    [
        pytest.param(
            {0: 12, **USUAL}, {}, 19, "187 are usual on the 14 dates around it, and 10% of that is required", id="usual"
        ),
        pytest.param({0: 12, **USUAL}, {"floor_share_of_recent": 0.5}, 94, "187 are usual on the 14 dates", id="half"),
        pytest.param({0: 12, **USUAL}, {"floor_share_of_recent": 0}, 11, "12 were expected when", id="off"),
        pytest.param({0: 12, **USUAL}, {"has_calendar": True}, 11, "12 were expected when", id="calendar"),
        pytest.param(
            {0: 12, **USUAL}, {"has_calendar": True, "floor_share_of_recent": 0.5}, 94, "187 are usual", id="both"
        ),
        pytest.param({0: 12, **USUAL}, {"floor": 100}, 100, "the job's floor", id="the-largest-wins"),
        pytest.param(
            {0: 187, **USUAL},
            {"floor": 100},
            169,
            "187 were expected when the run was planned, and 90% of that is required",
            id="ok",
        ),
        pytest.param({0: 1, -1: 90, 1: 100}, {}, 1, "1 were expected when", id="two-dates-say-nothing"),
        pytest.param(
            {0: 1, -1: 80, 1: 90, 28: 100},
            {},
            9,
            "90 are usual on the 3 dates around it, and 10% of that is required",
            id="three",
        ),
        pytest.param({0: 1, -1: 80, 1: 90, 29: 100}, {}, 1, "1 were expected when", id="too-far-away"),
        pytest.param({0: 1, -28: 80, -3: 90, -1: 100}, {}, 9, "90 are usual on the 3 dates", id="one-side"),
        pytest.param({0: 1, -29: 80, -3: 90, -1: 100}, {}, 1, "1 were expected when", id="too-long-ago"),
        pytest.param({0: 1, -2: 0, -1: 0, 1: 90}, {}, 1, "1 were expected when", id="days-off-say-nothing"),
        pytest.param({0: 0, **USUAL}, {"floor": 100}, 0, "", id="a-day-off"),
        pytest.param(USUAL, {"floor": 100}, 0, "", id="no-rows"),
    ],
)
def test_the_floor_comes_from_the_job_and_the_dates_around(
    counts: dict[int, int], declared: dict[str, Any], floor: int, reason: str
) -> None:
    computed = floor_of(counts, **declared)
    assert computed.count == floor
    assert computed.reason.startswith(reason)
    assert bool(computed.reason) is bool(reason)


@pytest.mark.parametrize("now", [pytest.param(12, id="shrunk"), pytest.param(0, id="vanished")])
def test_a_checkpointed_date_must_expect_what_it_expected_then(now: int) -> None:
    floor = floor_of({0: now}, checkpoint=a_checkpoint(DAY, run_id="run-7", expected=187))
    assert floor == ExpectationFloor(
        count=169, reason="187 were expected when run run-7 checkpointed it, and 90% of that is required"
    )


def test_a_date_that_grew_since_its_checkpoint_is_judged_by_the_larger_number() -> None:
    floor = floor_of({0: 200}, checkpoint=a_checkpoint(DAY, run_id="run-7", expected=100))
    assert (floor.count, floor.reason) == (
        180,
        "200 were expected when the run was planned, and 90% of that is required",
    )


COUNTS = st.dictionaries(st.integers(-40, 40), st.integers(0, 300), max_size=60)


@given(COUNTS, st.integers(1, 100).map(lambda n: n / 100))
def test_the_floor_is_a_share_of_the_median_of_the_nearest_dates(counts: dict[int, int], share: float) -> None:
    counts |= {0: 1}
    before = sorted(n for n, count in counts.items() if count and -NEIGHBOUR_DAYS <= n < 0)[-7:]
    after = sorted(n for n, count in counts.items() if count and 0 < n <= NEIGHBOUR_DAYS)[:7]
    around = [counts[n] for n in [*before, *after]]
    floor = floor_of(counts, floor_share_of_recent=share)
    if len(around) < 3:
        assert floor.count == 1
    else:
        assert reaches_ratio(floor.count, median(around), share)  # pyright: ignore[reportArgumentType]
        assert floor.count == 1 or not reaches_ratio(floor.count - 1, median(around), share)  # pyright: ignore


@given(st.sets(st.integers(0, 200), max_size=40))
def test_neighbours_are_all_days_near_one_that_is_asked_for(offsets: set[int]) -> None:
    days = [day_at(n) for n in offsets]
    near = {day + timedelta(days=n) for day in days for n in range(-NEIGHBOUR_DAYS, NEIGHBOUR_DAYS + 1)}
    assert neighbour_days(days) == sorted(near - set(days))
