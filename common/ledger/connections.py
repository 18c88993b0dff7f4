"""Connections to the ledger's database."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from gated_backfill.common.errors import LedgerUnusable, UserError
from gated_backfill.common.ledger.users import application_name
from gated_backfill.common.process.private_files import FILE_MODE, make_private_folder

CONNECT_SECONDS = 10  #: timeout of a connection to PostgreSQL, unless its URL sets one
BUSY_SECONDS = 30  #: how long a writer waits for a lock of SQLite, unless its URL sets it


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
        elif not file_is_there(file):
            raise LedgerUnusable(f"there is no ledger at {file}: run `backfill ledger migrate`, which creates it")
    return engine


def engine_for_url(url: URL) -> Engine:
    """Make an engine without connecting. Raises `UserError` for an unknown driver or option."""
    try:
        return sqlite_engine(url) if url.get_backend_name() == "sqlite" else _postgresql(url)
    except (ArgumentError, ValueError, ImportError, OverflowError) as exc:
        raise UserError(f"BACKFILL_LEDGER can't be used: {exc}") from exc


def is_shared(url: URL) -> bool:
    """Whether the ledger is one of a team, with processes that this user does not know. A SQLite file is one's own."""
    return url.get_backend_name() != "sqlite"


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


def limit_wait(url: str, seconds: int) -> str:
    """Return the ledger's URL with a limit on each wait for its database, unless it sets one."""
    parsed = parse_ledger_url(url)
    limits = {"timeout": str(seconds)}
    if parsed.get_backend_name() == "postgresql":
        limits = {"connect_timeout": str(seconds), "tcp_user_timeout": str(1000 * seconds)}
    return parsed.update_query_dict(limits | dict(parsed.query)).render_as_string(hide_password=False)


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


def file_is_there(file: Path) -> bool:
    """Whether the file exists. Raises `UserError` for a folder that cannot be searched."""
    try:
        return file.exists()
    except OSError as exc:
        raise UserError(f"the ledger's file can't be used: {exc.strerror}: {exc.filename}") from exc


def _postgresql(url: URL) -> Engine:
    options: dict[str, Any] = {"connect_timeout": CONNECT_SECONDS, "application_name": application_name()}
    connect_args = {name: value for name, value in options.items() if name not in url.query}
    driver_url = url.set(drivername="postgresql+psycopg")
    return create_engine(driver_url, connect_args=connect_args, pool_pre_ping=True, pool_size=2, max_overflow=-1)


def sqlite_engine(url: URL, *, foreign_keys: bool = True) -> Engine:
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
