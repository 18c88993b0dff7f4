"""Flower's command is given what it must not lack, and nothing else is touched."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from pydantic import SecretStr

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import UserError
from gated_backfill.producer.stack.embedded import free_port
from gated_backfill.producer.stack.supervised_stack import UpOptions, check_ports, choose_flower_port
from gated_backfill.worker.flower import celery_subcommand, prepare_flower

FLOWER = ["celery", "--app", "gated_backfill.worker.app", "flower"]


@pytest.mark.parametrize(
    ("line", "command"),
    [
        pytest.param("celery --app gated_backfill.worker.app flower", "flower", id="flower"),
        pytest.param("celery -A gated_backfill.worker.app flower --port=1", "flower", id="with-options"),
        pytest.param("celery --app=gated_backfill.worker.app -q flower", "flower", id="flag-before"),
        pytest.param("celery -A flower worker", "worker", id="app-of-that-name"),
        pytest.param("celery --app gated_backfill.worker.app worker -n flower", "worker", id="worker-of-that-name"),
        pytest.param("celery --app gated_backfill.worker.app", None, id="none"),
        pytest.param("pytest", None, id="not-celery"),
    ],
)
def test_the_subcommand_of_a_command_line_of_celerys(line: str, command: str | None) -> None:
    assert celery_subcommand(line.split()) == command


def test_flower_is_persistent_on_loopback_and_with_a_password(tmp_path: Path) -> None:
    environment: dict[str, str] = {"FLOWER_PORT": "7777"}
    prepare_flower(Settings(home=tmp_path, flower_password=SecretStr("s3cret")), FLOWER, environment)
    assert environment["FLOWER_BASIC_AUTH"] == "backfill:s3cret"
    assert environment["FLOWER_ADDRESS"] == "127.0.0.1"
    assert environment["FLOWER_PERSISTENT"] == "true"
    assert Path(environment["FLOWER_DB"]).parent.is_dir()
    assert environment["FLOWER_PORT"] == "7777"  # what was said stays


def test_flowers_metrics_ask_for_the_password_too(tmp_path: Path) -> None:
    from flower.views.monitor import Healthcheck, Metrics

    prepare_flower(Settings(home=tmp_path, flower_password=SecretStr("s3cret")), FLOWER, {})
    assert Metrics.get.__wrapped__ is not None  # by tornado's `authenticated`
    assert not hasattr(Healthcheck.get, "__wrapped__")


def test_flower_that_everybody_could_use_is_refused(home: Settings) -> None:
    with pytest.raises(SystemExit, match="BACKFILL_FLOWER_PASSWORD"):
        prepare_flower(home, FLOWER, {})
    with pytest.raises(SystemExit, match="open to everybody"):
        prepare_flower(home, FLOWER, {"FLOWER_BASIC_AUTH": ""})


@pytest.mark.parametrize(
    ("more", "environment"),
    [
        pytest.param([], {"FLOWER_BASIC_AUTH": "a:b"}, id="its-own-variable"),
        pytest.param([], {"FLOWER_UNAUTHENTICATED_API": "true"}, id="told-to-be-open"),
        pytest.param(["--basic-auth=a:b"], {}, id="on-the-command-line"),
        pytest.param(["--auth=.*@example.com"], {}, id="another-kind"),
    ],
)
def test_flower_starts_when_its_user_has_seen_to_it(
    home: Settings, more: list[str], environment: dict[str, str]
) -> None:
    before = environment.get("FLOWER_BASIC_AUTH")
    prepare_flower(home, [*FLOWER, *more], environment)
    assert environment.get("FLOWER_BASIC_AUTH") == before


def test_other_commands_are_left_alone(home: Settings) -> None:
    environment: dict[str, str] = {}
    prepare_flower(home, ["celery", "--app", "gated_backfill.worker.app", "worker"], environment)
    assert environment == {}


def test_a_port_that_was_asked_for_is_used_or_refused_and_the_usual_one_is_avoided(home: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        usual = home.model_copy(update={"flower_port": port})  # as a default: nobody set it
        usual.model_fields_set.discard("flower_port")
        assert choose_flower_port(UpOptions(workers=1), usual) != port
        with pytest.raises(UserError, match=f"port {port}"):
            choose_flower_port(UpOptions(workers=1, flower_port=port), home)
        with pytest.raises(UserError, match=f"port {port}"):
            choose_flower_port(UpOptions(workers=1), Settings(home=home.home, flower_port=port))
    assert choose_flower_port(UpOptions(workers=1, flower_port=port), home) == port


def test_flower_and_metrics_are_refused_one_port(home: Settings) -> None:
    port = free_port()
    with pytest.raises(UserError, match="can't share a port"):
        check_ports(UpOptions(workers=1, flower_port=port, metrics_port=port), home)
