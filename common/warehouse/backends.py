"""The backends of the warehouse, opened by URL."""

from __future__ import annotations

from importlib import import_module

from gated_backfill.common.config.warehouse_url import WarehouseUrl
from gated_backfill.common.errors import UserError
from gated_backfill.common.model.publication import WarehouseLimits
from gated_backfill.common.warehouse.protocol import Warehouse


def open_warehouse(url: str, *, limits: WarehouseLimits | None = None) -> Warehouse:
    """Open the warehouse at `local:DIR` or `bigquery://PROJECT`. Raises `UserError` for any other URL."""
    if (folder := WarehouseUrl(url).folder) is not None:
        from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse

        return LocalWarehouse(folder, limits=limits)
    if url.partition(":")[0] == "bigquery":
        from gated_backfill.common.warehouse.bigquery.address import BigQueryAddress
        from gated_backfill.common.warehouse.bigquery.warehouse import BigQueryWarehouse

        return BigQueryWarehouse(BigQueryAddress.parse(url), limits)
    raise UserError(f"BACKFILL_WAREHOUSE is {url!r}: write it as local:DIR or bigquery://PROJECT")


def preload_warehouse(url: WarehouseUrl) -> None:
    """Import the modules that read and publish files, so that the processes a worker forks share them."""
    if url.folder is not None:
        import_module("gated_backfill.common.warehouse.local.warehouse")
        import_module("gated_backfill.common.warehouse.local.query")
