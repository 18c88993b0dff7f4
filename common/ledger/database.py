"""One database, for reading and for writing."""

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
from gated_backfill.common.process.signals import defer_signals, find_interruption


class LedgerStore:
    """Raises `LedgerUnavailable` (repeat) and `LedgerUnusable` (do not) for what its engine raises.

    A process that is told to exit exits, and a time limit is one, whatever the driver makes of being cut off.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._by_statement = autocommit_engine(engine)

    @contextmanager
    def _write(self, *, durable: bool = True) -> Generator[Connection]:
        """A transaction. One that is not `durable` may be lost in a power cut, with what followed it and nothing else.

        The next durable one makes it so as well. It suits what a worker or a gate holds and says of its work on
        SQLite: whatever comes of that is proven, and made durable, by a checkpoint.
        """
        with (
            translate_database_errors(),
            defer_signals(),  # or its locks might be held against this process's own next transaction
            self._engine.connect() as connection,
            connection.begin(),
        ):
            begin_writing(connection, durable=durable)
            yield connection

    @contextmanager
    def _write_one(self, *, durable: bool = True) -> Generator[Connection]:
        """For a single statement: a transaction of its own, that holds what it locks for no longer than it takes."""
        with translate_database_errors(), defer_signals(), self._by_statement.connect() as connection:
            set_durable(connection, durable)
            yield connection

    @contextmanager
    def _read(self) -> Generator[Connection]:
        with translate_database_errors(), self._by_statement.connect() as connection:
            yield connection


def window_leased_by(
    run_id: str | BindParameter[str], gate: tuple[int | BindParameter[int], str | BindParameter[str]]
) -> ColumnElement[bool]:
    """That the gate (a window and an owner) works on its window."""
    number, owner = gate
    return and_(
        windows.c.run_id == run_id,
        windows.c.number == number,
        windows.c.lease_owner == owner,
        windows.c.state == WindowState.CLOSING.value,
    )


@contextmanager
def translate_database_errors() -> Generator[None]:
    try:
        yield
    except IntegrityError:
        raise
    except Exception as exc:
        if (interruption := find_interruption(exc)) is not None:
            raise interruption from None
        # What begins a transaction on SQLite raises the driver's own errors, all else SQLAlchemy's around them.
        error = exc.orig if isinstance(exc, DatabaseError) else exc
        if isinstance(exc, (OperationalError, sqlite3.OperationalError)) and not _is_of_tables(error):
            raise LedgerUnavailable(f"the ledger does not answer: {error}") from exc
        if isinstance(exc, (DatabaseError, sqlite3.DatabaseError)):
            raise LedgerUnusable(f"the ledger can't be used: {error}") from exc
        raise


def _is_of_tables(error: BaseException | None) -> bool:
    """Whether SQLite lacks a table or a column: no operational error, whatever its driver calls it."""
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR
