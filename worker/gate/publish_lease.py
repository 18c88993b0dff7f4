"""The lease on publishing to a target: gates take turns, instead of aborting each other's transactions.

What is published does not depend on it: the warehouse excludes transactions that conflict, and an aborted one is
retried.
"""

from __future__ import annotations

import random
import time
from collections.abc import Generator
from contextlib import contextmanager

import structlog

from gated_backfill.common.process.clock import utcnow
from gated_backfill.worker.gate.window import LeasedWindow
from gated_backfill.worker.releases import release_despite_outage

log = structlog.get_logger()

POLL_SECONDS = (0.2, 1.0)  #: range of the pauses, so that waiting gates do not ask the ledger all at once


@contextmanager
def publishing_lease(window: LeasedWindow) -> Generator[None]:
    """Wait until no other gate publishes to the target, and keep others from it meanwhile.

    A gate that holds the lease and is lost or too late is not waited for. Nor is anything where the warehouse lets
    publications to one table go on at once. Raises `LeaseLost` when this gate loses its window while it waits.
    """
    if not window.deps.warehouse.publications_conflict:
        yield
        return
    _wait_for_turn(window)
    try:
        yield
    except BaseException as exc:
        _release(window, is_stopped=not isinstance(exc, Exception))
        raise
    _release(window, is_stopped=False)


def _wait_for_turn(window: LeasedWindow) -> None:
    """Return once the lease is taken; also without it, after as long as a gate may take."""
    target, patience = window.job.target.table, window.deps.settings.gate_lease.total_seconds()
    deadline = time.monotonic() + patience
    if _claim(window):
        return
    log.info("publication_waits", target=target)
    while not _claim(window):
        if time.monotonic() > deadline:
            log.warning("publication_waited_in_vain", target=target, seconds=round(patience))
            return
        window.renew_lease()
        time.sleep(random.uniform(*POLL_SECONDS))  # noqa: S311 - no secret


def _claim(window: LeasedWindow) -> bool:
    deps = window.deps
    until = utcnow() + deps.settings.gate_lease
    return deps.ledger.targets.claim_publishing(
        window.job.target.table, deps.owner, until, is_dead=deps.ledger.heartbeats.is_lost
    )


def _release(window: LeasedWindow, *, is_stopped: bool) -> None:
    targets, target, owner = window.deps.ledger.targets, window.job.target.table, window.deps.owner
    release_despite_outage(lambda: targets.release_publishing(target, owner), is_stopped=is_stopped)
