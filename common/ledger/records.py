"""What the ledger hands out: frozen rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from gated_backfill.common.errors import StagedFileLost
from gated_backfill.common.ledger.states import ENDED_DATES, ENDED_RUNS, DateState, RunAction, RunState, WindowState
from gated_backfill.common.model.coverage import Verdict

if TYPE_CHECKING:
    from gated_backfill.common.model.publication import StagedFile


@dataclass(frozen=True, kw_only=True, slots=True)
class NewDate:
    """One date of a run to open: to be built in a window, or ended by the plan with its reason."""

    day: date
    window: int | None = None
    state: DateState = DateState.PENDING
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])  #: further columns of `run_dates`


@dataclass(frozen=True, kw_only=True)
class NewRun:
    """A run to open."""

    job: str
    job_version: str
    options: Mapping[str, Any]
    requested: str
    requested_by: str
    owner: str | None
    dates: tuple[NewDate, ...]
    reason: str | None = None  #: why it is launched


@dataclass(frozen=True, kw_only=True)
class Run:
    """A launched backfill."""

    id: str
    job: str
    job_version: str
    state: RunState
    options: Mapping[str, Any]
    requested: str
    requested_by: str
    reason: str | None
    owner: str | None
    first_date: date
    last_date: date
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    undone_at: datetime | None
    undone_by: str | None
    reported_at: datetime | None

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED_RUNS


@dataclass(frozen=True, kw_only=True, slots=True)
class DateRow:
    """One date of a run, as far as it has come."""

    run_id: str
    day: date
    job: str
    window: int | None
    state: DateState
    active: bool
    attempt: int
    deaths: int
    lease_owner: str | None
    lease_until: datetime | None
    reason: str | None
    verdict: Verdict | None
    expected: int | None
    found: Mapping[str, int] | None
    source: str | None
    source_reason: str | None
    matched: int | None
    missing: tuple[str, ...]
    rows: int | None
    staged_path: str | None
    checksum: str | None
    target_before: str | None
    inputs: str | None
    error_kind: str | None
    error: str | None
    queued_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    seconds: float | None

    def staged_file(self) -> StagedFile:
        """The file this date has staged. Raises `StagedFileLost` when it has none."""
        if self.staged_path is None or self.checksum is None or self.rows is None:
            raise StagedFileLost("no file was staged", day=self.day)
        from gated_backfill.common.model.publication import StagedFile

        return StagedFile(
            day=self.day,
            attempt=self.attempt,
            location=self.staged_path,
            checksum=self.checksum,
            rows=self.rows,
        )


@dataclass(frozen=True, kw_only=True)
class WindowRow:
    """One window of a run."""

    run_id: str
    number: int
    state: WindowState
    lease_owner: str | None
    lease_until: datetime | None
    deaths: int  #: of gates that worked on it
    opened_at: datetime | None
    closed_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class RunWithDates:
    """A run with everything that is known of its dates, oldest date first."""

    run: Run
    dates: tuple[DateRow, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The durable proof that a date is complete."""

    job: str
    day: date
    run_id: str
    job_version: str
    verdict: Verdict
    reason: str
    expected: int
    matched: int
    rows: int
    source: str
    checksum: str
    inputs: str
    checkpointed_at: datetime


@dataclass(frozen=True, kw_only=True)
class ActionRow:
    """What somebody did to a run."""

    run_id: str
    action: RunAction
    by: str
    reason: str | None
    details: Mapping[str, Any]
    at: datetime


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """How far a run is: its state and the number of its dates in each state."""

    run: Run
    counts: Mapping[DateState, int]
    note: str = ""  #: what whoever follows it should know

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def ended(self) -> int:
        return sum(n for state, n in self.counts.items() if state in ENDED_DATES)

    @property
    def processed(self) -> int:
        """Dates that no worker has to touch any more: those that ended and those that wait for the gate."""
        return self.ended + self.count(DateState.STAGED, DateState.PUBLISHED)

    def count(self, *states: DateState) -> int:
        return sum(self.counts.get(state, 0) for state in states)


@dataclass(frozen=True, kw_only=True)
class SourceUse:
    """What the checkpointed dates of a run were built from, as far as from one source."""

    source: str
    dates: int
    matched: int
    expected: int


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What there is to tell of the dates of a run, however many they are."""

    sources: tuple[SourceUse, ...]
    incomplete: tuple[DateRow, ...]  #: blocked or failed
    accepted_or_forced: tuple[DateRow, ...]  #: accepted below what is complete, or forced


@dataclass(frozen=True, kw_only=True)
class NewAlert:
    """Something that somebody should be told."""

    key: str  #: alerts of one key are told once, e.g. `run-blocked RUN`
    kind: str
    title: str  #: one line
    body: str
    job: str | None = None
    run_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Alert:
    """Something that somebody was told, or is still to be told."""

    id: str
    key: str
    kind: str
    job: str | None
    run_id: str | None
    title: str
    body: str
    state: str  #: pending, sending, sent, failed (given up) or muted (of a kind that is not wanted)
    attempts: int
    lease_owner: str | None
    lease_until: datetime | None  #: of its sender; while it is pending, when it is tried next
    delivered: tuple[str, ...]  #: the endpoints that have it, by their masked names
    created_at: datetime
    sent_at: datetime | None
    error: str | None  #: why an endpoint did not take it, without secrets
