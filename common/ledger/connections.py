"""Connections to the ledger's database, and its migrations."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from gated_backfill.common.errors import LedgerUnusable, UserError
from gated_backfill.common.process.file_lock import locked
from gated_backfill.common.process.private_files import FILE_MODE, make_private_folder

if TYPE_CHECKING:
    from alembic.config import Config

CONNECT_SECONDS = 10  #: timeout of a connection to PostgreSQL, unless its URL sets one
HEAD_REVISION = "0008"  #: the newest migration; a test compares it with the scripts
MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 30  #: how long a writer waits for a lock of SQLite, unless its URL sets it
ADVISORY_LOCK = 7_203_411  #: an arbitrary key: PostgreSQL is migrated by one process at a time


def make_engine(url: str, *, create: bool = True) -> Engine:
    """Make an engine for `sqlite:///FILE`, creating its file if `create`, or `postgresql://...`.

    Raises `UserError`, and without `create` `LedgerUnusable` for a file that does not exist.
    """
    parsed = parse_ledger_url(url)
    engine = engine_for_url(parsed)
    if parsed.get_backend_name() == "sqlite":
        file = Path(str(parsed.database))
        if create:
            _create_private(file)
        elif not _is_there(file):
            raise LedgerUnusable(f"there is no ledger at {file}: run `backfill status` once")
    return engine


def engine_for_url(url: URL) -> Engine:
    """Make an engine without connecting. Raises `UserError` for an unknown driver or option."""
    try:
        return _sqlite(url) if url.get_backend_name() == "sqlite" else _postgresql(url)
    except (ArgumentError, ValueError, ImportError, OverflowError) as exc:
        raise UserError(f"BACKFILL_LEDGER can't be used: {exc}") from exc


def parse_ledger_url(url: str) -> URL:
    """Parse a ledger's URL. Raises `UserError` for a URL that can't be a ledger."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as exc:
        raise UserError("BACKFILL_LEDGER is not a database URL") from exc
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise UserError(f"BACKFILL_LEDGER names {parsed.get_backend_name()}: use sqlite:///FILE or postgresql://...")
    if parsed.get_backend_name() == "sqlite" and not parsed.database:
        raise UserError("BACKFILL_LEDGER names no file: write it as sqlite:///FILE")
    return parsed


def _create_private(file: Path) -> None:
    """Create the ledger's file and folder, unless they exist, for their owner only."""
    try:
        make_private_folder(file.parent)
    except OSError as exc:
        raise UserError(f"the ledger's folder can't be created: {exc.strerror}: {exc.filename}") from exc
    # SQLite gives the files that it makes beside the ledger the rights of the ledger, and reports what can't be opened.
    # An existing file is not opened: closing it would release the locks that SQLite has on it in this process.
    with suppress(OSError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, FILE_MODE))


def _is_there(file: Path) -> bool:
    try:
        return file.exists()
    except OSError as exc:
        raise UserError(f"the ledger's file can't be used: {exc.strerror}: {exc.filename}") from exc


def _postgresql(url: URL) -> Engine:
    timeout = {} if "connect_timeout" in url.query else {"connect_timeout": CONNECT_SECONDS}
    driver_url = url.set(drivername="postgresql+psycopg")
    return create_engine(driver_url, connect_args=timeout, pool_pre_ping=True, pool_size=2, max_overflow=-1)


def _sqlite(url: URL, *, foreign_keys: bool = True) -> Engine:
    timeout = {} if "timeout" in url.query else {"timeout": BUSY_SECONDS}
    # An interrupted thread may never return its connection: without a maximum, others do not wait for it.
    engine = create_engine(url, connect_args=timeout, pool_size=2, max_overflow=-1)
    options: dict[str, Any] = {**engine.dialect.create_connect_args(url)[1], "uri": False}
    sqlite3.connect(":memory:", **options).close()  # only the driver can check the options of the URL

    @event.listens_for(engine, "connect")
    def configure(connection: Any, record: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.isolation_level = None  # the driver must not begin transactions implicitly
        _enable_wal(connection)
        connection.execute(f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}")

    return engine


def begin_writing(connection: Connection, *, durable: bool = True) -> None:
    """Take the write lock of SQLite at the start of a transaction; PostgreSQL locks rows instead.

    Without the lock, SQLite fails a transaction that reads and then writes at once, without waiting, if another one
    wrote in between. SQLAlchemy sends no BEGIN to SQLite here.
    """
    if connection.dialect.name == "sqlite":
        set_durable(connection, durable)
        connection.connection.cursor().execute("BEGIN IMMEDIATE")


def set_durable(connection: Connection, durable: bool) -> None:
    """Choose whether SQLite syncs the next commit to disk. PostgreSQL always does."""
    if connection.dialect.name != "sqlite":
        return
    connection_info = connection.connection.info
    synchronous = "FULL" if durable else "NORMAL"
    if connection_info.pop("synchronous", None) != synchronous:
        connection.connection.cursor().execute(f"PRAGMA synchronous={synchronous}")
    connection_info["synchronous"] = synchronous


def autocommit_engine(engine: Engine) -> Engine:
    """Return an engine that commits after each statement, as SQLite does without BEGIN."""
    return engine if engine.dialect.name == "sqlite" else engine.execution_options(isolation_level="AUTOCOMMIT")


def _enable_wal(connection: sqlite3.Connection) -> None:
    """Switch to write-ahead logging; SQLite does not wait here while another process does the same."""
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
    """Create or migrate the tables. Raises `LedgerUnusable` when they can't be, or with `create=False` need to be."""
    revision = _revision(engine)
    if revision == HEAD_REVISION:
        return
    if not create:
        raise LedgerUnusable(
            f"the ledger is at version {revision}, this program needs {HEAD_REVISION}: run `backfill status` once"
        )
    with _migration_lock(engine):
        _upgrade(engine)


def _revision(engine: Engine) -> str | None:
    with autocommit_engine(engine).connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _upgrade(engine: Engine) -> None:
    from alembic import command
    from alembic.util import CommandError

    revision = _revision(engine)
    check_revision_known(revision)
    _check_own_file(engine, revision)
    config = _config()
    # Alembic changes a constraint on SQLite by copying the table, which foreign keys would forbid.
    migrating = _sqlite(engine.url, foreign_keys=False) if engine.dialect.name == "sqlite" else engine
    try:
        with migrating.begin() as connection:
            begin_writing(connection)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except CommandError as exc:
        raise LedgerUnusable(f"the ledger's tables can't be migrated: {exc}") from exc
    finally:
        if migrating is not engine:
            migrating.dispose()


def _check_own_file(engine: Engine, revision: str | None) -> None:
    """Raise `LedgerUnusable` for a SQLite file with the tables of another program."""
    if revision is not None or engine.dialect.name != "sqlite":
        return
    if foreign := sorted(set(inspect(engine).get_table_names()) - {"alembic_version"}):
        examples = ", ".join(foreign[:3])
        raise LedgerUnusable(
            f"{engine.url.database} is another program's (it has the tables {examples}): name another file"
        )


def check_revision_known(revision: str | None) -> None:
    """Raise `LedgerUnusable` unless a ledger at the revision can be migrated to this version."""
    from alembic.script import ScriptDirectory

    known_revisions = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if revision is not None and revision not in known_revisions:
        raise LedgerUnusable(f"the ledger was written by a newer version (its tables are at {revision})")


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


@contextmanager
def _migration_lock(engine: Engine) -> Generator[None]:
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
