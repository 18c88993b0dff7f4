"""`backfill demo`: a season with the incident in it, the job over it, and the incident as it happened."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.config.warehouse_url import LOCAL, is_local
from gated_backfill.common.errors import UserError
from gated_backfill.common.ledger import DateState, Progress, Run, RunState
from gated_backfill.common.model.coverage import Fallback
from gated_backfill.common.model.dates import DateRange
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.logs import logging_to_file
from gated_backfill.common.storage.files import write_atomically
from gated_backfill.producer.context import Site, open_site
from gated_backfill.producer.demo.page import (
    Standing,
    print_done,
    print_flow,
    print_made,
    print_next,
    print_planned,
    print_replay,
    print_source_checks,
    standing,
)
from gated_backfill.producer.planning.plan import Action, Plan, Reprocess, Request
from gated_backfill.producer.runs.attended import interrupted_in_words
from gated_backfill.producer.runs.post_run import end_told, note_end
from gated_backfill.producer.runs.session import Interrupted, Launch, decide, execute, release_what_is_dead
from gated_backfill.producer.stack.signals import stoppable
from gated_backfill.producer.terminal.exit_codes import COMPLETE, INCOMPLETE, INTERRUPTED
from gated_backfill.producer.terminal.runs import print_run
from gated_backfill.producer.terminal.watcher import Watcher

JOB = "player_composite_factors"
MARKER = "demo.json"  #: in the home: in which warehouse the tables are ours, and whether they are whole
FORMAT = 1
WORKERS = 2


def run_demo(settings: Settings, console: Console) -> int:
    """The demo on the embedded stack, whatever broker is set; returns the exit code. Its runs are told to nobody.

    Raises `UserError`, and changes nothing, when the warehouse is not local or holds such tables of somebody else's.
    """
    started = time.monotonic()
    _refuse_other_warehouses(settings)
    site = open_site(settings.model_copy(update={"broker": None, "alerts": None}))
    log_file = settings.home / "logs" / "command.log"
    with stoppable(), logging_to_file(log_file), end_told(site, note_end) as opened:
        try:
            return _run(site, console, started, opened)
        except Interrupted as stop:
            console.print(interrupted_in_words(stop))
            return INTERRUPTED


def _run(site: Site, console: Console, started: float, opened: Callable[[Run], None]) -> int:
    from gated_backfill.producer.demo.season import FIRST_DATE, INCIDENT, LAST_DATE

    made = _make_tables_once(site)
    print_made(console, site, DateRange(start=FIRST_DATE, through=LAST_DATE), new=made)
    season = Request(job=JOB, days=tuple(DateRange(start=FIRST_DATE, through=LAST_DATE).days()))
    release_what_is_dead(find_job(JOB), season, site)
    launch = Launch(request=season, window=site.settings.window, workers=WORKERS)
    plan = decide(launch, find_job(JOB), site)
    if not plan.of(Action.BUILD) and not plan.of(Action.BLOCKED):
        print_done(console, plan)
        print_next(console, _season_run(site))
        return COMPLETE
    print_planned(console, plan)
    progress = _execute(launch, plan, site, console, opened)
    if progress.run.state is not RunState.SUCCEEDED:
        print_run(console, progress, site.ledger.digest(progress.run.id))
        return INCOMPLETE
    print_source_checks(console, site, progress)
    if not replay(site, console, sorted(INCIDENT), opened):
        return INCOMPLETE
    print_flow(console, progress, time.monotonic() - started)
    print_next(console, progress.run.id)
    return COMPLETE


def replay(site: Site, console: Console, days: list[date], opened: Callable[[Run], None] = lambda _: None) -> bool:
    """Build the incident's dates with the fallback off and no pre-flight.

    Tells whether the gate blocked them all and left what was published, and its checkpoints, as they were.
    """
    request = Request(job=JOB, days=tuple(days), reprocess=Reprocess.ALL, fallback=Fallback.OFF)
    launch = Launch(request=request, window=len(days), workers=1, sequential=True, preflight=False)
    plan = decide(launch, find_job(JOB), site)
    before = standing(site, days)
    progress = execute(launch, plan, site, lambda _: None, opened)
    return _replay_held(site, console, progress, before)


def _replay_held(site: Site, console: Console, progress: Progress, before: dict[date, Standing]) -> bool:
    rows = site.ledger.dates(progress.run.id)
    after = standing(site, list(before))
    print_replay(console, rows, before, after)
    return after == before and all(row.state is DateState.BLOCKED for row in rows)


def _season_run(site: Site) -> str:
    """The run that built the season's last date."""
    from gated_backfill.producer.demo.season import LAST_DATE

    return site.ledger.checkpoints(JOB, LAST_DATE, LAST_DATE)[LAST_DATE].run_id


def _execute(launch: Launch, plan: Plan, site: Site, console: Console, opened: Callable[[Run], None]) -> Progress:
    with Watcher(console).showing() as watcher:
        return execute(launch, plan, site, watcher.show, opened)


def _make_tables_once(site: Site) -> bool:
    """Make the season's tables unless an earlier demo did; returns whether they were made now."""
    from gated_backfill.producer.demo.season import load_season

    marker = site.settings.home.absolute() / MARKER
    where = _warehouse_from_home(site.settings)
    known = _read_marker(marker)
    if known is None:
        _refuse_tables_of_others(site)
    elif known.get("warehouse") != where:
        raise UserError(
            f"{marker} is of a demo in another warehouse: run the demo with that BACKFILL_WAREHOUSE "
            f"or with another BACKFILL_HOME"
        )
    made = {"format": FORMAT, "warehouse": where, "state": "made"}
    if known == made:
        return False
    write_atomically(marker, json.dumps(made | {"state": "making"}).encode())
    load_season(site.warehouse)
    write_atomically(marker, json.dumps(made).encode())
    return True


def _refuse_other_warehouses(settings: Settings) -> None:
    """The demo makes tables: in files, or in a BigQuery emulator, but in nobody's project."""
    if not (is_local(settings.warehouse_url) or "endpoint=" in settings.warehouse_url):
        raise UserError("the demo makes its tables in a local warehouse: unset BACKFILL_WAREHOUSE for it")


def _warehouse_from_home(settings: Settings) -> str:
    """The warehouse's folder as seen from the home, so that a home may be moved with the warehouse in it."""
    if not is_local(settings.warehouse_url):
        return settings.warehouse_url
    return os.path.relpath(settings.warehouse_url.removeprefix(LOCAL), settings.home)


def _read_marker(marker: Path) -> dict[str, Any] | None:
    damaged = f"{marker} is damaged: remove it together with the demo's tables"
    try:
        found: object = json.loads(marker.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as exc:
        raise UserError(damaged) from exc
    if not isinstance(found, dict):
        raise UserError(damaged)
    return cast("dict[str, Any]", found)


def _refuse_tables_of_others(site: Site) -> None:
    for role, name in find_job(JOB).tables():
        if role != "target" and site.warehouse.describe(TableName.parse(name)) is not None:
            raise UserError(
                f"the warehouse already holds {name}, which the demo did not make: "
                f"run the demo with another BACKFILL_HOME"
            )
