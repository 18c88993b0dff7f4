"""Knowing whether the holder of a lease still lives."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from gated_backfill.common.process import identity
from gated_backfill.common.process.identity import host_name, is_dead, is_on_this_host, kill_if_alive, process_identity


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    yield process
    process.kill()
    process.communicate()


def test_we_are_not_dead() -> None:
    assert not is_dead(process_identity())


def test_a_living_child_is_not_dead(child: subprocess.Popen[bytes]) -> None:
    assert not is_dead(process_identity(child.pid))


def test_a_killed_child_is_dead(child: subprocess.Popen[bytes]) -> None:
    owner = process_identity(child.pid)
    child.kill()
    child.wait()
    assert is_dead(owner)


def test_a_killed_child_that_nobody_has_waited_for_is_dead(child: subprocess.Popen[bytes]) -> None:
    owner = process_identity(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays a zombie
    assert is_dead(owner)


def test_a_later_process_of_the_same_number_is_somebody_else() -> None:
    host, pid, started = process_identity().rsplit(":", 2)
    assert is_dead(f"{host}:{pid}:{int(started) - 100}")


def test_nothing_is_known_of_another_host() -> None:
    assert not is_dead("elsewhere:1:1")
    assert not is_dead("elsewhere:with:colons:1:1")


def host_parts() -> tuple[str, str, str]:
    name, machine, boot = process_identity().rsplit(":", 2)[0].split("/")
    return name, machine, boot


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells its boots apart")
def test_a_live_process_of_another_machine_with_this_name_is_not_dead(child: subprocess.Popen[bytes]) -> None:
    name, _, _ = host_parts()
    _, pid, started = process_identity(child.pid).rsplit(":", 2)
    for machine in ("feedbeef", ""):
        owner = f"{name}/{machine}/0badcafe:4000000:1"
        assert not is_dead(owner)
        assert not is_on_this_host(owner)
        assert not kill_if_alive(f"{name}/{machine}/0badcafe:{pid}:{started}")
    assert child.poll() is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells its boots apart")
def test_a_process_from_before_this_machine_s_boot_is_dead(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, boot = host_parts()
    _, pid, started = process_identity(child.pid).rsplit(":", 2)
    monkeypatch.setattr(identity, "_host", lambda: f"{name}/feedbeef/{boot}")
    before = f"{name}/feedbeef/0badcafe:{pid}:{started}"
    assert is_dead(before)
    assert not kill_if_alive(before)
    assert child.poll() is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells its boots apart")
def test_a_network_card_that_is_plugged_in_makes_no_other_host(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, boot = host_parts()
    owner = process_identity(child.pid)
    monkeypatch.setattr(identity, "_host", lambda: f"{name}/feedbeef/{boot}")
    assert is_on_this_host(owner)
    assert not is_dead(owner)


def test_an_identity_that_a_version_before_has_written_is_known(child: subprocess.Popen[bytes]) -> None:
    host, pid, started = process_identity(child.pid).rsplit(":", 2)
    owner = f"{host.partition('/')[0]}:{pid}:{started}"
    assert host_name(owner) == socket.gethostname()
    assert not is_dead(owner)
    assert kill_if_alive(owner)
    child.wait()
    assert is_dead(owner)


def test_an_identity_fits_into_a_column_of_the_ledger() -> None:
    host, _, _ = process_identity().rsplit(":", 2)
    longest_name = "x" * 64
    assert len(f"{longest_name}.4026531836/{host.partition('/')[2]}:4194304:99999999999") <= 128


def test_a_process_has_one_identity() -> None:
    assert process_identity() == process_identity(os.getpid())


def test_the_process_of_that_identity_is_killed(child: subprocess.Popen[bytes]) -> None:
    owner = process_identity(child.pid)
    assert kill_if_alive(owner)
    assert child.wait() == -signal.SIGKILL
    assert not kill_if_alive(owner)


def test_a_process_of_another_host_is_left_alone(child: subprocess.Popen[bytes]) -> None:
    _, pid, started = process_identity(child.pid).rsplit(":", 2)
    assert not kill_if_alive(f"elsewhere:{pid}:{started}")
    assert child.poll() is None


ORPHAN = """
import os, sys
from gated_backfill.common.process.identity import die_with_parent
parent = os.getpid()
if os.fork():
    os._exit(0)
while os.getppid() == parent:
    pass
die_with_parent(parent)
print("outlived its parent", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_a_process_whose_parent_has_already_ended_ends_too() -> None:
    ended = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True, timeout=30)
    assert (ended.stdout, ended.stderr) == ("", "")
