"""The console script takes a short way to some commands: they are the same commands."""

from __future__ import annotations

from collections.abc import Set
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gated_backfill.producer.cli.command_line import create_app
from gated_backfill.producer.cli.main import app as whole
from gated_backfill.producer.cli.start import QUICK
from tests.builders import run_python

DEARLY_IMPORTED = {
    "gated_backfill.common.config.settings",
    "gated_backfill.common.warehouse",
    "pydantic_settings",
    "pyarrow",
    "numpy",
    "pandas",
    "celery",
}
STATUS = """
    import os, sys
    os.environ["BACKFILL_HOME"] = sys.argv[1]
    sys.argv = ["backfill", "status", *sys.argv[2:]]
    from gated_backfill.producer.cli.start import main
    os._exit = lambda code: None  # or nobody could ask any more
    try:
        main()
    except SystemExit:
        print(*sys.modules)
"""


@pytest.mark.parametrize("command", QUICK)
def test_a_command_is_the_same_on_the_short_way(command: str) -> None:
    module, add_commands = QUICK[command]
    short = create_app()
    getattr(import_module(module), add_commands)(short)

    asked, asked_of_all = (CliRunner().invoke(one, [command, "--help"]) for one in (short, whole))

    assert asked.exit_code == asked_of_all.exit_code == 0
    assert asked.output == asked_of_all.output


@pytest.mark.parametrize(
    ("words", "spared"),
    [
        pytest.param((), {*DEARLY_IMPORTED, "typer", "pydantic"}, id="without-options"),
        pytest.param(("--every-date",), DEARLY_IMPORTED, id="with-options"),
    ],
)
def test_status_imports_nothing_dear(tmp_path: Path, words: tuple[str, ...], spared: Set[str]) -> None:
    ran = run_python(STATUS, tmp_path / "home", *words)
    said, modules = ran.stdout.splitlines()
    assert said.startswith("no run was launched yet")
    assert not spared & set(modules.split())
