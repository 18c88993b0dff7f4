"""The commands that change tables without a run: `undo`, `load`, `demo`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.model.registry import find_job, job_names
from gated_backfill.producer.cli.options import Yes
from gated_backfill.producer.context import current_user, open_context
from gated_backfill.producer.terminal.runs import make_console


def add_table_commands(app: typer.Typer) -> None:
    for command in (undo, load, demo):
        app.command()(command)


def undo(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="The run whose published dates are taken back.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done with each date.")] = False,
    yes: Yes = False,
) -> None:
    """Give the dates that a run published the rows they held before it, and the checkpoints that went with them.

    A date that had no checkpoint before the run has none afterwards. Refuses, and changes nothing, when a later run
    or anybody else has built one of the dates since, or when what the run replaced is not kept any more.
    """
    from gated_backfill.producer.runs.post_run import refresh_run_metadata
    from gated_backfill.producer.runs.undo import plan_undo
    from gated_backfill.producer.runs.undo import undo_run as carry_out

    site = open_context(read_settings())
    console = make_console()
    planned = plan_undo(run_id, site)
    console.print(f"undo of run {run_id}, {planned.describe()}")
    if dry_run:
        return
    if not yes and not sys.stdin.isatty():
        raise UserError("nothing was undone: nobody is at a terminal to be asked, so say --yes")
    if not yes and not typer.confirm(f"Undo {len(planned.days)} date(s)?"):
        raise UserError("nothing was undone")
    again = carry_out(planned, site, current_user())
    refresh_run_metadata(run_id, site)
    without = len(planned.days) - len(again)
    rest = f"; {without} have no checkpoint any more and count as not built" if without else ""
    console.print(f"undone: {len(planned.days)} date(s), {len(again)} have their earlier checkpoints again{rest}")


def load(
    table: Annotated[str, typer.Argument(help="The table, as dataset.table.")],
    file: Annotated[Path, typer.Argument(help="A CSV file with a header, or a Parquet file.")],
    date_column: Annotated[
        str | None,
        typer.Option(help="The column that dates each row.  [default: what the table or a job says]"),
    ] = None,
) -> None:
    """Load a CSV or Parquet file into a table of the warehouse, replacing the dates it holds: all or nothing."""
    from gated_backfill.producer.tables.load import load_file

    settings = read_settings()
    site = open_context(settings)
    built_by = [name for name in job_names() if find_job(name).target.table == table]  # a job that can't load refuses
    loaded = load_file(site.warehouse, table, file, date_column)
    make_console().print(loaded.describe())
    for name in built_by:
        make_console().print(
            f"note: it is the target of job {name}: where this replaced checkpointed rows, the next run over "
            f"the date builds it again",
            soft_wrap=True,
        )


def demo() -> None:
    """Make a season of data with the incident planted, run the job over it, and replay the incident."""
    from gated_backfill.producer.demo.demo import run_demo

    raise typer.Exit(run_demo(read_settings(), make_console()))
