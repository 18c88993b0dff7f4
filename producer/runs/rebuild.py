"""Rebuild of a lost ledger: make checkpoints again from what the warehouse has, and only what it proves.

A checkpoint says that the rows of a date are those which a run published, and that they were complete. The first is
proven by what the warehouse records of its publications and runs, the second by the audit, with the expectation as it
is now. What the checkpoint says beyond that is what was recorded; what was not is marked as unknown.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

from gated_backfill.common.audit.audit import audit_dates
from gated_backfill.common.audit.findings import AuditedDate, AuditFinding
from gated_backfill.common.audit.target_proofs import compare_with_target
from gated_backfill.common.errors import UserError
from gated_backfill.common.history.recorded_dates import RecordedDate, read_recorded_dates
from gated_backfill.common.ledger import Checkpoint, DateState, Ledger, NewDate, NewRun, Run, RunState
from gated_backfill.common.ledger.rows import failure_columns
from gated_backfill.common.model.coverage import Verdict
from gated_backfill.common.model.dates import DateRange, chunk_dates, enclosing_range, format_dates
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.job_versions import UNKNOWN_VERSION
from gated_backfill.common.model.publication import PublishedDate
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.identity import process_identity
from gated_backfill.common.runs.interrupted import is_interrupted
from gated_backfill.common.runs.release import ITS_PROCESS_DIED, SYSTEM_ACTOR, release_run
from gated_backfill.common.runs.targets import check_target_free
from gated_backfill.common.warehouse.protocol import Warehouse
from gated_backfill.producer.context import CommandContext
from gated_backfill.producer.tables.row_file import Progress

DATES_AT_ONCE = 500  #: verified, or checkpointed, together
UNKNOWN_SOURCE = "?"  #: in a checkpoint: from which source its rows were built is not known; no source has this name
UNKNOWN_INPUTS = ""  #: in a checkpoint: what its rows were built from is not known
REBUILT = "; rebuilt from the record of run "  #: in the reason of a checkpoint, before the run that published its rows
PROVEN = frozenset({AuditFinding.COMPLETE, AuditFinding.ACCEPTED, AuditFinding.FORCED})


@dataclass(frozen=True, kw_only=True)
class Rebuild:
    """What can be made again of a job's checkpoints. Every date is in one of the mappings."""

    job: Job
    proven: Mapping[date, Checkpoint]  #: the checkpoints to write; their `run_id` is the run that published the rows
    unproven: Mapping[date, str] = field(default_factory=dict[date, str])  #: why not
    skipped: Mapping[date, str] = field(default_factory=dict[date, str])  #: needs no checkpoint: why the job skips it
    present: tuple[date, ...] = ()  #: has a checkpoint, which stays as it is

    @property
    def without_version(self) -> list[date]:
        """The proven dates of which it is not known what built them."""
        return [day for day, checkpoint in self.proven.items() if checkpoint.job_version == UNKNOWN_VERSION]

    @property
    def count(self) -> int:
        """How many dates were to be proven."""
        return len(self.proven) + len(self.unproven)

    def as_json(self) -> dict[str, Any]:
        return {
            "job": self.job.name,
            "proven": [_checkpoint_json(checkpoint) for checkpoint in self.proven.values()],
            "unproven": [{"day": day, "reason": reason} for day, reason in self.unproven.items()],
            "skipped": [{"day": day, "reason": reason} for day, reason in self.skipped.items()],
            "present": list(self.present),
        }


def _checkpoint_json(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "day": checkpoint.day,
        "run": checkpoint.run_id,
        "version": checkpoint.job_version or None,
        "verdict": checkpoint.verdict.value,
        "reason": checkpoint.reason,
        "expected": checkpoint.expected,
        "matched": checkpoint.matched,
        "rows": checkpoint.rows,
        "source": None if checkpoint.source == UNKNOWN_SOURCE else checkpoint.source,
        "inputs_known": checkpoint.input_parts is not None,
    }


def plan_rebuild(
    job: Job, dates: DateRange, context: CommandContext, *, add_missing: bool, progress: Progress
) -> Rebuild:
    """Find the dates of the job that its target or the table of runs has, and prove what can be proven.

    Changes nothing. Raises `UserError` when the ledger has checkpoints of these dates, unless `add_missing`, and
    `TargetTaken`; any error of a query, as a date that could not be checked is not an unproven one.
    """
    ledger, warehouse = context.ledger, context.warehouse
    context.settings.check_not_own_table(job.target.table)
    check_target_free(job, ledger)
    present = ledger.checkpoints.list_checkpoints(job.name, dates.start, dates.through)
    if present and not add_missing:
        raise UserError(
            f"the ledger has {len(present)} checkpoint(s) of job {job.name} ({format_dates(present)}): they are never "
            "replaced; --add-missing adds those of other dates"
        )
    history = context.settings.history_table
    recorded = [] if history is None else read_recorded_dates(warehouse, history, job.name)
    table, date_column = TableName.parse(job.target.table), job.target.date_column
    listed = {*warehouse.list_dates(table, date_column), *(recorded_date.day for recorded_date in recorded)}
    days = [day for day in sorted(listed) if dates.start <= day <= dates.through and day not in present]
    rebuild = _Proofs(job, warehouse, ledger, recorded).prove(days, progress)
    return replace(rebuild, present=tuple(sorted(present)))


class _Proofs:
    """The search for proofs: which run published a date's rows, and whether they are complete."""

    def __init__(self, job: Job, warehouse: Warehouse, ledger: Ledger, recorded: Sequence[RecordedDate]) -> None:
        self._job = job
        self._warehouse = warehouse
        self._ledger = ledger
        self._recorded: dict[date, list[RecordedDate]] = {}
        for recorded_date in recorded:
            self._recorded.setdefault(recorded_date.day, []).append(recorded_date)

    def prove(self, days: Sequence[date], progress: Progress) -> Rebuild:
        """Prove the days, oldest first. Days of active runs are left alone."""
        proven: dict[date, Checkpoint] = {}
        unproven: dict[date, str] = {}
        skipped: dict[date, str] = {}
        for chunk in chunk_dates(days, DATES_AT_ONCE):
            active = self._ledger.runs.find_conflicting_runs(self._job.name, chunk)
            unproven |= {day: f"run {run} is active on it" for run, of_run in active.items() for day in of_run}
            candidates, published = self._find_publications([day for day in chunk if day not in unproven])
            for audited in self._audit({*candidates, *published}, candidates):
                day = audited.day
                if (objection := _objection(audited)) is not None:
                    unproven[day] = objection
                elif audited.finding is AuditFinding.SKIPPED:
                    skipped[day] = audited.reason
                else:
                    proven[day] = candidates.get(day) or _counted(audited, self._job, published[day])
            others = [day for day in chunk if day not in unproven.keys() | candidates.keys() | published.keys()]
            unproven |= {day: self._describe_missing_proof(day) for day in others}
            progress("verifying", len(proven) + len(unproven) + len(skipped), len(days))
        return Rebuild(job=self._job, proven=proven, unproven=dict(sorted(unproven.items())), skipped=skipped)

    def _audit(self, days: Collection[date], candidates: Mapping[date, Checkpoint]) -> Sequence[AuditedDate]:
        if not days:
            return ()
        return audit_dates(self._job, sorted(days), self._warehouse, self._ledger, candidates=candidates).dates

    def _find_publications(self, days: Sequence[date]) -> tuple[dict[date, Checkpoint], dict[date, PublishedDate]]:
        """Return the recorded checkpoints of the rows that the days have now, and publications without a record."""
        found = self._match_recorded(days)
        others = [day for day in days if day not in found]
        publications = self._find(others)
        for day, publication in list(publications.items()):
            for recorded_date in self._recorded.get(day, ()):
                if (recorded_date.run_id, recorded_date.attempt) == (publication.run, publication.attempt):
                    found[day] = _checkpoint(self._job, recorded_date, publication.checksum)
                    del publications[day]
                    break
        return found, publications

    def _match_recorded(self, days: Sequence[date]) -> dict[date, Checkpoint]:
        """Compare the rows with every recorded checksum of their date, the latest first."""
        candidates = {
            day: [recorded_date for recorded_date in self._recorded.get(day, ()) if recorded_date.checksum is not None]
            for day in days
        }
        found: dict[date, Checkpoint] = {}
        for place in range(max(map(len, candidates.values()), default=0)):
            latest = {day: of_day[place] for day, of_day in candidates.items() if place < len(of_day)}
            checksums = {day: recorded.checksum or "" for day, recorded in latest.items() if day not in found}
            matching = self._matching(checksums)
            found |= {day: _checkpoint(self._job, latest[day], checksums[day]) for day in matching}
        return found

    def _matching(self, checksums: Mapping[date, str]) -> frozenset[date]:
        target = self._job.target
        return self._warehouse.matching_dates(TableName.parse(target.table), target.date_column, checksums)

    def _find(self, days: Collection[date]) -> dict[date, PublishedDate]:
        target = self._job.target
        return self._warehouse.find_publications(TableName.parse(target.table), target.date_column, days)

    def _describe_missing_proof(self, day: date) -> str:
        recorded = self._recorded.get(day)
        if not recorded:
            return "nothing records which run published its rows, or something else has written them since"
        counts = f"{recorded[0].matched} of {recorded[0].expected}"
        return f"its rows are not those that run {recorded[0].run_id} published ({counts}): damaged, changed or removed"


def _objection(audited: AuditedDate) -> str | None:
    """Return why the date's rows do not prove that it is complete; None if they do, or the job skips it."""
    if audited.observed.undone is not None:
        return audited.observed.undone.describe()
    if audited.finding is AuditFinding.SKIPPED or audited.finding in PROVEN:
        return None
    return f"{audited.finding.value}: {audited.reason}"


def _checkpoint(job: Job, recorded: RecordedDate, checksum: str) -> Checkpoint:
    """Return the checkpoint that was recorded. What a version of this tool did not record is unknown."""
    return Checkpoint(
        job=job.name,
        day=recorded.day,
        run_id=recorded.run_id,
        job_version=recorded.job_version or UNKNOWN_VERSION,
        verdict=recorded.verdict,
        reason=recorded.reason,
        expected=recorded.expected,
        matched=recorded.matched,
        rows=recorded.rows,
        source=recorded.source or UNKNOWN_SOURCE,
        checksum=checksum,
        inputs=recorded.inputs or UNKNOWN_INPUTS,
        input_parts=recorded.input_parts,
        checkpointed_at=recorded.ended_at,
    )


def _counted(audited: AuditedDate, job: Job, publication: PublishedDate) -> Checkpoint:
    """Return the checkpoint of rows of which only the publication is recorded: with what was counted just now."""
    return Checkpoint(
        job=job.name,
        day=audited.day,
        run_id=publication.run,
        job_version=UNKNOWN_VERSION,
        verdict=Verdict(audited.finding.value),
        reason=audited.reason,
        expected=audited.expected,
        matched=audited.observed.matched,
        rows=audited.observed.rows,
        source=UNKNOWN_SOURCE,
        checksum=publication.checksum,
        inputs=UNKNOWN_INPUTS,
        checkpointed_at=utcnow(),
    )


def release_interrupted_rebuilds(job: Job, context: CommandContext) -> None:
    """End the rebuilds of the job whose process has died, so that their dates are free."""
    for run in context.ledger.runs.list_active_runs():
        if run.job == job.name and run.options.get("rebuilt") and is_interrupted(run):
            by, reason = SYSTEM_ACTOR, ITS_PROCESS_DIED
            release_run(run, job, context.ledger, context.warehouse, context.staging, by=by, reason=reason)


def write_checkpoints(rebuild: Rebuild, context: CommandContext, by: str, progress: Progress) -> tuple[Run, list[date]]:
    """Checkpoint the proven dates, as dates of a run of their own; return it, and the dates that changed meanwhile.

    The run has the dates before their rows are compared once more, so that no other run publishes them meanwhile.
    Raises `DatesInUse` and `CheckpointedMeanwhile`, and writes nothing.
    """
    job, ledger = rebuild.job, context.ledger
    run = ledger.runs.open_run(_new_run(rebuild, context, by))
    ledger.runs.move_run(run.id, expect=[RunState.PLANNED], to=RunState.RUNNING)
    changed: list[date] = []
    written = 0
    for days in chunk_dates(sorted(rebuild.proven), DATES_AT_ONCE):
        proofs = compare_with_target(job, {day: rebuild.proven[day] for day in days}, context.warehouse)
        written += len(ledger.checkpoints.write(run.id, proofs.unchanged, quick_fingerprints=proofs.renewed))
        changed += sorted(set(days) - proofs.unchanged)
        progress("checkpointing", written + len(changed), len(rebuild.proven))
    error = "something else has changed its rows while they were verified"
    columns = failure_columns("RowsChanged", error, error)
    ledger.dates.move_dates(run.id, changed, expect=DateState.PUBLISHED, to=DateState.FAILED, **columns)
    ledger.runs.finish_run(run.id)
    return ledger.runs.get_run(run.id), changed


def _new_run(rebuild: Rebuild, context: CommandContext, by: str) -> NewRun:
    job, days = rebuild.job, sorted(rebuild.proven)
    options = RunOptions.for_job(
        job,
        window=context.settings.window,
        in_flight=context.settings.windows_in_flight,
        fallback=None,
        forced_because=None,
        calendar=_has_calendar(job, context.warehouse),
        rebuilt=True,
    )
    return NewRun(
        job=job.name,
        job_version=job.version,
        options=options.to_dict(),
        requested=f"ledger rebuild of {job.name}, {enclosing_range(days)}: {len(days)} checkpoint(s)",
        requested_by=by,
        owner=process_identity(),
        target=job.target.table,
        replaced_owner=check_target_free(job, context.ledger),
        dates=tuple(_new_date(checkpoint) for checkpoint in rebuild.proven.values()),
        planned_with={},
    )


def _has_calendar(job: Job, warehouse: Warehouse) -> bool:
    calendar = job.expectation.calendar
    return calendar is not None and warehouse.describe(TableName.parse(calendar.table)) is not None


def _new_date(checkpoint: Checkpoint) -> NewDate:
    columns: dict[str, Any] = {
        "verdict": checkpoint.verdict.value,
        "reason": checkpoint.reason
        if REBUILT in checkpoint.reason  # the ledger was lost before, and what it said of the run that built them stays
        else f"{checkpoint.reason}{REBUILT}{checkpoint.run_id}",
        "expected": checkpoint.expected,
        "matched": checkpoint.matched,
        "rows": checkpoint.rows,
        "source": checkpoint.source,
        "checksum": checkpoint.checksum,
        "inputs": checkpoint.inputs,
        "input_parts": None if checkpoint.input_parts is None else dict(checkpoint.input_parts),
        "job_version": checkpoint.job_version,
    }
    return NewDate(day=checkpoint.day, state=DateState.PUBLISHED, columns=columns)
