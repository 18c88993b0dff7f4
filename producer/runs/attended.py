"""A launch at a terminal: show the plan, ask before a large one, and follow the run to its end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rich.console import Console

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.ledger import Run, RunState
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.process.logs import logging_to_file
from gated_backfill.common.process.signals import interrupt_on_signals
from gated_backfill.producer.context import CommandContext, open_context
from gated_backfill.producer.planning.plan import Plan, PlanAction, Reprocess
from gated_backfill.producer.runs.post_run import post_run_reporting
from gated_backfill.producer.runs.session import (
    Launch,
    LaunchInterrupted,
    check_nothing_blocked,
    execute_plan,
    launch_in_background,
    plan_launch,
    release_interrupted_runs,
)
from gated_backfill.producer.terminal.console import confirm, make_console, print_json
from gated_backfill.producer.terminal.exit_codes import COMPLETE, INCOMPLETE, INTERRUPTED
from gated_backfill.producer.terminal.plan import print_plan
from gated_backfill.producer.terminal.runs import exit_code_for_run, print_run, run_json
from gated_backfill.producer.terminal.watcher import RunWatcher

CONFIRM_FROM_DATES = 500  #: ask for confirmation at a terminal before a run of this many dates


def launch_and_follow(
    launch: Launch,
    settings: Settings,
    *,
    detach: bool = False,
    yes: bool = False,
    as_json: bool = False,
    check: Callable[[Plan], None] = lambda _: None,
    workers_given: bool = False,
) -> int:
    """Plan a launch, print the plan, ask for confirmation, and run it. Returns the exit code.

    With `as_json`, stdout gets one JSON object and stderr the other lines. `check` may raise to stop the launch;
    `workers_given` says whether the user chose a number of workers.
    """
    console = make_console(stderr=as_json)
    context = open_context(settings)
    job = find_job(launch.request.job)
    for released in release_interrupted_runs(job, launch.request, context):
        console.print(
            f"run {released.run.id} was interrupted: {released.checkpointed} of its dates are checkpointed, "
            f"{released.unfinished} are free again"
        )
    plan = plan_launch(launch, job, context)
    check(plan)
    print_plan(console, plan)
    check_nothing_blocked(plan, allow_partial=launch.allow_partial)
    if not plan.steps_with(PlanAction.BUILD) and not plan.steps_with(PlanAction.BLOCKED):
        console.print(_nothing_to_do(plan))
        code = _limit_exit_code(COMPLETE, plan)
        return _print_result({"run": None, "result": _nothing_to_do(plan)}, code, as_json=as_json)
    _confirm(plan, launch, yes=yes)
    if not launch.sequential:
        _print_stack(context, console, workers_given=workers_given)
    if detach and context.is_embedded:
        run_id = launch_in_background(replace(launch, shown=plan.digest()), settings)
        console.print(f"run {run_id} continues in the background: follow it with `backfill watch {run_id}`")
        return _print_result({"run": run_id}, COMPLETE, as_json=as_json)
    return _follow(launch, plan, context, console, detach=detach, as_json=as_json)


def _print_result(result: dict[str, Any], code: int, *, as_json: bool) -> int:
    """Print the result if `as_json`. Returns the exit code."""
    if as_json:
        print_json(result | {"exit_code": code})
    return code


def _print_stack(context: CommandContext, console: Console, *, workers_given: bool) -> None:
    """Print a note when the run uses the running stack, or when its `--workers` option has no effect."""
    if context.uses_running_stack:
        console.print("on the running stack (`backfill up`): the run continues when this command ends")
    if workers_given and not context.is_embedded:
        console.print("note: --workers has no effect here: it is for the stack that a run starts for itself")


def _follow(
    launch: Launch, plan: Plan, context: CommandContext, console: Console, *, detach: bool, as_json: bool
) -> int:
    """Run, show the result, and report afterwards, so that a hanging alert endpoint does not delay the result."""
    log_file = context.settings.home / "logs" / "command.log"
    with interrupt_on_signals(), logging_to_file(log_file), post_run_reporting(context) as report_later:

        def on_open(run: Run) -> None:
            report_later(run)
            console.print(f"run [bold]{run.id}[/bold]")

        return _run_and_show(launch, plan, context, console, on_open, detach=detach, as_json=as_json)


def _run_and_show(
    launch: Launch,
    plan: Plan,
    context: CommandContext,
    console: Console,
    on_open: Callable[[Run], None],
    *,
    detach: bool,
    as_json: bool,
) -> int:
    try:
        with RunWatcher(console).live_display() as watcher:
            progress = execute_plan(launch, plan, context, watcher.update, on_open, wait=not detach)
    except LaunchInterrupted as exc:
        console.print(describe_interruption(exc))
        return _print_result({"run": exc.run.id}, INTERRUPTED, as_json=as_json)
    run_id = progress.run.id
    if detach and not progress.run.has_ended:
        console.print(f"follow it with `backfill watch {run_id}`")
        return _print_result({"run": run_id}, COMPLETE, as_json=as_json)
    code = _limit_exit_code(exit_code_for_run(progress), plan)
    actions = context.ledger.actions.list_actions(run_id)
    if as_json:
        return _print_result(run_json(progress, context.ledger.dates.list_dates(run_id), actions), code, as_json=True)
    print_run(console, progress, context.ledger.dates.get_run_summary(run_id), actions)
    if progress.run.state is RunState.CANCELLED:
        console.print(f"build the other dates: `backfill retry {run_id}`")
    elif progress.run.state is not RunState.SUCCEEDED:
        console.print(f"after fixing the cause: `backfill retry {run_id}`")
    return code


def _limit_exit_code(code: int, plan: Plan) -> int:
    """The exit code, but INCOMPLETE instead of COMPLETE when dates were left incomplete."""
    return INCOMPLETE if code == COMPLETE and any(step.is_left_incomplete for step in plan.steps) else code


def describe_interruption(exc: LaunchInterrupted) -> str:
    if exc.released is None:
        return f"run {exc.run.id} continues on its workers: follow it with `backfill watch {exc.run.id}`"
    return (
        f"run {exc.run.id} is cancelled: {exc.released.checkpointed} of its dates are checkpointed, "
        f"{exc.released.unfinished} are free again; the same command completes them"
    )


def _nothing_to_do(plan: Plan) -> str:
    done, skipped = len(plan.steps_with(PlanAction.DONE)), len(plan.steps_with(PlanAction.SKIP))
    if incomplete := sum(step.is_left_incomplete for step in plan.steps):
        return f"nothing was built: {incomplete} incomplete date(s) were not selected; --reprocess failed builds them"
    if done and not skipped:
        return f"nothing to do: all {done} date(s) are checkpointed"
    return f"nothing to do: {done} date(s) are checkpointed, {skipped} have nothing to build"


def _confirm(plan: Plan, launch: Launch, *, yes: bool) -> None:
    """At a terminal, ask before a run that is large or replaces published dates."""
    count = len(plan.steps_with(PlanAction.BUILD))
    replaces = launch.request.reprocess is Reprocess.ALL or launch.request.forced_because is not None
    if sys.stdin.isatty() and (replaces or count >= CONFIRM_FROM_DATES):
        confirm(yes, f"Build {count} date(s)?", "started")
