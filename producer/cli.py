"""The command line. Exit codes: 0 all complete, 2 refused or bad usage, 3 some dates not complete, 130 interrupted."""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.exceptions import Abort, TyperException

from common.coverage import Fallback
from common.dates import DateRange, parse_date
from common.errors import BackfillError, UserError
from common.job import Job, find_job, job_names
from common.ledger import DateState
from common.settings import read_settings
from producer.cli_alerts import add_alert_commands
from producer.cli_audit import add_audit_commands
from producer.cli_cleanup import add_cleanup_commands
from producer.cli_history import add_history_commands
from producer.cli_metrics import add_metrics_command
from producer.cli_setup import add_setup_commands
from producer.cli_up import add_up_commands
from producer.cost import cost_of
from producer.exit_codes import COMPLETE, INCOMPLETE, INTERRUPTED, REFUSED, exit_code
from producer.plan import (
    Action,
    Plan,
    Reprocess,
    Request,
    input_list,
    make_plan,
    read_plan,
    refuse_if_changed,
    request_of,
    requested_days,
    save_plan,
)
from producer.report import (
    Watcher,
    is_interrupted,
    make_console,
    print_json,
    print_plan,
    print_run,
    print_runs,
    print_source_checks,
    run_json,
)
from producer.site import open_site, requester

# Celery and what it brings along are imported by the commands that send tasks: the others answer sooner without.
app = typer.Typer(
    name="backfill",
    help="Rebuild a dated table over a range of dates, in parallel; publish a date only after its coverage is "
    "recounted. Ranges include both ends. Exit codes: 0 all complete, 2 refused or bad usage, 3 some dates not "
    "complete.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

JobName = Annotated[str | None, typer.Option("--job", help="The job to run; `backfill jobs` lists them.")]
Start = Annotated[str | None, typer.Option("--start-date", help="First date, YYYY-MM-DD, included.")]
End = Annotated[str | None, typer.Option("--end-date", help="Last date, YYYY-MM-DD, included.")]
Dates = Annotated[
    list[str] | None,
    typer.Option("--dates", help="Dates instead of a range: 2023-02-23,2023-03-01..2023-03-05. May be repeated."),
]
Exclude = Annotated[list[str] | None, typer.Option("--exclude", help="Dates to leave out, written as in --dates.")]
ReprocessOption = Annotated[
    Reprocess,
    typer.Option(
        help="Dates that earlier runs dealt with. none: only dates that no run has ended. failed: those and the "
        "blocked and failed ones. all: every date, checkpointed ones included."
    ),
]
Newest = Annotated[bool, typer.Option("--newest-first", help="Build the latest dates first.")]
FallbackOption = Annotated[
    Fallback | None,
    typer.Option(
        help="When the primary source is partial. replace: all rows from the best fallback. fill: only the missing "
        "entities from it. off: build from the primary and let the gate judge.  [default: the job's]"
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Commit dates of low coverage, marked as forced for ever. Needs --reason."),
]
Reason = Annotated[str | None, typer.Option("--reason", help="Why the dates are forced; stored with them.")]
Flagged = Annotated[
    bool,
    typer.Option(
        "--flagged", help="The dates that `coverage --flag-incomplete` or the daily audit flagged, built anew."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Detach = Annotated[bool, typer.Option("--detach", help="Return once the run is open; follow it with `watch`.")]
Window = Annotated[
    int | None,
    typer.Option(min=1, max=5000, help="Dates per window (one chord).  [default: BACKFILL_WINDOW or 100]"),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, max=256, help="Worker processes of the embedded stack.  [default: BACKFILL_WORKERS or 2]"),
]
Sequential = Annotated[bool, typer.Option("--sequential", help="One date at a time, in this process.")]
AllowPartial = Annotated[
    bool, typer.Option("--allow-partial", help="Run the other dates when some would be blocked; exit code 3.")
]
NoPreflight = Annotated[
    bool,
    typer.Option("--no-preflight", help="Send the dates that would be blocked too, and let the gate judge."),
]


@app.callback(invoke_without_command=True)
def no_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(REFUSED)


@app.command()
def plan(
    job: JobName = None,
    start_date: Start = None,
    end_date: End = None,
    dates: Dates = None,
    flagged: Flagged = False,
    exclude: Exclude = None,
    reprocess: ReprocessOption = Reprocess.FAILED,
    newest_first: Newest = False,
    fallback: FallbackOption = None,
    force: Force = False,
    reason: Reason = None,
    as_json: AsJson = False,
    save: Annotated[Path | None, typer.Option("--save", help="Write the plan to a file, for `run --plan`.")] = None,
    every_date: Annotated[bool, typer.Option("--every-date", help="A line for each date of a long plan.")] = False,
    window: Window = None,
) -> None:
    """Show what a run would do with each date, and which dates would be blocked. Launches nothing."""
    because = _forced(force, reason)
    if flagged:
        days, reprocess = _flagged_days(job, start_date, end_date, dates, exclude, reprocess, as_json=as_json)
    else:
        days = _days(start_date, end_date, dates, exclude)
    request = _request(job, days, exclude, reprocess, newest_first, fallback, because)
    settings = read_settings()
    site = open_site(settings)
    found = find_job(request.job)
    made = make_plan(request, found, site.warehouse, site.ledger)
    dates_a_window = window or settings.window
    cost = cost_of(made, found, site.warehouse, window=dates_a_window, price_per_tib=settings.price_per_tib)
    if save is not None:
        save_plan(made, save)
    if as_json:
        print_json(made.as_json() | {"cost": cost.as_json() if cost else None})
    else:
        print_plan(make_console(), made, every_date=every_date)
        if cost is not None:
            make_console().print(f"cost: {cost.in_words()}", soft_wrap=True)
    raise typer.Exit(INCOMPLETE if made.of(Action.BLOCKED) else COMPLETE)


@app.command()
def run(
    job: JobName = None,
    start_date: Start = None,
    end_date: End = None,
    dates: Dates = None,
    flagged: Flagged = False,
    plan_file: Annotated[
        Path | None, typer.Option("--plan", help="Run exactly what `plan --save` showed, or refuse.")
    ] = None,
    exclude: Exclude = None,
    reprocess: ReprocessOption = Reprocess.FAILED,
    newest_first: Newest = False,
    fallback: FallbackOption = None,
    force: Force = False,
    reason: Reason = None,
    allow_partial: AllowPartial = False,
    no_preflight: NoPreflight = False,
    sequential: Sequential = False,
    window: Window = None,
    workers: Workers = None,
    detach: Detach = False,
    yes: Yes = False,
) -> None:
    """Build the dates of a range, each checked before it is published, and follow the run to its end."""
    from producer.attended import Launch, launch_and_follow

    because = _forced(force, reason)
    stored = None
    if plan_file is not None:
        if any((job, start_date, end_date, dates, exclude, flagged)):
            raise UserError(
                "--plan says which job and dates: give no --job, --start-date, --dates, --flagged or --exclude"
            )
        stored = read_plan(plan_file)
        request = request_of(stored, plan_file)
    else:
        if flagged:
            days, reprocess = _flagged_days(job, start_date, end_date, dates, exclude, reprocess)
        else:
            days = _days(start_date, end_date, dates, exclude)
        request = _request(job, days, exclude, reprocess, newest_first, fallback, because)
    settings = read_settings()
    launch = Launch(
        request=request,
        window=window or settings.window,
        workers=workers or settings.workers,
        sequential=sequential,
        allow_partial=allow_partial,
        preflight=not no_preflight,
    )

    def check(made: Plan) -> None:
        if stored is not None and plan_file is not None:
            refuse_if_changed(stored, made, plan_file)

    raise typer.Exit(
        launch_and_follow(launch, settings, detach=detach, yes=yes, check=check, workers_asked=workers is not None)
    )


@app.command()
def retry(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="The run whose blocked and failed dates are built.")],
    fallback: FallbackOption = None,
    force: Force = False,
    reason: Reason = None,
    allow_partial: AllowPartial = False,
    no_preflight: NoPreflight = False,
    sequential: Sequential = False,
    window: Window = None,
    workers: Workers = None,
    detach: Detach = False,
    yes: Yes = False,
) -> None:
    """Build the blocked and failed dates of a run again, in a new run, and no others."""
    from producer.attended import Launch, launch_and_follow

    because = _forced(force, reason)
    settings = read_settings()
    site = open_site(settings)
    earlier = site.ledger.run(run_id)
    progress = site.ledger.progress(run_id)
    if not progress.run.ended:
        raise UserError(f"run {run_id} is still {progress.run.state.value}: wait for its end with `backfill watch`")
    incomplete = site.ledger.dates(run_id, states=[DateState.BLOCKED, DateState.FAILED])
    days = tuple(row.day for row in incomplete)
    if not days:
        make_console().print(f"run {run_id} has no blocked or failed dates: nothing to retry")
        raise typer.Exit(COMPLETE)
    launch = Launch(
        request=Request(
            job=earlier.job,
            days=days,
            fallback=fallback or Fallback(earlier.options["fallback"]),
            forced_because=because,
        ),
        window=window or settings.window,
        workers=workers or settings.workers,
        sequential=sequential,
        allow_partial=allow_partial,
        preflight=not no_preflight,
    )
    raise typer.Exit(launch_and_follow(launch, settings, detach=detach, yes=yes, workers_asked=workers is not None))


@app.command()
def status(
    run_id: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run; the latest if left out.")] = None,
    as_json: AsJson = False,
    every_date: Annotated[
        bool, typer.Option("--every-date", help="Every date with its source check, not only the incomplete ones.")
    ] = False,
    last: Annotated[int, typer.Option("--last", min=0, max=1000, help="List so many runs besides.")] = 5,
) -> None:
    """Show how a run stands: which dates are blocked or failed, why, and whose rows are missing."""
    site = open_site(read_settings())
    console = make_console()
    latest = site.ledger.latest_runs(max(last, 1))
    if run_id is None and not latest:
        if as_json:
            print_json(None)
        else:
            console.print("no run was launched yet: start with `backfill plan --help`")
        return
    progress = site.ledger.progress(run_id or latest[0].id)
    rows = site.ledger.dates(progress.run.id)
    if as_json:
        print_json(run_json(progress, rows))
    else:
        print_run(console, progress, rows)
        if flags := site.ledger.flagged(progress.run.job):
            console.print(f"  flagged  {len(flags)} date(s): `backfill run --job {progress.run.job} --flagged`")
        if every_date:
            print_source_checks(console, rows)
        others = [one for one in latest if one.id != progress.run.id]
        if run_id is None and others and last:
            console.print()
            print_runs(console, others)
    unfinished = not progress.run.ended and not is_interrupted(progress.run)
    raise typer.Exit(COMPLETE if unfinished else exit_code(progress))


@app.command()
def watch(
    run_id: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run; the latest if left out.")] = None,
) -> None:
    """Follow a run to its end: dates done, blocked and failed, dates per second, time left."""
    from common.queue import make_app
    from producer.launch import follow

    settings = read_settings()
    site = open_site(settings)
    latest = site.ledger.latest_runs(1)
    if run_id is None and not latest:
        raise UserError("no run was launched yet")
    found = site.ledger.run(run_id or latest[0].id)
    celery = None
    if found.owner is None and site.settings.broker is not None:
        celery = make_app(settings, site.settings.broker.get_secret_value())
    console = make_console()
    try:
        with Watcher(console).showing() as watcher:
            progress = follow(found.id, site, watcher.show, app=celery)
    except KeyboardInterrupt:
        console.print(f"run {found.id} goes on")
        raise typer.Exit(INTERRUPTED) from None
    if not progress.run.ended:
        console.print(f"the process that ran {found.id} is gone: launch the same command again to complete its dates")
        raise typer.Exit(INCOMPLETE)
    print_run(console, progress, site.ledger.dates(found.id))
    raise typer.Exit(exit_code(progress))


@app.command()
def undo(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="The run whose published dates are taken back.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done with each date.")] = False,
    yes: Yes = False,
) -> None:
    """Give the dates that a run published the rows they held before it, and the checkpoints that went with them.

    A date that had no checkpoint before the run has none afterwards. Refuses, and changes nothing, when a later run
    or anybody else has built one of the dates since, or when what the run replaced is not kept any more.
    """
    from producer.aftermath import rewrite_history
    from producer.undo import plan_undo
    from producer.undo import undo as carry_out

    site = open_site(read_settings())
    console = make_console()
    planned = plan_undo(run_id, site)
    console.print(f"undo of run {run_id}, {planned.in_words()}")
    if dry_run:
        return
    if not yes and not sys.stdin.isatty():
        raise UserError("nothing was undone: nobody is at a terminal to be asked, so say --yes")
    if not yes and not typer.confirm(f"Undo {len(planned.days)} date(s)?"):
        raise UserError("nothing was undone")
    again = carry_out(planned, site, requester())
    rewrite_history(run_id, site)
    without = len(planned.days) - len(again)
    rest = f"; {without} have no checkpoint any more and count as not built" if without else ""
    console.print(f"undone: {len(planned.days)} date(s), {len(again)} have their earlier checkpoints again{rest}")


@app.command()
def jobs(as_json: AsJson = False) -> None:
    """List the installed jobs with their tables."""
    found = [find_job(name) for name in job_names()]
    if as_json:
        print_json([_job_json(one) for one in found])
        return
    console = make_console()
    for one in found:
        console.print(f"[bold]{one.name}[/bold]  version {one.version}  {one.description}")
        for role, table in one.tables():
            console.print(f"  {role:<20} {table}")


@app.command()
def load(
    table: Annotated[str, typer.Argument(help="The table, as dataset.table.")],
    file: Annotated[Path, typer.Argument(help="A CSV file with a header, or a Parquet file.")],
    date_column: Annotated[
        str | None,
        typer.Option(help="The column that dates each row.  [default: what the table or a job says]"),
    ] = None,
) -> None:
    """Load a CSV or Parquet file into a table of the warehouse, replacing the dates it holds: all or nothing."""
    from producer.load import load_file

    settings = read_settings()
    site = open_site(settings)
    built_by = [name for name in job_names() if find_job(name).target.table == table]  # a job that can't load refuses
    loaded = load_file(site.warehouse, table, file, date_column)
    make_console().print(loaded.in_words())
    for name in built_by:
        make_console().print(
            f"note: it is the target of job {name}: where this replaced checkpointed rows, the next run over "
            f"the date builds it again",
            soft_wrap=True,
        )


@app.command()
def demo() -> None:
    """Make a season of data with the incident planted, run the job over it, and replay the incident."""
    from producer.demo import run_demo

    raise typer.Exit(run_demo(read_settings(), make_console()))


add_setup_commands(app)
add_audit_commands(app)
add_alert_commands(app)
add_metrics_command(app)
add_up_commands(app)
add_cleanup_commands(app)
add_history_commands(app)


# -- shared by the commands -----------------------------------------------------------------------------------


def _days(start: str | None, end: str | None, dates: list[str] | None, exclude: list[str] | None) -> tuple[date, ...]:
    if dates and (start or end):
        raise UserError("give either --dates or --start-date and --end-date, not both")
    if not dates and not (start and end):
        raise UserError("give --start-date and --end-date, or --dates")
    span = DateRange(start=parse_date(start), through=parse_date(end)) if start and end else None
    return requested_days(span, input_list(dates or [], "--dates"), input_list(exclude or [], "--exclude"))


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
    flags = open_site(read_settings()).ledger.flagged(found.name)
    if not flags:
        if as_json:
            print_json(None)
        else:
            make_console().print(f"no date of {found.name} is flagged: nothing to do")
        raise typer.Exit(COMPLETE)
    return requested_days(None, list(flags), input_list(exclude or [], "--exclude")), Reprocess.ALL


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
) -> Request:
    return Request(
        job=find_job(_named(job)).name,
        days=days,
        excluded=input_list(exclude or [], "--exclude"),
        reprocess=reprocess,
        newest_first=newest_first,
        fallback=fallback,
        forced_because=because,
    )


def _forced(force: bool, reason: str | None) -> str | None:
    said = (reason or "").strip()
    if force and not said:
        raise UserError("--force needs --reason: it is stored with every date that is forced")
    if said and not force:
        raise UserError("--reason is for --force")
    return said if force else None


def _job_json(job: Job) -> dict[str, Any]:
    return {
        "name": job.name,
        "version": job.version,
        "description": job.description,
        "tables": [{"role": role, "table": table} for role, table in job.tables()],
        "fallback": job.fallback.value,
        "complete_ratio": job.policy.complete_ratio,
        "accept_ratio": job.policy.accept_ratio,
    }


def main() -> None:
    """The console script: errors become one line and an exit code."""
    try:
        code = app(standalone_mode=False)
    except BackfillError as exc:
        _fail(str(exc))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except TyperException as exc:
        _fail(exc.format_message())
    except Abort:
        _fail("nothing was started")
    sys.exit(code if isinstance(code, int) else COMPLETE)


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"backfill: {' '.join(message.split())}\n")
    sys.exit(REFUSED)


if __name__ == "__main__":
    main()
