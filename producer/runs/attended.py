"""A launch at a terminal: show the plan, ask before a large one, and follow the run to its end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import CheckpointedMeanwhile
from gated_backfill.common.ledger import Run, RunState
from gated_backfill.common.model.dates import format_dates
from gated_backfill.common.model.job_versions import STALE_PREFIX
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.process.logs import logging_to_file
from gated_backfill.common.process.signals import interrupt_on_signals
from gated_backfill.common.runs.silent_workers import list_silent_workers
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
from gated_backfill.producer.terminal.console import Console, confirm, line, make_console, print_json, styled
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
    facts: Mapping[str, Any] | None = None,
    workers_given: bool = False,
) -> int:
    """Plan a launch, print the plan, ask for confirmation, and run it. Returns the exit code.

    With `as_json`, stdout gets one JSON object and stderr the other lines. `check` may raise to stop the launch;
    `workers_given` says whether the user chose a number of workers; `facts` are added to the JSON object.

    Plans again if another run has checkpointed dates between plan and launch, so that no date is built twice.
    """
    while True:
        try:
            return _launch_and_follow(
                launch,
                settings,
                detach=detach,
                yes=yes,
                as_json=as_json,
                check=check,
                facts=facts or {},
                workers_given=workers_given,
            )
        except CheckpointedMeanwhile as exc:
            make_console(stderr=as_json).print(f"{exc}: planning again")


def _launch_and_follow(
    launch: Launch,
    settings: Settings,
    *,
    detach: bool,
    yes: bool,
    as_json: bool,
    check: Callable[[Plan], None],
    facts: Mapping[str, Any],
    workers_given: bool,
) -> int:
    console = make_console(stderr=as_json)
    output = _JsonOutput(is_wanted=as_json, facts=facts)
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
        result = {"run": None, "result": _nothing_to_do(plan), **_left_json(plan)}
        return output.print(result, code)
    _confirm(plan, launch, yes=yes)
    if not launch.sequential:
        _print_stack(context, console, workers_given=workers_given)
    if detach and context.is_embedded:
        run_id = launch_in_background(replace(launch, shown=plan.digest()), settings)
        console.print(f"run {run_id} continues in the background: follow it with `backfill watch {run_id}`")
        return output.print({"run": run_id}, COMPLETE)
    return _follow(launch, plan, context, console, output, detach=detach)


@dataclass(frozen=True, kw_only=True)
class _JsonOutput:
    """The JSON object that the command prints at its end, if it is wanted."""

    is_wanted: bool
    facts: Mapping[str, Any]  #: part of every result

    def print(self, result: Mapping[str, Any], code: int) -> int:
        """Print the result with the exit code, which is returned."""
        if self.is_wanted:
            print_json({**result, **self.facts, "exit_code": code})
        return code


def _print_stack(context: CommandContext, console: Console, *, workers_given: bool) -> None:
    """Print a note when the run uses the running stack, or when its `--workers` option has no effect."""
    if context.uses_running_stack:
        console.print("on the running stack (`backfill up`): the run continues when this command ends")
    if workers_given and not context.is_embedded:
        console.print("note: --workers has no effect here: it is for the stack that a run starts for itself")


def _follow(
    launch: Launch, plan: Plan, context: CommandContext, console: Console, output: _JsonOutput, *, detach: bool
) -> int:
    """Run, show the result, and report afterwards, so that a hanging alert endpoint does not delay the result."""
    log_file = context.settings.home / "logs" / "command.log"
    with interrupt_on_signals(), logging_to_file(log_file), post_run_reporting(context) as report_later:

        def on_open(run: Run) -> None:
            report_later(run)
            console.print(line("run ", styled(run.id, "bold")))

        return _run_and_show(launch, plan, context, console, on_open, output, detach=detach)


def _run_and_show(
    launch: Launch,
    plan: Plan,
    context: CommandContext,
    console: Console,
    on_open: Callable[[Run], None],
    output: _JsonOutput,
    *,
    detach: bool,
) -> int:
    try:
        with RunWatcher(console).live_display() as watcher:
            progress = execute_plan(launch, plan, context, watcher.update, on_open, wait=not detach)
    except LaunchInterrupted as exc:
        console.print(describe_interruption(exc))
        return output.print({"run": exc.run.id}, INTERRUPTED)
    run_id = progress.run.id
    if detach and not progress.run.has_ended:
        console.print(f"follow it with `backfill watch {run_id}`")
        return output.print({"run": run_id}, COMPLETE)
    code = _limit_exit_code(exit_code_for_run(progress), plan)
    actions = context.ledger.actions.list_actions(run_id)
    if output.is_wanted:
        silent = list_silent_workers(progress.run, context.ledger)
        result = run_json(progress, context.ledger.dates.list_dates(run_id), actions, silent=silent) | _left_json(plan)
        return output.print(result, code)
    print_run(console, progress, context.ledger.dates.get_run_summary(run_id), actions)
    if progress.run.state is RunState.CANCELLED:
        console.print(f"build the other dates: `backfill retry {run_id}`")
    elif progress.run.state is not RunState.SUCCEEDED:
        console.print(f"after fixing the cause: `backfill retry {run_id}`")
    for left in filter(None, (describe_undone(plan), describe_stale(plan))):
        console.print(left)
    return code


def _limit_exit_code(code: int, plan: Plan) -> int:
    """The exit code, but INCOMPLETE instead of COMPLETE when dates were left incomplete."""
    is_incomplete = any(step.is_left_incomplete or step.action is PlanAction.UNDONE for step in plan.steps)
    return INCOMPLETE if code == COMPLETE and is_incomplete else code


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
    if left := "; ".join(filter(None, (describe_undone(plan), describe_stale(plan)))):
        return f"nothing was built: {done} date(s) are checkpointed, {skipped} have nothing to build; {left}"
    if done and not skipped:
        return f"nothing to do: all {done} date(s) are checkpointed"
    return f"nothing to do: {done} date(s) are checkpointed, {skipped} have nothing to build"


def describe_stale(plan: Plan) -> str:
    """The stale dates by reason, and how to build them; empty without any."""
    days_by_reason: dict[str, list[date]] = {}
    for step in plan.steps_with(PlanAction.STALE):
        days_by_reason.setdefault(step.reason.removeprefix(STALE_PREFIX), []).append(step.day)
    if not days_by_reason:
        return ""
    reasons = "; ".join(f"{format_dates(days)}: {reason}" for reason, days in days_by_reason.items())
    count = sum(map(len, days_by_reason.values()))
    return f"{count} date(s) are stale ({reasons}): the same command with --reprocess stale builds them"


def describe_undone(plan: Plan) -> str:
    """The dates that are left as they are because their run was undone; empty without any."""
    days = [step.day for step in plan.steps_with(PlanAction.UNDONE)]
    if not days:
        return ""
    return (
        f"{len(days)} date(s) are undone ({format_dates(days)}): the same command with --reprocess undone builds them"
    )


def _left_json(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """The dates that were left as they are although they are stale or undone."""
    return {
        action.value: [{"day": step.day, "reason": step.reason} for step in plan.steps_with(action)]
        for action in (PlanAction.STALE, PlanAction.UNDONE)
    }


def _confirm(plan: Plan, launch: Launch, *, yes: bool) -> None:
    """At a terminal, ask before a run that is large or replaces published dates."""
    count = len(plan.steps_with(PlanAction.BUILD))
    keeps_published = launch.request.reprocess in (Reprocess.NONE, Reprocess.FAILED)
    replaces = not keeps_published or launch.request.forced_because is not None
    if sys.stdin.isatty() and (replaces or count >= CONFIRM_FROM_DATES):
        confirm(yes, f"Build {count} date(s)?", "started")
