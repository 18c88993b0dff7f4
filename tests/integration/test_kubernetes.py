"""docs/kubernetes.md: its manifests match the published schemas, and what they name exists in the program."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import redis
import yaml
from click.testing import CliRunner
from kombu import Producer, Queue
from sqlalchemy.engine import make_url

from gated_backfill.common.broker.celery_app import make_app
from gated_backfill.common.config.secret_files import secret_file_variable
from gated_backfill.common.config.settings import SECRETS, Settings
from gated_backfill.common.model.scheduling.queues import DATES_QUEUE, LANES, QUEUES, expand_queues
from gated_backfill.producer.cli.main import app
from tests.brokers import valkey
from tests.compose import ROOT, resolved, write_env

PAGE = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
MANIFESTS = [
    manifest
    for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for manifest in yaml.safe_load_all(block)
]
KINDS_OF_KEDA = "keda.sh/v1alpha1"
OLDEST = "1.31"  #: version of Kubernetes
ROW = re.compile(r"^\| (\w+) \| `((?:celery|backfill) [^`]+)` \|", re.MULTILINE)
COMMANDS = {name: shlex.split(command) for name, command in ROW.findall(PAGE)}


def named(manifest: dict[str, Any]) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


BY_NAME = {named(manifest): manifest for manifest in MANIFESTS}
PODS = {
    name: manifest["spec"]["template"]["spec"]
    for name, manifest in BY_NAME.items()
    if "template" in manifest.get("spec", {})
}
CONFIG = BY_NAME["ConfigMap/backfill"]["data"]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The services of docker-compose.yml with their default settings."""
    secrets = ("REDIS_PASSWORD", "POSTGRES_PASSWORD", "FLOWER_BASIC_AUTH", "BACKFILL_METRICS_PASSWORD")
    return resolved(write_env(tmp_path_factory.mktemp("compose") / ".env", dict.fromkeys(secrets, "a:b")))["services"]


def containers() -> dict[str, dict[str, Any]]:
    return {name: container for name, pod in PODS.items() for container in pod["containers"]}


# -- schemas ------------------------------------------------------------------------------------------------------


def test_the_page_has_the_kinds_that_it_speaks_of() -> None:
    assert set(BY_NAME) == {
        "ConfigMap/backfill",
        "Secret/backfill",
        "Job/backfill-migrate",
        "Deployment/worker",
        "Deployment/beat",
        "Deployment/metrics",
        "TriggerAuthentication/backfill-broker",
        "ScaledObject/worker",
    }


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
@pytest.mark.parametrize("name", [name for name, one in BY_NAME.items() if one["apiVersion"] != KINDS_OF_KEDA])
def test_a_manifest_matches_the_schema_of_kubernetes(name: str, version: str) -> None:
    kubernetes_validate.validate(BY_NAME[name], version, strict=True)  # strict: no unknown field


def test_the_manifests_of_keda_have_fields_of_its_documentation_only() -> None:
    """No package has KEDA's schemas, so these are the fields of its specification that the page may use."""
    scaled, broker = BY_NAME["ScaledObject/worker"]["spec"], BY_NAME["TriggerAuthentication/backfill-broker"]["spec"]

    assert scaled.keys() == {
        "scaleTargetRef",
        "minReplicaCount",
        "maxReplicaCount",
        "pollingInterval",
        "cooldownPeriod",
        "triggers",
    }
    assert f"Deployment/{scaled['scaleTargetRef']['name']}" in BY_NAME
    for trigger in scaled["triggers"]:
        assert trigger.keys() == {"type", "metadata", "authenticationRef"}
        assert trigger["type"] == "redis"
        assert trigger["metadata"].keys() == {"address", "enableTLS", "databaseIndex", "listName", "listLength"}
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
        assert trigger["authenticationRef"] == {"name": "backfill-broker"}
    assert broker.keys() == {"secretTargetRef"}
    assert [reference.keys() for reference in broker["secretTargetRef"]] == [{"parameter", "name", "key"}]


# -- commands and queues ------------------------------------------------------------------------------------------


def test_each_command_is_the_one_of_the_service_in_compose(services: dict[str, Any]) -> None:
    permanent = {name for name, one in services.items() if one["restart"] != "no" and name not in ("redis", "postgres")}
    assert set(COMMANDS) == permanent
    for name, command in COMMANDS.items():
        composed = services[name]["command"]
        words = shlex.split(composed) if isinstance(composed, str) else composed
        assert words[: len(command)] == command, name
        assert set(words) - set(command) == (FLOWERS_FILE if name == "flower" else set()), name


#: In compose, Flower keeps what it has seen on a volume.
FLOWERS_FILE = {"--persistent=True", "--db=/var/lib/backfill/flower.db", "--state_save_interval=60000"}


def test_each_manifest_has_the_command_of_the_table() -> None:
    for name, container in containers().items():
        if name != "Job/backfill-migrate":
            assert container["command"] == COMMANDS[container["name"]]
            assert name == f"Deployment/{container['name']}"


def test_each_command_of_ours_exists() -> None:
    ours = [text.split() for text in re.findall(r"`backfill ((?:ledger|tables|run|metrics)[^`]*)`", PAGE)]
    ours += [container["command"][1:] for container in containers().values() if container["command"][0] == "backfill"]
    assert ["ledger", "migrate"] in ours
    for arguments in ours:
        shown = CliRunner().invoke(app, [*arguments, "--help"])
        assert shown.exit_code == 0, (arguments, shown.output)


def test_each_queue_is_one_of_ours_and_has_a_worker() -> None:
    consumed = {
        name: command[command.index("--queues") + 1] for name, command in COMMANDS.items() if "--queues" in command
    }

    assert set(consumed.values()) <= set(QUEUES)
    assert expand_queues(list(consumed.values())) == set(QUEUES)
    (listed,) = re.findall(r"^`--queues backfill` consumes (.*)\.", PAGE, re.MULTILINE)
    assert set(re.findall(r"`([^`]+)`", listed.split(". ")[0])) == expand_queues([DATES_QUEUE])


def test_the_scaler_reads_the_lists_that_hold_the_tasks_of_long_runs(tmp_path: Path) -> None:
    triggers = [trigger["metadata"] for trigger in BY_NAME["ScaledObject/worker"]["spec"]["triggers"]]
    with valkey(tmp_path / "broker") as server:
        url = f"redis://127.0.0.1:{server.port}/0"
        with make_app(Settings(), url).connection_for_write() as connection:  # pyright: ignore[reportCallIssue]
            for lane, priority in itertools.product(LANES, (0, 9)):
                Producer(connection).publish({}, routing_key=lane, declare=[Queue(lane)], priority=priority)
        with redis.Redis.from_url(url) as client:
            waiting = {trigger["listName"]: client.llen(trigger["listName"]) for trigger in triggers}

    assert waiting == dict.fromkeys(LANES, 2)
    broker = make_url(BY_NAME["Secret/backfill"]["stringData"]["broker"])
    assert {trigger["address"] for trigger in triggers} == {f"{broker.host}:{broker.port}"}
    assert {trigger["databaseIndex"] for trigger in triggers} == {broker.database}
    assert {trigger["enableTLS"] for trigger in triggers} == {str(broker.drivername == "rediss").lower()}


# -- settings, probes, times --------------------------------------------------------------------------------------


def test_each_variable_is_a_setting_and_each_secret_file_is_in_the_secret() -> None:
    set_here = CONFIG | {
        variable["name"]: variable["value"] for one in containers().values() for variable in one.get("env", [])
    }
    secret_files = {secret_file_variable(name) for name in SECRETS}
    files = {name: value for name, value in set_here.items() if name in secret_files}

    for name in set_here.keys() - files.keys():
        assert name.removeprefix("BACKFILL_").lower() in Settings.model_fields, name
    assert {"BACKFILL_BROKER_FILE", "BACKFILL_LEDGER_FILE", "BACKFILL_METRICS_PASSWORD_FILE"} <= files.keys()
    assert set(re.findall(r"`(BACKFILL_[A-Z_]+_FILE)`", PAGE)) <= secret_files
    for file in files.values():
        folder, _, key = file.rpartition("/")
        assert key in BY_NAME["Secret/backfill"]["stringData"]
        assert all(
            {"name": "secrets", "mountPath": folder, "readOnly": True} in one["volumeMounts"]
            for one in containers().values()
        )


def test_the_probes_are_the_health_checks_of_compose(services: dict[str, Any]) -> None:
    for name in ("worker", "beat"):
        container = containers()[f"Deployment/{name}"]
        test = services[name]["healthcheck"]["test"]
        check = test if isinstance(test, str) else test[-1]
        for probe in {"startupProbe", "livenessProbe"} & container.keys():
            *shell, text = container[probe]["exec"]["command"]
            assert shell == ["sh", "-c"]
            assert text.removeprefix("exec ") == check.replace("$$", "$")
    probe = containers()["Deployment/metrics"]["readinessProbe"]["httpGet"]
    assert f"http://127.0.0.1:{probe['port']}{probe['path']}" in services["metrics"]["healthcheck"]["test"]
    assert "http://127.0.0.1:5555/healthcheck" in services["flower"]["healthcheck"]["test"]
    assert "`httpGet: {path: /healthcheck, port: 5555}`" in PAGE


def test_workers_have_ended_when_their_pod_is_killed(services: dict[str, Any]) -> None:
    stop_seconds = int(CONFIG["BACKFILL_STOP_SECONDS"])

    assert PODS["Deployment/worker"]["terminationGracePeriodSeconds"] > stop_seconds
    assert stop_seconds == int(services["worker"]["environment"]["BACKFILL_STOP_SECONDS"])


def test_beat_has_one_replica_which_ends_before_the_next_one_starts() -> None:
    beat = BY_NAME["Deployment/beat"]["spec"]

    assert (beat["replicas"], beat["strategy"]) == (1, {"type": "Recreate"})
    assert "replicas" not in BY_NAME["Deployment/worker"]["spec"]  # the scaler sets it


def test_every_pod_is_confined_and_has_the_folders_that_the_image_writes_to(services: dict[str, Any]) -> None:
    for name, pod in PODS.items():
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] == 10001, name
        assert container["securityContext"] == {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }, name
        written = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert written == {"/tmp", CONFIG["BACKFILL_HOME"]}, name  # noqa: S108 - of the container
