"""Rows on their way into a table and out of it: staged files, publications, and kept rows with their retention."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.tables import TableName, validate_identifier

TABLE_SCHEME = "table:"  #: begins the location of rows that are staged in a table
BACKUP_ID = re.compile(r"[0-9a-z]+(?:-[0-9a-z]+)*")  #: of the operation that made it
OWN_DATASET = "backfill"  #: of the tool's own tables, unless the URL of the warehouse names another
EXPIRY_CONFIRMATION = timedelta(days=1)  #: between finding that kept rows have expired and removing them
METADATA_TABLE = "backfill_metadata"  #: the history of runs, which may be loaded into the bookkeeping dataset


@dataclass(frozen=True, kw_only=True)
class WarehouseLimits:
    """Limits on the cost and the time of warehouse calls."""

    max_bytes_billed: int = 100 * 1024**3  #: of one query; a more expensive one fails before it runs
    retry_seconds: float = 60.0  #: how long transient errors are retried
    job_seconds: float = 600.0  #: how long one job may take
    undo_days: int = 30  #: how long replaced rows are kept for undo
    query_memory_mb: int = 400  #: of one query of a local warehouse; beyond it, the query uses files, or fails


@dataclass(frozen=True, kw_only=True)
class StagedFile:
    """One date's rows that wait for the gate: a file, or the rows of the date in a staging table of the warehouse."""

    day: date
    attempt: int
    location: str  #: a path shared by all workers, a URL such as gs://bucket/prefix/..., or table:DATASET.TABLE
    checksum: str  #: SHA-256 of the file's bytes, in hex; of rows in a table, their content as the warehouse counts it
    rows: int

    @property
    def table(self) -> TableName | None:
        """The staging table that holds the rows; None if a file does."""
        name = self.location.removeprefix(TABLE_SCHEME)
        return None if name == self.location else TableName.parse(name)


def table_location(table: TableName) -> str:
    """Return the location of rows that are staged in the table."""
    return f"{TABLE_SCHEME}{table}"


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A gate's publication of a window's dates, with its fencing token."""

    run: str
    window: int
    #: Of the window's lease: a gate that claimed the window later has a higher one. Publishing under a lower one than
    #: the warehouse has seen is refused.
    generation: int

    @property
    def name(self) -> str:
        """Return RUN/WINDOW."""
        return f"{self.run}/{self.window}"


@dataclass(frozen=True, kw_only=True)
class PublishResult:
    """The outcome of a publication. Every date is in exactly one of the three sets."""

    published: frozenset[date]  #: the target now holds exactly the staged rows
    conflicting: frozenset[date] = frozenset()  #: not replaced: another writer changed the partition since staging
    lost: frozenset[date] = frozenset()  #: not replaced: the staged file is gone or has changed
    #: Quick fingerprints of published dates, from before their rows were confirmed; without those that have none.
    quick_fingerprints: Mapping[date, str] = field(default_factory=dict[date, str], compare=False)


@dataclass(frozen=True, kw_only=True)
class PublishedDate:
    """The publication of a run that wrote the rows which a date has now."""

    run: str
    attempt: int
    checksum: str  #: of the staged file that was published


@dataclass(frozen=True, kw_only=True)
class KeptRows:
    """Rows of a date that this tool removed from a table, as they were at that moment, and still keeps."""

    id: str  #: unique in the warehouse
    day: date
    kept_at: datetime  #: when they were removed, by the clock of the warehouse
    removed_by: str  #: "run R", "undo of run R", "restore of kept rows", or "cleanup ID" for what it could not put back
    fingerprint: str  #: of the rows, as `Warehouse.fingerprints` gives it
    rows: int


@dataclass(frozen=True, kw_only=True)
class Backup:
    """A copy of some dates of a table, identified by the operation that made it."""

    id: str
    table: TableName
    date_column: str

    def __post_init__(self) -> None:
        if not BACKUP_ID.fullmatch(self.id):
            raise UserError(f"{self.id!r} is not the id of a backup")
        validate_identifier(self.date_column, "column name")


@dataclass(frozen=True, kw_only=True)
class BackupDate:
    fingerprint: str  #: of its rows, from `Warehouse.fingerprints`
    rows: int


def is_confirmed_expired(found_expired_at: datetime | None, now: datetime) -> bool:
    """Whether rows that have expired now were found to have expired at least a day ago, too.

    A single look is not enough: the clock may be set ahead. The time of the earlier look may then lie in the future.
    """
    return found_expired_at is not None and found_expired_at <= now - EXPIRY_CONFIRMATION
