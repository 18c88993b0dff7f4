"""The database of runs, dates and checkpoints: the truth about what was done."""

from common.ledger.flags import Flag, NewFlag
from common.ledger.records import (
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
from common.ledger.runs import dates_taken
from common.ledger.states import Action, DateState, RunState, WindowState
from common.ledger.store import Ledger, open_ledger

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
