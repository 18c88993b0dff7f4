"""Start a worker like `celery worker`, without the imports of Celery's command line."""

from __future__ import annotations

import argparse
import sys


def main() -> None:
    options = _options()
    from gated_backfill.worker.app import app  # needs a broker, unlike --help

    worker = app.Worker(
        hostname=options.hostname,
        queues=options.queues,
        concurrency=options.concurrency,
        loglevel="WARNING",
        without_gossip=True,  # events between workers are not used
        without_mingle=True,
    )
    worker.start()
    sys.exit(worker.exitcode)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gated_backfill.worker", description=__doc__)
    parser.add_argument("--hostname", required=True, help="name of the worker, as NAME@HOST")
    parser.add_argument("--queues", required=True, help="queues to consume, separated by commas")
    parser.add_argument("--concurrency", required=True, type=int, help="number of processes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
