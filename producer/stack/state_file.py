"""The stack that `backfill up` keeps running, as its state file tells it to other commands."""

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
from gated_backfill.common.process.identity import is_dead, process_identity


@dataclass(frozen=True, kw_only=True)
class StackState:
    """A stack that is up, and whose."""

    owner: str  #: the process that keeps it up
    broker_url: str = field(repr=False)
    broker: str  #: its address, without user and password
    embedded: bool  #: whether the broker is the stack's own
    workers: int  #: worker processes for dates
    flower_url: str
    flower_user: str
    flower_password: str = field(repr=False)
    metrics_url: str
    log_file: str
    places: str  #: a digest of the ledger, warehouse and staging that it works on

    @property
    def is_running_here(self) -> bool:
        """Whether it lives, on this machine."""
        return self.host == process_identity().rsplit(":", 2)[0] and not is_dead(self.owner)

    @property
    def host(self) -> str:
        """Where the process is that keeps it up: another container has another host, too."""
        return self.owner.rsplit(":", 2)[0]


def state_file(home: Path) -> Path:
    return home.absolute() / "up.json"


def stack_lock(home: Path) -> AbstractContextManager[None]:
    """Inside it, no other command starts or stops the stack of that home."""
    return locked(home.absolute() / "up.lock")


def places_digest(settings: Settings) -> str:
    urls = (settings.ledger_url, settings.warehouse_url, settings.staging_url)
    return hashlib.sha256("\n".join(urls).encode()).hexdigest()


def write_stack_state(home: Path, standing: StackState) -> None:
    """Written whole or not at all, for nobody else to read: it holds passwords."""
    file = state_file(home)
    partial = file.with_suffix(".tmp")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        json.dump(asdict(standing), stream)
    partial.replace(file)


def read_stack_state(home: Path) -> StackState | None:
    """What the state file tells, be it true or not any more."""
    try:
        return StackState(**json.loads(state_file(home).read_text()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError):  # another version's; a stack that lived would have to be stopped by that version
        return None


def find_running_stack(home: Path) -> StackState | None:
    """The stack that is up. Nobody else may start or stop one meanwhile: what a dead one left behind is removed.

    Raises `UserError` for one that another machine or container keeps up, or may keep up.
    """
    found = _find_living(home)
    if found is not None:
        check_not_elsewhere(found, home)
    return found


def check_not_elsewhere(found: StackState, home: Path) -> None:
    """Raises `UserError` for a stack that is not up on this machine: whether it lives can't be known here."""
    if not found.is_running_here and not is_dead(found.owner):
        raise UserError(
            f"it is up on {found.host}, another host or container: stop it there with `backfill down`, "
            f"or remove {state_file(home)} if that one is gone"
        )


def _find_living(home: Path) -> StackState | None:
    """The stack that the state file tells of, unless it is known to be dead: what that one left behind is removed."""
    found = read_stack_state(home)
    if found is not None and not is_dead(found.owner):
        return found
    remove_stack_state(home)
    return None


def remove_stack_state(home: Path) -> None:
    from gated_backfill.producer.stack.children import (
        clean_up_dead_stacks,  # commands that find no such stack need not know how
    )

    clean_up_dead_stacks(home)
    state_file(home).unlink(missing_ok=True)


def running_stack_broker(settings: Settings) -> str | None:
    """The URL of the broker of the stack that is up, if it works on the places of the settings.

    None when the settings name a broker, and for a stack of another machine or container.
    """
    if settings.broker is not None or not state_file(settings.home).exists():
        return None
    found = read_stack_state(settings.home)
    if found is None or is_dead(found.owner):
        with stack_lock(settings.home):
            found = _find_living(settings.home)
    usable = found is not None and found.is_running_here and found.places == places_digest(settings)
    return found.broker_url if found is not None and usable else None
