"""`backfill doctor`: check the installation."""

from __future__ import annotations

from collections.abc import Sequence

import click

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.model.registry import find_job
from gated_backfill.producer.cli.options import json_option, single_job_option
from gated_backfill.producer.doctor.checks import run_checks
from gated_backfill.producer.doctor.results import CheckLevel, CheckResult
from gated_backfill.producer.terminal.console import line, make_console, print_json, styled
from gated_backfill.producer.terminal.exit_codes import COMPLETE, INCOMPLETE

STYLES = {"OK": "green", "WARN": "yellow", "FAIL": "bold red"}


@click.command
@single_job_option
@click.option(
    "--sample",
    type=click.IntRange(2, 100),
    help="Also build the latest N dates of each job in memory, alone and together, and compare their rows.",
)
@json_option
def doctor(job: str | None, sample: int | None, as_json: bool) -> None:
    """Check that everything a run needs is in order, and show how to fix each problem.

    With --sample, also find a job whose rows depend on the dates that are built together. Changes nothing.
    Exit codes: 0 nothing failed, 3 something failed.
    """
    if job is not None:
        find_job(job)
    results = run_checks(read_settings(), job, sample or 0)
    has_failed = any(result.level is CheckLevel.FAIL for result in results)
    if as_json:
        print_json({"ok": not has_failed, "checks": [result.as_json() for result in results]})
    else:
        _print_results(results)
    raise SystemExit(INCOMPLETE if has_failed else COMPLETE)


def _print_results(results: Sequence[CheckResult]) -> None:
    console = make_console()
    width = max(len(result.check) for result in results)
    for result in results:
        level = result.level.value
        console.print(line(styled(f"{level:<4}", STYLES[level]), f"  {result.check:<{width}}  {result.describe()}"))
    counts = [f"{sum(result.level.value == level for result in results)} {level}" for level in STYLES]
    console.print(f"{len(results)} checks: {', '.join(counts)}")
