"""The background process of `backfill run --detach` on the embedded stack: owns the run and its stack."""

from __future__ import annotations

import sys
from collections.abc import Callable

from pydantic import TypeAdapter

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import BackfillError, UserError
from gated_backfill.common.ledger import Run, RunProgress
from gated_backfill.common.model.registry import find_job
from gated_backfill.producer.context import CommandContext, open_context
from gated_backfill.producer.planning.plan import Plan
from gated_backfill.producer.runs.post_run import post_run_reporting
from gated_backfill.producer.runs.session import (
    Launch,
    LaunchInterrupted,
    check_nothing_blocked,
    execute_plan,
    plan_launch,
)
from gated_backfill.producer.stack.background_process import send_startup_answer


def main() -> int:
    """Read a launch from standard input, answer with one line, `run ID` or `refused REASON`, and run it."""
    launch = TypeAdapter(Launch).validate_json(sys.stdin.read(), strict=True)
    try:
        context = open_context(read_settings())
        job = find_job(launch.request.job)
        plan = plan_launch(launch, job, context)
        if launch.shown not in (None, plan.digest()):
            raise UserError("the plan changed after it was shown: nothing was started; plan again")
        check_nothing_blocked(plan, allow_partial=launch.allow_partial)
        with post_run_reporting(context) as report_later:
            return _run(launch, plan, context, report_later)
    except BackfillError as exc:
        send_startup_answer(f"refused {exc}")
        return 2


def _run(launch: Launch, plan: Plan, context: CommandContext, report_later: Callable[[Run], None]) -> int:
    def on_open(run: Run) -> None:
        report_later(run)
        _announce(run)

    try:
        execute_plan(launch, plan, context, _ignore_progress, on_open)
    except LaunchInterrupted:
        return 130
    return 0


def _announce(run: Run) -> None:
    send_startup_answer(f"run {run.id}")


def _ignore_progress(progress: RunProgress) -> None:
    """Show nothing: `backfill watch` reads the ledger."""


if __name__ == "__main__":
    sys.exit(main())
