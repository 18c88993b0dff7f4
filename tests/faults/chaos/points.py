"""The calls at which something can go wrong: counted over all processes of a schedule, by role."""

from __future__ import annotations

import fcntl
import functools
import mmap
import os
import re
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from tests.faults.chaos.schedule import CLEANUP, POINTS, ROLES, UNDO, Fault

_SLOT = 4  #: bytes of a counter
_SLOTS = {(role, point): number for number, (role, point) in enumerate((r, p) for r in ROLES for p in POINTS)}
_ARMED = len(_SLOTS)  #: the slot that says in which part of the schedule faults happen
NONE, RUN, OPERATIONS = 0, 1, 2  #: the parts


class Counters:
    """Numbers in a file that all processes of a schedule share."""

    def __init__(self, file: Path) -> None:
        self._file = file
        if not file.exists():
            file.write_bytes(bytes(_SLOT * (_ARMED + 1)))
        self._handle = os.open(file, os.O_RDWR)
        self._map = mmap.mmap(self._handle, 0)

    def next(self, role: str, point: str) -> int:
        """The number of this call, from 1."""
        slot = _SLOTS[role, point]
        with self._locked():  # POSIX locks are a process's own, so that a forked child does not hold its parent's
            self._set(slot, self._get(slot) + 1)
            return self._get(slot)

    def arm(self, part: int) -> None:
        self._set(_ARMED, part)

    @property
    def armed(self) -> int:
        return self._get(_ARMED)

    def counted(self) -> dict[str, int]:
        """How often each point was met."""
        return {f"{role} {point}": n for (role, point), slot in _SLOTS.items() if (n := self._get(slot))}

    @contextmanager
    def _locked(self) -> Generator[None]:
        fcntl.lockf(self._handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._handle, fcntl.LOCK_UN)

    def _get(self, slot: int) -> int:
        return int.from_bytes(self._map[slot * _SLOT : (slot + 1) * _SLOT], "little")

    def _set(self, slot: int, value: int) -> None:
        self._map[slot * _SLOT : (slot + 1) * _SLOT] = value.to_bytes(_SLOT, "little")


Carry = Callable[[Fault, int, date | None], None]  #: carries out a fault, given its number and the date at hand
PARTITION = re.compile(r"day=(\d{4}-\d\d-\d\d)")


class Points:
    """Meets the faults of one role: installed in a process that was forked for a schedule."""

    def __init__(self, role: str, faults: Sequence[Fault], counters: Counters, carry: Carry) -> None:
        self._role = role
        self._faults = [(number, fault) for number, fault in enumerate(faults) if fault.role == role]
        self._counters = counters
        self._part = OPERATIONS if role in (UNDO, CLEANUP) else RUN
        self._carry = carry
        self._carrying = threading.local()  # what a fault itself calls is not counted

    def meet(self, point: str, number: int, *, after: bool, arguments: Sequence[Any] = ()) -> None:
        """Have go wrong what goes wrong at that call."""
        for index, fault in self._faults:
            if (
                fault.point == point
                and fault.after is after
                and fault.nth <= number < fault.nth + fault.times
                and self._counters.armed == self._part
            ):
                self._carrying.on = True
                try:
                    self._carry(fault, index, _date_at_hand(arguments))
                finally:
                    self._carrying.on = False

    def count(self, point: str) -> int:
        """The number of this call; 0 if it does not count."""
        if getattr(self._carrying, "on", False) or self._counters.armed != self._part:
            return 0
        return self._counters.next(self._role, point)

    def wrap(self, owner: Any, name: str, point: str) -> None:
        """Have the calls of a method or function counted."""
        found = getattr(owner, name)

        @functools.wraps(found)
        def counted(*arguments: Any, **named: Any) -> Any:
            number = self.count(point)
            self.meet(point, number, after=False, arguments=arguments)
            answer = found(*arguments, **named)
            self.meet(point, number, after=True, arguments=arguments)
            return answer

        setattr(owner, name, counted)

    # -- what is wrapped --

    def install(self) -> None:
        from celery.beat import Scheduler
        from google.cloud import bigquery

        from gated_backfill.common.broker.dispatcher import CeleryDispatcher
        from gated_backfill.common.ledger.database import LedgerStore
        from gated_backfill.common.storage.staging import Staging
        from gated_backfill.common.warehouse.bigquery.query_staging import BigQueryQueryStaging
        from gated_backfill.common.warehouse.bigquery.warehouse import BigQueryWarehouse
        from gated_backfill.common.warehouse.local.loading import LoadingFolder
        from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
        from gated_backfill.worker.dates import build

        for point in POINTS:
            kind, _, name = point.partition(".")
            if kind == "ledger" and name != "commit":
                self.wrap(next(store for store in LedgerStore.__subclasses__() if name in vars(store)), name, point)
            elif kind == "warehouse":
                for warehouse in (LocalWarehouse, BigQueryWarehouse):
                    own = f"_{name}" if name == "exchange_prepared" else name
                    if hasattr(warehouse, own):
                        self.wrap(warehouse, own, point)
            elif kind == "query_staging":
                self.wrap(BigQueryQueryStaging, name, point)
            elif kind == "loading":  # each partition's change
                self.wrap(LoadingFolder, f"_{name}", point)
            elif kind == "staging":
                self.wrap(Staging, name, point)
            elif kind == "broker":
                self.wrap(CeleryDispatcher, name, point)
        self._wrap_files()
        self.wrap(bigquery.Client, "query", "bigquery.query")
        self.wrap(build, "compute_rows", "job.process")
        self.wrap(Scheduler, "tick", "beat.tick")
        self._wrap_commits()

    def _wrap_files(self) -> None:
        """The system calls by which files get and lose their names, and the one before it that makes them durable."""
        from gated_backfill.common.warehouse.local import exchange

        self.wrap(os, "fsync", "file.sync")
        for name in ("rename", "replace"):
            self.wrap(os, name, "file.rename")
        self.wrap(exchange, "_rename", "file.rename")  # calls the system itself
        for name in ("link", "unlink"):
            self.wrap(os, name, "file.link")

    def _wrap_commits(self) -> None:
        """A fault before the commit finds the transaction's work done and not yet in effect."""
        from gated_backfill.common.ledger.database import LedgerStore, translate_database_errors

        write = LedgerStore._write

        @contextmanager
        def counted(database: Any, **named: Any) -> Generator[Any]:
            number = self.count("ledger.commit")
            with translate_database_errors():
                with write(database, **named) as connection:
                    yield connection
                    self.meet("ledger.commit", number, after=False)
                self.meet("ledger.commit", number, after=True)

        LedgerStore._write = counted


def _date_at_hand(arguments: Sequence[Any]) -> date | None:
    """The date whose partition a call is about, by the paths that it was given."""
    found = PARTITION.search(" ".join(map(str, arguments)))
    return date.fromisoformat(found[1]) if found else None
