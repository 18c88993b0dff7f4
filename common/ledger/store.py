"""The ledger: every change of state names the state it expects, so a late or repeated message changes nothing."""

from __future__ import annotations

from common.ledger.actions import Actions
from common.ledger.checkpoints import Checkpoints
from common.ledger.claims import Claims
from common.ledger.cleanups import Cleanups
from common.ledger.database import translated
from common.ledger.dates import Dates
from common.ledger.engine import make_engine, migrate
from common.ledger.facts import Facts
from common.ledger.flags import Flags
from common.ledger.gauges import Gauges
from common.ledger.maintenance import Maintenance
from common.ledger.notices import Notices
from common.ledger.orders import Orders
from common.ledger.runs import Runs
from common.ledger.windows import Windows


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
