"""Inspection of a ledger without changing it: it is neither created nor migrated."""

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
from gated_backfill.common.ledger.connections import engine_for_url, is_shared, parse_ledger_url
from gated_backfill.common.ledger.migration import support_of
from gated_backfill.common.ledger.revisions import HEAD_REVISION, SchemaSupport, check_usable, is_newer
from gated_backfill.common.ledger.tables import checkpoints, metadata, schema_support
from gated_backfill.common.process.clock import ClockReading, read_clock
from gated_backfill.common.storage.files import check_writable

TIMEOUT_SECONDS = 5  #: for a connection to PostgreSQL or the write lock of SQLite
PRIVILEGES = ("SELECT", "INSERT", "UPDATE")


@dataclass(frozen=True, kw_only=True)
class LedgerInspection:
    """A ledger that can be read and written, or created."""

    database: str  #: product, version and location, without credentials
    exists: bool = True
    version: str | None = None  #: revision of its tables; None before they are created
    support: SchemaSupport | None = None  #: what the ledger says of the code that may use its tables
    clock: ClockReading | None = None  #: the server's clock; None for SQLite


def inspect_ledger(url: str) -> LedgerInspection:
    """Check that the ledger at the URL can be used.

    Raises `UserError` for an invalid URL, `HostError` when its file can't be created, `LedgerUnusable` when it is
    corrupt, read-only, written by a newer version that excludes this one, or shared and not migrated, and
    `LedgerUnavailable` when it does not answer.
    """
    parsed = parse_ledger_url(url)
    engine_for_url(parsed).dispose()  # raises for options of the URL that the driver does not know
    inspection = _inspect_postgresql(parsed) if is_shared(parsed) else _inspect_sqlite(parsed)
    if is_shared(parsed) or is_newer(inspection.version):
        check_usable(inspection.version, inspection.support)
    return inspection


def _inspect_sqlite(url: URL) -> LedgerInspection:
    file = Path(str(url.database)).absolute()
    database = f"SQLite {sqlite3.sqlite_version} at {file}"
    check_writable(file.parent)  # SQLite creates its journal in the same folder
    if not file.exists():
        return LedgerInspection(database=database, exists=False)
    try:
        address = f"file:{quote(str(file))}?mode=rw"
        with closing(sqlite3.connect(address, uri=True, timeout=TIMEOUT_SECONDS, isolation_level=None)) as connection:
            names = {str(row[0]) for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            version = None
            if "alembic_version" in names:
                (version,) = connection.execute("SELECT max(version_num) FROM alembic_version").fetchone()
            support = _read_support_of_file(connection) if schema_support.name in names else None
            _check_tables(version, names)
            connection.execute("BEGIN IMMEDIATE")  # fails for a read-only file
            connection.execute("ROLLBACK")
    except sqlite3.OperationalError as exc:
        if exc.sqlite_errorcode == sqlite3.SQLITE_BUSY:
            raise LedgerUnavailable(f"{database} was locked for {TIMEOUT_SECONDS} s: {exc}") from exc
        raise LedgerUnusable(f"{database} can't be used: {exc}") from exc
    except sqlite3.DatabaseError as exc:
        raise LedgerUnusable(f"{database} can't be used: {exc}") from exc
    return LedgerInspection(database=database, version=version, support=support)


def _read_support_of_file(connection: sqlite3.Connection) -> SchemaSupport | None:
    row = connection.execute("SELECT oldest_code, migrated_by FROM schema_support").fetchone()
    return None if row is None else SchemaSupport(oldest_code=row[0], migrated_by=row[1])


def _inspect_postgresql(url: URL) -> LedgerInspection:
    location = f"{url.host or url.query.get('host') or 'this machine'}, database {url.database}"
    if "connect_timeout" not in url.query:
        url = url.update_query_dict({"connect_timeout": str(TIMEOUT_SECONDS)})
    engine = engine_for_url(url)
    try:
        with engine.connect() as connection:
            server = connection.execute(text("SHOW server_version")).scalar_one()
            database = f"PostgreSQL {server} at {location}"
            version = None
            if inspect(connection).has_table("alembic_version"):
                version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
            _check_tables(version, inspect(connection).get_table_names())
            _check_privileges(connection, database, version)
            return LedgerInspection(
                database=database,
                version=version,
                support=support_of(connection),
                clock=read_clock(lambda: _server_time(connection)),
            )
    except OperationalError as exc:
        raise LedgerUnavailable(f"PostgreSQL at {location} does not answer: {exc.orig}") from exc
    except DatabaseError as exc:
        raise LedgerUnusable(f"PostgreSQL at {location} can't be used: {exc.orig}") from exc
    finally:
        engine.dispose()


def _check_tables(version: str | None, table_names: Collection[str]) -> None:
    if version != HEAD_REVISION:
        return  # they are still to be created or migrated, or a newer version has more of them
    if missing_tables := sorted(set(metadata.tables) - set(table_names)):
        raise LedgerUnusable(f"the ledger lacks the table(s) {', '.join(missing_tables)}")


def _check_privileges(connection: Connection, database: str, version: str | None) -> None:
    if connection.execute(text("SHOW transaction_read_only")).scalar() == "on":
        raise LedgerUnusable(f"{database} is read-only")
    if version != HEAD_REVISION:
        if not connection.execute(text("SELECT has_schema_privilege(current_schema(), 'CREATE')")).scalar():
            raise LedgerUnusable(f"{database}: this user may not create the ledger's tables in it")
        return
    for table in metadata.tables:
        for privilege in (*PRIVILEGES, "DELETE") if table == checkpoints.name else PRIVILEGES:
            parameters = {"table": table, "privilege": privilege}
            if not connection.execute(text("SELECT has_table_privilege(:table, :privilege)"), parameters).scalar():
                raise LedgerUnusable(f"{database}: this user lacks the right to {privilege} on table {table}")


def _server_time(connection: Connection) -> datetime:
    return connection.execute(text("SELECT clock_timestamp()")).scalar_one()
