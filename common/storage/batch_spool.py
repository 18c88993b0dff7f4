"""Record batches in a temporary file, for rows that may not fit into memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gated_backfill.common.errors import HostError

if TYPE_CHECKING:
    import pyarrow as pa


class BatchSpool(AbstractContextManager["BatchSpool"]):
    """Record batches of one schema, written once and read in any order, in an unnamed file.

    The file has no name in its folder, so nothing is left behind even if the process is killed.
    """

    def __init__(self, schema: pa.Schema, folder: Path | None = None) -> None:
        """`folder` holds the file, and must exist; by default, the system's folder for temporary files.

        Raises `HostError` when it cannot be written.
        """
        self.schema = schema
        self.rows = 0
        self._folder = folder or Path(tempfile.gettempdir())
        with self._naming_folder():
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `close`
        self._places: list[tuple[int, int]] = []  #: offset and length of each batch
        self._end = 0

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete the rows."""
        with suppress(OSError):  # of what could not be written: nobody needs it any more
            self._file.close()

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return map(self.read, range(len(self)))

    def append(self, batch: pa.RecordBatch) -> int:
        """Write the batch; return its number. Raises `HostError` when there is no room for it."""
        data: Any = batch.serialize()
        with self._naming_folder():
            self._file.write(data)
            self._file.flush()
        self._places.append((self._end, data.size))
        self._end += data.size
        self.rows += batch.num_rows
        return len(self._places) - 1

    def extend(self, batches: Iterable[pa.RecordBatch]) -> None:
        for batch in batches:
            self.append(batch)

    def read(self, number: int) -> pa.RecordBatch:
        import pyarrow as pa

        offset, length = self._places[number]
        data = os.pread(self._file.fileno(), length, offset)
        while len(data) < length:  # one call reads at most 2 GiB
            more = os.pread(self._file.fileno(), length - len(data), offset + len(data))
            if not more:
                raise OSError(f"a temporary file ends after {offset + len(data)} bytes")
            data += more
        return pa.ipc.read_record_batch(pa.py_buffer(data), self.schema)

    def reader(self) -> pa.RecordBatchReader:
        """Return a reader of all batches, in the order in which they were written."""
        import pyarrow as pa

        return pa.RecordBatchReader.from_batches(self.schema, iter(self))

    @contextmanager
    def _naming_folder(self) -> Generator[None]:
        try:
            yield
        except OSError as exc:
            raise HostError(f"{self._folder}: no temporary file can be written there: {exc.strerror or exc}") from exc
