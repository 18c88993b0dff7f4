"""A project of yours, two datasets of the suite's own in it, and nothing else touched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from uuid import uuid4

import pytest
from google.cloud import bigquery

from gated_backfill.common.model.publication import WarehouseLimits
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.bigquery.address import BigQueryAddress
from gated_backfill.common.warehouse.bigquery.client import BigQueryConnection
from gated_backfill.common.warehouse.bigquery.warehouse import BigQueryWarehouse

LIMITS = WarehouseLimits(max_bytes_billed=1024**3, undo_days=1)


@pytest.fixture(scope="session")
def address() -> BigQueryAddress:
    """Where the suite works: `TEST_BIGQUERY` with a dataset of its own."""
    asked = BigQueryAddress.parse(os.environ["TEST_BIGQUERY"])
    return BigQueryAddress(
        project=asked.project,
        location=asked.location,
        dataset=f"backfill_test_own_{uuid4().hex[:8]}",
        endpoint=asked.endpoint,
    )


@pytest.fixture(scope="session")
def client(address: BigQueryAddress) -> bigquery.Client:
    return BigQueryConnection(address, LIMITS).client


@pytest.fixture(scope="session")
def dataset(address: BigQueryAddress, client: bigquery.Client) -> Iterator[str]:
    """A dataset for the suite's tables; it and the tool's own are removed at the end."""
    name = f"backfill_test_{uuid4().hex[:8]}"
    made = bigquery.Dataset(f"{address.project}.{name}")
    made.location = address.location
    made.default_table_expiration_ms = 24 * 3600 * 1000
    client.create_dataset(made)
    yield name
    for one in (name, address.dataset):
        client.delete_dataset(f"{address.project}.{one}", delete_contents=True, not_found_ok=True)


@pytest.fixture
def table(dataset: str) -> TableName:
    """A name that no table has yet."""
    return TableName(dataset, f"t_{uuid4().hex[:8]}")


@pytest.fixture
def real_warehouse(address: BigQueryAddress, dataset: str) -> BigQueryWarehouse:
    return BigQueryWarehouse(address, LIMITS)
