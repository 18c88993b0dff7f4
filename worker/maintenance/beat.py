"""Beat's scheduler. Imported by the process that runs `celery beat`, and by no worker.

Celery 5.7's `PersistentScheduler` stops if its file holds a class that cannot be imported; this one does not.
"""

from __future__ import annotations

import structlog
from celery.beat import PersistentScheduler

log = structlog.get_logger()


class SlotScheduler(PersistentScheduler):
    """A scheduler that discards the entries of a schedule file that another version wrote.

    Nothing is lost: which slots are done is in the ledger, and missed ones are sent again.
    """

    def _create_schedule(self) -> None:
        try:
            super()._create_schedule()  # pyright: ignore[reportAttributeAccessIssue] - celery.beat has no types
        except (ImportError, AttributeError) as exc:  # a file holds our schedule class by its import path
            log.warning("beat_schedule_discarded", error=str(exc))
            self._store["entries"] = {}  # pyright: ignore[reportAttributeAccessIssue]
