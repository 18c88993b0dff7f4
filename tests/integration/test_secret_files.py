"""Secrets in files: read in place of the plain variables, by every process, and never shown."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

import pytest

from gated_backfill.common.config.ledger_url import read_ledger_url
from gated_backfill.common.config.settings import SECRETS, read_settings
from gated_backfill.common.errors import UserError
from gated_backfill.producer.stack.children import child_environment
from tests.lab import Lab, players

SECRET = "hunter2-s3cret"
FEB_23 = date(2023, 2, 23)


def test_every_setting_that_can_hold_a_secret_has_a_file() -> None:
    assert set(SECRETS) == {"broker", "ledger", "alerts", "flower_password", "metrics_password"}


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_read_from_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    monkeypatch.setenv(f"BACKFILL_{name.upper()}_FILE", str(tmp_path / "secret"))
    monkeypatch.setenv(f"BACKFILL_{name.upper()}", "")

    settings = read_settings()

    assert getattr(settings, name).get_secret_value() == SECRET
    assert SECRET not in f"{settings!r} {settings} {settings.model_dump_json()}"


@pytest.mark.parametrize("url", ["postgresql://user:pass@db/ledger", "sqlite:////data/ledger.db"])
def test_the_ledger_is_found_by_its_file_with_and_without_the_other_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str
) -> None:
    (tmp_path / "url").write_text(url)
    monkeypatch.setenv("backfill_ledger_file", str(tmp_path / "url"))

    assert read_ledger_url() == read_settings().ledger_url == url


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(None, "can't be read: No such file or directory", id="missing"),
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b" \n", "is empty", id="blank"),
        pytest.param(b"\xff\xfe", "is not UTF-8 text", id="not-text"),
        pytest.param(b"a\0b", "holds no secret", id="nul"),
        pytest.param(b"x" * 70_000, "holds no secret", id="too-large"),
    ],
)
@pytest.mark.parametrize("command", [("status",), ("history",), ("alerts",)])
def test_a_file_that_cannot_be_used_is_refused_in_one_line(
    lab: Lab, content: bytes | None, problem: str, command: tuple[str, ...]
) -> None:
    file = lab.marks / SECRET
    if content is not None:
        file.write_bytes(content)

    refused = lab.inside(*command, BACKFILL_LEDGER_FILE=str(file))

    assert refused.returncode == 2
    assert refused.stderr.startswith(f"backfill: BACKFILL_LEDGER_FILE names a file that {problem}")
    assert len(refused.stderr.splitlines()) == 1
    assert SECRET not in refused.stderr


def test_a_folder_is_no_secret(lab: Lab) -> None:
    refused = lab.inside("status", BACKFILL_LEDGER_FILE=str(lab.marks))

    assert refused.returncode == 2
    assert "BACKFILL_LEDGER_FILE names a file that can't be read: Is a directory" in refused.stderr


@pytest.mark.parametrize("command", [("status",), ("history",)])
def test_a_variable_and_its_file_are_not_both_set(lab: Lab, command: tuple[str, ...]) -> None:
    file = lab.marks / "url"
    file.write_text(f"postgresql://u:{SECRET}@127.0.0.1:1/x")

    refused = lab.inside(*command, BACKFILL_LEDGER_FILE=str(file), BACKFILL_LEDGER=f"sqlite:///{SECRET}.db")

    assert refused.returncode == 2
    assert refused.stderr == "backfill: BACKFILL_LEDGER and BACKFILL_LEDGER_FILE are both set: unset one of them\n"


def test_a_wrong_secret_is_named_by_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(f"{SECRET},b")
    monkeypatch.setenv("BACKFILL_FLOWER_PASSWORD_FILE", str(tmp_path / "password"))

    with pytest.raises(UserError, match=r"^wrong settings: BACKFILL_FLOWER_PASSWORD_FILE: ") as refused:
        read_settings()
    assert SECRET not in str(refused.value)


def test_a_run_and_its_workers_find_the_ledger_by_a_file_beside_them(lab: Lab) -> None:
    lab.probe_all([FEB_23], players(3))
    folder = lab.marks.parent
    (folder / "url").write_text(f"sqlite:///{lab.home}/ledger.db\n")
    run = ("run", "--job", "probe", "--dates", str(FEB_23), "--workers", "1")

    files = {f"BACKFILL_{name}_FILE": "url" for name in ("LEDGER", "METRICS_PASSWORD")}
    ran = lab.command(*run, cwd=folder, **files)

    assert ran.returncode == 0, ran.stderr
    assert lab.states(lab.latest_run().id) == ["checkpointed"]


def test_a_process_gets_the_variable_or_the_file_with_its_whole_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKFILL_BROKER_FILE", "broker")
    monkeypatch.setenv("BACKFILL_ALERTS_FILE", "alerts")

    environment = child_environment({"BACKFILL_BROKER": "redis://somewhere"})

    assert environment["BACKFILL_BROKER"] == "redis://somewhere"
    assert "BACKFILL_BROKER_FILE" not in environment
    assert environment["BACKFILL_ALERTS_FILE"] == str(Path.cwd() / "alerts")
    assert environment["PATH"] == os.environ["PATH"]
