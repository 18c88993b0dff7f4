"""The state file by which other commands find the stack that `backfill up` runs."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.process.file_lock import locked
from gated_backfill.common.process.identity import host_name, is_dead, is_on_this_host
from gated_backfill.common.process.private_files import make_private_folder


@dataclass(frozen=True, kw_only=True)
class StackState:
    """A running stack: its supervisor, addresses and places."""

    owner: str  #: identity of its supervisor: host:pid:start
    broker_url: str = field(repr=False)
    broker: str  #: the broker's address, without user and password
    embedded: bool  #: whether the broker is the stack's own
    workers: int  #: worker processes for dates
    flower_url: str
    flower_user: str
    flower_password: str = field(repr=False)
    metrics_url: str
    log_file: str
    places: str  #: digest of the URLs of its ledger, warehouse and staging

    @property
    def is_running_here(self) -> bool:
        """Whether its supervisor is alive and on this machine."""
        return is_on_this_host(self.owner) and not is_dead(self.owner)

    @property
    def host(self) -> str:
        """The supervisor's host; each container has one."""
        return host_name(self.owner)


def state_file(home: Path) -> Path:
    return home.absolute() / "up.json"


def stack_lock(home: Path) -> AbstractContextManager[None]:
    """Lock out other commands that start or stop the stack of this home."""
    make_private_folder(home.absolute())
    return locked(home.absolute() / "up.lock")


def places_digest(settings: Settings) -> str:
    urls = (settings.ledger_url, settings.warehouse_url, settings.staging_url)
    return hashlib.sha256("\n".join(urls).encode()).hexdigest()


def write_stack_state(home: Path, stack: StackState) -> None:
    """Write the file atomically, and readable by its owner only: it holds passwords."""
    file = state_file(home)
    partial = file.with_suffix(".tmp")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        json.dump(asdict(stack), stream)
    partial.replace(file)


def read_stack_state(home: Path) -> StackState | None:
    """The state file's content, which may be out of date; None without a usable file.

    Raises `UserError` if another version of this tool runs the stack.
    """
    try:
        content = json.loads(state_file(home).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    try:
        return StackState(**content)
    except TypeError:  # written by another version
        if _has_live_owner(content):
            raise UserError(
                f"another version of backfill runs the stack of {state_file(home)}: stop it with that version's "
                "`backfill down`, or end its `backfill up`"
            ) from None
        return None


def _has_live_owner(content: object) -> bool:
    owner = content.get("owner") if isinstance(content, dict) else None
    try:
        return isinstance(owner, str) and not is_dead(owner)
    except ValueError:  # not the identity of a process
        return False


def find_running_stack(home: Path) -> StackState | None:
    """The running stack, or None after removing the files of a dead one. Call it under `stack_lock`.

    Raises `UserError` for a stack that runs, or may run, on another machine or container.
    """
    stack = _find_live_stack(home)
    if stack is not None:
        check_not_elsewhere(stack, home)
    return stack


def check_not_elsewhere(stack: StackState, home: Path) -> None:
    """Raise `UserError` for a stack on another machine, because it may be alive there."""
    if not stack.is_running_here and not is_dead(stack.owner):
        raise UserError(
            f"the stack runs on {stack.host}, another host or container: stop it there with `backfill down`, "
            f"or remove {state_file(home)} if that one is gone"
        )


def _find_live_stack(home: Path) -> StackState | None:
    """The stack of the state file, or None after removing the files of a dead one."""
    stack = read_stack_state(home)
    if stack is not None and not is_dead(stack.owner):
        return stack
    remove_stack_state(home)
    return None


def remove_stack_state(home: Path) -> None:
    # Imported here: most commands find no dead stack.
    from gated_backfill.producer.stack.children import clean_up_dead_stacks

    clean_up_dead_stacks(home)
    state_file(home).unlink(missing_ok=True)


def running_stack_broker(settings: Settings) -> str | None:
    """The broker URL of the running stack, if it has the same ledger, warehouse and staging as the settings.

    None when the settings name a broker, and for a stack of another machine or container.
    """
    if settings.broker is not None or not state_file(settings.home).exists():
        return None
    stack = read_stack_state(settings.home)
    if stack is None or is_dead(stack.owner):
        with stack_lock(settings.home):
            stack = _find_live_stack(settings.home)
    is_usable = stack is not None and stack.is_running_here and stack.places == places_digest(settings)
    return stack.broker_url if stack is not None and is_usable else None
