"""Checkpoints: the durable proof that a date is complete."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date, datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Insert,
    RowMapping,
    Update,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal,
    select,
    true,
    update,
)
from sqlalchemy.exc import IntegrityError

from gated_backfill.common.errors import DatesInUse, LeaseTakenOver, UndoInProgress
from gated_backfill.common.ledger.database import LedgerStore, next_generation, window_leased_by
from gated_backfill.common.ledger.records import Checkpoint, CheckpointedCount, RenewedProof, Run, UndoneDate
from gated_backfill.common.ledger.rows import UNDONE_DATE, checkpoint_from_row, date_transition, undone_from_row
from gated_backfill.common.ledger.states import DateState, RunAction
from gated_backfill.common.ledger.stores.actions import record_action
from gated_backfill.common.ledger.stores.flags import clear_open_flags, reopen_flags
from gated_backfill.common.ledger.stores.runs import check_dates_free
from gated_backfill.common.ledger.tables import UtcDateTime, checkpoints, replaced_checkpoints, run_dates, runs
from gated_backfill.common.model.coverage import Verdict
from gated_backfill.common.process.clock import utcnow

MAX_RUNS_PER_QUERY = 500
#: The checkpoint of a date, if it is still that of the run.
IS_CHECKPOINT = and_(
    checkpoints.c.job == bindparam("of_job"),
    checkpoints.c.day == bindparam("of_day"),
    checkpoints.c.run_id == bindparam("of_run"),
)


class CheckpointStore(LedgerStore):
    """At most one checkpoint for each job and date, and the undo of a run's checkpoints."""

    def write(
        self,
        run_id: str,
        days: Collection[date],
        *,
        gate: tuple[int, str] | None = None,
        quick_fingerprints: Mapping[date, str] | None = None,
    ) -> list[date]:
        """Checkpoint published dates with a passing verdict and clear their flags; returns the dates it checkpointed.

        `quick_fingerprints` are those of the target's rows, of some dates, from before the rows were confirmed.

        `gate` (window number and owner): write only while that gate has the window's lease. This is the only way to
        write a new checkpoint, in one transaction; dates in any other state are left as they are.
        """
        if not days:
            return []
        now = utcnow()
        passing = [verdict.value for verdict in Verdict if verdict.is_passing]
        has_lease = true() if gate is None else exists().where(window_leased_by(run_id, gate))
        with self._write() as connection:
            query = (
                select(run_dates.c.day, run_dates.c.job)
                .where(
                    run_dates.c.run_id == run_id,
                    run_dates.c.day.in_(list(days)),
                    run_dates.c.state == DateState.PUBLISHED.value,
                    run_dates.c.active,  # an ended run has released its dates
                    run_dates.c.verdict.in_(passing),
                    has_lease,
                )
                .with_for_update()
            )
            rows = connection.execute(query).all()
            if not rows:
                return []
            passed_days = [row.day for row in rows]
            job = rows[0].job
            earlier = and_(checkpoints.c.job == job, checkpoints.c.day.in_(passed_days))
            _keep_replaced(connection, run_id, earlier)
            connection.execute(delete(checkpoints).where(earlier))
            connection.execute(_insert_checkpoints(run_id, passed_days, now))
            known = {day: quick for day, quick in (quick_fingerprints or {}).items() if day in passed_days}
            _record_quick_fingerprints(connection, [(job, day, run_id, quick) for day, quick in known.items()])
            clear_open_flags(connection, job, passed_days, run_id, now)
            connection.execute(
                update(run_dates)
                .where(run_dates.c.run_id == run_id, run_dates.c.day.in_(passed_days))
                .values(date_transition(DateState.PUBLISHED, DateState.CHECKPOINTED, {}))
            )
        return passed_days

    def renew(self, renewed: Collection[RenewedProof]) -> None:
        """Record what was found to be unchanged, so that it need not be read again.

        A checkpoint that was replaced or withdrawn meanwhile stays as it is. May be repeated.
        """
        quick = [
            (proof.job, proof.day, proof.run_id, proof.target_quick)
            for proof in renewed
            if proof.target_quick is not None
        ]
        parts = [proof for proof in renewed if proof.input_parts is not None]
        if not quick and not parts:
            return
        with self._write() as connection:
            _record_quick_fingerprints(connection, quick)
            if parts:
                connection.execute(
                    update(checkpoints).where(IS_CHECKPOINT).values(input_parts=bindparam("parts")),
                    [
                        _checkpoint_key(proof.job, proof.day, proof.run_id) | {"parts": proof.input_parts}
                        for proof in parts
                    ],
                )

    def list_checkpoints(self, job: str, start: date, through: date) -> dict[date, Checkpoint]:
        """Return the job's checkpoints of a range of dates, by day; both ends are included."""
        query = select(checkpoints).where(checkpoints.c.job == job, checkpoints.c.day.between(start, through))
        with self._read() as connection:
            return {row["day"]: checkpoint_from_row(row) for row in connection.execute(query).mappings()}

    def list_expected(self, job: str, start: date, through: date) -> dict[date, CheckpointedCount]:
        """Return what the job's checkpoints of a range of dates expected, by day; both ends are included."""
        columns = checkpoints.c.day, checkpoints.c.expected, checkpoints.c.run_id
        query = select(*columns).where(checkpoints.c.job == job, checkpoints.c.day.between(start, through))
        with self._read() as connection:
            return {day: CheckpointedCount(expected, run_id) for day, expected, run_id in connection.execute(query)}

    def list_checkpoints_of_runs(self, of_runs: Collection[Run]) -> list[Checkpoint]:
        """Return the checkpoints that these runs have written, and no later run has replaced, oldest day first."""
        run_ids_by_job: dict[str, list[str]] = {}
        for run in of_runs:
            run_ids_by_job.setdefault(run.job, []).append(run.id)
        written: list[Checkpoint] = []
        with self._read() as connection:
            for job, run_ids in run_ids_by_job.items():
                of_job = select(checkpoints).where(checkpoints.c.job == job)  # by the index of the key
                for begin in range(0, len(run_ids), MAX_RUNS_PER_QUERY):
                    query = of_job.where(checkpoints.c.run_id.in_(run_ids[begin : begin + MAX_RUNS_PER_QUERY]))
                    written += map(checkpoint_from_row, connection.execute(query).mappings())
        return sorted(written, key=lambda checkpoint: checkpoint.day)

    def list_days_since(self, job: str, moment: datetime | None) -> list[date]:
        """Return the dates that were checkpointed since the moment, oldest first; all with None."""
        query = select(checkpoints.c.day).where(checkpoints.c.job == job)
        if moment is not None:
            query = query.where(checkpoints.c.checkpointed_at >= moment)
        with self._read() as connection:
            return list(connection.execute(query.order_by(checkpoints.c.day)).scalars())

    # -- undo -----------------------------------------------------------------------------------------------

    def begin_undo(
        self,
        run_id: str,
        days: Collection[date],
        owner: str,
        until: datetime,
        *,
        after: int,
        is_dead: Callable[[str], bool],
    ) -> int:
        """Reserve the days for the undo of an ended run. No other run can take them until the undo releases them.

        `after` is the run's `undo_generation` when this undo was planned. Returns the generation of the owner's lease
        on the undo, which ends at `until`. Raises `DatesInUse`, and changes nothing, when an active run has one of the
        days or a later run has checkpointed it, and `UndoInProgress` when another process undoes the run, is alive, and
        its lease has not expired, or when another undo has begun or ended since this one was planned.
        """
        run_days = and_(run_dates.c.run_id == run_id, run_dates.c.day.in_(list(days)))
        try:
            with self._write() as connection:
                run = _lock_run(connection, run_id)
                _check_no_other_undo(run, owner, is_dead)
                _check_latest_undo(run, after)
                connection.execute(update(run_dates).where(run_days).values(active=True))
                of_days = and_(checkpoints.c.job == run["job"], checkpoints.c.day.in_(list(days)))
                later = connection.execute(
                    select(checkpoints.c.run_id, checkpoints.c.day).where(of_days, checkpoints.c.run_id != run_id)
                ).first()
                if later is not None:
                    raise DatesInUse(f"run {later.run_id} has checkpointed {later.day} meanwhile", run=later.run_id)
                generation = next_generation(run["undo_generation"])
                lease = {"undo_generation": generation, "undo_owner": owner, "undo_until": until}
                connection.execute(update(runs).where(runs.c.id == run_id).values(lease))
        except IntegrityError as exc:
            with self._read() as connection:
                job = connection.execute(select(runs.c.job).where(runs.c.id == run_id)).scalar_one()
                check_dates_free(connection, job, days, apart_from=run_id)
            raise DatesInUse(
                f"another run has just released dates of run {run_id}: repeat the command", run=""
            ) from exc
        return generation

    def withdraw(self, run_id: str, days: Collection[date], by: str, generation: int, until: datetime) -> None:
        """Delete the run's checkpoints of the days, reopen the flags they cleared, and mark the days as undone by `by`.

        To be called before the rows of the days are restored, so that no checkpoint lacks its rows. Renews the lease on
        the undo until `until`. Raises `LeaseTakenOver`, and changes nothing, when a later undo has begun.
        """
        with self._write() as connection:
            job = _lock_undone_run(connection, run_id, generation)["job"]
            connection.execute(update(runs).where(runs.c.id == run_id).values(undo_until=until))
            is_withdrawn = and_(
                checkpoints.c.job == job, checkpoints.c.day.in_(list(days)), checkpoints.c.run_id == run_id
            )
            withdrawn_days = connection.execute(select(checkpoints.c.day).where(is_withdrawn)).scalars().all()
            connection.execute(delete(checkpoints).where(is_withdrawn))
            reopen_flags(connection, job, withdrawn_days, run_id)
            mark = {"undone_at": utcnow(), "undone_by": by, "undo_restored": False}
            connection.execute(_update_days(run_id, days).values(mark))

    def reinstate(
        self, run_id: str, days: Collection[date], restored: Collection[date], proven: Collection[date], generation: int
    ) -> None:
        """Release the days, of which the `restored` ones have their earlier rows again.

        The checkpoints that the run had replaced on the `proven` ones, whose rows match them, are valid again. Raises
        `LeaseTakenOver`, and changes nothing, when a later undo has begun.
        """
        replaced = select(replaced_checkpoints).where(
            replaced_checkpoints.c.replaced_by == run_id, replaced_checkpoints.c.day.in_(list(proven))
        )
        with self._write() as connection:
            _lock_undone_run(connection, run_id, generation)
            rows = [_without_replacer(row) for row in connection.execute(replaced).mappings()]
            if rows:
                connection.execute(insert(checkpoints), rows)
            connection.execute(_update_days(run_id, restored).values(undo_restored=True))
            connection.execute(_update_days(run_id, days).values(active=False))

    def release_undo(self, run_id: str, generation: int) -> None:
        """Release the days that `begin_undo` reserved, when the undo can't be completed.

        Raises `LeaseTakenOver`, and changes nothing, when a later undo has begun.
        """
        with self._write() as connection:
            _end_undo(connection, run_id, generation)

    def finish_undo(self, run_id: str, by: str, generation: int) -> None:
        """Mark the run as undone, and release its days.

        Raises `LeaseTakenOver`, and changes nothing, when a later undo has begun.
        """
        with self._write() as connection:
            _end_undo(connection, run_id, generation)
            connection.execute(update(runs).where(runs.c.id == run_id).values(undone_at=utcnow(), undone_by=by))
            record_action(connection, run_id, RunAction.UNDONE, by=by)

    def withdraw_date(self, job: str, day: date, by: str, *, run_id: str | None) -> bool:
        """Delete the run's checkpoint of a date, reopen the flag it cleared, and mark the date as undone by `by`.

        To be called before earlier rows of the date are put back. Returns False for a date without a checkpoint. Raises
        `DatesInUse`, and changes nothing, when an active run has the date, or its checkpoint is of another run.
        """
        of_date = and_(checkpoints.c.job == job, checkpoints.c.day == day)
        with self._write() as connection:
            check_dates_free(connection, job, [day])
            checkpointed_by = connection.execute(select(checkpoints.c.run_id).where(of_date).with_for_update()).scalar()
            if checkpointed_by is None:
                return False
            if checkpointed_by != run_id:
                raise DatesInUse(f"run {checkpointed_by} has checkpointed {day} meanwhile", run=checkpointed_by)
            connection.execute(delete(checkpoints).where(of_date))
            reopen_flags(connection, job, [day], checkpointed_by)
            mark = {"undone_at": utcnow(), "undone_by": by, "undo_restored": True}
            connection.execute(_update_days(checkpointed_by, [day]).values(mark))
        return True

    def list_replaced_checkpoints(self, run_id: str) -> dict[date, Checkpoint]:
        """Return the checkpoints of earlier runs that this run replaced, by day."""
        query = select(replaced_checkpoints).where(replaced_checkpoints.c.replaced_by == run_id)
        with self._read() as connection:
            return {
                row["day"]: checkpoint_from_row(_without_replacer(row)) for row in connection.execute(query).mappings()
            }

    def list_undone(self, job: str, start: date, through: date) -> dict[date, UndoneDate]:
        """Return the latest undo of each date of a range that has no checkpoint since; both ends are included."""
        has_checkpoint = exists().where(checkpoints.c.job == run_dates.c.job, checkpoints.c.day == run_dates.c.day)
        query = select(*UNDONE_DATE).where(
            run_dates.c.job == job,
            run_dates.c.day.between(start, through),
            run_dates.c.undone_at.is_not(None),
            ~has_checkpoint,
        )
        with self._read() as connection:
            rows = connection.execute(query.order_by(run_dates.c.undone_at)).mappings()
            return {row["day"]: undone_from_row(row) for row in rows}


def _check_no_other_undo(run: RowMapping, owner: str, is_dead: Callable[[str], bool]) -> None:
    other = run["undo_owner"]
    if other in (None, owner) or run["undo_until"] < utcnow() or is_dead(other):
        return
    raise UndoInProgress(
        f"run {run['id']} is being undone by {other}: wait for its end, then look at `backfill status {run['id']}`"
    )


def _check_latest_undo(run: RowMapping, generation: int) -> None:
    """Raise `UndoInProgress` if another undo has begun or ended since the run had the generation."""
    if run["undo_generation"] == generation:
        return
    if run["undone_at"] is not None:
        raise UndoInProgress(f"run {run['id']} was undone meanwhile by {run['undone_by']}: nothing was changed")
    raise UndoInProgress(
        f"another undo of run {run['id']} has ended meanwhile: nothing was changed; repeat the command"
    )


def _end_undo(connection: Connection, run_id: str, generation: int) -> None:
    """End the lease on the undo, and release its days. Raises `LeaseTakenOver`.

    The generation changes as well, so that an undo which was planned before this end cannot begin.
    """
    _lock_undone_run(connection, run_id, generation)
    ended = {"undo_owner": None, "undo_until": None, "undo_generation": next_generation(generation)}
    connection.execute(update(runs).where(runs.c.id == run_id).values(ended))
    connection.execute(update(run_dates).where(run_dates.c.run_id == run_id).values(active=False))


def _lock_run(connection: Connection, run_id: str) -> RowMapping:
    return connection.execute(select(runs).where(runs.c.id == run_id).with_for_update()).mappings().one()


def _lock_undone_run(connection: Connection, run_id: str, generation: int) -> RowMapping:
    """Lock the run's row and return it. Raises `LeaseTakenOver` when a later undo than that generation has begun."""
    run = _lock_run(connection, run_id)
    if run["undo_generation"] != generation:
        raise LeaseTakenOver(
            f"another process has taken over the undo of run {run_id}: `backfill status {run_id}` shows what it did"
        )
    return run


def _update_days(run_id: str, days: Collection[date]) -> Update:
    return update(run_dates).where(run_dates.c.run_id == run_id, run_dates.c.day.in_(list(days)))


def _insert_checkpoints(run_id: str, days: Sequence[date], now: datetime) -> Insert:
    """Return the statement that copies the run's dates into checkpoints, without reading them first."""
    columns: dict[str, ColumnElement[Any]] = {
        column.name: run_dates.c[column.name] for column in checkpoints.c if column.name in run_dates.c
    }
    built_by = func.coalesce(
        run_dates.c.job_version, runs.c.job_version
    )  # null: staged by an older version of this tool
    columns |= {"job_version": built_by, "checkpointed_at": literal(now, UtcDateTime())}
    query = (
        select(*columns.values())
        .join_from(run_dates, runs, runs.c.id == run_dates.c.run_id)
        .where(run_dates.c.run_id == run_id, run_dates.c.day.in_(days))
    )
    return insert(checkpoints).from_select(list(columns), query)


def _record_quick_fingerprints(connection: Connection, rows: Sequence[tuple[str, date, str, str]]) -> None:
    """Record the quick fingerprint, the last of each row, in checkpoints, given by job, day and run."""
    if rows:
        connection.execute(
            update(checkpoints).where(IS_CHECKPOINT).values(target_quick=bindparam("quick")),
            [_checkpoint_key(job, day, run_id) | {"quick": quick} for job, day, run_id, quick in rows],
        )


def _checkpoint_key(job: str, day: date, run_id: str) -> dict[str, Any]:
    return {"of_job": job, "of_day": day, "of_run": run_id}


def _without_replacer(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "replaced_by"}


def _keep_replaced(connection: Connection, run_id: str, earlier: ColumnElement[bool]) -> None:
    """Save the checkpoints of other runs that this run is about to replace, for its undo."""
    rows = connection.execute(select(checkpoints).where(earlier, checkpoints.c.run_id != run_id)).mappings().all()
    if rows:
        connection.execute(insert(replaced_checkpoints), [{**row, "replaced_by": run_id} for row in rows])
