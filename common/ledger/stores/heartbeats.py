"""Heartbeats: proofs of life that workers renew for their processes, and the processes that were lost."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import Engine, RowMapping, and_, bindparam, delete, func, insert, or_, select, update

from gated_backfill.common.ledger.database import LedgerStore
from gated_backfill.common.ledger.tables import heartbeats
from gated_backfill.common.model.host_fault import FaultKind, HostFault
from gated_backfill.common.model.scheduling.queues import EMBEDDED
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.identity import host_name, is_dead

KEPT_FOR = timedelta(days=7)  #: after its end, to be shown
MIN_SILENCE = timedelta(seconds=15)  #: a shorter one may be that of a ledger that answers late
LONGEST_SILENCE = timedelta(minutes=3)  #: three of the longest intervals that can be set


WORKERS = heartbeats.alias("workers")
#: When a process and its worker have ended.
ENDS = (
    select(heartbeats.c.worker, heartbeats.c.ended_at, WORKERS.c.ended_at.label("worker_ended_at"))
    .outerjoin(WORKERS, WORKERS.c.owner == heartbeats.c.worker)
    .where(heartbeats.c.owner == bindparam("of_owner"))
)


class Ending(StrEnum):
    """How a process ended, as far as the ledger knows."""

    STOPPED = "stopped"  #: its worker was stopped
    DIED = "died"  #: it was found dead, by its worker or another one on its host
    SILENT = "silent"  #: it was not renewed for three intervals: its host or network failed, or it is frozen


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """A process of a worker; see `tables.heartbeats` for its fields."""

    owner: str
    worker: str
    name: str
    queues: tuple[str, ...] | None
    consumed: tuple[str, ...] | None
    consumed_at: datetime
    beats: int
    started_at: datetime
    seen_at: datetime
    ended_at: datetime | None
    ending: Ending | None
    fault: HostFault | None  #: why the worker takes no tasks
    faulty_since: datetime | None
    read_at: datetime  #: when it was read, by the ledger's clock

    @property
    def is_worker(self) -> bool:
        """Whether it is a worker's main process."""
        return self.queues is not None

    @property
    def is_embedded(self) -> bool:
        """Whether it belongs to the stack of one run, which ends it without stopping it."""
        return self.name.endswith(f"@{EMBEDDED}")

    @property
    def unconsumed(self) -> tuple[str, ...]:
        """The queues that the worker was started for, but takes no tasks from."""
        return tuple(sorted(set(self.queues or ()) - set(self.consumed or ())))

    def is_silent(self, silent_after: timedelta) -> bool:
        """Whether it was not renewed for so long, see `RecoverySettings`, that its process is not a living one."""
        return self.read_at - self.seen_at > max(silent_after, MIN_SILENCE)

    @property
    def is_long_silent(self) -> bool:
        """Whether it was not heard of for longer than a living worker may be silent, whatever its interval."""
        return self.read_at - self.seen_at > LONGEST_SILENCE

    @property
    def host(self) -> str:
        return host_name(self.owner)

    def describe_fault(self) -> str:
        """Describe why the worker cannot work."""
        assert self.fault is not None
        since = f" since {self.faulty_since:%H:%M:%S} UTC" if self.faulty_since else ""
        return f"{self.name} cannot work on host {self.host}{since}: {self.fault.reason}"

    def describe_silence(self) -> str:
        """Describe a silent process and, where it was found, when its work was given to others."""
        text = f"{self.name} silent since {self.seen_at:%H:%M:%S} UTC"
        return text if self.ended_at is None else f"{text}, taken over at {self.ended_at:%H:%M:%S} UTC"


class HeartbeatStore(LedgerStore):
    """The heartbeats of all workers that use the ledger."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._is_postgresql = engine.dialect.name == "postgresql"

    def register(self, owner: str, *, worker: str, name: str, queues: Sequence[str] | None = None) -> None:
        """Add a process, or begin anew with one that is known. `queues` only for the worker's main process."""
        now = self._now()
        values: dict[str, Any] = {
            "worker": worker,
            "name": name,
            "queues": None if queues is None else list(queues),
            "consumed": None if queues is None else list(queues),
            "consumed_at": now,
            "seen_at": now,
            "ended_at": None,
            "ending": None,
            **_fault_columns(None, now),
        }
        is_owner = heartbeats.c.owner == owner
        with self._write(durable=False) as connection:
            change = update(heartbeats).where(is_owner).values(**values, beats=heartbeats.c.beats + 1)
            if not connection.execute(change).rowcount:
                connection.execute(insert(heartbeats).values(owner=owner, beats=0, started_at=now, **values))
            connection.execute(delete(heartbeats).where(heartbeats.c.ended_at < utcnow() - KEPT_FOR))

    def renew(self, owners: Collection[str], *, consumed: Mapping[str, Sequence[str]] | None = None) -> None:
        """Renew the heartbeats of living processes, also of one that was found silent.

        That is safe: what it had claimed and another process has taken over, it does not get back.
        `consumed` has, by owner, the queues that a worker takes tasks from now, where these have changed.
        """
        values: dict[str, Any] = {"seen_at": self._now(), "ended_at": None, "ending": None}
        with self._write_one(durable=False) as connection:
            connection.execute(
                update(heartbeats)
                .where(heartbeats.c.owner.in_(list(owners)))
                .values(**values, beats=heartbeats.c.beats + 1)
            )
            for owner, queues in (consumed or {}).items():
                connection.execute(
                    update(heartbeats)
                    .where(heartbeats.c.owner == owner)
                    .values(consumed=list(queues), consumed_at=self._now())
                )

    def record_fault(self, worker: str, fault: HostFault | None) -> None:
        """Record what keeps a worker's host from working; None: nothing does any more."""
        with self._write_one(durable=False) as connection:
            connection.execute(
                update(heartbeats).where(heartbeats.c.owner == worker).values(_fault_columns(fault, self._now()))
            )

    def end(self, beats_by_owner: Mapping[str, int], ending: Ending) -> list[str]:
        """Record the end of processes that were not renewed since; returns those that this call ended."""
        is_unchanged = (
            heartbeats.c.owner == bindparam("of_owner"),
            heartbeats.c.beats == bindparam("of_beats"),
            heartbeats.c.ended_at.is_(None),
        )
        change = update(heartbeats).where(*is_unchanged).values(ended_at=self._now(), ending=ending.value)
        ended: list[str] = []
        with self._write(durable=False) as connection:
            for owner, beats in sorted(beats_by_owner.items()):
                if connection.execute(change, {"of_owner": owner, "of_beats": beats}).rowcount:
                    ended.append(owner)
        return ended

    def end_worker(self, worker: str) -> None:
        """Record that a worker and its processes were stopped."""
        values: dict[str, Any] = {"ended_at": self._now(), "ending": Ending.STOPPED.value}
        is_running = (heartbeats.c.worker == worker, heartbeats.c.ended_at.is_(None))
        with self._write_one(durable=False) as connection:
            connection.execute(update(heartbeats).where(*is_running).values(values))

    def list_running(self, *, worker: str | None = None) -> list[Heartbeat]:
        """Return the processes whose end was not noticed, and those of `worker` that were found silent."""
        is_running = heartbeats.c.ended_at.is_(None)
        if worker is None:
            return self._select(is_running)
        was_silent = and_(heartbeats.c.worker == worker, heartbeats.c.ending == Ending.SILENT.value)
        return self._select(or_(is_running, was_silent))

    def list_workers(self) -> list[Heartbeat]:
        """Return the main processes of all workers, also of those that have ended in the last days."""
        return self._select(heartbeats.c.owner == heartbeats.c.worker)

    def list_silent(self, since: datetime) -> list[Heartbeat]:
        """Return the processes that were found silent since the moment, and were not heard of again."""
        return self._select(heartbeats.c.ending == Ending.SILENT.value, heartbeats.c.ended_at >= since)

    def list_lost_workers(self) -> list[Heartbeat]:
        """Return the main processes of workers that ended without being stopped, in the last days."""
        was_lost = heartbeats.c.ending.in_([Ending.DIED.value, Ending.SILENT.value])
        return self._select(was_lost, heartbeats.c.owner == heartbeats.c.worker)

    def is_lost(self, owner: str) -> bool:
        """Return whether others may take over what the process has claimed.

        It has ended, as its worker or another one has recorded, or its worker is known to be dead. A process that died
        while its worker lives is left to that worker, which counts its death. Without a heartbeat, as of a command,
        only a process of this host is known to be dead.
        """
        with self._read() as connection:
            row = connection.execute(ENDS, {"of_owner": owner}).one_or_none()
        if row is None:
            return is_dead(owner)
        return row.ended_at is not None or row.worker_ended_at is not None or is_dead(row.worker)

    def _select(self, *conditions: Any) -> list[Heartbeat]:
        now = self._now()
        query = select(heartbeats, *([now.label("read_at")] if self._is_postgresql else [])).where(*conditions)
        with self._read() as connection:
            rows = connection.execute(query.order_by(heartbeats.c.seen_at)).mappings()
            return [_heartbeat_from_row(row, now) for row in rows]

    def _now(self) -> Any:
        """Return the ledger's time: hosts' clocks differ. A SQLite file is used by one host."""
        return func.clock_timestamp() if self._is_postgresql else utcnow()


def _fault_columns(fault: HostFault | None, now: Any) -> dict[str, Any]:
    if fault is None:
        return {"fault": None, "fault_reason": None, "faulty_since": None}
    return {"fault": fault.kind.value, "fault_reason": fault.reason, "faulty_since": now}


def _heartbeat_from_row(row: RowMapping, now: Any) -> Heartbeat:
    values: dict[str, Any] = {"read_at": now, **row}
    values |= {name: None if row[name] is None else tuple(row[name]) for name in ("queues", "consumed")}
    kind, reason = values.pop("fault"), values.pop("fault_reason")
    values["fault"] = None if kind is None else HostFault(kind=FaultKind(kind), reason=reason or "")
    values["ending"] = None if row["ending"] is None else Ending(row["ending"])
    return Heartbeat(**values)
