"""The revisions of the ledger's tables, and which code may use which."""

from __future__ import annotations

from dataclasses import dataclass

from gated_backfill.common.errors import LedgerUnusable

HEAD_REVISION = "0015"  #: the newest migration; a test compares it with the scripts. Revisions are ordered as texts
MIGRATE = "run `backfill ledger migrate`"


@dataclass(frozen=True, kw_only=True)
class SchemaSupport:
    """What the ledger says of the code that may use its tables."""

    oldest_code: str  #: the newest revision that the oldest usable code knows
    migrated_by: str  #: the version of this tool that migrated the tables


def is_newer(revision: str | None) -> bool:
    """Whether the tables are of a newer version than this code."""
    return revision is not None and revision > HEAD_REVISION


def check_usable(revision: str | None, support: SchemaSupport | None) -> None:
    """Raise `LedgerUnusable`, with the next step, unless this code can use the tables as they are.

    Newer tables can be used if they say so: then columns and tables were only added. `revision` is None before the
    tables are created.
    """
    if revision == HEAD_REVISION or (is_newer(revision) and support and support.oldest_code <= HEAD_REVISION):
        return
    if revision is None:
        raise LedgerUnusable(f"the ledger has no tables yet: {MIGRATE}, which creates them")
    if not is_newer(revision):
        raise LedgerUnusable(
            f"the ledger's tables are at version {revision}, this program needs {HEAD_REVISION}: {MIGRATE}"
        )
    version = support.migrated_by if support else "that migrated them"
    raise LedgerUnusable(
        f"the ledger was written by a newer version (its tables are at {revision}, this program knows them up to "
        f"{HEAD_REVISION}): install version {version} of gated-backfill here, and restart what uses the ledger"
    )
