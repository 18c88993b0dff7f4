"""`backfill status`: the state of a run and its dates."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import click

from gated_backfill.common.config.ledger_url import read_ledger_url
from gated_backfill.common.ledger import Ledger, Run, RunProgress, open_ledger_of_command
from gated_backfill.common.model.usage import Usage
from gated_backfill.common.runs.faulty_workers import list_faulty_workers
from gated_backfill.common.runs.interrupted import is_interrupted
from gated_backfill.common.runs.silent_workers import list_silent_workers
from gated_backfill.common.runs.stale_dates import StaleDates, find_stale_dates_of_runs
from gated_backfill.producer.cli.options import json_option, latest_run_argument
from gated_backfill.producer.terminal.console import line, make_console, print_json, styled
from gated_backfill.producer.terminal.exit_codes import COMPLETE
from gated_backfill.producer.terminal.runs import (
    exit_code_for_run,
    print_run,
    print_runs,
    print_source_checks,
    print_stale,
    run_json,
)

if TYPE_CHECKING:
    from gated_backfill.common.warehouse.protocol import Warehouse


@click.command
@latest_run_argument
@json_option
@click.option("--every-date", is_flag=True, help="Every date with its source check, not only the incomplete ones.")
@click.option("--last", type=click.IntRange(0, 1000), default=5, help="Number of latest runs to list.")
def status(run_id: str | None, as_json: bool, every_date: bool, last: int) -> None:
    """Show the state of a run: which dates are blocked or failed, why, and which entities are missing.

    Also, of a run that has ended, the dates that are stale because the job has another version now or, on local files,
    because a source or an input has changed since. On BigQuery, `plan` and `coverage` compare these.
    """
    with closing(open_ledger_of_command(read_ledger_url(), only_looks=True)) as ledger:
        runs = ledger.runs.list_latest_runs(max(last, 1))
        if run_id is None and not runs:
            if as_json:
                print_json(None)
            else:
                make_console().print("no run was launched yet: start with `backfill plan --help`")
            raise SystemExit(COMPLETE)
        progress = ledger.runs.get_progress(run_id or runs[0].id)
        if as_json:
            actions = ledger.actions.list_actions(progress.run.id)
            stale = _find_stale_dates(progress.run, ledger)
            silent = list_silent_workers(progress.run, ledger)
            faulty = None if progress.run.has_ended else list_faulty_workers(ledger, progress.run)
            dates = ledger.dates.list_dates(progress.run.id)
            print_json(run_json(progress, dates, actions, stale, silent, faulty, _read_usage(progress.run, ledger)))
        else:
            _print_status(ledger, progress, every_date=every_date)
            earlier = [run for run in runs if run.id != progress.run.id]
            if run_id is None and earlier and last:
                make_console().print()
                print_runs(make_console(), earlier)
    is_unfinished = not progress.run.has_ended and not is_interrupted(progress.run)
    raise SystemExit(COMPLETE if is_unfinished else exit_code_for_run(progress))


def _find_stale_dates(run: Run, ledger: Ledger) -> StaleDates:
    return find_stale_dates_of_runs([run], ledger, _open_warehouse)


def _read_usage(run: Run, ledger: Ledger) -> Usage | None:
    return ledger.runs.sum_usage([run.id]).get(run.id)


def _open_warehouse() -> Warehouse:
    from gated_backfill.common.config.settings import read_settings  # reads all settings, which takes long
    from gated_backfill.common.warehouse.backends import open_warehouse

    return open_warehouse(read_settings().warehouse_url)


def _print_status(ledger: Ledger, progress: RunProgress, *, every_date: bool) -> None:
    run = progress.run
    console = make_console()
    actions = ledger.actions.list_actions(run.id)
    print_run(console, progress, ledger.dates.get_run_summary(run.id), actions, _read_usage(run, ledger))
    print_stale(console, run, _find_stale_dates(run, ledger))
    for worker in list_silent_workers(run, ledger):
        console.print(line("  ", styled("silent", "yellow"), f"   {worker.describe_silence()}"))
    if not run.has_ended:
        faulty = list_faulty_workers(ledger, run)
        for worker in faulty.workers:
            console.print(line("  ", styled("faulty", "yellow"), f"   {worker.describe_fault()}"))
        if stop := faulty.describe_stop():
            console.print(line("  ", styled("stopped", "bold red"), f"  {stop}; the dates wait in the queue"))
    if flags := ledger.flags.list_open_flags(run.job):
        console.print(f"  flagged  {len(flags)} date(s): `backfill run --job {run.job} --flagged`")
    if every_date:
        print_source_checks(console, ledger.dates.list_dates(run.id))
