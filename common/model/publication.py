"""What is staged for a target, and what publishing it did."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

METADATA_TABLE = "backfill_metadata"  #: the table that is loaded like any other, also into a dataset of the tool's own


@dataclass(frozen=True, kw_only=True)
class WarehouseLimits:
    """What a warehouse may cost and how long it may take."""

    max_bytes_billed: int = 100 * 1024**3  #: of one query; a dearer one is refused before it runs
    retry_seconds: float = 60.0  #: how long a passing trouble is sat out before it is reported
    job_seconds: float = 600.0  #: how long one job may take
    undo_days: int = 30  #: how long what a run replaced is kept


@dataclass(frozen=True, kw_only=True)
class StagedFile:
    """One date's rows as a file that waits for the gate."""

    day: date
    attempt: int
    location: str  #: a path that all workers share, or a URL such as gs://bucket/prefix/...
    checksum: str  #: SHA-256 of the file's bytes, in hex
    rows: int


@dataclass(frozen=True, kw_only=True)
class PublishResult:
    """What a publish did. Every date handed in is in exactly one of the three."""

    published: frozenset[date]  #: the target now holds exactly the staged rows
    conflicting: frozenset[date] = frozenset()  #: left alone: somebody else wrote the partition since it was staged
    lost: frozenset[date] = frozenset()  #: left alone: its staged file is gone or is not what was staged
