"""The command line loads a command when it is called, and its help loads none."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from click.testing import CliRunner

from gated_backfill.common.errors import UserError
from gated_backfill.producer.cli.main import COMMANDS, app, load_command, main
from tests.builders import run_python

SLOW_IMPORTS = {"gated_backfill.common.config.settings", "gated_backfill.common.warehouse", "pydantic_settings"}
SLOW_IMPORTS |= {"pyarrow", "numpy", "pandas", "celery", "gated_backfill.common.model.job"}
SCRIPT = """
    import os, sys
    os.environ["BACKFILL_HOME"] = sys.argv[1]
    sys.argv = ["backfill", *sys.argv[2:]]
    from gated_backfill.producer.cli.main import main
    try:
        main()
    except SystemExit:
        print(*sys.modules)
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_loaded_with_its_help(name: str) -> None:
    assert load_command(name).help
    assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0


def test_help_lists_every_command_and_loads_none(tmp_path: Path) -> None:
    lines = run_python(SCRIPT, tmp_path / "home", "--help").stdout.splitlines()
    assert all(any(f" {name} " in line for line in lines) for name in COMMANDS)
    assert not {"sqlalchemy", *SLOW_IMPORTS} & set(lines[-1].split())


@pytest.mark.parametrize("options", [(), ("--every-date",)])
def test_status_does_without_slow_imports(tmp_path: Path, options: tuple[str, ...]) -> None:
    output, modules = run_python(SCRIPT, tmp_path / "home", "status", *options).stdout.splitlines()
    assert output.startswith("no run was launched yet")
    assert not {"pydantic", *SLOW_IMPORTS} & set(modules.split())


def test_loading_a_command_leaves_garbage_collection_as_usual() -> None:
    load_command("status")
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_the_version_is_printed() -> None:
    printed = CliRunner().invoke(app, ["--version"])
    assert printed.exit_code == 0
    assert printed.output.startswith("backfill ")


def test_an_interrupt_ends_a_command_without_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gated_backfill.producer.cli.main.load_command", interrupt)
    monkeypatch.setattr("sys.argv", ["backfill", "status"])
    with pytest.raises(SystemExit) as ended:
        main()
    gc.unfreeze()
    assert ended.value.code == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "value", "choices"),
    [
        ("--reprocess", "ALL", "'none', 'failed', 'stale', 'undone', 'all'"),
        ("--fallback", "REPLACE", "'replace', 'fill', 'off'"),
    ],
)
def test_an_enum_is_given_by_its_values(name: str, value: str, choices: str) -> None:
    refused = CliRunner().invoke(app, ["plan", "--job", "x", name, value])
    assert f"'{value}' is not one of {choices}" in refused.output
    accepted = CliRunner().invoke(app, ["plan", name, value.lower()])
    assert isinstance(accepted.exception, UserError)
