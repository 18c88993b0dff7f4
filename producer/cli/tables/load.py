"""`backfill load`: load a file into a table."""

from __future__ import annotations

from pathlib import Path

import click

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.model.registry import load_jobs
from gated_backfill.producer.context import open_context
from gated_backfill.producer.tables.load import load_file
from gated_backfill.producer.terminal.console import make_console


@click.command
@click.argument("table", help="The table, as dataset.table.")
@click.argument("file", type=Path, help="A CSV file with a header, or a Parquet file.")
@click.option("--date-column", help="The column that dates each row.  [default: the table's or a job's]")
def load(table: str, file: Path, date_column: str | None) -> None:
    """Load a CSV or Parquet file into a table of the warehouse, replacing the dates in the file: all rows or none."""
    context = open_context(read_settings())
    jobs, _ = load_jobs()
    result = load_file(context.warehouse, table, file, date_column)
    console = make_console()
    console.print(result.describe())
    for job in jobs:
        if job.target.table == table:
            console.print(
                f"note: this table is the target of job {job.name}: its next run rebuilds the checkpointed dates "
                f"that were replaced",
                soft_wrap=True,
            )
