"""Result files that wait for the gate, and the quarantine of those it refused."""

from __future__ import annotations

import re
import shutil
from datetime import date
from pathlib import Path

import pyarrow as pa

from common.errors import NotAllowed, UserError, WarehouseUnavailable
from common.warehouse.base import StagedFile
from common.warehouse.files import check_writable, checksum_of, parquet_bytes, write_atomically

SAFE_NAME = re.compile(r"[A-Za-z0-9_-]+")


class Staging:
    """A folder that all workers share. A staged file is whole or absent, and never changed once written."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def check(self) -> None:
        """Raises `NotAllowed` when nothing could be staged. Changes nothing."""
        check_writable(self.root)

    def write(self, run: str, day: date, attempt: int, rows: pa.Table) -> StagedFile:
        """Stage one date's rows. Raises `WarehouseUnavailable` when the folder can't be written."""
        data = parquet_bytes(rows)
        path = self.path(run, day, attempt)
        try:
            write_atomically(path, data)
        except (PermissionError, NotADirectoryError) as exc:
            raise NotAllowed(f"staging: {exc.strerror}: {exc.filename}", day=day) from exc
        except OSError as exc:
            raise WarehouseUnavailable(f"staging: {exc.strerror}: {exc.filename}", day=day) from exc
        return StagedFile(day=day, attempt=attempt, path=path, checksum=checksum_of(data), rows=rows.num_rows)

    def path(self, run: str, day: date, attempt: int) -> Path:
        """Where that attempt's rows are: an attempt never overwrites another's."""
        return self._folder(run) / f"{day.isoformat()}-{attempt}.parquet"

    def is_intact(self, staged: StagedFile) -> bool:
        try:
            return checksum_of(staged.path.read_bytes()) == staged.checksum
        except FileNotFoundError:
            return False

    def quarantine(self, run: str, staged: StagedFile) -> Path:
        """Move a refused file where it can be inspected; doing so again changes nothing."""
        kept = self.root / "quarantine" / self._folder(run).name / staged.path.name
        kept.parent.mkdir(parents=True, exist_ok=True)
        if staged.path.exists():
            staged.path.replace(kept)
        return kept

    def discard(self, run: str, days: frozenset[date] | None = None) -> None:
        """Remove a run's staged files: those of some days, or all of them and the folder."""
        folder = self._folder(run)
        if days is None:
            shutil.rmtree(folder, ignore_errors=True)
            return
        for path in folder.glob("*.parquet") if folder.is_dir() else ():
            if date.fromisoformat(path.name[:10]) in days:
                path.unlink(missing_ok=True)

    def _folder(self, run: str) -> Path:
        if not SAFE_NAME.fullmatch(run):
            raise UserError(f"{run!r} is not a run id")
        return self.root / run


def open_staging(url: str) -> Staging:
    """The staging folder. Raises `UserError` for a URL of another kind."""
    if "://" in url:
        raise UserError(f"BACKFILL_STAGING is {url!r}: give a folder that all workers share")
    return Staging(Path(url))
