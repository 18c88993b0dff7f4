"""BigQuery's REST interface as a double: what an emulator cannot prove is proved on this.

Given to `BigQueryWarehouse(address, http=...)`, beneath the real client. It answers as the public reference of the
BigQuery API (v2) says, keeps a log of every request, and fails the test on a request that the reference does not have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import requests

from tests.rest_service import HOST, Refused, Request, Service, route

TOKEN = "ya29.nobody-may-see-this"


@dataclass(kw_only=True)
class Failure:
    """What goes wrong with some of the requests."""

    call: str
    job: str
    skip: int
    times: float
    error: BaseException
    after_effect: bool

    def takes(self, request: Request) -> bool:
        if self.call not in ("", request.call) or not request.job.startswith(self.job) or self.times <= 0:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True


@dataclass
class RestDouble(Service):
    """The service behind an authorised session, as the client uses it."""

    log: list[Request] = field(default_factory=list)
    is_mtls: bool = False  #: as google-auth's session has it
    _failures: list[Failure] = field(default_factory=list)

    # -- what a test arranges and asks ----------------------------------------------------------------------

    def fail(
        self,
        call: str,
        *,
        job: str = "",
        skip: int = 0,
        times: float = 1,
        status: int | None = None,
        reason: str = "",
        message: str = "so it is",
        error: BaseException | None = None,
        after_effect: bool = False,
    ) -> None:
        """Fail requests of that call ("" is any; of jobs with ids that begin so), by an error or by an answer."""
        assert (status is None) != (error is None)
        if error is None:
            error = Refused(status or 0, reason, message)
        failure = Failure(call=call, job=job, skip=skip, times=times, error=error, after_effect=after_effect)
        self._failures.append(failure)

    def calls(self, call: str, job: str = "") -> list[Request]:
        return [one for one in self.log if one.call == call and one.job.startswith(job)]

    def statements(self) -> list[str]:
        return [one.statement for one in self.log if one.kind == "query"]

    # -- a request ------------------------------------------------------------------------------------------

    def close(self) -> None:
        """As a session's."""

    def request(
        self, method: str, url: str, data: Any = None, headers: Any = None, timeout: Any = None
    ) -> requests.Response:
        parts = urlsplit(url)
        assert f"{parts.scheme}://{parts.netloc}" == HOST
        call, handle, names = route(method, parts.path)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        request = self._read(call, parts.path, query, data, headers or {}, timeout, names)
        self.log.append(request)
        sent = requests.Request(method, url, headers={**(headers or {}), "Authorization": f"Bearer {TOKEN}"}).prepare()
        failure = next((one for one in self._failures if one.takes(request)), None)
        try:
            if failure is not None and failure.after_effect:
                with suppress(Refused):
                    handle(self, request, *names)
            if failure is not None:
                raise failure.error
            answer = handle(self, request, *names)
        except Refused as exc:
            return _refusal(sent, exc)
        except requests.exceptions.RequestException as exc:
            exc.request = sent
            raise
        return _answered(sent, answer)

    def _read(
        self, call: str, path: str, query: dict[str, str], data: Any, headers: Any, timeout: Any, names: tuple[str, ...]
    ) -> Request:
        body: Any = None
        if call == "jobs.upload" and query.get("uploadType") == "multipart":
            body = _multipart(data, headers["content-type"])
        elif call == "jobs.upload.put":
            body = (query["upload_id"], data, headers["content-range"])
        elif data is not None:
            assert {k.lower(): v for k, v in headers.items()}["content-type"].startswith("application/json")
            body = json.loads(data)
        described = body[0] if isinstance(body, tuple) else body
        job = kind = ""
        if call in ("jobs.get", "jobs.getQueryResults"):
            job = names[0]
        elif call == "jobs.upload.put":
            job = self.uploads[query["upload_id"]]["jobReference"]["jobId"]
        elif call == "jobs.query":
            kind = "query"
        elif call in ("jobs.insert", "jobs.upload"):
            job = described["jobReference"]["jobId"]
            kind = "query" if "query" in described["configuration"] else "load"
        return Request(call=call, path=path, query=query, body=body, timeout=timeout, job=job, kind=kind)


def _answered(sent: Any, answer: Mapping[str, Any], status: int = 200) -> requests.Response:
    made = requests.Response()
    made.status_code, made.url, made.request = status, sent.url, sent
    made.headers["Content-Type"] = "application/json; charset=UTF-8"
    if "Location" in answer:
        made.headers["Location"], answer = answer["Location"], {}
    made._content = json.dumps(answer).encode()
    return made


def _refusal(sent: Any, exc: Refused) -> requests.Response:
    one = {"domain": "global", "reason": exc.reason, "message": exc.message}
    return _answered(sent, {"error": {"code": exc.status, "message": exc.message, "errors": [one]}}, exc.status)


def _multipart(data: bytes, content_type: bytes) -> tuple[Any, bytes]:
    boundary = content_type.partition(b"boundary=")[2].strip(b'"')
    _, described, content, _ = data.split(b"--" + boundary)
    return json.loads(described.partition(b"\r\n\r\n")[2]), content.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
