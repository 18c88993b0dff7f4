"""Whether rows that the tool removed can be put back: each kept copy is put back in turn, and what it held is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.model.dates import DateRange
from gated_backfill.common.warehouse.backends import open_warehouse
from tests.faults.chaos.look import TARGET
from tests.faults.chaos.shapes import Row
from tests.faults.chaos.world import open_tables


def lost_rows(settings: Settings, removed: Mapping[str, Sequence[list[Row]]]) -> list[tuple[str, list[Row]]]:
    """Those of the removed rows, by day in ISO form, that no kept copy puts back."""
    warehouse = open_warehouse(settings.warehouse_url, limits=settings.warehouse_limits)
    lost: list[tuple[str, list[Row]]] = []
    for iso, listed in removed.items():
        waiting = list(listed)
        copies = _put_back_each(warehouse, settings.warehouse_url, date.fromisoformat(iso)) if waiting else iter(())
        while waiting:
            rows = next(copies, None)
            if rows is None:
                break
            waiting = [other for other in waiting if other != rows]
        lost += [(iso, rows) for rows in waiting]
    return lost


def _put_back_each(warehouse: Any, url: str, day: date) -> Iterator[list[Row]]:
    """Yield what the target holds after each kept copy of the date was put back."""
    for kept in warehouse.list_kept(TARGET, "day", DateRange(start=day, through=day)):
        current = warehouse.fingerprints(TARGET, "day", [day])[day]
        if not warehouse.restore_kept(TARGET, "day", kept, current=current):
            raise RuntimeError(f"kept rows {kept} are not put back, though nobody else writes")
        yield open_tables(url).target(day)
