"""A warehouse whose calls are limited by a token bucket."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from itertools import count
from typing import Any, cast

from gated_backfill.common.model.scheduling.limits import RateLimit
from gated_backfill.common.warehouse.protocol import QueryFiles, QueryStaging, Warehouse

_is_repeated: ContextVar[bool] = ContextVar("is_repeated", default=False)  #: a read that has taken its tokens

#: The tokens of each call, about its number of jobs in BigQuery. A publication reads the target, loads staged rows,
#: replaces partitions, and reads their metadata and their rows.
TOKENS_BY_CALL: Mapping[str, int] = {
    "query": 1,
    "query_in_order": 1,
    "count_entities": 1,
    "read_entities": 1,
    "count_rows": 1,
    "read": 1,
    "estimate_bytes": 1,
    "fingerprints": 1,
    "column_fingerprints": 1,
    "quick_fingerprints": 1,
    "matching_dates": 1,
    "find_publications": 1,
    "now": 1,
    "find_slow_reads": 1,
    "check_host": 1,
    "publish": 5,
    "raise_fence": 1,
    "replaced_partitions": 1,
    "check_restorable": 1,
    "restore": 3,
    "list_kept": 1,
    "check_kept_restorable": 1,
    "restore_kept": 3,
    "load": 2,
    "row_counts": 1,
    "list_dates": 1,
    "back_up": 1,
    "read_backup": 1,
    "delete_backed_up": 2,
    "deleted_at": 1,
    "restored_days": 1,
    "restore_backup": 2,
    "stage_query": 2,
    "read_staged_contents": 1,
    "writable_query": 1,
}
#: Calls that run no job, and attributes: cached descriptions of tables, creating and dropping tables.
CALLS_WITHOUT_TOKENS = frozenset(
    {
        "bills_reads",
        "max_dates_per_publication",
        "publications_conflict",
        "max_rows_per_count",
        "query_staging",
        "query_files",
        "is_big",
        "together",
        "describe",
        "create_table",
        "refresh_schema",
        "add_columns",
        "create_own_tables",
        "check_publishable",
        "check_loadable",
        "delete_expired_undo",
        "backup_location",
        "list_backup_ids",
        "find_backup",
        "drop_backup",
        "keep_staged",
    }
)


def rate_limited(warehouse: Warehouse, acquire: Callable[[], None]) -> Warehouse:
    """Wrap the warehouse so that each call first acquires its tokens."""
    return cast("Warehouse", _RateLimited(warehouse, acquire))


def limit_rate(warehouse: Warehouse, rate: RateLimit | None, *, broker: str | None = None) -> Warehouse:
    """Limit the warehouse's calls to the rate, shared through the broker, or for this process without a broker."""
    if rate is None:
        return warehouse
    from gated_backfill.common.broker.rate_limit import (  # imports the broker's client
        BrokerTokenBucket,
        ProcessTokenBucket,
    )

    return rate_limited(warehouse, (BrokerTokenBucket(broker, rate) if broker else ProcessTokenBucket(rate)).acquire)


class _RateLimited:
    """Acquires tokens, then forwards the call."""

    def __init__(self, warehouse: Warehouse | QueryStaging | QueryFiles, acquire: Callable[[], None]) -> None:
        self._warehouse = warehouse
        self._acquire = acquire

    def __repr__(self) -> str:
        return f"rate_limited({self._warehouse!r})"

    def together(self, *reads: Callable[[], Any]) -> list[Any]:
        """Run the reads together: each takes its tokens when it is called first, and none when it is called again."""
        return cast("Warehouse", self._warehouse).together(*map(_taking_tokens_once, reads))

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._warehouse, name)
        if name in ("query_staging", "query_files"):
            return None if call is None else _RateLimited(call, self._acquire)
        tokens = TOKENS_BY_CALL.get(name, 0)
        if not tokens:
            return call

        def with_tokens(*args: Any, **kwargs: Any) -> Any:
            for _ in range(0 if _is_repeated.get() else tokens):
                self._acquire()
            return call(*args, **kwargs)

        return with_tokens


def _taking_tokens_once(read: Callable[[], Any]) -> Callable[[], Any]:
    """Return the read, whose calls but the first take no tokens: a warehouse may repeat it to ask for fewer jobs."""
    calls = count()

    def once() -> Any:
        if next(calls) == 0:
            return read()
        token = _is_repeated.set(True)
        try:
            return read()
        finally:
            _is_repeated.reset(token)

    return once
