"""Quick fingerprints of partitions: BigQuery's metadata about them, for the smallest price of a query.

They prove that a partition is unchanged only where nothing can change its rows unseen. About other tables, and where
the metadata cannot be read, nothing is told: the rows must be read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, LiteralString

import structlog
from google.api_core.exceptions import MethodNotImplemented, NotFound
from google.cloud import bigquery

from gated_backfill.common.errors import NotAllowed
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.warehouse.bigquery.client import BigQueryConnection, translate_bigquery_errors
from gated_backfill.common.warehouse.bigquery.statements import fill_placeholders
from gated_backfill.common.warehouse.bigquery.tables import BigQueryTables, TableDescription
from gated_backfill.common.warehouse.protocol import ABSENT

METADATA_PERMISSIONS = "bigquery.tables.get, bigquery.tables.list, bigquery.rowAccessPolicies.list"
DAILY_TYPES = ("DATE", "DATETIME")  #: of partition columns; the days of a TIMESTAMP are those of a time zone
NOT_YET_PARTITIONED = "__UNPARTITIONED__"  #: the partition of rows that are being streamed into the table
FINGERPRINT_LENGTH = 32  #: hexadecimal digits
EXPIRY_MARGIN = timedelta(days=1)  #: before a partition's expiration, for clocks that differ and late metadata

#: What BigQuery knows of the partitions. Parameters: table, first_id, last_id, not_yet_partitioned.
PARTITIONS: LiteralString = """
    SELECT
        partition_id,
        SUM(total_rows) AS row_count,
        SUM(total_logical_bytes) AS byte_count,
        MAX(last_modified_time) AS modified_at
    FROM {partitions}
    WHERE table_name = @table
        AND (partition_id BETWEEN @first_id AND @last_id OR partition_id = @not_yet_partitioned)
    GROUP BY partition_id
"""

log = structlog.get_logger()


class PartitionMetadata:
    """Reads what BigQuery knows of partitions without reading their rows."""

    def __init__(self, jobs: BigQueryConnection, tables: BigQueryTables) -> None:
        self._jobs = jobs
        self._tables = tables
        self._policies: dict[str, tuple[float, bool]] = {}  #: by table, when it was described and whether it has some

    def quick_fingerprints(self, table: TableName, date_column: str, days: Collection[date]) -> dict[date, str]:
        """See `Warehouse.quick_fingerprints`."""
        if not days:
            return {}
        description = self._tables.describe_remote(table)
        if description is None:
            return dict.fromkeys(days, ABSENT)
        if not is_partitioned_by_day(description.remote, date_column):
            return {}
        try:
            with translate_bigquery_errors("looking at partitions", table=str(table), needs=METADATA_PERMISSIONS):
                return {} if self._may_hide_rows(description) else self._of_partitions(description.remote, table, days)
        except NotAllowed as exc:
            log.info("quick_fingerprints_not_allowed", table=str(table), error=str(exc))
            return {}

    def _may_hide_rows(self, description: TableDescription) -> bool:
        """Whether the table has row access policies: a change of one changes what is read, and no partition."""
        path = description.remote.path
        known = self._policies.get(path)
        if known is None or known[0] != description.read_at:  # looked at as often as the table
            known = self._policies[path] = (description.read_at, self._has_policies(path))
        return known[1]

    def _has_policies(self, path: str) -> bool:
        try:
            return bool(self._jobs.get_resource(f"{path}/rowAccessPolicies").get("rowAccessPolicies"))
        except (NotFound, MethodNotImplemented):
            if self._jobs.address.endpoint is None:
                raise
            return False  # an emulator may not know policies

    def _of_partitions(self, remote: bigquery.Table, table: TableName, days: Collection[date]) -> dict[date, str]:
        statement = fill_placeholders(PARTITIONS, partitions=self._tables.quoted_partitions_view(table))
        params = {
            "table": table.table,
            "first_id": partition_id(min(days)),
            "last_id": partition_id(max(days)),
            "not_yet_partitioned": NOT_YET_PARTITIONED,
        }
        found = {row["partition_id"]: row for row in self._jobs.query(statement, params).to_pylist()}
        streamed = found.get(NOT_YET_PARTITIONED)
        if streamed is not None and streamed["row_count"] != 0:
            return {}
        last_expired = _last_expired_day(remote)
        fields = [json.dumps(field.to_api_repr(), sort_keys=True) for field in remote.schema]
        definition = [_milliseconds(remote.created), *fields]
        return {
            day: _hash(*definition, *facts)
            for day in days
            if (facts := _facts(found.get(partition_id(day)))) and (last_expired is None or day > last_expired)
        }


def is_partitioned_by_day(remote: bigquery.Table, date_column: str) -> bool:
    """Whether the rows of each date are those of one partition, and all changes of them are changes of it.

    Views and external tables have no partitions of their own, rows in the streaming buffer are in none yet, and a table
    with a staleness may be read as it was earlier.
    """
    partitioning = remote.time_partitioning
    types = {field.name: field.field_type for field in remote.schema}
    return (
        remote.table_type == "TABLE"
        and partitioning is not None
        and partitioning.type_ == bigquery.TimePartitioningType.DAY
        and partitioning.field == date_column
        and types.get(date_column) in DAILY_TYPES
        and remote.streaming_buffer is None
        and remote.max_staleness is None
        and remote.created is not None
    )


def partition_id(day: date) -> str:
    return f"{day:%Y%m%d}"


def _last_expired_day(remote: bigquery.Table) -> date | None:
    """The last day whose partition has expired or soon will; None for a table that keeps all partitions."""
    partitioning = remote.time_partitioning
    if partitioning is None or partitioning.expiration_ms is None:
        return None
    return (utcnow() + EXPIRY_MARGIN - timedelta(milliseconds=int(partitioning.expiration_ms))).date()


def _facts(row: Mapping[str, Any] | None) -> list[str]:
    """What is known of a partition: that there is none is a fact, too. Empty if too little is known."""
    if row is None:
        return [ABSENT]
    if row["modified_at"] is None:
        return []
    return [str(row["row_count"]), str(row["byte_count"]), row["modified_at"].astimezone(UTC).isoformat()]


def _milliseconds(moment: datetime | None) -> str:
    return "" if moment is None else str(round(moment.timestamp() * 1000))


def _hash(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:FINGERPRINT_LENGTH]
