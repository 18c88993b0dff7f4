"""The ledger: every change of state names the state it expects, so a late or repeated message changes nothing."""

from __future__ import annotations

from gated_backfill.common.ledger.connections import make_engine, migrate
from gated_backfill.common.ledger.database import translated
from gated_backfill.common.ledger.stores.actions import Actions
from gated_backfill.common.ledger.stores.alerts import Notices
from gated_backfill.common.ledger.stores.checkpoints import Checkpoints
from gated_backfill.common.ledger.stores.claims import Claims
from gated_backfill.common.ledger.stores.cleanups import Cleanups
from gated_backfill.common.ledger.stores.dates import Dates
from gated_backfill.common.ledger.stores.flags import Flags
from gated_backfill.common.ledger.stores.gauges import Gauges
from gated_backfill.common.ledger.stores.history import Facts
from gated_backfill.common.ledger.stores.maintenance import Maintenance
from gated_backfill.common.ledger.stores.orders import Orders
from gated_backfill.common.ledger.stores.runs import Runs
from gated_backfill.common.ledger.stores.windows import Windows


class Ledger(
    Runs, Windows, Dates, Claims, Checkpoints, Orders, Actions, Flags, Notices, Gauges, Maintenance, Cleanups, Facts
):
    """All that is known, in one database. Safe for any number of processes at once."""


def open_ledger(url: str, *, create: bool = True) -> Ledger:
    """The ledger at the URL, its tables at this version's state.

    With `create`, a missing or older ledger is migrated first. Raises `LedgerUnusable` for a file that is no ledger or
    was written by a newer version, `LedgerUnavailable` when the database does not answer.
    """
    engine = make_engine(url)
    with translated():
        migrate(engine, create=create)
    return Ledger(engine)
