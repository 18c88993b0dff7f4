"""The kinds of alerts."""

from __future__ import annotations

from enum import StrEnum


class AlertKind(StrEnum):
    """The subjects of alerts, the most severe first."""

    LOW_COVERAGE = "low-coverage"  #: dates with less than half of the expected entities
    RUN_BLOCKED = "run-blocked"  #: a run left dates blocked or failed
    DAY_LATE = "day-late"  #: the newest dates of a job were not complete by the deadline of its schedule
    AUDIT = "audit"  #: the audit found problems in published dates
    CLEANUP_UNUSUAL = "cleanup-unusual"  #: more stale rows than usual
    MAINTENANCE_FAILED = "maintenance-failed"  #: a maintenance task failed
    BEAT_SILENT = "beat-silent"  #: scheduled tasks do not run
    CONSUMER_LOST = "consumer-lost"  #: a worker does not take tasks from a queue that it was started for
    HOST_FAULTY = "host-faulty"  #: a worker takes no tasks, because its host cannot work
    FALLBACK_OFTEN = "fallback-often"  #: the primary source of a job is often partial
    RUN_FINISHED = "run-finished"  #: a run ended


ALERT_KINDS = tuple(kind.value for kind in AlertKind)


def parse_alert_kinds(text: str | None) -> tuple[str, ...]:
    """Parse the alert kinds in a setting, separated by commas or white space."""
    return tuple((text or "").replace(",", " ").split())
