"""The schedule of the maintenance tasks.

A due moment is called a slot. Every beat computes the same slots from the clock alone, so two beats ask for the same
slot, and the ledger gives it to one worker. Celery's own crontab is not used: it computes the next moment from its last
run, so two beats differ, and a clock change shifts it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from celery.schedules import BaseSchedule, schedstate

from gated_backfill.common.broker.celery_app import MAINTAIN
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.model.scheduling.queues import HOUSEKEEPING_QUEUE, MAINTENANCE_QUEUE
from gated_backfill.common.process.clock import utcnow

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAILY_LEASE = timedelta(hours=1)  #: the time limit of a daily task is shorter
FREQUENT_LEASE = timedelta(minutes=5)
RECONCILE_LEASE = timedelta(minutes=1)  #: short, as its worker may die on another host; two at once are safe
MIN_EXPIRY = timedelta(seconds=5)  #: the shortest time after which a message expires
#: The longest time after which a message expires. A daily task that is overdue is sent again.
MAX_EXPIRY = timedelta(hours=1)


class Recurrence(Protocol):
    """The slots of a maintenance task, in aware UTC."""

    def latest_due(self, now: datetime) -> datetime:
        """The last slot that is not later than `now`."""
        ...

    def next_due(self, now: datetime) -> datetime:
        """The first slot that is later than `now`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Every:
    """At a fixed interval, counted from the epoch, so that all hosts compute the same slots."""

    seconds: float

    def latest_due(self, now: datetime) -> datetime:
        return EPOCH + (now - EPOCH) // self._period * self._period  # whole microseconds: a fraction would drift

    def next_due(self, now: datetime) -> datetime:
        return self.latest_due(now) + self._period

    @property
    def _period(self) -> timedelta:
        return timedelta(seconds=self.seconds)


@dataclass(frozen=True, kw_only=True)
class DailyAt:
    """Once a local date, at a local time.

    If the clocks go back and show the time twice, the first one counts. If they go forward and skip it, the slot is as
    long after midnight as on any other day.
    """

    time: time
    zone: str  #: e.g. America/New_York

    def latest_due(self, now: datetime) -> datetime:
        return max(slot for slot in self._around(now) if slot <= now)

    def next_due(self, now: datetime) -> datetime:
        return min(slot for slot in self._around(now) if slot > now)

    def _around(self, now: datetime) -> list[datetime]:
        zone = ZoneInfo(self.zone)
        local_day = now.astimezone(zone).date()
        days = (local_day + timedelta(days=n) for n in range(-2, 3))
        return [datetime.combine(day, self.time, zone).astimezone(UTC) for day in days]


@dataclass(frozen=True, kw_only=True)
class MaintenanceSchedule:
    """When a maintenance task is due, and how its messages are sent."""

    recurrence: Recurrence
    lease: timedelta  #: the time that a worker has for one slot

    @property
    def is_daily(self) -> bool:
        """Whether a missed slot is made up for. The next slot of the other tasks comes within minutes."""
        return isinstance(self.recurrence, DailyAt)

    @property
    def queue(self) -> str:
        """The queue of its messages. Daily tasks have their own: they may take an hour, and would delay heartbeats."""
        return HOUSEKEEPING_QUEUE if self.is_daily else MAINTENANCE_QUEUE

    @property
    def expires(self) -> float:
        """The seconds after which an unconsumed message is dropped, so that messages do not pile up."""
        if not isinstance(self.recurrence, Every):
            return MAX_EXPIRY.seconds
        return min(max(self.recurrence.seconds, MIN_EXPIRY.seconds), MAX_EXPIRY.seconds)


def maintenance_schedules(settings: Settings) -> dict[str, MaintenanceSchedule]:
    """The schedule of each maintenance task, by name. `runner.MAINTENANCE_TASKS` has its function."""
    return {
        "cleanup": _daily(settings, settings.cleanup_at),
        "expire_backups": _daily(settings, settings.cleanup_at, minutes=15),
        "staging_retention": _daily(settings, settings.cleanup_at, minutes=30),
        "quarantine_retention": _daily(settings, settings.cleanup_at, minutes=35),
        "undo_retention": _daily(settings, settings.cleanup_at, minutes=40),
        "alerts_retention": _daily(settings, settings.cleanup_at, minutes=45),
        "audit": _daily(settings, settings.audit_at),
        "reconcile": _every(settings.reconcile_seconds, lease=RECONCILE_LEASE),
        "heartbeat": _every(60),
        "catch_up": _every(60),
        "reports": _every(60),
        "alerts": _every(60),
    }


def _every(seconds: float, *, lease: timedelta = FREQUENT_LEASE) -> MaintenanceSchedule:
    return MaintenanceSchedule(recurrence=Every(seconds=seconds), lease=lease)


def _daily(settings: Settings, at: time, *, minutes: int = 0) -> MaintenanceSchedule:
    """Daily, `minutes` after the time `at`, so that the tasks of a night run one after the other."""
    moment = (datetime.combine(date(2000, 1, 1), at) + timedelta(minutes=minutes)).time()
    return MaintenanceSchedule(recurrence=DailyAt(time=moment, zone=settings.timezone), lease=DAILY_LEASE)


class SlotSchedule(BaseSchedule):
    """A recurrence as a Celery schedule. Beat compares it by value, and pickles it into its schedule file."""

    def __init__(self, recurrence: Recurrence) -> None:
        super().__init__(nowfun=utcnow)
        self.recurrence = recurrence

    def is_due(self, last_run_at: datetime) -> schedstate:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Whether the current slot differs from the one of the last message, even if the clock was set back since."""
        now = utcnow()
        is_due = self.recurrence.latest_due(now) != self.recurrence.latest_due(_aware(last_run_at))
        return schedstate(is_due=is_due, next=(self.recurrence.next_due(now) - now).total_seconds())

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        return self.recurrence.next_due(_aware(last_run_at)) - utcnow()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SlotSchedule) and other.recurrence == self.recurrence

    def __hash__(self) -> int:
        return hash(self.recurrence)

    def __repr__(self) -> str:
        return repr(self.recurrence)

    def __reduce__(self) -> tuple[type[SlotSchedule], tuple[Recurrence]]:
        return SlotSchedule, (self.recurrence,)


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def beat_schedule(settings: Settings) -> dict[str, dict[str, Any]]:
    """The schedule of the maintenance tasks, as a value for Celery's setting `beat_schedule`."""
    return {
        name: {
            "task": MAINTAIN,
            "schedule": SlotSchedule(entry.recurrence),
            "args": (name,),
            "options": {"queue": entry.queue, "expires": entry.expires, "argsrepr": name, "kwargsrepr": ""},
        }
        for name, entry in maintenance_schedules(settings).items()
    }
