"""What the schedules share, started for `make chaos`; the tests have fixtures for the same."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from gated_backfill.common.ledger import open_ledger
from tests.emulator import Emulator
from tests.faults.chaos.run import Services
from tests.postgres import execute, of_database, started_postgres

MEMORY = Path("/dev/shm")  # noqa: S108 - a folder with a name of its own is made in it
ROOM = 256 * 1024**2  #: bytes that schedules may need at once, by far
TEMPLATE = "chaos_template"


@contextmanager
def made_services(kept: Path, postgres: str, emulator: str | None) -> Iterator[Services]:
    """Templates of both ledgers, and a folder for the schedules. What is kept of failed ones goes to another."""
    folder = Path(tempfile.mkdtemp(prefix="backfill-chaos-", dir=_memory()))
    try:
        yield _services(folder, kept, postgres, emulator)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _memory() -> Path | None:
    """A folder in memory with room enough; None if there is none."""
    enough = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM
    return MEMORY if enough else None


def _services(folder: Path, kept: Path, postgres: str, emulator: str | None) -> Services:
    sqlite = folder / "template.db"
    open_ledger(f"sqlite:///{sqlite}").close()
    execute(postgres, f"CREATE DATABASE {TEMPLATE}")
    open_ledger(of_database(postgres, TEMPLATE)).close()
    return Services(
        postgres=postgres, template=TEMPLATE, sqlite=str(sqlite), emulator=emulator, folder=str(folder), kept=str(kept)
    )


@contextmanager
def started_services(kept: Path, *, bigquery: bool) -> Iterator[Services]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="backfill-chaos-")))
        postgres = stack.enter_context(started_postgres(folder))
        emulator = stack.enter_context(Emulator(folder)).url if bigquery else None
        yield stack.enter_context(made_services(kept, postgres, emulator))
