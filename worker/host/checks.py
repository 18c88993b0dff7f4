"""Check whether this host can work: its staging, its temporary folder and its way to the warehouse."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from gated_backfill.common.errors import (
    BackfillError,
    ExpectationUnreadable,
    HostError,
    ProcessFailed,
    TableNotFound,
    WrongStaging,
)
from gated_backfill.common.ledger import Run
from gated_backfill.common.model.host_fault import FaultKind, HostFault
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.process.identity import host_name
from gated_backfill.common.storage.files import check_writable, is_host_error
from gated_backfill.common.storage.staging import Staging
from gated_backfill.common.warehouse.protocol import Warehouse


class HostFaulty(Exception):
    """This host cannot work: the task belongs to another one, and nothing is counted against its dates."""

    def __init__(self, fault: HostFault) -> None:
        super().__init__(fault.reason)
        self.fault = fault


def find_fault(runs: Sequence[Run], staging: Staging, warehouse: Warehouse, *, publishes: bool) -> HostFault | None:
    """Return what keeps this host from working on the runs; None if nothing does.

    `publishes`: it has to write to the warehouse as well.
    """

    def confirm() -> None:
        for run in runs:
            confirm_staging(run, staging)

    checks: list[tuple[FaultKind, Callable[[], object]]] = [
        (FaultKind.STAGING, confirm),
        (FaultKind.STAGING, staging.check),
        (FaultKind.TEMPORARY_FOLDER, lambda: check_writable(Path(tempfile.gettempdir()))),
        (FaultKind.WAREHOUSE, lambda: warehouse.check_host(has_tables=bool(runs), publishes=publishes)),
    ]
    for kind, check in checks:
        try:
            check()
        except WrongStaging as exc:
            return HostFault(kind=FaultKind.WRONG_STAGING, reason=str(exc))
        except BackfillError as exc:
            return HostFault(kind=kind, reason=str(exc))
    return None


def confirm_staging(run: Run, staging: Staging) -> None:
    """Raise `WrongStaging` unless the staging of this host is the one that the run was launched with."""
    staging.confirm(run.id, RunOptions.from_dict(run.options).staging)


def describe_error(exc: BackfillError, owner: str) -> str:
    """Return the error's text, with the host of the process `owner` if that may be the cause."""
    return f"{exc} (on host {host_name(owner)})" if exc.may_be_of_host else str(exc)


def is_suspicious(exc: BaseException) -> bool:
    """Whether the host may be the cause of the error, so that it is checked.

    That may be an error of files, also in a job's code, or of a table that does not exist on this host.
    """
    if isinstance(exc, (ProcessFailed, ExpectationUnreadable)):
        exc = exc.__cause__ or exc
    return isinstance(exc, (HostError, TableNotFound)) or (isinstance(exc, OSError) and is_host_error(exc))
