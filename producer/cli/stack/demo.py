"""`backfill demo`: replay the incident."""

from __future__ import annotations

import typer

from gated_backfill.common.config.settings import read_settings
from gated_backfill.producer.demo.demo import run_demo
from gated_backfill.producer.terminal.console import make_console


def demo() -> None:
    """Generate a season of data that contains the incident, run the example job over it, and replay the incident."""
    raise typer.Exit(run_demo(read_settings(), make_console()))
