"""Token buckets: one for this process, and one at the broker that all processes share.

Both apply `reserve_token`. They differ in the place of the bucket's state and in the clock they use.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import structlog
from redis.exceptions import RedisError

from gated_backfill.common.config.broker_url import parse_broker_url
from gated_backfill.common.errors import WarehouseUnavailable
from gated_backfill.common.model.scheduling.limits import (
    MICROSECONDS_PER_SECOND,
    RateLimit,
    TokenReservation,
    reserve_token,
)

log = structlog.get_logger()

BUCKET_KEY = "gated-backfill:warehouse-queries"
BROKER_TIMEOUT_SECONDS = 3.0  #: for each answer of the broker
BROKER_PAUSE_SECONDS = 10.0  #: after a failed request, before the broker is asked again
KEY_MARGIN_MILLISECONDS = 1000  #: by which the key outlives the moment when the bucket is full again


class ProcessTokenBucket:
    """The tokens of one process, for all its threads."""

    def __init__(self, rate: RateLimit, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        now = int(clock() * MICROSECONDS_PER_SECOND)
        self._next_at = now - rate.burst * rate.interval_microseconds  # full, even if the clock starts at zero
        self._lock = threading.Lock()

    def acquire(self) -> None:
        """Wait for a token. Raises `WarehouseUnavailable` if that would take longer than the rate's longest wait."""
        with self._lock:
            reservation = reserve_token(self._next_at, int(self._clock() * MICROSECONDS_PER_SECOND), self._rate)
            if reservation.next_at is not None:
                self._next_at = reservation.next_at
        _wait_for(reservation, self._rate)


class BrokerTokenBucket:
    """The tokens of all processes that use a broker, counted by the broker's clock.

    While the broker does not answer, each process applies the rate on its own, so that no date fails.
    """

    def __init__(self, url: str, rate: RateLimit) -> None:
        self._rate = rate
        self._client = parse_broker_url(url).client(timeout_seconds=BROKER_TIMEOUT_SECONDS)
        self._fallback = ProcessTokenBucket(rate)
        self._paused_until = 0.0

    def acquire(self) -> None:
        """Wait for a token. Raises `WarehouseUnavailable` if that would take longer than the rate's longest wait."""
        reservation = self._reserve()
        if reservation is None:
            self._fallback.acquire()
        else:
            _wait_for(reservation, self._rate)

    def _reserve(self) -> TokenReservation | None:
        """Reserve a token at the broker; None when the broker does not answer."""
        if time.monotonic() < self._paused_until:
            return None
        try:
            # An optimistic transaction: redis-py runs it again when another process changed the key meanwhile.
            transaction: Any = self._client.transaction  # its type stubs declare no return value
            return transaction(self._update, BUCKET_KEY, value_from_callable=True)
        except (RedisError, OSError) as exc:
            self._paused_until = time.monotonic() + BROKER_PAUSE_SECONDS
            log.warning("query_rate_limit_not_shared", seconds=BROKER_PAUSE_SECONDS, error=type(exc).__name__)
            return None

    def _update(self, pipe: Any) -> TokenReservation:
        # A pipeline that watches a key answers each command at once, until `multi`.
        seconds, microseconds = pipe.time()
        now = seconds * MICROSECONDS_PER_SECOND + microseconds
        reservation = reserve_token(int(pipe.get(BUCKET_KEY) or 0), now, self._rate)
        pipe.multi()
        if reservation.next_at is not None:
            full_in = reservation.wait_microseconds + self._rate.burst * self._rate.interval_microseconds
            pipe.set(BUCKET_KEY, reservation.next_at, px=math.ceil(full_in / 1000) + KEY_MARGIN_MILLISECONDS)
        return reservation


def _wait_for(reservation: TokenReservation, rate: RateLimit) -> None:
    seconds = reservation.wait_microseconds / MICROSECONDS_PER_SECOND
    if reservation.next_at is None:
        raise WarehouseUnavailable(
            f"too many queries wait for their turn: {seconds:.0f} s at {rate.per_second:g} a second "
            "(BACKFILL_QUERIES_PER_SECOND)"
        )
    if seconds > 0:
        time.sleep(seconds)
