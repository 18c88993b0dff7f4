"""Where the tokens of a bucket are counted: in this process, or at the broker for all that use it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import structlog
from redis.exceptions import RedisError

from gated_backfill.common.config.broker_url import parse_broker_url
from gated_backfill.common.errors import WarehouseUnavailable
from gated_backfill.common.model.rate import MICROSECONDS_PER_SECOND, RateLimit, reserve_token

log = structlog.get_logger()

BUCKET_KEY = "gated-backfill:warehouse-queries"
ANSWER_SECONDS = 3.0  #: how long a broker may take to hand out a token
AWAY_SECONDS = 10.0  #: how long a broker that did not answer is not asked again

#: `take` where the moment is kept, by the clock that is there: the answer is the wait, negative when none was taken.
TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, burst, patience = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local next_at = tonumber(redis.call('GET', KEYS[1]) or '0')
if next_at > now + patience + interval then
    next_at = now
end
local at = math.max(next_at, now - (burst - 1) * interval)
local wait = math.max(at - now, 0)
if wait > patience then
    return -wait
end
local kept = math.ceil((wait + burst * interval) / 1000) + 1000
redis.call('SET', KEYS[1], string.format('%.0f', at + interval), 'PX', kept)
return wait
"""


class TokenBucket(Protocol):
    """Where tokens come from."""

    def acquire(self) -> None:
        """Return once a token is there. Raises `WarehouseUnavailable` when that would take longer than the patience."""
        ...


class ProcessTokenBucket:
    """The tokens of one process, for all its threads."""

    def __init__(self, rate: RateLimit, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._next_at = (
            int(clock() * MICROSECONDS_PER_SECOND) - rate.burst * rate.interval_microseconds
        )  # full, even if the clock has just begun
        self._lock = threading.Lock()

    def acquire(self) -> None:
        with self._lock:
            taken = reserve_token(self._next_at, int(self._clock() * MICROSECONDS_PER_SECOND), self._rate)
            if taken.next_at is None:
                raise _too_many(self._rate, taken.wait_microseconds)
            self._next_at = taken.next_at
        _sleep(taken.wait_microseconds)


class BrokerTokenBucket:
    """The tokens of everybody who uses a broker, counted there by its own clock.

    While the broker does not answer, a process goes on at the same rate by itself: no date fails because of it, and no
    new ones come from a broker that is away.
    """

    def __init__(self, url: str, rate: RateLimit) -> None:
        self._rate = rate
        self._client = parse_broker_url(url).client(timeout_seconds=ANSWER_SECONDS)
        self._take: Any = self._client.register_script(TAKE)
        self._own = ProcessTokenBucket(rate)
        self._away_until = 0.0

    def acquire(self) -> None:
        wait = self._asked()
        if wait is None:
            self._own.acquire()
        elif wait < 0:
            raise _too_many(self._rate, -wait)
        else:
            _sleep(wait)

    def _asked(self) -> int | None:
        """Microseconds to wait, negative when that is too long; None when the broker can't be asked."""
        if time.monotonic() < self._away_until:
            return None
        try:
            return int(
                self._take(
                    keys=[BUCKET_KEY],
                    args=[self._rate.interval_microseconds, self._rate.burst, self._rate.max_wait_microseconds],
                )
            )
        except (RedisError, OSError) as exc:
            self._away_until = time.monotonic() + AWAY_SECONDS
            log.warning("query_rate_limit_not_shared", seconds=AWAY_SECONDS, error=type(exc).__name__)
            return None


def _too_many(rate: RateLimit, wait: int) -> WarehouseUnavailable:
    return WarehouseUnavailable(
        f"too many queries wait for their turn: {wait / MICROSECONDS_PER_SECOND:.0f} s at {rate.per_second:g} a second "
        f"(BACKFILL_QUERIES_PER_SECOND)"
    )


def _sleep(microseconds: int) -> None:
    if microseconds > 0:
        time.sleep(microseconds / MICROSECONDS_PER_SECOND)
