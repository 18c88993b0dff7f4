"""`backfill tables`: the target tables of jobs."""

from __future__ import annotations

import click
from rich.markup import escape

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.ledger import open_ledger
from gated_backfill.common.ledger.jobs_in_use import jobs_in_use
from gated_backfill.common.model.registry import find_job, job_names, load_jobs
from gated_backfill.common.warehouse.backends import open_warehouse
from gated_backfill.producer.cli.options import single_job_option
from gated_backfill.producer.tables.create import create_tables
from gated_backfill.producer.terminal.console import make_console
from gated_backfill.producer.terminal.exit_codes import INCOMPLETE


@click.group
def tables() -> None:
    """The target tables of jobs."""


@tables.command
@single_job_option
def create(job: str | None) -> None:
    """Create the dataset and the target table of each job as the job declares it, and the tool's own tables.

    Migrates a ledger of an older version. Repeating the command is harmless.
    """
    jobs = [find_job(job)] if job else []
    settings = read_settings()
    errors: dict[str, UserError] = {}
    ledger = open_ledger(settings.ledger_url)
    if job is None:
        jobs, errors = load_jobs(jobs_in_use(ledger) or job_names())
    ledger.close()
    created = create_tables(open_warehouse(settings.warehouse_url, limits=settings.warehouse_limits), jobs)
    console = make_console()
    for target in created.targets:
        console.print(escape(target.describe()), soft_wrap=True)
    if created.prepared is not None:
        outcome = "created" if created.prepared else "there already"
        console.print(f"the table of publications, in the tool's dataset: {outcome}", soft_wrap=True)
    console.print("the ledger's tables are up to date")
    for error in errors.values():
        console.print(f"[bold red]skipped[/bold red]: {escape(str(error))}", soft_wrap=True)
    if errors:
        raise SystemExit(INCOMPLETE)
