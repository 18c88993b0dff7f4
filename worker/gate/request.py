"""A gate's task, as the worker's main process sees it."""

from __future__ import annotations

from gated_backfill.common.ledger import Ledger
from gated_backfill.worker.messages.claiming_request import ClaimingRequest


class GateRequest(ClaimingRequest):
    """Counts the death of a gate's process; its window is given up when too many have died on it."""

    def record_death(self, owner: str, ledger: Ledger, max_deaths: int) -> None:
        run_id, number = self.args
        ledger.windows.record_death(run_id, number, owner)
