"""Runs as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from gated_backfill.common.ledger import (
    ActionRow,
    DateRow,
    DateState,
    Run,
    RunProgress,
    RunState,
    RunSummary,
    UndoneDate,
)
from gated_backfill.common.ledger.stores.actions import CONTROL_ACTIONS, describe_action
from gated_backfill.common.ledger.stores.heartbeats import Heartbeat
from gated_backfill.common.model.coverage import format_percent
from gated_backfill.common.model.dates import format_dates
from gated_backfill.common.model.job_versions import STALE_PREFIX
from gated_backfill.common.model.missing_names import MISSING_NAMES_SHOWN, list_names
from gated_backfill.common.model.usage import Usage
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.printable_text import printable_name, shorten
from gated_backfill.common.runs.faulty_workers import FaultyWorkers
from gated_backfill.common.runs.interrupted import is_interrupted
from gated_backfill.common.runs.stale_dates import StaleDates
from gated_backfill.producer.terminal.console import Console, StyledText, line, styled
from gated_backfill.producer.terminal.exit_codes import COMPLETE, INCOMPLETE

RUN_STYLES = {
    RunState.SUCCEEDED: "bold green",
    RunState.PARTIAL: "bold yellow",
    RunState.FAILED: "bold red",
    RunState.CANCELLED: "yellow",
    RunState.CANCELLING: "yellow",
    RunState.PAUSED: "yellow",
}


def print_run(
    console: Console,
    progress: RunProgress,
    summary: RunSummary,
    actions: Sequence[ActionRow] = (),
    usage: Usage | None = None,
) -> None:
    """Print the request, the progress, what was billed, and every incomplete date with its reason."""
    run = progress.run
    console.print(line("run ", styled(run.id, "bold"), "  ", styled_state(run)))
    if is_interrupted(run):
        next_step = ": its process has died; launch the same command again to complete it"
        console.print(line("  ", styled("interrupted", "bold red"), next_step))
    reason = f": {shorten(run.reason)}" if run.reason else ""
    console.print(f"  asked    {shorten(run.requested)}  (by {printable_name(run.requested_by)}{reason})")
    console.print(f"  options  {_describe_options(run)}")
    console.print(f"  started  {_format_time(run.started_at)}, {_describe_duration(run)}")
    for action in actions:
        if action.action in CONTROL_ACTIONS:
            console.print(f"  ordered  {_format_time(action.at)}, {describe_action(action)}")
    _print_undone(console, run, summary.undone)
    counts = ", ".join(f"{progress.counts[state]} {state.value}" for state in DateState if progress.counts.get(state))
    console.print(f"  dates    {counts or 'none'}")
    if usage is not None:
        console.print(f"  billed   {usage.describe()}")
    for source in summary.sources:
        share = format_percent(source.matched, source.expected)
        entities = f"{source.matched} of {source.expected} entities ({share})"
        console.print(f"  source   {source.source}: {source.dates} date(s), {entities}")
    _print_incomplete(console, summary.incomplete)
    for row in summary.accepted_or_forced:
        verdict = row.verdict.value if row.verdict else ""
        console.print(line(f"  {row.day}  ", styled(verdict, "yellow"), f"  {shorten(row.reason or '')}"))
        _print_replacement(console, row)
        _print_entities(console, row)


def _print_undone(console: Console, run: Run, undone: Sequence[UndoneDate]) -> None:
    """Print when the run was undone and by whom, the dates, and how to complete an undo that is not complete."""
    latest = max(undone, key=lambda undone_date: undone_date.at, default=None)
    at, by = (run.undone_at, run.undone_by) if run.undone_at else (latest.at, latest.by) if latest else (None, None)
    label = styled("  undone   ", "bold yellow")
    if at is not None:
        restored = [undone_date.day for undone_date in undone if undone_date.restored]
        days = f": {len(restored)} date(s), {format_dates(restored)}" if restored else ""
        console.print(line(label, f"{_format_time(at)}, by {printable_name(by or '')}{days}"))
    if written := [undone_date.day for undone_date in undone if not undone_date.restored]:
        words = "whose rows were not restored: another writer changed them, or the undo was interrupted"
        console.print(line(label, f"{len(written)} date(s) {words}: {format_dates(written)}"))
    has_begun = run.undo_generation and undone  # else, kept rows of some dates were put back
    if run.undone_at is None and (has_begun or run.undo_owner):
        console.print(line(label, f"in part only: `backfill undo {run.id}` completes it"))


def styled_state(run: Run) -> StyledText:
    return styled(run.state.value, RUN_STYLES.get(run.state, "bold"))


def exit_code_for_run(progress: RunProgress) -> int:
    """The exit code of a command that followed the run to its end."""
    return COMPLETE if progress.run.state is RunState.SUCCEEDED else INCOMPLETE


def _describe_options(run: Run) -> str:
    text = f"fallback {run.options['fallback']}, window {run.options['window']}"
    forced_because = run.options.get("forced_because")
    return f"{text}, FORCED: {shorten(forced_because)}" if forced_because else text


def _print_incomplete(console: Console, rows: Sequence[DateRow]) -> None:
    for row in rows:
        reason = f"  {shorten(row.reason or row.error or '')}"
        console.print(line(f"  {row.day}  ", styled(row.state.value, "bold red"), reason))
        if row.error_place:
            console.print(f"              raised at {_shorten_place(row.error_place)}")
        if row.found:
            counts = ", ".join(f"{name} {n} of {row.expected}" for name, n in row.found.items())
            console.print(f"              found: {counts}")
        _print_replacement(console, row)
        _print_entities(console, row)
        if row.staged_path and row.state is DateState.BLOCKED:
            console.print(f"              kept for inspection: {row.staged_path}")


def _shorten_place(place: str) -> str:
    """The place with its path relative to the current folder, if it is below it."""
    folder = Path.cwd()
    return str(Path(place).relative_to(folder)) if Path(place).is_relative_to(folder) else place


def describe_replacement(row: DateRow) -> str:
    """Describe what the target had on the date, and what was staged for it; empty if the target had no rows."""
    if not row.target_rows:
        return ""
    before = f"target had {row.target_matched} expected entities in {row.target_rows} row(s)"
    return f"{before}; staged: {row.matched} in {row.rows} row(s)"


def _print_replacement(console: Console, row: DateRow) -> None:
    if replacement := describe_replacement(row):
        console.print(f"              {replacement}")


def _print_entities(console: Console, row: DateRow) -> None:
    missing_count = (row.expected or 0) - (row.matched or 0)
    for kind, names, count in (
        ("missing", row.missing, missing_count),
        ("unexpected", row.unexpected, row.unexpected_count or 0),
    ):
        if not names or count <= 0:
            continue
        suffix = " (more with --json)" if count > MISSING_NAMES_SHOWN else ""
        console.print(f"              {kind} {count}: {list_names(names, count)}{suffix}")


def print_source_checks(console: Console, rows: Sequence[DateRow]) -> None:
    """Print every date with the entities that each source has, the chosen source and the reason."""
    sources = list(dict.fromkeys(name for row in rows for name in row.found or {}))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("date", "state", "expected", *sources):
        table.add_column(name, justify="left" if name in ("date", "state") else "right", no_wrap=True)
    table.add_column("built from", no_wrap=True)
    table.add_column("why", overflow="fold")
    for row in rows:
        counts = [str((row.found or {}).get(name, "-")) for name in sources]
        reason = row.source_reason if row.state is DateState.CHECKPOINTED else row.reason
        expected = "-" if row.expected is None else str(row.expected)
        table.add_row(str(row.day), row.state.value, expected, *counts, row.source or "-", shorten(reason or "-"))
    console.print(table)


def print_runs(console: Console, runs: Sequence[Run]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "state", "launched", "asked"):
        table.add_column(name, no_wrap=name != "asked", overflow="fold")
    for run in runs:
        table.add_row(run.id, run.state.value, _format_time(run.created_at), shorten(run.requested))
    console.print(table)


def print_stale(console: Console, run: Run, stale: StaleDates) -> None:
    """Print the stale dates of a run, how to build them, and what was not compared."""
    if reasons_by_day := stale.of(run):
        reasons = "; ".join(sorted({reason.removeprefix(STALE_PREFIX) for reason in reasons_by_day.values()}))
        dates = f"{len(reasons_by_day)} date(s), {format_dates(reasons_by_day)}: {shorten(reasons)}"
        next_step = f"`backfill run --job {run.job} --reprocess stale` with these dates builds them"
        console.print(line("  ", styled("stale", "yellow"), f"    {dates}; {next_step}"))
    if problem := stale.not_compared.get(run.job):
        console.print(f"  stale    sources and inputs were not compared: {shorten(problem)}")


def run_json(
    progress: RunProgress,
    rows: Sequence[DateRow],
    actions: Sequence[ActionRow],
    stale: StaleDates | None = None,
    silent: Sequence[Heartbeat] = (),
    faulty: FaultyWorkers | None = None,
    usage: Usage | None = None,
) -> dict[str, Any]:
    run = progress.run
    return {
        "run": run.id,
        "job": run.job,
        "version": run.job_version,
        "state": run.state.value,
        "interrupted": is_interrupted(run),
        "requested": run.requested,
        "requested_by": run.requested_by,
        "reason": run.reason,
        "actions": [_action_json(action) for action in actions],
        "options": dict(run.options),
        "created_at": run.created_at,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
        "undone_at": run.undone_at,
        "undone_by": run.undone_by,
        "counts": {state.value: n for state, n in progress.counts.items()},
        "billed": usage.as_json() if usage else None,
        "dates": [_date_json(row) for row in rows],
        "stale": [{"day": day, "reason": reason} for day, reason in (stale.of(run) if stale else {}).items()],
        "undone": [{"day": row.day, "reason": row.undone.describe()} for row in rows if row.undone is not None],
        "stale_not_compared": stale.not_compared.get(run.job) if stale else None,
        "faulty_workers": faulty.as_json() if faulty else [],
        "stopped": (faulty.describe_stop() if faulty else "") or None,
        "silent_workers": [
            {"worker": worker.name, "silent_since": worker.seen_at, "taken_over_at": worker.ended_at}
            for worker in silent
        ],
    }


def _action_json(action: ActionRow) -> dict[str, Any]:
    return {
        "action": action.action.value,
        "by": action.by,
        "reason": action.reason,
        "at": action.at,
        "details": dict(action.details),
    }


def _date_json(row: DateRow) -> dict[str, Any]:
    return {
        "day": row.day,
        "state": row.state.value,
        "verdict": row.verdict.value if row.verdict else None,
        "reason": row.reason,
        "expected": row.expected,
        "found": row.found,
        "source": row.source,
        "source_reason": row.source_reason,
        "matched": row.matched,
        "missing": list(row.missing),
        "missing_count": max((row.expected or 0) - (row.matched or 0), 0),
        "unexpected": list(row.unexpected),
        "unexpected_count": row.unexpected_count,
        "rows": row.rows,
        "target_matched": row.target_matched,
        "target_rows": row.target_rows,
        "lost": list(row.lost),
        "lost_count": row.lost_count,
        "loss": row.loss,
        "attempt": row.attempt,
        "error_kind": row.error_kind,
        "error": row.error,
        "error_place": row.error_place,
        "checksum": row.checksum,
        "seconds": row.seconds,
        "undone_at": row.undone_at,
        "undone_by": row.undone_by,
        "undo_restored": row.undo_restored,
        "quarantined": row.staged_path if row.state is DateState.BLOCKED else None,
    }


def _format_time(moment: Any) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC" if moment else "not yet"


def _describe_duration(run: Run) -> str:
    if run.started_at is None:
        return "-"
    seconds = ((run.finished_at or utcnow()) - run.started_at).total_seconds()
    return f"took {seconds:.1f} s" if run.finished_at else f"running for {seconds:.0f} s"
