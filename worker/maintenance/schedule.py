"""When beat has which work done: the whole schedule, as values.

A due moment is called a slot. Every beat reckons the same slots from the clock alone, so two of them ask for the same
one, and the ledger gives it to one worker. Celery's own crontab has no slots: it reckons from its last run, over clock
changes too, and is not used.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from celery.schedules import BaseSchedule, schedstate

from gated_backfill.common.broker.celery_app import MAINTAIN
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.model.queues import HOUSEKEEPING_QUEUE, MAINTENANCE_QUEUE
from gated_backfill.common.process.clock import utcnow

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LONGEST_WORK = timedelta(hours=1)  #: the lease of a daily work, which ends before it at the latest
FREQUENT_LEASE = timedelta(minutes=5)
RECONCILE_LEASE = timedelta(minutes=1)  #: short, for a worker that died on another host: two at once do no harm
SHORTEST_WAIT = timedelta(seconds=5)  #: what a message of a very frequent work is given all the same
LONGEST_WAIT = timedelta(
    hours=1
)  #: a message that no worker took up for so long is dropped; the next look sends it again


class Recurrence(Protocol):
    """The slots of a work, in aware UTC."""

    def latest_due(self, now: datetime) -> datetime:
        """The last slot that is not later than `now`."""
        ...

    def next_due(self, now: datetime) -> datetime:
        """The first slot that is later than `now`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Every:
    """So many seconds apart, counted from the epoch: the same moments for everybody."""

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
    """Once a local date, when the clocks of the zone show the time.

    A time that they show twice (the clocks go back) counts the first time; one that they skip (the clocks go forward)
    counts as far into the day as it would have been had they not.
    """

    time: time
    zone: str  #: e.g. America/New_York

    def latest_due(self, now: datetime) -> datetime:
        return max(slot for slot in self._around(now) if slot <= now)

    def next_due(self, now: datetime) -> datetime:
        return min(slot for slot in self._around(now) if slot > now)

    def _around(self, now: datetime) -> list[datetime]:
        zone = ZoneInfo(self.zone)
        here = now.astimezone(zone).date()
        days = (here + timedelta(days=n) for n in range(-2, 3))
        return [datetime.combine(day, self.time, zone).astimezone(UTC) for day in days]


@dataclass(frozen=True, kw_only=True)
class MaintenanceSchedule:
    """A work and when it is due."""

    recurrence: Recurrence
    lease: timedelta  #: how long whoever took a slot's work has for it

    @property
    def is_daily(self) -> bool:
        """Whether a slot is worth making up for: the slots of the others come soon enough by themselves."""
        return isinstance(self.recurrence, DailyAt)

    @property
    def queue(self) -> str:
        """Where its messages go: a daily work may take an hour, and no heartbeat or alert waits for it."""
        return HOUSEKEEPING_QUEUE if self.is_daily else MAINTENANCE_QUEUE

    @property
    def expires(self) -> float:
        """The seconds after which a message nobody took up is dropped, so that they do not pile up."""
        if not isinstance(self.recurrence, Every):
            return LONGEST_WAIT.seconds
        return min(max(self.recurrence.seconds, SHORTEST_WAIT.seconds), LONGEST_WAIT.seconds)


def maintenance_schedules(settings: Settings) -> dict[str, MaintenanceSchedule]:
    """Every work that beat knows of, by its name."""
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
    """Daily at the time, or so many minutes after it, so that the works of a night follow each other."""
    moment = (datetime.combine(date(2000, 1, 1), at) + timedelta(minutes=minutes)).time()
    return MaintenanceSchedule(recurrence=DailyAt(time=moment, zone=settings.timezone), lease=LONGEST_WORK)


class SlotSchedule(BaseSchedule):
    """The slots, as Celery's beat asks for them. Two are equal, and one survives its schedule file, by its slots."""

    def __init__(self, when: Recurrence) -> None:
        super().__init__(nowfun=utcnow)
        self.when = when

    def is_due(self, last_run_at: datetime) -> schedstate:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Due in another slot than that of the last message, whichever way the clock was set since."""
        now = utcnow()
        due = self.when.latest_due(now) != self.when.latest_due(_aware(last_run_at))
        return schedstate(is_due=due, next=(self.when.next_due(now) - now).total_seconds())

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        return self.when.next_due(_aware(last_run_at)) - utcnow()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SlotSchedule) and other.when == self.when

    def __hash__(self) -> int:
        return hash(self.when)

    def __repr__(self) -> str:
        return repr(self.when)

    def __reduce__(self) -> tuple[type[SlotSchedule], tuple[Recurrence]]:
        return SlotSchedule, (self.when,)


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def beat_schedule(settings: Settings, names: Collection[str]) -> dict[str, dict[str, Any]]:
    """The named works as Celery's setting `beat_schedule` takes them."""
    return {
        name: {
            "task": MAINTAIN,
            "schedule": SlotSchedule(entry.recurrence),
            "args": (name,),
            "options": {"queue": entry.queue, "expires": entry.expires, "argsrepr": name, "kwargsrepr": ""},
        }
        for name, entry in maintenance_schedules(settings).items()
        if name in names
    }
