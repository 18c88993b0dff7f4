"""`backfill undo`: restore the rows that a run replaced."""

from __future__ import annotations

import click

from gated_backfill.common.config.settings import read_settings
from gated_backfill.producer.cli.options import yes_option
from gated_backfill.producer.context import current_user, open_context
from gated_backfill.producer.runs.post_run import refresh_run_metadata
from gated_backfill.producer.runs.undo import plan_undo, undo_run
from gated_backfill.producer.terminal.console import confirm, make_console


@click.command
@click.argument("run_id", metavar="RUN", help="The run to undo.")
@click.option("--dry-run", is_flag=True, help="Show the effect on each date. Changes nothing.")
@yes_option
def undo(run_id: str, dry_run: bool, yes: bool) -> None:
    """Restore the rows and checkpoints that the dates of a run had before it.

    A date that had no checkpoint before the run has none afterwards. Refuses, and changes nothing, when one of the
    dates was written after the run, or when the rows that the run replaced are no longer kept.
    """
    context = open_context(read_settings())
    console = make_console()
    undo_plan = plan_undo(run_id, context)
    console.print(f"undo of run {run_id}, {undo_plan.describe()}")
    if dry_run:
        return
    count = len(undo_plan.days)
    confirm(yes, f"Undo {count} date(s)?", "undone")
    restored = undo_run(undo_plan, context, current_user())
    refresh_run_metadata(run_id, context)
    unbuilt = count - len(restored)
    suffix = f"; {unbuilt} have no checkpoint any more and count as not built" if unbuilt else ""
    console.print(f"undone: {count} date(s), {len(restored)} have their earlier checkpoints again{suffix}")
