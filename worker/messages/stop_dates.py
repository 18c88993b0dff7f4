"""Kill the running tasks of a cancelled run's dates, on command.

The ledger has cancelled the dates before the command is sent; a task that it does not reach notices between its steps.
A task of dates publishes nothing, so it may be killed at any point.
"""

from __future__ import annotations

from typing import Any

import structlog
from celery.worker.control import control_command
from celery.worker.state import active_requests

from gated_backfill.common.broker.celery_app import PROCESS_DATE, STOP_DATES

log = structlog.get_logger()

KILL_SIGNAL = "KILL"  #: a job may run code that ignores other signals


@control_command(name=STOP_DATES, args=[("run", str)], signature="RUN")
def stop_dates(state: Any, run: str = "", **_: Any) -> dict[str, list[str]]:
    """Kill this worker's processes that build dates of the run; the worker replaces them."""
    stopped = [request for request in list(active_requests) if builds_dates_of_run(request.name, request.args, run)]
    for request in stopped:
        request.terminate(state.consumer.pool, signal=KILL_SIGNAL)
    days = [str(day) for request in stopped for day in request.args[1:]]
    log.warning("date_tasks_killed", run=run, days=days)
    return {"ok": days}


def builds_dates_of_run(task: str, arguments: list[Any], run: str) -> bool:
    return task == PROCESS_DATE and list(arguments[:1]) == [run]
