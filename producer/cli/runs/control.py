"""`backfill pause`, `resume` and `cancel`."""

from __future__ import annotations

import click

from gated_backfill.common.config.settings import read_settings
from gated_backfill.producer.cli.options import json_option, reason_option, run_argument, strip_reason
from gated_backfill.producer.context import open_context
from gated_backfill.producer.runs import control
from gated_backfill.producer.terminal.console import make_console, print_json


@click.command
@run_argument
@reason_option
@json_option
def pause(run_id: str, reason: str | None, as_json: bool) -> None:
    """Start no further date of a run. Dates in progress are finished and published as usual."""
    _print_result(control.pause(run_id, open_context(read_settings()), strip_reason(reason)), as_json=as_json)


@click.command
@run_argument
@reason_option
@json_option
def resume(run_id: str, reason: str | None, as_json: bool) -> None:
    """Resume a paused run."""
    _print_result(control.resume(run_id, open_context(read_settings()), strip_reason(reason)), as_json=as_json)


@click.command
@run_argument
@reason_option
@click.option("--discard", is_flag=True, help="Delete staged dates that wait for the gate instead of publishing them.")
@click.option("--now", is_flag=True, help="Also stop the dates that are being built.")
@json_option
def cancel(run_id: str, reason: str | None, discard: bool, now: bool, as_json: bool) -> None:
    """Cancel a run. Its dates in progress are finished; the others are free for other runs at once.

    Checkpointed dates stay: `backfill undo` restores their earlier rows. `backfill retry` builds the other dates.
    """
    context = open_context(read_settings())
    _print_result(control.cancel(run_id, context, strip_reason(reason), discard=discard, now=now), as_json=as_json)


def _print_result(result: control.ControlResult, *, as_json: bool) -> None:
    if as_json:
        print_json(result.as_json())
        return
    console = make_console()
    console.print(result.text)
    if result.note is not None:
        console.print(f"note: {result.note}")
