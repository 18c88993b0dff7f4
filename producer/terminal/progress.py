"""A bar for the progress of a long command."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from rich.progress import Progress as Bar

from gated_backfill.producer.tables.row_file import Progress, no_progress
from gated_backfill.producer.terminal.console import make_console


@contextmanager
def progress_bar() -> Generator[Progress]:
    """Show a bar on standard error while the block runs, on a terminal only."""
    console = make_console(stderr=True)
    if not console.is_terminal:
        yield no_progress
        return
    with Bar(console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(step: str, done: int, total: int) -> None:
            bar.update(task, description=step, completed=done, total=total)

        yield show
