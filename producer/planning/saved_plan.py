"""Saved plans: `plan --save` writes one, `run --plan` launches it if planning again gives the same steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.dates import format_dates
from gated_backfill.producer.planning.plan import Plan, RunRequest


def save_plan(plan: Plan, file: Path) -> None:
    """Write the plan to a file for `run --plan`. Raises `UserError` when the file can't be written."""
    try:
        file.write_text(json.dumps(plan.as_json(), indent=1) + "\n", encoding="utf-8")
    except OSError as exc:
        raise UserError(f"the plan can't be written to {file}: {exc.strerror}") from exc


class SavedStep(TypedDict):
    """A step as `PlanStep.as_json` returns it."""

    day: str
    action: str
    reason: str
    expected: int | None
    found: dict[str, int]
    source: str | None
    supplied: int | None


class SavedPlan(TypedDict):
    """The keys of a saved plan that are read back."""

    format: Literal[1]
    job: str
    version: str
    days: list[str]
    excluded: list[str]
    reprocess: str
    newest_first: bool
    fallback: str | None
    forced_because: str | None
    reason: NotRequired[str | None]  # a plan of an earlier version has none
    steps: list[SavedStep]


def read_saved_plan(file: Path) -> SavedPlan:
    """Read a saved plan. Raises `UserError` when the file is not one."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except OSError as exc:
        raise UserError(f"the plan {file} can't be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise UserError(f"{file} is not a plan: {exc}") from exc
    try:
        return TypeAdapter(SavedPlan).validate_python(stored, strict=True)
    except ValidationError as exc:
        raise UserError(f"{file} is not a plan that `backfill plan --save` wrote") from exc


def request_from_saved_plan(stored: SavedPlan, file: Path) -> RunRequest:
    """The request of a saved plan. Raises `UserError` when it is damaged."""
    try:
        return RunRequest.from_json(stored)
    except (ValueError, UserError) as exc:
        raise UserError(f"{file} is not a plan that `backfill plan --save` wrote: {exc}") from exc


def check_plan_unchanged(stored: SavedPlan, now: Plan, file: Path) -> None:
    """Raise `UserError` with the dates that differ, unless the plan made `now` equals the saved one."""
    if stored["version"] != now.version:
        raise UserError(f"the job's version was {stored['version']} in {file} and is {now.version} now: plan again")
    saved_steps = {step["day"]: step for step in stored["steps"]}
    differing = [step for step in now.steps if saved_steps.get(step.day.isoformat()) != step.as_json()]
    if not differing and len(saved_steps) == len(now.steps):
        return
    first = differing[0] if differing else None
    example = f", e.g. {first.day}: now {first.action.value}, {first.reason}" if first else ""
    raise UserError(
        f"the world has changed since {file} was saved: {len(differing)} date(s) differ "
        f"({format_dates(step.day for step in differing)}){example}; plan again"
    )
