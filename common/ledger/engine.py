"""Connections to the ledger's database, and its migrations."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool

from common.errors import LedgerUnusable, UserError
from common.warehouse.files import locked

HEAD = "0001"  #: the newest migration; a test holds it to the scripts
MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 30  #: how long a writer waits for another's transaction on SQLite
ADVISORY_LOCK = 7_203_411  #: any number of ours: one process migrates at a time on PostgreSQL


def make_engine(url: str) -> Engine:
    """An engine for `sqlite:///FILE` or `postgresql://...`. Raises `UserError` for any other URL."""
    parsed = _parsed(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(parsed)
    return create_engine(parsed.set(drivername="postgresql+psycopg"), pool_pre_ping=True, pool_size=2)


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as exc:
        raise UserError("BACKFILL_LEDGER is not a database URL") from exc
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise UserError(f"BACKFILL_LEDGER names {parsed.get_backend_name()}: use sqlite:///FILE or postgresql://...")
    if parsed.get_backend_name() == "sqlite" and not parsed.database:
        raise UserError("BACKFILL_LEDGER names no file: write it as sqlite:///FILE")
    return parsed


def _sqlite(url: URL) -> Engine:
    file = Path(str(url.database))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise UserError(f"the ledger's folder can't be made: {exc.strerror}: {exc.filename}") from exc
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS}, poolclass=NullPool)

    @event.listens_for(engine, "connect")
    def connected(connection: Any, record: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.isolation_level = None  # the driver is not to begin transactions behind our back
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def began(connection: Connection) -> None:  # pyright: ignore[reportUnusedFunction]
        # A transaction that reads and then writes must hold the write lock from its start, or SQLite fails it
        # at once, without waiting, when another one has written in between.
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def migrate(engine: Engine, *, create: bool) -> None:
    """Bring the tables to this version's state. Raises `LedgerUnusable` when that can't be done."""
    found = _revision(engine)
    if found == HEAD:
        return
    if not create:
        raise LedgerUnusable(f"the ledger is at version {found}, this program needs {HEAD}: run `backfill jobs` once")
    with _one_at_a_time(engine):
        _upgrade(engine)


def _revision(engine: Engine) -> str | None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _upgrade(engine: Engine) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    found = _revision(engine)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise LedgerUnusable(f"the ledger was written by a newer version (its tables are at {found})")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as exc:
            raise LedgerUnusable(f"the ledger's tables can't be brought up to date: {exc}") from exc


@contextmanager
def _one_at_a_time(engine: Engine) -> Generator[None]:
    if engine.dialect.name == "sqlite":
        with locked(Path(f"{engine.url.database}.migrating")):
            yield
        return
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": ADVISORY_LOCK})
