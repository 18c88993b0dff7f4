"""`make chaos` and `make chaos-mutants`."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.faults.chaos.lanes import SLOTS, Lane, Order, run_all
from tests.faults.chaos.mutants import MUTANTS, can_show
from tests.faults.chaos.report import failure, mutant_line, summary
from tests.faults.chaos.run import Result
from tests.faults.chaos.schedule import make_schedule
from tests.faults.chaos.services import started_services

PROGRESS_SECONDS = 5.0
MUTANT_SCHEDULES = 300  #: after which a mutant counts as not caught
MUTANT_PATIENCE = 12.0  #: seconds: a run of which nothing moves for so long is not going to end


def main() -> int:
    asked = _arguments()
    kept = Path(tempfile.mkdtemp(prefix="backfill-chaos-failed-"))
    try:
        with started_services(kept, bigquery=True) as services, ExitStack() as stack:
            lanes = [stack.enter_context(Lane(services)) for _ in range(asked.lanes)]
            return _mutants(lanes, asked) if asked.mutants else _schedules(lanes, asked)
    finally:
        with contextlib.suppress(OSError):
            kept.rmdir()  # only what failed is kept


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--minutes", type=float, help="go on for so long, however many schedules that is")
    parser.add_argument("--seed", type=int, default=1, help="of the first schedule; the next has the next")
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--slots", type=int, default=SLOTS, help="schedules at a time in each lane")
    parser.add_argument("--mutants", action="store_true", help="show that the harness notices a broken tool")
    return parser.parse_args()


def _schedules(lanes: list[Lane], asked: argparse.Namespace) -> int:
    began = told = time.monotonic()
    results: list[Result] = []
    for result in run_all(lanes, _orders(asked, began), slots=asked.slots):
        results.append(result)
        if _failed(result):
            _say(failure(result))
        if (now := time.monotonic()) - told > PROGRESS_SECONDS:
            told = now
            bad = sum(map(_failed, results))
            _say(f"{len(results)} schedules, {bad} failed, {len(results) / (now - began) * 60:.0f} a minute")
    _say(summary(results, time.monotonic() - began))
    return int(any(map(_failed, results)))


def _orders(asked: argparse.Namespace, began: float) -> Iterator[Order]:
    for seed in itertools.count(asked.seed):
        if asked.minutes is not None:
            if time.monotonic() - began > asked.minutes * 60:
                return
        elif seed >= asked.seed + asked.schedules:
            return
        yield Order(seed=seed)


def _mutants(lanes: list[Lane], asked: argparse.Namespace) -> int:
    """Each mutant until it is caught; and the tool as it is, which must not be."""
    survivors = 0
    for name in MUTANTS:
        results = _until_caught(lanes, name, asked)
        survivors += not any(result.violations for result in results)
        _say(mutant_line(name, results))
    control = list(run_all(lanes, _showing(asked.seed, 20, None), slots=asked.slots))
    bad = [result for result in control if _failed(result)]
    _say(f"{'no mutant':26} {len(control)} schedules, {len(bad)} failed")
    for result in bad:
        _say(failure(result))
    return int(survivors > 0 or bool(bad))


def _until_caught(lanes: list[Lane], name: str, asked: argparse.Namespace) -> list[Result]:
    """The results in the order of their seeds, up to the first that caught it, or all."""
    results: list[Result] = []
    caught = False

    def orders() -> Iterator[Order]:
        for order in _showing(asked.seed, MUTANT_SCHEDULES, name):
            if caught:
                return
            yield order

    for result in run_all(lanes, orders(), slots=asked.slots):
        results.append(result)
        caught = caught or bool(result.violations)
        if result.folder:
            shutil.rmtree(result.folder, ignore_errors=True)
    return sorted(results, key=lambda result: result.seed)


def _showing(first: int, count: int, mutant: str | None) -> Iterator[Order]:
    """The first schedules that may show the mutant; without one, of the local warehouse."""
    schedules = ((seed, make_schedule(seed)) for seed in itertools.count(first))
    seeds = (seed for seed, schedule in schedules if can_show(mutant, schedule))
    for seed in itertools.islice(seeds, count):
        yield Order(seed=seed, mutant=mutant, patience=MUTANT_PATIENCE) if mutant else Order(seed=seed)


def _failed(result: Result) -> bool:
    return bool(result.violations or result.trouble)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
