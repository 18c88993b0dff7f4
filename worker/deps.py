"""What the functions behind the tasks need, opened once a process."""

from __future__ import annotations

from dataclasses import dataclass, field

from common.ledger import Ledger, open_ledger
from common.processes import identity
from common.queue import Dispatcher
from common.settings import Settings
from common.staging import Staging, open_staging
from common.warehouse import open_warehouse
from common.warehouse.base import Warehouse
from common.warehouse.metered import at_rate


@dataclass(frozen=True, kw_only=True)
class Deps:
    """The connections of one worker process."""

    settings: Settings
    ledger: Ledger
    warehouse: Warehouse
    staging: Staging
    dispatcher: Dispatcher
    owner: str = field(default_factory=identity)  #: who holds the leases this process takes


def open_deps(settings: Settings, dispatcher: Dispatcher, *, broker: str | None = None) -> Deps:
    """The connections. The warehouse's queries are counted at the broker, or in this process without one."""
    warehouse = open_warehouse(settings.warehouse_url, limits=settings.limits)
    return Deps(
        settings=settings,
        ledger=open_ledger(settings.ledger_url, create=False),
        warehouse=at_rate(warehouse, settings.query_rate, broker=broker),
        staging=open_staging(settings.staging_url),
        dispatcher=dispatcher,
    )
