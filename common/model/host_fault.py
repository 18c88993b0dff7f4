"""What keeps the host of a worker from working."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FaultKind(StrEnum):
    """What a host cannot use, as in the label of the metric."""

    STAGING = "staging"  #: it cannot be read or written
    WRONG_STAGING = "wrong-staging"  #: it is not the staging that the runs were launched with
    TEMPORARY_FOLDER = "temporary-folder"  #: it cannot be written
    WAREHOUSE = "warehouse"  #: it cannot be reached, or its files cannot be read or written
    CHECK = "check"  #: unknown: the check of the host did not end in time


@dataclass(frozen=True, kw_only=True)
class HostFault:
    """Why a worker cannot work on its host."""

    kind: FaultKind
    reason: str  #: names the folder or the service
