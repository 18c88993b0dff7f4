"""Ping a broker: check that it answers, and measure its round trip and its clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from kombu.exceptions import OperationalError as KombuError
from redis.exceptions import RedisError, ResponseError

from gated_backfill.common.broker.celery_app import make_app
from gated_backfill.common.config.broker_url import BROKER_URL_HINT, parse_broker_url
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import BrokerUnavailable, UserError
from gated_backfill.common.process.clock import ClockReading, read_clock

PING_TIMEOUT_SECONDS = 3


@dataclass(frozen=True, kw_only=True)
class BrokerPing:
    """A broker's answer to a ping."""

    address: str  #: without user and password
    round_trip_seconds: float
    clock: ClockReading | None  #: None: the broker's user may not ask for the time


def ping_broker(settings: Settings, url: str) -> BrokerPing:
    """Ping the broker over a connection such as workers have. Changes nothing.

    Raises `UserError` for a URL that names no broker, and `BrokerUnavailable` when it does not answer within
    `PING_TIMEOUT_SECONDS`.
    """
    address = parse_broker_url(url).address
    timeouts = {"socket_timeout": PING_TIMEOUT_SECONDS, "socket_connect_timeout": PING_TIMEOUT_SECONDS}
    app = make_app(settings, url)
    try:
        with app.connection_for_write(transport_options=timeouts) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=PING_TIMEOUT_SECONDS)
            channel: Any = connection.default_channel
            channel.client.ping()  # connects, so that only the second ping is timed
            started = time.monotonic()
            channel.client.ping()
            seconds = time.monotonic() - started
            return BrokerPing(address=address, round_trip_seconds=seconds, clock=_read_clock(channel.client))
    except (KombuError, RedisError, OSError) as exc:
        raise BrokerUnavailable(f"the broker at {address} does not answer: {exc}") from exc
    except (ValueError, TypeError, KeyError) as exc:  # kombu's errors for a wrong URL may quote its password
        raise UserError(f"BACKFILL_BROKER is no usable URL: {BROKER_URL_HINT}") from exc


def _read_clock(client: Any) -> ClockReading | None:
    def read_time() -> datetime:
        seconds, microseconds = client.time()
        return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=microseconds)

    try:
        return read_clock(read_time)
    except ResponseError:  # access control forbids TIME to this user
        return None
