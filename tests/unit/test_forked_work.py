"""Work that is shared with forked processes comes back whole, whatever becomes of them."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

from tests.builders import run_python

PREPARED = """
    import json, os, signal, sys, threading
    import psutil
    from gated_backfill.common.process.forked_work import map_in_forks, usable_processes
    parent, processes = os.getpid(), int(sys.argv[1])

    def here():
        return os.getpid() == parent

    def told(**found):
        print(json.dumps(found | {"children": len(psutil.Process().children())}))
"""
SQUARES = """
    made = map_in_forks(lambda n: (n * n, here()), range(10), processes)
    told(made=[square for square, _ in made], here=sum(there for _, there in made))
"""
KILLED = """
    def work(n):
        if not here() and n >= 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return n * n, here()

    made = map_in_forks(work, range(10), processes)
    told(made=[square for square, _ in made], here=sum(there for _, there in made))
"""
ALL_KILLED_WHILE_SOME_ANSWER = """
    def work(n):
        if n == 9 and not here():
            for helper in psutil.Process(parent).children():
                helper.kill()
        return n * n, here(), "" if here() else "more than is written at once" * 1_000

    made = map_in_forks(work, range(10), processes)
    told(made=[square for square, *_ in made], here=sum(there for _, there, _ in made))
"""
KILLED_WHILE_IT_ANSWERS = """
    from multiprocessing.connection import Connection

    send = Connection._send

    def send_half(self, message, *more):
        if not here():
            send(self, message[: len(message) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        send(self, message, *more)

    Connection._send = send_half
    made = map_in_forks(lambda n: (n * n, here()), range(10), processes)
    told(made=[square for square, _ in made], here=sum(there for _, there in made))
"""
NONE_TO_BE_HAD = """
    def refuse():
        raise BlockingIOError("too many processes")

    os.fork = refuse
    made = map_in_forks(lambda n: (n * n, here()), range(10), processes)
    told(made=[square for square, _ in made], here=sum(there for _, there in made))
"""
REFUSED = """
    def work(n):
        if n == 7:
            raise ValueError("seven is not counted")
        return n * n

    try:
        map_in_forks(work, range(10), processes)
    except ValueError as exc:
        told(error=str(exc))
"""
INTERRUPTED = """
    def work(n):
        if n == 0:
            os.killpg(os.getpgid(0), signal.SIGINT)
        signal.pause()

    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background starts without
    try:
        map_in_forks(work, range(10), processes)
    except KeyboardInterrupt:
        told(error="interrupted")
"""
PARENT_KILLED = """
    def work(n):
        if n == processes - 1:
            os.kill(parent, signal.SIGKILL)
        signal.pause()

    map_in_forks(work, range(10), processes)
"""
SAFELY = """
    ended = threading.Event()
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:processes]))
    alone = usable_processes()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    told(alone=alone, beside_a_thread=usable_processes())
    ended.set()
"""


def told(code: str, processes: int) -> dict[str, Any]:
    """What the code found, run by a process without any other thread."""
    ran = run_python(PREPARED + code, processes)
    assert ran.stderr == ""
    return json.loads(ran.stdout)


@pytest.mark.parametrize(("processes", "here"), [(1, 10), (2, 0), (3, 0), (4, 0), (12, 0)])
def test_every_item_is_done_once_and_told_in_order(processes: int, here: int) -> None:
    assert told(SQUARES, processes) == {"made": [n * n for n in range(10)], "here": here, "children": 0}


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(KILLED, id="killed-while-it-works"),
        pytest.param(KILLED_WHILE_IT_ANSWERS, id="killed-while-it-answers"),
        pytest.param(ALL_KILLED_WHILE_SOME_ANSWER, id="all-killed-while-some-answer"),
        pytest.param(NONE_TO_BE_HAD, id="not-to-be-had"),
    ],
)
def test_the_items_of_a_process_that_is_not_there_are_done_by_the_one_that_shared(code: str) -> None:
    assert told(code, 3) == {"made": [n * n for n in range(10)], "here": 10, "children": 0}


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_an_error_is_raised_wherever_the_item_was(processes: int) -> None:
    assert told(REFUSED, processes) == {"error": "seven is not counted", "children": 0}


def test_an_interruption_ends_every_process_without_a_word() -> None:
    assert told(INTERRUPTED, 3) == {"error": "interrupted", "children": 0}


def test_no_process_outlives_the_one_that_shared() -> None:
    ran = run_python(PREPARED + PARENT_KILLED, 3)  # returns when nobody has its output open any more
    assert (ran.returncode, ran.stderr) == (-signal.SIGKILL, "")


def test_a_process_with_other_threads_is_not_forked() -> None:
    for cores in (1, 2):
        alone = min(cores, len(os.sched_getaffinity(0)))
        assert told(SAFELY, cores) == {"alone": alone, "beside_a_thread": 1, "children": 0}
