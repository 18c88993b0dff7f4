"""Looking at what a schedule left: ledger, warehouse and staging."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.ledger import open_ledger
from gated_backfill.common.ledger.tables import checkpoints, run_dates, runs, windows
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.storage.staging import MARK, QUARANTINE
from gated_backfill.common.warehouse.backends import open_warehouse
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from tests.faults.chaos.faults import FILLER
from tests.faults.chaos.schedule import Schedule
from tests.faults.chaos.shapes import OLD_DAYS
from tests.faults.chaos.world import open_tables

JOB = "chaos"
TARGET = TableName.parse("chaos.target")
DATE_COLUMNS = "run_id day state active attempt deaths losses undone_at reason verdict error_kind error"


def look(schedule: Schedule, settings: Settings) -> dict[str, Any]:
    """The fields of `Seen`, as JSON can hold them."""
    ledger = open_ledger(settings.ledger_url, create=False)
    warehouse = open_warehouse(settings.warehouse_url, limits=settings.warehouse_limits)
    tables = open_tables(settings.warehouse_url)
    days = [day.day for day in schedule.shape]
    with ledger.runs._read() as connection:
        found = {
            "runs": _rows(connection, runs, "id state owner"),
            "windows": _rows(connection, windows, "run_id number state lease_owner"),
            "dates": _rows(connection, run_dates, DATE_COLUMNS),
        }
        proven = _rows(connection, checkpoints, "day run_id checksum expected matched rows source")
    ledger.close()
    known = {date.fromisoformat(row["day"]): row["checksum"] for row in proven}
    expected = {day: sorted(set(tables.names("expected", day))) for day in days}
    return found | {
        "checkpoints": {row["day"]: row for row in proven},
        "held": sorted(day.isoformat() for day in warehouse.matching_dates(TARGET, "day", known)) if known else [],
        "published": {day.isoformat(): tables.rows(day) for day in days},
        "old": {day.isoformat(): tables.rows(day) for day in OLD_DAYS} if schedule.cleanup else {},
        "covered": {day.isoformat(): sorted(set(tables.names("target", day)) & set(expected[day])) for day in days},
        "expected": {day.isoformat(): names for day, names in expected.items()},
        "writers": {day.isoformat(): _writer(warehouse, day) for day in days},
        "staged": _staged(Path(settings.staging_url)),
        "strays": tables.strays(),
        "marked": [day.isoformat() for day in (*days, *OLD_DAYS) if tables.has_mark(day)],
    }


def _rows(connection: Connection, table: Any, columns: str) -> list[dict[str, Any]]:
    query = select(*(table.c[name] for name in columns.split()))
    return [
        {name: value.isoformat() if isinstance(value, date) else value for name, value in row.items()}
        for row in connection.execute(query).mappings()
    ]


def _writer(warehouse: Any, day: date) -> str | None:
    if not isinstance(warehouse, LocalWarehouse):
        return None
    noted = warehouse.find_publications(TARGET, "day", [day]).get(day)
    return noted.run if noted else None


def _staged(root: Path) -> list[str]:
    return sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and path.relative_to(root).parts[0] not in (QUARANTINE, MARK, FILLER)
    )
