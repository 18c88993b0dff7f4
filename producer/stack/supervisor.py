"""The process behind `backfill up`: it starts the stack, says so, and keeps it up until it is told to stop."""

from __future__ import annotations

import json
import sys

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import BackfillError
from gated_backfill.common.process.logs import configure_logs
from gated_backfill.producer.stack.signals import stoppable
from gated_backfill.producer.stack.standing import StandingStack, UpOptions, check_places
from gated_backfill.producer.stack.startup_answer import answer


def main() -> int:
    """Reads options from standard input and answers with one line, `up` or `refused WHY`; then keeps the stack up."""
    configure_logs()
    options = UpOptions(**json.loads(sys.stdin.read()))
    settings = read_settings()
    try:
        with stoppable():
            check_places(settings)
            with StandingStack(settings, options) as stack:
                answer("up")
                stack.keep_up()
    except KeyboardInterrupt:
        return 0
    except BackfillError as exc:
        answer(f"refused {' '.join(str(exc).split())}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
