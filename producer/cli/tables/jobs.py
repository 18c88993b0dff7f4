"""`backfill jobs`: the installed jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.ledger.jobs_in_use import open_existing_ledger, read_jobs_in_use
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.registry import EXAMPLE_JOB, load_jobs
from gated_backfill.common.process.printable_text import shorten
from gated_backfill.common.runs.targets import describe_conflict
from gated_backfill.producer.cli.options import json_option
from gated_backfill.producer.terminal.console import line, make_console, print_json, styled
from gated_backfill.producer.terminal.exit_codes import COMPLETE, INCOMPLETE


@click.command
@json_option
def jobs(as_json: bool) -> None:
    """List the installed jobs with their tables, and the error of each job that cannot be loaded.

    Also what prevents a job from building its target: a table belongs to one job. The shipped example is listed if it
    has been run or is the only job. Exit codes: 0 every job can be loaded and has its own target, 3 some do not.
    """
    ledger_url = read_settings().ledger_url
    installed, errors = load_jobs(read_jobs_in_use(ledger_url))
    conflicts = _find_conflicts(installed, ledger_url)
    if as_json:
        print_json(
            [_job_json(job) | {"conflict": conflicts.get(job.name)} for job in installed]
            + [{"name": name, "error": str(exc)} for name, exc in errors.items()]
        )
    else:
        console = make_console()
        for job in installed:
            example = "  (the shipped example)" if job.name == EXAMPLE_JOB else ""
            console.print(line(styled(job.name, "bold"), f"  version {job.version}  {job.description}{example}"))
            for role, table in job.tables_by_role():
                console.print(f"  {role:<20} {table}")
            if job.name in conflicts:
                console.print(line("  ", styled("error", "bold red"), f"  {conflicts[job.name]}"))
        for name, exc in errors.items():
            console.print(line(styled(name, "bold"), "  ", styled("error", "bold red"), f"  {shorten(str(exc))}"))
    raise SystemExit(INCOMPLETE if errors or conflicts else COMPLETE)


def _find_conflicts(jobs: Sequence[Job], ledger_url: str) -> dict[str, str]:
    """What prevents jobs from building their targets, by job. The ledger is neither created nor migrated."""
    ledger = open_existing_ledger(ledger_url)
    try:
        conflicts = {job.name: describe_conflict(job, ledger, jobs) for job in jobs}
    finally:
        if ledger is not None:
            ledger.close()
    return {name: conflict for name, conflict in conflicts.items() if conflict is not None}


def _job_json(job: Job) -> dict[str, Any]:
    return {
        "name": job.name,
        "version": job.version,
        "description": job.description,
        "example": job.name == EXAMPLE_JOB,
        "tables": [{"role": role, "table": table} for role, table in job.tables_by_role()],
        "fallback": job.fallback.value,
        "complete_ratio": job.policy.complete_ratio,
        "accept_ratio": job.policy.accept_ratio,
    }
