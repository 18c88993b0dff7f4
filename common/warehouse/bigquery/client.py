"""BigQuery jobs with deadlines, limits on cost, retries and this package's errors."""

from __future__ import annotations

import hashlib
import random
import re
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import TimeoutError as JobTimeout
from contextlib import contextmanager
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import requests.exceptions
from google.api_core import exceptions as api
from google.api_core.retry import Retry
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, RefreshError, TransportError
from google.cloud import bigquery
from google.cloud.bigquery.enums import QueryApiMethod

from gated_backfill.common.errors import (
    BackfillError,
    HostError,
    LeaseTakenOver,
    NotAllowed,
    QueryFailed,
    TableNotFound,
    WarehouseUnavailable,
)
from gated_backfill.common.model.publication import WarehouseLimits
from gated_backfill.common.model.usage import Usage
from gated_backfill.common.warehouse.bigquery.address import BigQueryAddress
from gated_backfill.common.warehouse.bigquery.credentials import open_credentials
from gated_backfill.common.warehouse.bigquery.merged_reads import ErrorKind, MergedReads
from gated_backfill.common.warehouse.bigquery.results import ResultReader
from gated_backfill.common.warehouse.bigquery.schema import type_of
from gated_backfill.common.warehouse.bigquery.transactions import LEASE_TAKEN_OVER
from gated_backfill.common.warehouse.labels import current_labels
from gated_backfill.common.warehouse.usage import charge

REQUEST_SECONDS = 120  #: for one answer of the service
TRANSFER_SECONDS = 30  #: added for the way of an answer that the service gives after `REQUEST_SECONDS`
MAX_ATTEMPTS = 20  #: of one named job; failed attempts stay on record in BigQuery, so each has a number
UPLOAD_TRIES = 3
CANCELLING_SECONDS = 60.0  #: until a cancelled job has ended
CONFLICT_WAITS = (0.5, 3.0)  #: range of seconds before a conflicting transaction is retried

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
PERMANENT_REASONS = frozenset({"bytesBilledLimitExceeded"})  #: classed by the client as server errors
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
#: Messages of BigQuery for a write conflict with another transaction, or too many waiting ones.
CONCURRENT = re.compile(
    r"due to concurrent update|Too many DML statements outstanding|number of dml jobs.*pending \+ running",
    re.IGNORECASE,
)
STREAMING = "streaming buffer"  #: rows in it can't be deleted for up to half an hour
LOST_JOB = re.compile(r"not found: job\b", re.IGNORECASE)  #: a started job that BigQuery no longer knows
UPLOAD_URL = re.compile(r"[?&]upload_id=")  #: of a started upload
NOT_FOUND = re.compile(r"not found: (dataset|table|project|job)\b", re.IGNORECASE)  #: not a lost upload
UNREACHABLE = re.compile(r"host='([^']+)', port=(\d+)\).*?(\[Errno -?\d+\] [^'\")]+)", re.DOTALL)
AUTH_ANSWER = re.compile(r'"message": *"([^"]{1,400})"')  #: of the service that gives tokens, in the error
PERMISSION = re.compile(r"(?:bigquery|storage|iam)\.(?!googleapis)\w+\.\w+")
READ_PERMISSIONS = "bigquery.jobs.create, bigquery.tables.getData"


def is_retryable(exc: BaseException) -> bool:
    """Whether a retry may succeed."""
    if CONCURRENT.search(str(exc)):
        return True
    if isinstance(exc, RefreshError):
        return bool(exc.retryable) or any(isinstance(arg, TransportError) for arg in exc.args)
    if _reason(exc) in PERMANENT_REASONS or isinstance(exc, api.MethodNotImplemented):
        return False
    return _reason(exc) in RETRYABLE_REASONS or isinstance(exc, RETRYABLE_ERRORS)


def _is_lost_upload(exc: BaseException) -> bool:
    """Whether the service has lost a partial upload, which must start again from its first byte."""
    if not isinstance(exc, api.GoogleAPICallError) or exc.code not in (404, 410):
        return False
    return bool(UPLOAD_URL.search(str(exc))) and not NOT_FOUND.search(str(exc))


def _is_request_error(exc: BaseException) -> bool:
    """Whether the error is a transient one of the request, not of the job it asks about."""
    return is_retryable(exc) and not CONCURRENT.search(str(exc)) and not (_reason(exc) or "").startswith("job")


def _reason(exc: BaseException) -> str | None:
    errors: Any = getattr(exc, "errors", None) or [{}]
    return errors[0].get("reason") if isinstance(errors[0], Mapping) else None


@contextmanager
def translate_bigquery_errors(doing: str, *, table: str | None = None, needs: str = "") -> Generator[None]:
    """Translate the client's errors into this package's. `doing` begins the message; `needs` names the permissions."""
    try:
        yield
    except BackfillError:
        raise
    except Exception as exc:
        error = _translated_error(exc, doing, table, needs)
        if error is None:
            raise
        raise error from exc


def _translated_error(exc: Exception, doing: str, table: str | None, needs: str) -> BackfillError | None:
    message = f"{doing}: {_error_message(exc)}"
    if LEASE_TAKEN_OVER in message:
        return LeaseTakenOver(f"{doing}: a later process has taken over, or the run was undone", table=table)
    if is_retryable(exc):
        return WarehouseUnavailable(message, table=table)
    if isinstance(exc, DefaultCredentialsError):
        return HostError(
            "no Google credentials were found: run `gcloud auth application-default login`, or set "
            "GOOGLE_APPLICATION_CREDENTIALS to the key file of a service account"
        )
    if STREAMING in str(exc):
        return WarehouseUnavailable(
            f"{message}: rows were streamed into it just now; they can be replaced later", table=table
        )
    if _reason(exc) in ("responseTooLarge", "resourcesExceeded"):
        return QueryFailed(message, table=table)
    if _reason(exc) == "quotaExceeded":
        return QueryFailed(f"{message} (a quota of the project is used up)", table=table)
    if isinstance(exc, (api.Forbidden, api.Unauthorized, GoogleAuthError)):
        missing = ", ".join(dict.fromkeys(PERMISSION.findall(str(exc)))) or needs
        return NotAllowed(f"{message} (needed: {missing})" if missing else message, table=table)
    if _is_lost_upload(exc) or (isinstance(exc, api.NotFound) and LOST_JOB.search(str(exc))):
        return WarehouseUnavailable(message, table=table)
    if isinstance(exc, api.NotFound):
        return TableNotFound(message, table=table)
    if _reason(exc) == "bytesBilledLimitExceeded":
        return QueryFailed(f"{message}; BACKFILL_MAX_BYTES_BILLED raises the limit", table=table)
    return QueryFailed(message, table=table) if isinstance(exc, (api.GoogleAPICallError, ValueError)) else None


def _kind_of_error(exc: Exception) -> ErrorKind:
    if is_retryable(exc):
        return ErrorKind.TRANSIENT
    is_known = isinstance(exc, BackfillError) or _translated_error(exc, "", None, "") is not None
    return ErrorKind.OF_QUERY if is_known else ErrorKind.OTHER


def _error_message(exc: Exception) -> str:
    """Return the message of the service without the request line and the job."""
    if isinstance(exc, JobTimeout):
        return "the job takes too long"
    if isinstance(exc, api.RetryError) and exc.cause is not None:
        return f"{_error_message(exc.cause)} (tried again until {exc.message})"
    if unreachable := UNREACHABLE.search(str(exc)):
        return f"{unreachable[1]}:{unreachable[2]} does not answer: {unreachable[3]}"
    if isinstance(exc, GoogleAuthError) and (detail := AUTH_ANSWER.search(" ".join(map(str, exc.args)))):
        return f"{exc.args[0]}: {detail[1]}"
    message = getattr(exc, "message", None) or str(exc) or type(exc).__name__
    return re.sub(r"^(GET|POST|PUT|PATCH|DELETE) https?://\S+ ", "", str(message)).split("\n")[0][:500]


class BigQueryClient(bigquery.Client):
    """Waits longer for the answer to a query than it asks the service to wait for the query's end.

    The library leaves a tenth of a second between the two. A query that took longer than `REQUEST_SECONDS` would be run
    anew again and again wherever the answer takes longer than that on its way.
    """

    def _call_api(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("method") == "POST" and str(kwargs.get("path")).endswith("/queries"):
            kwargs["timeout"] += TRANSFER_SECONDS
        return super()._call_api(*args, **kwargs)


class BigQueryConnection:
    """Jobs in one project. Every call has a deadline, every query a limit on what it may bill."""

    def __init__(
        self,
        address: BigQueryAddress,
        limits: WarehouseLimits,
        http: Any = None,
        open_storage: Callable[[], Any] | None = None,
    ) -> None:
        """`http` replaces the authorised session that requests go through.

        `open_storage` opens a client of the Storage Read API in place of Google's.
        """
        self.address = address
        self.limits = limits
        self._http = http
        is_google = http is None and address.endpoint is None
        self._results = ResultReader(open_storage or (self._open_storage if is_google else None))
        self._local = threading.local()
        waits: dict[str, Any] = {"initial": 0.2, "maximum": 5.0, "multiplier": 2.0, "timeout": limits.retry_seconds}
        self.retry = Retry(predicate=is_retryable, **waits)
        self.deadline: dict[str, Any] = {"retry": self.retry, "timeout": REQUEST_SECONDS}  #: of one request
        self._polling = Retry(predicate=_is_request_error, **waits)  #: stops when the job itself has failed
        self._uploading = Retry(predicate=_is_lost_upload, **waits)  #: the client retries other errors itself
        self._merged_reads = MergedReads(self._run_query, _kind_of_error)

    @property
    def client(self) -> bigquery.Client:
        """The client of this thread. Threads cannot share its sessions."""
        client: bigquery.Client | None = getattr(self._local, "client", None)
        if client is None:
            with translate_bigquery_errors("connecting"):
                client = self._open()
            self._local.client = client
        return client

    def _open(self) -> bigquery.Client:
        arguments: dict[str, Any] = {"location": self.address.location}
        if self._http is not None:
            arguments |= {"_http": self._http, "credentials": AnonymousCredentials()}
        elif self.address.endpoint is not None:
            options = {"api_endpoint": self.address.endpoint}
            arguments |= {"client_options": options, "credentials": AnonymousCredentials()}
        else:
            self._local.credentials = open_credentials(self.address)
            arguments |= {"credentials": self._local.credentials}
        return BigQueryClient(project=self.address.project, **arguments)

    def _open_storage(self) -> Any:
        from google.cloud.bigquery_storage import BigQueryReadClient  # slow to import

        return BigQueryReadClient(credentials=self._local.credentials)  # this thread's, which has run the query

    # -- jobs -----------------------------------------------------------------------------------------------

    def together(self, reads: Sequence[Callable[[], Any]]) -> list[Any]:
        """Return the results of reads that do not depend on each other, see `MergedReads`."""
        return self._merged_reads.run(reads)

    def query(self, sql: str, params: Mapping[str, Any]) -> pa.Table:
        """Run one query, which only reads, and return its rows. Raises the client's errors."""
        return self._merged_reads.query(sql, params)

    def _run_query(self, sql: str, params: Mapping[str, Any]) -> pa.Table:
        """Run a query.

        It is started, awaited and its first rows are read by one request, and its job is looked at by another. It has
        no job id of ours: if the answer is lost, it is run again. One with a priority is started as a job, as BigQuery
        does not answer it at once.
        """
        method = QueryApiMethod.INSERT if self.address.priority else QueryApiMethod.QUERY
        job = self.client.query(
            sql, self._config(params), retry=self.retry, timeout=REQUEST_SECONDS, job_retry=None, api_method=method
        )
        rows = self._read(job, job_retry=None)
        _charge(job)
        return rows

    def _read(self, job: Any, **options: Any) -> pa.Table:
        """Wait for the query's end, and read its rows."""
        result = partial(job.result, retry=self._polling, timeout=self.limits.job_seconds, **options)
        return self._results.read(result, self.limits.job_seconds)

    def find_storage_problem(self) -> str | None:
        """Return why many rows cannot be read by the Storage Read API; None if they can, or it is not to be used.

        Raises the client's errors.
        """
        if not self._results.may_use_storage:
            return None
        job = self.client.query(
            "SELECT 1 AS x", self._config({}), retry=self.retry, timeout=REQUEST_SECONDS, job_retry=None
        )
        job.result(retry=self._polling, timeout=self.limits.job_seconds)
        return self._results.find_problem(self.address.project, job.destination)

    def run_query(self, name: str, sql: str, params: Mapping[str, Any], *, has_effect: Callable[[], bool]) -> pa.Table:
        """Run a script to its end as `run_script` does, and return the rows of its last statement."""
        job = self._run_named_script(name, sql, params, has_effect)
        return self._read(job)

    def result_types(self, sql: str, params: Mapping[str, Any]) -> dict[str, str]:
        """Return the types of the columns that the query would return, without running it."""
        return {field.name: type_of(field) for field in self._dry_run(sql, params).schema}

    def dry_run(self, sql: str, params: Mapping[str, Any]) -> int:
        """Return the bytes that the statement would read, without running it."""
        return int(self._dry_run(sql, params).total_bytes_processed or 0)

    def _dry_run(self, sql: str, params: Mapping[str, Any]) -> Any:
        config = self._config(params)
        config.dry_run = True
        config.use_query_cache = False
        return self.client.query(sql, config, retry=self.retry, timeout=REQUEST_SECONDS, job_retry=None)

    def get_resource(self, path: str) -> dict[str, Any]:
        """Return the resource at a path of the API for which the client has no method. Raises the client's errors."""
        connection = self.client._connection  # pyright: ignore[reportPrivateUsage] - as all of its methods do
        request = partial(connection.api_request, method="GET", path=path, timeout=REQUEST_SECONDS)
        return self.retry(request)()

    def run_script(
        self, name: str, sql: str, params: Mapping[str, Any], *, has_effect: Callable[[], bool] = lambda: True
    ) -> None:
        """Run a script to its end, once under that name: a repeated call waits for the first one's job.

        A failed job, or an earlier one without its effect, is followed by a job with the next number.
        """
        self._run_named_script(name, sql, params, has_effect)

    def _run_named_script(self, name: str, sql: str, params: Mapping[str, Any], has_effect: Callable[[], bool]) -> Any:
        return self._run_named_job(
            name,
            lambda job_id: self.client.query(
                sql, self._config(params), job_id=job_id, retry=self.retry, timeout=REQUEST_SECONDS, job_retry=None
            ),
            is_good=has_effect,
        )

    def load_parquet(
        self, name: str, into: bigquery.Table, source: Path | Sequence[str], *, is_whole: Callable[[], bool]
    ) -> None:
        """Load Parquet, a file or the files at gs:// URIs, into a table, once under that name, as one job.

        `is_whole` checks whether the table still holds all rows of an earlier load under the name.
        """
        config = bigquery.LoadJobConfig(
            job_timeout_ms=int(self.limits.job_seconds * 1000),
            labels=current_labels(),
            source_format=bigquery.SourceFormat.PARQUET,
            schema=into.schema,
            write_disposition=bigquery.WriteDisposition.WRITE_TRUNCATE,
        )

        def start(job_id: str) -> Any:
            if isinstance(source, Path):
                return self._uploading(self._upload)(source, into, job_id, config)
            return self.client.load_table_from_uri(
                list(source), into, job_id=job_id, job_config=config, retry=self.retry, timeout=REQUEST_SECONDS
            )

        self._run_named_job(name, start, is_good=is_whole)

    def _upload(self, source: Path, into: bigquery.Table, job_id: str, config: bigquery.LoadJobConfig) -> Any:
        with source.open("rb") as file:
            return self.client.load_table_from_file(
                file, into, job_id=job_id, job_config=config, num_retries=UPLOAD_TRIES, timeout=REQUEST_SECONDS
            )

    def _run_named_job(self, name: str, start: Callable[[str], Any], *, is_good: Callable[[], bool]) -> Any:
        deadline = time.monotonic() + self.limits.retry_seconds
        for number in range(MAX_ATTEMPTS):
            job_id = f"{name}-{number}"
            try:
                job = start(job_id)
                earlier = False
            except api.Conflict:
                job = self._get_earlier_job(job_id)
                earlier = True
            try:
                self._wait_for(job)
                _charge(job)
            except api.GoogleAPICallError as exc:
                _charge(job)  # statements of a script are billed, although a later one fails
                if CONCURRENT.search(str(exc)) and time.monotonic() < deadline:
                    time.sleep(random.uniform(*CONFLICT_WAITS))  # noqa: S311 - so that the two do not conflict again
                elif not (earlier and job.done(retry=self._polling)):
                    raise
                continue  # with the next attempt
            if not earlier or is_good():
                return job
        raise WarehouseUnavailable(f"the job {name} failed {MAX_ATTEMPTS} times")

    def _wait_for(self, job: Any) -> None:
        """Wait for the job's end. Cancel one that takes too long, so that it has no effect later."""
        try:
            job.result(retry=self._polling, timeout=self.limits.job_seconds)
        except JobTimeout:
            job.cancel(retry=self.retry, timeout=REQUEST_SECONDS)
            try:
                job.result(retry=self._polling, timeout=CANCELLING_SECONDS)  # it may have ended before the cancellation
            except api.GoogleAPICallError as exc:
                raise JobTimeout(f"cancelled after {self.limits.job_seconds:g} s") from exc

    def _get_earlier_job(self, job_id: str) -> Any:
        # Directly after the conflict, the service may not find the job yet.
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
            labels=current_labels(),
            **self.address.query_options(),
        )


def _charge(job: Any) -> None:
    """Charge what an ended query or script was billed, as far as BigQuery says. Loads are free."""
    if isinstance(job, bigquery.QueryJob) and job.total_bytes_billed is not None:
        charge(Usage(bytes_billed=job.total_bytes_billed, slot_millis=job.slot_millis or 0))


def job_name(kind: str, *parts: object) -> str:
    """Return a deterministic job name: the same for the same parts, in any process."""
    digest = hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]
    return f"backfill-{kind}-{digest}"


SCALARS: tuple[tuple[type, str], ...] = (
    (bool, "BOOL"),
    (int, "INT64"),
    (float, "FLOAT64"),
    (Decimal, "NUMERIC"),
    (bytes, "BYTES"),
    (date, "DATE"),
)


def _parameter(name: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        values: list[Any] = list(value)  # pyright: ignore[reportUnknownVariableType]
        return bigquery.ArrayQueryParameter(name, _kind(values[0]) if values else "DATE", values)
    return bigquery.ScalarQueryParameter(name, _kind(value), value)


def _kind(value: Any) -> str:
    if isinstance(value, datetime):
        return "DATETIME" if value.tzinfo is None else "TIMESTAMP"
    return next((kind for python_type, kind in SCALARS if isinstance(value, python_type)), "STRING")
