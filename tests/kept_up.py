"""A stack that `backfill up` keeps up, as tests use it and look at it."""

from __future__ import annotations

import base64
import json
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import psutil
import pytest

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.process.identity import process_identity
from gated_backfill.producer.stack.embedded import free_port
from gated_backfill.producer.stack.state_file import StackState, places_digest
from tests.lab import Lab, players

DAYS = [date(2023, 2, 20) + timedelta(days=n) for n in range(3)]
RUN = ("run", "--job", "probe", "--start-date", str(DAYS[0]), "--end-date", str(DAYS[-1]))


def prepare(lab: Lab, trick: str | None = None) -> None:
    lab.probe_all(DAYS, players(10), trick=trick)


@pytest.fixture
def upped(lab: Lab) -> Iterator[Lab]:
    """A lab in which everything that `up` started is gone at the end, whatever became of the test."""
    yield lab
    lab.command("down", BACKFILL_STOP_SECONDS="0")


def stack_state(settings: Settings, **changed: Any) -> StackState:
    """The state file's contents for a stack of this process."""
    values: dict[str, Any] = dict.fromkeys(StackState.__dataclass_fields__, "")
    values |= {"owner": process_identity(), "embedded": True, "workers": 1, "places": places_digest(settings)}
    return StackState(**values | changed)


def state(lab: Lab) -> dict[str, Any]:
    return json.loads((lab.home / "up.json").read_text())


def up(lab: Lab, *more: str, **environment: str) -> str:
    """Bring it up, with Flower at a port that no other test uses; returns what was printed."""
    options = [option for option in ("--flower-port", "--metrics-port") if option not in more]
    ports = [word for option in options for word in (option, str(free_port()))]
    done = lab.script("up", *ports, *more, BACKFILL_WORKERS="1", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def family(lab: Lab) -> list[psutil.Process]:
    """The supervisor and all that descends from it."""
    supervisor = psutil.Process(int(state(lab)["owner"].split(":")[1]))
    return [supervisor, *supervisor.children(recursive=True)]


def nothing_is_left(lab: Lab, processes: list[psutil.Process], ports: list[int]) -> None:
    assert not [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    for port in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
    assert not (lab.home / "up.json").exists()
    assert list((lab.home / "stacks").iterdir()) == []


def port_of(url: str) -> int:
    return int(str(urllib.parse.urlsplit(url).port))


def ports_of(stack: dict[str, Any]) -> list[int]:
    """Those that are gone with the stack, whoever its broker is."""
    return [port_of(stack[which]) for which in ("flower_url", "metrics_url")]


def ask(stack: dict[str, Any], path: str, *, given: str | None = None, **query: str) -> Any:
    """What Flower answers: JSON, or the status of a refusal."""
    credentials = f"{stack['flower_user']}:{given or stack['flower_password']}"
    request = urllib.request.Request(f"{stack['flower_url']}{path}?{urllib.parse.urlencode(query)}")  # noqa: S310
    request.add_header("Authorization", f"Basic {base64.b64encode(credentials.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.load(answer)
    except urllib.error.HTTPError as exc:
        exc.close()
        return exc.code
    except (urllib.error.URLError, ConnectionError):
        return None


def found_by(stack: dict[str, Any], text: str) -> set[str]:
    """The tasks that the search of Flower's page finds, as the page reads: name, then arguments."""
    query = {"draw": "1", "start": "0", "length": "100", "search[value]": text}
    query |= {"order[0][column]": "0", "order[0][dir]": "asc", "columns[0][data]": "name"}
    answer = ask(stack, "/tasks/datatable", **query) or {"data": []}
    return {f"{task['name']} {task['args']}" for task in answer["data"] if task["state"] == "SUCCESS"}
