"""Which rows are stale, what is refused, and how tables with a date column are written."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gated_backfill.common.cleanup.stale_rows import cutoff_of, deletion_objection, local_today, select_stale_rows
from gated_backfill.common.config.settings import Settings, read_settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.model.tables import DatedTable, TableName, parse_dated_tables

TABLE = DatedTable(name=TableName("nba", "upcoming"))
TODAY = date(2024, 3, 20)


def ago(days: int) -> date:
    return TODAY - timedelta(days=days)


def test_rows_of_exactly_so_many_days_ago_are_not_stale() -> None:
    found = select_stale_rows(TABLE, {ago(8): 3, ago(7): 5, ago(0): 1, ago(-3): 1}, cutoff_of(TODAY, 7))
    assert (dict(found.rows_by_date), found.rows, found.table_rows) == ({ago(8): 3}, 3, 10)


@given(st.integers(1, 4000), st.dictionaries(st.integers(-50, 4000), st.integers(0, 9)))
def test_rows_dated_today_or_later_are_never_stale(days: int, rows: dict[int, int]) -> None:
    found = select_stale_rows(TABLE, {ago(n): count for n, count in rows.items()}, cutoff_of(TODAY, days))
    assert all(day < TODAY - timedelta(days=days) < TODAY for day in found.rows_by_date)
    assert found.rows == sum(count for n, count in rows.items() if n > days)


@pytest.mark.parametrize("days", [0, -1])
def test_less_than_a_day_is_refused(days: int) -> None:
    with pytest.raises(UserError, match="dated today or later are never deleted"):
        cutoff_of(TODAY, days)


@pytest.mark.parametrize("days", [36_501, 9_999_999, 10**12])
def test_more_days_than_the_calendar_has_are_refused(days: int) -> None:
    with pytest.raises(UserError, match=r"more than 36500"):
        cutoff_of(TODAY, days)


@pytest.mark.parametrize(
    ("stale", "fresh", "most", "refused"),
    [
        pytest.param(5, 5, 0.5, False, id="at-the-limit"),
        pytest.param(6, 5, 0.5, True, id="beyond-it"),
        pytest.param(6, 0, 1.0, False, id="all-of-it-when-told"),
        pytest.param(0, 0, 0.0, False, id="an-empty-table"),
    ],
)
def test_a_large_share_is_objected_to(stale: int, fresh: int, most: float, refused: bool) -> None:
    found = select_stale_rows(TABLE, {ago(9): stale, ago(1): fresh}, cutoff_of(TODAY, 7))
    assert (deletion_objection(found, most) is not None) is refused


@pytest.mark.parametrize("spare", [True, False])
def test_exactly_the_restored_dates_are_told_and_spared_where_that_is_wanted(spare: bool) -> None:
    counts = {ago(10): 1, ago(9): 1, ago(8): 1, ago(1): 1}
    found = select_stale_rows(
        TABLE, counts, cutoff_of(TODAY, 7), {ago(10), ago(8), ago(1), ago(30)}, skip_restored=spare
    )
    assert found.restored == (ago(10), ago(8))
    assert list(found.rows_by_date) == ([ago(9)] if spare else [ago(10), ago(9), ago(8)])


@pytest.mark.parametrize(
    ("moment", "today"),
    [
        pytest.param(datetime(2024, 3, 10, 4, 30, tzinfo=UTC), date(2024, 3, 9), id="before-midnight-in-winter-time"),
        pytest.param(datetime(2024, 3, 11, 4, 30, tzinfo=UTC), date(2024, 3, 11), id="after-midnight-in-summer-time"),
        pytest.param(datetime(2024, 11, 3, 4, 30, tzinfo=UTC), date(2024, 11, 3), id="the-last-day-of-summer-time"),
        pytest.param(datetime(2024, 11, 4, 4, 30, tzinfo=UTC), date(2024, 11, 3), id="before-midnight-again"),
    ],
)
def test_today_is_new_york_s_on_both_sides_of_a_clock_change(home: Settings, moment: datetime, today: date) -> None:
    assert local_today(home, moment) == today


def test_tables_are_written_with_or_without_their_date_column() -> None:
    found = parse_dated_tables(" a.b , c.d:day")
    assert [(str(one), one.date_column) for one in found] == [("a.b", "game_date"), ("c.d", "day")]
    assert parse_dated_tables(" ") == ()


DAYS_SETTINGS = ("CLEANUP_DAYS", "CLEANUP_BACKUP_DAYS", "STAGING_DAYS", "QUARANTINE_DAYS", "UNDO_DAYS")
NO_TABLES = ("a", "a.b,", "a.b:", "a.b:x y", "a.b.c", "a.b,a.b:day", "a.b;c.d", "../a.b")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *(pytest.param(name, "9999999", "36500", id=f"too-many-{name}") for name in DAYS_SETTINGS),
        *(pytest.param("CLEANUP_TABLES", text, r"dataset\.table", id=f"no-tables-{text}") for text in NO_TABLES),
        pytest.param("TIMEZONE", "America/Nowhere", "is no time zone", id="no-time-zone"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_name_and_the_reason(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(f"BACKFILL_{name}", value)
    with pytest.raises(UserError, match=f"BACKFILL_{name}: .*{message}"):
        read_settings()
