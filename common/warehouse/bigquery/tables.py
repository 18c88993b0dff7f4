"""Tables of a BigQuery warehouse: their descriptions, names and creation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from google.api_core.exceptions import Conflict, NotFound, PreconditionFailed
from google.api_core.retry import Retry, if_exception_type
from google.cloud import bigquery

from gated_backfill.common.errors import TableNotFound
from gated_backfill.common.model.tables import ColumnTypes, TableName, validate_identifier
from gated_backfill.common.warehouse.bigquery.client import BigQueryConnection, translate_bigquery_errors
from gated_backfill.common.warehouse.bigquery.schema import check_column_names, table_info
from gated_backfill.common.warehouse.bigquery.statements import (
    Partitions,
    QuotedSql,
    full_name,
    quoted_column,
    quoted_columns,
    quoted_partitions_view,
    quoted_table,
)
from gated_backfill.common.warehouse.protocol import TableInfo, missing_columns

DESCRIPTION_CACHE_SECONDS = 30.0
CREATE_PERMISSIONS = "bigquery.datasets.create, bigquery.tables.create"


@dataclass(frozen=True, kw_only=True)
class TableDescription:
    """A table as it was when it was last looked at."""

    read_at: float  #: by this machine's monotonic clock
    remote: bigquery.Table
    info: TableInfo


class BigQueryTables:
    """Describes, names and creates the tables of one project. What exists is cached for a short time."""

    def __init__(self, jobs: BigQueryConnection) -> None:
        self._jobs = jobs
        self._project = jobs.address.project
        self.own_dataset = jobs.address.dataset  #: of the bookkeeping tables
        self._descriptions: dict[TableName, TableDescription] = {}
        self._datasets: dict[bigquery.DatasetReference, float] = {}  #: when they were last seen to exist

    # -- descriptions ---------------------------------------------------------------------------------------

    def describe(self, table: TableName) -> TableInfo | None:
        """Describe the table; None when it does not exist."""
        description = self.describe_remote(table)
        return None if description is None else description.info

    def describe_remote(self, table: TableName) -> TableDescription | None:
        """Describe the table with all that BigQuery says of it; None when it does not exist."""
        cached = self._descriptions.get(table)
        if cached is not None and time.monotonic() - cached.read_at < DESCRIPTION_CACHE_SECONDS:
            return cached
        with translate_bigquery_errors("looking at the table", table=str(table), needs="bigquery.tables.get"):
            try:
                remote = self.get(table)
            except NotFound:
                self._descriptions.pop(table, None)
                return None
        description = TableDescription(read_at=time.monotonic(), remote=remote, info=table_info(table, remote))
        self._descriptions[table] = description
        return description

    def require(self, table: TableName) -> TableInfo:
        """Describe the table. Raises `TableNotFound` when it does not exist."""
        info = self.describe(table)
        if info is None:
            raise TableNotFound("no such table in the warehouse", table=str(table))
        return info

    def describe_uncached(self, table: TableName) -> TableInfo | None:
        """Describe the table as it is now; None when it does not exist."""
        self._descriptions.pop(table, None)
        return self.describe(table)

    def require_uncached(self, table: TableName) -> TableInfo:
        """Describe the table as it is now. Raises `TableNotFound` when it does not exist."""
        self._descriptions.pop(table, None)
        return self.require(table)

    def forget_descriptions(self) -> None:
        self._descriptions.clear()
        self._datasets.clear()

    def get(self, table: TableName) -> bigquery.Table:
        """Get the table as it is now. Raises the client's errors."""
        return self._jobs.client.get_table(self.reference(table), **self._jobs.deadline)

    # -- names ----------------------------------------------------------------------------------------------

    def list_own(self, start: str) -> list[str]:
        """List the bookkeeping tables whose names begin so."""
        with translate_bigquery_errors("listing the tool's own tables", needs="bigquery.tables.list"):
            try:
                tables = list(self._jobs.client.list_tables(self.own_dataset, **self._jobs.deadline))
            except NotFound:
                return []
        return [table.table_id for table in tables if table.table_id.startswith(start)]

    def own(self, name: str) -> TableName:
        """Return the name of a bookkeeping table."""
        return TableName(self.own_dataset, validate_identifier(name, "table name"))

    def is_own(self, table: TableName) -> bool:
        """Whether the table is in the dataset of the bookkeeping tables."""
        return table.dataset == self.own_dataset and not table.project

    def reference(self, table: TableName) -> bigquery.TableReference:
        return bigquery.TableReference.from_string(full_name(self._project, table))

    def _name_of(self, definition: bigquery.Table) -> TableName:
        project = "" if definition.project == self._project else definition.project
        return TableName(definition.dataset_id, definition.table_id, project)

    def quoted(self, table: TableName) -> QuotedSql:
        return quoted_table(self._project, table)

    def quoted_partitions_view(self, table: TableName) -> QuotedSql:
        """Return the view with what BigQuery knows of the partitions of the table's dataset."""
        return quoted_partitions_view(self._project, table)

    def partitions(self, table: TableName, date_column: str, columns: Iterable[str]) -> Partitions:
        """Return the names that statements on the table's partitions need."""
        return Partitions(
            table=self.quoted(table), date=quoted_column(date_column), columns=quoted_columns(sorted(columns))
        )

    # -- creation -------------------------------------------------------------------------------------------

    def define(self, table: TableName, columns: Mapping[str, str]) -> bigquery.Table:
        return bigquery.Table(self.reference(table), schema=[bigquery.SchemaField(n, t) for n, t in columns.items()])

    def create(self, definition: bigquery.Table) -> bool:
        """Create the table unless it exists; return whether it was created."""
        name = self._name_of(definition)
        self._descriptions.pop(name, None)
        with (
            translate_bigquery_errors("creating the table", table=str(name), needs=CREATE_PERMISSIONS),
            suppress(Conflict),
        ):
            self._jobs.client.create_table(definition, **self._jobs.deadline)
            return True
        return False

    def create_partitioned(
        self, table: TableName, columns: Mapping[str, str], date_column: str, cluster_by: Sequence[str] = ()
    ) -> bool:
        """Create the table with one partition per date, unless it exists; return whether it was created.

        A description after that is of the table as it is now.
        """
        check_column_names(date_column, *columns, *cluster_by)
        self._descriptions.pop(table, None)  # another program may have dropped it meanwhile
        if self.describe(table) is not None:
            return False
        reference = self.reference(table)
        self._create_dataset(bigquery.DatasetReference(reference.project, reference.dataset_id))
        definition = self.define(table, columns)
        definition.time_partitioning = bigquery.TimePartitioning(field=date_column)
        definition.require_partition_filter = True
        if cluster_by:
            definition.clustering_fields = list(cluster_by)[:4]
        self.create(definition)
        return True

    def add_columns(self, table: TableName, columns: ColumnTypes) -> None:
        """Add nullable columns to the table, unless it has them. Raises `TableNotFound`, `SchemaMismatch`."""
        check_column_names(*columns)
        if not missing_columns(self.require_uncached(table), columns):
            return

        def add_missing(definition: bigquery.Table) -> bool:
            present = {field.name for field in definition.schema}
            new = [bigquery.SchemaField(name, kind) for name, kind in columns.items() if name not in present]
            definition.schema = [*definition.schema, *new]
            return bool(new)

        with translate_bigquery_errors("adding columns", table=str(table), needs="bigquery.tables.update"):
            self._update(table, "schema", add_missing)

    def postpone_expiration(self, table: TableName, until: datetime, *, slack: timedelta) -> None:
        """Postpone the expiration to `until + slack`.

        Do nothing if the table expires at `until` or later, or never.
        """

        def postpone(definition: bigquery.Table) -> bool:
            expires_before = definition.expires is not None and definition.expires < until
            if expires_before:
                definition.expires = until + slack
            return expires_before

        with translate_bigquery_errors(
            "extending the expiration of the table", table=str(table), needs="bigquery.tables.update"
        ):
            self._update(table, "expires", postpone)

    def restart_lifetime(self, table: TableName, now: datetime, *, slack: timedelta) -> None:
        """Restart the table's lifetime, from its creation to its expiration, at `now`.

        Do nothing if the table is not older than `slack`, or never expires.
        """

        def restart(definition: bigquery.Table) -> bool:
            created, expires = definition.created, definition.expires
            if created is None or expires is None or now - created <= slack:
                return False
            definition.expires = now + (expires - created)
            return True

        with translate_bigquery_errors(
            "extending the expiration of the table", table=str(table), needs="bigquery.tables.update"
        ):
            self._update(table, "expires", restart)

    def _update(self, table: TableName, field: str, change: Callable[[bigquery.Table], bool]) -> None:
        """Make the change to a field of the table's definition, again if another process changed the table meanwhile.

        `change` returns whether there is anything to change. Raises the client's errors.
        """

        def read_and_change() -> None:
            definition = self.get(table)
            if change(definition):
                self._jobs.client.update_table(definition, [field], **self._jobs.deadline)

        seconds = self._jobs.limits.retry_seconds
        Retry(if_exception_type(PreconditionFailed), timeout=seconds)(read_and_change)()
        self._descriptions.pop(table, None)

    def drop(self, table: TableName) -> None:
        """Delete the table if it exists. Raises the client's errors."""
        self._descriptions.pop(table, None)
        self._jobs.client.delete_table(self.reference(table), not_found_ok=True, **self._jobs.deadline)

    def create_own_dataset(self) -> None:
        validate_identifier(self.own_dataset, "dataset name")
        self._create_dataset(bigquery.DatasetReference(self._project, self.own_dataset))

    def _create_dataset(self, dataset: bigquery.DatasetReference) -> None:
        if time.monotonic() - self._datasets.get(dataset, -DESCRIPTION_CACHE_SECONDS) < DESCRIPTION_CACHE_SECONDS:
            return
        definition = bigquery.Dataset(dataset)
        definition.location = self._jobs.address.location
        with translate_bigquery_errors("creating the dataset", table=dataset.dataset_id, needs=CREATE_PERMISSIONS):
            try:
                self._jobs.client.get_dataset(dataset, **self._jobs.deadline)
            except NotFound:
                with suppress(Conflict):
                    self._jobs.client.create_dataset(definition, **self._jobs.deadline)
        self._datasets[dataset] = time.monotonic()
