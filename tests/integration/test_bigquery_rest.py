"""What the BigQuery warehouse sends, and what it costs: on a strict double of BigQuery's REST interface."""

from __future__ import annotations

import io
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
from functools import partial
from typing import Any

import pyarrow.parquet as pq
import pytest
from google.api_core.exceptions import Conflict
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.job import Batch, Expectation, Job, Source, Target
from gated_backfill.common.model.publication import Backup, BackupDate, KeptRows, PublishResult, StagedFile
from gated_backfill.common.model.tables import Column, TableName
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.storage.files import parquet_bytes
from gated_backfill.common.storage.staging import Staging
from gated_backfill.common.warehouse.bigquery.address import BigQueryAddress
from gated_backfill.common.warehouse.bigquery.warehouse import BigQueryWarehouse
from gated_backfill.common.warehouse.coverage_queries import match_expectation, read_expectation
from gated_backfill.common.warehouse.labels import label_work
from gated_backfill.common.warehouse.protocol import ABSENT, ReplacedPartition, StagedScan, Warehouse
from gated_backfill.common.warehouse.staged_entities import read_staged_entities
from gated_backfill.producer.planning import plan as planned
from gated_backfill.producer.planning.cost import MIN_BILLED_BYTES, estimate_cost
from gated_backfill.producer.planning.range_counts import count_range
from tests import rest_rules as rules
from tests.builders import DAYS, FEB_23, FEB_24, FEB_25, TABLE, publication_of, rows_of, scan, span, staged
from tests.rest_double import RestDouble
from tests.rest_lab import TYPES, opened, publish
from tests.rest_service import HOST, PROJECT

TRUTH = TableName("nba", "summary")
BACKUP = Backup(id="op-1", table=TABLE, date_column="day")
COUNT = "SELECT day, COUNT(*) AS n FROM t WHERE player = @player GROUP BY day"
DAY_MS = 24 * 3600 * 1000


def no_process(batch: Batch) -> Any:
    raise AssertionError("nothing is built here")


JOB = Job(
    name="factors",
    version="1",
    target=Target(
        table=str(TABLE),
        date_column="day",
        key=("player", "day"),
        columns={name: Column(type=kind) for name, kind in TYPES.items()},
    ),
    expectation=Expectation(table=str(TRUTH), date_column="day", entity="player"),
    sources=(Source(name="summary", table=str(TRUTH), date_column="day"),),
    process=no_process,
)


def match(warehouse: Warehouse, job: Job, files: Sequence[StagedFile]) -> None:
    """Count staged rows against the expectation, as a gate does."""
    days = [file.day for file in files]
    match_expectation(job, days, read_expectation(warehouse, job, days), read_staged_entities(warehouse, job, files))


def of_all_kinds(warehouse: BigQueryWarehouse, double: RestDouble, staging: Staging) -> None:
    """Every sort of statement that the warehouse has."""
    warehouse.create_table(TRUTH, TYPES, "day")
    warehouse.load(TABLE, "day", rows_of(FEB_25))
    warehouse.read(scan(span(FEB_23, FEB_25), columns={"day": "day", "entity": "player"}))
    warehouse.query(COUNT, scans={"t": scan(span(FEB_23), span(FEB_25))}, params={"player": "player001"})
    warehouse.estimate_bytes(scan(span(FEB_23), columns={"entity": "player"}))
    files = [staged(staging, day, players=5) for day in (FEB_23, FEB_24)]
    match(warehouse, JOB, files)
    assert publish(warehouse, files).published == {FEB_23, FEB_24}
    again = [staged(staging, day, players=6, attempt=2) for day in (FEB_23, FEB_24)]
    since = {file.day: file.checksum for file in files}
    warehouse.publish(TABLE, "day", again, fingerprints_when_staged=since, publication=publication_of("run-2/0"))
    warehouse.replaced_partitions(TABLE, "day", "run-2", [FEB_23])
    pairs = zip(files, again, strict=True)
    back = {old.day: ReplacedPartition(before=old.checksum, published=new.checksum) for old, new in pairs}
    assert double.dates.held["nba.factors"][FEB_23] == again[0].checksum
    warehouse.restore(TABLE, "day", "run-2", back, generation=1)
    assert warehouse.list_kept(TABLE, "day", span(FEB_23, FEB_25)) == []
    warehouse.row_counts(TABLE, "day", span(FEB_23, FEB_25))
    warehouse.back_up(BACKUP, [FEB_23], until=utcnow() + timedelta(days=30))
    kept = {FEB_23: BackupDate(fingerprint=double.dates.held["nba.factors"][FEB_23], rows=5)}
    warehouse.delete_backed_up(BACKUP, kept, generation=1)
    assert FEB_23 not in double.dates.held["nba.factors"]
    assert warehouse.restore_backup(BACKUP, kept, generation=2) == {FEB_23}
    assert double.dates.held["nba.factors"][FEB_23] == kept[FEB_23].fingerprint


# -- what every request is like -----------------------------------------------------------------------------------


def test_every_query_is_limited_and_binds_its_values(double: RestDouble, staging: Staging) -> None:
    of_all_kinds(opened(double, max_bytes_billed=12_345), double, staging)
    sent = [one for one in double.log if one.kind == "query"]
    assert {"backfill-publish", "backfill-replace", "backfill-restore", "backfill-cleanup", "backfill-putback"} <= {
        one.job.rpartition("-")[0][:16] for one in sent
    }
    for one in sent:
        asked = one.configuration["query"]
        assert asked["maximumBytesBilled"] == "12345"
        assert asked["useLegacySql"] is False
        assert asked.get("parameterMode", "NAMED") == "NAMED"  # absent of a query without parameters


def test_every_job_has_the_labels_of_the_work(double: RestDouble, staging: Staging) -> None:
    long = "a-run-" * 20
    with label_work(job="Faktoren (Köln)", run=long), label_work(window=3):
        of_all_kinds(opened(double), double, staging)
    in_hand = {"tool": "gated-backfill", "job": "faktoren__k_ln_", "run": long[:63], "window": "3"}
    assert {kind for kind, labels in sent_labels(double)} == {"query", "load"}
    assert [labels for _, labels in sent_labels(double) if labels != in_hand] == []
    double.log.clear()
    opened(double).describe(TABLE)
    opened(double).now()
    assert sent_labels(double) == [("query", {"tool": "gated-backfill"})]


def sent_labels(double: RestDouble) -> list[tuple[str, Any]]:
    """Of each started job: its kind, and its labels."""
    return [(one.kind, one.configuration.get("labels")) for one in double.log if one.kind]


def test_queries_are_scheduled_as_the_address_says(double: RestDouble, staging: Staging) -> None:
    reservation = "projects/admin-project/locations/US/reservations/nightly"
    address = BigQueryAddress.parse(f"bigquery://{PROJECT}?priority=batch&reservation={reservation}")
    of_all_kinds(BigQueryWarehouse(address, http=double), double, staging)
    sent = [one.configuration for one in double.log if one.kind == "query"]
    assert {(one["query"].get("priority"), one.get("reservation")) for one in sent} == {("BATCH", reservation)}


def test_queries_are_scheduled_as_the_project_does_by_itself(double: RestDouble, staging: Staging) -> None:
    of_all_kinds(opened(double), double, staging)
    sent = [one.configuration for one in double.log if one.kind == "query"]
    assert {("priority" in one["query"], "reservation" in one) for one in sent} == {(False, False)}


def test_no_value_is_written_into_a_statement(double: RestDouble, staging: Staging) -> None:
    of_all_kinds(opened(double), double, staging)
    text = "\n".join(double.statements())
    literals = set(re.findall(r"'([^']*)'", text))
    facts = {
        f"$.{name}" for name in ("day", "before", "published", "copy", "checksum", "attempt", "row_count", "staged")
    }
    assert literals == {"absent", ".", "the lease was taken over"} | facts
    assert '"' not in text
    assert set(re.findall(r"\b\d{2,}\b", text)) == {"1000000007"}
    assert not re.search(r"player\d|run-\d|[^_]\b[0-9a-f]{64}", text)


def test_no_partition_column_stands_in_a_function(double: RestDouble, staging: Staging) -> None:
    of_all_kinds(opened(double), double, staging)
    for statement in double.statements():
        assert not rules.wraps_in_a_function(statement, "day")
        assert not rules.unfiltered(statement, TABLE.table, "day")
        assert not rules.unfiltered(statement, TRUTH.table, "day")


def test_no_request_waits_for_ever(rest_warehouse: BigQueryWarehouse, double: RestDouble, staging: Staging) -> None:
    of_all_kinds(rest_warehouse, double, staging)
    rest_warehouse.check_publishable(TABLE)
    assert [one.call for one in double.log if one.timeout is None] == []


@pytest.mark.parametrize("location", [pytest.param("europe-west1", id="region"), pytest.param("EU", id="EU")])
def test_jobs_and_datasets_are_where_the_address_says(double: RestDouble, staging: Staging, location: str) -> None:
    there = BigQueryWarehouse(BigQueryAddress.parse(f"bigquery://{PROJECT}?location={location}"), http=double)
    of_all_kinds(there, double, staging)
    assert {one["location"] for one in double.datasets.values()} == {location}
    assert {one.reference["location"] for one in double.jobs.values()} == {location}


# -- names --------------------------------------------------------------------------------------------------------

HOSTILE = [
    pytest.param("x` WHERE TRUE; DROP TABLE y; --", id="sql"),
    pytest.param("x.y", id="dot"),
    pytest.param("../x", id="path"),
    pytest.param("x/y?z", id="url"),
    pytest.param("x y", id="space"),
    pytest.param("1x", id="digit"),
    pytest.param("", id="empty"),
    pytest.param("ä", id="letter"),
]
FILE = StagedFile(day=FEB_23, attempt=1, location="/nowhere", checksum="c" * 64, rows=1)
AS_STAGED: dict[str, Any] = {"fingerprints_when_staged": {FEB_23: ABSENT}, "publication": "run-1/0"}
REPLACED = {FEB_23: ReplacedPartition(before=ABSENT, published="c")}
KEPT = {FEB_23: BackupDate(fingerprint="c", rows=1)}
COPY = KeptRows(id="c", day=FEB_23, kept_at=utcnow(), removed_by="run run-1", fingerprint="1.c", rows=1)
WITH_A_TABLE: dict[str, Callable[[BigQueryWarehouse, TableName], object]] = {
    "describe": lambda w, t: w.describe(t),
    "read": lambda w, t: w.read(scan(span(FEB_23), table=t)),
    "query": lambda w, t: w.query("SELECT * FROM t", scans={"t": scan(span(FEB_23), table=t)}),
    "fingerprints": lambda w, t: w.fingerprints(t, "day", [FEB_23]),
    "publish": lambda w, t: w.publish(t, "day", [FILE], **AS_STAGED),
    "restore": lambda w, t: w.restore(t, "day", "run-1", REPLACED, generation=1),
    "list_kept": lambda w, t: w.list_kept(t, "day", span(FEB_23)),
    "check_kept_restorable": lambda w, t: w.check_kept_restorable(t, "day", COPY),
    "restore_kept": lambda w, t: w.restore_kept(t, "day", COPY, current=ABSENT),
    "load": lambda w, t: w.load(t, "day", rows_of(FEB_23)),
    "create_table": lambda w, t: w.create_table(t, TYPES, "day"),
    "add_columns": lambda w, t: w.add_columns(t, {"team": "STRING"}),
    "row_counts": lambda w, t: w.row_counts(t, "day", span(FEB_23)),
    "back_up": lambda w, t: w.back_up(replace(BACKUP, table=t), [FEB_23], until=utcnow()),
    "delete_backed_up": lambda w, t: w.delete_backed_up(replace(BACKUP, table=t), KEPT, generation=1),
    "check_publishable": lambda w, t: w.check_publishable(t),
}
WITH_A_COLUMN: dict[str, Callable[[BigQueryWarehouse, str], object]] = {
    "read": lambda w, c: w.read(replace(scan(span(FEB_23)), date_column=c)),
    "read-columns": lambda w, c: w.read(scan(span(FEB_23), columns={"x": c})),
    "read-names": lambda w, c: w.read(scan(span(FEB_23), columns={c: "player"})),
    "staged-columns": lambda w, c: w.query("SELECT 1", scans={"t": StagedScan(files=(FILE,), columns={"x": c})}),
    "scan-name": lambda w, c: w.query("SELECT 1", scans={c: scan(span(FEB_23))}),
    "fingerprints": lambda w, c: w.fingerprints(TABLE, c, [FEB_23]),
    "fingerprints-columns": lambda w, c: w.column_fingerprints(TABLE, "day", [FEB_23], [frozenset({c})]),
    "publish": lambda w, c: w.publish(TABLE, c, [FILE], **AS_STAGED),
    "restore": lambda w, c: w.restore(TABLE, c, "run-1", REPLACED, generation=1),
    "list_kept": lambda w, c: w.list_kept(TABLE, c, span(FEB_23)),
    "check_kept_restorable": lambda w, c: w.check_kept_restorable(TABLE, c, COPY),
    "restore_kept": lambda w, c: w.restore_kept(TABLE, c, COPY, current=ABSENT),
    "load": lambda w, c: w.load(TABLE, c, rows_of(FEB_23).rename_columns(["player", c, "score"])),
    "load-columns": lambda w, c: w.load(TABLE, "day", rows_of(FEB_23).rename_columns(["player", "day", c])),
    "create_table": lambda w, c: w.create_table(TABLE, {c: "DATE"}, c),
    "add_columns": lambda w, c: w.add_columns(TABLE, {c: "DATE"}),
    "row_counts": lambda w, c: w.row_counts(TABLE, c, span(FEB_23)),
    "back_up": lambda w, c: w.back_up(replace(BACKUP, date_column=c), [FEB_23], until=utcnow()),
    "backup": lambda w, c: w.drop_backup(replace(BACKUP, id=f"{c}-")),
    "create_table-cluster": lambda w, c: w.create_table(TABLE, TYPES, "day", [c]),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("doing", WITH_A_TABLE)
def test_a_table_by_no_plain_name_is_refused_before_any_request(double: RestDouble, doing: str, name: str) -> None:
    in_a_project = [TableName("nba", "factors", name)] if name else []
    for table in (TableName("nba", name), TableName(name, "factors"), *in_a_project):
        with pytest.raises(UserError):
            WITH_A_TABLE[doing](opened(double), table)
    assert double.log == []


@pytest.mark.parametrize("doing", WITH_A_TABLE)
def test_a_second_name_of_a_table_is_refused_before_any_request(double: RestDouble, doing: str) -> None:
    with pytest.raises(UserError, match=r"test-project is the warehouse's own project: .* nba\.factors"):
        WITH_A_TABLE[doing](opened(double), TableName("nba", "factors", PROJECT))
    assert double.log == []


def test_a_window_is_published_to_another_project(double: RestDouble, staging: Staging) -> None:
    """Jobs, staging and the records of publications stay in the project of the warehouse."""
    target = TableName("nba", "factors", "marts-prod")
    warehouse = opened(double)
    files = [staged(staging, day) for day in DAYS]
    for number in range(2):  # what is there already is known, and what replaces it is kept
        since = warehouse.fingerprints(target, "day", DAYS)
        publication = publication_of(f"run-{number}/0")
        warehouse.publish(target, "day", files, fingerprints_when_staged=since, publication=publication)
    places = {(dataset, table.rstrip("0123456789abcdef")) for dataset, table in double.tables}
    assert places == {("marts-prod.nba", "factors"), ("backfill", "publications"), ("backfill", "staged_")}
    assert set(double.datasets) == {"backfill", "marts-prod.nba"}
    (script, *_) = [request for request in double.log if request.job.startswith("backfill-publish")]
    assert "INSERT INTO `marts-prod.nba.factors`" in script.statement
    assert script.params["target"] == "marts-prod.nba.factors"
    assert warehouse.matching_dates(target, "day", {file.day: file.checksum for file in files}) == frozenset(DAYS)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("doing", WITH_A_COLUMN)
def test_a_column_by_no_plain_name_is_refused_before_any_request(double: RestDouble, doing: str, name: str) -> None:
    with pytest.raises(UserError):
        WITH_A_COLUMN[doing](opened(double), name)
    assert double.log == []


ACCOUNT = "loader@some-project.iam.gserviceaccount.com"


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("bigquery://", id="no-project"),
        pytest.param("bigquery://P`; DROP", id="project-sql"),
        pytest.param("bigquery://UPPER-CASE", id="project-upper-case"),
        pytest.param("bigquery://test-project/more", id="path"),
        pytest.param("bigquery://user@test-project", id="user"),
        pytest.param("bigquery://test-project:443", id="port"),
        pytest.param("bigquery://test-project?location=U S", id="location"),
        pytest.param("bigquery://test-project?location=../x", id="location-path"),
        pytest.param("bigquery://test-project?dataset=a.b", id="dataset"),
        pytest.param("bigquery://test-project?dataset=x`", id="dataset-sql"),
        pytest.param("bigquery://test-project?datset=x", id="unknown-option"),
        pytest.param("bigquery://test-project?dataset", id="option-without-a-value"),
        pytest.param("bigquery://test-project?endpoint=file:///x", id="endpoint"),
        pytest.param("bigquery://test-project#x", id="fragment"),
        pytest.param("bq://test-project", id="scheme"),
        pytest.param("bigquery://test-project?impersonate=somebody@example.com", id="impersonate-a-person"),
        pytest.param(f"bigquery://test-project?impersonate={ACCOUNT}%0a", id="impersonate-line-end"),
        pytest.param("bigquery://test-project?impersonate=", id="impersonate-nobody"),
        pytest.param("bigquery://test-project?quota_project=Some Project", id="quota-project"),
        pytest.param("bigquery://test-project?priority=high", id="priority"),
        pytest.param("bigquery://test-project?priority=BATCH", id="priority-upper-case"),
        pytest.param("bigquery://test-project?reservation=nightly", id="reservation-name-only"),
        pytest.param("bigquery://test-project?endpoint=http://x&quota_project=other-project", id="quota-of-emulator"),
        pytest.param(f"bigquery://test-project?endpoint=http://x&impersonate={ACCOUNT}", id="account-of-emulator"),
        pytest.param("bigquery://[", id="no-url"),
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UserError):
        BigQueryAddress.parse(url)


# -- scans --------------------------------------------------------------------------------------------------------


def days_from(start: date, count: int, step: int = 1) -> list[date]:
    return [start + timedelta(days=n * step) for n in range(count)]


def test_ten_years_are_counted_by_one_grouped_query(rest_warehouse: BigQueryWarehouse, double: RestDouble) -> None:
    rest_warehouse.create_table(TRUTH, TYPES, "day")
    days = days_from(FEB_23, 3650)
    count_range(rest_warehouse, JOB, [], days)
    (sent,) = double.calls("jobs.query")
    assert "GROUP BY e.day" in sent.statement
    assert "WHERE (`day` BETWEEN @expectation__start_0 AND @expectation__through_0)" in sent.statement
    assert sent.params == {"expectation__start_0": days[0], "expectation__through_0": days[-1]}


def test_a_plan_has_a_cost_before_its_target_exists(rest_warehouse: BigQueryWarehouse, double: RestDouble) -> None:
    rest_warehouse.create_table(TRUTH, TYPES, "day")
    steps = [planned.PlanStep(day=day, action=planned.PlanAction.BUILD, reason="", expected=1000) for day in DAYS]
    request = planned.RunRequest(job=JOB.name, days=tuple(DAYS))
    plan = planned.Plan(request=request, version="1", steps=tuple(steps), notes=())
    cost = estimate_cost(plan, JOB, rest_warehouse, dates_per_window=2, price_per_tib=5.0)
    assert cost is not None
    billed = (cost.preflight_bytes, cost.date_bytes, cost.publish_bytes, cost.window_bytes)
    # Planning counts the expectation of the dates, and of the dates around them. A date's task counts the expectation,
    # fingerprints it together with the source, which is in the same table, and reads its rows and the metadata. The
    # gate counts once, reads the metadata, and reads the new rows four times: a text, a date and a number each.
    assert billed == (2 * MIN_BILLED_BYTES, 4 * MIN_BILLED_BYTES, 4 * 1000 * (18 + 8 + 8), 2 * MIN_BILLED_BYTES)
    assert cost.run_bytes == 3 * (4 * MIN_BILLED_BYTES + 136_000) + 2 * 2 * MIN_BILLED_BYTES
    assert all(sent.body["configuration"]["dryRun"] for sent in double.calls("jobs.insert"))

    rest_warehouse.create_table(TABLE, TYPES, "day")
    double.dry_run_bytes = 5 * 10**9
    earlier = {FEB_23 - timedelta(days=n): "run-1" for n in range(1, 6)}
    plan = replace(plan, checkpointed_by=earlier)
    cost = estimate_cost(plan, JOB, rest_warehouse, dates_per_window=2, price_per_tib=5.0)
    assert cost is not None
    assert cost.publish_bytes == 4 * 10**9  # a date of the target has a fifth of what five have
    assert "3.7 GiB to publish each of 3 date(s)" in cost.describe()


@pytest.mark.parametrize(
    ("ranges", "bound"), [pytest.param(100, 200, id="written-out"), pytest.param(101, 3, id="one-array")]
)
def test_many_ranges_are_one_query_of_few_parameters(
    rest_warehouse: BigQueryWarehouse, double: RestDouble, ranges: int, bound: int
) -> None:
    rest_warehouse.create_table(TABLE, TYPES, "day")
    asked = [span(day, day + timedelta(days=1)) for day in days_from(FEB_23, ranges, step=3)]
    rest_warehouse.read(scan(*asked))
    (sent,) = double.calls("jobs.query")
    assert len(sent.params) == bound
    assert not rules.wraps_in_a_function(sent.statement, "day")
    if bound == 3:
        assert sent.params["t__days"] == [day for one in asked for day in one.days()]
        assert (sent.params["t__start"], sent.params["t__through"]) == (asked[0].start, asked[-1].through)


def test_a_scan_of_no_dates_is_one_that_bigquery_takes(rest_warehouse: BigQueryWarehouse, double: RestDouble) -> None:
    rest_warehouse.create_table(TABLE, TYPES, "day")
    assert rest_warehouse.read(scan()).num_rows == 0


# -- tables -------------------------------------------------------------------------------------------------------


def expires_in_days(table: Mapping[str, Any]) -> float:
    return (int(table["expirationTime"]) - time.time() * 1000) / DAY_MS


def test_a_table_is_partitioned_clustered_and_filtered(rest_warehouse: BigQueryWarehouse, double: RestDouble) -> None:
    assert rest_warehouse.create_table(TABLE, TYPES, "day", ["player", "score"])
    assert not rest_warehouse.create_table(TABLE, TYPES, "day", ["player", "score"])
    (sent,) = double.calls("tables.insert")
    assert sent.body["timePartitioning"] == {"type": "DAY", "field": "day"}
    assert sent.body["clustering"] == {"fields": ["player", "score"]}
    assert sent.body["requirePartitionFilter"] is True
    assert "expirationTime" not in sent.body


def test_tables_of_our_own_expire_by_themselves(double: RestDouble, staging: Staging) -> None:
    warehouse = opened(double, undo_days=17)
    of_all_kinds(warehouse, double, staging)
    own = {name: found for (dataset, name), found in double.tables.items() if dataset == "backfill"}
    temporary = [found for name, found in own.items() if name.startswith(("staged_", "load_"))]
    assert len(temporary) == 3
    assert all(0.9 < expires_in_days(found) < 1.1 for found in temporary)
    (kept,) = [found for name, found in own.items() if name.startswith("undo_run_2_")]
    assert 16.9 < expires_in_days(kept) < 17.1
    assert "expirationTime" not in own["publications"]
    assert not [one for one in (kept, own["publications"]) if "timePartitioning" in one]  # old dates' would expire
    assert 31.9 < expires_in_days(own["cleanup_op_1"]) < 32.1  # 30, and a little longer than the ledger knows it
    assert "timePartitioning" not in own["cleanup_op_1"]
    assert not [name for name in own if name.startswith("undo_run_1_")]  # it replaced nothing


def test_of_the_tables_of_our_own_only_the_history_is_loaded(rest_warehouse: BigQueryWarehouse) -> None:
    with pytest.raises(UserError, match="one of the tool's own tables"):
        rest_warehouse.load(TableName("backfill", "publications"), "day", rows_of(FEB_23))
    assert rest_warehouse.load(TableName("backfill", "backfill_metadata"), "day", rows_of(FEB_23)) == [FEB_23]


# -- windows ------------------------------------------------------------------------------------------------------


def kinds(double: RestDouble) -> Counter[str]:
    """How many jobs of each sort were sent, and how many uploads."""
    jobs = [one for one in double.log if one.call in ("jobs.insert", "jobs.upload") and one.job.startswith("backfill-")]
    return Counter(f"{one.call} {one.job.split('-')[1]}" for one in jobs)


def test_a_window_of_bytes_is_one_upload_and_one_script(double: RestDouble, staging: Staging) -> None:
    files = [staged(staging, day, players=4) for day in DAYS]
    assert publish(opened(double), files) == PublishResult(published=frozenset(DAYS))
    assert kinds(double) == {"jobs.upload load": 1, "jobs.insert publish": 1}
    ((_, data, _),) = [one.body for one in double.calls("jobs.upload.put")]
    assert pq.read_table(io.BytesIO(data)).num_rows == 12


def test_a_window_in_buckets_is_one_load_of_all_uris_and_no_upload(double: RestDouble, bucket_staging: Staging) -> None:
    files = [staged(bucket_staging, day, players=4) for day in DAYS]
    assert publish(opened(double), files) == PublishResult(published=frozenset(DAYS))
    assert kinds(double) == {"jobs.insert load": 1, "jobs.insert publish": 1}
    (sent,) = double.calls("jobs.insert", job="backfill-load-")
    load = sent.body["configuration"]["load"]
    assert load["sourceUris"] == [file.location for file in files]
    assert (load["sourceFormat"], load["writeDisposition"]) == ("PARQUET", "WRITE_TRUNCATE")


def test_a_window_that_was_recounted_is_not_loaded_again(
    rest_warehouse: BigQueryWarehouse, double: RestDouble, staging: Staging
) -> None:
    rest_warehouse.create_table(TRUTH, TYPES, "day")
    files = [staged(staging, day) for day in DAYS]
    match(rest_warehouse, JOB, files)
    assert publish(rest_warehouse, files[:2]).published == set(DAYS[:2])
    assert kinds(double) == {"jobs.upload load": 1, "jobs.insert publish": 1}


TOO_MANY = days_from(date(2013, 1, 1), 4001)


@pytest.mark.parametrize(
    "doing",
    [
        pytest.param(lambda w: publish(w, [replace(FILE, day=day) for day in TOO_MANY]), id="publish"),
        pytest.param(lambda w: w.load(TABLE, "day", rows_of(*TOO_MANY, players=1)), id="load"),
        pytest.param(
            lambda w: w.restore(TABLE, "day", "run-1", dict.fromkeys(TOO_MANY, REPLACED[FEB_23]), generation=1),
            id="restore",
        ),
    ],
)
def test_too_many_partitions_for_one_job_are_refused(double: RestDouble, doing: Callable[..., object]) -> None:
    with pytest.raises(UserError, match="4001 dates"):
        doing(opened(double))
    assert double.log == []


# -- the double itself --------------------------------------------------------------------------------------------


ONE = {"name": "x", "parameterType": {"type": "INT64"}, "parameterValue": {"value": "1"}}


def query_body(**changed: Any) -> dict[str, Any]:
    query: dict[str, Any] = {"query": "SELECT 1", "useLegacySql": False} | changed
    return {"jobReference": {"projectId": PROJECT, "jobId": "j"}, "configuration": {"query": query}}


def load_body(**changed: Any) -> dict[str, Any]:
    place = {"projectId": PROJECT, "datasetId": "nba", "tableId": "t"}
    schema = {"fields": [{"name": "day", "type": "DATE"}]}
    load = {"destinationTable": place, "schema": schema, "sourceFormat": "PARQUET", "sourceUris": ["gs://b/k"]}
    given = {k: v for k, v in (load | changed).items() if v is not None}
    return {"jobReference": {"projectId": PROJECT, "jobId": "j"}, "configuration": {"load": given}}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        pytest.param("GET", "projects/test-project/models", None, id="another-route"),
        pytest.param("PATCH", "projects/test-project/datasets/nba", {}, id="another-method"),
        pytest.param("POST", "projects/another/jobs", query_body(), id="another-project"),
        pytest.param("POST", "jobs", query_body(useLegacySql=True), id="legacy-sql"),
        pytest.param("POST", "jobs", query_body(useLegacySql=None), id="no-dialect"),
        pytest.param("POST", "jobs", query_body(maxBytesBilled="1"), id="unknown-key"),
        pytest.param("POST", "jobs", query_body(query="SELECT @x"), id="unbound-parameter"),
        pytest.param("POST", "jobs", query_body(query="SELECT @x", queryParameters=[ONE]), id="no-parameter-mode"),
        pytest.param("POST", "jobs", load_body(schema=None), id="load-without-schema"),
        pytest.param("POST", "jobs", load_body(sourceFormat=None), id="load-without-format"),
        pytest.param("POST", "jobs", load_body(sourceUris=None), id="load-of-nothing"),
        pytest.param("POST", "jobs", load_body(sourceUris=["/file"]), id="load-of-a-file"),
        pytest.param("POST", "jobs", load_body(format="PARQUET"), id="load-with-unknown-key"),
    ],
)
def test_the_double_refuses_what_the_reference_lacks(double: RestDouble, method: str, path: str, body: Any) -> None:
    place = path if path.startswith("projects/") else f"projects/{PROJECT}/{path}"
    data = None if body is None else json.dumps(body)
    with pytest.raises((AssertionError, KeyError)):
        double.request(method, f"{HOST}/bigquery/v2/{place}", data, {"Content-Type": "application/json"})
    assert not double.jobs


def test_the_double_takes_an_upload_in_parts(double: RestDouble) -> None:
    opened(double).create_table(TABLE, TYPES, "day")
    client = bigquery.Client(project=PROJECT, _http=double, credentials=AnonymousCredentials())
    config = bigquery.LoadJobConfig(
        source_format="PARQUET", schema=[bigquery.SchemaField(name, kind) for name, kind in TYPES.items()]
    )
    data = parquet_bytes(rows_of(*DAYS))
    file = io.BytesIO(data)
    load = partial(client.load_table_from_file, file, "nba.factors", rewind=True, size=len(data), job_config=config)
    job = load()
    assert job.result().state == "DONE"
    assert client.get_table("nba.factors").num_rows == 9
    with pytest.raises(Conflict):
        load(job_id=job.job_id)


@pytest.mark.parametrize(
    ("sql", "unfiltered"),
    [
        pytest.param("SELECT * FROM `p.d.t` WHERE `day` BETWEEN @a AND @b", False, id="between"),
        pytest.param("SELECT * FROM `p.d.t` WHERE `day` IN UNNEST(@days)", False, id="in-an-array"),
        pytest.param("SELECT * FROM `p.d.t`", True, id="no-filter"),
        pytest.param("SELECT * FROM `p.d.t` WHERE FALSE", True, id="false"),
        pytest.param("SELECT * FROM `p.d.t` WHERE CAST(`day` AS STRING) IN UNNEST(@days)", True, id="cast"),
        pytest.param("SELECT * FROM `p.d.t` WHERE `day` IN (SELECT day FROM x)", True, id="subquery"),
        pytest.param("DELETE FROM `p.d.t` WHERE TRUE", True, id="delete"),
        pytest.param("INSERT INTO `p.d.t` (x) SELECT x FROM y", False, id="insert"),
    ],
)
def test_the_double_knows_a_filter_that_prunes_partitions(sql: str, unfiltered: bool) -> None:
    assert rules.unfiltered(sql, "t", "day") is unfiltered


def test_the_double_knows_a_column_in_a_function() -> None:
    assert rules.wraps_in_a_function("SELECT 1 FROM t WHERE DATE_ADD(day, INTERVAL 1 DAY) BETWEEN @a AND @b", "day")
    assert rules.wraps_in_a_function("SELECT 1 FROM t WHERE x = 1 AND CAST(day AS STRING) = @a", "day")
    assert not rules.wraps_in_a_function("SELECT MIN(day) FROM t WHERE (day BETWEEN @a AND @b) OR day = @c", "day")
