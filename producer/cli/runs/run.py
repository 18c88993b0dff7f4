"""`backfill run`: launch a run and follow it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import UserError
from gated_backfill.producer.cli.options import strip_reason, with_options
from gated_backfill.producer.cli.runs.requests import DateOptions, JudgingOptions, LaunchOptions
from gated_backfill.producer.planning.plan import Plan
from gated_backfill.producer.planning.saved_plan import check_plan_unchanged, read_saved_plan, request_from_saved_plan
from gated_backfill.producer.runs.attended import launch_and_follow


@with_options
def run(
    dates: DateOptions,
    judging: JudgingOptions,
    launching: LaunchOptions,
    plan_file: Annotated[
        Path | None, typer.Option("--plan", help="Run exactly the plan that `plan --save` wrote, or refuse.")
    ] = None,
) -> None:
    """Build the dates of a range, each checked before it is published, and follow the run to its end."""
    if plan_file is None:
        saved_plan = None
        request = dates.to_request(judging, as_json=launching.as_json)
    else:
        if any((dates.job, dates.has_dates, dates.exclude, dates.flagged)):
            raise UserError(
                "--plan sets the job and the dates: give no --job, --start-date, --dates, --flagged or --exclude"
            )
        saved_plan = read_saved_plan(plan_file)
        request = request_from_saved_plan(saved_plan, plan_file)
        request = replace(request, reason=strip_reason(judging.reason) or request.reason)

    def check(new_plan: Plan) -> None:
        if saved_plan is not None and plan_file is not None:
            check_plan_unchanged(saved_plan, new_plan, plan_file)

    settings = read_settings()
    raise typer.Exit(
        launch_and_follow(
            launching.to_launch(request, settings),
            settings,
            detach=launching.detach,
            yes=launching.yes,
            as_json=launching.as_json,
            check=check,
            workers_given=launching.workers is not None,
        )
    )
