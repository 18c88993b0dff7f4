"""`backfill watch`: follow a run."""

from __future__ import annotations

import click

from gated_backfill.common.broker.celery_app import make_app
from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import UserError
from gated_backfill.producer.cli.options import latest_run_argument
from gated_backfill.producer.context import open_context
from gated_backfill.producer.runs.launch import follow_run
from gated_backfill.producer.terminal.console import make_console
from gated_backfill.producer.terminal.exit_codes import INCOMPLETE, INTERRUPTED
from gated_backfill.producer.terminal.runs import exit_code_for_run, print_run
from gated_backfill.producer.terminal.watcher import RunWatcher


@click.command
@latest_run_argument
def watch(run_id: str | None) -> None:
    """Follow a run to its end: dates done, blocked and failed, dates per second, time left."""
    settings = read_settings()
    context = open_context(settings, only_looks=True)
    runs = context.ledger.runs.list_latest_runs(1)
    if run_id is None and not runs:
        raise UserError("no run was launched yet")
    run = context.ledger.runs.get_run(run_id or runs[0].id)
    app = None
    if run.owner is None and context.settings.broker is not None:
        app = make_app(settings, context.settings.broker.get_secret_value())
    console = make_console()
    try:
        with RunWatcher(console).live_display() as watcher:
            progress = follow_run(run.id, context, watcher.update, app=app)
    except KeyboardInterrupt:
        console.print(f"run {run.id} continues")
        raise SystemExit(INTERRUPTED) from None
    if not progress.run.has_ended:
        console.print(f"the process of run {run.id} has died: launch the same command again to complete its dates")
        raise SystemExit(INCOMPLETE)
    summary, actions = context.ledger.dates.get_run_summary(run.id), context.ledger.actions.list_actions(run.id)
    print_run(console, progress, summary, actions)
    raise SystemExit(exit_code_for_run(progress))
