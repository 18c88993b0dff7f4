"""The console script. `status`, which is asked over and over, imports no more than it needs."""

from __future__ import annotations

import sys

from common.quick_imports import quick_imports


def main() -> None:
    if sys.argv[1:2] == ["status"]:
        with quick_imports():
            from producer.cli_look import add_look_commands
            from producer.edge import new_app, run
        app = new_app()
        add_look_commands(app)
        run(app)
    with quick_imports():
        from producer.cli import main as any_command
    any_command()
