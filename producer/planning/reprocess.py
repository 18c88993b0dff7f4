"""The choice of dates to build again."""

from __future__ import annotations

from enum import Enum


class Reprocess(Enum):
    """Which dates of earlier runs are built again."""

    NONE = "none"  #: only dates that no run has ended yet
    FAILED = "failed"  #: also the blocked and failed ones
    STALE = "stale"  #: these, and the checkpointed ones whose job's version, rules or inputs have changed since
    UNDONE = "undone"  #: the failed and blocked ones, and those whose run was undone
    ALL = "all"  #: every date, checkpointed ones included

    @property
    def builds_undone(self) -> bool:
        return self in (Reprocess.UNDONE, Reprocess.ALL)
