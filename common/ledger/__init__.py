"""The database of runs, dates and checkpoints: the truth about what was done."""

from common.ledger.records import Checkpoint, DateRow, NewAlert, NewDate, NewRun, Progress, Run, RunFacts
from common.ledger.runs import dates_taken
from common.ledger.states import DateState, RunState, WindowState
from common.ledger.store import Ledger, open_ledger

__all__ = [
    "Checkpoint",
    "DateRow",
    "DateState",
    "Ledger",
    "NewAlert",
    "NewDate",
    "NewRun",
    "Progress",
    "Run",
    "RunFacts",
    "RunState",
    "WindowState",
    "dates_taken",
    "open_ledger",
]
