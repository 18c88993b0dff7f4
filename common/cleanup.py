"""Cleanup of stale rows: backed up, the backup verified, deleted, the deletion verified, recorded; in that order."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

from common.clock import utcnow
from common.dated import DatedTable
from common.dates import DateRange, describe, windows
from common.errors import BackfillError, NothingKept, TableTaken, UserError, WarehouseUnavailable
from common.ledger import Ledger, NewAlert
from common.ledger.cleanups import CleanupOperation, CleanupState, NewCleanup, new_cleanup_id
from common.processes import identity, is_dead
from common.schema import TableName
from common.settings import Settings
from common.stale import ALL_DATES, Stale, cutoff_of, look, objection, refuse_targets
from common.warehouse.backups import Backup, KeptDate
from common.warehouse.base import Warehouse
from common.warehouse.files import checksum_of

DATES_AT_ONCE = 3000  #: of one operation: one job of BigQuery may touch 4,000 partitions
TRIES = 3  #: at a backup of a table that is written to meanwhile
ALERT = "cleanup-unusual"
MOST_KEY = 200


# -- cleaning -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CleanupSite:
    """What a cleanup works on, and for whom."""

    settings: Settings
    ledger: Ledger
    warehouse: Warehouse
    by: str
    owner: str = field(default_factory=identity)

    def lease(self) -> datetime:
        return utcnow() + self.settings.cleanup_lease


@dataclass
class Report:
    """What a cleanup did with each table."""

    done: list[CleanupOperation] = field(default_factory=list[CleanupOperation])
    absent: list[str] = field(default_factory=list[str])  #: tables that do not exist
    refused: list[str] = field(default_factory=list[str])  #: in words: too much was stale
    busy: list[str] = field(default_factory=list[str])  #: in words: another process is at it
    failed: list[str] = field(default_factory=list[str])  #: in words

    def in_words(self) -> list[str]:
        told = [operation_in_words(one) for one in self.done]
        told += [f"{name} does not exist" for name in self.absent]
        told += [f"refused: {one}" for one in self.refused]
        told += self.busy + self.failed
        return told or ["nothing is stale"]


def operation_in_words(one: CleanupOperation) -> str:
    note = f" ({one.error})" if one.error else ""
    if one.state is CleanupState.ABANDONED:
        return f"{one.table_name}: operation {one.id} was given up{note}"
    if one.state in (CleanupState.RESTORED, CleanupState.RESTORING):
        return f"{one.table_name}: the restoration of {one.id} was completed{note}"
    return f"{one.table_name}: {one.rows} rows on {one.dates} date(s) deleted, operation {one.id}{note}"


def clean(
    site: CleanupSite,
    tables: Sequence[DatedTable],
    *,
    today: date,
    days: int,
    max_share: float,
    spare_restored: bool = False,
) -> Report:
    """Finish what earlier cleanups left unfinished, then clean each table; one that fails does not stop the others.

    Rows dated today or later are never deleted, nor any that could not be backed up.
    """
    cutoff = cutoff_of(today, days)
    refuse_targets(tables)
    report = Report()
    finish_unfinished(site, report)
    for table in tables:
        try:
            _clean_table(table, site, report, cutoff, max_share, _restored(table, site) if spare_restored else [])
        except TableTaken as exc:
            report.busy.append(str(exc))
        except BackfillError as exc:
            report.failed.append(str(exc))
    drop_backups(site, report)
    return report


def _clean_table(
    table: DatedTable,
    site: CleanupSite,
    report: Report,
    cutoff: date,
    max_share: float,
    spared: Sequence[DateRange],
) -> None:
    stale = look(table, site.warehouse, cutoff, spared)
    if not stale.there:
        report.absent.append(str(table))
    elif why := objection(stale, max_share):
        report.refused.append(why)
    else:
        for days in windows(sorted(stale.rows_by_date), DATES_AT_ONCE):
            report.done.append(_clean_dates(stale, days, site))


def _restored(table: DatedTable, site: CleanupSite) -> list[DateRange]:
    """The dates that somebody put back, while their backup is kept: the daily cleanup does not take them again."""
    return [
        DateRange(start=one.oldest, through=one.newest)
        for one in site.ledger.cleanups(states=[CleanupState.RESTORED])
        if one.table_name == str(table) and one.oldest is not None and one.newest is not None
    ]


def _clean_dates(stale: Stale, days: Sequence[date], site: CleanupSite) -> CleanupOperation:
    """One operation over the dates, begun again when somebody writes one of them while they are backed up."""
    for _ in range(TRIES):
        operation = _opened(stale, days, site)
        try:
            kept = _backed_up(operation, days, site)
            if kept is not None:
                return _delete(site.ledger.cleanup(operation.id), kept, site)
        except BackfillError as exc:
            _leave(operation.id, site, str(exc))
            raise
        _leave(operation.id, site, "its dates were written to while they were backed up")
    raise WarehouseUnavailable("stale dates were written to during each backup of them", table=str(stale.table))


def _opened(stale: Stale, days: Sequence[date], site: CleanupSite) -> CleanupOperation:
    name = new_cleanup_id()
    backup = Backup(id=name, table=stale.table.name, date_column=stale.table.date_column)
    new = NewCleanup(
        id=name,
        table_name=str(stale.table),
        date_column=stale.table.date_column,
        cutoff=stale.cutoff,
        rows=sum(stale.rows_by_date[day] for day in days),
        dates=len(days),
        oldest=min(days),
        newest=max(days),
        table_rows=stale.table_rows,
        backup=site.warehouse.backup_place(backup),
        requested_by=site.by,
        expires_at=utcnow() + timedelta(days=site.settings.cleanup_backup_days),
    )
    return site.ledger.open_cleanup(new, site.owner, site.lease())


def _backed_up(operation: CleanupOperation, days: Sequence[date], site: CleanupSite) -> Mapping[date, KeptDate] | None:
    """What is kept, once the backup holds what the table does; None when the table was written to meanwhile."""
    backup = backup_of(operation)
    assert operation.expires_at is not None
    site.warehouse.back_up(backup, days, until=operation.expires_at)
    kept = site.warehouse.backed_up(backup)
    now = site.warehouse.fingerprints(backup.table, backup.date_column, days)
    if now != {day: one.fingerprint for day, one in kept.items()}:
        return None
    facts = {"checksum": _checksum(kept), "rows": sum(one.rows for one in kept.values())}
    _move(operation, CleanupState.BACKED_UP, site, **facts)
    return kept


def _delete(operation: CleanupOperation, kept: Mapping[date, KeptDate], site: CleanupSite) -> CleanupOperation:
    """Delete what is kept, and look whether exactly that is gone."""
    backup = backup_of(operation)
    before = site.warehouse.row_counts(backup.table, backup.date_column, ALL_DATES)
    site.warehouse.delete_backed_up(backup, kept)
    after = site.warehouse.row_counts(backup.table, backup.date_column, ALL_DATES)
    gone = sorted(day for day in kept if day not in after)
    facts = {
        "rows": sum(kept[day].rows for day in gone),
        "dates": len(gone),
        "oldest": gone[0] if gone else None,
        "newest": gone[-1] if gone else None,
        "error": _notes(kept, before, after),
    }
    _move(operation, CleanupState.DELETED, site, **facts)
    return site.ledger.cleanup(operation.id)


def _notes(kept: Collection[date], before: Mapping[date, int], after: Mapping[date, int]) -> str | None:
    """What is to be told of a deletion besides what it deleted."""
    left = [day for day in kept if day in after]
    fewer = [day for day, rows in before.items() if day not in kept and after.get(day, 0) < rows]
    told = [f"{len(left)} date(s) were written since and are left alone: {describe(left)}"] if left else []
    told += [f"somebody else took rows of {len(fewer)} other date(s): {describe(fewer)}"] if fewer else []
    return "; ".join(told) or None


def _checksum(kept: Mapping[date, KeptDate]) -> str:
    """Of a backup: it changes with any row that is kept."""
    lines = [f"{day} {one.fingerprint} {one.rows}" for day, one in sorted(kept.items())]
    return checksum_of("\n".join(lines).encode())


def backup_of(operation: CleanupOperation) -> Backup:
    return Backup(id=operation.id, table=TableName.parse(operation.table_name), date_column=operation.date_column)


def _move(operation: CleanupOperation, to: CleanupState, site: CleanupSite, **facts: Any) -> None:
    """Move the operation, which must still be ours. Raises `TableTaken`."""
    lease = site.lease()
    if not site.ledger.move_cleanup(
        operation.id, expect=operation.state, to=to, owner=site.owner, lease_until=lease, **facts
    ):
        raise TableTaken(
            f"operation {operation.id} was taken over by another process meanwhile", table=operation.table_name
        )


def _leave(operation_id: str, site: CleanupSite, why: str) -> None:
    """Give an operation up: for good while it has deleted nothing, else to whoever comes next."""
    gone = site.ledger.move_cleanup(
        operation_id, expect=CleanupState.PLANNED, to=CleanupState.ABANDONED, owner=site.owner, error=why
    )
    if not gone:
        site.ledger.give_up_cleanup(operation_id, site.owner, why)


# -- what was left unfinished ---------------------------------------------------------------------------------


def finish_unfinished(site: CleanupSite, report: Report) -> None:
    """Finish the operations of processes that died; those of living ones are theirs."""
    for found in site.ledger.unfinished_cleanups():
        taken = site.ledger.take_cleanup(found.id, site.owner, site.lease(), is_dead=is_dead)
        if taken is None:
            continue
        try:
            report.done.append(_finish(taken, site))
        except BackfillError as exc:
            _leave(taken.id, site, str(exc))
            report.failed.append(str(exc))


def _finish(operation: CleanupOperation, site: CleanupSite) -> CleanupOperation:
    if operation.state is CleanupState.PLANNED:
        _leave(operation.id, site, "its process died before the backup was whole; nothing was deleted")
    elif operation.state is CleanupState.RESTORING:
        put_back(operation, site, leave_written=False)
    else:
        try:
            kept = verified(operation, site)
        except NothingKept as exc:
            # Whatever is left of the backup stays: rows may have been deleted before it was lost.
            _move(operation, CleanupState.ABANDONED, site, error=f"nothing more was deleted: {exc}", backup=None)
        else:
            return _delete(operation, kept, site)
    return site.ledger.cleanup(operation.id)


# -- restoring ------------------------------------------------------------------------------------------------


def verified(operation: CleanupOperation, site: CleanupSite) -> Mapping[date, KeptDate]:
    """What the operation's backup holds. Raises `NothingKept` unless it is what was backed up."""
    kept = site.warehouse.backed_up(backup_of(operation))
    if _checksum(kept) != operation.checksum:
        raise NothingKept(f"the backup {operation.id} is not what was backed up", table=operation.table_name)
    return kept


def refuse_unrestorable(operation: CleanupOperation) -> None:
    """Raises `UserError`, saying why, unless the operation has something to put back."""
    refusals = {
        CleanupState.PLANNED: "has deleted nothing",
        CleanupState.BACKED_UP: "is not finished: the next `backfill cleanup` does that",
        CleanupState.ABANDONED: "was given up and has deleted nothing",
        CleanupState.RESTORED: f"was restored already, by {operation.restored_by}",
        CleanupState.EXPIRED: "has expired: its backup was removed (BACKFILL_CLEANUP_BACKUP_DAYS)",
    }
    if why := refusals.get(operation.state):
        raise UserError(f"cleanup {operation.id} of {operation.table_name} {why}")
    if operation.state is CleanupState.DELETED and not operation.dates:
        raise UserError(f"cleanup {operation.id} of {operation.table_name} has deleted nothing")


def restore(operation_id: str, site: CleanupSite, *, leave_written: bool = False) -> CleanupOperation:
    """Put back what the operation deleted, all of it or nothing, unless dates written since are to be left alone.

    Raises `UserError`, and changes nothing, when there is nothing to put back, or dates hold other rows by now.
    """
    operation = site.ledger.cleanup(operation_id)
    refuse_unrestorable(operation)
    if operation.state is CleanupState.RESTORING:
        taken = site.ledger.take_cleanup(operation_id, site.owner, site.lease(), is_dead=is_dead)
        if taken is None:
            raise TableTaken(f"operation {operation_id} is being restored already", table=operation.table_name)
    else:
        verified(operation, site)
        _move(operation, CleanupState.RESTORING, site)
    return put_back(site.ledger.cleanup(operation_id), site, leave_written=leave_written)


def put_back(operation: CleanupOperation, site: CleanupSite, *, leave_written: bool) -> CleanupOperation:
    """The restoration itself, of an operation that is ours."""
    try:
        kept = verified(operation, site)
        back = site.warehouse.restore_backup(backup_of(operation), kept, leave_written=leave_written)
        left = sorted(set(kept) - back)
        if not leave_written:
            _refuse_left(left)
    except UserError as exc:
        _move(operation, CleanupState.DELETED, site, error=f"not restored: {exc}")
        raise
    except BackfillError as exc:
        site.ledger.give_up_cleanup(operation.id, site.owner, str(exc))
        raise
    note = f"{len(left)} date(s) were left as they are: {describe(left)}" if left else None
    _move(operation, CleanupState.RESTORED, site, restored_by=site.by, error=note)
    return site.ledger.cleanup(operation.id)


def _refuse_left(left: Sequence[date]) -> None:
    if left:
        raise UserError(f"{len(left)} date(s) were written meanwhile and are left alone: {describe(left)}")


# -- backups that are not needed any more ---------------------------------------------------------------------


def expire(site: CleanupSite, report: Report) -> list[CleanupOperation]:
    """Remove the backups that are kept for long enough; returns their operations, which can't be restored any more."""
    expired = [
        one
        for one in site.ledger.backups_to_expire(utcnow())
        if site.ledger.move_cleanup(one.id, expect=one.state, to=CleanupState.EXPIRED, error=one.error)
    ]
    drop_backups(site, report)
    return expired


def drop_backups(site: CleanupSite, report: Report) -> None:
    """Remove the backups of operations that were given up or have expired."""
    for one in site.ledger.backups_to_drop():
        try:
            site.warehouse.drop_backup(backup_of(one))
            site.ledger.backup_dropped(one.id)
        except BackfillError as exc:
            report.failed.append(str(exc))


# -- telling --------------------------------------------------------------------------------------------------


def unusual(report: Report, settings: Settings, today: date) -> NewAlert | None:
    """The alert about a cleanup that deleted very many rows or was refused; None where neither is so."""
    many = [
        one for one in report.done if one.state is CleanupState.DELETED and one.rows > settings.cleanup_unusual_rows
    ]
    if not many and not report.refused:
        return None
    lines = [f"{operation_in_words(one)}; to put them back: backfill cleanup restore {one.id}" for one in many]
    lines += [f"nothing was deleted from {why}" for why in report.refused]
    if report.refused:
        lines.append("look first: backfill cleanup --dry-run; then, to delete them all: backfill cleanup --allow-large")
    titles = [f"{sum(one.rows for one in many)} stale rows deleted"] if many else []
    titles += [f"{len(report.refused)} table(s) refused"] if report.refused else []
    # Told once a day if it is the same refusal, and once an operation.
    key = " ".join([ALERT, str(today), *(one.id for one in many), *(why.split(":")[0] for why in report.refused)])
    return NewAlert(key=key[:MOST_KEY], kind=ALERT, title=f"Cleanup: {', '.join(titles)}", body="\n".join(lines))
