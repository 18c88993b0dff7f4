"""The BigQuery emulator, as a process from a virtual environment of its own, which `make test` makes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery

from gated_backfill.producer.stack.embedded import free_port

HERE = Path(__file__).parent
PYTHON = HERE.parent.parent / ".venv-emulator" / "bin" / "python"
PROJECT = "test-project"
STARTING_SECONDS = 60


class Emulator:
    """One emulator. If it is durable, it can be killed, and started again on the same data; it then works slower."""

    def __init__(self, folder: Path, buckets: Path | None = None, *, durable: bool = False) -> None:
        """`folder` is for its log and its data. `buckets` is the folder in which it finds gs:// URLs."""
        self.folder = folder
        self._durable = durable
        self.buckets = buckets or folder / "buckets"
        self.port, self._grpc_port = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """As `BACKFILL_WAREHOUSE` names it."""
        return f"bigquery://{PROJECT}?location=US&endpoint={self.endpoint}"

    def __enter__(self) -> Emulator:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGTERM)

    def start(self) -> None:
        assert PYTHON.exists(), f"{PYTHON} is not there: `make test` makes it"
        self.buckets.mkdir(parents=True, exist_ok=True)
        command = [PYTHON, HERE / "launch.py", "start", "--project", PROJECT, "--log-level", "error"]
        command += ["--rest-port", str(self.port), "--grpc-port", str(self._grpc_port)]
        command += ["--data-dir", self.folder / "data"] if self._durable else ["--ephemeral"]
        environment = {"BQEMU_GCS_LOCAL_ROOT": str(self.buckets)}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(part) for part in command], stdout=log, stderr=log, env={**os.environ, **environment}
            )
        self._wait()

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(30)

    def client(self) -> bigquery.Client:
        return bigquery.Client(
            project=PROJECT, credentials=AnonymousCredentials(), client_options={"api_endpoint": self.endpoint}
        )

    def run(self, sql: str) -> list[dict[str, Any]]:
        """Run one statement, as somebody else would; its rows."""
        found = self.client().query(sql).result()
        return [dict(row.items()) for row in found]

    def rows(self, table: str) -> list[dict[str, Any]]:
        """Everything in a table, in a fixed order."""
        return sorted(self.run(f"SELECT * FROM {table}"), key=str)

    def empty(self) -> None:
        """Remove every dataset with all its tables."""
        client = self.client()
        for dataset in list(client.list_datasets()):
            client.delete_dataset(dataset.reference, delete_contents=True)

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + STARTING_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.endpoint}/readyz", timeout=1) as answer:  # noqa: S310
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.05)
        raise AssertionError(f"the emulator does not start: {(self.folder / 'log').read_text()[-2000:]}")
