"""Workers that are each on a host of their own, so that nobody sees the processes of another."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import psutil

from tests.lab import Lab
from tests.workers import log_file_of

#: Its host has the name in TEST_HOST, or one of its own.
WORKER = """
import os
from gated_backfill.common.process import identity
host = os.environ.get("TEST_HOST") or f"host-{os.getpid()}"
identity._host = lambda: host
from gated_backfill.worker.__main__ import main
main()
"""


@contextmanager
def worker_on_own_host(lab: Lab, name: str, queues: str, places: dict[str, str]) -> Iterator[psutil.Process]:
    words = ["--hostname", f"{name}@lab", "--queues", queues, "--concurrency", "1"]
    command = [sys.executable, "-c", WORKER, *words]
    with log_file_of(lab, name).open("w") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=lab.environment() | places
        )
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def lose_host(worker: psutil.Process, number: signal.Signals) -> None:
    """Kill or freeze a worker with its processes, as when its host is lost."""
    for process in [worker, *worker.children()]:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def worker_of_owner(workers: Sequence[psutil.Process], owner: str | None) -> psutil.Process:
    """The worker to which the owner of a lease belongs."""
    (found,) = [worker for worker in workers if str(owner).startswith(f"host-{worker.pid}:")]
    return found
