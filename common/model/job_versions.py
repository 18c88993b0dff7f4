"""The version of a job as a process has loaded it, compared with the version that a run needs. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

UNKNOWN_VERSION = ""  #: in a checkpoint: which version built its rows is not known; no job has a blank version
STALE_PREFIX = "stale: "  #: starts the reason of every stale date
NUMBERS = re.compile(r"v?(\d+(?:\.\d+)*)")


@dataclass(frozen=True, kw_only=True)
class VersionMismatch:
    """A process that has another version of a run's job than the run needs."""

    process: str  #: such as `the worker on HOST`
    job: str
    run: str
    loaded: str
    needed: str

    def describe(self) -> str:
        """What differs, and what to do: the one with the older version is to be replaced."""
        differs = f"{self.process} has version {self.loaded} of job {self.job}, the run needs version {self.needed}"
        if is_older_version(self.needed, self.loaded):
            return (
                f"{differs}: it was launched with an older version than the workers have: install version "
                f"{self.loaded} where runs are launched, then `backfill retry {self.run}`"
            )
        return f"{differs}: restart the workers"


def is_older_version(version: str, other: str) -> bool:
    """Whether the version is known to be older than the other: both are numbers, such as `2` or `v1.10`."""
    numbers, other_numbers = _numbers(version), _numbers(other)
    return numbers is not None and other_numbers is not None and numbers < other_numbers


def _numbers(version: str) -> tuple[int, ...] | None:
    match = NUMBERS.fullmatch(version.strip())
    return tuple(int(part) for part in match[1].split(".")) if match else None


def stale_reason(checkpoint_version: str, job_version: str, *, has_same_rules: bool) -> str | None:
    """The reason why a date is stale that was built by that version, and judged by these rules; None if it is not."""
    if checkpoint_version == UNKNOWN_VERSION:
        return f"{STALE_PREFIX}its checkpoint was rebuilt, and which version of the job built its rows is not known"
    if checkpoint_version != job_version:
        return f"{STALE_PREFIX}built by version {checkpoint_version}, the job is version {job_version} now"
    return None if has_same_rules else f"{STALE_PREFIX}the job's rules for complete rows changed since"
