"""Names of missing or unexpected entities of a date: how many are shown or stored, and how they are listed."""

from __future__ import annotations

from collections.abc import Sequence

from gated_backfill.common.process.printable_text import printable_name

MISSING_NAMES_SHOWN = 12  #: of one date, in messages
MISSING_NAMES_STORED = 500  #: of one date, in the ledger, which also has their exact number


def list_names(names: Sequence[str], count: int, *, shown: int = MISSING_NAMES_SHOWN) -> str:
    """Return the first names, printable, and how many of all `count` are left out: `ada, bob and 3 more`."""
    text = ", ".join(map(printable_name, names[:shown]))
    return f"{text} and {count - shown} more" if count > shown else text
