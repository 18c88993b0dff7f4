"""`backfill plan`: show the plan of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.model.limits import ConcurrencyLimits
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.run_options import lowest_limit
from gated_backfill.producer.cli.options import AsJson, WindowSize, with_options
from gated_backfill.producer.cli.runs.requests import DateOptions, JudgingOptions
from gated_backfill.producer.context import open_context
from gated_backfill.producer.planning.cost import estimate_cost
from gated_backfill.producer.planning.plan import PlanAction, make_plan
from gated_backfill.producer.planning.saved_plan import save_plan
from gated_backfill.producer.terminal.console import make_console, print_json
from gated_backfill.producer.terminal.exit_codes import COMPLETE, INCOMPLETE
from gated_backfill.producer.terminal.plan import print_plan


@with_options
def plan(
    typer_context: typer.Context,
    dates: DateOptions,
    judging: JudgingOptions,
    window: WindowSize = None,
    save: Annotated[Path | None, typer.Option("--save", help="Write the plan to a file, for `run --plan`.")] = None,
    every_date: Annotated[bool, typer.Option("--every-date", help="A line for each date of a long plan.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a run would do with each date, and which dates would be blocked. Launches nothing."""
    request = dates.to_request(judging, as_json=as_json)
    settings = read_settings()
    context = open_context(settings)
    typer_context.call_on_close(context.ledger.close)
    job = find_job(request.job)
    new_plan = make_plan(request, job, context.warehouse, context.ledger)
    limits = ConcurrencyLimits(
        windows=settings.windows_in_flight,
        dates=settings.max_in_flight,
        job_dates=lowest_limit(job.max_in_flight, settings.max_in_flight_per_job),
    )
    cost = estimate_cost(
        new_plan,
        job,
        context.warehouse,
        dates_per_window=limits.window_size(window or settings.window),
        price_per_tib=settings.price_per_tib,
    )
    if save is not None:
        save_plan(new_plan, save)
    if as_json:
        print_json(new_plan.as_json() | {"cost": cost.as_json() if cost else None})
    else:
        print_plan(make_console(), new_plan, every_date=every_date)
        if cost is not None:
            make_console().print(f"cost: {cost.describe()}", soft_wrap=True)
    raise typer.Exit(INCOMPLETE if new_plan.steps_with(PlanAction.BLOCKED) else COMPLETE)
