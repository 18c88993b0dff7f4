"""Staged files, which wait for the gate, and the quarantine of refused ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager
from datetime import date
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from gated_backfill.common.errors import UserError, WrongStaging
from gated_backfill.common.model.publication import StagedFile
from gated_backfill.common.storage.files import (
    HashingWriter,
    checksum_of,
    checksum_of_file,
    parquet_bytes,
    write_parquet,
)
from gated_backfill.common.storage.objects import open_file_store
from gated_backfill.common.storage.staged_files import open_staged

SAFE_NAME = re.compile(r"[A-Za-z0-9_-]+")
STAGED_NAME = re.compile(r"(?P<day>\d{4}-\d{2}-\d{2})-\d+\.parquet", re.ASCII)
QUARANTINE = "quarantine"
MARK = ".backfill-staging"  #: the file with the identity of this staging


class Staging:
    """Storage shared by all workers: a folder, or a URL such as gs://bucket/prefix.

    A staged file is whole or absent, and never changed once written. Methods raise `HostError` and, for failures
    worth a retry, `WarehouseUnavailable`.

    Its mark is a file with a random identity. A run records the identity of the staging that it was launched with, so a
    host on which another folder is mounted, or none, is found out.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = root
        self._store = open_file_store(root)
        self._confirmed: set[str] = set()  #: identities that need not be read again

    def check(self) -> None:
        """Check that files can be staged. Raises `HostError`; changes nothing."""
        self._store.check()

    def mark(self) -> str:
        """Return the identity of this staging. The first caller makes it up, and writes it for all others."""
        if (identity := self._read_mark()) is None:
            self._store.create(MARK, uuid4().hex.encode())
            identity = self._read_mark()
        if identity is None:
            raise WrongStaging(f"{self._store.location(MARK)}: was written, and cannot be found")
        return identity

    def confirm(self, run: str, identity: str | None) -> None:
        """Raise `WrongStaging` unless this is the staging with the identity that the run recorded.

        None, of a run of an earlier version: nothing is compared.
        """
        if identity is None or identity in self._confirmed:
            return
        found = self._read_mark()
        if found is None:
            text = f"has no file {MARK}: no folder is mounted there, or an empty one"
            raise WrongStaging(f"{self.root} is not the staging of run {run}: it {text}")
        if found != identity:
            raise WrongStaging(f"{self.root} is not the staging of run {run}: another folder is mounted there")
        if not self._store.may_be_remounted:
            self._confirmed.add(identity)

    def _read_mark(self) -> str | None:
        try:
            return self._store.read(self._store.location(MARK)).decode(errors="replace").strip()
        except FileNotFoundError:
            return None

    def write(self, run: str, day: date, attempt: int, rows: pa.Table) -> StagedFile:
        """Stage one date's rows."""
        data = parquet_bytes(rows)
        self._store.write(_key(run, day, attempt), data)
        location = self.location(run, day, attempt)
        return StagedFile(day=day, attempt=attempt, location=location, checksum=checksum_of(data), rows=rows.num_rows)

    def write_parts(
        self, run: str, day: date, attempt: int, schema: pa.Schema, batches: Iterable[pa.RecordBatch]
    ) -> StagedFile:
        """Stage one date's rows, of which a limited number is in memory at a time."""
        rows = 0

        def counted() -> Generator[pa.RecordBatch]:
            nonlocal rows
            for batch in batches:
                rows += batch.num_rows
                yield batch

        with self._store.new_file(_key(run, day, attempt)) as file:
            hashed = HashingWriter(file)
            write_parquet(hashed, schema, counted())
        location = self.location(run, day, attempt)
        return StagedFile(day=day, attempt=attempt, location=location, checksum=hashed.checksum(), rows=rows)

    def write_file(self, run: str, day: date, attempt: int, write: Callable[[str], None]) -> StagedFile:
        """Stage one date's rows, which `write` writes to the path of a Parquet file."""
        with self._store.new_file(_key(run, day, attempt)) as file:
            write(file.name)
            checksum = checksum_of_file(file.name)
            rows = pq.read_metadata(file.name).num_rows
        location = self.location(run, day, attempt)
        return StagedFile(day=day, attempt=attempt, location=location, checksum=checksum, rows=rows)

    def location(self, run: str, day: date, attempt: int) -> str:
        """Return the path or URL of the attempt's rows. Each attempt has a separate file."""
        return self._store.location(_key(run, day, attempt))

    def open(self, staged: StagedFile) -> AbstractContextManager[pq.ParquetFile]:
        """Open the staged rows, to read them in parts.

        Raises `StagedFileLost` for a file that is gone, changed, or outside this staging.
        """
        return open_staged(staged, self._store.open)

    def quarantine(self, run: str, staged: StagedFile) -> str:
        """Move a refused file into the quarantine and return its path there. A repeated call changes nothing."""
        key = f"{QUARANTINE}/{_folder(run)}/{staged.location.rpartition('/')[2]}"
        self._store.move(staged.location, key)
        return self._store.location(key)

    def delete(self, run: str, days: frozenset[date] | None = None) -> None:
        """Delete the run's staged files of the days, or all of them with the folder."""
        folder = _folder(run)
        if days is None:
            self._store.remove(folder)
            return
        names_of_days = {day.isoformat() for day in days}
        for name in self._store.names(folder):
            staged = STAGED_NAME.fullmatch(name)
            if staged is not None and staged["day"] in names_of_days:
                self._store.remove(f"{folder}/{name}")

    def delete_attempt(self, run: str, day: date, attempt: int) -> None:
        """Delete the staged file of one attempt, if it exists."""
        self._store.remove(_key(run, day, attempt))

    def staged_runs(self) -> list[str]:
        """List the ids of runs with staged files."""
        return sorted(name for name in self._store.folders("") if name != QUARANTINE and SAFE_NAME.fullmatch(name))

    def quarantined_runs(self) -> list[str]:
        """List the ids of runs with files in quarantine."""
        return sorted(name for name in self._store.folders(QUARANTINE) if SAFE_NAME.fullmatch(name))

    def delete_quarantine(self, run: str) -> None:
        """Delete the run's files in quarantine."""
        self._store.remove(f"{QUARANTINE}/{_folder(run)}")


def _key(run: str, day: date, attempt: int) -> str:
    return f"{_folder(run)}/{day.isoformat()}-{attempt}.parquet"


def _folder(run: str) -> str:
    if not SAFE_NAME.fullmatch(run):
        raise UserError(f"{run!r} is not a run id")
    return run


def open_staging(url: str) -> Staging:
    """Open the staging at a folder or URL. Raises `UserError` for a URL of an unknown kind."""
    try:
        return Staging(url)
    except UserError as exc:
        raise UserError(f"BACKFILL_STAGING: {exc}") from exc
