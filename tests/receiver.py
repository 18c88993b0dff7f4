"""An HTTP server that alerts are sent to: it keeps what it is sent, and misbehaves as told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver(ThreadingHTTPServer):
    """Answers with `status`, or not at all while `hangs` is set."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.messages: list[dict[str, Any]] = []  #: what it took
        self.heard: list[dict[str, Any]] = []  #: what it was sent, taken or not
        self.authorizations: list[str | None] = []
        self.status = 200
        self.hangs = False
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"json://127.0.0.1:{self.server_port}/"

    def url_for(self, user: str, password: str) -> str:
        return f"json://{user}:{password}@127.0.0.1:{self.server_port}/hook"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.append(json.loads(body))
        if self.server.hangs:
            self.server.closing.wait()
            return
        if self.server.status == 200:
            self.server.messages.append(json.loads(body))
            self.server.authorizations.append(self.headers["Authorization"])
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def receiving(port: int = 0) -> Iterator[Receiver]:
    server = Receiver(port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
