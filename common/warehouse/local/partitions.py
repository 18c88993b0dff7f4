"""The partitions of a local table: one folder per date, with a file of rows and a note on its publication."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gated_backfill.common.errors import HostError, SchemaMismatch, UserError, WarehouseUnavailable
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.storage.files import (
    checked_path,
    checksum_of_handle,
    closing_handle,
    is_host_error,
    write_atomically,
)
from gated_backfill.common.warehouse.protocol import ABSENT

ROWS_FILE = "part.parquet"
PUBLICATION_FILE = "publication.json"  #: the run and attempt that wrote the rows, and their checksum
LOADING = ".loading"  #: in the table's folder: prepared partitions and files
SCHEMA_FILE = "schema.json"  #: in the table's folder: its columns, types and date column
OWN_FILES = frozenset({ROWS_FILE, PUBLICATION_FILE})
IGNORED_PREFIXES = (".", "_")  #: of files that hold no rows, by a convention that Spark and others follow
MAX_NAMES_SHOWN = 5


def table_path(table: TableName) -> tuple[str, str]:
    """Return the folders, under the warehouse's root, of the table. Raises `UserError` for one of another project."""
    if table.project:
        raise UserError(
            f"a local warehouse has no projects: write the table as {table.dataset}.{table.table}", table=str(table)
        )
    return table.dataset, table.table


def partition_folders(root: Path, folder: Path) -> Iterator[Path]:
    """List the partition folders with rows, unordered. Raises `OutsideRoot` for a link out of the root."""
    for name in partition_names(folder, None):
        partition = folder / name
        try:
            mode = os.lstat(f"{partition}/{ROWS_FILE}").st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        if partition.is_symlink() or stat.S_ISLNK(mode):
            if not (partition / ROWS_FILE).exists():
                continue
            checked_path(root, partition / ROWS_FILE)
        yield partition


def partition_names(folder: str | Path, date_column: str | None) -> list[str]:
    """List the names of the table's partition folders, with or without rows, unordered; none without the table.

    `date_column` is that of the table, if it is known.
    """
    return [name for name in names_in(folder) if _is_partition(name, date_column)]


def partition_name(date_column: str, day: date) -> str:
    """Return the name of the date's folder."""
    return f"{date_column}={day.isoformat()}"


def names_in(folder: str | Path) -> list[str]:
    """List the names in the folder, unordered; none if it does not exist."""
    try:
        return os.listdir(folder)  # noqa: PTH208 - faster for thousands of names
    except (FileNotFoundError, NotADirectoryError):
        return []


def check_only_partitions(table: TableName, folder: str, date_column: str | None, partitions: set[str]) -> bool:
    """Check that the table's folder has no rows outside of partitions of one date each. Raises `SchemaMismatch`.

    No reader would see these rows. `date_column` is that of the table, if it is known. `partitions` are names that
    were found to be partitions' before; new ones are added. Returns whether the answer holds until a name in the folder
    changes: it does not while a folder that is no partition is empty.
    """
    names = [name for name in os.listdir(folder) if name not in partitions]  # noqa: PTH208 - faster for thousands
    partitions.update(name for name in names if _is_partition(name, date_column))
    others = [
        name
        for name in names
        if name not in partitions and not name.startswith(IGNORED_PREFIXES) and name != SCHEMA_FILE
    ]
    if with_rows := sorted(name for name in others if _holds_rows(f"{folder}/{name}")):
        shown = ", ".join(with_rows[:MAX_NAMES_SHOWN]) + (", ..." if len(with_rows) > MAX_NAMES_SHOWN else "")
        raise SchemaMismatch(
            f"holds {shown}, which is no partition of a date: all rows must be in folders "
            f"{date_column or 'COLUMN'}=YYYY-MM-DD, each with one {ROWS_FILE}; move the others out of {folder}, and "
            f"import their rows with `backfill load {table} FILE`",
            table=str(table),
        )
    return not others


def _is_partition(name: str, date_column: str | None) -> bool:
    """Whether it is the name of the partition of a date.

    Names with an ignored prefix are none, except for a date column that begins with `_`.
    """
    column, _, value = name.partition("=")
    if column.startswith(".") if date_column is None else column != date_column:
        return False
    try:
        return date.fromisoformat(value).isoformat() == value
    except ValueError:
        return False


def _holds_rows(path: str) -> bool:
    """Whether it is a file, or a folder with a file or folder that may hold rows."""
    try:
        names = os.listdir(path)  # noqa: PTH208 - as above
    except NotADirectoryError:
        return True
    except FileNotFoundError:  # removed since, or a link to nothing
        return False
    return any(name != PUBLICATION_FILE and not name.startswith(IGNORED_PREFIXES) for name in names)


def check_no_other_files(partition: str) -> None:
    """Check that the partition's folder has no rows beside ours. Raises `SchemaMismatch`, or `OSError` for no folder.

    Another program may have added them. Readers of the one file would not see these rows, others would.
    """
    names = os.listdir(partition)  # noqa: PTH208 - called for every partition that is read
    if others := [name for name in names if name not in OWN_FILES and not name.startswith(IGNORED_PREFIXES)]:
        raise partition_mismatch(
            f"{partition}/{ROWS_FILE}",
            f"holds {', '.join(sorted(others))}, which is not ours: all rows of a date must be in {ROWS_FILE}",
        )


def partition_mismatch(part: str, problem: str) -> SchemaMismatch:
    """Return the error for a problem with the partition of that file, worded as a sentence about it."""
    dataset, table, partition = part.rsplit("/", 4)[-4:-1]
    mismatch = SchemaMismatch(problem, table=f"{dataset}.{table}, partition {partition}")
    mismatch.partition = partition
    return mismatch


def is_damage(exc: Exception) -> bool:
    """Whether Arrow raised the error for the content of a file. Such an `OSError` has no number."""
    return isinstance(exc, pa.ArrowException) or (isinstance(exc, OSError) and exc.errno is None)


def partition_damage(part: str, exc: Exception) -> SchemaMismatch:
    """Return the error for a partition whose file Arrow cannot read."""
    return partition_mismatch(part, f"is not a readable Parquet file: {exc}")


@contextmanager
def refuse_damage(part: str) -> Generator[None]:
    """Raise `SchemaMismatch`, which names the partition, for a file that Arrow cannot read."""
    try:
        yield
    except (pa.ArrowException, OSError) as exc:
        if not is_damage(exc):
            raise
        raise partition_damage(part, exc) from exc


def file_exists(part: str | Path) -> bool:
    """Whether the file exists. Raises `OSError` for a folder that cannot be searched."""
    try:
        os.stat(part)  # noqa: PTH116 - called for every file read
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def file_fingerprint(file: str | Path) -> str:
    """Return the checksum of a file at a checked path; `ABSENT` when it does not exist."""
    try:
        handle = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return ABSENT
    with closing_handle(handle):
        return checksum_of_handle(handle)


def write_through(loading: Path, file: Path, content: bytes, *, durable: bool) -> None:
    """Replace a small file elsewhere. Its temporary file lies in the loading folder, which is cleared after a crash."""
    temporary = loading / file.name
    write_atomically(temporary, content, durable=durable)
    temporary.replace(file)
    with suppress(OSError):  # a change is being prepared there
        loading.rmdir()


def count_rows(part: Path) -> int:
    """Count the rows of the file; none if it does not exist."""
    try:
        return pq.read_metadata(part).num_rows
    except FileNotFoundError:
        return 0


@contextmanager
def translate_file_errors(table: TableName) -> Generator[None]:
    """Raise `SchemaMismatch`, `HostError` or `WarehouseUnavailable` for errors of files."""
    try:
        yield
    except pa.ArrowInvalid as exc:
        raise SchemaMismatch(f"a partition is not a readable Parquet file: {exc}", table=str(table)) from exc
    except OSError as exc:
        if is_host_error(exc):
            raise HostError(f"{exc.strerror}: {exc.filename}", table=str(table)) from exc
        raise WarehouseUnavailable(f"{exc.strerror or exc}: {exc.filename or ''}", table=str(table)) from exc
