"""A warehouse that is asked no faster than a token bucket allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from gated_backfill.common.model.rate import RateLimit
from gated_backfill.common.warehouse.protocol import Warehouse

#: The tokens that a call takes: about as many as it has jobs in BigQuery. A publication looks at the target, loads what
#: is staged, replaces the partitions, and looks again.
TOKENS_BY_CALL: Mapping[str, int] = {
    "query": 1,
    "count_entities": 1,
    "read": 1,
    "estimate_bytes": 1,
    "fingerprints": 1,
    "matching_dates": 1,
    "now": 1,
    "publish": 4,
    "replaced_partitions": 1,
    "check_restorable": 1,
    "restore": 3,
    "load": 2,
    "row_counts": 1,
    "back_up": 1,
    "read_backup": 1,
    "delete_backed_up": 2,
    "restore_backup": 2,
}
#: These run no job: what a table is like, which is remembered for a while, and making or dropping tables.
CALLS_WITHOUT_TOKENS = frozenset(
    {
        "describe",
        "create_table",
        "create_own_tables",
        "check_publishable",
        "delete_expired_undo",
        "backup_location",
        "drop_backup",
    }
)


def rate_limited(warehouse: Warehouse, acquire: Callable[[], None]) -> Warehouse:
    """The warehouse, each of whose calls first acquires its tokens."""
    return cast("Warehouse", _Metered(warehouse, acquire))


def limit_rate(warehouse: Warehouse, rate: RateLimit | None, *, broker: str | None = None) -> Warehouse:
    """The warehouse, asked no faster than that: by all that use the broker, or by this process without one."""
    if rate is None:
        return warehouse
    from gated_backfill.common.broker.rate_limit import (  # its client is not for commands that need none
        BrokerTokenBucket,
        ProcessTokenBucket,
    )

    return rate_limited(warehouse, (BrokerTokenBucket(broker, rate) if broker else ProcessTokenBucket(rate)).acquire)


class _Metered:
    """Hands every call on."""

    def __init__(self, warehouse: Warehouse, acquire: Callable[[], None]) -> None:
        self._warehouse = warehouse
        self._acquire = acquire

    def __repr__(self) -> str:
        return f"metered({self._warehouse!r})"

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._warehouse, name)
        tokens = TOKENS_BY_CALL.get(name, 0)
        if not tokens:
            return call

        def after_its_tokens(*args: Any, **kwargs: Any) -> Any:
            for _ in range(tokens):
                self._acquire()
            return call(*args, **kwargs)

        return after_its_tokens
