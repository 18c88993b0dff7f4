"""Dates, ranges and windows."""

from __future__ import annotations

from datetime import date, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.dates import (
    DateRange,
    chunk_dates,
    consecutive_ranges,
    enclosing_range,
    format_dates,
    parse_date,
    season_start,
)

ONE_DAY = timedelta(days=1)
DAYS = st.dates(min_value=date(2015, 1, 1), max_value=date(2030, 1, 1))
SETS_OF_DAYS = st.sets(DAYS | st.dates(min_value=date(2023, 2, 20), max_value=date(2023, 3, 5)), max_size=40)


def feb(*numbers: int) -> list[date]:
    return [date(2023, 2, n) for n in numbers]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("2023-02-23", date(2023, 2, 23), id="plain"),
        pytest.param(" 2023-02-23 ", date(2023, 2, 23), id="spaces-around"),
        pytest.param("2024-02-29", date(2024, 2, 29), id="leap-day"),
    ],
)
def test_a_date_is_read(text: str, expected: date) -> None:
    assert parse_date(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("2023-02-30", id="no-such-day"),
        pytest.param("2023-02-29", id="no-leap-year"),
        pytest.param("2023-13-01", id="no-such-month"),
        pytest.param("0000-01-01", id="no-such-year"),
        pytest.param("2023-2-3", id="short"),
        pytest.param("20230223", id="no-dashes"),
        pytest.param("2023-W08-4", id="week-date"),
        pytest.param("2023-02-23T00:00", id="with-time"),
        pytest.param("23.02.2023", id="other-order"),
        pytest.param("٢٠٢٣-٠٢-٢٣", id="other-digits"),
        pytest.param("", id="empty"),
        pytest.param("yesterday", id="word"),
    ],
)
def test_what_is_no_date_is_refused_by_name(text: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_date(text)
    assert text in str(refused.value)


@given(st.text(max_size=12))
def test_any_text_is_a_date_or_a_user_error(text: str) -> None:
    try:
        found = parse_date(text)
    except UserError:
        return
    assert found.isoformat() == text.strip()


def test_a_range_includes_both_ends() -> None:
    found = DateRange(start=date(2023, 2, 27), through=date(2023, 3, 1))
    assert found.days() == [date(2023, 2, 27), date(2023, 2, 28), date(2023, 3, 1)]
    assert len(found) == 3


def test_a_range_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(UserError, match="2023-02-22 is before the start date 2023-02-23"):
        DateRange(start=date(2023, 2, 23), through=date(2023, 2, 22))


@pytest.mark.parametrize(
    ("days", "words"),
    [
        pytest.param([], "", id="none"),
        pytest.param(feb(23), "2023-02-23", id="one"),
        pytest.param(feb(23, 24), "2023-02-23..2023-02-24", id="stretch"),
        pytest.param(feb(24, 23, 23), "2023-02-23..2023-02-24", id="repeated-and-unsorted"),
        pytest.param(feb(1, 3, 5, 7, 9), "2023-02-01, 2023-02-03, 2023-02-05, 2023-02-07, 2023-02-09", id="five"),
        pytest.param(
            feb(1, 3, 5, 7, 9, 11, 13),
            "2023-02-01, 2023-02-03, 2023-02-05, 2023-02-07, 2023-02-09 and 2 more",
            id="cut-after-five",
        ),
    ],
)
def test_days_are_described_in_ranges(days: list[date], words: str) -> None:
    assert format_dates(days) == words


@given(SETS_OF_DAYS)
def test_every_day_is_in_exactly_one_range(days: set[date]) -> None:
    listed = [day for found in consecutive_ranges(days) for day in found.days()]
    assert listed == sorted(days)


@given(SETS_OF_DAYS)
def test_ranges_are_as_long_as_can_be(days: set[date]) -> None:
    found = consecutive_ranges(days)
    assert all(later.start - earlier.through > ONE_DAY for earlier, later in pairwise(found))


@given(SETS_OF_DAYS, st.integers(min_value=0, max_value=20))
def test_a_lookback_adds_the_days_before_each(days: set[date], lookback: int) -> None:
    listed = {day for found in consecutive_ranges(days, lookback=lookback) for day in found.days()}
    assert listed == {day - ONE_DAY * n for day in days for n in range(lookback + 1)}


@given(st.lists(DAYS), st.integers(min_value=1, max_value=10))
def test_windows_keep_the_order_and_lose_nothing(days: list[date], size: int) -> None:
    cut = chunk_dates(days, size)
    assert [day for window in cut for day in window] == days
    assert all(len(window) == size for window in cut[:-1])
    assert all(1 <= len(window) <= size for window in cut)


@given(st.lists(DAYS, min_size=1))
def test_the_hull_reaches_from_the_first_day_to_the_last(days: list[date]) -> None:
    assert (enclosing_range(days).start, enclosing_range(days).through) == (min(days), max(days))


@pytest.mark.parametrize(
    ("day", "expected"),
    [
        pytest.param(date(2022, 10, 17), date(2021, 10, 19), id="last-day-of-the-season-before"),
        pytest.param(date(2022, 10, 18), date(2022, 10, 18), id="opening-day"),
        pytest.param(date(2023, 2, 23), date(2022, 10, 18), id="amid-the-season"),
        pytest.param(date(2021, 1, 1), None, id="before-all"),
    ],
)
def test_a_day_belongs_to_the_latest_season_begun(day: date, expected: date | None) -> None:
    assert season_start(day, [date(2022, 10, 18), date(2021, 10, 19), date(2023, 10, 24)]) == expected
