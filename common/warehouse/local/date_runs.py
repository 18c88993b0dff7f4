"""Rows in any order as the rows of each date, whatever they take: sorted by date in runs, and merged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gated_backfill.common.storage.batch_spool import BatchSpool
from gated_backfill.common.warehouse.entities import day_numbers

RUN_BYTES = 12 * 1024 * 1024  #: that are sorted in memory
BATCH_BYTES = 64 * 1024  #: of a run, read at once: one such batch of each run is in memory


class DateRuns(AbstractContextManager["DateRuns"]):
    """The rows of a stream by date, in the order of the stream within a date.

    Memory is bounded: a run is sorted at a time, and one small batch of each run is read at a time.
    """

    def __init__(self, schema: pa.Schema, date_column: str, folder: Path) -> None:
        self._date_column = date_column
        self._spool = BatchSpool(schema, folder)
        self._runs: list[list[int]] = []  #: the numbers of each run's batches
        self.row_counts: dict[date, int] = {}

    def __exit__(self, *_: object) -> None:
        self._spool.close()

    def add_all(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Sort the rows of all batches by date. No date may be null."""
        waiting: list[pa.RecordBatch] = []
        for batch in batches:
            waiting.append(batch)
            if sum(each.nbytes for each in waiting) >= RUN_BYTES:
                self._add_run(waiting)
                waiting = []
        if waiting:
            self._add_run(waiting)

    def _add_run(self, batches: list[pa.RecordBatch]) -> None:
        rows = pa.Table.from_batches(batches, self._spool.schema)
        days = day_numbers(rows[self._date_column])
        if np.any(np.diff(days) < 0):
            order: Any = np.argsort(days, kind="stable")
            rows, days = rows.take(pa.array(order, pa.int64())), days[order]
        self._count(days)
        rows_per_batch = max(1, rows.num_rows * BATCH_BYTES // max(rows.nbytes, 1))
        batches_of_run = rows.combine_chunks().to_batches(max_chunksize=rows_per_batch)
        self._runs.append([self._spool.append(batch) for batch in batches_of_run])

    def _count(self, days: npt.NDArray[np.int32]) -> None:
        numbers, counts = np.unique(days, return_counts=True)
        for day, count in zip(numbers.astype("datetime64[D]").tolist(), counts.tolist(), strict=True):
            self.row_counts[day] = self.row_counts.get(day, 0) + count

    def rows_by_date(self) -> Iterator[tuple[date, Iterator[pa.RecordBatch]]]:
        """Yield each date, ascending, with its rows. The rows of a date must be read before the next date."""
        cursors = [_Cursor(self._spool, numbers, self._date_column) for numbers in self._runs]
        for day in sorted(self.row_counts):
            number = np.datetime64(day, "D").astype(np.int32)
            yield day, (batch for cursor in cursors for batch in cursor.take(number))


class _Cursor:
    """A place in a sorted run."""

    def __init__(self, spool: BatchSpool, numbers: list[int], date_column: str) -> None:
        self._batches = (spool.read(number) for number in numbers)
        self._date_column = date_column
        self._batch: pa.RecordBatch | None = None
        self._days: npt.NDArray[np.int32] = np.empty(0, np.int32)
        self._offset = 0

    def take(self, day: np.int32) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the day, and move on. No earlier day may be left."""
        while self._batch is not None or self._read_batch():
            assert self._batch is not None
            end = int(np.searchsorted(self._days, day, side="right"))
            if end > self._offset:
                yield self._batch.slice(self._offset, end - self._offset)
            self._offset = end
            if end < len(self._days):
                return
            self._batch = None

    def _read_batch(self) -> bool:
        self._batch = next(self._batches, None)
        if self._batch is None:
            return False
        self._days = day_numbers(self._batch[self._date_column])
        self._offset = 0
        return True
