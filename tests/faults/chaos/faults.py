"""What a fault does, in the process that meets it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import redis
from sqlalchemy.exc import OperationalError

from gated_backfill.common.errors import BrokerUnavailable, LedgerUnavailable, WarehouseUnavailable
from gated_backfill.common.model.scheduling.queues import QUEUES
from tests.faults.chaos import others
from tests.faults.chaos import schedule as of
from tests.faults.chaos.schedule import BEAT, DATES, GATE, PRODUCER, Fault
from tests.faults.chaos.shapes import OLD_DAYS, Day
from tests.faults.chaos.world import open_tables

BROKER = "broker"
HELD = "held back "  #: before the name of a queue whose messages wait
FILLER = "filler"  #: the file that fills the staging disk
AWAIT = 0.01


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a schedule's processes find each other."""

    folder: Path
    broker_port: int
    requests: int  #: the end of a pipe on which the stack takes requests
    disk: bool  #: the staging folder is a small disk of its own

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def staging(self) -> Path:
        return self.home / "staging"

    @property
    def fired(self) -> Path:
        """One line for each fault that happened."""
        return self.folder / "fired"

    @property
    def copies(self) -> Path:
        """There while copies of messages wait for a window to be closed."""
        return self.folder / "copies"

    @property
    def ledger(self) -> Path:
        """The file of a ledger in SQLite."""
        return self.home / "ledger.db"

    @property
    def ledger_copy(self) -> Path:
        """An older copy of it, if a fault made one."""
        return self.folder / "ledger-copy.db"

    @property
    def writes(self) -> Path:
        """What other programs wrote to the target, see `others`."""
        return self.folder / "writes"

    def pid_file(self, name: str) -> Path:
        return self.folder / f"{name}.pid"

    def pid(self, name: str) -> int | None:
        try:
            return int(self.pid_file(name).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def ask(self, **request: Any) -> None:
        """Have the stack do something: a line shorter than a pipe's buffer arrives whole."""
        os.write(self.requests, json.dumps(request).encode() + b"\n")

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.broker_port, socket_timeout=1, socket_connect_timeout=1)


def release_held(broker: redis.Redis) -> None:
    """Put the messages that were held back where they belong."""
    for queue in QUEUES:
        while broker.lmove(HELD + queue, queue, "RIGHT", "LEFT"):
            pass


def release_copies_at_closed_windows(place: Place) -> None:
    """For the gate: a message may well be delivered once more when its window has long been closed."""
    from gated_backfill.common.ledger import WindowState
    from gated_backfill.common.ledger.stores.windows import WindowStore

    leave = WindowStore.release_window

    def left(*arguments: Any, to: WindowState, **more: Any) -> bool:
        done = leave(*arguments, to=to, **more)
        if to is WindowState.CLOSED and place.copies.exists():
            place.copies.unlink(missing_ok=True)
            with _tolerant(place.client()) as broker:
                release_held(broker)
        return done

    WindowStore.release_window = left


class Carrier:
    """Carries out faults in one process."""

    def __init__(self, place: Place, role: str, shape: Sequence[Day], warehouse_url: str) -> None:
        self._place = place
        self._role = role
        self._shape = shape
        self._warehouse_url = warehouse_url
        self._actions: dict[str, Callable[[Fault], None]] = {
            of.ERROR: _fail,
            of.KILL: self._kill,
            of.FREEZE: self._freeze,
            of.RESTART: self._restart,
            of.LOSE: self._lose,
            of.DUPLICATE: self._duplicate,
            of.DELAY: self._delay,
            of.FILL: self._fill,
            of.ORDER: self._order,
            of.CLOCK: _shift_clock,
            of.COPY: self._copy_ledger,
            of.SPOIL: self._spoil,
        }

    def __call__(self, fault: Fault, number: int, at_hand: date | None) -> None:
        """Raises what the fault has raised. Written down first: the process may not live to do so afterwards.

        `at_hand` is the date that the call is about, if that is known.
        """
        with self._place.fired.open("ab", buffering=0) as log:
            log.write(json.dumps({"fault": number, "pid": os.getpid(), "at": time.time()}).encode() + b"\n")
        if fault.action == of.WRITE:
            self._write(fault, at_hand)
        else:
            self._actions[fault.action](fault)

    def _pid(self, target: str) -> int | None:
        if target == "self":
            return os.getpid()
        if target == "its worker":
            return self._place.pid(self._role)
        names = {"the gate": GATE, "beat": BEAT, "the producer": PRODUCER, "the broker": BROKER}
        return self._place.pid(names[target])

    def _kill(self, fault: Fault) -> None:
        if fault.target == "every worker":
            others = [name for name in (DATES, GATE) if name != self._role]
            for name in [*others, self._role]:
                _signal(self._place.pid(name), signal.SIGKILL)
        else:
            _signal(self._pid(fault.target), signal.SIGKILL)
        if fault.target in ("its worker", "every worker"):
            time.sleep(5)  # its pool dies with it: until then, nothing more of this task

    def _freeze(self, fault: Fault) -> None:
        if fault.target == of.TO_THE_END:
            self._place.ask(frozen=os.getpid(), after=0)
            _signal(os.getpid(), signal.SIGSTOP)
            return
        pid = self._pid(fault.target)
        if pid is not None:
            self._place.ask(thaw=pid, after=fault.amount)
            _signal(pid, signal.SIGSTOP)

    def _restart(self, fault: Fault) -> None:
        self._place.ask(restart=fault.target, after=fault.amount)
        pid = self._place.pid(BROKER)
        _signal(pid, signal.SIGKILL)
        deadline = time.monotonic() + 1
        while pid is not None and _lives(pid) and time.monotonic() < deadline:
            time.sleep(AWAIT)

    def _lose(self, fault: Fault) -> None:
        with self._broker() as broker:
            if fault.target == "all":
                broker.flushall()
            else:
                broker.delete("unacked", "unacked_index")

    def _duplicate(self, fault: Fault) -> None:
        """Those that wait, and those that a worker has taken and not acknowledged: as after a visibility timeout."""
        with self._broker() as broker:
            waiting = [(queue, broker.lrange(queue, 0, -1)) for queue in QUEUES]
            taken = [json.loads(one) for one in broker.hvals("unacked")]
            held = HELD if fault.target == of.LATER else ""
            for _ in range(int(fault.amount)):
                for queue, messages in waiting:
                    if messages:
                        broker.lpush(held + queue, *messages)
                for message, _, queue in taken:
                    broker.lpush(held + queue, json.dumps(message))
        if fault.target == of.LATER:
            self._place.copies.touch()
            self._place.ask(release=True, after=of.LATER_SECONDS)

    def _spoil(self, fault: Fault) -> None:
        open_tables(self._warehouse_url).spoil_staged()

    def _delay(self, fault: Fault) -> None:
        self._place.ask(release=True, after=fault.amount)
        with self._broker() as broker:
            for queue in QUEUES:
                while broker.lmove(queue, HELD + queue, "RIGHT", "LEFT"):
                    pass

    def _order(self, fault: Fault) -> None:
        self._place.ask(order=fault.target.split(), after=0)

    def _write(self, fault: Fault, at_hand: date | None) -> None:
        """In the midst of the call: nothing else of this process happens meanwhile."""
        days = [self._shape[number].day for number in others.can_be_written(self._shape)]
        if self._role == of.CLEANUP:
            days = [*OLD_DAYS]
        day = at_hand if fault.amount == of.AT_HAND and at_hand in days else days[int(fault.amount) % len(days)]
        others.write_date(day, fault.target, self._warehouse_url, self._place.writes)

    def _copy_ledger(self, _: Fault) -> None:
        source = sqlite3.connect(f"file:{self._place.ledger}?mode=ro", uri=True)
        with contextlib.closing(source), contextlib.closing(sqlite3.connect(self._place.ledger_copy)) as copy:
            source.backup(copy)

    def _broker(self) -> Any:
        return _tolerant(self._place.client())

    def _fill(self, fault: Fault) -> None:
        if not self._place.disk:  # this machine lets us mount nothing: the call fails as on a full disk
            full = os.strerror(errno.ENOSPC)
            raise OSError(errno.ENOSPC, full) if fault.point == "file.sync" else WarehouseUnavailable(full)
        self._place.ask(free=True, after=fault.amount)
        block = bytes(4096)
        with (self._place.staging / FILLER).open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(block)
            except OSError as exc:
                if exc.errno != errno.ENOSPC:
                    raise


@contextlib.contextmanager
def _tolerant(client: redis.Redis) -> Iterator[redis.Redis]:
    """A broker's client, for a fault that is to play with messages while another fault has the broker down."""
    with contextlib.suppress(redis.RedisError), contextlib.closing(client):
        yield client


def _signal(pid: int | None, which: signal.Signals) -> None:
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, which)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _fail(fault: Fault) -> None:
    """An error of the tool's own at its own calls; below them, what a library raises."""
    kind = fault.point.partition(".")[0]
    if fault.point == "ledger.commit":
        raise OperationalError("COMMIT", {}, sqlite3.OperationalError("database is locked"))
    if kind == "file":
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    errors = {"ledger": LedgerUnavailable, "broker": BrokerUnavailable, "job": RuntimeError}
    raise errors.get(kind, WarehouseUnavailable)("a fault of the schedule")


def shift_clock(seconds: float) -> None:
    """Shift what the tool takes for the time in this process."""
    from gated_backfill.common.process import clock

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(seconds=seconds)

    clock.datetime = Shifted


def _shift_clock(fault: Fault) -> None:
    """What the rest of the task takes for the time."""
    from celery.signals import task_postrun

    from gated_backfill.common.process import clock

    shift_clock(fault.amount)

    def right_again(**_: Any) -> None:
        clock.datetime = datetime

    task_postrun.connect(right_again, weak=False)
