"""The token bucket that processes share at a real broker."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import redis
from structlog.testing import capture_logs

from gated_backfill.common.broker.rate_limit import BUCKET_KEY, BrokerTokenBucket
from gated_backfill.common.errors import WarehouseUnavailable
from gated_backfill.common.model.scheduling.limits import MICROSECONDS_PER_SECOND, RateLimit
from tests.brokers import broker as broker
from tests.builders import FEB_23, race
from tests.lab import Lab, players


def acquire(wait: Callable[[], object], url: str, times: int, per_second: float, burst: int) -> list[int]:
    """The moments at which a process took so many queries from the bucket."""
    bucket = BrokerTokenBucket(url, RateLimit(per_second=per_second, burst=burst, max_wait_seconds=60))
    client = redis.Redis.from_url(url)
    wait()
    moments: list[int] = []
    for _ in range(times):
        bucket.acquire()
        moments.append(moment(client))
    return moments


def moment(client: redis.Redis) -> int:
    seconds, microseconds = client.time()
    return seconds * MICROSECONDS_PER_SECOND + microseconds


def test_processes_at_once_never_take_more_than_the_burst_and_the_rate(broker: str) -> None:
    per_second, burst = 100, 5
    with redis.Redis.from_url(broker) as client:
        began = moment(client)
        results = race(*[(acquire, broker, 20, per_second, burst)] * 4)
    had = sorted(at for result in results for at in result)

    assert len(had) == 80
    for number, at in enumerate(had, 1):
        assert number <= burst + math.ceil((at - began) / MICROSECONDS_PER_SECOND * per_second)


def test_the_bucket_is_no_more_than_one_key_that_expires_once_it_is_full(broker: str) -> None:
    bucket = BrokerTokenBucket(broker, RateLimit(per_second=2, burst=3, max_wait_seconds=60))
    bucket.acquire()
    with redis.Redis.from_url(broker) as client:
        assert client.keys("*") == [BUCKET_KEY.encode()]
        assert 0 < client.pttl(BUCKET_KEY) <= 3 / 2 * 1000 + 1000


def test_who_would_wait_longer_than_the_patience_is_told_to_come_back_and_takes_nothing(broker: str) -> None:
    bucket = BrokerTokenBucket(broker, RateLimit(per_second=0.001, burst=1, max_wait_seconds=1))
    bucket.acquire()
    with redis.Redis.from_url(broker) as client:
        before = client.get(BUCKET_KEY)
        with pytest.raises(WarehouseUnavailable, match="too many queries wait for their turn"):
            bucket.acquire()
        assert client.get(BUCKET_KEY) == before


def test_a_clock_of_the_broker_that_was_set_back_stops_nobody(broker: str) -> None:
    bucket = BrokerTokenBucket(broker, RateLimit(per_second=1, burst=2, max_wait_seconds=1))
    with redis.Redis.from_url(broker) as client:
        client.set(BUCKET_KEY, moment(client) + 3600 * MICROSECONDS_PER_SECOND)
        bucket.acquire()
        assert int(client.get(BUCKET_KEY) or 0) <= moment(client) + 2 * MICROSECONDS_PER_SECOND


def test_while_the_broker_is_away_a_process_goes_on_at_the_same_rate_by_itself() -> None:
    rate = RateLimit(per_second=0.001, burst=2, max_wait_seconds=1)
    bucket = BrokerTokenBucket("redis://:hunter2@127.0.0.1:1/0", rate)
    with capture_logs() as logged:
        bucket.acquire()
        bucket.acquire()
        with pytest.raises(WarehouseUnavailable):
            bucket.acquire()
    assert [event["event"] for event in logged] == ["query_rate_limit_not_shared"]
    assert "hunter2" not in json.dumps(logged)


def test_a_run_at_a_low_rate_completes_and_a_plan_that_must_wait_too_long_is_refused_in_one_line(lab: Lab) -> None:
    lab.probe_all([FEB_23], players(2))
    span = ("--job", "probe", "--dates", str(FEB_23))
    ran = lab.inside("run", *span, "--sequential", BACKFILL_QUERIES_PER_SECOND="200", BACKFILL_QUERY_BURST="1")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    slow = {"BACKFILL_QUERIES_PER_SECOND": "0.001", "BACKFILL_QUERY_BURST": "1"}
    refused = lab.inside("plan", *span, "--reprocess", "all", BACKFILL_WAREHOUSE_RETRY_SECONDS="0.1", **slow)
    assert refused.returncode == 2
    assert "BACKFILL_QUERIES_PER_SECOND" in refused.stderr
    assert "Traceback" not in refused.stderr
