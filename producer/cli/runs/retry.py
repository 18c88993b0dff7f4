"""`backfill retry`: build the dates that an earlier run left incomplete."""

from __future__ import annotations

from datetime import date

import click

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.ledger import DateState, Run
from gated_backfill.common.model.coverage import Fallback
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
    """Build the dates that a run left blocked, failed or cancelled, in a new run, and no others."""
    forced_because = arguments.forced_because
    settings = read_settings()
    context = open_context(settings)
    earlier = context.ledger.runs.get_run(run_id)
    days = _unfinished_days(earlier, context)
    if not days:
        if arguments.as_json:
            print_json(None)
        else:
            make_console().print(f"run {run_id} has no blocked, failed or cancelled dates: nothing to retry")
        raise SystemExit(COMPLETE)
    request = RunRequest(
        job=earlier.job,
        days=days,
        fallback=arguments.fallback or Fallback(earlier.options["fallback"]),
        forced_because=forced_because,
        reason=strip_reason(arguments.reason),
    )
    raise SystemExit(arguments.launch(request, settings))


def _unfinished_days(run: Run, context: CommandContext) -> tuple[date, ...]:
    """The dates that the run did not complete. Raises `UserError` while the run may still complete them."""
    if not run.has_ended and not is_interrupted(run):
        raise UserError(f"run {run.id} is still {run.state.value}: wait for its end with `backfill watch`")
    complete = (DateState.CHECKPOINTED, DateState.SKIPPED)
    return tuple(row.day for row in context.ledger.dates.list_dates(run.id) if row.state not in complete)
