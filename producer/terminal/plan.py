"""Plans as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from gated_backfill.common.model.dates import format_dates
from gated_backfill.common.process.printable_text import shorten
from gated_backfill.producer.planning.plan import Plan, PlanAction, PlanStep
from gated_backfill.producer.terminal.console import Console, styled

MAX_UNGROUPED_DATES = 40  #: in a longer plan, neighbouring dates with equal steps share a line
STYLES = {
    PlanAction.BUILD: "green",
    PlanAction.DONE: "dim",
    PlanAction.STALE: "yellow",
    PlanAction.UNDONE: "yellow",
    PlanAction.SKIP: "dim",
    PlanAction.BLOCKED: "bold red",
}


def print_plan(console: Console, plan: Plan, *, every_date: bool = False) -> None:
    """Print a plan: one line for each date or, in a long plan, for neighbouring dates with equal steps."""
    console.print(styled(plan.summary(), "bold"))
    for note in plan.notes:
        console.print(f"  note: {shorten(note)}")
    sources = list(plan.steps[0].found) if plan.steps else []
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("dates", "action", "expected", *sources):
        table.add_column(name, justify="left" if name in ("dates", "action") else "right", no_wrap=True)
    table.add_column("source", no_wrap=True)
    table.add_column("reason", overflow="fold")
    for group in _group_steps(plan.steps, one_per_date=every_date or len(plan.steps) <= MAX_UNGROUPED_DATES):
        table.add_row(*_plan_row(group, sources), style=STYLES[group[0].action])
    console.print(table)


def _group_steps(steps: Sequence[PlanStep], *, one_per_date: bool) -> list[list[PlanStep]]:
    groups: list[list[PlanStep]] = []
    for step in steps:
        if groups and not one_per_date and _may_share_line(groups[-1][-1], step):
            groups[-1].append(step)
        else:
            groups.append([step])
    return groups


def _may_share_line(step: PlanStep, following: PlanStep) -> bool:
    """Whether two neighbouring dates share a line. Blocked dates and dates from a fallback never do."""
    if step.action is not following.action or step.action is PlanAction.BLOCKED:
        return False
    if step.action is PlanAction.BUILD:
        return step.source == following.source and _is_from_primary(step) and _is_from_primary(following)
    return step.reason.split(" (")[0] == following.reason.split(" (")[0]


def _is_from_primary(step: PlanStep) -> bool:
    return step.source == next(iter(step.found), None)


def _plan_row(group: Sequence[PlanStep], sources: Sequence[str]) -> list[str]:
    first = group[0]
    expected = sum(step.expected or 0 for step in group)
    counts = [str(sum(step.found.get(name, 0) for step in group)) for name in sources]
    dates = format_dates(step.day for step in group) if len(group) < 4 else f"{_span(group)} ({len(group)})"
    reason = first.reason if len(group) == 1 else _common_reason(group)
    return [dates, first.action.value, str(expected), *counts, first.source or "-", shorten(reason)]


def _span(group: Sequence[PlanStep]) -> str:
    days = [step.day for step in group]
    return f"{min(days)}..{max(days)}"


def _common_reason(group: Sequence[PlanStep]) -> str:
    reasons = {step.reason for step in group}
    if len(reasons) == 1:
        return group[0].reason
    if group[0].action is PlanAction.BUILD:
        lowest = min((step.supplied or 0) * 1000 // (step.expected or 1) / 10 for step in group)
        return f"primary at {lowest} % or more"
    return group[0].reason.split(" (")[0]
