"""Where source and target tables live."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError
from common.warehouse.base import Warehouse


def open_warehouse(url: str, *, threads: int = 1) -> Warehouse:
    """The warehouse at `local:DIR`. Raises `UserError` for any other kind of URL."""
    kind, _, rest = url.partition(":")
    if kind == "local" and rest:
        from common.warehouse.local import LocalWarehouse

        return LocalWarehouse(Path(rest), threads=threads)
    raise UserError(f"BACKFILL_WAREHOUSE is {url!r}: write it as local:DIR")
