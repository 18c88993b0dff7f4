"""The commands that plan and launch: `plan`, `run`, `retry`."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.ledger import DateState, Run
from gated_backfill.common.model.batching import parse_dates_per_task
from gated_backfill.common.model.concurrency import ConcurrencyLimits
from gated_backfill.common.model.coverage import Fallback
from gated_backfill.common.model.dates import DateRange, parse_date
from gated_backfill.common.model.registry import find_job, job_names
from gated_backfill.common.model.run_options import lowest_limit
from gated_backfill.common.runs.interrupted import is_interrupted
from gated_backfill.producer.cli.options import (
    AllowPartial,
    AsJson,
    Dates,
    DatesPerTask,
    Detach,
    EndDate,
    Exclude,
    FallbackOption,
    Flagged,
    Force,
    JobName,
    MaxInFlight,
    NewestFirst,
    NoPreflight,
    Reason,
    ReprocessOption,
    Sequential,
    StartDate,
    WindowSize,
    Workers,
    Yes,
    strip_reason,
)
from gated_backfill.producer.context import CommandContext, open_context
from gated_backfill.producer.planning.cost import estimate_cost
from gated_backfill.producer.planning.plan import (
    Plan,
    PlanAction,
    Reprocess,
    RunRequest,
    make_plan,
    parse_date_list,
    resolve_days,
)
from gated_backfill.producer.planning.saved_plan import (
    check_plan_unchanged,
    read_saved_plan,
    request_from_saved_plan,
    save_plan,
)
from gated_backfill.producer.terminal.exit_codes import COMPLETE, INCOMPLETE
from gated_backfill.producer.terminal.plan import print_plan
from gated_backfill.producer.terminal.runs import make_console, print_json


# Celery and what it brings along are imported by the commands that send tasks: the others answer sooner without.
def add_run_commands(app: typer.Typer) -> None:
    for command in (plan, run, retry):
        app.command()(command)


def plan(
    context: typer.Context,
    job: JobName = None,
    start_date: StartDate = None,
    end_date: EndDate = None,
    dates: Dates = None,
    flagged: Flagged = False,
    exclude: Exclude = None,
    reprocess: ReprocessOption = Reprocess.FAILED,
    newest_first: NewestFirst = False,
    fallback: FallbackOption = None,
    force: Force = False,
    reason: Reason = None,
    as_json: AsJson = False,
    save: Annotated[Path | None, typer.Option("--save", help="Write the plan to a file, for `run --plan`.")] = None,
    every_date: Annotated[bool, typer.Option("--every-date", help="A line for each date of a long plan.")] = False,
    window: WindowSize = None,
) -> None:
    """Show what a run would do with each date, and which dates would be blocked. Launches nothing."""
    because = _forced(force, reason)
    if flagged:
        days, reprocess = _flagged_days(job, start_date, end_date, dates, exclude, reprocess, as_json=as_json)
    else:
        days = _days(start_date, end_date, dates, exclude)
    request = _request(job, days, exclude, reprocess, newest_first, fallback, because, strip_reason(reason))
    settings = read_settings()
    site = open_context(settings)
    context.call_on_close(site.ledger.close)
    found = find_job(request.job)
    made = make_plan(request, found, site.warehouse, site.ledger)
    caps = ConcurrencyLimits(
        windows=settings.windows_in_flight,
        dates=settings.max_in_flight,
        job_dates=lowest_limit(found.max_in_flight, settings.max_in_flight_per_job),
    )
    dates_a_window = caps.window_size(window or settings.window)
    cost = estimate_cost(
        made, found, site.warehouse, dates_per_window=dates_a_window, price_per_tib=settings.price_per_tib
    )
    if save is not None:
        save_plan(made, save)
    if as_json:
        print_json(made.as_json() | {"cost": cost.as_json() if cost else None})
    else:
        print_plan(make_console(), made, every_date=every_date)
        if cost is not None:
            make_console().print(f"cost: {cost.describe()}", soft_wrap=True)
    raise typer.Exit(INCOMPLETE if made.steps_with(PlanAction.BLOCKED) else COMPLETE)


def run(
    job: JobName = None,
    start_date: StartDate = None,
    end_date: EndDate = None,
    dates: Dates = None,
    flagged: Flagged = False,
    plan_file: Annotated[
        Path | None, typer.Option("--plan", help="Run exactly what `plan --save` showed, or refuse.")
    ] = None,
    exclude: Exclude = None,
    reprocess: ReprocessOption = Reprocess.FAILED,
    newest_first: NewestFirst = False,
    fallback: FallbackOption = None,
    force: Force = False,
    reason: Reason = None,
    allow_partial: AllowPartial = False,
    no_preflight: NoPreflight = False,
    sequential: Sequential = False,
    window: WindowSize = None,
    dates_per_task: DatesPerTask = None,
    max_in_flight: MaxInFlight = None,
    workers: Workers = None,
    detach: Detach = False,
    yes: Yes = False,
) -> None:
    """Build the dates of a range, each checked before it is published, and follow the run to its end."""
    from gated_backfill.producer.runs.attended import Launch, launch_and_follow

    because = _forced(force, reason)
    stored = None
    if plan_file is not None:
        if any((job, start_date, end_date, dates, exclude, flagged)):
            raise UserError(
                "--plan says which job and dates: give no --job, --start-date, --dates, --flagged or --exclude"
            )
        stored = read_saved_plan(plan_file)
        request = request_from_saved_plan(stored, plan_file)
        request = replace(request, reason=strip_reason(reason) or request.reason)
    else:
        if flagged:
            days, reprocess = _flagged_days(job, start_date, end_date, dates, exclude, reprocess)
        else:
            days = _days(start_date, end_date, dates, exclude)
        request = _request(job, days, exclude, reprocess, newest_first, fallback, because, strip_reason(reason))
    settings = read_settings()
    launch = Launch(
        request=request,
        window=window or settings.window,
        workers=workers or settings.workers,
        sequential=sequential,
        allow_partial=allow_partial,
        preflight=not no_preflight,
        max_in_flight=max_in_flight,
        dates_per_task=settings.dates_per_task if dates_per_task is None else parse_dates_per_task(dates_per_task),
    )

    def check(made: Plan) -> None:
        if stored is not None and plan_file is not None:
            check_plan_unchanged(stored, made, plan_file)

    raise typer.Exit(
        launch_and_follow(launch, settings, detach=detach, yes=yes, check=check, workers_given=workers is not None)
    )


def retry(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="The run whose dates that are not complete are built.")],
    fallback: FallbackOption = None,
    force: Force = False,
    reason: Reason = None,
    allow_partial: AllowPartial = False,
    no_preflight: NoPreflight = False,
    sequential: Sequential = False,
    window: WindowSize = None,
    dates_per_task: DatesPerTask = None,
    max_in_flight: MaxInFlight = None,
    workers: Workers = None,
    detach: Detach = False,
    yes: Yes = False,
) -> None:
    """Build the dates that a run left blocked, failed or cancelled, in a new run, and no others."""
    from gated_backfill.producer.runs.attended import Launch, launch_and_follow

    because = _forced(force, reason)
    settings = read_settings()
    site = open_context(settings)
    earlier = site.ledger.runs.get_run(run_id)
    days = _unfinished_days(earlier, site)
    if not days:
        make_console().print(f"run {run_id} has no blocked, failed or cancelled dates: nothing to retry")
        raise typer.Exit(COMPLETE)
    launch = Launch(
        request=RunRequest(
            job=earlier.job,
            days=days,
            fallback=fallback or Fallback(earlier.options["fallback"]),
            forced_because=because,
            reason=strip_reason(reason),
        ),
        window=window or settings.window,
        workers=workers or settings.workers,
        sequential=sequential,
        allow_partial=allow_partial,
        preflight=not no_preflight,
        max_in_flight=max_in_flight,
        dates_per_task=settings.dates_per_task if dates_per_task is None else parse_dates_per_task(dates_per_task),
    )
    raise typer.Exit(launch_and_follow(launch, settings, detach=detach, yes=yes, workers_given=workers is not None))


def _unfinished_days(run: Run, site: CommandContext) -> tuple[date, ...]:
    """The dates that the run did not complete. Raises `UserError` while it may still do so."""
    if not run.has_ended and not is_interrupted(run):
        raise UserError(f"run {run.id} is still {run.state.value}: wait for its end with `backfill watch`")
    done = (DateState.CHECKPOINTED, DateState.SKIPPED)
    return tuple(row.day for row in site.ledger.dates.list_dates(run.id) if row.state not in done)


# -- shared by the commands -----------------------------------------------------------------------------------


def _days(start: str | None, end: str | None, dates: list[str] | None, exclude: list[str] | None) -> tuple[date, ...]:
    if dates and (start or end):
        raise UserError("give either --dates or --start-date and --end-date, not both")
    if not dates and not (start and end):
        raise UserError("give --start-date and --end-date, or --dates")
    span = DateRange(start=parse_date(start), through=parse_date(end)) if start and end else None
    return resolve_days(span, parse_date_list(dates or [], "--dates"), parse_date_list(exclude or [], "--exclude"))


def _flagged_days(
    job: str | None,
    start: str | None,
    end: str | None,
    dates: list[str] | None,
    exclude: list[str] | None,
    reprocess: Reprocess,
    *,
    as_json: bool = False,
) -> tuple[tuple[date, ...], Reprocess]:
    """The job's flagged dates, and that they are built whether or not they are checkpointed. Exits when none is."""
    if start or end or dates:
        raise UserError("--flagged says which dates: give no --start-date, --end-date or --dates")
    if reprocess is Reprocess.NONE:
        raise UserError("--flagged builds dates anew: it can't be had with --reprocess none")
    found = find_job(_named(job))
    flags = open_context(read_settings()).ledger.flags.list_open_flags(found.name)
    if not flags:
        if as_json:
            print_json(None)
        else:
            make_console().print(f"no date of {found.name} is flagged: nothing to do")
        raise typer.Exit(COMPLETE)
    return resolve_days(None, list(flags), parse_date_list(exclude or [], "--exclude")), Reprocess.ALL


def _named(job: str | None) -> str:
    if job is None:
        raise UserError(f"give --job; installed jobs: {', '.join(job_names())}")
    return job


def _request(
    job: str | None,
    days: tuple[date, ...],
    exclude: list[str] | None,
    reprocess: Reprocess,
    newest_first: bool,
    fallback: Fallback | None,
    because: str | None,
    reason: str | None,
) -> RunRequest:
    return RunRequest(
        job=find_job(_named(job)).name,
        days=days,
        excluded=parse_date_list(exclude or [], "--exclude"),
        reprocess=reprocess,
        newest_first=newest_first,
        fallback=fallback,
        forced_because=because,
        reason=reason,
    )


def _forced(force: bool, reason: str | None) -> str | None:
    because = strip_reason(reason)
    if force and because is None:
        raise UserError("--force needs --reason: it is stored with every date that is forced")
    return because if force else None
