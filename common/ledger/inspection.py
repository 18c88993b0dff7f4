"""A look at the ledger that changes nothing: a missing one is not made, an older one not brought up to date."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Connection, inspect, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DatabaseError, OperationalError

from gated_backfill.common.errors import LedgerUnavailable, LedgerUnusable
from gated_backfill.common.ledger.connections import (
    HEAD_REVISION,
    check_revision_known,
    engine_for_url,
    parse_ledger_url,
)
from gated_backfill.common.ledger.tables import checkpoints, metadata
from gated_backfill.common.process.clock import ClockReading, read_clock
from gated_backfill.common.storage.files import check_writable

WAITING_SECONDS = 5  #: for a connection, or for the write lock of SQLite
RIGHTS = ("SELECT", "INSERT", "UPDATE")


@dataclass(frozen=True, kw_only=True)
class LedgerInspection:
    """A ledger that can be read and written."""

    database: str  #: which one, and where, without user or password
    exists: bool = True
    version: str | None = None  #: of its tables; None when they are not made yet
    clock: ClockReading | None = None  #: its server's; None where it is this machine's


def inspect_ledger(url: str) -> LedgerInspection:
    """The ledger at the URL.

    Raises `UserError` for a URL that names none, `NotAllowed` when its file could not be made, `LedgerUnusable` when it
    is corrupt, can't be written or was written by a newer version, `LedgerUnavailable` when it does not answer.
    """
    parsed = parse_ledger_url(url)
    engine_for_url(parsed).dispose()  # which refuses what no command could use
    look = _at_sqlite(parsed) if parsed.get_backend_name() == "sqlite" else _at_postgresql(parsed)
    check_revision_known(look.version)
    return look


def _at_sqlite(url: URL) -> LedgerInspection:
    file = Path(str(url.database)).absolute()
    database = f"SQLite {sqlite3.sqlite_version} at {file}"
    check_writable(file.parent)  # its journal is made beside it
    if not file.exists():
        return LedgerInspection(database=database, exists=False)
    try:
        address = f"file:{quote(str(file))}?mode=rw"
        with closing(sqlite3.connect(address, uri=True, timeout=WAITING_SECONDS, isolation_level=None)) as connection:
            names = {str(row[0]) for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            version = None
            if "alembic_version" in names:
                (version,) = connection.execute("SELECT max(version_num) FROM alembic_version").fetchone()
            _require_tables(version, names)
            connection.execute("BEGIN IMMEDIATE")  # takes the write lock, which a file that is read-only refuses
            connection.execute("ROLLBACK")
    except sqlite3.OperationalError as exc:
        if exc.sqlite_errorcode == sqlite3.SQLITE_BUSY:
            raise LedgerUnavailable(f"{database} was locked for {WAITING_SECONDS} s: {exc}") from exc
        raise LedgerUnusable(f"{database} can't be used: {exc}") from exc
    except sqlite3.DatabaseError as exc:
        raise LedgerUnusable(f"{database} can't be used: {exc}") from exc
    return LedgerInspection(database=database, version=version)


def _at_postgresql(url: URL) -> LedgerInspection:
    where = f"{url.host or url.query.get('host') or 'this machine'}, database {url.database}"
    if "connect_timeout" not in url.query:
        url = url.update_query_dict({"connect_timeout": str(WAITING_SECONDS)})
    engine = engine_for_url(url)
    try:
        with engine.connect() as connection:
            server = connection.execute(text("SHOW server_version")).scalar_one()
            database = f"PostgreSQL {server} at {where}"
            version = None
            if inspect(connection).has_table("alembic_version"):
                version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
            _require_tables(version, inspect(connection).get_table_names())
            _require_writable(connection, database, version)
            return LedgerInspection(database=database, version=version, clock=read_clock(lambda: _time_of(connection)))
    except OperationalError as exc:
        raise LedgerUnavailable(f"PostgreSQL at {where} does not answer: {exc.orig}") from exc
    except DatabaseError as exc:
        raise LedgerUnusable(f"PostgreSQL at {where} can't be used: {exc.orig}") from exc
    finally:
        engine.dispose()


def _require_tables(version: str | None, found: Collection[str]) -> None:
    if version != HEAD_REVISION:
        return  # they are about to be made or changed
    if lacking := sorted(set(metadata.tables) - set(found)):
        raise LedgerUnusable(f"the ledger lacks the table(s) {', '.join(lacking)}")


def _require_writable(connection: Connection, database: str, version: str | None) -> None:
    if connection.execute(text("SHOW transaction_read_only")).scalar() == "on":
        raise LedgerUnusable(f"{database} is read-only")
    if version != HEAD_REVISION:
        if not connection.execute(text("SELECT has_schema_privilege(current_schema(), 'CREATE')")).scalar():
            raise LedgerUnusable(f"{database}: this user may not make the ledger's tables in it")
        return
    for table in metadata.tables:
        for right in (*RIGHTS, "DELETE") if table == checkpoints.name else RIGHTS:
            asked = {"table": table, "right": right}
            if not connection.execute(text("SELECT has_table_privilege(:table, :right)"), asked).scalar():
                raise LedgerUnusable(f"{database}: this user lacks the right to {right} on table {table}")


def _time_of(connection: Connection) -> datetime:
    return connection.execute(text("SELECT clock_timestamp()")).scalar_one()
