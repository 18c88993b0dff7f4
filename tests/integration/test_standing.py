"""The state file of a stack: who may use, stop or forget the stack that it tells of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.process.identity import process_identity
from gated_backfill.producer.stack.shutdown import shut_down_stack
from gated_backfill.producer.stack.state_file import (
    StackState,
    find_running_stack,
    places_digest,
    read_stack_state,
    running_stack_broker,
    write_stack_state,
)
from tests.lab import until

PASSWORD = "hunter2"


def write(home: Settings, owner: str) -> None:
    home.home.mkdir(parents=True, exist_ok=True)
    told = StackState(
        owner=owner,
        broker_url=f"redis://:{PASSWORD}@127.0.0.1:1/0",
        broker="redis://127.0.0.1:1/0",
        embedded=True,
        workers=1,
        flower_url="http://127.0.0.1:1",
        flower_user="backfill",
        flower_password=PASSWORD,
        metrics_url="http://127.0.0.1:1/metrics",
        log_file="nowhere",
        places=places_digest(home),
    )
    write_stack_state(home.home, told)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stays."""
    started = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    yield started
    started.kill()
    started.wait()


def test_a_stack_of_another_host_is_neither_used_nor_forgotten_nor_stopped(home: Settings) -> None:
    write(home, "elsewhere.4026531836:1:1")

    assert running_stack_broker(home) is None
    for act in (lambda: find_running_stack(home.home), lambda: shut_down_stack(home)):
        with pytest.raises(UserError, match="the stack runs on elsewhere"):
            act()
    assert read_stack_state(home.home) is not None


def test_a_stack_of_this_host_is_used_while_it_lives_and_forgotten_afterwards(
    home: Settings, process: subprocess.Popen[bytes]
) -> None:
    write(home, process_identity(process.pid))
    assert running_stack_broker(home) == f"redis://:{PASSWORD}@127.0.0.1:1/0"

    process.kill()
    process.wait()

    assert running_stack_broker(home) is None
    assert read_stack_state(home.home) is None


def test_a_stack_that_ends_while_it_is_looked_at_is_taken_down_all_the_same(
    home: Settings, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(home, process_identity(process.pid))
    real = os.kill

    def too_late(pid: int, sign: int) -> None:
        real(process.pid, signal.SIGKILL)
        process.wait()
        real(pid, sign)

    monkeypatch.setattr("os.kill", too_late)

    assert shut_down_stack(home).was_up
    assert read_stack_state(home.home) is None


KEEPS = """
import sys
from pathlib import Path
from gated_backfill.producer.stack.children import ChildProcesses
home = Path(sys.argv[1])
sleep = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
ChildProcesses(home / "stacks" / "up-1", home / "log").start("dates", sleep, {})
print("up", flush=True)
sys.stdin.read()
"""


def test_what_a_killed_keeper_left_is_removed_and_told(home: Settings) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KEEPS, str(home.home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"up\n"
        (child,) = psutil.Process(keeper.pid).children()
        write(home, process_identity(keeper.pid))
        keeper.kill()

    stopped = shut_down_stack(home)

    assert (stopped.was_up, stopped.was_dead) == (False, True)
    until(lambda: not child.is_running(), "the end of what it kept")
    assert list((home.home / "stacks").iterdir()) == []
    assert read_stack_state(home.home) is None
