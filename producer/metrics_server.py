"""The HTTP server behind `backfill metrics`."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from common.errors import UserError
from common.settings import Settings
from producer.metrics import BackfillCollector, tell_what_waits

TELL_EVERY_SECONDS = 60.0


class MetricsServer(ThreadingHTTPServer):
    """Answers `/metrics` and `/healthz`, each request in a thread of its own."""

    def __init__(self, settings: Settings, address: str, port: int) -> None:
        self.collector = BackfillCollector(settings)
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self.collector)
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._settings = settings
        self._stopped = threading.Event()
        try:
            super().__init__((address, port), Handler)
        except (OSError, OverflowError) as exc:
            raise UserError(f"can't listen on {address} port {port}: {exc}") from exc

    def serve(self) -> None:
        """Serve until the process is told to stop, and tell meanwhile what beat can't tell of itself."""
        threading.Thread(target=self._tell, daemon=True).start()
        try:
            self.serve_forever()
        finally:
            self._stopped.set()
            self.server_close()

    def _tell(self) -> None:
        while True:
            tell_what_waits(self._settings)
            if self._stopped.wait(TELL_EVERY_SECONDS):
                return


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: MetricsServer  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = 30  #: of a client that says nothing

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, kind = choose_encoder(self.headers.get("Accept", ""))
            self._answer(200, encode(self.server.registry), kind)
        elif path == "/healthz":
            healthy = self.server.collector.healthy()
            self._answer(200 if healthy else 503, b"ok\n" if healthy else b"the ledger does not answer\n", "text/plain")
        else:
            self._answer(404, b"there are /metrics and /healthz\n", "text/plain")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line for each scrape hides what matters."""

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
