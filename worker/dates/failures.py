"""Translate the errors of a job's code and data."""

from __future__ import annotations

import traceback
from collections.abc import Generator
from contextlib import contextmanager

import duckdb
from billiard.exceptions import SoftTimeLimitExceeded

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import BackfillError, MemoryExhausted, ProcessFailed
from gated_backfill.common.process.signals import find_interruption


class SoftTimeLimitReached(ProcessFailed):
    """The soft time limit was reached."""

    @property
    def kind(self) -> str:
        return ProcessFailed.__name__


@contextmanager
def translate_job_errors(settings: Settings) -> Generator[None]:
    """Translate every error of a job's code or data to a `BackfillError`, so that it fails dates and not the chord."""
    try:
        yield
    except BackfillError as exc:
        if _is_out_of_memory(exc):
            raise _memory_exhausted(exc, settings) from None
        raise
    except Exception as exc:
        interruption = find_interruption(exc)
        if isinstance(interruption, SoftTimeLimitExceeded):
            raise SoftTimeLimitReached("took longer than its soft time limit") from exc
        if interruption is not None:
            raise interruption from None
        if _is_out_of_memory(exc):
            raise _memory_exhausted(exc, settings) from None
        raise ProcessFailed(f"{type(exc).__name__}: {exc}") from exc


def _is_out_of_memory(exc: BaseException | None) -> bool:
    """Whether the error or one of its causes is a lack of memory. Only DuckDB has its own error for it."""
    while exc is not None:
        if isinstance(exc, (MemoryError, duckdb.OutOfMemoryException)):
            return True
        exc = exc.__cause__
    return False


def _memory_exhausted(exc: BaseException, settings: Settings) -> MemoryExhausted:
    """The error without its causes: their frames keep the memory that recording the failure needs."""
    cause: BaseException | None = exc
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__
    limit = f"more than {settings.worker_memory_mb} MB" if settings.worker_memory_mb else "all that the machine has"
    return MemoryExhausted(f"exhausted its memory: {limit}")
