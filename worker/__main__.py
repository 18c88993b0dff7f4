"""A worker as a command brings it along: `celery worker`, without all that Celery's command line imports besides."""

from __future__ import annotations

import argparse
import sys

from gated_backfill.common.process.imports import freeze_imports


def main() -> None:
    options = _options()
    with freeze_imports():
        from gated_backfill.worker.app import app

        starts = app.Worker  # imported by being asked for
    worker = starts(
        hostname=options.hostname,
        queues=options.queues,
        concurrency=options.concurrency,
        loglevel="WARNING",
        without_gossip=True,  # what workers tell each other, nobody here asks for
        without_mingle=True,
    )
    worker.start()
    sys.exit(worker.exitcode)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gated_backfill.worker", description=__doc__)
    parser.add_argument("--hostname", required=True, help="its name among workers: NAME@HOST")
    parser.add_argument("--queues", required=True, help="what it consumes, with commas between")
    parser.add_argument("--concurrency", required=True, type=int, help="its processes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
