"""`backfill plan`: show the plan of a run."""

from __future__ import annotations

from pathlib import Path

import click

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.run_options import lowest_limit
from gated_backfill.common.model.scheduling.limits import ConcurrencyLimits
from gated_backfill.producer.cli.options import json_option, window_option
from gated_backfill.producer.cli.runs.run_options import DATE_OPTIONS, JUDGING_OPTIONS, RunArguments, run_arguments
from gated_backfill.producer.context import open_context
from gated_backfill.producer.planning.cost import estimate_cost
from gated_backfill.producer.planning.plan import PlanAction, check_window_publishable, make_plan
from gated_backfill.producer.planning.saved_plan import save_plan
from gated_backfill.producer.terminal.console import make_console, print_json
from gated_backfill.producer.terminal.exit_codes import COMPLETE, INCOMPLETE
from gated_backfill.producer.terminal.plan import print_plan


@click.command
@run_arguments(*DATE_OPTIONS, *JUDGING_OPTIONS, window_option, json_option)
@click.option("--save", type=Path, help="Write the plan to a file, for `run --plan`.")
@click.option("--every-date", is_flag=True, help="A line for each date of a long plan.")
def plan(arguments: RunArguments, save: Path | None, every_date: bool) -> None:
    """Show what a run would do with each date, and which dates would be blocked. Launches nothing."""
    request = arguments.to_request()
    settings = read_settings()
    context = open_context(settings, only_looks=True)
    click.get_current_context().call_on_close(context.ledger.close)
    job = find_job(request.job)
    settings.check_not_own_table(job.target.table)
    new_plan = make_plan(request, job, context.warehouse, context.ledger)
    limits = ConcurrencyLimits(
        windows=settings.windows_in_flight,
        dates=settings.max_in_flight,
        job_dates=lowest_limit(job.max_in_flight, settings.max_in_flight_per_job),
    )
    dates_per_window = limits.window_size(arguments.window or settings.window)
    check_window_publishable(new_plan, dates_per_window, context.warehouse)
    cost = estimate_cost(
        new_plan, job, context.warehouse, dates_per_window=dates_per_window, price_per_tib=settings.price_per_tib
    )
    if save is not None:
        save_plan(new_plan, save)
    if arguments.as_json:
        print_json(new_plan.as_json() | {"cost": cost.as_json() if cost else None})
    else:
        print_plan(make_console(), new_plan, every_date=every_date)
        if cost is not None:
            make_console().print(f"cost: {cost.describe()}")
    raise SystemExit(INCOMPLETE if new_plan.steps_with(PlanAction.BLOCKED) else COMPLETE)
