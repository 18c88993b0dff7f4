"""What no bad input may do: end in a traceback, tell a secret, change what is published, write anywhere else."""

from __future__ import annotations

import io
import os
import subprocess
from contextlib import chdir, redirect_stderr, redirect_stdout
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from gated_backfill.producer.cli.main import main
from tests.lab import Lab, players

ALLOWED = (0, 2, 3)
SECRET = "hunter2-canary"
DAYS = ("2023-02-20", "2023-02-21", "2023-02-22")


class Watched:
    """A lab with a finished run, in which commands run in this process."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.cwd = lab.home / "cwd"
        self.cwd.mkdir(parents=True, exist_ok=True)
        self.canary = lab.home.parent / "canary"
        self.canary.write_text("unharmed")
        self.around = self._around()
        self.rows = self.published()

    def published(self) -> dict[str, Any]:
        """The rows that readers see, and the proofs that they are complete."""
        with create_engine(self.lab.context.settings.ledger_url).connect() as connection:
            proofs = connection.execute(text("SELECT * FROM checkpoints ORDER BY job, day")).all()
        root = self.lab.home / "warehouse"
        parts = {str(part.relative_to(root)): part.read_bytes() for part in root.glob("*/*/*=*/part.parquet")}
        return parts | {"checkpoints": proofs}

    def _around(self) -> dict[str, int]:
        """Everything beside the lab's home."""
        beside = self.lab.home.parent
        return {
            str(path): path.lstat().st_mtime_ns
            for path in beside.rglob("*")
            if not path.is_relative_to(self.lab.home) and not path.is_relative_to(self.lab.marks)
        }

    def check(self, code: int, out: str, err: str) -> None:
        assert code in ALLOWED, (code, out, err)
        assert "Traceback" not in out + err, err
        assert SECRET not in out + err
        if code == 2:
            assert len(err.splitlines()) == 1, err
            assert err.startswith("backfill: ")
            assert self.published() == self.rows
        else:
            self.rows = self.published()
        assert self.canary.read_text() == "unharmed"
        around = self._around()
        assert around == self.around, set(around.items()) ^ set(self.around.items())

    def invoke(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The command, as its console script runs it, with nobody at the keyboard."""
        given = self.lab.environment() | environment
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
        with pytest.MonkeyPatch.context() as patch, chdir(self.cwd), redirect_stdout(out), redirect_stderr(err):
            for name in [name for name in os.environ if name not in given]:
                patch.delenv(name)
            for name, value in given.items():
                patch.setenv(name, value)
            patch.setattr("sys.argv", ["backfill", *arguments])
            patch.setattr("sys.stdin", io.StringIO(""))
            try:
                main()
            except SystemExit as ended:
                code = ended.code
        assert isinstance(code, int)
        found = subprocess.CompletedProcess(arguments, code, _text(out), _text(err))
        self.check(code, found.stdout, found.stderr)
        return found


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode()  # pyright: ignore


@pytest.fixture
def watched(lab: Lab) -> Watched:
    from datetime import date

    days = [date.fromisoformat(day) for day in DAYS]
    for day in days:
        lab.probe("expected", day, players(4))
        lab.probe("first", day, players(4 if day != days[2] else 1))
        lab.probe("second", day, players(1))
    lab.run(days, "probe")
    return Watched(lab)
