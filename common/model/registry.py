"""The installed jobs, found by name through the entry point group `backfill.jobs`.

Any installed package can add a job. A name on the command line selects an installed job and imports nothing else.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import entry_points

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.job import Job
from gated_backfill.common.process.signals import is_raised_by_handler

ENTRY_POINT_GROUP = "backfill.jobs"
EXAMPLE_JOB = "player_composite_factors"  #: the job that is shipped as an example


def job_names() -> list[str]:
    """Return the names of the installed jobs, sorted."""
    return sorted({point.name for point in entry_points(group=ENTRY_POINT_GROUP)})


@lru_cache(maxsize=64)
def find_job(name: str) -> Job:
    """Return the installed job of that name. Raises `UserError` when there is none or when it cannot be loaded."""
    for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        try:
            job = point.load()
        except (Exception, SystemExit) as exc:  # a job's module may raise anything
            if isinstance(exc, SystemExit) and is_raised_by_handler(exc):
                raise
            place = f"{point.value}{_line_in_module(exc, point.module)}"
            raise UserError(
                f"job {name} is installed but can't be loaded from {place}: {type(exc).__name__}: {exc}"
            ) from exc
        if not isinstance(job, Job):
            raise UserError(f"the entry point {point.value} of job {name} is not a Job")
        if job.name != name:
            raise UserError(f"the entry point {name} holds the job {job.name}: give both the same name")
        return job
    installed = ", ".join(job_names()) or "none"
    raise UserError(f"there is no job named {name!r}; installed jobs: {installed}")


def _line_in_module(exc: BaseException, module: str) -> str:
    """The line of the module that led to the error, with a comma before it; nothing if the module never ran."""
    frames = traceback.walk_tb(exc.__traceback__)
    lines = [number for frame, number in frames if frame.f_globals.get("__name__") == module]
    return f", line {lines[-1]}" if lines else ""


def load_jobs(names: Iterable[str] | None = None) -> tuple[list[Job], dict[str, UserError]]:
    """Return the jobs that can be loaded, and the errors of the others by job name. None loads every installed job."""
    jobs: list[Job] = []
    errors: dict[str, UserError] = {}
    for name in job_names() if names is None else names:
        try:
            jobs.append(find_job(name))
        except UserError as exc:
            errors[name] = exc
    return jobs, errors
