"""How a window reaches the broker."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

import pytest
import redis

from common.job import find_job
from common.lanes import DATES_QUEUE
from common.queue import PROCESS_DATE, CeleryDispatcher, make_app
from common.settings import Settings
from tests.brokers import broker as broker
from tests.lab import Lab

DAYS = [date(2023, 2, 1) + timedelta(days=n) for n in range(20)]


@pytest.fixture
def sender(lab: Lab, broker: str) -> CeleryDispatcher:
    return CeleryDispatcher(make_app(Settings(home=lab.home), broker))  # pyright: ignore[reportCallIssue]


def waiting(broker: str) -> list[dict[str, Any]]:
    """The messages for dates, in the order in which a worker gets them."""
    return [json.loads(one) for one in reversed(redis.Redis.from_url(broker).lrange(DATES_QUEUE, 0, -1))]


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
