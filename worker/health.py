"""Health check of a worker: whether it renews its heartbeat and takes tasks from every queue it was started for.

`python -m gated_backfill.worker.health NAME@HOST` exits with 0 if so, and otherwise says in one line why not. A worker
that lost its consumer still answers a ping.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import BackfillError
from gated_backfill.common.ledger import Ledger, open_ledger
from gated_backfill.common.ledger.stores.heartbeats import Heartbeat

PATIENCE_SECONDS = 5.0  #: in which a worker that starts, or connects to its broker again, may become healthy


def find_problem(name: str, running: Sequence[Heartbeat], silent_after: timedelta) -> str | None:
    """Return why the worker of that name is not healthy; None if it is."""
    workers = [worker for worker in running if worker.is_worker and worker.name == name]
    if not workers:
        return f"no worker {name} has a heartbeat"
    worker = max(workers, key=lambda worker: worker.seen_at)
    if worker.read_at - worker.seen_at > silent_after:
        return worker.describe_silence()
    if worker.fault is not None:
        return worker.describe_fault()
    return f"{name} takes no tasks from {', '.join(worker.unconsumed)}" if worker.unconsumed else None


def wait_until_healthy(name: str, ledger: Ledger, silent_after: timedelta) -> str | None:
    """Return what is wrong with the worker after `PATIENCE_SECONDS`, or None as soon as it is healthy."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (problem := find_problem(name, ledger.heartbeats.list_running(), silent_after)) is not None:
        if time.monotonic() > deadline:
            return problem
        time.sleep(1)
    return None


def main() -> None:
    (name,) = sys.argv[1:]
    settings = read_settings()
    try:
        with closing(open_ledger(settings.ledger_url, create=False)) as ledger:
            problem = wait_until_healthy(name, ledger, settings.silent_after)
    except BackfillError as exc:
        problem = str(exc)
    raise SystemExit(problem)


if __name__ == "__main__":
    main()
