"""Connections to the ledger's database, and its migrations."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from gated_backfill.common.errors import LedgerUnusable, UserError
from gated_backfill.common.process.file_lock import locked

if TYPE_CHECKING:
    from alembic.config import Config

CONNECTING_SECONDS = 10  #: that PostgreSQL has to take a connection, unless its URL says otherwise
HEAD_REVISION = "0004"  #: the newest migration; a test holds it to the scripts
MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 30  #: that a writer waits for another's transaction on SQLite, unless its URL says otherwise
ADVISORY_LOCK = 7_203_411  #: any number of ours: one process migrates at a time on PostgreSQL


def make_engine(url: str) -> Engine:
    """An engine for `sqlite:///FILE`, whose folder is made, or `postgresql://...`. Raises `UserError` for any other."""
    parsed = parse_ledger_url(url)
    engine = engine_for_url(parsed)
    if parsed.get_backend_name() == "sqlite":
        file = Path(str(parsed.database))
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise UserError(f"the ledger's folder can't be made: {exc.strerror}: {exc.filename}") from exc
    return engine


def engine_for_url(url: URL) -> Engine:
    """An engine that has connected to nothing yet. Raises `UserError` for a driver or an option that there is not."""
    try:
        return _sqlite(url) if url.get_backend_name() == "sqlite" else _postgresql(url)
    except (ArgumentError, ValueError, ImportError, OverflowError) as exc:
        raise UserError(f"BACKFILL_LEDGER can't be used: {exc}") from exc


def parse_ledger_url(url: str) -> URL:
    """The parts of a ledger's URL. Raises `UserError` for one that names no ledger."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as exc:
        raise UserError("BACKFILL_LEDGER is not a database URL") from exc
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise UserError(f"BACKFILL_LEDGER names {parsed.get_backend_name()}: use sqlite:///FILE or postgresql://...")
    if parsed.get_backend_name() == "sqlite" and not parsed.database:
        raise UserError("BACKFILL_LEDGER names no file: write it as sqlite:///FILE")
    return parsed


def _postgresql(url: URL) -> Engine:
    patience = {} if "connect_timeout" in url.query else {"connect_timeout": CONNECTING_SECONDS}
    url_of_driver = url.set(drivername="postgresql+psycopg")
    return create_engine(url_of_driver, connect_args=patience, pool_pre_ping=True, pool_size=2, max_overflow=-1)


def _sqlite(url: URL, *, foreign_keys: bool = True) -> Engine:
    patience = {} if "timeout" in url.query else {"timeout": BUSY_SECONDS}
    # Whoever is cut off may leave the pool without its connection: nobody is to wait for that.
    engine = create_engine(url, connect_args=patience, pool_size=2, max_overflow=-1)
    options: dict[str, Any] = {**engine.dialect.create_connect_args(url)[1], "uri": False}
    sqlite3.connect(":memory:", **options).close()  # only the driver tells whether it takes them

    @event.listens_for(engine, "connect")
    def connected(connection: Any, record: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.isolation_level = None  # the driver is not to begin transactions behind our back
        _write_ahead(connection)
        connection.execute(f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}")

    return engine


def begin_writing(connection: Connection, *, durable: bool = True) -> None:
    """Have a transaction that was just begun keep other writers out, on SQLite; on PostgreSQL rows are locked.

    SQLAlchemy begins nothing on SQLite by itself. A transaction that reads and then writes must hold the write lock
    from its start, or SQLite fails it at once, without waiting, when another one has written in between.
    """
    if connection.dialect.name == "sqlite":
        set_durable(connection, durable)
        connection.connection.cursor().execute("BEGIN IMMEDIATE")


def set_durable(connection: Connection, durable: bool) -> None:
    """Whether what is committed next must outlive a power cut at once. PostgreSQL always sees to it."""
    if connection.dialect.name != "sqlite":
        return
    known = connection.connection.info
    synchronous = "FULL" if durable else "NORMAL"
    if known.pop("synchronous", None) != synchronous:
        connection.connection.cursor().execute(f"PRAGMA synchronous={synchronous}")
    known["synchronous"] = synchronous


def autocommit_engine(engine: Engine) -> Engine:
    """The engine for connections on which each statement is a transaction of its own, as it is on SQLite anyway."""
    return engine if engine.dialect.name == "sqlite" else engine.execution_options(isolation_level="AUTOCOMMIT")


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Set the journal's mode, for which SQLite itself doesn't wait while another process sets it."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def migrate(engine: Engine, *, create: bool) -> None:
    """Bring the tables to this version's state. Raises `LedgerUnusable` when that can't be done."""
    found = _revision(engine)
    if found == HEAD_REVISION:
        return
    if not create:
        raise LedgerUnusable(
            f"the ledger is at version {found}, this program needs {HEAD_REVISION}: run `backfill status` once"
        )
    with _one_at_a_time(engine):
        _upgrade(engine)


def _revision(engine: Engine) -> str | None:
    with autocommit_engine(engine).connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _upgrade(engine: Engine) -> None:
    from alembic import command
    from alembic.util import CommandError

    found = _revision(engine)
    check_revision_known(found)
    _refuse_foreign(engine, found)
    config = _config()
    # SQLite changes a constraint by making the table anew, which the references to it must not prevent.
    migrating = _sqlite(engine.url, foreign_keys=False) if engine.dialect.name == "sqlite" else engine
    try:
        with migrating.begin() as connection:
            begin_writing(connection)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except CommandError as exc:
        raise LedgerUnusable(f"the ledger's tables can't be brought up to date: {exc}") from exc
    finally:
        if migrating is not engine:
            migrating.dispose()


def _refuse_foreign(engine: Engine, revision: str | None) -> None:
    """Raises `LedgerUnusable` for a SQLite file that holds tables and no ledger: it is somebody else's."""
    if revision is not None or engine.dialect.name != "sqlite":
        return
    if foreign := sorted(set(inspect(engine).get_table_names()) - {"alembic_version"}):
        named = ", ".join(foreign[:3])
        raise LedgerUnusable(
            f"{engine.url.database} is another program's (it has the tables {named}): name another file"
        )


def check_revision_known(revision: str | None) -> None:
    """Raises `LedgerUnusable` unless a ledger at that revision can be brought up to date."""
    from alembic.script import ScriptDirectory

    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if revision is not None and revision not in known:
        raise LedgerUnusable(f"the ledger was written by a newer version (its tables are at {revision})")


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


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
