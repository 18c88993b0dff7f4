"""The settings and connections that the functions behind the tasks need, opened once per process."""

from __future__ import annotations

from dataclasses import dataclass, field

from gated_backfill.common.broker.dispatcher import Dispatcher
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import HostError, NotAllowed
from gated_backfill.common.ledger import Ledger, Run, open_ledger
from gated_backfill.common.model.host_fault import HostFault
from gated_backfill.common.process.identity import process_identity
from gated_backfill.common.storage.staging import Staging, open_staging
from gated_backfill.common.warehouse.backends import open_warehouse
from gated_backfill.common.warehouse.protocol import Warehouse
from gated_backfill.common.warehouse.rate_limited import limit_rate
from gated_backfill.worker.host.checks import find_fault

MAX_CACHED_RUNS = 100  #: runs kept in memory by each process


@dataclass(frozen=True, kw_only=True)
class Deps:
    """The connections of one worker process."""

    settings: Settings
    ledger: Ledger
    warehouse: Warehouse
    staging: Staging
    dispatcher: Dispatcher
    is_only_host: bool = False  #: no other process takes tasks of its run, so what this host cannot do fails
    owner: str = field(default_factory=process_identity)  #: the owner of the leases that this process takes
    _runs: dict[str, Run] = field(default_factory=dict[str, Run], repr=False)

    def cached_run(self, run_id: str) -> Run:
        """The run as first read by this process: only what never changes may be used, not its state.

        Raises `UserError` if there is no run of that id.
        """
        if run_id not in self._runs:
            if len(self._runs) >= MAX_CACHED_RUNS:
                self._runs.clear()
            self._runs[run_id] = self.ledger.runs.get_run(run_id)
        return self._runs[run_id]

    def find_fault(self, run: Run, *, publishes: bool = False) -> HostFault | None:
        """Return what keeps this host from working on the run, see `checks.find_fault`."""
        return find_fault([run], self.staging, self.warehouse, publishes=publishes)

    def ends_run(self, exc: Exception) -> bool:
        """Whether the run's other dates would fail alike: the warehouse or, without another host, this one refuses."""
        return isinstance(exc, NotAllowed) or (isinstance(exc, HostError) and self.is_only_host)


def open_deps(
    settings: Settings, dispatcher: Dispatcher, *, broker: str | None = None, is_only_host: bool = False
) -> Deps:
    """Open the connections. The limit on the warehouse's query rate is shared through the broker, if there is one."""
    warehouse = open_warehouse(settings.warehouse_url, limits=settings.warehouse_limits)
    return Deps(
        settings=settings,
        ledger=open_ledger(settings.ledger_url, create=False),
        warehouse=limit_rate(warehouse, settings.query_rate_limit, broker=broker),
        staging=open_staging(settings.staging_url),
        dispatcher=dispatcher,
        is_only_host=is_only_host,
    )
