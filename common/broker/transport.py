"""kombu's Redis transport with four changes, tried with kombu 5.7.

- A malformed message is dropped with a log event (`_brpop_read`, `_receive_one`). kombu lets the error end the worker,
  so one stray push to a queue would stop it. A message that was read has left its queue and can't come back.
- A lost connection raises redis' `ConnectionError` (`_connparams`). kombu closes the connection twice, and the second
  time fails on a missing attribute, which ends a worker that is running a task.
- One client is kept per channel (`_create_client`). kombu creates a client for each message sent, read or acknowledged.
- Acknowledgements are pipelined without a transaction (`PipedQoS`). Their commands are ordered so that a broker that
  dies between two of them loses no message.
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

MALFORMED_MESSAGE_ERRORS = (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError)
MAX_ERROR_LENGTH = 200  #: characters of an error in a log event


class PipedQoS(QoS):
    """Records unacknowledged messages by pipelined commands instead of a transaction."""

    @contextmanager
    def pipe_or_acquire(self, pipe: Any = None, client: Any = None) -> Generator[Any]:
        if pipe is not None:  # the caller's transaction
            yield pipe
            return
        channel: Any = self.channel
        with channel.conn_or_acquire(client) as connected:
            yield connected.pipeline(transaction=False)


class TolerantChannel(Channel):
    """Drops malformed messages, keeps one client, and can send many messages in one command."""

    QoS = PipedQoS
    _cached_client: Any = None  #: the client of this channel's pool
    _batched: dict[str, list[str]] | None = None  #: messages to send in one command, by their queue's key

    def _brpop_read(self, **options: Any) -> bool:
        try:
            parent: Any = super()
            return parent._brpop_read(**options)
        except MALFORMED_MESSAGE_ERRORS as exc:
            _log_dropped("queue", exc)
            return True

    def _receive_one(self, c: Any) -> Any:
        try:
            parent: Any = super()
            return parent._receive_one(c)
        except MALFORMED_MESSAGE_ERRORS as exc:
            _log_dropped("broadcast", exc)
            return True

    def _create_client(self, asynchronous: bool = False) -> Any:
        parent: Any = super()
        if asynchronous:  # it keeps its connection, so it can't be shared
            return parent._create_client(asynchronous=True)
        if self._cached_client is None or self._cached_client.connection_pool is not self.pool:
            self._cached_client = parent._create_client()
        return self._cached_client

    def _put(self, queue: str, message: Any, **options: Any) -> None:
        parent: Any = super()
        if self._batched is None:
            parent._put(queue, message, **options)
            return
        key = parent._q_for_pri(queue, parent._get_message_priority(message, reverse=False))
        self._batched.setdefault(key, []).append(dumps(message))

    @contextmanager
    def send_in_one_command(self) -> Generator[None]:
        """Send the messages that are put inside this context at its end, with one command per queue."""
        self._batched = {}
        try:
            yield
            for key, messages in self._batched.items():
                self.client.lpush(key, *messages)
        finally:
            self._batched = None

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        transport: Any = self.connection
        if transport is not None and transport.client is None:  # the connection is already closed
            raise LostConnection("the connection to the broker is closed")
        parent: Any = super()
        return parent._connparams(asynchronous=asynchronous)


class TolerantTransport(Transport):
    """The Redis transport with tolerant channels."""

    Channel = TolerantChannel


def send_in_one_command(producer: Any) -> AbstractContextManager[None]:
    """Return a context at whose end the producer's messages are sent, with one command per queue."""
    return producer.channel.send_in_one_command()


@contextmanager
def translate_broker_errors() -> Generator[None]:
    """Raise `BrokerUnavailable` for every error of the broker inside this context."""
    try:
        yield
    except (KombuError, RedisError, OSError) as exc:
        raise BrokerUnavailable(f"the broker does not take tasks: {exc}") from exc
    except AttributeError as exc:
        if not _raised_in_kombu(exc):
            raise
        raise BrokerUnavailable("the broker does not take tasks: its connection was lost meanwhile") from exc


def _raised_in_kombu(exc: BaseException) -> bool:
    """Return whether kombu raised the error: a channel of a closed connection has lost its attributes."""
    *_, (frame, _) = traceback.walk_tb(exc.__traceback__)
    return frame.f_globals["__name__"].partition(".")[0] == "kombu"


def use_tolerant_transport() -> None:
    """Use this transport for every redis:// and rediss:// connection of the process."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:{TolerantTransport.__name__}"


def _log_dropped(where: str, exc: Exception) -> None:
    log.error("message_refused", where=where, error=f"{type(exc).__name__}: {exc}"[:MAX_ERROR_LENGTH])
