"""A launch with somebody watching: shown as a plan, asked about where it is large, followed to its end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import typer
from rich.console import Console

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.ledger import Run, RunState
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.process.logs import logging_to_file
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
from gated_backfill.producer.stack.signals import interrupt_on_signals
from gated_backfill.producer.terminal.console import make_console, print_json
from gated_backfill.producer.terminal.exit_codes import COMPLETE, INCOMPLETE, INTERRUPTED
from gated_backfill.producer.terminal.plan import print_plan
from gated_backfill.producer.terminal.runs import exit_code_for_run, print_run, run_json
from gated_backfill.producer.terminal.watcher import RunWatcher

CONFIRM_FROM_DATES = 500  #: dates to build from which a person at a terminal is asked first


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

    With `as_json`, the only output on stdout is one JSON object; the lines for people go to stderr.
    """
    console = make_console(stderr=as_json)
    site = open_context(settings)
    job = find_job(launch.request.job)
    for released in release_interrupted_runs(job, launch.request, site):
        console.print(
            f"run {released.run.id} was interrupted: {released.checkpointed} of its dates are checkpointed, "
            f"{released.unfinished} are free again"
        )
    made = plan_launch(launch, job, site)
    check(made)
    print_plan(console, made)
    check_nothing_blocked(made, allow_partial=launch.allow_partial)
    if not made.steps_with(PlanAction.BUILD) and not made.steps_with(PlanAction.BLOCKED):
        console.print(_nothing_to_do(made))
        code = _at_best(COMPLETE, made)
        return _print_result({"run": None, "result": _nothing_to_do(made)}, code, as_json=as_json)
    _ask(made, launch, yes=yes)
    if not launch.sequential:
        _tell_the_stack(site, console, workers_asked=workers_given)
    if detach and site.is_embedded:
        run_id = launch_in_background(replace(launch, shown=made.digest()), settings)
        console.print(f"run {run_id} continues in the background: follow it with `backfill watch {run_id}`")
        return _print_result({"run": run_id}, COMPLETE, as_json=as_json)
    return _follow(launch, made, site, console, detach=detach, as_json=as_json)


def _print_result(result: dict[str, Any], code: int, *, as_json: bool) -> int:
    """Print the result as JSON when that was asked for. Returns the exit code."""
    if as_json:
        print_json(result | {"exit_code": code})
    return code


def _tell_the_stack(site: CommandContext, console: Console, *, workers_asked: bool) -> None:
    """Whose broker and workers do it, when they are not the run's own."""
    if site.uses_running_stack:
        console.print("on the stack that is up: its broker and workers do it, and it goes on without this command")
    if workers_asked and not site.is_embedded:
        console.print("note: --workers has no effect here: it is for the stack that a run brings along")


def _follow(launch: Launch, made: Plan, site: CommandContext, console: Console, *, detach: bool, as_json: bool) -> int:
    """Run, show how it ended, and then tell it: an endpoint that hangs keeps nobody from the result."""
    log_file = site.settings.home / "logs" / "command.log"
    with interrupt_on_signals(), logging_to_file(log_file), post_run_reporting(site) as remember:

        def opened(run: Run) -> None:
            remember(run)
            console.print(f"run [bold]{run.id}[/bold]")

        return _run_and_show(launch, made, site, console, opened, detach=detach, as_json=as_json)


def _run_and_show(
    launch: Launch,
    made: Plan,
    site: CommandContext,
    console: Console,
    opened: Callable[[Run], None],
    *,
    detach: bool,
    as_json: bool,
) -> int:
    try:
        with RunWatcher(console).live_display() as watcher:
            progress = execute_plan(launch, made, site, watcher.update, opened, wait=not detach)
    except LaunchInterrupted as stop:
        console.print(describe_interruption(stop))
        return _print_result({"run": stop.run.id}, INTERRUPTED, as_json=as_json)
    run_id = progress.run.id
    if detach and not progress.run.has_ended:
        console.print(f"follow it with `backfill watch {run_id}`")
        return _print_result({"run": run_id}, COMPLETE, as_json=as_json)
    code = _at_best(exit_code_for_run(progress), made)
    if as_json:
        return _print_result(run_json(progress, site.ledger.dates.list_dates(run_id)), code, as_json=True)
    summary, actions = site.ledger.dates.get_run_summary(run_id), site.ledger.actions.list_actions(run_id)
    print_run(console, progress, summary, actions)
    if progress.run.state is RunState.CANCELLED:
        console.print(f"build the other dates: `backfill retry {run_id}`")
    elif progress.run.state is not RunState.SUCCEEDED:
        console.print(f"after fixing the cause: `backfill retry {run_id}`")
    return code


def _at_best(code: int, made: Plan) -> int:
    """The exit code, but never that of a complete range when dates were left incomplete."""
    return INCOMPLETE if code == COMPLETE and any(step.is_left_incomplete for step in made.steps) else code


def describe_interruption(stop: LaunchInterrupted) -> str:
    if stop.released is None:
        return f"run {stop.run.id} goes on at the broker: follow it with `backfill watch {stop.run.id}`"
    return (
        f"run {stop.run.id} is cancelled: {stop.released.checkpointed} of its dates are checkpointed, "
        f"{stop.released.unfinished} are free again; the same command completes them"
    )


def _nothing_to_do(made: Plan) -> str:
    done, skipped = len(made.steps_with(PlanAction.DONE)), len(made.steps_with(PlanAction.SKIP))
    if left := sum(step.is_left_incomplete for step in made.steps):
        return f"nothing was built: {left} date(s) are not complete and were left so; --reprocess failed builds them"
    if done and not skipped:
        return f"nothing to do: all {done} date(s) are checkpointed"
    return f"nothing to do: {done} date(s) are checkpointed, {skipped} have nothing to build"


def _ask(made: Plan, launch: Launch, *, yes: bool) -> None:
    """At a terminal, ask before what is large or replaces what is published."""
    count = len(made.steps_with(PlanAction.BUILD))
    replaces = launch.request.reprocess is Reprocess.ALL or launch.request.forced_because is not None
    if yes or not sys.stdin.isatty() or not (replaces or count >= CONFIRM_FROM_DATES):
        return
    if not typer.confirm(f"Build {count} date(s)?"):
        raise UserError("nothing was started")
