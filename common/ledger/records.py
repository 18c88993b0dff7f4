"""Records of the ledger: frozen values that stores take and return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, NamedTuple

from gated_backfill.common.errors import StagedFileLost
from gated_backfill.common.ledger.states import ENDED_DATES, ENDED_RUNS, DateState, RunAction, RunState, WindowState
from gated_backfill.common.model.coverage import Verdict
from gated_backfill.common.model.publication import StagedFile
from gated_backfill.common.model.usage import Usage
from gated_backfill.common.process.printable_text import printable, printable_name


@dataclass(frozen=True, kw_only=True, slots=True)
class NewDate:
    """One date of a run to open, either with a window to build it in or with a final state that the plan decided."""

    day: date
    window: int | None = None
    state: DateState = DateState.PENDING
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])  #: further columns of `run_dates`


@dataclass(frozen=True, kw_only=True)
class NewRun:
    job: str
    job_version: str
    options: Mapping[str, Any]
    requested: str
    requested_by: str
    owner: str | None
    dates: tuple[NewDate, ...]
    reason: str | None = None  #: why the user launches it
    target: str | None = None  #: the table that the run claims for its job
    replaced_owner: str | None = None  #: the job that has given the target up
    #: By date, the run of the checkpoint that it had when the run was planned. None: not compared.
    planned_with: Mapping[date, str] | None = None
    usage: Usage | None = None  #: what its plan was billed


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
    undo_generation: int  #: of its latest undo; changes when one begins and when it ends
    undo_owner: str | None  #: process that undoes it
    undo_until: datetime | None
    undone_at: datetime | None
    undone_by: str | None
    reported_at: datetime | None
    bytes_billed: int | None  #: for its plan only, see `RunStore.sum_usage`
    slot_millis: int | None

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED_RUNS


@dataclass(frozen=True, kw_only=True, slots=True)
class DateRow:
    """One date of a run; see `tables.run_dates` for its fields."""

    run_id: str
    day: date
    job: str
    window: int | None
    state: DateState
    active: bool
    attempt: int
    deaths: int
    losses: int
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
    unexpected: tuple[str, ...]
    unexpected_count: int | None
    rows: int | None
    staged_path: str | None
    checksum: str | None
    target_before: str | None
    inputs: str | None
    input_parts: Mapping[str, str] | None
    job_version: str | None
    target_rows: int | None
    target_matched: int | None
    lost: tuple[str, ...]
    lost_count: int | None
    loss: str | None
    floor: int | None
    floor_reason: str | None
    error_kind: str | None
    error: str | None
    error_place: str | None
    queued_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    seconds: float | None
    undone_at: datetime | None
    undone_by: str | None
    undo_restored: bool | None  #: False: undone, and left with the rows that another writer wrote since
    bytes_billed: int | None
    slot_millis: int | None

    @property
    def undone(self) -> UndoneDate | None:
        if self.undone_at is None:
            return None
        return UndoneDate(
            day=self.day,
            run_id=self.run_id,
            by=self.undone_by or "",
            at=self.undone_at,
            restored=bool(self.undo_restored),
        )

    def staged_file(self) -> StagedFile:
        """Return the date's staged file. Raises `StagedFileLost` when nothing was staged."""
        if self.staged_path is None or self.checksum is None or self.rows is None:
            raise StagedFileLost("no file was staged", day=self.day)
        return StagedFile(
            day=self.day, attempt=self.attempt, location=self.staged_path, checksum=self.checksum, rows=self.rows
        )


@dataclass(frozen=True, kw_only=True)
class WindowRow:
    run_id: str
    number: int
    state: WindowState
    lease_owner: str | None
    lease_until: datetime | None
    generation: int  #: of its latest lease
    deaths: int  #: of gates that worked on it
    losses: int  #: leases that were lost for an unknown reason
    opened_at: datetime | None
    closed_at: datetime | None
    bytes_billed: int | None
    slot_millis: int | None


@dataclass(frozen=True, kw_only=True)
class RunWithDates:
    """A run and all its dates, oldest first."""

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
    input_parts: Mapping[str, str] | None = None  #: fingerprints by role of the table; None if not recorded
    target_quick: str | None = None  #: quick fingerprint of the target's rows when they were last read; None if unknown


@dataclass(frozen=True, kw_only=True, slots=True)
class RenewedProof:
    """What was found unchanged of a checkpoint, with the quick fingerprints from before it was read. None: nothing."""

    job: str
    day: date
    run_id: str  #: of the checkpoint
    target_quick: str | None = None
    input_parts: Mapping[str, str] | None = None  #: all parts of the checkpoint, some of them renewed


class CheckpointedCount(NamedTuple):
    """How many entities a checkpointed date expected, and the run that checkpointed it."""

    expected: int
    run_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class UndoneDate:
    """A date of a run that was undone."""

    day: date
    run_id: str
    by: str
    at: datetime
    restored: bool  #: False: it keeps the rows that another writer wrote since, or its undo is under way

    def describe(self) -> str:
        return f"undone by {printable_name(self.by)} at {self.at:%Y-%m-%d %H:%M} UTC (run {self.run_id})"

    def as_json(self) -> dict[str, Any]:
        return {"day": self.day.isoformat(), "run": self.run_id, "by": self.by, "at": self.at.isoformat()}


@dataclass(frozen=True, kw_only=True)
class ActionRow:
    """An action on a run: who, when and why."""

    run_id: str
    action: RunAction
    by: str
    reason: str | None
    details: Mapping[str, Any]
    at: datetime


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """Progress of a run: its state, and the number of its dates in each state."""

    run: Run
    counts: Mapping[DateState, int]
    note: str = ""  #: a remark that `watch` shows with the progress

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def ended(self) -> int:
        return sum(n for state, n in self.counts.items() if state in ENDED_DATES)

    @property
    def processed(self) -> int:
        """Number of dates that need no more work by workers: ended, staged or published."""
        return self.ended + self.count(DateState.STAGED, DateState.PUBLISHED)

    def count(self, *states: DateState) -> int:
        return sum(self.counts.get(state, 0) for state in states)


@dataclass(frozen=True, kw_only=True)
class SourceUse:
    """Totals of the checkpointed dates of a run that were built from one source."""

    source: str
    dates: int
    matched: int
    expected: int


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The parts of a run's report that concern its dates."""

    sources: tuple[SourceUse, ...]
    incomplete: tuple[DateRow, ...]  #: blocked or failed
    accepted_or_forced: tuple[DateRow, ...]  #: checkpointed with the verdict accepted or forced
    undone: tuple[UndoneDate, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NewAlert:
    key: str  #: a key is alerted once, e.g. `run-blocked RUN`
    kind: str
    title: str
    lines: Sequence[str]  #: of its body
    job: str | None = None
    run_id: str | None = None

    @property
    def body(self) -> str:
        """The lines, each of them printable: none can contain another."""
        return "\n".join(map(printable, self.lines))


@dataclass(frozen=True, kw_only=True)
class Alert:
    """A recorded alert and the state of its delivery."""

    id: str
    key: str
    kind: str
    job: str | None
    run_id: str | None
    title: str
    body: str
    state: str  #: pending, sending, sent, failed (abandoned) or muted (its kind is disabled)
    attempts: int
    lease_owner: str | None
    lease_until: datetime | None  #: end of its sender's lease; of a pending alert, when to retry
    delivered: tuple[str, ...]  #: masked names of the endpoints that got it
    created_at: datetime
    sent_at: datetime | None
    error: str | None  #: of the last failed delivery, without secrets
