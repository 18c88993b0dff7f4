"""The commands that hold a run up or stop it: `pause`, `resume`, `cancel`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gated_backfill.common.config.settings import read_settings
from gated_backfill.producer.cli.options import AsJson, ControlReason, strip_reason
from gated_backfill.producer.context import open_context
from gated_backfill.producer.terminal.runs import make_console, print_json

if TYPE_CHECKING:
    from gated_backfill.producer.runs.control import ControlResult

RunId = Annotated[str, typer.Argument(metavar="RUN", help="The run; `backfill status` lists the latest.")]


def add_control_commands(app: typer.Typer) -> None:
    for command in (pause, resume, cancel):
        app.command()(command)


def pause(run_id: RunId, reason: ControlReason = None, as_json: AsJson = False) -> None:
    """Have a run begin no date any more. What it has begun is finished, and waits or is published as ever."""
    from gated_backfill.producer.runs.control import pause as order

    _show(order(run_id, open_context(read_settings()), strip_reason(reason)), as_json=as_json)


def resume(run_id: RunId, reason: ControlReason = None, as_json: AsJson = False) -> None:
    """Let a paused run go on."""
    from gated_backfill.producer.runs.control import resume as order

    _show(order(run_id, open_context(read_settings()), strip_reason(reason)), as_json=as_json)


def cancel(
    run_id: RunId,
    reason: ControlReason = None,
    discard: Annotated[
        bool, typer.Option("--discard", help="Do not publish what waits for the gate: remove it.")
    ] = False,
    now: Annotated[bool, typer.Option("--now", help="Stop the dates that are being built, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Stop a run for good. Dates that it has begun are finished; the others are free for other runs at once.

    What is checkpointed stays; `backfill undo` takes it back. `backfill retry` builds what was not.
    """
    from gated_backfill.producer.runs.control import cancel as order

    _show(order(run_id, open_context(read_settings()), strip_reason(reason), discard=discard, now=now), as_json=as_json)


def _show(ordered: ControlResult, *, as_json: bool) -> None:
    if as_json:
        print_json(ordered.as_json())
        return
    console = make_console()
    console.print(ordered.text, soft_wrap=True, markup=False)
    if ordered.note is not None:
        console.print(f"note: {ordered.note}", soft_wrap=True, markup=False)
