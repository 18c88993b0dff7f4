"""Settings: read whole, wrong ones named, secrets never shown."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from gated_backfill.common.config.ledger_url import read_ledger_url
from gated_backfill.common.config.settings import Settings, read_settings
from gated_backfill.common.errors import BackfillError, UserError
from gated_backfill.common.ledger import open_ledger
from gated_backfill.common.ledger.connections import limit_wait
from gated_backfill.common.storage.staging import open_staging
from gated_backfill.common.warehouse.backends import open_warehouse
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse

PASSWORD = "hunter2-s3cret"


def shown(exc: BaseException) -> str:
    """All that a log could print of an error."""
    return "".join(traceback.format_exception(exc)) + repr(exc)


def test_the_defaults_lie_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = read_settings()
    assert settings.broker is None
    assert settings.ledger_url == f"sqlite:///{tmp_path}/.backfill/ledger.db"
    assert settings.warehouse_url == f"local:{tmp_path}/.backfill/warehouse"
    assert settings.staging_url == f"{tmp_path}/.backfill/staging"


def test_reading_settings_makes_nothing(home: Settings) -> None:
    assert home.ledger_url
    assert not home.home.exists()


def test_the_environment_overrides_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "HOME": "/somewhere",
        "LEDGER": "postgresql://db/ledger",
        "WAREHOUSE": "local:/data",
        "STAGING": "/shared",
        "WINDOW": "7",
    }
    for name, value in given.items():
        monkeypatch.setenv(f"BACKFILL_{name}", value)
    settings = read_settings()
    assert (settings.home, settings.window) == (Path("/somewhere"), 7)
    urls = (settings.ledger_url, settings.warehouse_url, settings.staging_url)
    assert urls == ("postgresql://db/ledger", "local:/data", "/shared")


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"BACKFILL_HOME": "elsewhere"}, id="home"),
        pytest.param({"backfill_home": "/some/where"}, id="small-letters"),
        pytest.param({"BACKFILL_HOME": ""}, id="home-empty"),
        pytest.param({"BACKFILL_LEDGER": "sqlite:///ledger.db"}, id="file"),
        pytest.param({"BACKFILL_LEDGER": "sqlite:////data/ledger.db?timeout=5", "BACKFILL_HOME": "x"}, id="root"),
        pytest.param({"BACKFILL_LEDGER": "postgresql://user:pass@db/ledger"}, id="postgresql"),
        pytest.param({"BACKFILL_LEDGER": "sqlite:///"}, id="no-file"),
        pytest.param({"BACKFILL_LEDGER": ""}, id="ledger-empty"),
    ],
)
def test_the_ledger_is_found_alike_with_and_without_the_other_settings(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert read_ledger_url() == read_settings().ledger_url


@pytest.mark.parametrize(
    ("name", "url"),
    [
        pytest.param("BACKFILL_BROKER", f"redis://user:{PASSWORD}@broker:6379/0", id="broker"),
        pytest.param("BACKFILL_LEDGER", f"postgresql://user:{PASSWORD}@db/ledger", id="ledger"),
    ],
)
def test_a_password_is_never_printed(monkeypatch: pytest.MonkeyPatch, name: str, url: str) -> None:
    monkeypatch.setenv(name, url)
    settings = read_settings()
    assert PASSWORD not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    monkeypatch.setenv("BACKFILL_WINDOW", "many")
    with pytest.raises(UserError) as refused:
        read_settings()
    assert PASSWORD not in shown(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        pytest.param(f"user:{PASSWORD}@db/ledger", id="no-scheme"),
        pytest.param(f"mysql://user:{PASSWORD}@db/ledger", id="another-database"),
        pytest.param(f"postgresql://user:{PASSWORD}@db:port/ledger", id="bad-port"),
        pytest.param(f"postgresql://user:{PASSWORD}@127.0.0.1:1/ledger?connect_timeout=2", id="nobody-answers"),
        pytest.param(f"sqlite://user:{PASSWORD}@/", id="no-file"),
        pytest.param(PASSWORD, id="the-password-alone"),
    ],
)
def test_a_ledger_url_that_is_wrong_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(BackfillError) as refused:
        open_ledger(url)
    assert PASSWORD not in shown(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("BACKFILL_WINDOW", "a_lot_of_dates", id="no-number"),
        pytest.param("BACKFILL_WINDOW", "-4711", id="negative"),
        pytest.param("BACKFILL_WINDOW", "471100", id="too-big"),
        pytest.param("BACKFILL_WINDOW", "47.11", id="fraction"),
        pytest.param("BACKFILL_WORKERS", "", id="empty"),
        pytest.param("BACKFILL_RETRY_SECONDS", "-0.4711", id="no-positive-time"),
        pytest.param("BACKFILL_VISIBILITY_SECONDS", "47", id="too-short"),
        pytest.param("BACKFILL_TIMEZONE", "America/Springfield", id="no-such-zone"),
        pytest.param("BACKFILL_TIMEZONE", "../etc/passwd", id="no-zone-at-all"),
        pytest.param("BACKFILL_CLEANUP_AT", "25:00", id="no-such-time"),
        pytest.param("BACKFILL_CLEANUP_AT", "04:00+02:00", id="time-with-an-offset"),
        pytest.param("BACKFILL_FLOWER_PASSWORD", "hunter2,b", id="password-flower-would-cut"),
        pytest.param("BACKFILL_FLOWER_USER", "hunter2:b", id="user-with-a-colon"),
        pytest.param("BACKFILL_FLOWER_PORT", "70000", id="no-such-port"),
    ],
)
def test_a_wrong_setting_is_named_without_its_value(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=name) as refused:
        read_settings()
    assert not value or value not in str(refused.value)


def test_all_wrong_settings_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKFILL_WINDOW", "x")
    monkeypatch.setenv("BACKFILL_WORKERS", "y")
    with pytest.raises(UserError, match=r"BACKFILL_WINDOW: .*; BACKFILL_WORKERS: "):
        read_settings()


def test_settings_cannot_be_changed_afterwards(home: Settings) -> None:
    with pytest.raises(ValueError, match="frozen"):
        home.window = 5


def test_a_local_warehouse_is_opened_by_its_url(tmp_path: Path) -> None:
    opened = open_warehouse(f"local:{tmp_path}")
    assert isinstance(opened, LocalWarehouse)
    assert opened.root == tmp_path


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("local:", id="no-folder"),
        pytest.param("/just/a/folder", id="no-kind"),
        pytest.param("snowflake://account", id="unknown-kind"),
    ],
)
def test_another_warehouse_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="BACKFILL_WAREHOUSE"):
        open_warehouse(url)


def test_staging_that_is_no_folder_is_refused() -> None:
    with pytest.raises(UserError, match="BACKFILL_STAGING"):
        open_staging("ftp://host/staging")


@pytest.mark.parametrize(
    ("given", "own", "others"),
    [
        ({}, ("backfill.backfill_metadata", "backfill.other"), ("shop.backfill_metadata",)),
        ({"METADATA_TABLE": "shop.runs"}, ("backfill.backfill_metadata", "shop.runs"), ("shop.sales",)),
        ({"METADATA_TABLE": "none"}, ("backfill.backfill_metadata",), ("shop.runs",)),
        ({"WAREHOUSE": "bigquery://a-project"}, ("backfill.publications",), ("shop.publications",)),
        (
            {"WAREHOUSE": "bigquery://a-project?location=EU&dataset=tool"},
            ("tool.publications", "backfill.backfill_metadata"),
            ("backfill.publications",),
        ),
        ({"WAREHOUSE": "local:/data?dataset=tool"}, ("backfill.other",), ("tool.other",)),
    ],
)
def test_the_tools_own_tables_are_known(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], own: tuple[str, ...], others: tuple[str, ...]
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(f"BACKFILL_{name}", value)
    settings = read_settings()
    for table in own:
        with pytest.raises(UserError, match=f"^{table}: only the tool writes to its own tables"):
            settings.check_not_own_table(table)
    for table in others:
        settings.check_not_own_table(table)


@pytest.mark.parametrize(
    ("url", "limited"),
    [
        ("sqlite:////a/ledger.db", "sqlite:////a/ledger.db?timeout=5"),
        ("sqlite:////a/ledger.db?timeout=1", "sqlite:////a/ledger.db?timeout=1"),
        (
            "postgresql://ada:secret@host/db?sslmode=require",
            "postgresql://ada:secret@host/db?connect_timeout=5&tcp_user_timeout=5000&sslmode=require",
        ),
    ],
)
def test_the_wait_for_a_ledger_is_limited_by_its_url(url: str, limited: str) -> None:
    assert make_url(limit_wait(url, 5)) == make_url(limited)
