"""The commands that look: `status`, `watch`, `jobs`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gated_backfill.common.errors import UserError
from gated_backfill.producer.cli.options import AsJson
from gated_backfill.producer.terminal.exit_codes import INCOMPLETE, INTERRUPTED, exit_code_for_run
from gated_backfill.producer.terminal.run_status import DEFAULT_RUNS_LISTED, show_status
from gated_backfill.producer.terminal.runs import make_console, print_json, print_run

if TYPE_CHECKING:
    from gated_backfill.common.model.job import Job


def add_look_commands(app: typer.Typer) -> None:
    for command in (status, watch, jobs):
        app.command()(command)


def status(
    run_id: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run; the latest if left out.")] = None,
    as_json: AsJson = False,
    every_date: Annotated[
        bool, typer.Option("--every-date", help="Every date with its source check, not only the incomplete ones.")
    ] = False,
    last: Annotated[
        int, typer.Option("--last", min=0, max=1000, help="List so many runs besides.")
    ] = DEFAULT_RUNS_LISTED,
) -> None:
    """Show how a run stands: which dates are blocked or failed, why, and whose rows are missing."""
    raise typer.Exit(show_status(run_id, as_json=as_json, every_date=every_date, last=last))


def watch(
    run_id: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run; the latest if left out.")] = None,
) -> None:
    """Follow a run to its end: dates done, blocked and failed, dates per second, time left."""
    from gated_backfill.common.broker.celery_app import make_app
    from gated_backfill.common.config.settings import read_settings
    from gated_backfill.producer.context import open_context
    from gated_backfill.producer.runs.launch import follow_run
    from gated_backfill.producer.terminal.watcher import RunWatcher

    settings = read_settings()
    site = open_context(settings)
    latest = site.ledger.runs.list_latest_runs(1)
    if run_id is None and not latest:
        raise UserError("no run was launched yet")
    found = site.ledger.runs.get_run(run_id or latest[0].id)
    celery = None
    if found.owner is None and site.settings.broker is not None:
        celery = make_app(settings, site.settings.broker.get_secret_value())
    console = make_console()
    try:
        with RunWatcher(console).live_display() as watcher:
            progress = follow_run(found.id, site, watcher.update, app=celery)
    except KeyboardInterrupt:
        console.print(f"run {found.id} goes on")
        raise typer.Exit(INTERRUPTED) from None
    if not progress.run.has_ended:
        console.print(f"the process that ran {found.id} is gone: launch the same command again to complete its dates")
        raise typer.Exit(INCOMPLETE)
    print_run(
        console, progress, site.ledger.dates.get_run_summary(found.id), site.ledger.actions.list_actions(found.id)
    )
    raise typer.Exit(exit_code_for_run(progress))


def jobs(as_json: AsJson = False) -> None:
    """List the installed jobs with their tables."""
    from gated_backfill.common.model.registry import find_job, job_names

    found = [find_job(name) for name in job_names()]
    if as_json:
        print_json([_job_json(one) for one in found])
        return
    console = make_console()
    for one in found:
        console.print(f"[bold]{one.name}[/bold]  version {one.version}  {one.description}")
        for role, table in one.tables_by_role():
            console.print(f"  {role:<20} {table}")


def _job_json(job: Job) -> dict[str, Any]:
    return {
        "name": job.name,
        "version": job.version,
        "description": job.description,
        "tables": [{"role": role, "table": table} for role, table in job.tables_by_role()],
        "fallback": job.fallback.value,
        "complete_ratio": job.policy.complete_ratio,
        "accept_ratio": job.policy.accept_ratio,
    }
