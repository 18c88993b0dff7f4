"""Cleanup of stale rows: backed up, the backup verified, deleted, the deletion verified, recorded; in that order."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from gated_backfill.common.cleanup.operation import (
    CleanupContext,
    backup_of,
    checksum_of_kept,
    move_operation,
    renew_lease,
    verify_backup,
)
from gated_backfill.common.cleanup.restore import complete_restore
from gated_backfill.common.cleanup.stale_rows import (
    ALL_DATES,
    StaleRows,
    check_no_job_targets,
    cutoff_of,
    deletion_objection,
    find_stale_rows,
)
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import BackfillError, BackupMissing, TableInUse, WarehouseUnavailable
from gated_backfill.common.ledger import Ledger, NewAlert
from gated_backfill.common.ledger.stores.cleanups import CleanupOperation, CleanupState, NewCleanup, new_cleanup_id
from gated_backfill.common.model.backup import Backup, BackupDate
from gated_backfill.common.model.dated_tables import DatedTable
from gated_backfill.common.model.dates import chunk_dates, format_dates
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.identity import is_dead

DATES_AT_ONCE = 3000  #: of one operation: one job of BigQuery may touch 4,000 partitions
TRIES = 3  #: at a backup of a table that is written to meanwhile
ALERT = "cleanup-unusual"
MOST_KEY = 200


# -- cleaning -------------------------------------------------------------------------------------------------


@dataclass
class CleanupReport:
    """What a cleanup did with each table."""

    done: list[CleanupOperation] = field(default_factory=list[CleanupOperation])
    absent: list[str] = field(default_factory=list[str])  #: tables that do not exist
    refused: list[str] = field(default_factory=list[str])  #: in words: too much was stale
    busy: list[str] = field(default_factory=list[str])  #: in words: another process is at it
    failed: list[str] = field(default_factory=list[str])  #: in words

    def describe(self) -> list[str]:
        told = [describe_operation(one) for one in self.done]
        told += [f"{name} does not exist" for name in self.absent]
        told += [f"refused: {one}" for one in self.refused]
        told += self.busy + self.failed
        return told or ["nothing is stale"]


def describe_operation(one: CleanupOperation) -> str:
    note = f" ({one.error})" if one.error else ""
    if one.state is CleanupState.ABANDONED:
        return f"{one.table_name}: operation {one.id} was given up{note}"
    if one.state is CleanupState.DAMAGED:
        gone = f"{one.rows} rows on {one.dates} date(s) are gone"
        return f"{one.table_name}: the backup of operation {one.id} is damaged, {gone}{note}"
    if one.state in (CleanupState.RESTORED, CleanupState.RESTORING):
        return f"{one.table_name}: the restoration of {one.id} was completed{note}"
    return f"{one.table_name}: {one.rows} rows on {one.dates} date(s) deleted, operation {one.id}{note}"


def clean(
    site: CleanupContext,
    tables: Sequence[DatedTable],
    *,
    today: date,
    days: int,
    max_share: float,
    skip_restored: bool = False,
) -> CleanupReport:
    """Finish what earlier cleanups left unfinished, then clean each table; one that fails does not stop the others.

    Rows dated today or later are never deleted, nor any that could not be backed up.
    """
    cutoff = cutoff_of(today, days)
    check_no_job_targets(tables)
    report = CleanupReport()
    finish_unfinished(site, report)
    for table in tables:
        try:
            _clean_table(table, site, report, cutoff, max_share, skip_restored)
        except TableInUse as exc:
            report.busy.append(str(exc))
        except BackfillError as exc:
            report.failed.append(str(exc))
    drop_backups(site, report)
    return report


def _clean_table(
    table: DatedTable,
    site: CleanupContext,
    report: CleanupReport,
    cutoff: date,
    max_share: float,
    spare_restored: bool,
) -> None:
    stale = find_stale_rows(
        table, site.warehouse, cutoff, restored_dates(table, site.ledger), skip_restored=spare_restored
    )
    if not stale.exists:
        report.absent.append(str(table))
    elif why := deletion_objection(stale, max_share):
        report.refused.append(why)
    else:
        for days in chunk_dates(sorted(stale.rows_by_date), DATES_AT_ONCE):
            report.done.append(_clean_dates(stale, days, site))


def restored_dates(table: DatedTable, ledger: Ledger) -> frozenset[date]:
    """The dates that somebody put back, while their backup is kept: the daily cleanup does not take them again."""
    restored = ledger.cleanups.list_cleanups(states=[CleanupState.RESTORED])
    return frozenset(day for one in restored if one.table_name == str(table) for day in one.kept)


def _clean_dates(stale: StaleRows, days: Sequence[date], site: CleanupContext) -> CleanupOperation:
    """One operation over the dates, begun again when somebody writes one of them while they are backed up."""
    for _ in range(TRIES):
        operation = _opened(stale, days, site)
        try:
            kept = _backed_up(operation, days, site)
            if kept is not None:
                return _delete(site.ledger.cleanups.get_cleanup(operation.id), kept, site)
        except BackfillError as exc:
            _leave(operation.id, site, str(exc))
            raise
        _leave(operation.id, site, "its dates were written to while they were backed up")
    raise WarehouseUnavailable("stale dates were written to during each backup of them", table=str(stale.table))


def _opened(stale: StaleRows, days: Sequence[date], site: CleanupContext) -> CleanupOperation:
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
        backup=site.warehouse.backup_location(backup),
        requested_by=site.by,
        expires_at=utcnow() + timedelta(days=site.settings.cleanup_backup_days),
    )
    return site.ledger.cleanups.open_cleanup(new, site.owner, site.lease())


def _backed_up(
    operation: CleanupOperation, days: Sequence[date], site: CleanupContext
) -> Mapping[date, BackupDate] | None:
    """What is kept, once the backup holds what the table does; None when the table was written to meanwhile."""
    backup = backup_of(operation)
    assert operation.expires_at is not None
    site.warehouse.back_up(backup, days, until=operation.expires_at)
    kept = site.warehouse.read_backup(backup)
    now = site.warehouse.fingerprints(backup.table, backup.date_column, days)
    if now != {day: one.fingerprint for day, one in kept.items()}:
        return None
    rows = sum(one.rows for one in kept.values())
    move_operation(operation, CleanupState.BACKED_UP, site, checksum=checksum_of_kept(kept), kept=kept, rows=rows)
    return kept


def _delete(operation: CleanupOperation, kept: Mapping[date, BackupDate], site: CleanupContext) -> CleanupOperation:
    """Delete what is kept, and look whether exactly that is gone."""
    backup = backup_of(operation)
    before = site.warehouse.row_counts(backup.table, backup.date_column, ALL_DATES)
    # Whoever was held up for longer than its lease may be late: what it is to delete may be restored by now.
    renew_lease(operation, site)
    site.warehouse.delete_backed_up(backup, kept)
    after = site.warehouse.row_counts(backup.table, backup.date_column, ALL_DATES)
    move_operation(operation, CleanupState.DELETED, site, error=_notes(kept, before, after), **_gone(kept, after))
    return site.ledger.cleanups.get_cleanup(operation.id)


def _gone(kept: Mapping[date, BackupDate], after: Mapping[date, int]) -> dict[str, Any]:
    """What is kept and not in the table any more, as an operation tells it."""
    gone = sorted(day for day in kept if day not in after)
    return {
        "rows": sum(kept[day].rows for day in gone),
        "dates": len(gone),
        "oldest": gone[0] if gone else None,
        "newest": gone[-1] if gone else None,
    }


def _notes(kept: Collection[date], before: Mapping[date, int], after: Mapping[date, int]) -> str | None:
    """What is to be told of a deletion besides what it deleted."""
    left = [day for day in kept if day in after]
    fewer = [day for day, rows in before.items() if day not in kept and after.get(day, 0) < rows]
    told = [f"{len(left)} date(s) were written since and are left alone: {format_dates(left)}"] if left else []
    told += [f"somebody else took rows of {len(fewer)} other date(s): {format_dates(fewer)}"] if fewer else []
    return "; ".join(told) or None


def _leave(operation_id: str, site: CleanupContext, why: str) -> None:
    """Give an operation up: for good while it has deleted nothing, else to whoever comes next."""
    gone = site.ledger.cleanups.move_cleanup(
        operation_id, expect=CleanupState.PLANNED, to=CleanupState.ABANDONED, owner=site.owner, error=why
    )
    if not gone:
        site.ledger.cleanups.release_cleanup(operation_id, site.owner, why)


# -- what was left unfinished ---------------------------------------------------------------------------------


def finish_unfinished(site: CleanupContext, report: CleanupReport) -> None:
    """Finish the operations of processes that died; those of living ones are theirs."""
    for found in site.ledger.cleanups.list_unfinished_cleanups():
        taken = site.ledger.cleanups.claim_cleanup(found.id, site.owner, site.lease(), is_dead=is_dead)
        if taken is None:
            continue
        try:
            report.done.append(_finish(taken, site))
        except BackfillError as exc:
            _leave(taken.id, site, str(exc))
            report.failed.append(str(exc))


def _finish(operation: CleanupOperation, site: CleanupContext) -> CleanupOperation:
    if operation.state is CleanupState.PLANNED:
        _leave(operation.id, site, "its process died before the backup was whole; nothing was deleted")
    elif operation.state is CleanupState.RESTORING:
        complete_restore(operation, site)
    else:
        try:
            kept = verify_backup(operation, site)
        except BackupMissing as exc:
            # Whatever is left of the backup stays: rows may have been deleted before it was lost.
            after = site.warehouse.row_counts(backup_of(operation).table, operation.date_column, ALL_DATES)
            said = f"nothing more was deleted: {exc}"
            move_operation(operation, CleanupState.DAMAGED, site, error=said, **_gone(operation.kept, after))
        else:
            return _delete(operation, kept, site)
    return site.ledger.cleanups.get_cleanup(operation.id)


# -- backups that are not needed any more ---------------------------------------------------------------------


def remove_expired_backups(site: CleanupContext, report: CleanupReport) -> list[CleanupOperation]:
    """Remove the backups that are kept for long enough; returns their operations, which can't be restored any more."""
    expired = [
        one
        for one in site.ledger.cleanups.list_backups_to_expire(utcnow())
        if site.ledger.cleanups.move_cleanup(one.id, expect=one.state, to=CleanupState.EXPIRED, error=one.error)
    ]
    drop_backups(site, report)
    return expired


def drop_backups(site: CleanupContext, report: CleanupReport) -> None:
    """Remove the backups of operations that were given up or have expired."""
    for one in site.ledger.cleanups.list_backups_to_drop():
        try:
            site.warehouse.drop_backup(backup_of(one))
            site.ledger.cleanups.mark_backup_dropped(one.id)
        except BackfillError as exc:
            report.failed.append(str(exc))


# -- telling --------------------------------------------------------------------------------------------------


def unusual_cleanup_alert(report: CleanupReport, settings: Settings, today: date) -> NewAlert | None:
    """The alert about a cleanup that deleted very many rows, found a backup damaged or was refused; else None."""
    many = [
        one for one in report.done if one.state is CleanupState.DELETED and one.rows > settings.cleanup_unusual_rows
    ]
    damaged = [one for one in report.done if one.state is CleanupState.DAMAGED]
    if not many and not damaged and not report.refused:
        return None
    lines = [f"{describe_operation(one)}; to put them back: backfill cleanup restore {one.id}" for one in many]
    lines += [
        f"{describe_operation(one)}; for what is intact: backfill cleanup restore {one.id} --intact" for one in damaged
    ]
    lines += [f"nothing was deleted from {why}" for why in report.refused]
    if report.refused:
        lines.append("look first: backfill cleanup --dry-run; then, to delete them all: backfill cleanup --allow-large")
    titles = [f"{sum(one.rows for one in many)} stale rows deleted"] if many else []
    titles += [f"{len(damaged)} backup(s) damaged"] if damaged else []
    titles += [f"{len(report.refused)} table(s) refused"] if report.refused else []
    # Told once a day if it is the same refusal, and once an operation.
    key = " ".join(
        [ALERT, str(today), *(one.id for one in [*many, *damaged]), *(why.split(":")[0] for why in report.refused)]
    )
    return NewAlert(key=key[:MOST_KEY], kind=ALERT, title=f"Cleanup: {', '.join(titles)}", body="\n".join(lines))
