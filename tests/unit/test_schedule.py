"""When works are due: on the hour of their zone on both sides of every clock change, and the same for every beat."""

from __future__ import annotations

import pickle
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gated_backfill.common.config.settings import Settings
from gated_backfill.worker.maintenance.runner import MAINTENANCE_TASKS
from gated_backfill.worker.maintenance.schedule import (
    DailyAt,
    Every,
    Recurrence,
    SlotSchedule,
    beat_schedule,
    maintenance_schedules,
)

NEW_YORK = ZoneInfo("America/New_York")
FOUR = DailyAt(time=time(4), zone="America/New_York")
ZONES = ["America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "America/Sao_Paulo", "Asia/Kolkata", "UTC"]

moments = st.datetimes(datetime(2000, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
daily = st.builds(DailyAt, time=st.times().map(lambda at: at.replace(microsecond=0)), zone=st.sampled_from(ZONES))
whens = st.one_of(daily, st.builds(Every, seconds=st.sampled_from([0.2, 0.7, 30, 60, 3600])))


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("now", "latest", "following"),
    [
        pytest.param("2023-01-10T12:00", "2023-01-10T09:00", "2023-01-11T09:00", id="winter"),
        pytest.param("2023-07-10T12:00", "2023-07-10T08:00", "2023-07-11T08:00", id="summer"),
        pytest.param("2023-01-10T09:00", "2023-01-10T09:00", "2023-01-11T09:00", id="at-the-moment"),
        pytest.param("2023-01-10T08:59:59", "2023-01-09T09:00", "2023-01-10T09:00", id="a-second-before"),
        pytest.param("2023-03-12T06:59", "2023-03-11T09:00", "2023-03-12T08:00", id="before-the-clocks-go-forward"),
        pytest.param("2023-03-12T08:00", "2023-03-12T08:00", "2023-03-13T08:00", id="after-the-clocks-went-forward"),
        pytest.param("2023-11-05T05:30", "2023-11-04T08:00", "2023-11-05T09:00", id="before-the-clocks-go-back"),
        pytest.param("2023-11-05T06:30", "2023-11-04T08:00", "2023-11-05T09:00", id="in-the-repeated-hour"),
        pytest.param("2023-11-05T09:00", "2023-11-05T09:00", "2023-11-06T09:00", id="after-the-clocks-went-back"),
    ],
)
def test_four_in_new_york_is_four_in_new_york_around_both_clock_changes(now: str, latest: str, following: str) -> None:
    assert FOUR.latest_due(utc(now)) == utc(latest)
    assert FOUR.next_due(utc(now)) == utc(following)


@pytest.mark.parametrize(
    ("at", "day", "slot"),
    [
        pytest.param(time(2, 30), date(2023, 3, 12), "2023-03-12T07:30", id="a-time-that-is-skipped"),
        pytest.param(time(1, 30), date(2023, 11, 5), "2023-11-05T05:30", id="a-time-that-comes-twice"),
    ],
)
def test_a_time_that_the_change_skips_or_repeats_is_due_once(at: time, day: date, slot: str) -> None:
    when = DailyAt(time=at, zone="America/New_York")
    noon = datetime.combine(day, time(12), NEW_YORK)
    assert when.latest_due(noon) == utc(slot)
    assert when.next_due(noon) - noon > timedelta(hours=12)


def test_over_forty_years_each_local_date_has_its_one_slot_at_four() -> None:
    slot = FOUR.latest_due(utc("2000-01-01T12:00"))
    for n in range(1, 40 * 365):
        slot = FOUR.next_due(slot)
        local = slot.astimezone(NEW_YORK)
        assert (local.date(), local.time()) == (date(2000, 1, 1) + timedelta(days=n), time(4))


@given(whens, moments)
def test_now_lies_between_two_neighbouring_slots(when: Recurrence, now: datetime) -> None:
    latest, following = when.latest_due(now), when.next_due(now)
    assert latest <= now < following
    assert when.next_due(latest) == following
    assert when.latest_due(following) == following
    assert when.latest_due(following - timedelta(microseconds=1)) == latest


@given(daily, moments)
def test_a_daily_slot_shows_its_time_wherever_the_clocks_of_the_zone_do(when: DailyAt, now: datetime) -> None:
    local = when.latest_due(now).astimezone(ZoneInfo(when.zone))
    wanted = local.replace(hour=when.time.hour, minute=when.time.minute, second=when.time.second, fold=0)
    exists = wanted.astimezone(UTC).astimezone(wanted.tzinfo) == wanted and (
        wanted.astimezone(UTC).astimezone(wanted.tzinfo).time() == when.time
    )
    assert local.time() == when.time or not exists


@given(whens, moments)
def test_celerys_beat_is_told_due_once_a_slot_whichever_way_the_clock_is_set(when: Recurrence, last: datetime) -> None:
    schedule = SlotSchedule(when)
    now = datetime.now(UTC)
    is_due, wait = schedule.is_due(last)
    is_due_again = schedule.is_due(now).is_due
    assume(when.latest_due(now) == when.latest_due(datetime.now(UTC)))  # no slot began meanwhile
    assert is_due == (when.latest_due(now) != when.latest_due(last))
    assert 0 < wait <= 26 * 3600
    assert not is_due_again


@given(whens)
def test_the_schedule_survives_its_file(when: Recurrence) -> None:
    assert pickle.loads(pickle.dumps(SlotSchedule(when))) == SlotSchedule(when)  # noqa: S301
    assert SlotSchedule(when) != SlotSchedule(Every(seconds=7))


def test_every_work_that_can_be_done_has_its_place_in_the_schedule(home: Settings) -> None:
    assert set(MAINTENANCE_TASKS) == set(maintenance_schedules(home))
    assert set(beat_schedule(home)) == set(MAINTENANCE_TASKS)


def test_what_may_take_long_goes_to_a_queue_of_its_own_and_what_must_not_wait_to_another(home: Settings) -> None:
    queues = {name: sent["options"]["queue"] for name, sent in beat_schedule(home).items()}
    frequent = {"heartbeat", "reconcile", "catch_up", "reports", "alerts"}
    assert queues == {name: "maintenance" if name in frequent else "housekeeping" for name in MAINTENANCE_TASKS}


def test_the_hours_are_the_settings(tmp_path: object) -> None:
    changed = maintenance_schedules(Settings(cleanup_at=time(23, 50), audit_at=time(1), timezone="Europe/Berlin"))
    assert changed["cleanup"].recurrence == DailyAt(time=time(23, 50), zone="Europe/Berlin")
    assert changed["staging_retention"].recurrence == DailyAt(time=time(0, 20), zone="Europe/Berlin")
    assert changed["audit"].recurrence == DailyAt(time=time(1), zone="Europe/Berlin")
