"""The result of one check: a level, a message, and the next step."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gated_backfill.common.process.clock import ClockReading


class CheckLevel(StrEnum):
    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    check: str
    level: CheckLevel
    message: str
    next_step: str | None = None  #: how to fix it

    def describe(self) -> str:
        """The message and the next step in one line."""
        text = f"{self.message}; next: {self.next_step}" if self.next_step else self.message
        return " ".join(text.split())

    def as_json(self) -> dict[str, Any]:
        message = " ".join(self.message.split())
        return {"check": self.check, "level": self.level.value, "found": message, "next": self.next_step}


@dataclass(frozen=True, kw_only=True)
class PlaceCheck:
    """The result for a broker, ledger or warehouse, with a reading of its clock if it has one."""

    result: CheckResult
    clock: ClockReading | None = None


def ok(check: str, message: str) -> CheckResult:
    return CheckResult(check=check, level=CheckLevel.OK, message=message)


def warn(check: str, message: str, next_step: str | None = None) -> CheckResult:
    return CheckResult(check=check, level=CheckLevel.WARN, message=message, next_step=next_step)


def fail(check: str, message: object, next_step: str) -> CheckResult:
    return CheckResult(check=check, level=CheckLevel.FAIL, message=str(message), next_step=next_step)
