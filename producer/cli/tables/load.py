"""`backfill load`: load a file into a table."""

from __future__ import annotations

from pathlib import Path

import click

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.model.registry import load_jobs
from gated_backfill.common.process.private_files import make_private_folder
from gated_backfill.producer.context import open_context
from gated_backfill.producer.tables.load import LoadOptions, load_file
from gated_backfill.producer.terminal.console import make_console
from gated_backfill.producer.terminal.progress import progress_bar


@click.command
@click.argument("table", help="The table, as dataset.table or project.dataset.table.")
@click.argument("file", type=Path, help="A CSV file with a header, or a Parquet file.")
@click.option("--date-column", help="The column that dates each row.  [default: the table's or a job's]")
@click.option("--date-format", help="How dates are written, as %d.%m.%Y.  [default: %Y-%m-%d]")
@click.option("--rename", "renames", multiple=True, metavar="OLD=NEW", help="Load column OLD as NEW. Repeatable.")
@click.option("--encoding", help="The encoding of a CSV file, as cp1252.  [default: utf-8]")
@click.option("--delimiter", help="The character between the fields of a CSV file, as ';'.  [default: ,]")
@click.option("--add-columns", is_flag=True, help="Add the columns that the table lacks to it, null in its other rows.")
def load(
    table: str,
    file: Path,
    date_column: str | None,
    date_format: str | None,
    renames: tuple[str, ...],
    encoding: str | None,
    delimiter: str | None,
    add_columns: bool,
) -> None:
    """Load a CSV or Parquet file into a table of the warehouse, replacing the dates in the file: all rows or none.

    Column types come from the table or, before it exists, from the jobs that read it. Any other column of a CSV file
    is INT64, FLOAT64, DATE or BOOL only if that gives every text of it back, else STRING: codes such as 007, 12E5 or
    +49301234 stay text. (Zeros at the end of prices such as 1.50 are dropped.) An empty field is null. A value that its
    column cannot keep exactly is refused, with its line.

    The file need not fit into memory. While it is loaded, it takes up to three times its size of disk.

    \b
    Examples:
      backfill load shop.sales sales.csv
      backfill load shop.sales sales.csv --delimiter ';' --encoding cp1252 --date-format %d.%m.%Y
      backfill load shop.sales sales.parquet --rename 'Sold on=sold_on' --date-column sold_on
    """
    settings = read_settings()
    context = open_context(settings)
    settings.check_not_own_table(table)
    jobs, _ = load_jobs()
    options = LoadOptions(
        renames=_parse_renames(renames),
        date_format=date_format,
        encoding=encoding,
        delimiter="\t" if delimiter in ("\\t", "tab") else delimiter,
        add_columns=add_columns,
    )
    make_private_folder(settings.home)
    with progress_bar() as progress:
        result = load_file(
            context.warehouse, table, file, date_column, options, spool_folder=settings.home, progress=progress
        )
    console = make_console()
    console.print(result.describe())
    if result.new_columns:
        columns = ", ".join(f"{name} {kind}" for name, kind in result.new_columns.items())
        novelty = "new table, with the columns" if result.is_new else "new columns:"
        console.print(f"{novelty} {columns}")
    for job in jobs:
        if job.target.table == table:
            console.print(
                f"note: this table is the target of job {job.name}: its next run rebuilds the checkpointed dates "
                f"that were replaced"
            )


def _parse_renames(renames: tuple[str, ...]) -> dict[str, str]:
    """Return the new names by the old ones. An old name may be empty, or contain `=`."""
    names: dict[str, str] = {}
    for rename in renames:
        old, equals, new = rename.rpartition("=")
        if not equals:
            raise UserError(f"--rename {rename!r}: write it as OLD=NEW")
        if old in names:
            raise UserError(f"--rename: column {old!r} is given two names")
        names[old] = new
    return names
