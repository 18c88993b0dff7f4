"""What the BigQuery warehouse keeps of the rows it removes, and which late calls it refuses: on the emulator."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest

from gated_backfill.common.errors import BackupMissing
from gated_backfill.common.ledger import RunState
from gated_backfill.common.model.publication import Backup, BackupDate
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.storage.staging import Staging
from gated_backfill.common.warehouse.bigquery.address import BigQueryAddress
from gated_backfill.common.warehouse.bigquery.warehouse import BigQueryWarehouse
from gated_backfill.common.warehouse.protocol import ABSENT
from gated_backfill.producer.planning.plan import Reprocess
from gated_backfill.producer.runs.launch import open_run
from gated_backfill.producer.runs.session import Launch, plan_launch
from gated_backfill.producer.runs.undo import plan_undo, undo_run
from gated_backfill.worker.dates.process import process_dates
from gated_backfill.worker.gate.gate import GateOutcome, advance_run, close_window
from tests.builders import DAYS, FEB_23, FEB_24, TABLE, counts, rows_of, staged
from tests.emulator import Emulator
from tests.integration.test_warehouse_undo import ALL, kept, load, publish, restore_kept, undo
from tests.lab import Lab, players
from tests.rest_double import RestDouble
from tests.rest_lab import opened

BACKUP = Backup(id="op-1", table=TABLE, date_column="day")
DAY_MS = 24 * 3600 * 1000


def test_a_gate_that_was_frozen_until_its_run_was_undone_publishes_nothing(bigquery_lab: Lab) -> None:
    lab = bigquery_lab
    lab.probe_all([FEB_23], players(4))
    lab.run([FEB_23], "probe")
    before = lab.published("probe.probe", FEB_23, "day")
    lab._load_probe("first", [FEB_23], players(4), lowest=50.0)
    launch = Launch(request=lab.request([FEB_23], "probe", reprocess=Reprocess.ALL), window=1, workers=1)
    plan = plan_launch(launch, find_job("probe"), lab.context)
    options = RunOptions.for_job(find_job("probe"), window=1, in_flight=1, fallback=None, forced_because=None)
    run = open_run(plan, find_job("probe"), options, lab.context, owned=True)
    frozen, other = lab.opened_again(), lab.opened_again()
    frozen.ledger.runs.move_run(run.id, expect=[RunState.PLANNED], to=RunState.RUNNING)
    advance_run(run, find_job("probe"), frozen)
    process_dates(run.id, [FEB_23], frozen)
    warehouse: Any = frozen.warehouse
    run_script = warehouse._jobs.run_script

    def run_later(*arguments: Any, **named: Any) -> None:
        """Send the transaction after another gate has published, and the run was undone."""
        warehouse._jobs.run_script = run_script
        expired = utcnow() - timedelta(seconds=1)
        lab.change_ledger("UPDATE windows SET lease_until = :expired WHERE run_id = :run", expired=expired, run=run.id)
        lab.change_ledger("UPDATE targets SET publisher_until = '2023-01-01 00:00:00.000000'")
        assert close_window(run.id, 1, replace(other, owner="otherhost:1:1")) is GateOutcome.CLOSED
        assert lab.published("probe.probe", FEB_23, "day") != before
        undo_run(plan_undo(run.id, lab.context), lab.context, "a test")
        assert lab.published("probe.probe", FEB_23, "day") == before
        run_script(*arguments, **named)

    warehouse._jobs.run_script = run_later
    assert close_window(run.id, 1, frozen) is GateOutcome.NOT_CLAIMED
    assert lab.published("probe.probe", FEB_23, "day") == before


def test_kept_rows_are_put_back_on_a_date_without_rows_only_if_it_has_none(
    bigquery_warehouse: BigQueryWarehouse, staging: Staging
) -> None:
    warehouse = bigquery_warehouse
    publish(warehouse, staged(staging, FEB_23, players=5))
    undo(warehouse)
    (rows,) = warehouse.list_kept(TABLE, "day", ALL)
    load(warehouse, FEB_23, 3)
    assert not warehouse.restore_kept(TABLE, "day", rows, current=ABSENT)
    assert counts(warehouse, *DAYS) == {FEB_23: 3}
    warehouse._jobs.query("DELETE FROM nba.factors WHERE TRUE", {})
    assert warehouse.restore_kept(TABLE, "day", rows, current=ABSENT)
    assert counts(warehouse, *DAYS) == {FEB_23: 5}
    assert kept(warehouse) == [(FEB_23, "undo of run run-1", 5)]


def test_rows_that_are_gone_are_not_listed_and_not_put_back(
    bigquery_warehouse: BigQueryWarehouse, emulator: Emulator, staging: Staging
) -> None:
    warehouse = bigquery_warehouse
    load(warehouse, FEB_23, 3)
    publish(warehouse, staged(staging, FEB_23, players=5))
    (rows,) = warehouse.list_kept(TABLE, "day", ALL)
    emulator.client().delete_table(f"backfill.{undo_table('run-1')}")
    warehouse._tables.forget_descriptions()
    assert kept(warehouse) == []
    with pytest.raises(BackupMissing, match="have expired"):
        restore_kept(warehouse, rows)
    assert counts(warehouse, *DAYS) == {FEB_23: 5}


def test_rows_from_before_a_column_was_added_are_kept_and_put_back(
    bigquery_warehouse: BigQueryWarehouse, staging: Staging
) -> None:
    warehouse = bigquery_warehouse
    load(warehouse, FEB_23, 3)
    publish(warehouse, staged(staging, FEB_23, players=5), staged(staging, FEB_24, players=2))
    warehouse.add_columns(TABLE, {"team": "STRING"})
    assert undo(warehouse) == {FEB_23, FEB_24}
    assert counts(warehouse, *DAYS) == {FEB_23: 3}
    listed = {(rows.day, rows.rows): rows for rows in warehouse.list_kept(TABLE, "day", ALL)}
    for day, count in ((FEB_23, 5), (FEB_24, 2), (FEB_23, 3)):
        assert restore_kept(warehouse, listed[day, count])
        assert counts(warehouse, day) == {day: count}
    with_team = rows_of(FEB_23, players=9).append_column("team", pa.array(["x"] * 9))
    warehouse.load(TABLE, "day", with_team)
    assert restore_kept(warehouse, listed[FEB_23, 5])
    (replaced, *_) = warehouse.list_kept(TABLE, "day", ALL)
    assert restore_kept(warehouse, replaced)
    stored = warehouse._jobs.query("SELECT team FROM nba.factors WHERE day = DATE '2023-02-23'", {})
    assert stored["team"].to_pylist() == ["x"] * 9


# -- tables of earlier versions ------------------------------------------------------------------------------------


def undo_table(run: str) -> str:
    return f"undo_{run.replace('-', '_')}_{hashlib.sha256(str(TABLE).encode()).hexdigest()[:12]}"


FIRST_COPIES = "SELECT ANY_VALUE(kept HAVING MIN published_at) FROM backfill.publications GROUP BY day"


def as_earlier_versions_left_it(emulator: Emulator, warehouse: BigQueryWarehouse) -> BigQueryWarehouse:
    """Take away what earlier versions did not have or keep, and open the warehouse anew."""
    client = emulator.client()
    tables = {
        undo_table("run-1"): (["backfill_kept"], f"backfill_kept IN ({FIRST_COPIES})"),
        "publications": (["work", "generation", "kept"], "day IS NOT NULL"),
    }
    for name, (columns, condition) in tables.items():
        table = client.get_table(f"backfill.{name}")
        table.schema = [field for field in table.schema if field.name not in columns]
        selected = f"SELECT * EXCEPT ({', '.join(columns)}) FROM backfill.{name} WHERE {condition}"
        emulator.run(f"CREATE TABLE backfill.copied AS {selected}")
        client.delete_table(table.reference)
        client.create_table(table)
        emulator.run(f"INSERT INTO backfill.{name} SELECT * FROM backfill.copied")
        client.delete_table("backfill.copied")
    return BigQueryWarehouse(BigQueryAddress.parse(emulator.url))


def test_a_run_of_an_earlier_version_can_be_undone(
    bigquery_warehouse: BigQueryWarehouse, emulator: Emulator, staging: Staging
) -> None:
    load(bigquery_warehouse, FEB_23, 3)
    publish(bigquery_warehouse, staged(staging, FEB_23, players=4))
    load(bigquery_warehouse, FEB_23, 9)  # which an earlier version did not keep
    more = staged(staging, FEB_23, players=5, attempt=2), staged(staging, FEB_24, players=2)
    publish(bigquery_warehouse, *more)
    warehouse = as_earlier_versions_left_it(emulator, bigquery_warehouse)
    replaced = warehouse.replaced_partitions(TABLE, "day", "run-1", DAYS)
    warehouse.check_restorable(TABLE, "day", "run-1", replaced)
    assert kept(warehouse) == []
    warehouse.back_up(BACKUP, [FEB_24], until=utcnow() + timedelta(days=30))
    assert warehouse.deleted_at(BACKUP) is None
    assert undo(warehouse) == {FEB_23, FEB_24}
    assert counts(warehouse, *DAYS) == {FEB_23: 3}
    assert kept(warehouse) == [(day, "undo of run run-1", rows) for day, rows in ((FEB_24, 2), (FEB_23, 5))]


def test_a_run_of_an_earlier_version_goes_on_publishing(
    bigquery_warehouse: BigQueryWarehouse, emulator: Emulator, staging: Staging
) -> None:
    load(bigquery_warehouse, FEB_23, 3)
    file = staged(staging, FEB_23, players=5)
    publish(bigquery_warehouse, file)
    warehouse = as_earlier_versions_left_it(emulator, bigquery_warehouse)
    assert publish(warehouse, file).published == {FEB_23}
    load(warehouse, FEB_24, 4)
    more = [staged(staging, day, players=6, attempt=2) for day in (FEB_23, FEB_24)]
    assert publish(warehouse, *more).published == {FEB_23, FEB_24}
    assert undo(warehouse) == {FEB_23, FEB_24}
    assert counts(warehouse, *DAYS) == {FEB_23: 3, FEB_24: 4}


def test_two_processes_add_the_columns_at_once(
    bigquery_warehouse: BigQueryWarehouse, emulator: Emulator, staging: Staging
) -> None:
    load(bigquery_warehouse, FEB_23, 3)
    publish(bigquery_warehouse, staged(staging, FEB_23, players=5))
    as_earlier_versions_left_it(emulator, bigquery_warehouse)
    for number in range(2):
        warehouse = BigQueryWarehouse(BigQueryAddress.parse(emulator.url))
        assert warehouse.create_own_tables() is False
        assert publish(warehouse, staged(staging, FEB_23, players=6 + number)).published == {FEB_23}


# -- retention ----------------------------------------------------------------------------------------------------


def expiration(double: RestDouble, name: str) -> float:
    """In how many days of BigQuery's clock the tool's table with a name that begins so expires."""
    (table,) = [found for (_, table), found in double.tables.items() if table.startswith(name)]
    return (int(table["expirationTime"]) / 1000 - (utcnow() + double.ahead).timestamp()) / 86400


@pytest.mark.parametrize("ahead", [timedelta(), timedelta(days=5)], ids=["same-clock", "slow-clock-of-ours"])
def test_an_undo_table_lives_on_with_each_publication_that_keeps_rows(
    double: RestDouble, staging: Staging, ahead: timedelta
) -> None:
    double.ahead = ahead
    warehouse = opened(double, undo_days=17)
    warehouse.create_table(TABLE, {"player": "STRING", "day": "DATE", "score": "FLOAT64"}, "day")
    double.dates.held[str(TABLE)] = {FEB_23: "old", FEB_24: "old"}

    publish(warehouse, staged(staging, FEB_23))
    assert 17.0 < expiration(double, "undo_run_1") < 17.1
    publish(warehouse, staged(staging, FEB_24))
    assert double.calls("tables.patch") == []  # it was moved on just now

    (key,) = [key for key in double.tables if key[1].startswith("undo_run_1")]
    tomorrow = utcnow() + ahead + timedelta(days=1)
    double.tables[key] |= {"expirationTime": str(round(tomorrow.timestamp() * 1000))}
    publish(opened(double, undo_days=17), staged(staging, FEB_23, players=9, attempt=2))
    assert 17.0 < expiration(double, "undo_run_1") < 17.1


@pytest.mark.parametrize("ahead", [timedelta(), timedelta(days=5)], ids=["same-clock", "slow-clock-of-ours"])
def test_a_backup_lives_on_from_the_deletion(double: RestDouble, ahead: timedelta) -> None:
    double.ahead = ahead
    warehouse = opened(double)
    warehouse.load(TABLE, "day", rows_of(FEB_23))
    warehouse.back_up(BACKUP, [FEB_23], until=utcnow() + timedelta(days=30))
    assert 31.9 < expiration(double, "cleanup_op_1") < 32.1
    held = double.dates.held[str(TABLE)][FEB_23]
    key = ("backfill", "cleanup_op_1")
    double.tables[key] |= {
        name: str(int(double.tables[key][name]) - 10 * DAY_MS) for name in ("creationTime", "expirationTime")
    }  # the cleanup was interrupted before it deleted

    warehouse.delete_backed_up(BACKUP, {FEB_23: BackupDate(fingerprint=held, rows=3)}, generation=1)

    assert 31.9 < expiration(double, "cleanup_op_1") < 32.1
