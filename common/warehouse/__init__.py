"""Where source and target tables live."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError
from common.warehouse.base import Limits, Warehouse

LOCAL = "local:"


def is_local(url: str) -> bool:
    """Whether the URL names a folder of Parquet files."""
    return url.startswith(LOCAL)


def open_warehouse(url: str, *, limits: Limits | None = None) -> Warehouse:
    """The warehouse at `local:DIR` or `bigquery://PROJECT`. Raises `UserError` for any other URL."""
    kind, _, rest = url.partition(":")
    if kind == "local" and rest:
        from common.warehouse.local import LocalWarehouse

        return LocalWarehouse(Path(rest), limits=limits)
    if kind == "bigquery":
        from common.warehouse.bigquery import BigQueryWarehouse
        from common.warehouse.bigquery_client import Address

        return BigQueryWarehouse(Address.parse(url), limits)
    raise UserError(f"BACKFILL_WAREHOUSE is {url!r}: write it as local:DIR or bigquery://PROJECT")
