"""A lock excludes other processes, names its holder, and ends with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gated_backfill.common.process.file_lock import LockNotFree, locked

HOLD = """
import sys
from pathlib import Path
from gated_backfill.common.process.file_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_lock_that_is_held_too_long_names_its_holder(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    expected = f"process {holder.pid}" if sys.platform == "linux" else "another process"
    with pytest.raises(LockNotFree, match=f"^{expected}$"), locked(tmp_path / "lock", max_wait_seconds=0.01):
        pytest.fail("two processes hold the lock")


def test_a_lock_is_had_once_its_holder_has_died(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    with locked(tmp_path / "lock", max_wait_seconds=30):
        pass
