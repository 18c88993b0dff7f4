"""`backfill demo`: replay the incident."""

from __future__ import annotations

import click

from gated_backfill.common.config.settings import read_settings
from gated_backfill.producer.demo.demo import run_demo
from gated_backfill.producer.terminal.console import make_console


@click.command
def demo() -> None:
    """Generate a season of data that contains the incident, run the example job over it, and replay the incident."""
    raise SystemExit(run_demo(read_settings(), make_console()))
