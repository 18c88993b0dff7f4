"""Result files that wait for the gate, and the quarantine of those it refused."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import pyarrow as pa

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.publication import StagedFile
from gated_backfill.common.storage.files import checksum_of, parquet_bytes
from gated_backfill.common.storage.objects import open_file_store
from gated_backfill.common.storage.staged_files import parse_rows, read_staged_bytes

SAFE_NAME = re.compile(r"[A-Za-z0-9_-]+")
STAGED_NAME = re.compile(r"(?P<day>\d{4}-\d{2}-\d{2})-\d+\.parquet", re.ASCII)
QUARANTINE = "quarantine"


class Staging:
    """A place that all workers share: a folder, or a URL such as gs://bucket/prefix.

    A staged file is whole or absent, and never changed once written. Raises `NotAllowed` and, for what may pass,
    `WarehouseUnavailable`.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = root
        self._store = open_file_store(root)

    def check(self) -> None:
        """Raises `NotAllowed` when nothing could be staged. Changes nothing."""
        self._store.check()

    def write(self, run: str, day: date, attempt: int, rows: pa.Table) -> StagedFile:
        """Stage one date's rows."""
        data = parquet_bytes(rows)
        self._store.write(_key(run, day, attempt), data)
        location = self.location(run, day, attempt)
        return StagedFile(day=day, attempt=attempt, location=location, checksum=checksum_of(data), rows=rows.num_rows)

    def location(self, run: str, day: date, attempt: int) -> str:
        """Where that attempt's rows are: an attempt never overwrites another's."""
        return self._store.location(_key(run, day, attempt))

    def rows(self, staged: StagedFile) -> pa.Table:
        """What was staged. Raises `StagedFileLost` when it is gone, is something else, or is not in this staging."""
        return parse_rows(read_staged_bytes(staged, self._store.read))

    def quarantine(self, run: str, staged: StagedFile) -> str:
        """Move a refused file where it can be inspected, and tell where; doing so again changes nothing."""
        kept = f"{QUARANTINE}/{_folder(run)}/{staged.location.rpartition('/')[2]}"
        self._store.move(staged.location, kept)
        return self._store.location(kept)

    def delete(self, run: str, days: frozenset[date] | None = None) -> None:
        """Remove a run's staged files: those of some days, or all of them and the folder."""
        folder = _folder(run)
        if days is None:
            self._store.remove(folder)
            return
        wanted = {day.isoformat() for day in days}
        for name in self._store.names(folder):
            staged = STAGED_NAME.fullmatch(name)  # what else is there is nobody's of ours
            if staged is not None and staged["day"] in wanted:
                self._store.remove(f"{folder}/{name}")

    def delete_attempt(self, run: str, day: date, attempt: int) -> None:
        """Remove what one attempt has staged; that it is not there changes nothing."""
        self._store.remove(_key(run, day, attempt))

    def staged_runs(self) -> list[str]:
        """The ids of the runs that have something staged."""
        return sorted(name for name in self._store.folders("") if name != QUARANTINE and SAFE_NAME.fullmatch(name))

    def quarantined_runs(self) -> list[str]:
        """The ids of the runs that have something in quarantine."""
        return sorted(name for name in self._store.folders(QUARANTINE) if SAFE_NAME.fullmatch(name))

    def delete_quarantine(self, run: str) -> None:
        """Remove what the gate refused of a run."""
        self._store.remove(f"{QUARANTINE}/{_folder(run)}")


def _key(run: str, day: date, attempt: int) -> str:
    return f"{_folder(run)}/{day.isoformat()}-{attempt}.parquet"


def _folder(run: str) -> str:
    if not SAFE_NAME.fullmatch(run):
        raise UserError(f"{run!r} is not a run id")
    return run


def open_staging(url: str) -> Staging:
    """The staging that `BACKFILL_STAGING` names. Raises `UserError` for a URL of an unknown kind."""
    try:
        return Staging(url)
    except UserError as exc:
        raise UserError(f"BACKFILL_STAGING: {exc}") from exc
