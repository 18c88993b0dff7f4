"""One tree of errors. The type says whether trying again can help, and who has to act."""

from __future__ import annotations

from datetime import date


class BackfillError(Exception):
    """Something went wrong with a table or a date; nothing that it touched is half done."""

    def __init__(self, message: str, *, table: str | None = None, day: date | None = None) -> None:
        where = " ".join(str(part) for part in (table, day) if part is not None)
        super().__init__(f"{where}: {message}" if where else message)
        self.table = table
        self.day = day

    @property
    def kind(self) -> str:
        """The error's class name, as it is stored with a failed date."""
        return type(self).__name__


class UserError(BackfillError):
    """What was asked for can't be done as asked: one line for the user, exit code 2, nothing changed."""


class Retryable(BackfillError):
    """The same call may well succeed a little later."""


class WarehouseUnavailable(Retryable):
    """The warehouse could not be reached, or a file of it could not be read or written just now."""


class LedgerUnavailable(Retryable):
    """The ledger is locked or out of reach just now."""


class BrokerUnavailable(UserError):
    """The broker does not answer."""


class LedgerUnusable(UserError):
    """The ledger is corrupt, is no ledger, or was written by a newer version."""


class TableNotFound(UserError):
    """A table that must exist does not."""


class NotAllowed(UserError):
    """A folder or file may not be read or written by this user."""


class OutsideRoot(UserError):
    """A path would lead out of the folder that holds everything of its kind."""


class SchemaMismatch(UserError):
    """A table or a result lacks a column or has one of another type."""


class QueryFailed(BackfillError):
    """The warehouse refused a query as wrong; asking again gives the same answer."""


class ExpectationUnreadable(BackfillError):
    """Who must be on a date could not be found out: the date is blocked, never taken for complete."""


class BackupMissing(UserError):
    """What a run replaced is not kept any more, so it can't be put back."""


class StagedFileLost(BackfillError):
    """A staged file is missing or its bytes are not those that were staged."""

    def __init__(self, message: str, *, day: date) -> None:
        super().__init__(message, day=day)
        self.file_day = day


class ProcessFailed(BackfillError):
    """The job's own `process` raised, or returned rows it must not return."""


class TookTooLong(BackfillError):
    """A date was still being processed at its job's hard time limit, and its worker was killed."""


class MemoryExhausted(BackfillError):
    """A date needed more memory than its worker may use."""


class DatesInUse(UserError):
    """Another active run of the job holds some of the dates."""

    def __init__(self, message: str, *, run: str) -> None:
        super().__init__(message)
        self.run = run


class TableInUse(UserError):
    """Another process is cleaning the table, or restoring what was cleaned."""


class RestoreConflict(UserError):
    """Dates that rows were to be put back to hold others by now."""
