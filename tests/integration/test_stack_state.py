"""The state file of a stack: who may use, stop or forget the stack that it tells of."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.process import identity
from gated_backfill.common.process.identity import process_identity
from gated_backfill.producer.runs import launch
from gated_backfill.producer.stack import state_file
from gated_backfill.producer.stack.shutdown import shut_down_stack
from tests.builders import FEB_23
from tests.kept_up import stack_state
from tests.lab import Lab, players, until

PASSWORD = "hunter2"
BROKER_URL = f"redis://:{PASSWORD}@127.0.0.1:1/0"


def write(home: Settings, owner: str) -> None:
    home.home.mkdir(parents=True, exist_ok=True)
    state = stack_state(home, owner=owner, broker_url=BROKER_URL, flower_password=PASSWORD)
    state_file.write_stack_state(home.home, state)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stays."""
    started = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    yield started
    started.kill()
    started.wait()


def test_a_stack_of_another_host_is_neither_used_nor_forgotten_nor_stopped(home: Settings) -> None:
    write(home, "elsewhere.4026531836:1:1")

    assert state_file.running_stack_broker(home) is None
    for act in (lambda: state_file.find_running_stack(home.home), lambda: shut_down_stack(home)):
        with pytest.raises(UserError, match="the stack runs on elsewhere"):
            act()
    assert state_file.read_stack_state(home.home) is not None


def test_the_stack_of_this_machine_is_dead_after_a_reboot(
    home: Settings, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, pid, started = process_identity(process.pid).rsplit(":", 2)
    name, _, boot = host.split("/")
    monkeypatch.setattr(identity, "_host", lambda: f"{name}/feedbeef/{boot}")
    write(home, f"{name}/feedbeef/0badcafe:{pid}:{started}")

    assert state_file.find_running_stack(home.home) is None

    assert state_file.read_stack_state(home.home) is None
    assert process.poll() is None


def test_the_stack_of_another_machine_with_the_same_name_is_left_alone(home: Settings) -> None:
    name = process_identity().partition("/")[0]
    write(home, f"{name}/feedbeef/0badcafe:4000000:1")

    with pytest.raises(UserError, match=f"the stack runs on {socket.gethostname()}, another host or container"):
        state_file.find_running_stack(home.home)

    assert state_file.read_stack_state(home.home) is not None


def test_the_run_of_a_machine_with_the_same_name_goes_on(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    name, _, place = process_identity().rsplit(":", 2)[0].partition("/")
    machine, _, _ = place.partition("/")
    days = (FEB_23,)
    lab.probe_all(days, players(3))
    for of_machine, released in (("feedbeef", 0), (machine, 1)):
        monkeypatch.setattr(launch, "process_identity", lambda at=of_machine: f"{name}/{at}/0badcafe:4000000:1")
        run, _, _ = lab.opened(days, "probe")

        assert len(launch.release_dead_runs(find_job("probe"), days, lab.context)) == released

        assert lab.ledger.runs.get_run(run.id).has_ended == bool(released)
        lab.ledger.orders.abandon_run(run.id, by="a test", reason="the next one needs the date")


def test_a_stack_of_this_host_is_used_until_its_process_ends(home: Settings, process: subprocess.Popen[bytes]) -> None:
    write(home, process_identity(process.pid))
    assert state_file.running_stack_broker(home) == BROKER_URL

    process.kill()
    process.wait()

    assert state_file.running_stack_broker(home) is None
    assert state_file.read_stack_state(home.home) is None


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
    assert state_file.read_stack_state(home.home) is None


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
    command = [sys.executable, "-c", KEEPS, str(home.home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"up\n"
        (child,) = psutil.Process(keeper.pid).children()
        write(home, process_identity(keeper.pid))
        keeper.kill()

    stopped = shut_down_stack(home)

    assert (stopped.was_up, stopped.was_dead) == (False, True)
    until(lambda: not child.is_running(), "the end of what it kept")
    assert list((home.home / "stacks").iterdir()) == []
    assert state_file.read_stack_state(home.home) is None
