"""The database of runs, dates and checkpoints: the truth about what was done."""

from common.ledger.flags import Flag, NewFlag
from common.ledger.records import (
    Alert,
    Checkpoint,
    DateRow,
    NewAlert,
    NewDate,
    NewRun,
    Progress,
    Run,
    RunFacts,
)
from common.ledger.runs import dates_taken
from common.ledger.states import DateState, RunState, WindowState
from common.ledger.store import Ledger, open_ledger

__all__ = [
    "Alert",
    "Checkpoint",
    "DateRow",
    "DateState",
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
    "WindowState",
    "dates_taken",
    "open_ledger",
]
