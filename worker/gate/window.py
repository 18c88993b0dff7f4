"""A window under the lease of one gate: every change of it requires that lease."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gated_backfill.common.ledger import DateRow, DateState, Run, WindowState
from gated_backfill.common.ledger.rows import failure_columns
from gated_backfill.common.model.host_fault import HostFault
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.publication import Publication
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.runs.release import fence_publications
from gated_backfill.common.warehouse.usage import give_back_usage, take_usage
from gated_backfill.worker.dependencies import Deps
from gated_backfill.worker.host.checks import HostFaulty, is_suspicious


class LeaseLost(Exception):
    """The lease expired and another gate took the window, or the run was ended meanwhile."""


@dataclass(frozen=True, kw_only=True)
class LeasedWindow:
    """A window that this gate has claimed. Another gate may claim it once the lease has expired."""

    run: Run
    number: int
    generation: int  #: of its lease
    job: Job
    deps: Deps

    @property
    def holder(self) -> tuple[int, str]:
        """What the ledger compares with the window's lease before a change."""
        return self.number, self.deps.owner

    @property
    def publication(self) -> Publication:
        return Publication(run=self.run.id, window=self.number, generation=self.generation)

    def fence_earlier_gates(self, dates: Sequence[DateRow]) -> None:
        """Have the warehouse refuse what earlier gates of this window may still publish, see `fence_publications`."""
        self._fence(dates, self.generation)

    def fence_own_publication(self, dates: Sequence[DateRow]) -> None:
        """Have the warehouse refuse what this gate may still publish: its answer to a publication may be lost.

        The next lease on the window has a generation that is not lower.
        """
        self._fence(dates, self.generation + 1)

    def _fence(self, dates: Sequence[DateRow], generation: int) -> None:
        target = TableName.parse(self.job.target.table)
        fence_publications(self.run, dates, {self.number: generation}, [target], self.deps.warehouse)

    def renew_lease(self) -> None:
        """Renew the lease; called before each step that changes anything. Raises `LeaseLost`."""
        until = utcnow() + self.deps.settings.gate_lease
        if not self.deps.ledger.windows.renew_window(self.run.id, self.number, self.deps.owner, until):
            raise LeaseLost(f"window {self.number} of run {self.run.id}")

    def move(self, row: DateRow, to: DateState, **columns: Any) -> bool:
        """Move a date, if its state is still that of `row` and the lease is still this gate's."""
        return self.deps.ledger.dates.move_date(
            self.run.id, row.day, expect=row.state, to=to, gate=self.holder, **columns
        )

    def fail(self, row: DateRow, kind: str, reason: str) -> None:
        self.move(row, DateState.FAILED, **failure_columns(kind, reason, reason))

    def find_fault(self, exc: Exception) -> HostFault | None:
        """Return what keeps this host from working, if that may be the cause of the error.

        Raises `HostFaulty` instead if another host could close the window.
        """
        fault = self.deps.find_fault(self.run, publishes=True) if is_suspicious(exc) else None
        if fault is not None and not self.deps.is_only_host:
            raise HostFaulty(fault) from exc
        return fault

    def release(self, to: WindowState) -> bool:
        """End the lease and leave the window open or closed; False if the lease was lost."""
        usage = take_usage(self.run.id)
        released = self.deps.ledger.windows.release_window(
            self.run.id, self.number, self.deps.owner, to=to, usage=usage
        )
        if usage is not None and not released:
            give_back_usage(self.run.id, usage)
        return released
