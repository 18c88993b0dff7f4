"""The demo's output. Every figure comes from the plan, the ledger or the published table."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from rich.table import Table

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.ledger import Checkpoint, DateRow, DateState, RunProgress
from gated_backfill.common.model.coverage import format_percent
from gated_backfill.common.model.dates import DateRange, format_dates
from gated_backfill.common.model.missing_names import list_names
from gated_backfill.common.model.registry import EXAMPLE_JOB as JOB
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.protocol import Scan
from gated_backfill.producer.context import CommandContext
from gated_backfill.producer.planning.plan import Plan, PlanAction
from gated_backfill.producer.terminal.console import Console, line, styled

COUNT = "SELECT COUNT(*) AS n FROM published"


@dataclass(frozen=True, kw_only=True)
class PublishedState:
    """The published rows and the checkpoint of a date."""

    rows: int  #: counted in the published table
    checkpoint: Checkpoint


def published_state(context: CommandContext, days: Sequence[date]) -> dict[date, PublishedState]:
    """The published rows and checkpoints of the days, which must all be checkpointed."""
    checkpoints = context.ledger.checkpoints.list_checkpoints(JOB, min(days), max(days))
    return {day: PublishedState(rows=_count_published_rows(context, day), checkpoint=checkpoints[day]) for day in days}


def heading(console: Console, text: str) -> None:
    console.print()
    console.print(styled(text, "bold"))


def print_tables(console: Console, context: CommandContext, span: DateRange, *, new: bool) -> None:
    heading(console, "1. A season of data")
    url = context.settings.warehouse_url
    place = f"as Parquet in {_short(url.folder)}" if url.folder else f"in {url}"
    origin = "Made" if new else "Found, made by an earlier demo"
    console.print(f"{origin}: 30 teams, 82 games each, {span}, {place}")
    if new:
        for role, table in find_job(JOB).tables_by_role()[1:]:
            console.print(f"  {role:<20} {table}")


def print_plan_summary(console: Console, plan: Plan) -> None:
    """Print the planned dates, counted by reason."""
    heading(console, "2. The plan")
    console.print(plan.summary())
    reasons: dict[str, list[date]] = {}
    for step in plan.steps_with(PlanAction.SKIP):
        reasons.setdefault(step.reason, []).append(step.day)
    for reason, days in reasons.items():
        console.print(f"  {len(days):>3} skipped: {reason} ({format_dates(days, max_ranges=3)})")
    primary = next(iter(plan.steps[0].found))
    build_steps = plan.steps_with(PlanAction.BUILD)
    for source in dict.fromkeys(step.source for step in build_steps):
        days = [step.day for step in build_steps if step.source == source]
        rank = "the primary" if source == primary else f"a fallback, on {format_dates(days)}"
        console.print(f"  {len(days):>3} to build from {source}: {rank}")
    heading(console, "3. The run, on two local workers")


def print_source_checks(console: Console, context: CommandContext, progress: RunProgress) -> None:
    """Print the coverage of the sources: one line for all dates built from the primary, one for each other date."""
    heading(console, "4. What the source checks found")
    rows = [row for row in context.ledger.dates.list_dates(progress.run.id) if row.state is DateState.CHECKPOINTED]
    primary = find_job(JOB).sources[0].name
    primary_rows = [row for row in rows if row.source == primary]
    if primary_rows:
        lowest = min(primary_rows, key=lambda row: (row.matched or 0) / (row.expected or 1))
        console.print(
            f"{len(primary_rows)} dates were built from {primary}: "
            f"it had {format_percent(lowest.matched or 0, lowest.expected or 0)} "
            f"or more of the expected players on each"
        )
    _print_months(console, rows)
    _print_fallbacks(console, [row for row in rows if row.source != primary])


def _print_fallbacks(console: Console, rows: Sequence[DateRow]) -> None:
    if not rows:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("date", "expected", *(source.name for source in find_job(JOB).sources), "built from", "result"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        coverages = [f"{n} ({format_percent(n, row.expected or 0)})" for n in (row.found or {}).values()]
        result = (
            f"{row.matched}/{row.expected} ({format_percent(row.matched or 0, row.expected or 0)}), {row.state.value}"
        )
        table.add_row(str(row.day), str(row.expected), *coverages, row.source or "", styled(result, "green"))
    console.print("These fell back, because coverage decides, not emptiness:")
    console.print(table)


def _print_months(console: Console, rows: Sequence[DateRow]) -> None:
    sources = [source.name for source in find_job(JOB).sources]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("month", "dates", "players expected", *(f"found in {name}" for name in sources)):
        table.add_column(name, justify="left" if name == "month" else "right")
    for month in dict.fromkeys(f"{row.day:%Y-%m}" for row in rows):
        month_rows = [row for row in rows if f"{row.day:%Y-%m}" == month]
        counts = [str(sum((row.found or {}).get(name, 0) for row in month_rows)) for name in sources]
        table.add_row(month, str(len(month_rows)), str(sum(row.expected or 0 for row in month_rows)), *counts)
    console.print(table)


def print_replay(
    console: Console,
    rows: Sequence[DateRow],
    before: Mapping[date, PublishedState],
    after: Mapping[date, PublishedState],
) -> None:
    """Print the gate's verdict on the replayed incident, and whether the published rows are unchanged."""
    heading(console, "5. The incident, as it happened")
    console.print("The same two dates once more, with the fallback off, straight to the gate:")
    for row in rows:
        style = "bold red" if row.state is DateState.BLOCKED else "bold yellow"
        share = f"{row.matched}/{row.expected} = {format_percent(row.matched or 0, row.expected or 0)}"
        verdict = styled(row.state.value.upper(), style)
        console.print(line(f"  {row.day}  ", verdict, f"  {share}: {row.reason or ''}"))
        if row.state is DateState.BLOCKED:
            _print_blocked(console, row)
    for row in rows:
        _print_published(console, row.day, before[row.day], after[row.day])
    not_blocked = [row.day for row in rows if row.state is not DateState.BLOCKED]
    if not_blocked:
        console.print(styled(f"The demo failed: the gate did not block {format_dates(not_blocked)}.", "bold red"))


def _print_blocked(console: Console, row: DateRow) -> None:
    missing = (row.expected or 0) - (row.matched or 0)
    console.print(f"              missing: {list_names(row.missing, missing)}")
    if row.staged_path:
        console.print(f"              refused rows kept in {_short(Path(row.staged_path))}")


def _print_published(console: Console, day: date, before: PublishedState, after: PublishedState) -> None:
    if after != before:
        failure = styled("The demo failed: the replay changed what was published", "bold red")
        rows = f"{before.rows} rows of run {before.checkpoint.run_id}, now {after.rows} of {after.checkpoint.run_id}"
        console.print(line(f"  {day}  ", failure, f": {rows}"))
        return
    checkpoint = after.checkpoint
    console.print(
        f"  {day}  still published: {after.rows} rows; "
        f"its checkpoint is that of the first run ({checkpoint.matched}/{checkpoint.expected} from {checkpoint.source})"
    )


def _count_published_rows(context: CommandContext, day: date) -> int:
    target = find_job(JOB).target
    scan = Scan(
        table=TableName.parse(target.table), date_column=target.date_column, dates=(DateRange(start=day, through=day),)
    )
    return context.warehouse.query(COUNT, scans={"published": scan})["n"].to_pylist()[0] or 0


def print_total(console: Console, progress: RunProgress, seconds: float) -> None:
    console.print()
    done = progress.count(DateState.CHECKPOINTED)
    text = f"{done} dates published and checkpointed; the whole demo took {seconds:.1f} s."
    console.print(styled(text, "bold green"))


def print_done(console: Console, plan: Plan) -> None:
    heading(console, "2. Nothing to do")
    console.print(
        f"All {len(plan.steps_with(PlanAction.DONE))} dates are checkpointed already "
        f"({len(plan.steps_with(PlanAction.SKIP))} have nothing to build): no run was started."
    )


def print_next(console: Console, season_run: str) -> None:
    """Print commands that can be pasted in the current folder. `season_run` is the id of the season's run."""
    heading(console, "What to try next")
    command, span = _command(), "--start-date 2023-02-20 --end-date 2023-02-28"
    hints = [
        (f"{command} status", "the replay: what was blocked, why, and who is missing"),
        (f"{command} status {season_run} --every-date", "the season's run, with the source check of every date"),
        (f"{command} plan --job {JOB} {span} --reprocess all", "what a rebuild would do; launches nothing"),
        (
            f"{command} run --job {JOB} --dates 2023-02-23 --reprocess all --fallback off",
            "pre-flight refuses before anything starts",
        ),
        (
            f"{command} run --job {JOB} --dates 2023-02-24 --reprocess all --fallback fill",
            "keep the 68 rows the primary has, take the rest from the fallback",
        ),
    ]
    folder = read_settings().warehouse_url.folder
    if folder is not None:
        part = f"{_short(folder)}/nba_precompute/player_composite_factors/game_date=2023-02-23/part.parquet"
        hints.append(
            (f"""{_python()} -c "import pandas; print(pandas.read_parquet('{part}'))\"""", "the published rows")
        )
    for command_line, explanation in hints:
        console.print(styled(f"  # {explanation}", "dim"))
        console.print(f"  {command_line}")


def _command() -> str:
    return _short(Path(sys.argv[0])) if os.sep in sys.argv[0] else sys.argv[0]


def _python() -> str:
    return _short(Path(sys.executable))


def _short(path: Path) -> str:
    """The path relative to the current folder, if that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)
