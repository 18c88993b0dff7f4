"""Which dates that an earlier run dealt with are built again."""

from __future__ import annotations

from enum import Enum


class Reprocess(Enum):
    """Which dates that an earlier run dealt with are built again."""

    NONE = "none"  #: only dates that no run has ended yet
    FAILED = "failed"  #: those, and the ones that ended blocked or failed
    ALL = "all"  #: every date, checkpointed ones included
