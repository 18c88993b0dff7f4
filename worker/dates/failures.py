"""Translate the errors of a job's code and data."""

from __future__ import annotations

import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import duckdb
from billiard.exceptions import SoftTimeLimitExceeded

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import BackfillError, MemoryExhausted, ProcessFailed
from gated_backfill.common.model.job import Job
from gated_backfill.common.process.signals import HANDLER_PACKAGES, find_interruption, raising_frames


class SoftTimeLimitReached(ProcessFailed):
    """The soft time limit was reached."""

    @property
    def kind(self) -> str:
        return ProcessFailed.__name__


@contextmanager
def translate_job_errors(job: Job, settings: Settings) -> Generator[None]:
    """Translate every error of a job's code or data to a `BackfillError`, so that it fails dates and not the chord.

    The error's `job_place` is the file and line of the job that raised it.
    """
    try:
        yield
    except SystemExit as exc:
        if not _is_raised_by(exc, job):  # the worker is being stopped
            raise
        error = ProcessFailed(f"the job ended the process: {type(exc).__name__}: {exc}")
        error.job_place = find_job_place(exc, job)
        raise error from exc
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as exc:
        error = _translate(exc, settings)
        if isinstance(error, BackfillError):
            error.job_place = find_job_place(exc, job)
        if error is exc:
            raise
        raise error from (exc if isinstance(error, ProcessFailed) else None)


def _translate(exc: BaseException, settings: Settings) -> BaseException:
    """The error to raise instead, or the error itself."""
    interruption = None if isinstance(exc, BackfillError) else find_interruption(exc)
    if isinstance(interruption, SoftTimeLimitExceeded):
        return SoftTimeLimitReached("took longer than its soft time limit")
    if interruption is not None:
        return interruption
    if _is_out_of_memory(exc):
        return _memory_exhausted(exc, settings)
    return exc if isinstance(exc, BackfillError) else ProcessFailed(f"{type(exc).__name__}: {exc}")


def find_job_place(exc: BaseException, job: Job) -> str | None:
    """The file and line of the innermost frame in the job's own package; None if the job did not raise the error."""
    places = [
        f"{Path(frame.f_code.co_filename).absolute()}:{number}"
        for frame, number in traceback.walk_tb(exc.__traceback__)
        if _is_of_job(frame, job)
    ]
    return places[-1] if places else None


def _is_raised_by(exc: BaseException, job: Job) -> bool:
    """Whether the job's code, or a library that it called, raised the error, and not a signal's handler meanwhile."""
    frames = raising_frames(exc)
    job_frames = [number for number, frame in enumerate(frames) if _is_of_job(frame, job)]
    if not job_frames:
        return False
    callees = (str(frame.f_globals.get("__name__")).partition(".")[0] for frame in frames[job_frames[-1] + 1 :])
    return not any(package in HANDLER_PACKAGES for package in callees)


def _is_of_job(frame: FrameType, job: Job) -> bool:
    """Whether the frame is of the job's own package."""
    module = getattr(job.process, "func", job.process).__module__  # the function of a `functools.partial`
    top_level = module.partition(".")[0]
    package = module if top_level == __name__.partition(".")[0] else top_level
    return f"{frame.f_globals.get('__name__')}.".startswith(f"{package}.")


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
