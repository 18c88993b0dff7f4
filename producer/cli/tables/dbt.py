"""`backfill dbt`: what the models of a dbt project are as jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gated_backfill.common.dbt.jobs import DbtProject, ModelReport
from gated_backfill.common.dbt.manifest import read_manifest
from gated_backfill.producer.cli.options import json_option
from gated_backfill.producer.terminal.console import line, make_console, print_json, styled
from gated_backfill.producer.terminal.exit_codes import COMPLETE, INCOMPLETE

UNDECLARED = "incremental, and declares no job"


@click.command
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--project", help="The warehouse's project, if a model reads tables of several.")
@json_option
def dbt(path: Path, project: str | None, as_json: bool) -> None:
    """Show which models of a dbt project are jobs, and why others are not.

    PATH is the folder of the project, or its manifest.json, after `dbt compile --full-refresh`. Nothing is installed: a
    module of yours with an entry point for each job does that, see "dbt models as jobs" in docs/jobs.md. Exit codes: 0
    each model that declares a job is one, 3 some are not.
    """
    reports = DbtProject(read_manifest(path), warehouse_project=project).reports()
    if as_json:
        print_json([_report_json(report) for report in reports])
    else:
        console = make_console()
        for report in reports:
            state = _state(report)
            console.print(line(styled(report.name, "bold"), f"  {state}  {report.file}"))
            if report.problem is not None:
                console.print(line("  ", styled("error", "bold red"), f"  {report.problem}"))
            for role, table in report.job.tables_by_role() if report.job is not None else ():
                console.print(f"  {role:<20} {table}")
            for test in report.ignored_tests:
                console.print(f"  {test}")
    raise SystemExit(INCOMPLETE if any(report.problem is not None for report in reports) else COMPLETE)


def _state(report: ModelReport) -> str:
    if report.job is not None:
        return f"version {report.job.version}"
    return "no job" if report.problem is not None else UNDECLARED


def _report_json(report: ModelReport) -> dict[str, Any]:
    job = report.job
    return {
        "name": report.name,
        "file": report.file,
        "version": job.version if job is not None else None,
        "tables": [{"role": role, "table": table} for role, table in job.tables_by_role()] if job is not None else [],
        "problem": report.problem,
        "ignored_tests": list(report.ignored_tests),
    }
