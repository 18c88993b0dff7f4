"""`backfill run`: launch a run and follow it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import DatesInUse, UserError
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
from gated_backfill.producer.terminal.console import make_console, print_json
from gated_backfill.producer.terminal.exit_codes import IN_PROGRESS


@click.command
@run_arguments(*DATE_OPTIONS, *JUDGING_OPTIONS, *LAUNCH_OPTIONS)
@click.option("--plan", "plan_file", type=Path, help="Run exactly the plan that `plan --save` wrote, or refuse.")
def run(arguments: RunArguments, plan_file: Path | None) -> None:
    """Build the dates of a range, each checked before it is published, and follow the run to its end.

    With --yesterday or --last-days, safe to call from cron, systemd or Airflow at any time and several times at once:
    dates that are complete are left as they are, and while another run has some of them, nothing is started.
    Exit codes: 0 all complete, 2 refused or failed, 3 some dates not complete, 4 (of these two options only) another
    run is building the dates, 130 interrupted.
    """
    if plan_file is None:
        raise SystemExit(_run_daily(arguments) if arguments.is_daily else _run(arguments))
    if any((arguments.job, arguments.has_dates, arguments.exclude, arguments.flagged)):
        raise UserError("--plan sets the job and the dates: give no --job, --exclude, or option for dates")
    saved_plan = read_saved_plan(plan_file)
    request = saved_plan.request
    request = replace(request, reason=strip_reason(arguments.reason) or request.reason)

    def check(new_plan: Plan) -> None:
        check_plan_unchanged(saved_plan, new_plan, plan_file)

    raise SystemExit(arguments.launch(request, read_settings(), check))


def _run(arguments: RunArguments) -> int:
    return arguments.launch(arguments.to_request(), read_settings())


def _run_daily(arguments: RunArguments) -> int:
    """Run what a scheduler asks for; if another run is building the dates, say so in one line."""
    try:
        return _run(arguments)
    except DatesInUse as exc:
        result = f"nothing was started: {exc}"
        make_console(stderr=True).print(result)
        if arguments.as_json:
            print_json({"run": None, "result": result, "exit_code": IN_PROGRESS})
        return IN_PROGRESS
