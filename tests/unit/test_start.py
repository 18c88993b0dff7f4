"""The console script takes a short way to some commands: they are the same commands."""

from __future__ import annotations

from importlib import import_module

import pytest
from typer.testing import CliRunner

from producer.cli import app as whole
from producer.edge import new_app
from producer.start import QUICK


@pytest.mark.parametrize("command", QUICK)
def test_a_command_is_the_same_on_the_short_way(command: str) -> None:
    module, add_commands = QUICK[command]
    short = new_app()
    getattr(import_module(module), add_commands)(short)

    asked, asked_of_all = (CliRunner().invoke(one, [command, "--help"]) for one in (short, whole))

    assert asked.exit_code == asked_of_all.exit_code == 0
    assert asked.output == asked_of_all.output
