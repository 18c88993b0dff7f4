"""The installed jobs, found by name through the entry point group `backfill.jobs`.

A package of the user's own can add a job; a name given on the command line can select an installed job but never
import anything else.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import entry_points

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.job import Job
from gated_backfill.common.process.imports import freeze_imports

ENTRY_POINT_GROUP = "backfill.jobs"


def job_names() -> list[str]:
    """The names of the installed jobs, sorted."""
    return sorted({point.name for point in entry_points(group=ENTRY_POINT_GROUP)})


@lru_cache(maxsize=64)
def find_job(name: str) -> Job:
    """The installed job of that name. Raises `UserError` when there is none, or when it can't be loaded."""
    for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        try:
            with freeze_imports():
                found = point.load()
        except Exception as exc:  # the edge: a job's module is somebody else's code
            raise UserError(
                f"job {name} is installed but can't be loaded from {point.value}: {type(exc).__name__}: {exc}"
            ) from exc
        if not isinstance(found, Job):
            raise UserError(f"the entry point {point.value} of job {name} is no Job")
        if found.name != name:
            raise UserError(f"the entry point {name} holds the job {found.name}: give both the same name")
        return found
    known = ", ".join(job_names()) or "none"
    raise UserError(f"there is no job named {name!r}; installed jobs: {known}")
