"""Launch of a job's newest dates by its schedule. Maintenance workers import this module by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import date

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import CheckpointedMeanwhile
from gated_backfill.common.ledger import Run, RunProgress
from gated_backfill.common.model.registry import find_job
from gated_backfill.producer.context import CommandContext, open_context
from gated_backfill.producer.planning.plan import PlanAction, RunRequest
from gated_backfill.producer.runs.session import Launch, execute_plan, plan_launch

REASON = "the job's schedule"


@dataclass(frozen=True, kw_only=True)
class ScheduledLaunch:
    """What was launched, and what has to wait."""

    run_id: str | None  #: None if no date was to be built
    waiting: Mapping[date, str]  #: dates that would be blocked now, with the reason


def launch_scheduled(job: str, days: Sequence[date], settings: Settings) -> ScheduledLaunch:
    """Launch a run of the days that can be built, and return without waiting for its end.

    A day that is complete is left as it is. Raises `DatesInUse` when another run has one of them.
    """
    context = open_context(settings)
    with closing(context.ledger):
        while True:
            try:
                return _launch(job, days, context)
            except CheckpointedMeanwhile:  # planned again: these dates are complete now
                continue


def _launch(job_name: str, days: Sequence[date], context: CommandContext) -> ScheduledLaunch:
    job = find_job(job_name)
    launch = Launch(
        request=RunRequest(job=job_name, days=tuple(sorted(days)), reason=REASON),
        window=context.settings.window,
        workers=context.settings.workers,
        sequential=context.is_embedded,  # without a broker, there are no workers to send to
    )
    plan = plan_launch(launch, job, context)
    waiting = {step.day: step.reason for step in plan.steps_with(PlanAction.BLOCKED)}
    plan = replace(
        plan,
        request=replace(plan.request, days=tuple(day for day in plan.request.days if day not in waiting)),
        steps=tuple(step for step in plan.steps if step.day not in waiting),
    )
    if not plan.steps_with(PlanAction.BUILD):
        return ScheduledLaunch(run_id=None, waiting=waiting)
    progress = execute_plan(launch, plan, context, _ignore_progress, _ignore_run, wait=False)
    return ScheduledLaunch(run_id=progress.run.id, waiting=waiting)


def _ignore_progress(progress: RunProgress) -> None:
    """Show nothing: `backfill watch` reads the ledger."""


def _ignore_run(run: Run) -> None:
    """Report nothing: the workers report the run's end."""
