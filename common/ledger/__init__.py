"""The database of runs, dates and checkpoints: the one record of finished work."""

from gated_backfill.common.ledger.ledger import Ledger, open_ledger, open_ledger_of_command
from gated_backfill.common.ledger.records import (
    ActionRow,
    Alert,
    Checkpoint,
    DateRow,
    NewAlert,
    NewDate,
    NewRun,
    RenewedProof,
    Run,
    RunProgress,
    RunSummary,
    RunWithDates,
    UndoneDate,
    WindowRow,
)
from gated_backfill.common.ledger.states import DateState, RunAction, RunState, WindowState
from gated_backfill.common.ledger.stores.flags import Flag, NewFlag

__all__ = [
    "ActionRow",
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
    "RenewedProof",
    "Run",
    "RunAction",
    "RunProgress",
    "RunState",
    "RunSummary",
    "RunWithDates",
    "UndoneDate",
    "WindowRow",
    "WindowState",
    "open_ledger",
    "open_ledger_of_command",
]
