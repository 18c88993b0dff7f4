"""A warehouse that is asked no faster than a token bucket allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from gated_backfill.common.model.rate import Rate
from gated_backfill.common.warehouse.protocol import Warehouse

#: The tokens that a call takes: about as many as it has jobs in BigQuery. A publication looks at the target, loads what
#: is staged, replaces the partitions, and looks again.
TOKENS: Mapping[str, int] = {
    "query": 1,
    "count": 1,
    "read": 1,
    "bytes_of": 1,
    "fingerprints": 1,
    "holds": 1,
    "now": 1,
    "publish": 4,
    "replaced": 1,
    "check_restorable": 1,
    "restore": 3,
    "load": 2,
    "row_counts": 1,
    "back_up": 1,
    "backed_up": 1,
    "delete_backed_up": 2,
    "restore_backup": 2,
}
#: These run no job: what a table is like, which is remembered for a while, and making or dropping tables.
FREE = frozenset(
    {
        "describe",
        "create_table",
        "prepare",
        "check_publishable",
        "forget_replaced",
        "backup_place",
        "drop_backup",
    }
)


def metered(warehouse: Warehouse, acquire: Callable[[], None]) -> Warehouse:
    """The warehouse, each of whose calls first acquires its tokens."""
    return cast("Warehouse", _Metered(warehouse, acquire))


def at_rate(warehouse: Warehouse, rate: Rate | None, *, broker: str | None = None) -> Warehouse:
    """The warehouse, asked no faster than that: by all that use the broker, or by this process without one."""
    if rate is None:
        return warehouse
    from gated_backfill.common.broker.rate_limit import (  # its client is not for commands that need none
        OwnBucket,
        SharedBucket,
    )

    return metered(warehouse, (SharedBucket(broker, rate) if broker else OwnBucket(rate)).acquire)


class _Metered:
    """Hands every call on."""

    def __init__(self, warehouse: Warehouse, acquire: Callable[[], None]) -> None:
        self._warehouse = warehouse
        self._acquire = acquire

    def __repr__(self) -> str:
        return f"metered({self._warehouse!r})"

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._warehouse, name)
        tokens = TOKENS.get(name, 0)
        if not tokens:
            return call

        def after_its_tokens(*args: Any, **kwargs: Any) -> Any:
            for _ in range(tokens):
                self._acquire()
            return call(*args, **kwargs)

        return after_its_tokens
