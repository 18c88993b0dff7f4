"""The process behind `backfill run --detach` on the embedded stack: it owns the run and the stack until its end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import BackfillError, UserError
from gated_backfill.common.ledger import Progress, Run
from gated_backfill.common.model.registry import find_job
from gated_backfill.producer.context import Site, open_site
from gated_backfill.producer.planning.plan import Plan
from gated_backfill.producer.runs.post_run import end_told
from gated_backfill.producer.runs.session import Interrupted, Launch, decide, execute, refuse_blocked
from gated_backfill.producer.stack.startup_answer import answer


def main() -> int:
    """Reads a launch from standard input and answers with one line, `run ID` or `refused WHY`; then works on."""
    launch = Launch.from_json(json.loads(sys.stdin.read()))
    try:
        site = open_site(read_settings())
        job = find_job(launch.request.job)
        plan = decide(launch, job, site)
        if launch.shown not in (None, plan.digest()):
            raise UserError("the world has changed since the plan was shown a moment ago: nothing was started")
        refuse_blocked(plan, allow_partial=launch.allow_partial)
        with end_told(site) as remember:
            return _run(launch, plan, site, remember)
    except BackfillError as exc:
        answer(f"refused {exc}")
        return 2


def _run(launch: Launch, plan: Plan, site: Site, remember: Callable[[Run], None]) -> int:
    def opened(run: Run) -> None:
        remember(run)
        _announce(run)

    try:
        execute(launch, plan, site, _ignore, opened)
    except Interrupted:
        return 130
    return 0


def _announce(run: Run) -> None:
    answer(f"run {run.id}")


def _ignore(progress: Progress) -> None:
    """Nobody watches here: `backfill watch` reads the ledger."""


if __name__ == "__main__":
    sys.exit(main())
