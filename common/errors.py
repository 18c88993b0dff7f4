"""All errors. The type says whether a retry can help, and whether the user has to act."""

from __future__ import annotations

from datetime import date


class BackfillError(Exception):
    """The base of all errors. The failed operation leaves nothing half done."""

    job_place: str | None = None  #: `file:line` of the job's code that raised it, as far as that is known
    may_be_of_host = False  #: the host on which it was raised may be the cause, so it is named with the error

    def __init__(self, message: str, *, table: str | None = None, day: date | None = None) -> None:
        place = " ".join(str(part) for part in (table, day) if part is not None)
        super().__init__(f"{place}: {message}" if place else message)
        self.table = table
        self.day = day

    @property
    def kind(self) -> str:
        """The error's class name, as it is stored with a failed date."""
        return type(self).__name__


class UserError(BackfillError):
    """The user has to change the request or the set-up: one line of text, exit code 2, nothing changed."""


class ExpectationIncomplete(UserError):
    """Some dates cannot be built before their expectation is loaded completely: exit code 3, nothing changed."""


class Retryable(BackfillError):
    """The same call may succeed a little later."""

    may_be_of_host = True


class WarehouseUnavailable(Retryable):
    """The warehouse did not answer, or one of its files could not be read or written."""


class LedgerUnavailable(Retryable):
    """The ledger is locked or does not answer."""


class BrokerUnavailable(UserError):
    """The broker does not answer."""


class LedgerUnusable(UserError):
    """The ledger is corrupt, not a ledger, or written by a newer version."""


class TableNotFound(UserError):
    """A required table does not exist."""


class NotAllowed(UserError):
    """The warehouse says that its account lacks a permission, so it will say so on any host."""

    may_be_of_host = True


class HostError(UserError):
    """This host cannot use one of its folders, files or credentials; another host may be able to."""

    may_be_of_host = True


class WrongStaging(HostError):
    """The staging of this host is not that of the run: it is empty, or another folder is mounted there."""


class OutsideRoot(UserError):
    """A path leads out of its root folder."""


class SchemaMismatch(UserError):
    """A table or a result lacks a column or has one of another type."""

    partition: str | None = None  #: the partition that does not fit, if only one is known not to


class QueryFailed(BackfillError):
    """The warehouse rejected a query as invalid; a retry would fail as well."""


class ExpectationUnreadable(BackfillError):
    """The expected entities of a date could not be read: the date is blocked."""


class BackupMissing(UserError):
    """The backup of replaced rows no longer exists, so they cannot be restored."""

    days: frozenset[date] = frozenset()  #: the dates of an undo that cannot be restored


class StagedFileLost(BackfillError):
    """A staged file is missing or has changed."""

    def __init__(self, message: str, *, day: date) -> None:
        super().__init__(message, day=day)
        self.file_day = day


class ProcessFailed(BackfillError):
    """The job's `process` raised an error or returned invalid rows."""


class TookTooLong(BackfillError):
    """A date was still being processed at its job's hard time limit, and its worker was killed."""


class MemoryExhausted(BackfillError):
    """A date needed more memory than its worker may use."""

    may_be_of_host = True


class DatesInUse(UserError):
    """Another active run of the job includes some of the dates."""

    def __init__(self, message: str, *, run: str) -> None:
        super().__init__(message)
        self.run = run


class CheckpointedMeanwhile(UserError):
    """Another run has checkpointed some of the dates since the run was planned: nothing was opened."""


class UndoInProgress(UserError):
    """Another process undoes the run."""


class UndoIncomplete(UserError):
    """Another writer changed some dates during an undo, and the others were undone: exit code 3."""


class TargetTaken(UserError):
    """The target table belongs to another job."""


class TableInUse(UserError):
    """Another process cleans the table or restores its rows."""


class LeaseTakenOver(BackfillError):
    """A later process has taken over the work, so this one may have no effect any more: nothing was changed."""


class RestoreConflict(UserError):
    """Dates to restore hold other rows by now."""
