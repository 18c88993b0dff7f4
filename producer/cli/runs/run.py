"""`backfill run`: launch a run and follow it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import UserError
from gated_backfill.producer.cli.options import strip_reason
from gated_backfill.producer.cli.runs.run_options import (
    DATE_OPTIONS,
    JUDGING_OPTIONS,
    LAUNCH_OPTIONS,
    RunArguments,
    run_arguments,
)
from gated_backfill.producer.planning.plan import Plan
from gated_backfill.producer.planning.saved_plan import check_plan_unchanged, read_saved_plan


@click.command
@run_arguments(*DATE_OPTIONS, *JUDGING_OPTIONS, *LAUNCH_OPTIONS)
@click.option("--plan", "plan_file", type=Path, help="Run exactly the plan that `plan --save` wrote, or refuse.")
def run(arguments: RunArguments, plan_file: Path | None) -> None:
    """Build the dates of a range, each checked before it is published, and follow the run to its end."""
    if plan_file is None:
        raise SystemExit(arguments.launch(arguments.to_request(), read_settings()))
    if any((arguments.job, arguments.has_dates, arguments.exclude, arguments.flagged)):
        raise UserError(
            "--plan sets the job and the dates: give no --job, --start-date, --dates, --flagged or --exclude"
        )
    saved_plan = read_saved_plan(plan_file)
    request = saved_plan.request
    request = replace(request, reason=strip_reason(arguments.reason) or request.reason)

    def check(new_plan: Plan) -> None:
        check_plan_unchanged(saved_plan, new_plan, plan_file)

    raise SystemExit(arguments.launch(request, read_settings(), check))
