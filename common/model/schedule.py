"""The schedule of a job: when its newest dates are built each day, and by when they must be complete."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import time

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.dates import validate_time_zone
from gated_backfill.common.model.field_checks import AT_LEAST_1, FieldRule, check_fields

LOCAL_TIME = FieldRule(allowed="a time such as time(6, 30), without a zone", permits=lambda at: at.tzinfo is None)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When beat builds a job's newest dates, each day, by the same plan, workers and gate as any run.

    A date that would be blocked, because its expectation or sources are not loaded yet, is tried again every few
    minutes. Raises `UserError` for a value that is not allowed.
    """

    at: time  #: local time from which the dates are built
    deadline: time | None = None  #: local time, after `at`, by which they must be complete: otherwise an alert is sent
    last_days: int = 1  #: how many dates, up to yesterday
    time_zone: str | None = None  #: IANA name of the zone of both times; None: the expectation's, or BACKFILL_TIMEZONE

    def __post_init__(self) -> None:
        owner = "a Schedule"
        check_fields(self, owner, at=LOCAL_TIME, deadline=LOCAL_TIME, last_days=AT_LEAST_1)
        validate_time_zone(self.time_zone, owner)
        if self.deadline is not None and self.deadline <= self.at:
            raise UserError(f"{owner}: deadline is {self.deadline}: it must be later than at, which is {self.at}")
