"""docker-compose.yml run by a container engine, as a project of its own that leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.compose import BIN, FILE, resolved
from tests.lab import until

PATIENCE_SECONDS = 900.0  #: for what a slow machine does in a minute or two
LABEL = "label=com.docker.compose."


class NoEngine(Exception):
    """Neither Docker nor Podman can run containers here."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A container engine, and the program that reads compose files for it."""

    command: str  #: docker or podman
    compose: tuple[str, ...]
    start_options: tuple[str, ...] = ()  #: of `compose up` and `compose run`

    def is_healthy(self, container: str) -> bool:
        """Return whether the health check of the container passes.

        Podman has systemd call it, which not every machine runs: so it is called here.
        """
        if self.command == "podman":
            return succeeds(["podman", "healthcheck", "run", container])
        return self.inspect(container)["State"]["Health"]["Status"] == "healthy"

    def inspect(self, container: str) -> dict[str, Any]:
        return json.loads(output([self.command, "inspect", container]))[0]


def find_engine() -> Engine:
    """Return Docker if its daemon answers and it has compose, else Podman with podman-compose of our environment."""
    docker = (["docker", "info"], ["docker", "compose", "version"])
    if shutil.which("docker") and all(succeeds(command) for command in docker):
        return Engine(command="docker", compose=("docker", "compose"))
    if shutil.which("podman") and succeeds(["podman", "info"]):
        # Podman 4 can't start containers whose dependencies depend on others.
        return Engine(command="podman", compose=(str(BIN / "podman-compose"),), start_options=("--no-deps",))
    raise NoEngine("no container engine: this needs Docker with `docker compose`, or Podman (apt-get install podman)")


@dataclass
class Stack:
    """A project of compose, with its own containers, volumes, network, ports and image."""

    engine: Engine
    project: str
    image: str
    env_file: Path
    log: Path  #: what the engine and compose print
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.services = resolved(self.env_file)["services"]

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.began:4.0f} s] {text}", flush=True)

    # -- compose --

    def compose(self, *arguments: str) -> str:
        """Run a command of compose; return its standard output. Fails with the last lines of the log.

        podman-compose runs no service whose profile is not given; `up` is always told which services to start.
        """
        command = [*self.engine.compose, "--project-name", self.project, "--env-file", str(self.env_file)]
        return self._run([*command, "--file", str(FILE), "--profile", "cli", *arguments])

    def up(self, *services: str, workers: int = 1) -> None:
        """Start what does not run yet of the services, with that many containers for dates; leave alone what runs."""
        scale = ("--scale", f"worker={workers}") if "worker" in services else ()
        options = (*self.engine.start_options, *scale)
        self.compose("up", "--detach", "--no-build", "--no-recreate", *options, *services)

    def cli(self, *arguments: str, options: Sequence[str] = ()) -> str:
        """Run a command of ours as the documentation does."""
        return self.compose("run", "--rm", "-T", *self.engine.start_options, *options, "cli", *arguments)

    def remove(self) -> None:
        """Remove the containers, the volumes, the network and the image."""
        if running := self._list_containers(running=True):
            self._run([self.engine.command, "kill", *running])
        if left := self._list_containers(running=False):
            self._run([self.engine.command, "rm", "--force", "--volumes", *left])
        self.compose("down", "--volumes")
        if output([self.engine.command, "images", "--quiet", self.image]):
            self._run([self.engine.command, "rmi", "--force", self.image])

    # -- containers --

    def containers(self, service: str, *, running: bool = True) -> list[str]:
        """Return the names of the service's containers."""
        return self._list_containers("--filter", f"{LABEL}service={service}", running=running)

    def _list_containers(self, *chosen: str, running: bool) -> list[str]:
        which = (*chosen, *([] if running else ["--all"]), "--filter", f"{LABEL}project={self.project}")
        return sorted(output([self.engine.command, "ps", *which, "--format", "{{.Names}}"]).split())

    def wait_until_ended(self, service: str) -> None:
        """Wait for a service that ends by itself. Fails if it fails."""
        (container,) = self.containers(service, running=False)
        self.until(lambda: not self.containers(service), f"{service} to end")
        assert self.exit_code(container) == 0, f"{service} failed: {self.log}"

    def wait_until_healthy(self, services: Collection[str]) -> None:
        for service in services:
            self.until(lambda service=service: self._is_healthy(service), f"{service} to be healthy")

    def _is_healthy(self, service: str) -> bool:
        containers = self.containers(service)
        return bool(containers) and all(map(self.engine.is_healthy, containers))

    def inside(self, service: str, *command: str) -> str:
        """Run a command in the first running container of the service; return its standard output."""
        return output([self.engine.command, "exec", self.containers(service)[0], *command])

    def crash(self, service: str) -> None:
        """Kill all processes of the service's first container, as a failure would, so that the engine restarts it."""
        (container, *_) = self.containers(service)
        before = self.engine.inspect(container)["State"]["StartedAt"]
        subprocess.run([self.engine.command, "exec", container, "sh", "-c", "kill -9 -1"], capture_output=True)

        def has_restarted() -> bool:
            state = self.engine.inspect(container)["State"]
            return state["Running"] and state["StartedAt"] != before

        self.until(has_restarted, f"{container} to be restarted by the engine")

    def kill(self, container: str) -> None:
        """Kill the container, as if its host was lost: the engine does not restart it."""
        self._run([self.engine.command, "kill", container])

    def stop(self, containers: Mapping[str, Sequence[str]]) -> dict[str, tuple[int, float]]:
        """Stop containers, given by service, all at the same time; return the exit code and the seconds of each.

        As `compose stop`: SIGTERM, and SIGKILL (exit code 137) after the service's grace period. podman-compose would
        leave out containers that a scaled service has beside its first.
        """

        def stop_one(service: str, container: str) -> tuple[int, float]:
            began = time.monotonic()
            self._run([self.engine.command, "stop", "-t", str(self.grace_seconds(service)), container])
            return self.exit_code(container), time.monotonic() - began

        with ThreadPoolExecutor(max_workers=len(containers) + 3) as pool:
            stopping = {
                name: pool.submit(stop_one, service, name) for service in containers for name in containers[service]
            }
            return {name: stopped.result() for name, stopped in stopping.items()}

    def grace_seconds(self, service: str) -> int:
        return int(self.services[service]["stop_grace_period"].removesuffix("s"))

    def exit_code(self, container: str) -> int:
        state = self.engine.inspect(container)["State"]
        assert not state["Running"], f"{container} is running"
        return state["ExitCode"]

    # -- waiting --

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Return what the condition returns once it is true. Fails when that takes too long."""
        return until(condition, what, patience=PATIENCE_SECONDS, pause=0.5)

    def _run(self, command: Sequence[str]) -> str:
        with self.log.open("a") as log:
            print("$", *command, file=log, flush=True)
            ran = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True, env=clean()
            )
            log.write(ran.stdout)
        if ran.returncode:
            last = "\n".join(self.log.read_text().splitlines()[-40:])
            raise AssertionError(f"exit code {ran.returncode} of {' '.join(command)}; the end of {self.log}:\n{last}")
        return ran.stdout


def clean() -> dict[str, str]:
    """Return this session's environment without the variables of the compose file, which would override its own."""
    ours = ("BACKFILL_", "REDIS_", "POSTGRES_", "PYTHON_IMAGE", "WORKER_", "FLOWER_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def output(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def succeeds(command: Sequence[str]) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0
