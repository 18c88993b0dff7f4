"""The broker's transport, which a message that is no message can't stop.

The stock one lets what it can't read rise through the worker's loop, which then ends: one stray push to a queue by
somebody else would take a worker along. What is read here has left its queue already, so it can't come back.

It also ends a worker that loses its broker with a task in hand: the connection is closed twice, and the second time it
looks for the broker's address at a connection that has forgotten it. And it makes a client for each message that it
sends, takes or acknowledges, which takes longer than some of them, and a transaction to take one and to acknowledge it.
What that consists of is in such an order that a broker that dies in between has nothing that harms.
"""

from __future__ import annotations

import traceback
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import structlog
from kombu.exceptions import OperationalError as KombuError
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport.redis import Channel, QoS, Transport
from kombu.utils.json import dumps
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import RedisError

from gated_backfill.common.errors import BrokerUnavailable

log = structlog.get_logger()

NO_MESSAGE = (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError)
SHOWN = 200  #: characters of what was wrong with it


class PipedQoS(QoS):
    """Notes what is in a worker's hands by commands that are sent together, and are no transaction."""

    @contextmanager
    def pipe_or_acquire(self, pipe: Any = None, client: Any = None) -> Generator[Any]:
        if pipe is not None:  # which is somebody else's transaction
            yield pipe
            return
        channel: Any = self.channel
        with channel.conn_or_acquire(client) as connected:
            yield connected.pipeline(transaction=False)


class TolerantChannel(Channel):
    """Drops what is not in the form of a message, in one line of the log."""

    QoS = PipedQoS
    _kept: Any = None  #: the client of this channel's pool
    _gathered: dict[str, list[str]] | None = None  #: messages that are to be sent together, by their queue's key

    def _brpop_read(self, **options: Any) -> bool:
        try:
            stock: Any = super()
            return stock._brpop_read(**options)
        except NO_MESSAGE as exc:
            _refused("queue", exc)
            return True

    def _receive_one(self, c: Any) -> Any:
        try:
            stock: Any = super()
            return stock._receive_one(c)
        except NO_MESSAGE as exc:
            _refused("broadcast", exc)
            return True

    def _create_client(self, asynchronous: bool = False) -> Any:
        stock: Any = super()
        if asynchronous:  # it keeps its connection, so it is to be one's own
            return stock._create_client(asynchronous=True)
        if self._kept is None or self._kept.connection_pool is not self.pool:
            self._kept = stock._create_client()
        return self._kept

    def _put(self, queue: str, message: Any, **options: Any) -> None:
        stock: Any = super()
        if self._gathered is None:
            stock._put(queue, message, **options)
            return
        key = stock._q_for_pri(queue, stock._get_message_priority(message, reverse=False))
        self._gathered.setdefault(key, []).append(dumps(message))

    @contextmanager
    def send_in_one_command(self) -> Generator[None]:
        """Send what is put meanwhile at the end: all to a queue by one command, or none of it."""
        self._gathered = {}
        try:
            yield
            for key, messages in self._gathered.items():
                self.client.lpush(key, *messages)
        finally:
            self._gathered = None

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        transport: Any = self.connection
        if transport is not None and transport.client is None:  # what is in hand is lost to the broker already
            raise LostConnection("the connection to the broker is closed")
        stock: Any = super()
        return stock._connparams(asynchronous=asynchronous)


class TolerantTransport(Transport):
    """Redis, with such channels."""

    Channel = TolerantChannel


def send_in_one_command(producer: Any) -> AbstractContextManager[None]:
    """A context at whose end all that the producer sends in it reaches the broker, by one command a queue."""
    return producer.channel.send_in_one_command()


@contextmanager
def translate_broker_errors() -> Generator[None]:
    """Raises `BrokerUnavailable` for whatever keeps the broker from taking what is sent inside it."""
    try:
        yield
    except (KombuError, RedisError, OSError) as exc:
        raise BrokerUnavailable(f"the broker does not take tasks: {exc}") from exc
    except AttributeError as exc:
        if not _raised_in_kombu(exc):
            raise
        raise BrokerUnavailable("the broker does not take tasks: its connection was lost meanwhile") from exc


def _raised_in_kombu(exc: BaseException) -> bool:
    """Whether kombu raised it: a channel whose connection was just given up is one without attributes."""
    *_, (frame, _) = traceback.walk_tb(exc.__traceback__)
    return frame.f_globals["__name__"].partition(".")[0] == "kombu"


def use_tolerant_transport() -> None:
    """Have every connection of this process to redis:// and rediss:// made so."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:{TolerantTransport.__name__}"


def _refused(where: str, exc: Exception) -> None:
    log.error("message_refused", where=where, error=f"{type(exc).__name__}: {exc}"[:SHOWN])
