"""`backfill down`: stop the stack."""

from __future__ import annotations

import click

from gated_backfill.common.config.settings import Settings, read_settings
from gated_backfill.common.errors import BackfillError
from gated_backfill.common.ledger import open_ledger_of_command
from gated_backfill.producer.stack.shutdown import shut_down_stack
from gated_backfill.producer.stack.supervised_stack import clear_heartbeat
from gated_backfill.producer.terminal.console import Console, make_console


@click.command
def down() -> None:
    """Stop the stack that `backfill up` started; tasks in progress have BACKFILL_STOP_SECONDS (30) to end.

    Lists the unfinished runs: they continue after the next `backfill up`.
    """
    settings = read_settings()
    console = make_console()
    result = shut_down_stack(settings)
    if result.killed:
        console.print("the stack did not stop in time and was killed")
    if result.was_up:
        console.print("stopped")
    elif result.was_dead:
        console.print("the stack was not running: its supervisor had been killed; its remains were removed")
    else:
        console.print("nothing to stop: the stack is not running")
    if result.was_dead or result.killed:
        clear_heartbeat(settings)
    if result.was_up or result.was_dead:
        _list_unfinished_runs(settings, console)


def _list_unfinished_runs(settings: Settings, console: Console) -> None:
    try:
        runs = open_ledger_of_command(settings.ledger_url, only_looks=True).runs.list_active_runs()
    except BackfillError as exc:
        console.print(f"cannot list the unfinished runs: {exc}")
        return
    for run in runs:
        if run.owner is None:
            console.print(f"run {run.id} of {run.job} is unfinished: it continues after `backfill up`")
