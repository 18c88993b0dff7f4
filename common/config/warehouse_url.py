"""Where the warehouse is."""

from __future__ import annotations

LOCAL = "local:"


def is_local(url: str) -> bool:
    """Whether the URL names a folder of Parquet files."""
    return url.startswith(LOCAL)
