"""The tables of a schedule, and what an undisturbed run makes of them: reckoned here, with nothing of the tool's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from enum import Enum
from random import Random

NAMES = tuple(f"player{n:02d}" for n in range(13))
FIRST_DAY = date(2023, 2, 20)
Row = tuple[str, float, str]  #: name, value, source
OLD_DAYS = tuple(date(2022, 1, 1) + timedelta(days=n) for n in range(5))  #: of a table of which all rows are stale


def old_rows(day: date) -> list[Row]:
    """What the old table holds at first."""
    return [(name, float(day.day), "archive") for name in NAMES[:3]]


class Kind(Enum):
    """What is the matter with a date."""

    PLAIN = "plain"  #: the first source has everybody
    FALLBACK = "fallback"  #: the first source has one stale row, the second everybody
    ACCEPTED = "accepted"  #: one of 13 is missing: 92 %
    POORER = "poorer"  #: the same, but the target already has everybody, from another program
    DROPPED = "dropped"  #: the sources are whole, but `process` loses half of the rows: only a recount tells
    LOOKALIKE = "lookalike"  #: the first source has everybody, but with a trailing blank: other entities
    SHORT = "short"  #: no source has enough
    SHRUNK = "shrunk"  #: the expectation has two of 13, fewer than the job's floor, and so have the sources
    OFF = "off"  #: not on the calendar

    @property
    def passes(self) -> bool:
        return self in (Kind.PLAIN, Kind.FALLBACK, Kind.LOOKALIKE, Kind.ACCEPTED)


@dataclass(frozen=True, kw_only=True)
class Day:
    """One date and what its tables hold."""

    day: date
    kind: Kind
    slow: bool = False  #: its processing takes a while
    stale: bool = False  #: the target already has rows of somebody else

    @property
    def end(self) -> str:
        """The state in which an undisturbed run leaves the date."""
        if self.kind is Kind.OFF:
            return "blocked" if self.stale else "skipped"  # rows in the target say that something was expected
        return "checkpointed" if self.kind.passes else "blocked"

    @property
    def expected(self) -> tuple[str, ...]:
        return () if self.kind is Kind.OFF else NAMES[:2] if self.kind is Kind.SHRUNK else NAMES

    def names_in(self, source: str) -> tuple[str, ...]:
        """Whom a source has."""
        held: Mapping[Kind, Mapping[str, tuple[str, ...]]] = {
            Kind.PLAIN: {"first": NAMES, "second": NAMES},
            Kind.FALLBACK: {"first": NAMES[:1], "second": NAMES},
            Kind.LOOKALIKE: {"first": tuple(f"{name} " for name in NAMES), "second": NAMES},
            Kind.ACCEPTED: {"first": NAMES[1:], "second": NAMES[:3]},
            Kind.POORER: {"first": NAMES[1:], "second": NAMES[:3]},
            Kind.DROPPED: {"first": NAMES, "second": ()},
            Kind.SHORT: {"first": NAMES[:5], "second": NAMES[:7]},
            Kind.SHRUNK: {"first": NAMES[:2], "second": ()},
            Kind.OFF: {"first": (), "second": ()},
        }
        return held[self.kind][source]

    @property
    def trick(self) -> str | None:
        return "drop" if self.kind is Kind.DROPPED else "slow" if self.slow else None

    @property
    def source(self) -> str:
        """What an undisturbed run builds the date from."""
        return "second" if self.kind in (Kind.FALLBACK, Kind.LOOKALIKE, Kind.SHORT) else "first"

    def value(self, name: str) -> float:
        return float(self.day.day * 100 + NAMES.index(name.strip()))

    @property
    def before(self) -> tuple[Row, ...]:
        """What the target holds before any run."""
        if self.kind is Kind.POORER:
            return tuple((name, 1.0, "another program") for name in NAMES)
        return (("somebody", 1.0, "another program"),) if self.stale else ()

    @property
    def after(self) -> tuple[Row, ...]:
        """What the target holds after an undisturbed run."""
        if not self.kind.passes:
            return self.before
        return tuple((name, self.value(name), self.source) for name in self.names_in(self.source))


def make_shape(random: Random) -> tuple[Day, ...]:
    count = random.choice([4, 4, 4, 5, 5, 6, 8])
    kinds = random.choices(
        [Kind.PLAIN, Kind.FALLBACK, Kind.ACCEPTED, Kind.SHORT, Kind.OFF], weights=[10, 3, 2, 1, 1], k=count
    )
    kinds = [Kind.SHRUNK if kind is Kind.SHORT and n % 2 else kind for n, kind in enumerate(kinds)]
    kinds[0] = Kind.PLAIN
    if random.random() < 0.5:
        kinds[random.randrange(1, count)] = Kind.DROPPED
    kinds = [Kind.LOOKALIKE if kind is Kind.FALLBACK and n % 2 else kind for n, kind in enumerate(kinds)]
    slow = random.random() < 0.4
    shape = [
        Day(
            day=FIRST_DAY + timedelta(days=n),
            kind=kind,
            slow=slow and kind.passes and random.random() < 0.35,
            stale=random.random() < 0.25,
        )
        for n, kind in enumerate(kinds)
    ]
    return tuple(replace(day, kind=Kind.POORER) if day.kind is Kind.ACCEPTED and day.stale else day for day in shape)
