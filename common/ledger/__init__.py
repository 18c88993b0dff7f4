"""The database of runs, dates and checkpoints: the truth about what was done."""

from gated_backfill.common.ledger.ledger import Ledger, open_ledger
from gated_backfill.common.ledger.records import (
    ActionRow,
    Alert,
    Checkpoint,
    DateRow,
    Digest,
    NewAlert,
    NewDate,
    NewRun,
    Progress,
    Run,
    RunFacts,
    WindowRow,
)
from gated_backfill.common.ledger.states import Action, DateState, RunState, WindowState
from gated_backfill.common.ledger.stores.flags import Flag, NewFlag
from gated_backfill.common.ledger.stores.runs import dates_taken

__all__ = [
    "Action",
    "ActionRow",
    "Alert",
    "Checkpoint",
    "DateRow",
    "DateState",
    "Digest",
    "Flag",
    "Ledger",
    "NewAlert",
    "NewDate",
    "NewFlag",
    "NewRun",
    "Progress",
    "Run",
    "RunFacts",
    "RunState",
    "WindowRow",
    "WindowState",
    "dates_taken",
    "open_ledger",
]
