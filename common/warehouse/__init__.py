"""Where source and target tables live."""

from __future__ import annotations

from pathlib import Path

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.publication import WarehouseLimits
from gated_backfill.common.warehouse.protocol import Warehouse


def open_warehouse(url: str, *, limits: WarehouseLimits | None = None) -> Warehouse:
    """The warehouse at `local:DIR` or `bigquery://PROJECT`. Raises `UserError` for any other URL."""
    kind, _, rest = url.partition(":")
    if kind == "local" and rest:
        from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse

        return LocalWarehouse(Path(rest), limits=limits)
    if kind == "bigquery":
        from gated_backfill.common.warehouse.bigquery.client import BigQueryAddress
        from gated_backfill.common.warehouse.bigquery.warehouse import BigQueryWarehouse

        return BigQueryWarehouse(BigQueryAddress.parse(url), limits)
    raise UserError(f"BACKFILL_WAREHOUSE is {url!r}: write it as local:DIR or bigquery://PROJECT")
