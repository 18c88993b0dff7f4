"""Saved plans: `plan --save` writes one, `run --plan` launches it if planning again gives the same steps."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.dates import format_dates
from gated_backfill.common.process.private_files import private_opener
from gated_backfill.producer.planning.plan import Plan, PlanStep, RunRequest


def save_plan(plan: Plan, file: Path) -> None:
    """Write the plan to a file for `run --plan`; a new file is for its owner only. Raises `UserError` if it can't."""
    try:
        with open(file, "w", encoding="utf-8", opener=private_opener) as stream:
            stream.write(json.dumps(plan.as_json(), indent=1) + "\n")
    except OSError as exc:
        raise UserError(f"the plan can't be written to {file}: {exc.strerror}") from exc


@dataclass(frozen=True, kw_only=True)
class SavedPlan(RunRequest):
    """The fields of a saved plan that are read back: its request, the job's version and the steps."""

    format: Literal[1]
    version: str
    steps: tuple[PlanStep, ...]

    @property
    def request(self) -> RunRequest:
        return RunRequest(**{field.name: getattr(self, field.name) for field in fields(RunRequest)})


def read_saved_plan(file: Path) -> SavedPlan:
    """Read a saved plan. Raises `UserError` when the file is not one."""
    try:
        return TypeAdapter(SavedPlan).validate_json(file.read_bytes(), strict=True)
    except OSError as exc:
        raise UserError(f"the plan {file} can't be read: {exc.strerror}") from exc
    except ValidationError as exc:
        error = exc.errors()[0]
        problem = " ".join([*map(str, error["loc"]), error["msg"]])
        raise UserError(f"{file} is not a plan that `backfill plan --save` wrote: {problem}") from exc


def check_plan_unchanged(saved: SavedPlan, now: Plan, file: Path) -> None:
    """Raise `UserError` with the dates that differ, unless the plan made `now` equals the saved one."""
    if saved.version != now.version:
        raise UserError(f"the job's version was {saved.version} in {file} and is {now.version} now: plan again")
    saved_steps = {step.day: step for step in saved.steps}
    differing = [step for step in now.steps if saved_steps.get(step.day) != step]
    if not differing and len(saved_steps) == len(now.steps):
        return
    first = differing[0] if differing else None
    example = f", e.g. {first.day}: now {first.action.value}, {first.reason}" if first else ""
    raise UserError(
        f"the plan is no longer the one in {file}: {len(differing)} date(s) differ "
        f"({format_dates(step.day for step in differing)}){example}; plan again"
    )
