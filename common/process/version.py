"""The version of this tool."""

from __future__ import annotations

from functools import cache

DISTRIBUTION = "gated-backfill"


@cache
def tool_version() -> str:
    """Return the version of the installed distribution; `unknown` in a checkout that is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # its import takes longer than most commands' work

    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"
