"""Rows of query results: many by the Storage Read API, few, or all where that is not possible, by REST."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, ClassVar

import pyarrow as pa
import structlog
from google.api_core import exceptions as api
from google.auth.exceptions import GoogleAuthError

MIN_STORAGE_ROWS = 50_000  #: fewer rows take REST about a second
PAUSE_SECONDS = 600.0  #: without the API after an error
READ_PERMISSION = "bigquery.readsessions.create"
CHECK_SECONDS = 20.0
STORAGE_ERRORS = (api.GoogleAPICallError, api.RetryError, GoogleAuthError, TimeoutError)

log = structlog.get_logger()


class ResultReader:
    """Reads the rows of query results. The Storage Read API has no part in any guarantee: it is only faster."""

    #: The process that has used gRPC first. Those that were forked from it afterwards must not.
    _grpc_process: ClassVar[int | None] = None

    def __init__(self, open_client: Callable[[], Any] | None) -> None:
        """`open_client` opens a `BigQueryReadClient`; None: everything is read by REST, as with an emulator."""
        self._open_client = open_client
        self._paused_until = 0.0  #: of the monotonic clock

    def read(self, get_result: Callable[[], Any], seconds: float) -> pa.Table:
        """Read all rows of a result, which takes the API `seconds` at most. `get_result` gets a new `RowIterator`."""
        result = get_result()
        if (result.total_rows or 0) >= MIN_STORAGE_ROWS and self.may_use_storage:
            try:
                with closing(self._opened()) as client:
                    return result.to_arrow(bqstorage_client=client.storage, timeout=seconds)
            except STORAGE_ERRORS as exc:
                self._paused_until = math.inf if isinstance(exc, api.Forbidden) else time.monotonic() + PAUSE_SECONDS
                log.warning("storage_read_failed", error=_first_line(exc), permission=READ_PERMISSION)
                result = get_result()  # the other has begun
        return result.to_arrow(create_bqstorage_client=False)

    def find_problem(self, project: str, table: Any) -> str | None:
        """Return why the API cannot read the table, a reference; None if it can."""
        from google.cloud.bigquery_storage_v1.types import DataFormat, ReadSession  # slow to import

        session = ReadSession(table=table.to_bqstorage(), data_format=DataFormat.ARROW)
        try:
            with closing(self._opened()) as client:
                client.storage.create_read_session(
                    parent=f"projects/{project}", read_session=session, max_stream_count=1, timeout=CHECK_SECONDS
                )
        except STORAGE_ERRORS as exc:
            return _first_line(exc)
        return None

    @property
    def may_use_storage(self) -> bool:
        """Whether many rows are read by the API now."""
        return (
            self._open_client is not None
            and time.monotonic() >= self._paused_until
            and ResultReader._grpc_process in (None, os.getpid())
        )

    def _opened(self) -> _OpenedClient:
        assert self._open_client is not None
        ResultReader._grpc_process = os.getpid()
        return _OpenedClient(self._open_client())


class _OpenedClient:
    """A client with a connection of its own, which no fork of this process may inherit."""

    def __init__(self, storage: Any) -> None:
        self.storage = storage

    def close(self) -> None:
        self.storage.transport.close()


def _first_line(exc: BaseException) -> str:
    return str(exc).split("\n")[0][:300]
