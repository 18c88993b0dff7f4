"""A real Prometheus: Debian's. Without it these tests fail; nothing is skipped."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
import yaml

from gated_backfill.producer.stack.embedded import free_port
from tests.builders import ROOT
from tests.lab import lab as lab
from tests.lab import until

PROMETHEUS, PROMTOOL = Path("/usr/bin/prometheus"), Path("/usr/bin/promtool")
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
INTERVAL = "200ms"  #: of scrapes and evaluations, instead of the usual minute


@pytest.fixture(scope="session", autouse=True)
def _installed() -> None:
    if missing := [str(program) for program in (PROMETHEUS, PROMTOOL) if not program.exists()]:
        pytest.fail(f"there is no {' and no '.join(missing)}: apt-get install prometheus", pytrace=False)


@dataclass
class Prometheus:
    """A server that evaluates the shipped rules, without their waiting times, on one target."""

    folder: Path
    address: str

    def ask(self, path: str, **parameters: str) -> Any:
        with urlopen(f"{self.address}/api/v1/{path}?{urlencode(parameters)}") as answer:  # noqa: S310 - our own address
            return json.load(answer)["data"]

    def firing(self) -> set[str]:
        """The names of the alerts that fire now."""
        return {alert["labels"]["alertname"] for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"}

    def value(self, query: str) -> float | None:
        """The value of a query with one result; None without a result."""
        result = self.ask("query", query=query)["result"]
        return float(result[0]["value"][1]) if result else None

    def await_evaluations(self) -> None:
        """Wait until the rules were evaluated twice from now on: the second one began after this call."""
        evaluations = "sum(prometheus_rule_group_iterations_total)"
        before = self._own_counter(evaluations)
        until(lambda: self._own_counter(evaluations) >= before + 2, "two evaluations of the rules")

    def await_firing(self, *alerts: str) -> None:
        until(lambda: self.firing() == {*alerts}, f"exactly these alerts: {', '.join(alerts) or 'none'}")

    def scrape(self, targets: list[str]) -> None:
        """Scrape these targets from now on, instead of others."""
        (self.folder / "prometheus.yml").write_text(yaml.safe_dump(configuration(targets)))
        with urlopen(Request(f"{self.address}/-/reload", method="POST")):  # noqa: S310 - our own address
            pass

    def _own_counter(self, name: str) -> float:
        metric = re.escape(name.removeprefix("sum(").removesuffix(")"))
        with urlopen(f"{self.address}/metrics") as answer:  # noqa: S310 - our own address
            text = answer.read().decode()
        return sum(float(found) for found in re.findall(rf"^{metric}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


def configuration(targets: list[str]) -> dict[str, Any]:
    """The configuration that the deployment guide shows, with short intervals."""
    job = {"job_name": "backfill", "honor_labels": True, "static_configs": [{"targets": targets}]}
    return {
        "global": {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL, "evaluation_interval": INTERVAL},
        "rule_files": ["alerts.yml"],
        "scrape_configs": [job],
    }


def shortened(rules: str) -> str:
    """The rules without their waiting times."""
    return re.sub(r"^ *for: .*\n", "", rules, flags=re.MULTILINE)


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Callable[[str], Prometheus]]:
    """Start a Prometheus that scrapes a target, such as `127.0.0.1:9808`."""
    processes: list[subprocess.Popen[bytes]] = []

    def started(target: str) -> Prometheus:
        folder = tmp_path / "prometheus"
        folder.mkdir()
        (folder / "alerts.yml").write_text(shortened(RULES.read_text()))
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration([target])))
        port = free_port()
        arguments = [f"--web.listen-address=127.0.0.1:{port}", "--web.enable-lifecycle", "--log.level=warn"]
        arguments += [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        log = (folder / "log").open("wb")
        with log:
            processes.append(subprocess.Popen([str(PROMETHEUS), *arguments], stdout=log, stderr=log))
        server = Prometheus(folder=folder, address=f"http://127.0.0.1:{port}")
        until(lambda: is_ready(server), "Prometheus to be ready")
        return server

    yield started
    for process in processes:
        process.terminate()
        process.wait()


def is_ready(server: Prometheus) -> bool:
    with suppress(OSError), urlopen(f"{server.address}/-/ready"):  # noqa: S310 - our own address
        return True
    return False
