"""The console script: it imports what the command that is asked for needs, and no other's."""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module

from common.quick_imports import quick_imports

LOOK, RUNS = ("producer.cli_look", "add_look_commands"), ("producer.cli_runs", "add_run_commands")
#: Commands that are asked for over and over, each with the module that has it and what adds it to a command line.
QUICK = {"status": LOOK, "watch": LOOK, "plan": RUNS, "run": RUNS}
ONLY_LOOKING = frozenset({"status", "plan"})  #: commands that have closed what they had opened when they end


def main() -> None:
    command = next(iter(sys.argv[1:]), "")
    if command in ONLY_LOOKING:  # which validate nothing but settings: plugins are looked for in all that is installed
        os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    with quick_imports():
        from producer.edge import new_app, run

        if command in QUICK:
            module, add_commands = QUICK[command]
            app = new_app()
            getattr(import_module(module), add_commands)(app)
        else:
            from producer.cli import app
    if command in ONLY_LOOKING:
        gc.disable()  # they end before there is garbage that is worth looking for, beside all that was imported
    try:
        run(app)
    except SystemExit as end:
        if command in ONLY_LOOKING:
            _leave(end)
        raise


def _leave(end: SystemExit) -> None:
    """End at once: to take apart all that was imported takes as long as half of what `status` does.

    Returns where there may be something left to do.
    """
    from producer.exit_codes import COMPLETE, INCOMPLETE

    if end.code not in (COMPLETE, INCOMPLETE):
        return
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # nobody reads on: Python knows how to say so
        return
    os._exit(end.code)
