"""`backfill retry`: build the dates that an earlier run left incomplete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

import click

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.ledger import Checkpoint, DateState, Run
from gated_backfill.common.model.coverage import Fallback
from gated_backfill.common.model.dates import enclosing_range, format_dates
from gated_backfill.common.runs.interrupted import is_interrupted
from gated_backfill.producer.cli.options import run_argument, strip_reason
from gated_backfill.producer.cli.runs.run_options import JUDGING_OPTIONS, LAUNCH_OPTIONS, RunArguments, run_arguments
from gated_backfill.producer.context import CommandContext, open_context
from gated_backfill.producer.planning.plan import RunRequest
from gated_backfill.producer.terminal.console import make_console, print_json
from gated_backfill.producer.terminal.exit_codes import COMPLETE


@click.command
@run_argument
@run_arguments(*JUDGING_OPTIONS, *LAUNCH_OPTIONS)
def retry(arguments: RunArguments, run_id: str) -> None:
    """Build the dates that a run left blocked, failed or cancelled, in a new run, and no others.

    Also those that the run was to build again. A date that a later run has completed is built only if it is not
    complete any more.
    """
    forced_because = arguments.forced_because
    settings = read_settings()
    context = open_context(settings)
    earlier = context.ledger.runs.get_run(run_id)
    unfinished = find_unfinished_dates(earlier, context)
    if not unfinished.days:
        if arguments.as_json:
            print_json(None)
        else:
            make_console().print(f"run {run_id} has no blocked, failed or cancelled dates: nothing to retry")
        raise SystemExit(COMPLETE)
    for line in unfinished.describe_completed():
        make_console(stderr=arguments.as_json).print(line)
    request = RunRequest(
        job=earlier.job,
        days=unfinished.days,
        rebuilt=unfinished.rebuilt,
        fallback=arguments.fallback or Fallback(earlier.options["fallback"]),
        forced_because=forced_because,
        reason=strip_reason(arguments.reason),
    )
    raise SystemExit(arguments.launch(request, settings, facts={"completed_since": unfinished.completed_json()}))


@dataclass(frozen=True, kw_only=True)
class UnfinishedDates:
    """The dates that a run did not complete."""

    days: tuple[date, ...]
    completed_by: Mapping[date, str]  #: by date, the later run that has completed it

    @property
    def rebuilt(self) -> tuple[date, ...]:
        """The dates to build whatever an earlier run had made of them."""
        return tuple(day for day in self.days if day not in self.completed_by)

    def describe_completed(self) -> list[str]:
        """One line for each run that has completed some of the dates since."""
        return [
            f"{len(days)} date(s) were completed by run {run} since: {format_dates(days)}"
            for run, days in self._days_by_run().items()
        ]

    def completed_json(self) -> list[dict[str, object]]:
        return [{"run": run, "days": days} for run, days in self._days_by_run().items()]

    def _days_by_run(self) -> dict[str, list[date]]:
        days_by_run: dict[str, list[date]] = {}
        for day, run in sorted(self.completed_by.items()):
            days_by_run.setdefault(run, []).append(day)
        return days_by_run


def find_unfinished_dates(run: Run, context: CommandContext) -> UnfinishedDates:
    """Find the dates that the run did not complete. Raises `UserError` while the run may still complete them."""
    if not run.has_ended and not is_interrupted(run):
        raise UserError(f"run {run.id} is still {run.state.value}: wait for its end with `backfill watch`")
    complete = (DateState.CHECKPOINTED, DateState.SKIPPED)
    days = tuple(row.day for row in context.ledger.dates.list_dates(run.id) if row.state not in complete)
    if not days:
        return UnfinishedDates(days=(), completed_by={})
    span = enclosing_range(days)
    checkpoints = context.ledger.checkpoints.list_checkpoints(run.job, span.start, span.through)
    completed_by = {
        day: checkpoints[day].run_id for day in days if day in checkpoints and _is_later(checkpoints[day], run)
    }
    return UnfinishedDates(days=days, completed_by=completed_by)


def _is_later(checkpoint: Checkpoint, run: Run) -> bool:
    """Whether another run wrote the checkpoint since the run was opened; until it ended, nobody else had its dates."""
    return checkpoint.run_id != run.id and checkpoint.checkpointed_at > run.created_at
