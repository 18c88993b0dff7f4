"""`backfill up`, runs on it, its Flower over HTTP, and `backfill down`, after which nothing is left."""

from __future__ import annotations

import json
import signal
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import redis

from gated_backfill.common.ledger import RunState
from gated_backfill.common.process.identity import process_identity
from gated_backfill.producer.context import open_context
from tests.brokers import PASSWORD
from tests.builders import dead_process
from tests.kept_up import (
    DAYS,
    RUN,
    ask,
    family,
    found_by,
    free_port,
    nothing_is_left,
    port_of,
    ports_of,
    prepare,
    state,
    up,
)
from tests.kept_up import upped as upped
from tests.lab import Lab, until


def named(processes: list[psutil.Process], *words: str) -> psutil.Process:
    (found,) = [one for one in processes if set(words) <= set(one.cmdline()) and one.ppid() == processes[0].pid]
    return found


def test_a_stack_is_brought_up_used_watched_in_flower_and_taken_down_and_the_next_one_goes_on(
    upped: Lab, broker: str
) -> None:
    lab = upped
    prepare(lab)
    told = up(lab, BACKFILL_BROKER=broker, BACKFILL_STOP_SECONDS="0")
    stack, processes = state(lab), family(lab)
    command_lines = " ".join(" ".join(one.cmdline()) for one in processes)

    # what it says, and who else may know
    for what in (
        stack["flower_url"],
        stack["flower_user"],
        stack["flower_password"],
        stack["metrics_url"],
        stack["log_file"],
        "down",
    ):
        assert what in told
    assert stack["flower_password"] not in command_lines
    assert stack["broker_url"] == broker
    assert PASSWORD not in command_lines + told + Path(stack["log_file"]).read_text()
    assert stack["flower_password"] not in Path(stack["log_file"]).read_text()
    assert stat.S_IMODE((lab.home / "up.json").stat().st_mode) == 0o600
    again = lab.command("up")
    assert (again.returncode, "the stack is already running\n" in again.stdout) == (0, True)
    assert stack["flower_password"] in again.stdout

    # a run uses it
    ran = lab.command(*RUN, "--workers", "7")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "on the running stack (`backfill up`): the run continues when this command ends" in ran.stdout
    assert "--workers has no effect" in ran.stdout
    (run,) = lab.ledger.runs.list_latest_runs()
    assert run.owner is None
    assert [path.name for path in (lab.home / "stacks").iterdir()] == [Path(processes[1].cwd()).name]

    # its workers step back for others
    ours = psutil.Process().nice()
    assert {one.nice() for one in processes if "gated_backfill.worker" in one.cmdline()} == {ours + 10}
    assert named(processes, "flower").nice() == ours

    # Flower
    assert ask(stack, "/tasks", given="wrong") == 401
    assert ask(stack, "/api/tasks", given="wrong") == 401
    online = until(lambda: len(workers := ask(stack, "/api/workers", status="1") or {}) == 5 and workers, "the workers")
    assert {name.split("@")[0]: alive for name, alive in online.items()} == {
        "dates": True,
        "express": True,
        "gate": True,
        "maintenance": True,
        "housekeeping": True,
    }
    tasks = {f"process_date probe {day} run={run.id}" for day in DAYS} | {f"close_window probe window 1 run={run.id}"}
    until(lambda: tasks <= found_by(stack, run.id), "the run's tasks by its id")
    assert all(run.id in line for line in found_by(stack, run.id))
    assert found_by(stack, f"process_date {DAYS[1]}") == {f"process_date probe {DAYS[1]} run={run.id}"}

    # Flower again, after its end
    flower = named(processes, "flower")
    flower.terminate()
    flower.wait(30)
    until(lambda: tasks <= found_by(stack, run.id), "the run's tasks in the Flower that was started again")

    # a run that is under way when it is taken down
    prepare(lab, trick="wait")
    assert lab.command(*RUN, "--detach", "--reprocess", "all").returncode == 0
    (run, _) = lab.ledger.runs.list_latest_runs()
    until(lambda: list(lab.marks.glob("waiting-*")), "a date in the middle of its processing")
    down = lab.command("down")
    assert (down.returncode, down.stdout.splitlines()[0]) == (0, "stopped")
    assert f"run {run.id} of probe is unfinished: it continues after `backfill up`" in down.stdout
    nothing_is_left(lab, processes, ports_of(stack))
    assert "nothing to stop: the stack is not running" in lab.inside("down").stdout
    with redis.Redis.from_url(broker) as client:
        assert client.ping()

    # it goes on with the next stack, though that has a broker of its own, until a service manager stops it
    (lab.marks / "released").touch()
    ports = [port for which in ("--flower-port", "--metrics-port") for port in (which, str(free_port()))]
    command = lab.start("up", "--foreground", *ports, BACKFILL_WORKERS="1")
    until(lambda: (lab.home / "up.json").exists() or command.poll() is not None, "the stack")
    stack, processes = state(lab), family(lab)
    assert stack["broker_url"] not in " ".join(" ".join(one.cmdline()) for one in processes)
    until(lambda: lab.ledger.runs.get_run(run.id).state is RunState.SUCCEEDED, "the end of the run")
    assert len(lab.table_bytes("probe.probe")) == len(DAYS)

    command.send_signal(signal.SIGTERM)
    out, err = command.communicate(timeout=60)
    assert (command.returncode, "stopped" in out) == (0, True), err
    nothing_is_left(lab, processes, [*ports_of(stack), port_of(stack["broker_url"])])


def test_the_state_file_of_a_dead_stack_is_recognised_and_removed_by_any_command(lab: Lab) -> None:
    told = {
        "owner": dead_process(),
        "broker_url": f"redis://:{PASSWORD}@127.0.0.1:1/0",
        "broker": "redis://127.0.0.1:1/0",
        "embedded": True,
        "workers": 1,
        "flower_url": "http://127.0.0.1:1",
        "flower_user": "backfill",
        "flower_password": PASSWORD,
        "metrics_url": "http://127.0.0.1:1/metrics",
        "log_file": "nowhere",
        "places": "",
    }
    (lab.home / "up.json").write_text(json.dumps(told))

    assert not open_context(lab.settings).uses_running_stack
    assert not (lab.home / "up.json").exists()


@pytest.mark.parametrize("owner", [dead_process, process_identity])
def test_the_stack_of_another_version_is_left_alone_while_it_runs(lab: Lab, owner: Callable[[], str]) -> None:
    state_file = lab.home / "up.json"
    state_file.write_text(json.dumps({"owner": owner(), "field_of_another_version": 1}))
    if owner is dead_process:
        assert lab.command("down").returncode == 0
        assert not state_file.exists()
        return
    for command in ("down", "up", "doctor"):
        refused = lab.command(command)
        assert refused.returncode in (2, 3), command
        assert "another version of backfill runs the stack" in refused.stdout + refused.stderr, command
    assert state_file.exists()


def test_a_port_that_is_taken_is_refused_when_it_was_asked_for(lab: Lab) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = lab.script("up", "--flower-port", str(port))
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert f"Flower can't listen at 127.0.0.1 port {port}: it is taken or not allowed" in refused.stderr
    assert not (lab.home / "up.json").exists()
