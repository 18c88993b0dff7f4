"""The HTTP server behind `backfill metrics`."""

from __future__ import annotations

import base64
import hmac
import ipaddress
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import UserError
from gated_backfill.producer.metrics.collector import BackfillCollector, deliver_pending_alerts

ALERT_INTERVAL_SECONDS = 60.0
UNAUTHORIZED = 401


class MetricsServer(ThreadingHTTPServer):
    """Answers `/metrics` and `/healthz`, each request in its own thread.

    `/metrics` requires the settings' password, if set. Raises `UserError` when no password is set and other machines
    can reach the address.
    """

    def __init__(self, settings: Settings, address: str, port: int) -> None:
        self.credentials = required_credentials(settings)
        if self.credentials is None and not is_loopback(address):
            raise UserError(
                f"metrics at {address or 'every address'} would be open to everybody: set BACKFILL_METRICS_PASSWORD "
                f"(user: BACKFILL_METRICS_USER, {settings.metrics_user} by default), or serve them at 127.0.0.1"
            )
        self.collector = BackfillCollector(settings)
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self.collector)
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._settings = settings
        self._stopped = threading.Event()
        try:
            super().__init__((address, port), MetricsRequestHandler)
        except (OSError, OverflowError, UnicodeError, ValueError) as exc:
            raise UserError(f"can't listen on {address} port {port}: {exc}") from exc

    def serve(self) -> None:
        """Serve until the process is stopped; meanwhile report a silent beat and deliver pending alerts."""
        threading.Thread(target=self._deliver_alerts, daemon=True).start()
        try:
            self.serve_forever()
        finally:
            self._stopped.set()
            self.server_close()

    def _deliver_alerts(self) -> None:
        while True:
            deliver_pending_alerts(self._settings)
            if self._stopped.wait(ALERT_INTERVAL_SECONDS):
                return


def required_credentials(settings: Settings) -> bytes | None:
    """The `user:password` that a request for /metrics needs; None when no password is set."""
    if settings.metrics_password is None:
        return None
    return f"{settings.metrics_user}:{settings.metrics_password.get_secret_value()}".encode()


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach the address; False when that is unknown."""
    try:
        return address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def is_allowed(header: str | None, credentials: bytes | None) -> bool:
    """Whether the Authorization header has the credentials, compared in constant time."""
    if credentials is None:
        return True
    scheme, _, encoded = (header or "").partition(" ")
    try:
        sent = base64.b64decode(encoded.strip(), validate=True)
    except ValueError:
        sent = b""
    return hmac.compare_digest(sent, credentials) and scheme.lower() == "basic"


class MetricsRequestHandler(BaseHTTPRequestHandler):
    server: MetricsServer  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = 30  #: seconds, for a client that sends nothing

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics" and not is_allowed(self.headers.get("Authorization"), self.server.credentials):
            body = b"a user and password are required: see BACKFILL_METRICS_PASSWORD\n"
            self._answer(UNAUTHORIZED, body, "text/plain")
        elif path == "/metrics":
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._answer(200, encode(self.server.registry), content_type)
        elif path == "/healthz":
            healthy = self.server.collector.is_ledger_answering()
            self._answer(200 if healthy else 503, b"ok\n" if healthy else b"the ledger does not answer\n", "text/plain")
        else:
            self._answer(404, b"not found: try /metrics or /healthz\n", "text/plain")

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: a line for each scrape would hide the rest of the log."""

    def _answer(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        if status == UNAUTHORIZED:
            self.send_header("WWW-Authenticate", 'Basic realm="backfill"')
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
