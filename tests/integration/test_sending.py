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
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.scheduling.queues import DATES_QUEUE, GATE_QUEUE
from gated_backfill.producer.stack.embedded import free_port
from tests.brokers import broker as broker
from tests.lab import Lab

Message = dict[str, Any]
DAYS = [date(2023, 2, 1) + timedelta(days=n) for n in range(20)]


@pytest.fixture
def app(lab: Lab, broker: str) -> Celery:
    return make_app(Settings(home=lab.home), broker)  # pyright: ignore[reportCallIssue]


@pytest.fixture
def sender(app: Celery) -> CeleryDispatcher:
    return CeleryDispatcher(app)


def waiting(broker: str, queue: str = DATES_QUEUE) -> list[Message]:
    """The messages for dates, in the order in which a worker gets them."""
    return [json.loads(message) for message in reversed(redis.Redis.from_url(broker).lrange(queue, 0, -1))]


def end(app: Celery, *messages: Message) -> None:
    """What a worker does once the tasks of messages have returned."""
    for message in messages:
        headers = message["headers"]
        _, _, embedded = json.loads(b64decode(message["body"]))
        request = Context(id=headers["id"], group=headers["group"], chord=embedded["chord"])
        app.backend.mark_as_done(headers["id"], {}, request=request)


@pytest.fixture
def sent(sender: CeleryDispatcher, broker: str) -> list[Message]:
    """The messages for three dates of a window."""
    sender.send_window("r", 7, find_job("probe"), [[day] for day in DAYS[:3]])
    return waiting(broker)


def test_the_gate_is_sent_with_the_last_of_its_dates(app: Celery, broker: str, sent: list[Message]) -> None:
    end(app, *sent[:-1])
    assert waiting(broker, GATE_QUEUE) == []
    end(app, sent[-1])
    (gate,) = waiting(broker, GATE_QUEUE)
    assert gate["headers"]["task"] == CLOSE_WINDOW
    assert json.loads(b64decode(gate["body"]))[0] == ["r", 7], "nothing of the results is handed over"


def test_a_date_that_is_done_twice_counts_once(app: Celery, broker: str, sent: list[Message]) -> None:
    end(app, *sent[:-1], *sent[:-1])
    assert waiting(broker, GATE_QUEUE) == []
    end(app, sent[-1], sent[-1], sent[0])
    assert len(waiting(broker, GATE_QUEUE)) == 1, "what comes after the gate was sent counts for nothing"


def test_an_unsent_gate_is_sent_with_a_later_copy(lab: Lab, app: Celery, broker: str, sent: list[Message]) -> None:
    end(app, *sent[:-1])
    counts_only = make_app(Settings(home=lab.home), broker)  # pyright: ignore[reportCallIssue]
    counts_only.conf.broker_url = f"redis://127.0.0.1:{free_port()}/0"
    end(counts_only, sent[-1])
    assert waiting(broker, GATE_QUEUE) == []
    end(app, sent[-1])
    assert len(waiting(broker, GATE_QUEUE)) == 1


def test_a_count_that_the_broker_lost_is_not_made_up(app: Celery, broker: str, sent: list[Message]) -> None:
    end(app, *sent[:-1])
    redis.Redis.from_url(broker).flushall()
    end(app, sent[-1])
    assert waiting(broker, GATE_QUEUE) == []


def test_dates_of_the_version_before_are_counted_as_by_it(app: Celery, broker: str, sent: list[Message]) -> None:
    for message in sent:
        arguments, named, embedded = json.loads(b64decode(message["body"]))
        del embedded["chord"]["chord_size"]
        message["body"] = b64encode(json.dumps([arguments, named, embedded]).encode())
    app.backend.set_chord_size(sent[0]["headers"]["group"], len(sent))
    end(app, *sent[:-1])
    assert waiting(broker, GATE_QUEUE) == []
    end(app, sent[-1])
    assert len(waiting(broker, GATE_QUEUE)) == 1


def test_a_count_does_not_stay_for_ever(app: Celery, broker: str, sent: list[Message]) -> None:
    client = redis.Redis.from_url(broker)
    before = set(client.keys())
    end(app, sent[0])
    (counted,) = set(client.keys()) - before
    assert 0 < client.ttl(counted) <= SEVEN_DAYS_SECONDS
    end(app, *sent[1:])
    assert not client.exists(counted), "nor once its gate was sent"


def test_a_window_is_sent_in_the_order_of_its_dates(sender: CeleryDispatcher, broker: str) -> None:
    sender.send_window("r", 1, find_job("probe"), [DAYS[n : n + 2] for n in range(0, 20, 2)])
    headers = [message["headers"] for message in waiting(broker)]
    assert [header["argsrepr"][:16] for header in headers] == [f"probe {day}" for day in DAYS[::2]]
    assert {header["task"] for header in headers} == {PROCESS_DATE}
    assert len(headers) == 10
    assert len({header["id"] for header in headers}) == 10
    assert len({header["group"] for header in headers}) == 1, "one gate counts them all"


def test_a_window_that_can_not_be_sent_whole_is_not_sent(sender: CeleryDispatcher, broker: str) -> None:
    no_dates: Sequence[Any] = [["2023-02-21"]]
    with pytest.raises(AttributeError):
        sender.send_window("r", 1, find_job("probe"), [*([day] for day in DAYS), *no_dates])
    assert waiting(broker) == []
    sender.send_window("r", 1, find_job("probe"), [[day] for day in DAYS])
    assert len(waiting(broker)) == len(DAYS)
