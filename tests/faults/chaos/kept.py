"""Whether rows that the tool removed can be put back: each kept copy is put back in turn, and what it held is read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any

from gated_backfill.common.cleanup.operation import CleanupContext
from gated_backfill.common.cleanup.restore import restore
from gated_backfill.common.cleanup.unrecorded import list_unknown_backups
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import BackupMissing, UserError
from gated_backfill.common.ledger import open_ledger
from gated_backfill.common.ledger.stores.cleanups import STATES_WITH_BACKUP
from gated_backfill.common.model.dates import DateRange
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.backends import open_warehouse
from tests.faults.chaos.look import TARGET
from tests.faults.chaos.shapes import OLD_DAYS, Row
from tests.faults.chaos.world import open_tables

OLD = TableName.parse("chaos.old")


def lost_rows(settings: Settings, removed: Mapping[str, Sequence[list[Row]]]) -> list[tuple[str, list[Row]]]:
    """Those of the removed rows, by day in ISO form, that no kept copy puts back."""
    warehouse = open_warehouse(settings.warehouse_url, limits=settings.warehouse_limits)
    lost: list[tuple[str, list[Row]]] = []
    for iso, listed in removed.items():
        waiting = list(listed)
        copies = _put_back_each(warehouse, TARGET, settings.warehouse_url, date.fromisoformat(iso))
        while waiting and (rows := next(copies, None)) is not None:
            waiting = [other for other in waiting if other != rows]
        lost += [(iso, rows) for rows in waiting]
    return lost


def list_restorable(settings: Settings) -> list[str]:
    """The cleanups that have deleted something, by id, those first that the ledger does not know of."""
    with _cleanups(settings) as context:
        known = context.ledger.cleanups.list_cleanups(states=STATES_WITH_BACKUP)
        return [each.id for each in (*list_unknown_backups(context), *known)]


def list_unfinished(settings: Settings) -> list[str]:
    """The cleanups that some process has begun and none has ended, by id."""
    with _cleanups(settings) as context:
        return [operation.id for operation in context.ledger.cleanups.list_unfinished_cleanups()]


@contextlib.contextmanager
def _cleanups(settings: Settings) -> Iterator[CleanupContext]:
    warehouse = open_warehouse(settings.warehouse_url, limits=settings.warehouse_limits)
    with contextlib.closing(open_ledger(settings.ledger_url, create=False)) as ledger:
        yield CleanupContext(settings=settings, ledger=ledger, warehouse=warehouse, by="the harness")


def lost_old_rows(settings: Settings, removed: Mapping[str, Sequence[list[Row]]]) -> list[tuple[str, list[Row]]]:
    """Those of the rows removed from the old table that neither a restore of a cleanup nor a kept copy puts back."""
    put_back: dict[str, list[list[Row]]] = {iso: [] for iso in removed}
    with _cleanups(settings) as context:
        for operation in list_restorable(settings):
            for day in OLD_DAYS:
                open_tables(settings.warehouse_url).delete_date(day)
            with contextlib.suppress(UserError):  # it has deleted nothing
                restore(operation, context, leave_written=True)
            tables = open_tables(settings.warehouse_url)
            for iso, listed in put_back.items():
                listed.append(tables.rows(date.fromisoformat(iso)))
        for iso, listed in put_back.items():
            listed += _put_back_each(context.warehouse, OLD, settings.warehouse_url, date.fromisoformat(iso))
    return [(iso, rows) for iso, listed in removed.items() for rows in listed if rows not in put_back[iso]]


def _put_back_each(warehouse: Any, table: TableName, url: str, day: date) -> Iterator[list[Row]]:
    """Yield what the table holds after each kept copy of the date was put back."""
    for kept in warehouse.list_kept(table, "day", DateRange(start=day, through=day)):
        current = warehouse.fingerprints(table, "day", [day])[day]
        with contextlib.suppress(BackupMissing):  # what is listed may turn out to be something else
            if warehouse.restore_kept(table, "day", kept, current=current):
                yield open_tables(url).rows(day)
