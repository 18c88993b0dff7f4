"""A worker of every queue, for a lab's broker: one process, so that it is cheap."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gated_backfill.common.model.queues import QUEUES
from tests.lab import Lab


@contextmanager
def worker(lab: Lab, *more: str, **environment: str) -> Iterator[Path]:
    """Runs as long as it is in use; yields its log."""
    log_file = lab.home.parent / "worker.log"
    words = ["--queues", ",".join(QUEUES), "--without-gossip", "--without-mingle", "--loglevel", "WARNING"]
    command = [
        sys.executable,
        "-m",
        "celery",
        "--app",
        "gated_backfill.worker.app",
        "worker",
        "--concurrency",
        "1",
        *words,
        *more,
    ]
    with log_file.open("w") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=lab.environment() | environment
        )
    try:
        yield log_file
        assert process.poll() is None, log_file.read_text()
    finally:
        process.kill()
        process.wait()
