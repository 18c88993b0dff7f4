"""What warehouse jobs were billed, summed in this process until it is written to the ledger with something else."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

from gated_backfill.common.model.usage import Usage

LAUNCH = "launch"  #: the account of a run that is being planned, and has no id yet
MAX_ACCOUNTS = 1000  #: with usage that nobody has taken: of runs that this process has left

_account: ContextVar[str | None] = ContextVar("account", default=None)
_accounts: dict[str, Usage] = {}  #: without a lock: a process works on a run in one thread


@contextmanager
def charging(account: str) -> Generator[None]:
    """Charge the warehouse jobs that this thread runs inside this context to the account: a run's id, or `LAUNCH`."""
    token = _account.set(account)
    try:
        yield
    finally:
        _account.reset(token)


def charge(usage: Usage) -> None:
    """Add to the account of the work that this thread does now; without one, nothing is kept."""
    if (account := _account.get()) is not None:
        give_back_usage(account, usage)


def take_usage(account: str) -> Usage | None:
    """Return what was charged to the account since it was last taken, for its record; None if nothing is known."""
    return _accounts.pop(account, None)


def give_back_usage(account: str, usage: Usage) -> None:
    """Put usage back that was taken and could not be recorded: the account's next record has it."""
    _accounts[account] = _accounts.get(account, Usage()) + usage
    if len(_accounts) > MAX_ACCOUNTS:
        del _accounts[next(iter(_accounts))]
