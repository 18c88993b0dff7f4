"""`backfill demo`: build a season that contains the incident, then replay the incident without the fallback."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, cast

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.ledger import DateState, Run, RunState
from gated_backfill.common.model.coverage import Fallback
from gated_backfill.common.model.dates import DateRange
from gated_backfill.common.model.registry import EXAMPLE_JOB as JOB
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.logs import logging_to_file
from gated_backfill.common.process.signals import interrupt_on_signals
from gated_backfill.common.storage.files import write_atomically
from gated_backfill.producer.context import CommandContext, open_context
from gated_backfill.producer.demo.page import (
    print_done,
    print_next,
    print_plan_summary,
    print_replay,
    print_source_checks,
    print_tables,
    print_total,
    published_state,
)
from gated_backfill.producer.planning.plan import PlanAction, Reprocess, RunRequest
from gated_backfill.producer.runs.attended import describe_interruption
from gated_backfill.producer.runs.post_run import mark_run_reported, post_run_reporting
from gated_backfill.producer.runs.session import (
    Launch,
    LaunchInterrupted,
    execute_plan,
    plan_launch,
    release_interrupted_runs,
)
from gated_backfill.producer.terminal.console import Console
from gated_backfill.producer.terminal.exit_codes import COMPLETE, INCOMPLETE, INTERRUPTED
from gated_backfill.producer.terminal.runs import print_run
from gated_backfill.producer.terminal.watcher import RunWatcher

MARKER = "demo.json"  #: in the home: records the demo's warehouse and whether its tables are complete
MARKER_FORMAT = 1
WORKERS = 2


def run_demo(settings: Settings, console: Console) -> int:
    """Run the demo on the embedded stack, even when a broker is set, and send no alerts. Returns the exit code.

    Raises `UserError` before any change when the warehouse is not local, or has tables with the demo's names that the
    demo did not create.
    """
    started = time.monotonic()
    _check_warehouse(settings)
    context = open_context(settings.model_copy(update={"broker": None, "alerts": None}))
    log_file = settings.home / "logs" / "command.log"
    with interrupt_on_signals(), logging_to_file(log_file), post_run_reporting(context, mark_run_reported) as on_open:
        try:
            return _run(context, console, started, on_open)
        except LaunchInterrupted as stop:
            console.print(describe_interruption(stop))
            return INTERRUPTED


def _run(context: CommandContext, console: Console, started: float, on_open: Callable[[Run], None]) -> int:
    from gated_backfill.producer.demo.season import FIRST_DATE, INCIDENT, LAST_DATE

    created = _create_tables_once(context)
    print_tables(console, context, DateRange(start=FIRST_DATE, through=LAST_DATE), new=created)
    season = RunRequest(job=JOB, days=tuple(DateRange(start=FIRST_DATE, through=LAST_DATE).days()))
    release_interrupted_runs(find_job(JOB), season, context)
    launch = Launch(request=season, window=context.settings.window, workers=WORKERS)
    plan = plan_launch(launch, find_job(JOB), context)
    if not plan.steps_with(PlanAction.BUILD) and not plan.steps_with(PlanAction.BLOCKED):
        print_done(console, plan)
        print_next(console, _season_run(context))
        return COMPLETE
    print_plan_summary(console, plan)
    with RunWatcher(console).live_display() as watcher:
        progress = execute_plan(launch, plan, context, watcher.update, on_open)
    if progress.run.state is not RunState.SUCCEEDED:
        print_run(console, progress, context.ledger.dates.get_run_summary(progress.run.id))
        return INCOMPLETE
    print_source_checks(console, context, progress)
    if not replay_incident(context, console, sorted(INCIDENT), on_open):
        return INCOMPLETE
    print_total(console, progress, time.monotonic() - started)
    print_next(console, progress.run.id)
    return COMPLETE


def replay_incident(
    context: CommandContext, console: Console, days: list[date], on_open: Callable[[Run], None] = lambda _: None
) -> bool:
    """Build the incident's dates with the fallback off and no pre-flight.

    Returns whether the gate blocked every date and left the published rows and checkpoints unchanged.
    """
    request = RunRequest(job=JOB, days=tuple(days), reprocess=Reprocess.ALL, fallback=Fallback.OFF)
    launch = Launch(request=request, window=len(days), workers=1, sequential=True, preflight=False)
    plan = plan_launch(launch, find_job(JOB), context)
    before = published_state(context, days)
    progress = execute_plan(launch, plan, context, lambda _: None, on_open)
    rows = context.ledger.dates.list_dates(progress.run.id)
    after = published_state(context, days)
    print_replay(console, rows, before, after)
    return after == before and all(row.state is DateState.BLOCKED for row in rows)


def _season_run(context: CommandContext) -> str:
    """The id of the run that built the season's last date."""
    from gated_backfill.producer.demo.season import LAST_DATE

    return context.ledger.checkpoints.list_checkpoints(JOB, LAST_DATE, LAST_DATE)[LAST_DATE].run_id


def _create_tables_once(context: CommandContext) -> bool:
    """Create the season's tables unless an earlier demo did. Returns whether they were created now."""
    from gated_backfill.producer.demo.season import load_season

    marker = context.settings.home.absolute() / MARKER
    warehouse = _warehouse_from_home(context.settings)
    recorded = _read_marker(marker)
    if recorded is None:
        _check_no_foreign_tables(context)
    elif recorded.get("warehouse") != warehouse:
        raise UserError(
            f"{marker} is of a demo in another warehouse: run the demo with that BACKFILL_WAREHOUSE "
            f"or with another BACKFILL_HOME"
        )
    complete = {"format": MARKER_FORMAT, "warehouse": warehouse, "state": "made"}
    if recorded == complete:
        return False
    write_atomically(marker, json.dumps(complete | {"state": "making"}).encode())
    load_season(context.warehouse)
    write_atomically(marker, json.dumps(complete).encode())
    return True


def _check_warehouse(settings: Settings) -> None:
    """Raise `UserError` for a real BigQuery project: the demo makes tables only in files or an emulator."""
    if not (settings.warehouse_url.folder or settings.warehouse_url.is_emulator):
        raise UserError("the demo makes its tables in a local warehouse: unset BACKFILL_WAREHOUSE for it")


def _warehouse_from_home(settings: Settings) -> str:
    """The warehouse's folder relative to the home, so that a home can be moved with the warehouse in it."""
    folder = settings.warehouse_url.folder
    return settings.warehouse_url if folder is None else os.path.relpath(folder, settings.home)


def _read_marker(marker: Path) -> dict[str, Any] | None:
    damaged = f"{marker} is damaged: remove it together with the demo's tables"
    try:
        content: object = json.loads(marker.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as exc:
        raise UserError(damaged) from exc
    if not isinstance(content, dict):
        raise UserError(damaged)
    return cast("dict[str, Any]", content)


def _check_no_foreign_tables(context: CommandContext) -> None:
    for role, name in find_job(JOB).tables_by_role():
        if role != "target" and context.warehouse.describe(TableName.parse(name)) is not None:
            raise UserError(
                f"the warehouse already holds {name}, which the demo did not make: "
                f"run the demo with another BACKFILL_HOME"
            )
