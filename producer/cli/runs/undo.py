"""`backfill undo`: restore what a run replaced."""

from __future__ import annotations

from typing import Annotated

import typer

from gated_backfill.common.config.settings import read_settings
from gated_backfill.producer.cli.options import Yes
from gated_backfill.producer.context import current_user, open_context
from gated_backfill.producer.runs.post_run import refresh_run_metadata
from gated_backfill.producer.runs.undo import plan_undo, undo_run
from gated_backfill.producer.terminal.console import confirm, make_console


def undo(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="The run whose published dates are taken back.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done with each date.")] = False,
    yes: Yes = False,
) -> None:
    """Restore the rows and checkpoints that the dates of a run had before it.

    A date that had no checkpoint before the run has none afterwards. Refuses, and changes nothing, when one of the
    dates was written after the run, or when the rows that the run replaced are no longer kept.
    """
    opened = open_context(read_settings())
    console = make_console()
    undo_plan = plan_undo(run_id, opened)
    console.print(f"undo of run {run_id}, {undo_plan.describe()}")
    if dry_run:
        return
    count = len(undo_plan.days)
    confirm(yes, f"Undo {count} date(s)?", "undone")
    restored = undo_run(undo_plan, opened, current_user())
    refresh_run_metadata(run_id, opened)
    without = count - len(restored)
    rest = f"; {without} have no checkpoint any more and count as not built" if without else ""
    console.print(f"undone: {count} date(s), {len(restored)} have their earlier checkpoints again{rest}")
