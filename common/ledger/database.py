"""Base class of the ledger's stores: transactions, and database errors translated to ours."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager

from sqlalchemy import BindParameter, ColumnElement, Connection, Engine, and_
from sqlalchemy.exc import DatabaseError, IntegrityError, OperationalError

from gated_backfill.common.errors import LedgerUnavailable, LedgerUnusable
from gated_backfill.common.ledger.connections import autocommit_engine, begin_writing, set_durable
from gated_backfill.common.ledger.states import WindowState
from gated_backfill.common.ledger.tables import windows
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.signals import defer_signals, find_interruption


class LedgerStore:
    """Every method raises `LedgerUnavailable` (retry) or `LedgerUnusable` (do not) for a database error.

    An exit signal or time limit that interrupts the driver is raised as such, not as a database error.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._autocommit_engine = autocommit_engine(engine)

    @contextmanager
    def _write(self, *, durable: bool = True) -> Generator[Connection]:
        """Run a transaction.

        On SQLite, a power cut may lose a transaction that is not `durable`, together with later ones that are not
        durable either; the next durable one saves them. Leases and reports of work in progress need no more, because
        a durable checkpoint follows them.
        """
        with (
            translate_database_errors(),
            defer_signals(),  # an interrupted transaction could keep its locks and block this process's next one
            self._engine.connect() as connection,
            connection.begin(),
        ):
            begin_writing(connection, durable=durable)
            yield connection

    @contextmanager
    def _write_one(self, *, durable: bool = True) -> Generator[Connection]:
        """Run a single statement that commits at once, and so keeps its locks for the shortest time."""
        with translate_database_errors(), defer_signals(), self._autocommit_engine.connect() as connection:
            set_durable(connection, durable)
            yield connection

    @contextmanager
    def _read(self) -> Generator[Connection]:
        with translate_database_errors(), self._autocommit_engine.connect() as connection:
            yield connection


def next_generation(latest: int) -> int:
    """Return the fencing token of a new lease: higher than the latest one.

    It is the time in milliseconds, so that tokens also rise after the ledger was restored from an older copy.
    """
    return max(latest + 1, int(utcnow().timestamp() * 1000))


def window_leased_by(
    run_id: str | BindParameter[str], gate: tuple[int | BindParameter[int], str | BindParameter[str]]
) -> ColumnElement[bool]:
    """Return the condition that a gate, given as window number and lease owner, holds the lease of its window."""
    number, owner = gate
    return and_(
        windows.c.run_id == run_id,
        windows.c.number == number,
        windows.c.lease_owner == owner,
        windows.c.state == WindowState.CLOSING.value,
    )


@contextmanager
def translate_database_errors() -> Generator[None]:
    """Raise `LedgerUnavailable` or `LedgerUnusable` for a database error; integrity errors are left to the caller."""
    try:
        yield
    except IntegrityError:
        raise
    except Exception as exc:
        if (interruption := find_interruption(exc)) is not None:
            raise interruption from None
        # The statement that begins a transaction on SQLite raises sqlite3's own errors, SQLAlchemy wraps the others.
        error = exc.orig if isinstance(exc, DatabaseError) else exc
        if isinstance(exc, (OperationalError, sqlite3.OperationalError)) and not _is_schema_error(error):
            raise LedgerUnavailable(f"the ledger does not answer: {error}") from exc
        if isinstance(exc, (DatabaseError, sqlite3.DatabaseError)):
            raise LedgerUnusable(f"the ledger can't be used: {error}") from exc
        raise


def _is_schema_error(error: BaseException | None) -> bool:
    """Return whether SQLite lacks a table or column, which its driver reports as an operational error."""
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR
