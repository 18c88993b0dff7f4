"""What a worker does with messages that somebody else has put on its queues: a line in its log, and nothing else."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
import redis

from gated_backfill.common.broker.celery_app import CLOSE_WINDOW, MAINTAIN, PROCESS_DATE, RECONCILE, make_app
from gated_backfill.common.broker.queue_depth import queue_depths
from gated_backfill.common.model.scheduling.queues import DATES_QUEUE, GATE_QUEUE
from tests.builders import FEB_23
from tests.lab import Lab, players, until
from tests.workers import worker


class Bomb:
    """Pickled, it makes a file where it is unpickled."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (self.file, "w")


def envelope(body: bytes, content_type: str = "application/json", **headers: Any) -> bytes:
    """A message as kombu puts it on a queue."""
    whole = {"task": PROCESS_DATE, "id": str(uuid4()), "lang": "py", "argsrepr": "", "kwargsrepr": "", **headers}
    properties = {
        "correlation_id": whole["id"],
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": DATES_QUEUE},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": str(uuid4()),
    }
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "utf-8",
            "content-type": content_type,
            "headers": whole,
            "properties": properties,
        }
    ).encode()


def told(*args: Any, **headers: Any) -> bytes:
    return envelope(json.dumps([args, {}, {"callbacks": None}]).encode(), **headers)


NONSENSE = {
    "garbage-bytes": b"\xff\xfe\x00 this is no message",
    "empty": b"",
    "json-but-no-message": b"[1, 2, 3]",
    "a-number": b"17",
    "null": b"null",
    "an-empty-object": b"{}",
    "deeply-nested": b"[" * 100_000 + b"]" * 100_000,
    "cut": told("r", "2023-02-23")[:200],
    "no-properties": json.dumps({"body": "", "headers": {}}).encode(),
    "headers-of-a-wrong-kind": json.dumps({"body": "", "headers": 5, "properties": {"delivery_tag": "1"}}).encode(),
    "body-that-is-no-base64": told("r", "2023-02-23").replace(b'"body": "', b'"body": "!'),
    "body-that-is-no-json": envelope(b"\xff no json"),
    "yaml": envelope(b"- [r, 2023-02-23]\n- {}\n- {}", "application/x-yaml"),
    "unknown-content-type": envelope(b"[[], {}, {}]", "application/x-surprise"),
    "unknown-task": told("r", task="os.system"),
    "task-of-a-wrong-kind": told("r", task=["x"]),
    "expires-nonsense": told("r", "2023-02-23", expires="never"),
    "eta-nonsense": told("r", "2023-02-23", eta="whenever"),
    "eta-of-a-wrong-kind": told("r", "2023-02-23", eta={"a": 1}),
    "timelimit-nonsense": told("r", "2023-02-23", timelimit="soon"),
    "retries-nonsense": told("r", "2023-02-23", retries="many"),
    "no-arguments": told(),
    "too-many-arguments": told(*range(1000)),
    "day-of-a-wrong-kind": told("r", 5),
    "run-of-a-wrong-kind": told({"a": []}, "2023-02-23"),
    "a-run-that-is-not-there": told("20260101-000000-abcdef", "2023-02-23"),
    "a-huge-argument": told("r" * 5_000_000, "2023-02-23"),
    "window-too-large": told("r", 10**40, task=CLOSE_WINDOW),
    "reconcile-of-nothing": told(None, task=RECONCILE),
    "maintain-nothing": told(None, task=MAINTAIN),
    "maintain-something-else": told("rm -rf", task=MAINTAIN),
    "body-without-embed": envelope(b"[]"),
    "body-of-a-wrong-kind": envelope(b'"args"'),
    "embed-of-a-wrong-kind": envelope(b'[["r", "2023-02-23"], {}, 5]'),
}


def test_whatever_is_put_on_a_queue_is_refused_in_a_line_and_the_worker_goes_on(lab: Lab, broker: str) -> None:
    lab.probe_all([FEB_23], players(10))
    bomb = lab.home.parent / "exploded"
    messages = [*NONSENSE.values(), envelope(pickle.dumps(Bomb(str(bomb))), "application/x-python-serialize")]
    run, deps, _ = lab.opened([FEB_23], "probe")
    (before,) = deps.ledger.dates.list_dates(run.id)
    messages += [told(run.id, 20230223), told(run.id, "20230223"), told(run.id, "2023-02-23T00:00"), told(run.id, None)]
    with redis.Redis.from_url(broker) as client, worker(lab, BACKFILL_BROKER=broker) as log_file:
        for number, message in enumerate(messages):
            client.lpush((DATES_QUEUE, GATE_QUEUE, "maintenance")[number % 3], message)
        for broadcast in (b"\xff garbage", b"[]", b"5", b"{}", envelope(pickle.dumps(Bomb(str(bomb))))):
            client.publish("/0.celery.pidbox", broadcast)
        until(lambda: set(queue_depths(broker, timeout_seconds=5)[0].values()) == {0}, "the queues to be empty")
        until(lambda: queue_depths(broker, timeout_seconds=5)[1] == 0, "no message to be held, to come again")
        (after,) = deps.ledger.dates.list_dates(run.id)
        app = make_app(lab.settings, broker)
        app.send_task(PROCESS_DATE, args=(run.id, FEB_23.isoformat()), queue=DATES_QUEUE)
        until(lambda: deps.ledger.dates.list_dates(run.id)[0].state.value == "staged", "the worker to go on")
        assert app.control.ping(timeout=5)
    written = log_file.read_text()
    assert after == before
    assert not bomb.exists()
    assert "Traceback" not in written
    assert len(written) < 60_000
    refused = [line for line in written.splitlines() if "refused" in line]
    assert len(refused) >= len(messages)
    assert written.count("worker: Warm shutdown") == 0


@pytest.mark.parametrize("setting", ["accept_content", "result_accept_content"])
def test_nothing_but_json_is_taken(lab: Lab, setting: str) -> None:
    app = make_app(lab.settings, "redis://127.0.0.1:1/0")
    assert app.conf[setting] == ["json"]
    assert app.control.mailbox.accept == ["json"]
    assert app.conf.task_serializer == app.conf.result_serializer == "json"
