"""`backfill undo`: restore the rows that a run replaced."""

from __future__ import annotations

import click

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.process.logs import logging_to_file
from gated_backfill.common.warehouse.labels import label_work
from gated_backfill.producer.cli.options import yes_option
from gated_backfill.producer.context import CommandContext, current_user, open_context
from gated_backfill.producer.runs.post_run import refresh_run_metadata
from gated_backfill.producer.runs.undo import UndoPlan, plan_undo, release_interrupted_undo, undo_run
from gated_backfill.producer.terminal.console import confirm, make_console
from gated_backfill.producer.terminal.exit_codes import COMPLETE, INCOMPLETE


@click.command
@click.argument("run_id", metavar="RUN", help="The run to undo.")
@click.option("--dry-run", is_flag=True, help="Show the effect on each date. Changes nothing.")
@click.option(
    "--leave-written",
    is_flag=True,
    help="Leave dates as they are that were written since or whose earlier rows are no longer kept; undo the others.",
)
@yes_option
def undo(run_id: str, dry_run: bool, leave_written: bool, yes: bool) -> None:
    """Restore the rows and checkpoints that the dates of a run had before it.

    A date that had no checkpoint before the run has none afterwards: `plan` lists it as undone, and only
    `run --reprocess undone` (or `all`) builds it. Refuses, and changes nothing, when one of the dates was written after
    the run, or when the rows that the run replaced on it are no longer kept; `--leave-written` undoes the others. An
    interrupted undo is completed by the same command. Exit codes: 0 all dates are undone; 3 some dates are left as they
    are.
    """
    context = open_context(read_settings(), only_looks=dry_run)
    click.get_current_context().with_resource(label_work(run=run_id))
    console = make_console()
    undo_plan = _plan_or_release(run_id, context, leave_written=leave_written, dry_run=dry_run)
    console.print(f"undo of run {run_id}, {undo_plan.describe()}")
    if dry_run:
        return
    count = len(undo_plan.days)
    confirm(yes, f"Undo {count} date(s)?", "undone")
    try:
        reinstated = undo_run(undo_plan, context, current_user(context.settings))
    finally:
        with logging_to_file(context.settings.home / "logs" / "command.log"):
            refresh_run_metadata(run_id, context)
    without_checkpoint = count - len(reinstated)
    suffix = (
        f"; {without_checkpoint} have no checkpoint any more: `backfill run` builds them with --reprocess undone"
        if without_checkpoint
        else ""
    )
    console.print(f"undone: {count} date(s), {len(reinstated)} have their earlier checkpoints again{suffix}")
    raise SystemExit(INCOMPLETE if undo_plan.left else COMPLETE)


def _plan_or_release(run_id: str, context: CommandContext, *, leave_written: bool, dry_run: bool) -> UndoPlan:
    """Plan the undo; if it was interrupted and can't be completed, release its dates and say so in the error."""
    try:
        return plan_undo(run_id, context, leave_written=leave_written)
    except UserError as exc:
        if not dry_run and release_interrupted_undo(run_id, context):
            raise UserError(f"{exc}; the interrupted undo can't be completed, so its dates are free for runs") from exc
        raise
