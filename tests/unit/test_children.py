"""The processes of a stack: which are started again, and what a failure to start one does to the others."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gated_backfill.producer.stack.children import ChildProcesses, StackError
from gated_backfill.producer.stack.supervised_stack import may_have_lost_tasks
from tests.lab import until

ENDS = [sys.executable, "-S", "-c", ""]
STAYS = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]


def nothing() -> None:
    pass


@pytest.fixture
def children(tmp_path: Path) -> Iterator[ChildProcesses]:
    made = ChildProcesses(tmp_path / "stack", tmp_path / "log", gives_up=False)
    yield made
    made.stop(grace=0)


def ended(children: ChildProcesses, name: str) -> bool:
    return not children.is_alive(name)


def test_what_was_started_again_is_named_and_nothing_else(children: ChildProcesses) -> None:
    children.start("steady", STAYS, {})
    children.start("flower", ENDS, {})
    until(lambda: ended(children, "flower"), "its end")

    assert children.restart_dead(nothing) == ["flower"]


def test_what_can_not_be_started_stops_nothing_else_and_is_tried_again(children: ChildProcesses) -> None:
    children.start("first", ENDS, {})
    until(lambda: ended(children, "first"), "its end")
    children.log_file.unlink()
    children.log_file.mkdir()  # as a full disk, it lets no process start

    assert children.restart_dead(nothing) == []
    assert children.restart_dead(nothing) == []  # it pauses, whether that was tried or not
    children.log_file.rmdir()
    assert until(lambda: children.restart_dead(nothing), "the next try") == ["first"]


def test_a_stack_of_one_command_gives_up_when_a_process_can_not_be_started(tmp_path: Path) -> None:
    children = ChildProcesses(tmp_path / "stack", tmp_path / "log")
    children.start("first", ENDS, {})
    until(lambda: ended(children, "first"), "its end")
    children.log_file.unlink()
    children.log_file.mkdir()

    with pytest.raises(StackError, match="the first process can't be started"):
        children.restart_dead(nothing)


@pytest.mark.parametrize(
    ("again", "lost"),
    [
        pytest.param([], False, id="nothing"),
        pytest.param(["flower", "beat", "metrics", "housekeeping"], False, id="what-holds-no-tasks-of-runs"),
        pytest.param(["flower", "dates"], True, id="a-worker"),
        pytest.param(["gate"], True, id="the-gate"),
        pytest.param(["broker"], True, id="the-broker"),
    ],
)
def test_only_what_holds_tasks_of_runs_is_made_up_for(again: list[str], lost: bool) -> None:
    assert may_have_lost_tasks(again) is lost
