"""The ledger: all state of runs, dates and windows, in one store for each subject.

Every change of state names the state it expects, so that a late or repeated message changes nothing.
"""

from __future__ import annotations

from sqlalchemy import Engine

from gated_backfill.common.ledger.connections import is_shared, make_engine, parse_ledger_url
from gated_backfill.common.ledger.database import translate_database_errors
from gated_backfill.common.ledger.migration import migrate
from gated_backfill.common.ledger.stores.actions import ActionStore
from gated_backfill.common.ledger.stores.alerts import AlertStore
from gated_backfill.common.ledger.stores.checkpoints import CheckpointStore
from gated_backfill.common.ledger.stores.claims import ClaimStore
from gated_backfill.common.ledger.stores.cleanups import CleanupStore
from gated_backfill.common.ledger.stores.current import CurrentStateStore
from gated_backfill.common.ledger.stores.dates import DateStore
from gated_backfill.common.ledger.stores.flags import FlagStore
from gated_backfill.common.ledger.stores.gauges import GaugeStore
from gated_backfill.common.ledger.stores.heartbeats import HeartbeatStore
from gated_backfill.common.ledger.stores.history import HistoryStore
from gated_backfill.common.ledger.stores.maintenance import MaintenanceStore
from gated_backfill.common.ledger.stores.orders import OrderStore
from gated_backfill.common.ledger.stores.runs import RunStore
from gated_backfill.common.ledger.stores.targets import TargetStore
from gated_backfill.common.ledger.stores.windows import WindowStore


class Ledger:
    """The stores of one database. Any number of processes may use it at the same time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.runs = RunStore(engine)
        self.targets = TargetStore(engine)
        self.windows = WindowStore(engine)
        self.dates = DateStore(engine)
        self.claims = ClaimStore(engine)
        self.checkpoints = CheckpointStore(engine)
        self.orders = OrderStore(engine)
        self.actions = ActionStore(engine)
        self.flags = FlagStore(engine)
        self.heartbeats = HeartbeatStore(engine)
        self.alerts = AlertStore(engine)
        self.gauges = GaugeStore(engine)
        self.current = CurrentStateStore(engine)
        self.maintenance = MaintenanceStore(engine)
        self.cleanups = CleanupStore(engine)
        self.history = HistoryStore(engine)

    def close(self) -> None:
        self._engine.dispose()


def open_ledger(url: str, *, create: bool = True, upgrade: bool = True) -> Ledger:
    """Open the ledger at the URL; with `create`, create it first, and with `upgrade` migrate an older one.

    Raises `LedgerUnusable` for a file that is not a ledger, for one that does not exist (without `create`), and for
    tables of another version that this one cannot use; `LedgerUnavailable` when the database does not answer.
    """
    engine = make_engine(url, create=create)
    try:
        with translate_database_errors():
            migrate(engine, create=create, upgrade=upgrade)
    except BaseException:
        engine.dispose()
        raise
    return Ledger(engine)


def open_ledger_of_command(url: str, *, only_looks: bool = False) -> Ledger:
    """Open the ledger for a command, which creates a SQLite file and, unless it `only_looks`, migrates it.

    A shared ledger, in PostgreSQL, is created and migrated by `backfill ledger migrate` and `backfill tables create`
    only: processes of another version may be using it. Raises as `open_ledger` does.
    """
    return open_ledger(url, create=not is_shared(parse_ledger_url(url)), upgrade=not only_looks)
