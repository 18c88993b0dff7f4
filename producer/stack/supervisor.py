"""The supervisor process of `backfill up`: starts the stack, answers, and restarts dead processes."""

from __future__ import annotations

import json
import sys

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import BackfillError
from gated_backfill.common.process.logs import configure_logs
from gated_backfill.common.process.signals import interrupt_on_signals
from gated_backfill.producer.stack.background_process import send_startup_answer
from gated_backfill.producer.stack.supervised_stack import SupervisedStack, UpOptions, check_places


def main() -> int:
    """Read the options from standard input, answer with one line, `up` or `refused REASON`, and supervise the stack."""
    configure_logs()
    options = UpOptions(**json.loads(sys.stdin.read()))
    settings = read_settings()
    try:
        with interrupt_on_signals():
            check_places(settings)
            with SupervisedStack(settings, options) as stack:
                send_startup_answer("up")
                stack.supervise()
    except KeyboardInterrupt:
        return 0
    except BackfillError as exc:
        send_startup_answer(f"refused {' '.join(str(exc).split())}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
