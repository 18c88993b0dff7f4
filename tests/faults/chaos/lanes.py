"""Lanes as those see them who have schedules run: processes that are handed seeds and answer with results."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.faults.chaos.run import PATIENCE_SECONDS, Result, Services

ROOT = Path(__file__).parents[3]
SLOTS = 3  #: schedules that a lane runs at a time: most of what they do is wait


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be run."""

    seed: int
    mutant: str | None = None
    patience: float = PATIENCE_SECONDS


class Lane:
    """One lane process, which ends with this one. Use as a context manager."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.under_way = 0

    def __enter__(self) -> Lane:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.chaos.lane", json.dumps(asdict(self._services))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def send(self, order: Order) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
        self._process.stdin.flush()
        self.under_way += 1

    def fileno(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def receive(self) -> Result:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a lane ended by itself, with {self._process.wait()}")
        self.under_way -= 1
        values: dict[str, Any] = json.loads(line)
        return Result(**values)


def run_all(lanes: list[Lane], orders: Iterable[Order], *, slots: int = SLOTS) -> Iterator[Result]:
    """The results of the orders as they come in. An order is taken from the iterable when a lane has room for it."""
    waiting = iter(orders)
    exhausted = False
    while True:
        for lane in lanes:
            while not exhausted and lane.under_way < slots:
                order = next(waiting, None)
                if order is None:
                    exhausted = True
                else:
                    lane.send(order)
        busy = [lane for lane in lanes if lane.under_way]
        if not busy:
            return
        ready, _, _ = select.select(busy, [], [])
        for lane in ready:
            yield lane.receive()
