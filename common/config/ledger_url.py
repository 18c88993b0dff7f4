"""Where the ledger is. Told apart from all other settings for `status`, which is asked for over and over.

Reading every setting takes longer than looking into the ledger does.
"""

from __future__ import annotations

import os
from pathlib import Path

SQLITE_PREFIX = "sqlite:///"
DEFAULT_HOME = Path(".backfill")  #: holds the ledger of who sets no other place


def resolve_ledger_url(home: Path, ledger: str | None) -> str:
    """The ledger's URL; a SQLite file is named from the root, for processes that start elsewhere."""
    if ledger is None:
        return f"{SQLITE_PREFIX}{home.absolute() / 'ledger.db'}"
    file = ledger.removeprefix(SQLITE_PREFIX)
    return f"{SQLITE_PREFIX}{Path(file).absolute()}" if ledger.startswith(SQLITE_PREFIX) and file else ledger


def read_ledger_url() -> str:
    """The URL that `read_settings` would find, by `BACKFILL_HOME` and `BACKFILL_LEDGER` alone."""
    given = {name.lower(): value for name, value in os.environ.items()}
    return resolve_ledger_url(Path(given.get("backfill_home", DEFAULT_HOME)), given.get("backfill_ledger"))
