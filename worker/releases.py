"""Release of a claim that a process gives up, also while the ledger is unavailable."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog
from billiard.exceptions import SoftTimeLimitExceeded

from gated_backfill.common.errors import LedgerUnavailable

log = structlog.get_logger()

#: Pauses before each attempt; a database server takes up to a minute to restart.
DELAYS_SECONDS = (0.0, 0.2, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
DELAYS_WHEN_STOPPED_SECONDS = DELAYS_SECONDS[:3]


def release_despite_outage(release: Callable[[], object], *, is_stopped: bool) -> None:
    """Call `release`, and again while the ledger is unavailable.

    A claim that stays in the ledger keeps all other workers from the work until its lease expires, although this
    process lives and does nothing for it. `is_stopped`: the process is about to end, and has little time.
    """
    for delay in DELAYS_WHEN_STOPPED_SECONDS if is_stopped else DELAYS_SECONDS:
        try:
            time.sleep(delay)
            release()
        except LedgerUnavailable as exc:
            log.warning("claim_not_released", error=str(exc))
        except SoftTimeLimitExceeded:
            return
        else:
            return
