"""What may be in flight, where a run's dates are sent, and how fast the warehouse is asked: the decisions."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gated_backfill.common.broker.rate_limit import ProcessTokenBucket
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import UserError, WarehouseUnavailable
from gated_backfill.common.model.job import StaleTable
from gated_backfill.common.model.registry import find_job, load_jobs
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.model.scheduling.limits import (
    MICROSECONDS_PER_SECOND,
    ConcurrencyLimits,
    InFlight,
    RateLimit,
    is_next_in_line,
    reserve_token,
    windows_to_open,
)
from gated_backfill.common.model.scheduling.queues import (
    EXPRESS_QUEUE,
    GATE_QUEUE,
    LANES,
    QUEUES,
    choose_queue,
    expand_queues,
)
from gated_backfill.common.warehouse.backends import open_warehouse
from gated_backfill.common.warehouse.protocol import QueryFiles, QueryStaging, Warehouse
from gated_backfill.common.warehouse.rate_limited import CALLS_WITHOUT_TOKENS, TOKENS_BY_CALL, limit_rate, rate_limited
from gated_backfill.worker.jobs.player_composite_factors import JOB as PLAYERS
from tests.builders import rows_of, scan, span

caps = st.one_of(st.none(), st.integers(1, 40))

# -- in flight ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "of_run", "of_job", "size"),
    [
        pytest.param(100, None, None, 100, id="no-cap"),
        pytest.param(100, 1, None, 1, id="one-date"),
        pytest.param(100, 2, None, 1, id="two-windows-fit"),
        pytest.param(100, 50, None, 25, id="half-of-the-run's"),
        pytest.param(100, 50, 9, 4, id="half-of-the-job's"),
        pytest.param(3, 50, 40, 3, id="small-already"),
    ],
)
def test_windows_are_cut_so_that_two_fit_under_the_caps(
    asked: int, of_run: int | None, of_job: int | None, size: int
) -> None:
    assert ConcurrencyLimits(windows=3, dates=of_run, job_dates=of_job).window_size(asked) == size


@pytest.mark.parametrize(
    ("load", "cap", "opened"),
    [
        pytest.param(InFlight(windows=0, dates=0), ConcurrencyLimits(windows=2), [4, 5], id="so-many-windows"),
        pytest.param(InFlight(windows=1, dates=10), ConcurrencyLimits(windows=2), [4], id="those-open-count"),
        pytest.param(InFlight(windows=3, dates=10), ConcurrencyLimits(windows=2), [], id="more-open-than-may-be"),
        pytest.param(InFlight(windows=0, dates=0), ConcurrencyLimits(windows=9, dates=20), [4, 5], id="so-many-dates"),
        pytest.param(InFlight(windows=1, dates=16), ConcurrencyLimits(windows=9, dates=25), [], id="none-is-skipped"),
        pytest.param(
            InFlight(windows=0, dates=0, job_dates=15), ConcurrencyLimits(windows=9, job_dates=25), [4], id="of-the-job"
        ),
        pytest.param(
            InFlight(windows=0, dates=0, job_dates=30),
            ConcurrencyLimits(windows=9, job_dates=25),
            [],
            id="others-have-it-all",
        ),
    ],
)
def test_windows_open_in_order_while_every_cap_lets_one_more_through(
    load: InFlight, cap: ConcurrencyLimits, opened: list[int]
) -> None:
    assert windows_to_open({6: 1, 5: 10, 4: 10}, load, cap) == opened


@given(
    pending=st.dictionaries(st.integers(0, 50), st.integers(0, 20), max_size=8),
    under_way=st.integers(0, 60),
    others=st.integers(0, 60),
    windows=st.integers(1, 5),
    dates=caps,
    job_dates=caps,
)
def test_no_cap_is_ever_exceeded_and_one_more_window_would(
    pending: dict[int, int], under_way: int, others: int, windows: int, dates: int | None, job_dates: int | None
) -> None:
    cap = ConcurrencyLimits(windows=windows, dates=dates, job_dates=job_dates)
    load = InFlight(windows=int(under_way > 0), dates=under_way, job_dates=under_way + others)

    def fits(count: int) -> bool:
        brought = sum(size for _, size in sorted(pending.items())[:count])
        return (
            load.windows + count <= windows
            and (dates is None or load.dates + brought <= dates)
            and (job_dates is None or load.job_dates + brought <= job_dates)
        )

    opened = windows_to_open(pending, load, cap)
    assert opened == sorted(pending)[: len(opened)]
    assert not opened or fits(len(opened))
    assert len(opened) == len(pending) or not fits(len(opened) + 1)


@given(asked=st.integers(1, 100), dates=caps, job_dates=caps)
def test_a_run_with_nothing_in_flight_can_always_open_a_window(
    asked: int, dates: int | None, job_dates: int | None
) -> None:
    cap = ConcurrencyLimits(windows=3, dates=dates, job_dates=job_dates)
    assert windows_to_open({0: cap.window_size(asked)}, InFlight(windows=0, dates=0), cap) == [0]


def test_a_run_gives_way_to_those_that_have_nothing_in_flight() -> None:
    assert is_next_in_line("a", [])
    assert is_next_in_line("a", ["a", "b"])
    assert not is_next_in_line("b", ["a", "b"])
    assert not is_next_in_line("c", ["a", "b"])


def test_the_caps_are_kept_with_the_run_and_the_job_s_is_the_tighter_of_two() -> None:
    options = RunOptions.for_job(
        PLAYERS, window=100, in_flight=3, fallback=None, forced_because=None, max_in_flight=30, job_max_in_flight=40
    )
    assert options.window == 15
    assert RunOptions.from_dict(options.to_dict()) == options
    assert options.limits == ConcurrencyLimits(windows=3, dates=30, job_dates=40)


def test_a_run_of_an_earlier_version_has_no_caps_and_the_first_lane() -> None:
    stored = RunOptions.for_job(PLAYERS, window=100, in_flight=3, fallback=None, forced_because=None).to_dict()
    older = {name: stored[name] for name in stored if name not in ("max_in_flight", "job_max_in_flight", "queue")}
    assert RunOptions.from_dict(older).limits == ConcurrencyLimits(windows=3)
    assert RunOptions.from_dict(older).queue == LANES[0]


def test_a_job_that_lets_nothing_be_begun_is_refused() -> None:
    with pytest.raises(UserError, match="max_in_flight is 0"):
        replace(find_job(PLAYERS.name), max_in_flight=0)


def test_a_stale_table_of_a_job_has_a_plain_name_and_date_column() -> None:
    job = replace(PLAYERS, stale_tables=(StaleTable(table="nba.upcoming"),))
    assert str(job.stale_tables[0].dated_table()) == "nba.upcoming"
    assert job.stale_tables[0].dated_table().date_column == "game_date"
    for wrong in (StaleTable(table="upcoming"), StaleTable(table="nba.upcoming", date_column="a b")):
        with pytest.raises(UserError, match=f"job {PLAYERS.name}, stale table: "):
            replace(PLAYERS, stale_tables=(wrong,))


def test_a_job_that_can_not_be_loaded_is_reported_and_the_others_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "broken-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[backfill.jobs]\nbroken = no_such_module:JOB\n")
    monkeypatch.syspath_prepend(tmp_path)
    jobs, errors = load_jobs()
    assert PLAYERS in jobs
    assert list(errors) == ["broken"]
    assert "can't be loaded from no_such_module:JOB" in str(errors["broken"])


# -- lanes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dates", "taken", "queue"),
    [
        pytest.param(1, [], EXPRESS_QUEUE, id="a-daily-run"),
        pytest.param(7, [LANES[0]], EXPRESS_QUEUE, id="just-small-enough"),
        pytest.param(8, [], LANES[0], id="the-first-long-one"),
        pytest.param(8, [LANES[0], EXPRESS_QUEUE], LANES[1], id="beside-another"),
        pytest.param(8, [LANES[0], LANES[2]], LANES[1], id="a-gap"),
        pytest.param(8, [*LANES, *LANES[1:]], LANES[0], id="the-lane-with-the-fewest"),
    ],
)
def test_a_small_run_goes_express_and_a_long_one_to_the_lane_with_the_fewest(
    dates: int, taken: list[str], queue: str
) -> None:
    assert choose_queue(dates, express_dates=7, active_queues=taken) == queue


def test_whoever_consumes_dates_consumes_them_from_every_queue_of_them() -> None:
    assert expand_queues([LANES[0]]) == {*LANES, EXPRESS_QUEUE}
    assert expand_queues([LANES[0], GATE_QUEUE]) == {*LANES, EXPRESS_QUEUE, GATE_QUEUE}
    assert expand_queues([EXPRESS_QUEUE]) == {EXPRESS_QUEUE}
    assert expand_queues([LANES[1]]) == {LANES[1]}
    assert expand_queues(QUEUES) == set(QUEUES)


# -- the token bucket ---------------------------------------------------------------------------------------------


def moments(rate: RateLimit, asked: list[int]) -> list[int]:
    """When each of those who ask at these moments has its token; those who are refused have none."""
    next_at, found = 0, list[int]()
    for now in asked:
        taken = reserve_token(next_at, now, rate)
        if taken.next_at is not None:
            next_at = taken.next_at
            found.append(now + taken.wait_microseconds)
    return found


@given(
    gaps=st.lists(st.integers(0, 3 * MICROSECONDS_PER_SECOND), max_size=60),
    per_second=st.floats(0.1, 1000),
    burst=st.integers(1, 20),
    patience=st.floats(0, 20),
)
def test_in_no_stretch_of_time_are_there_more_tokens_than_the_burst_and_the_rate(
    gaps: list[int], per_second: float, burst: int, patience: float
) -> None:
    rate = RateLimit(per_second=per_second, burst=burst, max_wait_seconds=patience)
    asked = [1_000 * MICROSECONDS_PER_SECOND + sum(gaps[:n]) for n in range(len(gaps))]
    had = moments(rate, asked)
    assert had == sorted(had)
    for first in range(len(had)):
        for last in range(first, len(had)):
            gained = (had[last] - had[first]) / MICROSECONDS_PER_SECOND * per_second
            assert last - first + 1 <= burst + gained + 1e-6


def test_who_would_wait_too_long_takes_no_token_and_a_lull_fills_the_bucket_no_further_than_the_burst() -> None:
    rate = RateLimit(per_second=1, burst=3, max_wait_seconds=2)
    now = 1_000 * MICROSECONDS_PER_SECOND
    assert moments(rate, [now] * 9) == [now, now, now, now + MICROSECONDS_PER_SECOND, now + 2 * MICROSECONDS_PER_SECOND]
    later = now + 3600 * MICROSECONDS_PER_SECOND
    assert moments(rate, [now] * 3 + [later] * 4)[3:] == [later, later, later, later + MICROSECONDS_PER_SECOND]


def test_a_clock_that_was_set_back_does_not_stop_everybody() -> None:
    rate = RateLimit(per_second=1, burst=1, max_wait_seconds=2)
    taken = reserve_token(reserve_token(0, 10**15, rate).next_at or 0, 10**14, rate)
    assert taken.wait_microseconds == 0


@pytest.mark.parametrize("now", [pytest.param(0.0, id="a-clock-that-has-just-begun"), 1000.0])
def test_a_process_waits_for_its_own_tokens_and_is_told_when_that_is_too_long(now: float) -> None:
    bucket = ProcessTokenBucket(RateLimit(per_second=1, burst=2, max_wait_seconds=0.5), clock=lambda: now)
    bucket.acquire()
    bucket.acquire()
    with pytest.raises(WarehouseUnavailable, match="BACKFILL_QUERIES_PER_SECOND"):
        bucket.acquire()


def test_every_call_of_a_warehouse_has_its_price() -> None:
    protocols = (Warehouse, QueryStaging, QueryFiles)
    calls = {name for protocol in protocols for name in dir(protocol) if not name.startswith("_")}
    assert set(TOKENS_BY_CALL) | CALLS_WITHOUT_TOKENS == calls
    assert not set(TOKENS_BY_CALL) & CALLS_WITHOUT_TOKENS


def test_a_metered_warehouse_takes_its_tokens_before_each_call_and_answers_as_the_other(
    local_warehouse: Warehouse,
) -> None:
    taken: list[int] = []
    asked = rate_limited(local_warehouse, lambda: taken.append(1))
    day = date(2023, 2, 23)
    asked.load(scan().table, "day", rows_of(day))
    assert len(taken) == TOKENS_BY_CALL["load"]
    assert asked.describe(scan().table) == local_warehouse.describe(scan().table)
    assert len(taken) == TOKENS_BY_CALL["load"]
    assert asked.read(scan(span(day))).num_rows == 3
    assert len(taken) == TOKENS_BY_CALL["load"] + 1


def test_without_a_rate_the_warehouse_is_left_as_it_is(home: Settings) -> None:
    opened = open_warehouse(home.warehouse_url)
    assert limit_rate(opened, home.query_rate_limit) is opened
    limited = home.model_copy(update={"queries_per_second": 5.0}).query_rate_limit
    assert limited == RateLimit(per_second=5, burst=10, max_wait_seconds=60)
    assert limit_rate(opened, limited) is not opened
