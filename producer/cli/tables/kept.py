"""`backfill kept`: list the rows that were replaced or removed, and put them back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import click
from rich.table import Table

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.model.publication import KeptRows
from gated_backfill.producer.cli.options import json_option, parse_open_range, yes_option
from gated_backfill.producer.context import current_user, open_context
from gated_backfill.producer.tables.kept_rows import dated_table, plan_kept_restore, restore_kept_rows
from gated_backfill.producer.terminal.console import confirm, make_console, print_json

table_argument = click.argument("table", metavar="DATASET.TABLE")


@click.group
def kept() -> None:
    """List or restore the rows that runs, undos and `kept restore` removed from a table.

    They are kept for BACKFILL_UNDO_DAYS. For rows that a cleanup deleted, use `backfill cleanup restore`.
    """


@kept.command("list")
@table_argument
@click.option("--start-date", "first", metavar="DATE", help="First date of the rows, YYYY-MM-DD, included.")
@click.option("--end-date", "last", metavar="DATE", help="Last date of the rows, YYYY-MM-DD, included.")
@json_option
def list_kept_rows(table: str, first: str | None, last: str | None, as_json: bool) -> None:
    """List the kept rows of a table, the latest removal first."""
    dates = parse_open_range(first, last)
    settings = read_settings()
    context = open_context(settings, only_looks=True)
    target, _ = dated_table(table, context)
    listed = context.warehouse.list_kept(target.name, target.date_column, dates)
    period = timedelta(days=settings.undo_days)
    if as_json:
        print_json([_rows_json(rows, period) for rows in listed])
    elif listed:
        _print_kept(listed, period)
    else:
        make_console().print(f"no rows of {target.name} are kept for these dates")


@kept.command
@table_argument
@click.argument("kept_id", metavar="ID", help="The kept rows; `backfill kept list` shows them.")
@click.option("--dry-run", is_flag=True, help="Show the effect. Changes nothing.")
@yes_option
def restore(table: str, kept_id: str, dry_run: bool, yes: bool) -> None:
    """Replace the present rows of a date by kept rows. The present rows are then kept, too.

    If the date has a checkpoint, it is removed, and `plan` lists the date as undone: only `run --reprocess undone` (or
    `all`) builds it again. A date without a checkpoint is built by the next run as usual. Refuses, and changes nothing,
    when an active run has the date, or a run has checkpointed it in the meantime.
    """
    context = open_context(read_settings(), only_looks=dry_run)
    console = make_console()
    plan = plan_kept_restore(table, kept_id, context)
    console.print(plan.describe())
    if dry_run:
        return
    confirm(yes, "Restore them?", "restored")
    had_checkpoint = restore_kept_rows(plan, context, current_user(context.settings))
    day = plan.kept.day
    check = f"; its checkpoint is removed: `backfill coverage --job {plan.job} --dates {day}` compares its rows"
    console.print(f"restored: {plan.kept.rows} row(s) of {day}{check if had_checkpoint else ''}")


def _print_kept(listed: Sequence[KeptRows], period: timedelta) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("id", "date", "rows", "removed by", "removed at", "kept until"):
        table.add_column(name, justify="right" if name == "rows" else "left", no_wrap=name != "removed by")
    for rows in listed:
        moments = [f"{moment:%Y-%m-%d %H:%M} UTC" for moment in (rows.kept_at, rows.kept_at + period)]
        table.add_row(rows.id, str(rows.day), str(rows.rows), rows.removed_by, *moments)
    make_console().print(table)


def _rows_json(rows: KeptRows, period: timedelta) -> dict[str, Any]:
    return {
        "id": rows.id,
        "date": rows.day,
        "rows": rows.rows,
        "removed_by": rows.removed_by,
        "kept_at": rows.kept_at.isoformat(),
        "kept_until": (rows.kept_at + period).isoformat(),
        "fingerprint": rows.fingerprint,
    }
