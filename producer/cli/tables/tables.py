"""`backfill tables`: create the target tables of jobs, and refresh the schemas of local tables."""

from __future__ import annotations

import click

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.ledger import open_ledger
from gated_backfill.common.ledger.jobs_in_use import jobs_in_use
from gated_backfill.common.ledger.migration import carry_out, plan_migration
from gated_backfill.common.model.registry import find_job, job_names, load_jobs
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.backends import open_warehouse
from gated_backfill.producer.cli.options import single_job_option
from gated_backfill.producer.tables.create import create_tables
from gated_backfill.producer.terminal.console import line, make_console, styled
from gated_backfill.producer.terminal.exit_codes import INCOMPLETE


@click.group
def tables() -> None:
    """The target tables of jobs, and the schemas of local tables."""


@tables.command
@single_job_option
@click.option("--add-columns", is_flag=True, help="Add the columns that an existing target lacks, without values.")
def create(job: str | None, add_columns: bool) -> None:
    """Create the dataset and the target table of each job as the job declares it, and the tool's own tables.

    Creates the ledger's tables or migrates older ones, as `backfill ledger migrate` does. Repeating the command is
    harmless.
    """
    jobs = [find_job(job)] if job else []
    settings = read_settings()
    errors: dict[str, UserError] = {}
    migration = plan_migration(settings.ledger_url)
    if migration.is_needed:
        carry_out(migration, settings.ledger_url)
    ledger = open_ledger(settings.ledger_url, create=False)
    if job is None:
        jobs, errors = load_jobs(jobs_in_use(ledger) or job_names())
    ledger.close()
    warehouse = open_warehouse(settings.warehouse_url, limits=settings.warehouse_limits)
    for created_job in jobs:
        settings.check_not_own_table(created_job.target.table)
    created = create_tables(warehouse, jobs, add_columns=add_columns)
    console = make_console()
    for target in created.targets:
        console.print(target.describe())
    if created.prepared is not None:
        outcome = "created" if created.prepared else "there already"
        console.print(f"the table of publications, in the tool's dataset: {outcome}")
    for step in migration.describe():
        console.print(step)
    for error in errors.values():
        console.print(line(styled("skipped", "bold red"), f": {error}"))
    if errors:
        raise SystemExit(INCOMPLETE)


@tables.command
@click.argument("table", metavar="DATASET.TABLE")
def refresh(table: str) -> None:
    """Read the columns of a local table's partitions again, after another program added a column or a type.

    Writes them to the table's schema.json. A type that is there already stays if values of the new one may fit it.
    """
    settings = read_settings()
    name = TableName.parse(table)
    warehouse = open_warehouse(settings.warehouse_url, limits=settings.warehouse_limits)
    info = warehouse.refresh_schema(name)
    columns = "" if info is None else ", ".join(f"{column} {kind}" for column, kind in info.columns.items())
    outcome = columns or "the warehouse keeps its schema itself: nothing to do"
    make_console().print(f"{name}: {outcome}")
