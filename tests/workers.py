"""Celery programs for a lab's broker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gated_backfill.common.ledger import DateRow, DateState, Ledger, Run
from gated_backfill.common.model.scheduling.queues import QUEUES
from tests.lab import Lab, until
from tests.prepared import prepared_programs

#: For a test that looks at the processes of a program: a prepared one is not the child of its client.
CELERY_IN_AN_INTERPRETER = (sys.executable, "-m", "celery", "--app", "gated_backfill.worker.app")


@contextmanager
def celery(
    lab: Lab, name: str, *words: str, program: Sequence[str] = (), **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A Celery program that runs as long as it is in use, with its log in `log_file_of`. By default it is prepared."""
    prepared = (str(prepared_programs() / "celery"), "--app", "gated_backfill.worker.app")
    command = [*(program or prepared), *words]
    variables = lab.environment() | environment
    with log_file_of(lab, name).open("w") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=variables)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def log_file_of(lab: Lab, name: str) -> Path:
    return lab.home.parent / f"{name}.log"


@contextmanager
def worker(lab: Lab, *more: str, **environment: str) -> Iterator[Path]:
    """A worker of every queue, in one process, so that it is cheap; yields its log."""
    words = ["--queues", ",".join(QUEUES), "--without-gossip", "--without-mingle", "--loglevel", "WARNING"]
    log_file = log_file_of(lab, "worker")
    with celery(lab, "worker", "worker", "--concurrency", "1", *words, *more, **environment) as process:
        yield log_file
        assert process.poll() is None, log_file.read_text()


def wait_for_attempt(lab: Lab, ledger: Ledger, run: Run, number: int) -> DateRow:
    """The run's one date, once its job waits in the middle of its attempt of that number, or of a later one."""

    def find() -> DateRow | None:
        (row,) = ledger.dates.list_dates(run.id)
        assert row.state is not DateState.FAILED, row.error
        is_begun = row.state is DateState.PROCESSING and row.attempt >= number
        return row if is_begun and (lab.marks / f"waiting-{row.day}").exists() else None

    row: DateRow = until(find, f"attempt {number}")
    (lab.marks / f"waiting-{row.day}").unlink()
    return row
