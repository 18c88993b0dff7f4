"""One schedule from its beginning to its verdict, in a process of its own that forks all the others."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from gated_backfill.common.config.settings import Settings
from gated_backfill.producer.stack.embedded import free_port
from tests.faults.chaos import schedule as of
from tests.faults.chaos.disk import mount_small
from tests.faults.chaos.faults import Place
from tests.faults.chaos.invariants import ENDED_RUNS, Seen, Violation, removed_rows, undone, violations
from tests.faults.chaos.kept import lost_rows
from tests.faults.chaos.look import JOB, look
from tests.faults.chaos.operations import Operations, put_ledger_back
from tests.faults.chaos.others import read_writes
from tests.faults.chaos.periods import SETTINGS
from tests.faults.chaos.points import NONE, RUN, Counters
from tests.faults.chaos.processes import call, fork, producer_process
from tests.faults.chaos.schedule import FILL, PRODUCER, Fault, Schedule
from tests.faults.chaos.stack import Stack, adopt_orphans
from tests.faults.chaos.world import open_tables
from tests.postgres import execute, of_database

PATIENCE_SECONDS = 20.0  #: for which nothing may move before every run has ended
LONGEST_SECONDS = 120.0  #: within which they must have ended all the same
SWEEP_SECONDS = 6.0  #: within which the tool must have swept what is left of ended runs
POLL_SECONDS = 0.05
PAUSED_SECONDS = 0.5  #: after which the user lets a paused run go on
SECOND = "second"
RIVAL = "rival"


@dataclass(frozen=True, kw_only=True)
class Services:
    """What the schedules of a lane share."""

    postgres: str  #: the URL of a server
    template: str  #: the database of it that is a migrated, empty ledger
    sqlite: str  #: a file that is one
    emulator: str | None  #: the URL of a BigQuery emulator, of which one schedule at a time makes use
    folder: str  #: where schedules have theirs: in memory if there is room, as nobody cuts the power
    kept: str  #: where those of failed ones are moved to


@dataclass(kw_only=True)
class Result:
    seed: int
    violations: list[dict[str, str]] = field(default_factory=list)
    fired: list[int] = field(default_factory=list)  #: the numbers of the faults that happened
    again: bool = False  #: whether the user's next step was needed
    ends: dict[str, str] = field(default_factory=dict)  #: of the runs
    folder: str | None = None  #: where the logs of a failed schedule are
    trouble: str | None = None  #: what went wrong in the harness itself


class Attempt:
    """One schedule being run."""

    def __init__(self, schedule: Schedule, services: Services, mutant: str | None, patience: float) -> None:
        self.schedule = schedule
        self._services = services
        self._mutant = mutant
        self._patience = patience * (2 if schedule.warehouse == "bigquery" else 1)
        self.folder = Path(services.folder) / f"{schedule.seed}-{os.getpid()}"
        self.result = Result(seed=schedule.seed)
        self._log = self.folder / "log"
        self.looks: list[Seen] = []

    def run(self) -> Result:
        adopt_orphans()
        (self.folder / "home").mkdir(parents=True)
        reader, writer = os.pipe()
        disk = any(fault.action == FILL for fault in self.schedule.faults) and mount_small(
            self.folder / "home" / "staging"
        )
        self.place = Place(folder=self.folder, broker_port=free_port(), requests=writer, disk=disk)
        self.counters = Counters(self.folder / "counters")
        with self._exclusive(), self._ledger() as ledger_url:
            self._environment = self._places(ledger_url)
            self.call(lambda: open_tables(self._environment["BACKFILL_WAREHOUSE"]).make(self.schedule.shape))
            self.prepared = (self.schedule, self.place, self._environment, self.counters, self._mutant)
            self._orders = itertools.count(1)
            made = {"place": self.place, "reader": reader, "prepared": self.prepared, "log": self._log}
            made["durable"] = self.schedule.durable
            with Stack(**made, order=lambda words: self._order(stack, words)) as stack:
                self._disturbed(stack)
            if stack.left_over:
                self.violated([Violation(invariant="a process is left", facts=", ".join(stack.left_over))])
            if not self.result.violations:
                self.violated(list(self._lost()))
        self.violated(list(self._tracebacks()))
        return self.result

    # -- phases --

    def _disturbed(self, stack: Stack) -> None:
        self.counters.arm(RUN)
        stack.launch(PRODUCER, lambda: producer_process(self.command(), *self.prepared), self.folder / "producer.log")
        if self.schedule.rival:
            half = len(self.schedule.shape) // 2
            rival = self.command(through=half)
            stack.launch(RIVAL, lambda: producer_process(rival, *self.prepared), self.folder / "rival.log")
        self.ended(stack, PRODUCER, *([RIVAL] if self.schedule.rival else []))
        self.counters.arm(NONE)
        seen = self.settled(stack, final=False)
        if self.schedule.put_back == of.RUN and len(seen.runs) == 1 and not self.result.violations:
            put_ledger_back(self, stack)
            self.ended(stack)
            seen = self.settled(stack, final=False)
        if undone(self.schedule, seen) and not self.result.violations:
            self.result.again = True
            self._next_step(stack)
        elif not self.result.violations:
            self.violated(violations(self.schedule, seen, self._fired(), final=True))
        if not self.result.violations:
            Operations(self, stack).carry_out()

    def _next_step(self, stack: Stack) -> None:
        """What the user does about dates that are not complete: the same command again, once the broker is back."""
        self.await_restarts(stack)
        stack.launch(SECOND, lambda: producer_process(self.command(), *self.prepared), self.folder / "second.log")
        self.ended(stack, SECOND)
        if stack.code(SECOND) not in (0, 3):
            facts = f"exit code {stack.code(SECOND)}: {(self.folder / 'second.log').read_text()[-500:]}"
            self.violated([Violation(invariant="the same command again does not complete the range", facts=facts)])
        self.settled(stack, final=True)

    def ended(self, stack: Stack, *commands: str) -> None:
        """Wait until the commands and every run have ended, and all that the faults began is over."""
        latest = time.monotonic() + LONGEST_SECONDS
        look_at, moved_at, known = 0.0, time.monotonic(), None
        while time.monotonic() < min(latest, moved_at + self._patience):
            stack.tick()
            if stack.busy or any(stack.code(command) is None for command in commands):
                moved_at = time.monotonic()
            elif time.monotonic() >= look_at:
                look_at = time.monotonic() + POLL_SECONDS
                moves = (runs := self._made.runs()), self._made.moves()
                if moves != known:
                    moved_at, known = time.monotonic(), moves
                states = {state for _, state in runs}
                if states <= set(ENDED_RUNS):
                    return
                if "paused" in states and time.monotonic() > moved_at + PAUSED_SECONDS:
                    self._order(stack, ["resume"])

    def _order(self, stack: Stack, words: list[str]) -> None:
        """Give every run that is on an order, as its user: no fault meets the command."""
        prepared = (replace(self.schedule, faults=()), *self.prepared[1:])
        for run, state in self._made.runs():
            if state not in ENDED_RUNS:
                name = f"order-{next(self._orders)}-{words[0]}"
                arguments = [*words, run, "--reason", "a fault"]
                stack.launch(name, partial(producer_process, arguments, *prepared), self.folder / f"{name}.log")

    def settled(self, stack: Stack, *, final: bool | None) -> Seen:
        """What there is once the tool has swept up. What does not hold by then is a violation."""
        deadline = time.monotonic() + SWEEP_SECONDS
        self.wait(stack, 0.1)
        while True:
            found = self.call(lambda: look(self.schedule, self.settings()))
            seen = Seen(**found, writes=read_writes(self.place.writes))
            broken = violations(self.schedule, seen, self._fired(), final=final)
            lasts = any("for ever" in violation.invariant for violation in broken)
            if not broken or lasts or time.monotonic() > deadline:
                self.looks.append(seen)
                self.violated(broken)
                self.result.ends = {run["id"]: run["state"] for run in seen.runs}
                return seen
            self.wait(stack, 0.4)

    def _lost(self) -> Iterator[Violation]:
        """Whether everything that the tool removed can be put back. Changes the target."""
        removed = removed_rows(self.schedule, self.looks)
        if any(removed.values()):
            for day, rows in self.call(lambda: lost_rows(self.settings(), removed)):
                yield Violation(
                    invariant="removed rows can't be put back", facts=f"{day}: {len(rows)} row(s) {rows[:2]}"
                )

    def wait(self, stack: Stack, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            stack.tick()

    def await_restarts(self, stack: Stack) -> None:
        """Wait until every process that a fault stopped at the end of the run was started again."""
        deadline = time.monotonic() + LONGEST_SECONDS
        while stack.busy and time.monotonic() < deadline:
            stack.tick()

    def violated(self, broken: list[Violation]) -> None:
        self.result.violations += [asdict(violation) for violation in broken]

    def _tracebacks(self) -> Iterator[Violation]:
        for log in sorted(self.folder.glob("*.log")):
            if "Traceback (most recent call last)" in (text := log.read_text()):
                yield Violation(invariant="a command answered with a traceback", facts=f"{log.stem}: {text[-400:]}")

    # -- what it needs --

    def command(self, through: int | None = None) -> list[str]:
        shape = self.schedule.shape
        last = shape[-1 if through is None else through].day
        more = [] if self.schedule.preflight else ["--no-preflight"]
        span = ["--start-date", str(shape[0].day), "--end-date", str(last)]
        size = ["--window", str(self.schedule.window), "--dates-per-task", self.schedule.per_task]
        return ["run", "--job", JOB, *span, *size, "--allow-partial", "--detach", *more]

    def _places(self, ledger_url: str) -> dict[str, str]:
        home = self.place.home
        bigquery = self.schedule.warehouse == "bigquery"
        return SETTINGS | {
            "BACKFILL_HOME": str(home),
            "BACKFILL_BROKER": f"redis://127.0.0.1:{self.place.broker_port}/0",
            "BACKFILL_LEDGER": ledger_url,
            "BACKFILL_WAREHOUSE": str(self._services.emulator) if bigquery else f"local:{home / 'warehouse'}",
            "BACKFILL_STAGING": str(home / "staging"),
            "BACKFILL_WINDOWS_IN_FLIGHT": str(self.schedule.in_flight),
            **({"BACKFILL_METADATA_TABLE": "none"} if bigquery else {}),
        }

    def settings(self) -> Settings:
        os.environ.update(self._environment)
        return Settings()  # pyright: ignore[reportCallIssue]

    def _fired(self) -> list[Fault]:
        try:
            lines = self.place.fired.read_text().splitlines()
        except FileNotFoundError:
            return []
        numbers = [json.loads(line)["fault"] for line in lines]
        self.result.fired = sorted(set(numbers))
        return [self.schedule.faults[number] for number in numbers]

    def call(self, body: Callable[[], Any]) -> Any:
        return call(body, log=self.folder / "looks")

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the lock of the emulator, if the schedule makes use of it."""
        if self.schedule.warehouse != "bigquery":
            yield
            return
        with (Path(self._services.folder) / "emulator.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _ledger(self) -> _SqliteLedger | _PostgresLedger:
        if self.schedule.ledger == "sqlite":
            self._made = _SqliteLedger(self._services.sqlite, self.place.ledger)
        else:
            self._made = _PostgresLedger(self._services, f"chaos_{self.schedule.seed}_{os.getpid()}")
        return self._made


RUNS = "SELECT id, state FROM runs ORDER BY id"
MOVES = """
    SELECT run_id, CAST(day AS TEXT), state, attempt, deaths, lease_owner FROM run_dates
    UNION ALL SELECT run_id, CAST(number AS TEXT), state, deaths, 0, lease_owner FROM windows
"""


class _Ledger:
    """A ledger as the schedule itself looks at it while its processes work."""

    def runs(self) -> list[tuple[str, str]]:
        return [(run, state) for run, state in self._rows(RUNS)]

    def moves(self) -> list[str]:
        """What changes when anything moves."""
        return sorted(map(str, self._rows(MOVES)))

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        raise NotImplementedError


@dataclass
class _SqliteLedger(_Ledger):
    template: str
    file: Path

    def __enter__(self) -> str:
        shutil.copy(self.template, self.file)
        return f"sqlite:///{self.file}"

    def __exit__(self, *_: object) -> None:
        return None

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(f"file:{self.file}?mode=ro", uri=True, timeout=5)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()


@dataclass
class _PostgresLedger(_Ledger):
    services: Services
    name: str

    def __enter__(self) -> str:
        template = self.services.template
        execute(self.services.postgres, f"CREATE DATABASE {self.name} TEMPLATE {template} STRATEGY FILE_COPY")
        url = of_database(self.services.postgres, self.name)
        self._connection = psycopg.connect(url, autocommit=True)
        return url

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        execute(self.services.postgres, f"DROP DATABASE {self.name} WITH (FORCE)")

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(query).fetchall()


def start(schedule: Schedule, services: Services, mutant: str | None, patience: float, answer: Path) -> int:
    """Fork a process that runs the schedule and writes its result to a file; returns its pid."""

    def body() -> None:
        attempt = Attempt(schedule, services, mutant, patience)
        try:
            result = attempt.run()
        except Exception as exc:  # noqa: BLE001 - the edge: what breaks in the harness is told as its own
            result = attempt.result
            result.trouble = f"{type(exc).__name__}: {exc}"
        if result.violations or result.trouble:
            kept = Path(services.kept) / attempt.folder.name
            result.folder = str(shutil.copytree(attempt.folder, kept, symlinks=True))
        shutil.rmtree(attempt.folder, ignore_errors=True)  # but for what is mounted in it, which goes with this process
        partial = answer.with_suffix(".part")
        partial.write_text(json.dumps(asdict(result)))
        partial.rename(answer)

    return fork(body, log=answer.with_suffix(".log"))
