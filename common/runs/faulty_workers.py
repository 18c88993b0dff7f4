"""Workers whose hosts cannot work: what they cannot use, and whether anybody else takes the tasks of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gated_backfill.common.ledger import Ledger, Run
from gated_backfill.common.ledger.stores.heartbeats import Heartbeat
from gated_backfill.common.model.host_fault import FaultKind
from gated_backfill.common.model.scheduling.queues import DATES_QUEUES, GATE_QUEUE
from gated_backfill.common.process.identity import host_name

#: The queues of each kind of worker, of which a run needs one that works.
ROLES = {"worker": frozenset(DATES_QUEUES), "gate": frozenset({GATE_QUEUE})}


@dataclass(frozen=True, kw_only=True)
class FaultyWorkers:
    """The workers that cannot work now, oldest fault first."""

    workers: tuple[Heartbeat, ...]
    stopped_roles: tuple[str, ...]  #: kinds of workers of which none can work, so that nothing moves: worker, gate

    def describe_stop(self) -> str:
        """Why nothing moves; empty if something does."""
        if not self.stopped_roles:
            return ""
        queues = frozenset().union(*(ROLES[role] for role in self.stopped_roles))
        stopped = [worker for worker in self.workers if not queues.isdisjoint(worker.queues or ())]
        reasons = dict.fromkeys(f"{worker.host}: {worker.fault.reason}" for worker in stopped if worker.fault)
        return f"no {' and no '.join(self.stopped_roles)} can work: {'; '.join(reasons)}"

    def as_json(self) -> list[dict[str, Any]]:
        return [
            {
                "worker": worker.name,
                "host": worker.host,
                "fault": worker.fault.kind.value,
                "reason": worker.fault.reason,
                "since": worker.faulty_since,
            }
            for worker in self.workers
            if worker.fault is not None
        ]


def find_faulty_workers(running: Sequence[Heartbeat]) -> FaultyWorkers:
    """Return the living workers among the processes that cannot work, and of which kinds none can."""
    living = [one for one in running if one.is_worker and not one.is_long_silent]
    faulty = [worker for worker in living if worker.fault is not None]
    stopped_roles: list[str] = []
    for role, queues in ROLES.items():
        workers = [worker for worker in living if not queues.isdisjoint(worker.queues or ())]
        if workers and all(worker.fault is not None for worker in workers):
            stopped_roles.append(role)
    faulty.sort(key=lambda worker: (worker.faulty_since or worker.seen_at, worker.name))
    return FaultyWorkers(workers=tuple(faulty), stopped_roles=tuple(stopped_roles))


def count_faults(workers: Sequence[Heartbeat]) -> dict[tuple[str, str, str], int]:
    """Return by worker, host and kind of fault whether a living worker has it: 0 also for workers that have ended."""
    counts: dict[tuple[str, str, str], int] = {}
    for worker in workers:
        if worker.is_embedded:
            continue
        is_living = worker.ended_at is None and not worker.is_long_silent
        for kind in FaultKind:
            has_fault = is_living and worker.fault is not None and worker.fault.kind is kind
            key = (worker.name, worker.host, kind.value)
            counts[key] = max(counts.get(key, 0), int(has_fault))
    return counts


def list_faulty_workers(ledger: Ledger, run: Run | None = None) -> FaultyWorkers:
    """Return the workers that cannot work: those that serve the run, or all that run on a lasting broker."""
    return find_faulty_workers([one for one in ledger.heartbeats.list_running() if _serves(one, run)])


def _serves(process: Heartbeat, run: Run | None) -> bool:
    if run is None or run.owner is None:
        return not process.is_embedded
    return process.is_embedded and process.host == host_name(run.owner)
