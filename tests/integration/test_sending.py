"""How a window reaches the broker, and how its gate is sent once its dates are counted."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

import pytest
import redis
from celery import Celery
from celery.app.task import Context

from gated_backfill.common.broker.celery_app import CLOSE_WINDOW, PROCESS_DATE, SEVEN_DAYS_SECONDS, make_app
from gated_backfill.common.broker.dispatcher import CeleryDispatcher
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.model.queues import DATES_QUEUE, GATE_QUEUE
from gated_backfill.common.model.registry import find_job
from gated_backfill.producer.stack.embedded import free_port
from tests.brokers import broker as broker
from tests.lab import Lab

DAYS = [date(2023, 2, 1) + timedelta(days=n) for n in range(20)]


@pytest.fixture
def app(lab: Lab, broker: str) -> Celery:
    return make_app(Settings(home=lab.home), broker)  # pyright: ignore[reportCallIssue]


@pytest.fixture
def sender(app: Celery) -> CeleryDispatcher:
    return CeleryDispatcher(app)


def waiting(broker: str, queue: str = DATES_QUEUE) -> list[dict[str, Any]]:
    """The messages for dates, in the order in which a worker gets them."""
    return [json.loads(one) for one in reversed(redis.Redis.from_url(broker).lrange(queue, 0, -1))]


def end(app: Celery, message: dict[str, Any]) -> None:
    """What a worker does once the task of a message has returned."""
    headers = message["headers"]
    _, _, embedded = json.loads(b64decode(message["body"]))
    request = Context(id=headers["id"], group=headers["group"], chord=embedded["chord"])
    app.backend.mark_as_done(headers["id"], {}, request=request)


@pytest.fixture
def sent(sender: CeleryDispatcher, broker: str) -> list[dict[str, Any]]:
    """The messages for three dates of a window."""
    sender.send_window("r", 7, find_job("probe"), [[day] for day in DAYS[:3]])
    return waiting(broker)


def test_the_gate_is_sent_with_the_last_of_its_dates(app: Celery, broker: str, sent: list[dict[str, Any]]) -> None:
    for message in sent[:-1]:
        end(app, message)
    assert waiting(broker, GATE_QUEUE) == []
    end(app, sent[-1])
    (gate,) = waiting(broker, GATE_QUEUE)
    assert gate["headers"]["task"] == CLOSE_WINDOW
    assert json.loads(b64decode(gate["body"]))[0] == ["r", 7], "nothing of the results is handed over"


def test_a_date_that_is_done_twice_counts_once(app: Celery, broker: str, sent: list[dict[str, Any]]) -> None:
    for message in [*sent[:-1], *sent[:-1]]:
        end(app, message)
    assert waiting(broker, GATE_QUEUE) == []
    end(app, sent[-1])
    end(app, sent[-1])
    end(app, sent[0])
    assert len(waiting(broker, GATE_QUEUE)) == 1, "what comes after the gate was sent counts for nothing"


def test_a_gate_that_can_not_be_sent_is_sent_with_a_later_copy(
    lab: Lab, app: Celery, broker: str, sent: list[dict[str, Any]]
) -> None:
    for message in sent[:-1]:
        end(app, message)
    counts_only = make_app(Settings(home=lab.home), broker)  # pyright: ignore[reportCallIssue]
    counts_only.conf.broker_url = f"redis://127.0.0.1:{free_port()}/0"
    end(counts_only, sent[-1])
    assert waiting(broker, GATE_QUEUE) == []
    end(app, sent[-1])
    assert len(waiting(broker, GATE_QUEUE)) == 1


def test_a_count_that_the_broker_lost_is_not_made_up(app: Celery, broker: str, sent: list[dict[str, Any]]) -> None:
    for message in sent[:-1]:
        end(app, message)
    redis.Redis.from_url(broker).flushall()
    end(app, sent[-1])
    assert waiting(broker, GATE_QUEUE) == []


def test_dates_that_the_version_before_sent_are_counted_as_it_counted_them(
    app: Celery, broker: str, sent: list[dict[str, Any]]
) -> None:
    for message in sent:
        arguments, named, embedded = json.loads(b64decode(message["body"]))
        del embedded["chord"]["chord_size"]
        message["body"] = b64encode(json.dumps([arguments, named, embedded]).encode())
    app.backend.set_chord_size(sent[0]["headers"]["group"], len(sent))
    for message in sent[:-1]:
        end(app, message)
    assert waiting(broker, GATE_QUEUE) == []
    end(app, sent[-1])
    assert len(waiting(broker, GATE_QUEUE)) == 1


def test_a_count_does_not_stay_for_ever(app: Celery, broker: str, sent: list[dict[str, Any]]) -> None:
    client = redis.Redis.from_url(broker)
    before = set(client.keys())
    end(app, sent[0])
    (counted,) = set(client.keys()) - before
    assert 0 < client.ttl(counted) <= SEVEN_DAYS_SECONDS
    for message in sent[1:]:
        end(app, message)
    assert not client.exists(counted), "nor once its gate was sent"


def test_a_window_is_sent_in_the_order_of_its_dates(sender: CeleryDispatcher, broker: str) -> None:
    sender.send_window("r", 1, find_job("probe"), [DAYS[n : n + 2] for n in range(0, 20, 2)])
    told = [one["headers"] for one in waiting(broker)]
    assert [one["argsrepr"][:16] for one in told] == [f"probe {day}" for day in DAYS[::2]]
    assert {one["task"] for one in told} == {PROCESS_DATE}
    assert len(told) == 10
    assert len({one["id"] for one in told}) == 10
    assert len({one["group"] for one in told}) == 1, "one gate counts them all"


def test_a_window_that_can_not_be_sent_whole_is_not_sent(sender: CeleryDispatcher, broker: str) -> None:
    no_dates: Sequence[Any] = [["2023-02-21"]]
    with pytest.raises(AttributeError):
        sender.send_window("r", 1, find_job("probe"), [*([day] for day in DAYS), *no_dates])
    assert waiting(broker) == []
    sender.send_window("r", 1, find_job("probe"), [[day] for day in DAYS])
    assert len(waiting(broker)) == len(DAYS)
