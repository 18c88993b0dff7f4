"""BigQuery jobs with deadlines, limits on cost, retries and this package's errors."""

from __future__ import annotations

import hashlib
import io
import random
import re
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import TimeoutError as JobTimeout
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
import requests.exceptions
from google.api_core import exceptions as api
from google.api_core.retry import Retry
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, RefreshError, TransportError
from google.cloud import bigquery

from gated_backfill.common.errors import (
    BackfillError,
    NotAllowed,
    QueryFailed,
    TableNotFound,
    UserError,
    WarehouseUnavailable,
)
from gated_backfill.common.model.publication import WarehouseLimits
from gated_backfill.common.model.tables import validate_identifier
from gated_backfill.common.warehouse.bigquery.statements import checked_project

LOCATION = re.compile(r"[A-Za-z0-9-]{2,40}")
REQUEST_SECONDS = 120  #: for one answer of the service
MAX_ATTEMPTS = 20  #: at one job under its name: each that failed stays on record under its number
UPLOAD_TRIES = 3
CANCELLING_SECONDS = 60.0  #: for a job that was cancelled to end
CONFLICT_WAITS = (0.5, 3.0)  #: seconds before a transaction that met another is tried again

RETRYABLE_REASONS = frozenset(
    {
        "backendError",
        "internalError",
        "jobBackendError",
        "jobInternalError",
        "jobRateLimitExceeded",
        "rateLimitExceeded",
        "stopped",
        "tableUnavailable",
    }
)
PERMANENT_REASONS = frozenset({"bytesBilledLimitExceeded"})  #: that the client takes for errors of the server
RETRYABLE_ERRORS = (
    api.ServerError,  # 500, 502, 503, 504
    api.TooManyRequests,
    api.RetryError,
    requests.exceptions.ConnectionError,
    requests.exceptions.Timeout,
    requests.exceptions.ChunkedEncodingError,
    TransportError,
    JobTimeout,
)
#: How BigQuery says that another transaction wrote the table first, or that too many wait to.
CONCURRENT = re.compile(
    r"due to concurrent update|Too many DML statements outstanding|number of dml jobs.*pending \+ running",
    re.IGNORECASE,
)
STREAMING = "streaming buffer"  #: rows in it can't be deleted for up to half an hour
LOST_JOB = re.compile(r"not found: job\b", re.IGNORECASE)  #: a job that was begun is not known any more
OF_UPLOAD = re.compile(r"[?&]upload_id=")  #: the address of an upload that was begun
NOT_THERE = re.compile(r"not found: (dataset|table|project|job)\b", re.IGNORECASE)  #: for which no upload is to blame
UNREACHABLE = re.compile(r"host='([^']+)', port=(\d+)\).*?(\[Errno -?\d+\] [^'\")]+)", re.DOTALL)
PERMISSION = re.compile(r"(?:bigquery|storage)\.(?!googleapis)\w+\.\w+")


@dataclass(frozen=True, kw_only=True)
class BigQueryAddress:
    """Where a BigQuery warehouse is: `bigquery://PROJECT?location=US&dataset=backfill`."""

    project: str
    location: str = "US"  #: where the tables are, queries run and datasets are made
    dataset: str = "backfill"  #: of our own: staging tables, the record of publications, what undo needs
    endpoint: str | None = None  #: of an emulator; no credentials are ever sent to it

    @classmethod
    def parse(cls, url: str) -> BigQueryAddress:
        """Raises `UserError` for anything but such a URL."""
        try:
            parts = urlsplit(url)
            given = parse_qsl(parts.query, strict_parsing=bool(parts.query), keep_blank_values=True)
        except ValueError as exc:
            raise UserError("BACKFILL_WAREHOUSE is no URL: write it as bigquery://PROJECT?location=US") from exc
        options = dict(given)
        if len(options) < len(given):
            raise UserError("BACKFILL_WAREHOUSE: an option is given twice")
        if unknown := sorted(set(options) - {"location", "dataset", "endpoint"}):
            raise UserError(
                f"BACKFILL_WAREHOUSE: unknown option(s) {', '.join(unknown)}: use location, dataset, endpoint"
            )
        if parts.scheme != "bigquery" or parts.path.strip("/") or parts.fragment:
            raise UserError("BACKFILL_WAREHOUSE: write it as bigquery://PROJECT?location=US")
        location, endpoint = options.get("location", "US"), options.get("endpoint")
        if not LOCATION.fullmatch(location):
            raise UserError(f"BACKFILL_WAREHOUSE: {location!r} is not a location: write one as US, EU or europe-west1")
        if endpoint is not None and urlsplit(endpoint).scheme not in ("http", "https"):
            raise UserError("BACKFILL_WAREHOUSE: the endpoint is not an http:// URL")
        return cls(
            project=checked_project(parts.netloc),
            location=location,
            dataset=validate_identifier(options.get("dataset", "backfill"), "dataset name"),
            endpoint=endpoint,
        )


def is_retryable(exc: BaseException) -> bool:
    """Whether a retry may succeed."""
    if CONCURRENT.search(str(exc)):
        return True
    if isinstance(exc, RefreshError):
        return bool(exc.retryable) or any(isinstance(one, TransportError) for one in exc.args)
    if _reason(exc) in PERMANENT_REASONS or isinstance(exc, api.MethodNotImplemented):
        return False
    return _reason(exc) in RETRYABLE_REASONS or isinstance(exc, RETRYABLE_ERRORS)


def _is_lost_upload(exc: BaseException) -> bool:
    """Whether the service has forgotten an upload midway: it can only be begun anew."""
    if not isinstance(exc, api.GoogleAPICallError) or exc.code not in (404, 410):
        return False
    return bool(OF_UPLOAD.search(str(exc))) and not NOT_THERE.search(str(exc))


def _is_of_the_request(exc: BaseException) -> bool:
    """Whether what passes is a trouble of the request, not the end of the job that it asks about."""
    return is_retryable(exc) and not CONCURRENT.search(str(exc)) and not (_reason(exc) or "").startswith("job")


def _reason(exc: BaseException) -> str | None:
    errors: Any = getattr(exc, "errors", None) or [{}]
    return errors[0].get("reason") if isinstance(errors[0], Mapping) else None


@contextmanager
def translate_bigquery_errors(doing: str, *, table: str | None = None, needs: str = "") -> Generator[None]:
    """Errors of the client become ours: passing, wrong, absent or not allowed. `needs` names the permissions."""
    try:
        yield
    except BackfillError:
        raise
    except Exception as exc:
        found = _ours(exc, doing, table, needs)
        if found is None:
            raise
        raise found from exc


def _ours(exc: Exception, doing: str, table: str | None, needs: str) -> BackfillError | None:
    said = f"{doing}: {_said(exc)}"
    if is_retryable(exc):
        return WarehouseUnavailable(said, table=table)
    if isinstance(exc, DefaultCredentialsError):
        return NotAllowed(
            "no Google credentials were found: run `gcloud auth application-default login`, or set "
            "GOOGLE_APPLICATION_CREDENTIALS to the key file of a service account"
        )
    if STREAMING in str(exc):
        return WarehouseUnavailable(
            f"{said}: rows were streamed into it just now; they can be replaced later", table=table
        )
    if _reason(exc) in ("responseTooLarge", "resourcesExceeded"):
        return QueryFailed(said, table=table)
    if _reason(exc) == "quotaExceeded":
        return QueryFailed(f"{said} (a quota of the project is used up)", table=table)
    if isinstance(exc, (api.Forbidden, api.Unauthorized, GoogleAuthError)):
        missing = ", ".join(dict.fromkeys(PERMISSION.findall(str(exc)))) or needs
        return NotAllowed(f"{said} (needed: {missing})" if missing else said, table=table)
    if _is_lost_upload(exc) or (isinstance(exc, api.NotFound) and LOST_JOB.search(str(exc))):
        return WarehouseUnavailable(said, table=table)
    if isinstance(exc, api.NotFound):
        return TableNotFound(said, table=table)
    if _reason(exc) == "bytesBilledLimitExceeded":
        return QueryFailed(f"{said}; BACKFILL_MAX_BYTES_BILLED raises the limit", table=table)
    return QueryFailed(said, table=table) if isinstance(exc, (api.GoogleAPICallError, ValueError)) else None


def _said(exc: Exception) -> str:
    """Return the message of the service without the request line and the job."""
    if isinstance(exc, JobTimeout):
        return "the job takes too long"
    if isinstance(exc, api.RetryError) and exc.cause is not None:
        return f"{_said(exc.cause)} (tried again until {exc.message})"
    if unreachable := UNREACHABLE.search(str(exc)):
        return f"{unreachable[1]}:{unreachable[2]} does not answer: {unreachable[3]}"
    message = getattr(exc, "message", None) or str(exc) or type(exc).__name__
    return re.sub(r"^(GET|POST|PUT|PATCH|DELETE) https?://\S+ ", "", str(message)).split("\n")[0][:500]


class BigQueryConnection:
    """Jobs in one project. Every call has a deadline, every query a limit on what it may bill."""

    def __init__(self, address: BigQueryAddress, limits: WarehouseLimits, http: Any = None) -> None:
        """`http` replaces the authorised session that requests go through."""
        self.address = address
        self.limits = limits
        self._http = http
        self._local = threading.local()
        waits: dict[str, Any] = {"initial": 0.2, "maximum": 5.0, "multiplier": 2.0, "timeout": limits.retry_seconds}
        self.retry = Retry(predicate=is_retryable, **waits)
        self._polling = Retry(predicate=_is_of_the_request, **waits)  #: a job that has failed is not asked again
        self._uploading = Retry(predicate=_is_lost_upload, **waits)  #: for the rest the client tries again itself

    @property
    def client(self) -> bigquery.Client:
        """A client of this thread's own: the sessions beneath are not to be shared."""
        found: bigquery.Client | None = getattr(self._local, "client", None)
        if found is None:
            with translate_bigquery_errors("connecting"):
                found = self._open()
            self._local.client = found
        return found

    def _open(self) -> bigquery.Client:
        more: dict[str, Any] = {"location": self.address.location}
        if self._http is not None:
            more |= {"_http": self._http, "credentials": AnonymousCredentials()}
        if self.address.endpoint is not None:
            options = {"api_endpoint": self.address.endpoint}
            more |= {"client_options": options, "credentials": AnonymousCredentials()}
        return bigquery.Client(project=self.address.project, **more)

    # -- jobs -----------------------------------------------------------------------------------------------

    def query(self, sql: str, params: Mapping[str, Any]) -> pa.Table:
        """Run one query and return its rows. Raises the client's errors."""
        job = self.client.query(sql, self._config(params), retry=self.retry, timeout=REQUEST_SECONDS, job_retry=None)
        found = job.result(retry=self._polling, timeout=self.limits.job_seconds, job_retry=None)
        return found.to_arrow(create_bqstorage_client=False)

    def dry_run(self, sql: str, params: Mapping[str, Any]) -> int:
        """Return the bytes that the statement would read, without running it."""
        config = self._config(params)
        config.dry_run = True
        config.use_query_cache = False
        job = self.client.query(sql, config, retry=self.retry, timeout=REQUEST_SECONDS, job_retry=None)
        return int(job.total_bytes_processed or 0)

    def run_script(
        self, name: str, sql: str, params: Mapping[str, Any], *, has_effect: Callable[[], bool] = lambda: True
    ) -> None:
        """Run a script to its end, once under that name: a repeated call waits for the first one's job.

        A job that failed is followed by one with the next number, and so is an earlier one whose effect is not there.
        """
        self._once(
            name,
            lambda job_id: self.client.query(
                sql, self._config(params), job_id=job_id, retry=self.retry, timeout=REQUEST_SECONDS, job_retry=None
            ),
            is_good=has_effect,
        )

    def load_parquet(
        self,
        name: str,
        into: bigquery.Table,
        source: bytes | Sequence[str],
        *,
        is_whole: Callable[[], bool],
    ) -> None:
        """Load Parquet, bytes or the files at gs:// URIs, into a table, once under that name, as one job.

        `is_whole` tells of a load made earlier under the name whether the table still holds it.
        """
        config = bigquery.LoadJobConfig(
            job_timeout_ms=int(self.limits.job_seconds * 1000),
            source_format=bigquery.SourceFormat.PARQUET,
            schema=into.schema,
            write_disposition=bigquery.WriteDisposition.WRITE_TRUNCATE,
        )

        def start(job_id: str) -> Any:
            if isinstance(source, bytes):
                return self._uploading(self._upload)(source, into, job_id, config)
            return self.client.load_table_from_uri(
                list(source), into, job_id=job_id, job_config=config, retry=self.retry, timeout=REQUEST_SECONDS
            )

        self._once(name, start, is_good=is_whole)

    def _upload(self, source: bytes, into: bigquery.Table, job_id: str, config: bigquery.LoadJobConfig) -> Any:
        return self.client.load_table_from_file(
            io.BytesIO(source),
            into,
            job_id=job_id,
            job_config=config,
            num_retries=UPLOAD_TRIES,
            timeout=REQUEST_SECONDS,
        )

    def _once(self, name: str, start: Callable[[str], Any], *, is_good: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self.limits.retry_seconds
        for number in range(MAX_ATTEMPTS):
            job_id = f"{name}-{number}"
            try:
                job = start(job_id)
                earlier = False
            except api.Conflict:
                job = self._earlier(job_id)
                earlier = True
            try:
                self._wait_for(job)
            except api.GoogleAPICallError as exc:
                if CONCURRENT.search(str(exc)) and time.monotonic() < deadline:
                    time.sleep(random.uniform(*CONFLICT_WAITS))  # noqa: S311 - so that two don't meet again
                elif not (earlier and job.done(retry=self._polling)):
                    raise
                continue  # this is another attempt
            if not earlier or is_good():
                return
        raise WarehouseUnavailable(f"the job {name} failed {MAX_ATTEMPTS} times")

    def _wait_for(self, job: Any) -> None:
        """Wait for the job's end. One that takes too long is cancelled, so that it has no effect later unseen."""
        try:
            job.result(retry=self._polling, timeout=self.limits.job_seconds)
        except JobTimeout:
            job.cancel(retry=self.retry, timeout=REQUEST_SECONDS)
            try:
                job.result(retry=self._polling, timeout=CANCELLING_SECONDS)  # it may have come to its end all the same
            except api.GoogleAPICallError as exc:
                raise JobTimeout(f"cancelled after {self.limits.job_seconds:g} s") from exc

    def _earlier(self, job_id: str) -> Any:
        # Just after the refusal the job may not be found yet.
        retry = Retry(
            predicate=lambda exc: isinstance(exc, api.NotFound) or is_retryable(exc), timeout=self.limits.retry_seconds
        )
        return self.client.get_job(job_id, location=self.address.location, retry=retry, timeout=REQUEST_SECONDS)

    def _config(self, params: Mapping[str, Any]) -> bigquery.QueryJobConfig:
        return bigquery.QueryJobConfig(
            query_parameters=[_parameter(name, value) for name, value in params.items()],
            maximum_bytes_billed=self.limits.max_bytes_billed,
            use_legacy_sql=False,
            job_timeout_ms=int(self.limits.job_seconds * 1000),
        )


def job_name(kind: str, *parts: object) -> str:
    """Return a deterministic job name: the same for the same parts, in any process."""
    digest = hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]
    return f"backfill-{kind}-{digest}"


SCALARS: tuple[tuple[type, str], ...] = ((bool, "BOOL"), (int, "INT64"), (float, "FLOAT64"), (date, "DATE"))


def _parameter(name: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        values: list[Any] = list(value)  # pyright: ignore[reportUnknownVariableType]
        return bigquery.ArrayQueryParameter(name, _kind(values[0]) if values else "DATE", values)
    return bigquery.ScalarQueryParameter(name, _kind(value), value)


def _kind(value: Any) -> str:
    return next((kind for known, kind in SCALARS if isinstance(value, known)), "STRING")
