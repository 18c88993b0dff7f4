"""What the transaction that puts a backup back excludes: on the double of BigQuery's REST interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from gated_backfill.common.errors import RestoreConflict
from gated_backfill.common.model.publication import Backup, BackupDate
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.warehouse.bigquery.warehouse import BigQueryWarehouse
from tests.builders import FEB_23, FEB_24, TABLE, rows_of
from tests.rest_double import RestDouble

BACKUP = Backup(id="op-1", table=TABLE, date_column="day")


def deleted(warehouse: BigQueryWarehouse, double: RestDouble) -> dict[Any, BackupDate]:
    """Two dates that are backed up and deleted."""
    for day in (FEB_23, FEB_24):
        warehouse.load(TABLE, "day", rows_of(day))
    warehouse.back_up(BACKUP, [FEB_23, FEB_24], until=utcnow())
    held = double.dates.held[str(TABLE)]
    kept = {day: BackupDate(fingerprint=held[day], rows=1) for day in (FEB_23, FEB_24)}
    warehouse.delete_backed_up(BACKUP, kept, generation=1)
    assert held == {}
    return kept


def test_rows_are_put_back_by_an_exclusive_transaction(rest_warehouse: BigQueryWarehouse, double: RestDouble) -> None:
    """BigQuery lets transactions that only append to a table commit side by side, but none that deletes from it."""
    kept = deleted(rest_warehouse, double)

    assert rest_warehouse.restore_backup(BACKUP, kept, generation=2) == set(kept)

    (sent,) = double.calls("jobs.insert", "backfill-putback-")
    words = ("BEGIN TRANSACTION", "SET backfill_days", "DELETE FROM `", "INSERT INTO `", "COMMIT TRANSACTION")
    places = [sent.statement.find(word) for word in words]
    assert -1 not in places
    assert places == sorted(places)


def test_a_date_that_was_appended_to_meanwhile_is_told(
    rest_warehouse: BigQueryWarehouse, double: RestDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = deleted(rest_warehouse, double)
    run = double.dates.run

    def and_more_is_appended(job: str, sql: str, params: Mapping[str, Any], rows_in: Any) -> None:
        run(job, sql, params, rows_in)
        double.dates.held[str(TABLE)][FEB_24] += " and others"

    monkeypatch.setattr(double.dates, "run", and_more_is_appended)

    with pytest.raises(RestoreConflict, match=r"1 date\(s\) .* hold other rows.*2023-02-24"):
        rest_warehouse.restore_backup(BACKUP, kept, generation=2)
