"""What neither the emulator nor the double can prove, against BigQuery itself: `make test-bigquery PROJECT=...`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import date
from uuid import uuid4

import pytest
from google.api_core.exceptions import BadRequest, GoogleAPICallError
from google.cloud import bigquery

from gated_backfill.common.errors import LeaseTakenOver, QueryFailed, WarehouseUnavailable
from gated_backfill.common.model.publication import StagedFile, WarehouseLimits, table_location
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.storage.staging import Staging
from gated_backfill.common.warehouse.bigquery.address import BigQueryAddress
from gated_backfill.common.warehouse.bigquery.warehouse import BigQueryWarehouse
from gated_backfill.common.warehouse.protocol import ABSENT, Scan, StagedScan
from tests.builders import DAYS, FEB_23, FEB_24, FEB_25, publication_of, rows_of, span, staged

COUNT = "SELECT day, COUNT(*) AS n FROM t GROUP BY day"


def counts(warehouse: BigQueryWarehouse, table: TableName) -> dict[date, int]:
    scan = Scan(table=table, date_column="day", dates=(span(DAYS[0], DAYS[-1]),))
    return {row["day"]: row["n"] for row in warehouse.query(COUNT, scans={"t": scan}).to_pylist()}


def publish(
    warehouse: BigQueryWarehouse, table: TableName, *files, since=None, run: str | None = None, generation: int = 1
):
    now = warehouse.fingerprints(table, "day", [file.day for file in files]) if since is None else since
    return warehouse.publish(
        table,
        "day",
        files,
        fingerprints_when_staged=now,
        publication=publication_of(f"{run or 'run-' + uuid4().hex[:8]}/1", generation=generation),
    )


def test_a_publication_replaces_its_dates_and_can_be_undone(
    real_warehouse: BigQueryWarehouse, table: TableName, staging: Staging
) -> None:
    real_warehouse.load(table, "day", rows_of(FEB_23, FEB_25, players=5))
    before = real_warehouse.fingerprints(table, "day", DAYS)
    files = [staged(staging, FEB_23, players=187), staged(staging, FEB_24, players=9)]

    receipt = publish(real_warehouse, table, *files, run="run-x")
    again = publish(BigQueryWarehouse(*_parts(real_warehouse)), table, *files, since=before, run="run-x")

    assert receipt == again
    assert receipt.published == {FEB_23, FEB_24}
    assert counts(real_warehouse, table) == {FEB_23: 187, FEB_24: 9, FEB_25: 5}
    assert real_warehouse.matching_dates(table, "day", {file.day: file.checksum for file in files}) == {FEB_23, FEB_24}
    replaced = real_warehouse.replaced_partitions(table, "day", "run-x", DAYS)
    assert real_warehouse.restore(table, "day", "run-x", replaced, generation=1) == {FEB_23, FEB_24}
    assert real_warehouse.fingerprints(table, "day", DAYS) == before


def test_a_gate_that_was_overtaken_publishes_nothing(
    real_warehouse: BigQueryWarehouse, table: TableName, staging: Staging
) -> None:
    run = f"run-{uuid4().hex[:8]}"
    publish(real_warehouse, table, staged(staging, FEB_23, players=5), run=run, generation=2)
    late = staged(staging, FEB_23, players=7, attempt=2)
    with pytest.raises(LeaseTakenOver):
        publish(real_warehouse, table, late, run=run, generation=1)
    replaced = real_warehouse.replaced_partitions(table, "day", run, DAYS)
    real_warehouse.restore(table, "day", run, replaced, generation=2)
    with pytest.raises(LeaseTakenOver):
        real_warehouse.restore(table, "day", run, replaced, generation=1)
    with pytest.raises(LeaseTakenOver):
        publish(real_warehouse, table, late, run=run, generation=9)
    assert counts(real_warehouse, table) == {}


def test_every_replacement_is_kept_and_can_be_put_back(
    real_warehouse: BigQueryWarehouse, table: TableName, staging: Staging
) -> None:
    run = f"run-{uuid4().hex[:8]}"
    for players in (3, 4):
        real_warehouse.load(table, "day", rows_of(FEB_23, players=players))
        publish(real_warehouse, table, staged(staging, FEB_23, players=players + 5, attempt=players), run=run)
    replaced = real_warehouse.replaced_partitions(table, "day", run, DAYS)
    assert real_warehouse.restore(table, "day", run, replaced, generation=1) == {FEB_23}
    assert counts(real_warehouse, table) == {FEB_23: 4}
    kept = real_warehouse.list_kept(table, "day", span(DAYS[0], DAYS[-1]))
    assert [rows.rows for rows in kept] == [9, 4, 3]
    (current,) = real_warehouse.fingerprints(table, "day", [FEB_23]).values()
    assert real_warehouse.restore_kept(table, "day", kept[-1], current=current)
    assert counts(real_warehouse, table) == {FEB_23: 3}


def _parts(warehouse: BigQueryWarehouse) -> tuple[BigQueryAddress, WarehouseLimits]:
    return warehouse._jobs.address, warehouse._jobs.limits


def test_staged_rows_are_recounted_in_sql(real_warehouse: BigQueryWarehouse, dataset: str, staging: Staging) -> None:
    files = (staged(staging, FEB_23, players=187), staged(staging, FEB_24, players=9))
    found = real_warehouse.query(COUNT, scans={"t": StagedScan(files=files)}).to_pylist()
    assert {row["day"]: row["n"] for row in found} == {FEB_23: 187, FEB_24: 9}


def test_the_partition_filter_is_required_and_every_statement_has_it(
    real_warehouse: BigQueryWarehouse, client: bigquery.Client, table: TableName, staging: Staging
) -> None:
    publish(real_warehouse, table, staged(staging, FEB_23))
    with pytest.raises(BadRequest, match="partition"):
        client.query(f"SELECT COUNT(*) FROM `{client.project}.{table}`").result()
    publish(real_warehouse, table, staged(staging, FEB_23, players=9))
    assert counts(real_warehouse, table) == {FEB_23: 9}


def test_two_publications_at_once_both_take_effect(
    real_warehouse: BigQueryWarehouse, table: TableName, staging: Staging
) -> None:
    real_warehouse.load(table, "day", rows_of(FEB_23, FEB_24))
    files = [staged(staging, FEB_23, players=50), staged(staging, FEB_24, players=60)]

    def until_published(file) -> frozenset[date]:
        for _ in range(10):
            try:
                return publish(real_warehouse, table, file).published
            except WarehouseUnavailable:
                continue  # the other transaction wrote the table first
        return frozenset()

    with ThreadPoolExecutor(2) as pool:
        published = list(pool.map(until_published, files))

    assert published == [{FEB_23}, {FEB_24}]
    assert counts(real_warehouse, table) == {FEB_23: 50, FEB_24: 60}


def test_a_script_that_fails_in_its_middle_leaves_everything_as_it_was(
    real_warehouse: BigQueryWarehouse, client: bigquery.Client, table: TableName
) -> None:
    real_warehouse.load(table, "day", rows_of(FEB_23))
    script = f"""
        BEGIN TRANSACTION;
        DELETE FROM `{client.project}.{table}` WHERE day = DATE '2023-02-23';
        SELECT ERROR('in the middle');
        COMMIT TRANSACTION;
    """
    with pytest.raises(GoogleAPICallError):
        client.query(script).result()
    assert counts(real_warehouse, table) == {FEB_23: 3}


def test_a_load_that_fails_leaves_the_table_as_it_was(
    real_warehouse: BigQueryWarehouse, client: bigquery.Client, table: TableName
) -> None:
    real_warehouse.load(table, "day", rows_of(FEB_23))
    config = bigquery.LoadJobConfig(source_format="PARQUET", write_disposition="WRITE_TRUNCATE")
    missing = [f"gs://backfill-test-no-such-bucket-{uuid4().hex}/x.parquet"]
    with pytest.raises(GoogleAPICallError):
        client.load_table_from_uri(missing, f"{client.project}.{table}", job_config=config).result()
    assert counts(real_warehouse, table) == {FEB_23: 3}


def test_a_query_that_would_bill_too_much_is_refused_before_it_runs(
    address: BigQueryAddress, real_warehouse: BigQueryWarehouse, table: TableName
) -> None:
    real_warehouse.load(table, "day", rows_of(FEB_23))
    frugal = BigQueryWarehouse(address, WarehouseLimits(max_bytes_billed=1))
    with pytest.raises(QueryFailed, match="BACKFILL_MAX_BYTES_BILLED"):
        counts(frugal, table)


def test_tables_of_its_own_expire(
    real_warehouse: BigQueryWarehouse,
    address: BigQueryAddress,
    client: bigquery.Client,
    table: TableName,
    staging: Staging,
) -> None:
    real_warehouse.load(table, "day", rows_of(FEB_23))
    publish(real_warehouse, table, staged(staging, FEB_23, players=9))
    tables = [client.get_table(one.reference) for one in client.list_tables(f"{address.project}.{address.dataset}")]
    passing = [one for one in tables if one.table_id != "publications"]
    assert passing
    assert all(one.expires is not None for one in passing)
    (kept,) = [one for one in tables if one.table_id == "publications"]
    assert kept.expires is None


def test_a_dry_run_tells_the_bytes(real_warehouse: BigQueryWarehouse, table: TableName) -> None:
    real_warehouse.load(table, "day", rows_of(FEB_23, FEB_24, players=1000))
    one = real_warehouse.estimate_bytes(Scan(table=table, date_column="day", dates=(span(FEB_23),)))
    both = real_warehouse.estimate_bytes(Scan(table=table, date_column="day", dates=(span(FEB_23, FEB_24),)))
    assert one is not None
    assert both is not None
    assert 0 < one < both  # and so partitions are pruned


def test_a_date_that_was_written_meanwhile_is_left_alone(
    real_warehouse: BigQueryWarehouse, table: TableName, staging: Staging
) -> None:
    file = staged(staging, FEB_23, players=9)
    real_warehouse.load(table, "day", rows_of(FEB_23, players=4))
    assert publish(real_warehouse, table, file, since={FEB_23: ABSENT}).conflicting == {FEB_23}
    assert counts(real_warehouse, table) == {FEB_23: 4}


def test_the_rows_of_a_query_are_staged_counted_and_published_in_the_warehouse(
    real_warehouse: BigQueryWarehouse, table: TableName
) -> None:
    real_warehouse.load(table, "day", rows_of(FEB_23, FEB_24, players=5))
    columns = real_warehouse.describe(table).columns
    query_staging = real_warehouse.query_staging
    source = Scan(table=table, date_column="day", dates=(span(FEB_23, FEB_24),))
    text = f"SELECT {', '.join(columns)} FROM rows WHERE day IN UNNEST(@days)"
    staging_table, days = query_staging.stage_query(
        text,
        scans={"rows": source},
        params={"days": [FEB_23, FEB_24]},
        columns=columns,
        date_column="day",
        key=("player",),
        name=[uuid4().hex],
    )
    files = [
        StagedFile(
            day=day, attempt=1, location=table_location(staging_table), checksum=counted.content, rows=counted.rows
        )
        for day, counted in days.items()
    ]
    assert {day: (counted.rows, counted.keys) for day, counted in days.items()} == dict.fromkeys(
        (FEB_23, FEB_24), (5, 5)
    )
    assert query_staging.read_staged_contents(files, columns) == {file.day: file.checksum for file in files}
    assert real_warehouse._tables.get(staging_table).expires is not None
    copied = TableName(table.dataset, f"copied_{uuid4().hex[:8]}")
    assert publish(real_warehouse, copied, *files).published == {FEB_23, FEB_24}
    assert counts(real_warehouse, copied) == {FEB_23: 5, FEB_24: 5}


def test_reads_together_give_what_each_gives_alone(real_warehouse: BigQueryWarehouse, table: TableName) -> None:
    real_warehouse.load(table, "day", rows_of(FEB_23, FEB_24, players=5))
    reads = [lambda: counts(real_warehouse, table), lambda: real_warehouse.fingerprints(table, "day", DAYS)]
    assert real_warehouse.together(*reads) == [read() for read in reads]
