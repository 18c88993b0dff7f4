"""The commands that set things up and look whether they are as they must be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.model.registry import find_job, job_names
from gated_backfill.common.warehouse import open_warehouse
from gated_backfill.producer.terminal.exit_codes import COMPLETE, INCOMPLETE, REFUSED
from gated_backfill.producer.terminal.runs import make_console, print_json

if TYPE_CHECKING:
    from gated_backfill.producer.doctor.checks import CheckResult

STYLES = {"OK": "green", "WARN": "yellow", "FAIL": "bold red"}

SingleJob = Annotated[str | None, typer.Option("--job", help="One job only.  [default: all installed jobs]")]

tables = typer.Typer(help="The target tables of jobs.")


def add_setup_commands(app: typer.Typer) -> None:
    app.add_typer(tables, name="tables")
    app.command()(doctor)


@tables.callback(invoke_without_command=True)
def show_help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(REFUSED)


@tables.command()
def create(job: SingleJob = None) -> None:
    """Make the dataset and the target table of each job, as the job declares it, and the tool's own tables.

    A ledger of an older version is brought up to date. Repeating it is harmless.
    """
    from gated_backfill.common.ledger import open_ledger
    from gated_backfill.producer.tables.create import create_tables

    found = [find_job(name) for name in ([job] if job else job_names())]
    settings = read_settings()
    made = create_tables(open_warehouse(settings.warehouse_url, limits=settings.warehouse_limits), found)
    console = make_console()
    for one in made.targets:
        console.print(escape(one.describe()), soft_wrap=True)
    if made.prepared is not None:
        said = "was made" if made.prepared else "was there already"
        console.print(f"the record of publications, in a dataset of the tool's own, {said}", soft_wrap=True)
    open_ledger(settings.ledger_url).close()
    console.print("the ledger's tables are up to date")


def doctor(job: SingleJob = None, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Look whether everything that a run needs is as it must be, and say what to do about what is not.

    Changes nothing. Exit codes: 0 nothing failed, 3 something did.
    """
    from gated_backfill.producer.doctor.checks import CheckLevel, run_checks

    if job is not None:
        find_job(job)
    findings = run_checks(read_settings(), [job] if job else job_names())
    failed = any(one.level is CheckLevel.FAIL for one in findings)
    if as_json:
        print_json({"ok": not failed, "checks": [one.as_json() for one in findings]})
    else:
        _print_findings(findings)
    raise typer.Exit(INCOMPLETE if failed else COMPLETE)


def _print_findings(findings: Sequence[CheckResult]) -> None:
    console = make_console()
    width = max(len(one.check) for one in findings)
    for one in findings:
        level = one.level.value
        told = f"{escape(one.check):<{width}}  {escape(one.describe())}"
        console.print(f"[{STYLES[level]}]{level:<4}[/]  {told}", soft_wrap=True)
    counts = [f"{sum(one.level.value == level for one in findings)} {level}" for level in STYLES]
    console.print(f"{len(findings)} checks: {', '.join(counts)}")
