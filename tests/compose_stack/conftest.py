"""The shipped compose file, started once by a real container engine. Without an engine, all of it fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import quote
from uuid import uuid4

import pytest

from gated_backfill.producer.stack.embedded import free_port
from tests.compose import write_env
from tests.compose_stack.stack import Engine, NoEngine, Stack, find_engine

PASSWORD = "p@ss:w/rd#1 %?$x"
STOP_SECONDS = 30  #: enough for dates of this data, and short enough to see workers end within it
IMAGES = ("PYTHON_IMAGE", "REDIS_IMAGE", "POSTGRES_IMAGE")


def pytest_configure() -> None:
    try:
        find_engine()
    except NoEngine as exc:
        raise pytest.UsageError(str(exc)) from None


@pytest.fixture(scope="session")
def engine() -> Engine:
    return find_engine()


@pytest.fixture(scope="session")
def stack(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole stack, healthy, with two containers for dates."""
    folder = tmp_path_factory.mktemp("stack")
    project = f"backfill-test-{uuid4().hex[:8]}"
    image = f"localhost/{project}:local"
    values = {
        "REDIS_PASSWORD": PASSWORD,
        "POSTGRES_PASSWORD": PASSWORD,
        "FLOWER_BASIC_AUTH": "ops:letmein",
        "BACKFILL_METRICS_PASSWORD": PASSWORD,
        "BACKFILL_BROKER": f"redis://:{quote(PASSWORD, safe='')}@redis:6379/0",
        "BACKFILL_LEDGER": f"postgresql://backfill:{quote(PASSWORD, safe='')}@postgres:5432/backfill",
        "BACKFILL_IMAGE": image,
        "FLOWER_PORT": str(free_port()),
        "METRICS_PORT": str(free_port()),
        "WORKER_STOP_SECONDS": str(STOP_SECONDS),
        "WORKER_CONCURRENCY": "1",
        "BACKFILL_WINDOW": "20",  # so that windows end, and gates work, all through the run
        "BACKFILL_QUERIES_PER_SECOND": "8",  # so that the run lasts while containers are killed
        **{name: os.environ[name] for name in IMAGES if os.environ.get(name)},
    }
    env_file = write_env(folder / ".env", values)
    stack = Stack(engine=engine, project=project, image=image, env_file=env_file, log=folder / "compose.log")
    stack.say(f"project {project}, with {engine.command}; what it prints is in {stack.log}")
    try:
        start(stack)
        yield stack
    finally:
        stack.say("removing the containers, the volumes, the network and the image")
        stack.remove()


def start(stack: Stack) -> None:
    stack.say("building the image (minutes, when it is built for the first time)")
    stack.compose("build", "setup")
    start_services(stack, workers=2)


def start_services(stack: Stack, *, workers: int) -> None:
    """Start the services in the order of the file: not every engine waits for health checks by itself."""
    stack.say("starting redis and postgres")
    stack.up("redis", "postgres")
    stack.wait_until_healthy(["redis", "postgres"])
    stack.say("setting up the ledger")
    stack.up("setup")
    stack.wait_until_ended("setup")
    stack.say(f"starting the other services, with {workers} containers for dates, and waiting for their health checks")
    stack.up(*OTHERS, workers=workers)
    stack.wait_until_healthy(PERMANENT)


WORKERS = ("worker", "express", "gate", "maintenance", "housekeeping")
OTHERS = (*WORKERS, "beat", "flower", "metrics")
PERMANENT = ("redis", "postgres", *OTHERS)
