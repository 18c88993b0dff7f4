"""Which dates share a task."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.scheduling.batching import MAX_DATES_PER_TASK, parse_dates_per_task, split_into_tasks


def days(count: int) -> list[date]:
    return [date(2023, 1, 1) + timedelta(days=n) for n in range(count)]


@pytest.mark.parametrize(
    ("count", "per_task", "seconds_each", "sizes"),
    [
        pytest.param(3, 1, None, [1, 1, 1], id="one-each"),
        pytest.param(70, 30, None, [30, 30, 10], id="as-asked"),
        pytest.param(5, 30, 9.0, [5], id="asked-for-more-than-there-are"),
        pytest.param(100, None, 0.1, [10] * 10, id="a-second-of-work"),
        pytest.param(100, None, 0.3, [3] * 32 + [2] * 2, id="never-more-than-a-second"),
        pytest.param(100, None, 0.001, [25] * 4, id="no-more-than-a-quarter-of-a-window"),
        pytest.param(30, None, 0.001, [15, 15], id="what-is-left-of-a-window-in-even-tasks"),
        pytest.param(100, None, 0.0, [25] * 4, id="no-work-at-all"),
        pytest.param(3, None, 60.0, [1, 1, 1], id="costly"),
        pytest.param(21, None, None, [1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 1], id="never-seen-working"),
        pytest.param(0, None, 0.1, [], id="none"),
    ],
)
def test_sizes(count: int, per_task: int | None, seconds_each: float | None, sizes: list[int]) -> None:
    batches = split_into_tasks(days(count), dates_per_task=per_task, seconds_per_date=seconds_each, window_size=100)
    assert sorted(map(len, batches), reverse=True) == sorted(sizes, reverse=True)


@given(
    count=st.integers(0, 400),
    per_task=st.none() | st.integers(1, 500),
    seconds_each=st.none() | st.floats(0, 100),
    window=st.integers(1, 5000),
)
def test_every_day_is_in_one_task_and_the_days_of_a_task_follow_each_other(
    count: int, per_task: int | None, seconds_each: float | None, window: int
) -> None:
    wanted = days(count)
    batches = split_into_tasks(wanted[::-1], dates_per_task=per_task, seconds_per_date=seconds_each, window_size=window)
    assert [day for batch in batches for day in batch] == wanted
    assert all(batches)
    if per_task is not None:
        assert all(len(batch) <= per_task for batch in batches)


@pytest.mark.parametrize(("text", "number"), [("1", 1), (" 30 ", 30), ("auto", None), ("AUTO", None)])
def test_what_a_user_may_say(text: str, number: int | None) -> None:
    assert parse_dates_per_task(text) == number


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "many", str(MAX_DATES_PER_TASK + 1), "³"])
def test_what_a_user_may_not_say(text: str) -> None:
    with pytest.raises(UserError, match="give a number from 1 to 5000, or auto"):
        parse_dates_per_task(text)
