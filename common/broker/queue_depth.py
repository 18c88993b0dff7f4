"""Count the tasks that wait at the broker."""

from __future__ import annotations

from redis.exceptions import RedisError

from gated_backfill.common.config.broker_url import parse_broker_url
from gated_backfill.common.errors import BrokerUnavailable, UserError
from gated_backfill.common.model.scheduling.queues import QUEUES

UNACKED_KEY = "unacked"  #: kombu's hash of delivered, unacknowledged messages


def queue_depths(url: str, *, timeout_seconds: float) -> tuple[dict[str, int], int]:
    """Return the number of waiting tasks by queue, and the number of delivered, unacknowledged tasks.

    Raises `BrokerUnavailable` when the broker does not answer within `timeout_seconds`, `UserError` for a
    URL that names no broker.
    """
    broker = parse_broker_url(url)
    try:
        with broker.client(timeout_seconds=timeout_seconds) as client, client.pipeline(transaction=False) as pipe:
            for queue in QUEUES:
                pipe.llen(queue)
            pipe.hlen(UNACKED_KEY)
            *waiting, unacknowledged = pipe.execute()
    except (RedisError, OSError) as exc:
        raise BrokerUnavailable(f"the broker at {broker.address} does not answer: {type(exc).__name__}") from exc
    except ValueError as exc:  # the error may quote the password
        raise UserError("BACKFILL_BROKER is no usable URL") from exc
    return dict(zip(QUEUES, map(int, waiting), strict=True)), int(unacknowledged)
