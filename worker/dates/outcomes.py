"""How an attempt at a date ends: its outcome, and the result of its task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from gated_backfill.common.model.dates import summarize_dates
from gated_backfill.common.process.printable_text import shorten

NOT_CLAIMED = "not claimed"  #: the state in the outcome of a date that this worker has no claim on


class RetryLater(Exception):
    """The dates should be processed again after `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"again in {seconds:.1f} s")
        self.seconds = seconds


@dataclass(frozen=True, kw_only=True)
class AttemptOutcome:
    """How one attempt at one date ended."""

    day: date
    state: str  #: the value of a `DateState`, or `NOT_CLAIMED`
    detail: str = ""  #: the source of its rows, or the reason it has none


def task_result(outcomes: Sequence[AttemptOutcome]) -> dict[str, Any]:
    """What Celery and Flower show of a finished task: one date's outcome, or how many dates reached each state."""
    if len(outcomes) == 1:
        (outcome,) = outcomes
        return {"day": outcome.day.isoformat(), "state": outcome.state, "detail": shorten(outcome.detail)}
    days = summarize_dates([outcome.day for outcome in outcomes])
    return {"days": days, **Counter(outcome.state for outcome in outcomes)}
