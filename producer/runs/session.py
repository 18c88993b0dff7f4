"""Carry out a plan: on the embedded stack, on a running broker, or sequentially in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from gated_backfill.common.broker.celery_app import make_app
from gated_backfill.common.broker.health import ping_broker
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import ExpectationIncomplete, UserError
from gated_backfill.common.ledger import Run, RunProgress
from gated_backfill.common.model.coverage import INCOMPLETE_EXPECTATION
from gated_backfill.common.model.dates import format_dates
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.query import Query
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.private_files import make_private_folder
from gated_backfill.common.runs.release import ReleasedRun, release_run
from gated_backfill.common.storage.files import check_writable
from gated_backfill.common.warehouse.usage import LAUNCH, charging
from gated_backfill.producer.context import CommandContext, current_user
from gated_backfill.producer.planning.plan import (
    Plan,
    PlanAction,
    RunRequest,
    check_steps_to_build,
    check_window_publishable,
    make_plan,
)
from gated_backfill.producer.runs.launch import follow_run, open_run, release_dead_runs, run_sequentially, start_run
from gated_backfill.producer.stack.background_process import exchange_lines, start_background_process
from gated_backfill.producer.stack.children import clean_up_dead_stacks
from gated_backfill.producer.stack.embedded import EmbeddedStack

BACKGROUND_MODULE = "gated_backfill.producer.runs.background"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A request and how to carry it out."""

    request: RunRequest
    window: int
    workers: int
    sequential: bool = False
    allow_partial: bool = False
    preflight: bool = True
    max_in_flight: int | None = None  #: dates of the run in progress at once; None: the limit of the settings
    dates_per_task: int | None = None  #: None: auto
    shown: str | None = None  #: digest of the plan shown to the user; a background process checks that it is unchanged

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"request": self.request.as_json()}


class LaunchInterrupted(Exception):
    """The command was interrupted. Its own run is `released`; a run on a running broker continues."""

    def __init__(self, run: Run, released: ReleasedRun | None) -> None:
        super().__init__(run.id)
        self.run = run
        self.released = released


def release_interrupted_runs(job: Job, request: RunRequest, context: CommandContext) -> list[ReleasedRun]:
    """Release the dates of runs whose command has died, after killing their workers."""
    clean_up_dead_stacks(context.settings.home)
    return release_dead_runs(job, request.days, context)


def plan_launch(launch: Launch, job: Job, context: CommandContext) -> Plan:
    """Plan a launch, and record what was found unchanged, so that the next plan need not read it.

    Raises `DatesInUse` when another active run has one of its dates, `HostError` when a folder can't be written,
    `NotAllowed` when the warehouse says that nothing can be published to the target, and `UserError` for a target that
    is one of the tool's own tables, and for windows of more dates than can be published.
    """
    context.settings.check_not_own_table(job.target.table)
    _check_folders(job, context)
    with charging(LAUNCH):
        plan = make_plan(launch.request, job, context.warehouse, context.ledger)
    context.ledger.checkpoints.renew(plan.renewed_proofs)
    if not launch.preflight:
        plan = build_blocked_dates(plan)
        check_steps_to_build(plan.steps, job, context.warehouse)
    check_window_publishable(plan, _run_options(launch, plan, job, context).window, context.warehouse)
    context.ledger.runs.check_dates_free(job.name, [step.day for step in plan.steps_with(PlanAction.BUILD)])
    return plan


def build_blocked_dates(plan: Plan) -> Plan:
    """The plan, changed to build its blocked dates too and let the gate judge them."""
    steps = tuple(
        replace(step, action=PlanAction.BUILD, reason=f"{step.reason}; sent without pre-flight")
        if step.action is PlanAction.BLOCKED
        else step
        for step in plan.steps
    )
    return replace(plan, steps=steps)


def check_nothing_blocked(plan: Plan, *, allow_partial: bool) -> None:
    """Raise `UserError` with the dates that would be blocked, unless `allow_partial`.

    The error is an `ExpectationIncomplete` if it is the expectation of one of them that is incomplete.
    """
    blocked = plan.steps_with(PlanAction.BLOCKED)
    if blocked and not allow_partial:
        unexpected = [step for step in blocked if step.reason.startswith(INCOMPLETE_EXPECTATION)]
        first = (unexpected or blocked)[0]
        error = ExpectationIncomplete if unexpected else UserError
        raise error(
            f"refused: {len(blocked)} date(s) would be blocked: {format_dates(step.day for step in blocked)} "
            f"({first.day}: {first.reason}). Load the missing rows and plan again, or run the other dates with "
            f"--allow-partial, or take these out with --exclude; nothing was started"
        )


def execute_plan(
    launch: Launch,
    plan: Plan,
    context: CommandContext,
    show: Callable[[RunProgress], None],
    on_open: Callable[[Run], None],
    *,
    wait: bool = True,
) -> RunProgress:
    """Open the run of a plan and follow it to its end, or only start it unless `wait`.

    `show` is called with the progress, `on_open` with the stored run. Raises `LaunchInterrupted` when the user stops
    the command. The caller shows the result and then reports it, see `post_run_reporting`.
    """
    job = find_job(plan.request.job)
    context.warehouse.delete_expired_undo()
    options = _run_options(launch, plan, job, context)
    if not (context.is_embedded or launch.sequential):
        return _on_running_broker(plan, job, options, context, show, on_open, wait=wait)
    run = open_run(plan, job, options, context, owned=True)
    on_open(run)
    try:
        if launch.sequential:
            return run_sequentially(run, job, context, show)
        return _on_embedded_stack(run, job, launch, context, show)
    except KeyboardInterrupt:
        raise LaunchInterrupted(run, _release(run, job, context, "interrupted")) from None
    except BaseException as exc:
        _release(run, job, context, f"its command failed: {type(exc).__name__}")
        raise


def _run_options(launch: Launch, plan: Plan, job: Job, context: CommandContext) -> RunOptions:
    """Return the options of the run of a plan."""
    return RunOptions.for_job(
        job,
        window=launch.window,
        in_flight=context.settings.windows_in_flight,
        fallback=plan.request.fallback,
        forced_because=plan.request.forced_because,
        calendar=plan.has_calendar,
        max_in_flight=launch.max_in_flight or context.settings.max_in_flight,
        job_max_in_flight=context.settings.max_in_flight_per_job,
        dates_per_task=_dates_per_task(launch, job, context),
    )


def _dates_per_task(launch: Launch, job: Job, context: CommandContext) -> int | None:
    """The dates of a task; None for about a second of work.

    Where the warehouse stages the rows of a query itself, one statement builds all dates of a window.
    """
    if launch.dates_per_task is None and isinstance(job.process, Query) and context.warehouse.query_staging is not None:
        return launch.window
    return launch.dates_per_task


def _check_folders(job: Job, context: CommandContext) -> None:
    """Raise `HostError` or `NotAllowed` when the target, the staging or the home can't be written."""
    context.warehouse.check_publishable(TableName.parse(job.target.table))
    context.staging.check()
    home = context.settings.home.absolute()
    check_writable(home)
    make_private_folder(home)  # before anything is made in it, which would make it readable by everybody


def _on_embedded_stack(
    run: Run, job: Job, launch: Launch, context: CommandContext, show: Callable[[RunProgress], None]
) -> RunProgress:
    with EmbeddedStack(context.settings, launch.workers) as stack:
        app = make_app(context.settings.model_copy(update={"task_events": False}), stack.broker_url)
        start_run(run, job, context, app)
        return follow_run(run.id, context, show, app=app, stack=stack)


def _on_running_broker(
    plan: Plan,
    job: Job,
    options: RunOptions,
    context: CommandContext,
    show: Callable[[RunProgress], None],
    on_open: Callable[[Run], None],
    *,
    wait: bool,
) -> RunProgress:
    assert context.settings.broker is not None
    url = context.settings.broker.get_secret_value()
    ping_broker(context.settings, url)
    app = make_app(context.settings, url)
    run = open_run(plan, job, options, context, owned=False)
    on_open(run)
    start_run(run, job, context, app)
    if not wait:
        return context.ledger.runs.get_progress(run.id)
    try:
        return follow_run(run.id, context, show, app=app)
    except KeyboardInterrupt:
        raise LaunchInterrupted(run, None) from None


def _release(run: Run, job: Job, context: CommandContext, reason: str) -> ReleasedRun | None:
    if context.ledger.runs.get_run(run.id).has_ended:
        return None
    return release_run(
        run, job, context.ledger, context.warehouse, context.staging, by=current_user(context.settings), reason=reason
    )


def launch_in_background(launch: Launch, settings: Settings) -> str:
    """Run a launch in a background process with the embedded stack; returns the run's id once the run is open."""
    log_file = settings.home.absolute() / "logs" / "background.log"
    process = start_background_process(BACKGROUND_MODULE, settings, log_file)
    answer = exchange_lines(process, json.dumps(launch.as_json()))
    kind, _, text = answer.partition(" ")
    if kind != "run":
        raise UserError(text or f"the background process ended at once: see {log_file}")
    return text
