"""What BigQuery does with the requests of its REST interface, in memory."""

from __future__ import annotations

import io
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import uuid4

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from gated_backfill.common.model.arrow.types import arrow_schema
from tests import rest_rules as rules
from tests.rest_model import PublishedDates

PROJECT = rules.PROJECT
RESULTS = {"projectId": PROJECT, "datasetId": "_results"}  #: where the rows of each query are, by the job's id
BYTES_BILLED, SLOT_MILLIS = 10 * 1024**2, 250  #: of each query and script
HOST = "https://bigquery.googleapis.com"
STATUS = {  # of an answer, for the reason of a job's error
    "invalidQuery": 400,
    "invalid": 400,
    "bytesBilledLimitExceeded": 400,
    "resourcesExceeded": 400,
    "notFound": 404,
    "accessDenied": 403,
    "quotaExceeded": 403,
    "rateLimitExceeded": 403,
    "duplicate": 409,
    "backendError": 503,
    "internalError": 500,
    "stopped": 400,
}
STAGED = re.compile(
    r"\s*CREATE OR REPLACE TABLE `[a-z0-9-]+\.(?P<dataset>\w+)\.(?P<table>\w+)`\s+PARTITION BY `(?P<date>\w+)`"
    r"\s+OPTIONS \(expiration_timestamp = .*?\)\)\s+AS (?P<query>SELECT .*);\s+SELECT day, .*",
    re.DOTALL,
)
CONFLICT = "Transaction is aborted due to concurrent update against table"
Rows = tuple[Mapping[str, str], list[tuple[Any, ...]]]  #: the columns with their types, and the rows


class Refused(Exception):
    """The service says no, with an HTTP status and a reason."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request as it came, by the name that the reference has for its method."""

    call: str
    path: str
    query: Mapping[str, str]
    body: Any
    timeout: Any
    job: str = ""  #: the id of the job that it starts or asks for
    kind: str = ""  #: of the job that it starts: query or load

    @property
    def configuration(self) -> Mapping[str, Any]:
        """Of the job that it starts."""
        body = self.body[0] if isinstance(self.body, tuple) else self.body
        return rules.configuration_of(body) if self.call == "jobs.query" else body["configuration"]

    @property
    def statement(self) -> str:
        return self.configuration["query"]["query"]

    @property
    def params(self) -> dict[str, Any]:
        return rules.parameters(self.configuration["query"])


@dataclass(kw_only=True)
class Job:
    reference: dict[str, str]
    configuration: dict[str, Any]
    data: bytes | None = None  #: that were uploaded
    polls: int = 0  #: for so many looks at it, it still runs
    done: bool = False
    error: dict[str, str] | None = None
    rows: Rows | None = None


def no_answer(sql: str, params: Mapping[str, Any]) -> Rows:
    raise AssertionError(f"a query that the test does not expect: {sql}")


@dataclass
class Service:
    """A project in BigQuery. `answer` gives the rows of each query but those for fingerprints, or raises `Refused`.

    Datasets and tables may be in other projects, too: see `rules.place`.
    """

    answer: Callable[[str, Mapping[str, Any]], Rows] = no_answer
    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)
    tables: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    loaded: dict[tuple[str, str], pa.Table] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    dates: PublishedDates = field(default_factory=PublishedDates)
    permissions: tuple[str, ...] = ("bigquery.tables.getData", "bigquery.tables.updateData")
    uploads: dict[str, dict[str, Any]] = field(default_factory=dict)
    policies: dict[tuple[str, str], list[dict[str, Any]]] = field(
        default_factory=dict
    )  #: row access policies of tables
    dry_run_bytes: int = 0  #: that any query would read
    streamed: dict[tuple[str, str], int] = field(default_factory=dict)  #: rows that tables have in no partition yet
    ahead: timedelta = timedelta()  #: of this machine's clock
    page_rows: int | None = None  #: rows of an answer; None: all
    _failing_jobs: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    _slow: dict[str, int] = field(default_factory=dict)

    def fail_job(self, job: str, reason: str, message: str = "so it is") -> None:
        """The next job with an id that begins so ends with that error, without any effect."""
        self._failing_jobs.append((job, {"reason": reason, "message": message}))

    def slow(self, job: str, polls: int) -> None:
        """Jobs with ids that begin so have their effect, and are done, when they are looked at for the last time."""
        self._slow[job] = polls

    def hold(self, job: str) -> None:
        """Jobs with ids that begin so run until `let_go`."""
        self._slow[job] = sys.maxsize

    def let_go(self, job: str) -> None:
        """Jobs with ids that begin so have their effect when they are looked at again, and later ones at once."""
        self._slow.pop(job, None)
        for name, one in self.jobs.items():
            if name.startswith(job):
                one.polls = 0

    def _now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    # -- datasets and tables --------------------------------------------------------------------------------

    def _get_dataset(self, request: Request, dataset: str) -> Any:
        if dataset not in self.datasets:
            raise Refused(404, "notFound", f"Not found: Dataset {PROJECT}:{dataset}")
        return self.datasets[dataset]

    def _insert_dataset(self, request: Request) -> Any:
        rules.only(request.body, rules.DATASET_KEYS, "a dataset")
        name = rules.place(**_place_of(request.body["datasetReference"]))
        if name in self.datasets:
            raise Refused(409, "duplicate", f"Already Exists: Dataset {PROJECT}:{name}")
        self.datasets[name] = {"kind": "bigquery#dataset", "location": "US", **request.body}
        return self.datasets[name]

    def _get_table(self, request: Request, dataset: str, table: str) -> Any:
        found = self._table(dataset, table)
        if found is None:
            raise Refused(404, "notFound", f"Not found: Table {PROJECT}:{dataset}.{table}")
        rows = self.loaded.get((dataset, table))
        return {**found, "numRows": str(rows.num_rows if rows is not None else 0)}

    def _table(self, dataset: str, table: str) -> dict[str, Any] | None:
        """The table, unless it has expired."""
        found = self.tables.get((dataset, table))
        if found is not None and int(found.get("expirationTime", "0")) and _has_passed(found["expirationTime"]):
            self._forget(dataset, table)
            return None
        return found

    def _forget(self, dataset: str, table: str) -> None:
        self.tables.pop((dataset, table), None)
        self.loaded.pop((dataset, table), None)

    def _insert_table(self, request: Request, dataset: str) -> Any:
        made = rules.checked_table(request.body)
        name = made["tableReference"]["tableId"]
        assert rules.place(**_place_of(made["tableReference"])) == dataset
        assert "expirationTime" not in made or not _has_passed(made["expirationTime"]), "it expires in the past"
        self._get_dataset(request, dataset)
        if self._table(dataset, name) is not None:
            raise Refused(409, "duplicate", f"Already Exists: Table {PROJECT}:{dataset}.{name}")
        created = str(round(self._now().timestamp() * 1000))
        self.tables[dataset, name] = {"kind": "bigquery#table", "type": "TABLE", "creationTime": created, **made}
        return self._get_table(request, dataset, name)

    def _patch_table(self, request: Request, dataset: str, table: str) -> Any:
        self._get_table(request, dataset, table)
        rules.only(request.body, {"expirationTime", "tableReference", "labels"}, "the patch of a table")
        self.tables[dataset, table] |= {"expirationTime": request.body["expirationTime"]}
        return self._get_table(request, dataset, table)

    def _delete_table(self, request: Request, dataset: str, table: str) -> Any:
        self._get_table(request, dataset, table)
        self._forget(dataset, table)
        return {}

    def _list_policies(self, request: Request, dataset: str, table: str) -> Any:
        self._get_table(request, dataset, table)
        return {"rowAccessPolicies": policies} if (policies := self.policies.get((dataset, table))) else {}

    def _test_permissions(self, request: Request, dataset: str, table: str) -> Any:
        self._get_table(request, dataset, table)
        rules.only(request.body, {"permissions"}, "testIamPermissions")
        held = [one for one in request.body["permissions"] if one in self.permissions]
        return {"permissions": held} if held else {}

    # -- jobs -----------------------------------------------------------------------------------------------

    def _insert_job(self, request: Request) -> Any:
        assert request.kind == "query" or "sourceUris" in request.body["configuration"]["load"], "a load of nothing"
        return self._start(request.body, None)

    def _start(self, body: Mapping[str, Any], data: bytes | None) -> Any:
        configuration = rules.checked_job(body)
        reference = {"location": "US", **body["jobReference"]}
        assert reference["projectId"] == PROJECT
        job = Job(reference=reference, configuration=configuration, data=data)
        if configuration.get("dryRun"):
            query = configuration["query"]
            types, _ = self.answer(query["query"], rules.parameters(query))
            processed = {"totalBytesProcessed": str(self.dry_run_bytes)}
            statistics = {**processed, "query": {**processed, "schema": _schema(types)}}
            return {**_resource(job), "statistics": statistics}
        name = reference["jobId"]
        if name in self.jobs:
            raise Refused(409, "duplicate", f"Already Exists: Job {PROJECT}:{reference['location']}.{name}")
        self.jobs[name] = job
        job.polls = next((polls for prefix, polls in self._slow.items() if name.startswith(prefix)), 0)
        answer = _resource(job)  # as it was when it was made: running
        if self._conflicts(job):
            job.done, job.error = True, {"reason": "invalidQuery", "message": f"{CONFLICT} {PROJECT}:a.b"}
        elif not job.polls:
            self._finish(job)
        return answer

    def _query(self, request: Request) -> Any:
        """Start a query and wait for its end: the answer has its rows."""
        rules.check_query_request(request.body)
        assert request.timeout > int(request.body["timeoutMs"]) / 1000 + 10, "the answer is not waited for"
        reference = {"projectId": PROJECT, "jobId": uuid4().hex, "location": request.body["location"]}
        self._start({"jobReference": reference, "configuration": request.configuration}, None)
        return self._results(self.jobs[reference["jobId"]])

    def _conflicts(self, job: Job) -> bool:
        """Whether another transaction that is under way deletes from a table from which this one does."""
        running = [one for one in self.jobs.values() if one is not job and not one.done]
        return any(_deletes_from(one) & _deletes_from(job) for one in running)

    def _finish(self, job: Job) -> None:
        """The job's effect: whole, or an error and none."""
        job.done = True
        name = job.reference["jobId"]
        failing = next((one for one in self._failing_jobs if name.startswith(one[0])), None)
        if failing is not None:
            self._failing_jobs.remove(failing)
            job.error = failing[1]
            return
        try:
            if "load" in job.configuration:
                self._load(job.configuration["load"], job.data)
            else:
                self._run(job, name)
        except Refused as exc:
            job.error = {"reason": exc.reason, "message": exc.message}

    def _load(self, load: Mapping[str, Any], data: bytes | None) -> None:
        place = load["destinationTable"]
        dataset, table = rules.place(**_place_of(place)), place["tableId"]
        if dataset not in self.datasets:
            raise Refused(404, "notFound", f"Not found: Dataset {PROJECT}:{dataset}")
        contents = [data] if data is not None else [_read_object(uri) for uri in load["sourceUris"]]
        rows = pa.concat_tables([pq.read_table(io.BytesIO(one)) for one in contents])
        columns = [one["name"] for one in load["schema"]["fields"]]
        if not set(rows.column_names) <= set(columns):
            raise Refused(400, "invalid", f"Provided Schema does not match: {rows.column_names}")
        if load.get("writeDisposition") != "WRITE_TRUNCATE" and (dataset, table) in self.loaded:
            rows = pa.concat_tables([self.loaded[dataset, table], rows])
        made = self._table(dataset, table) or {"tableReference": place, "type": "TABLE"}
        self.tables[dataset, table] = {**made, "schema": rules.checked_schema(load["schema"])}
        self.loaded[dataset, table] = rows

    def _run(self, job: Job, name: str) -> None:
        query = job.configuration["query"]
        sql, params = query["query"], rules.parameters(query)
        if name.startswith("backfill-stage-"):
            job.rows = self._stage(sql, params)
            return
        if merged := rules.merged_queries(sql, params):
            job.rows = _merged([self._answer_one(name, *one) for one in merged])
        else:
            job.rows = self._answer_one(name, sql, params)

    def _answer_one(self, name: str, sql: str, params: Mapping[str, Any]) -> Rows | None:
        """The rows of a query; None for a script, which has its effect."""
        for dataset, table in sorted(rules.tables_in(sql)):
            found = self._table(dataset, table)
            if found is None:
                raise Refused(404, "notFound", f"Not found: Table {PROJECT}:{dataset}.{table}")
            column = found.get("timePartitioning", {}).get("field")
            if found.get("requirePartitionFilter") and rules.unfiltered(sql, table, column):
                message = (
                    f"Cannot query over table '{dataset}.{table}' without a filter over column(s) '{column}' that can "
                    f"be used for partition elimination"
                )
                raise Refused(400, "invalidQuery", message)
        if "INFORMATION_SCHEMA.PARTITIONS" in sql:
            return self._partitions(sql, params)
        if sql.endswith("AS time"):
            return {"time": "TIMESTAMP"}, [(self._now() + timedelta(seconds=params["seconds"]),)]
        if "BEGIN TRANSACTION" in sql:
            assert len(params.get("days", [])) <= rules.MOST_PARTITIONS, "a job that touches too many partitions"
            self.dates.run(name, sql, params, lambda dataset, table: self.loaded.get((dataset, table)))
            return None
        if self.dates.is_asked(sql):
            return self.dates.answer(sql, params)
        return self.answer(sql, params)

    def _stage(self, sql: str, params: Mapping[str, Any]) -> Rows:
        """Make a table of the rows of a query. What it holds of each day is told as by our only script for it."""
        made = re.match(STAGED, sql)
        assert made, "no script that stages a query's rows"
        types, values = self.answer(made["query"], params)
        rows = pa.Table.from_pylist([dict(zip(types, row, strict=True)) for row in values], schema=arrow_schema(types))
        place = {"projectId": PROJECT, "datasetId": made["dataset"], "tableId": made["table"]}
        self.tables[made["dataset"], made["table"]] = {
            "tableReference": place,
            "type": "TABLE",
            "creationTime": str(round(self._now().timestamp() * 1000)),
            "expirationTime": str(round((self._now() + timedelta(days=1)).timestamp() * 1000)),
            "schema": rules.checked_schema({"fields": [{"name": name, "type": kind} for name, kind in types.items()]}),
            "timePartitioning": {"type": "DAY", "field": made["date"]},
        }
        self.loaded[made["dataset"], made["table"]] = rows
        counts = Counter(rows[made["date"]].to_pylist())
        contents = {day: f"{count}.1.1" for day, count in counts.items()}
        self.dates.held[f"{made['dataset']}.{made['table']}"] = contents
        columns = {"day": "DATE", "content": "STRING", "row_count": "INT64", "key_count": "INT64"}
        return columns, [(day, contents[day], count, count) for day, count in counts.items()]

    def _partitions(self, sql: str, params: Mapping[str, Any]) -> Rows:
        """What is known of a table's partitions, with the names that our only query for it gives to the columns."""
        dataset = re.findall(r"`[a-z0-9-]+\.(\w+)\.INFORMATION_SCHEMA\.PARTITIONS`", sql)[0]
        loaded = self.loaded.get((dataset, params["table"]))
        moments = self.dates.partitions(f"{dataset}.{params['table']}", loaded)
        rows: list[tuple[Any, ...]] = [
            (f"{day:%Y%m%d}", 1, 8, moment)
            for day, moment in moments.items()
            if params["first_id"] <= f"{day:%Y%m%d}" <= params["last_id"]
        ]
        if streamed := self.streamed.get((dataset, params["table"]), 0):
            rows.append((params["not_yet_partitioned"], streamed, 8 * streamed, self._now()))
        types = {"partition_id": "STRING", "row_count": "INT64", "byte_count": "INT64", "modified_at": "TIMESTAMP"}
        return types, rows

    def _found_job(self, request: Request, name: str) -> Job:
        job = self.jobs.get(name)
        if job is None or request.query.get("location", "US") != job.reference["location"]:
            raise Refused(404, "notFound", f"Not found: Job {PROJECT}:{name}")
        if not job.done:
            job.polls -= 1
            if job.polls < 0:
                self._finish(job)
        return job

    def _get_job(self, request: Request, name: str) -> Any:
        return _resource(self._found_job(request, name))

    def _cancel_job(self, request: Request, name: str) -> Any:
        job = self.jobs[name]
        if not job.done:
            job.done, job.error = True, {"reason": "stopped", "message": "Job execution was cancelled: User requested"}
        return {"kind": "bigquery#jobCancelResponse", "job": _resource(job)}

    def _get_query_results(self, request: Request, name: str) -> Any:
        answer = self._results(self._found_job(request, name), int(request.query.get("pageToken", 0)))
        return {key: value for key, value in answer.items() if key != "rows" or request.query.get("maxResults") != "0"}

    def _results(self, job: Job, start: int = 0) -> dict[str, Any]:
        answer: dict[str, Any] = {"kind": "bigquery#getQueryResultsResponse", "jobReference": job.reference}
        if not job.done:
            return {**answer, "jobComplete": False}
        if job.error is not None:
            raise Refused(STATUS[job.error["reason"]], job.error["reason"], job.error["message"])
        if job.rows is None:  # a script
            return {**answer, "jobComplete": True, "totalBytesProcessed": "0"}
        types, rows = job.rows
        end = len(rows) if self.page_rows is None else start + self.page_rows
        page = [{"f": [{"v": _cell(value)} for value in row]} for row in rows[start:end]]
        answer |= {"jobComplete": True, "schema": _schema(types), "totalRows": str(len(rows))}
        more = {"pageToken": str(end)} if end < len(rows) else {}
        return {**answer, **more, "rows": page}

    # -- uploads --------------------------------------------------------------------------------------------

    def _upload(self, request: Request) -> Any:
        if request.query["uploadType"] == "multipart":
            return self._start(*request.body)
        assert request.query["uploadType"] == "resumable"
        rules.checked_job(request.body)
        name = str(len(self.uploads))
        self.uploads[name] = dict(request.body)
        return {"Location": f"{HOST}/upload/bigquery/v2/projects/{PROJECT}/jobs?uploadType=resumable&upload_id={name}"}

    def _upload_put(self, request: Request) -> Any:
        name, data, content_range = request.body
        upload = self.uploads[name]
        assert content_range == f"bytes 0-{len(data) - 1}/{len(data)}", "uploads in pieces are not what we send"
        if "answer" not in upload:  # an upload that is finished answers the same again
            upload["answer"] = self._start({k: upload[k] for k in ("jobReference", "configuration")}, data)
        return upload["answer"]


PREFIX = f"/bigquery/v2/projects/{PROJECT}"
DATASETS = r"/bigquery/v2/projects/(?P<project>[a-z0-9-]+)/datasets"
TABLE = rf"{DATASETS}/(\w+)/tables/(\w+)"
ROUTES: tuple[tuple[str, str, str, Callable[..., Any]], ...] = (
    ("datasets.get", "GET", rf"{DATASETS}/(\w+)", Service._get_dataset),
    ("datasets.insert", "POST", DATASETS, Service._insert_dataset),
    ("tables.get", "GET", TABLE, Service._get_table),
    ("tables.insert", "POST", rf"{DATASETS}/(\w+)/tables", Service._insert_table),
    ("tables.patch", "PATCH", TABLE, Service._patch_table),
    ("tables.delete", "DELETE", TABLE, Service._delete_table),
    ("tables.testIamPermissions", "POST", rf"{TABLE}:testIamPermissions", Service._test_permissions),
    ("rowAccessPolicies.list", "GET", rf"{TABLE}/rowAccessPolicies", Service._list_policies),
    ("jobs.insert", "POST", rf"{PREFIX}/jobs", Service._insert_job),
    ("jobs.get", "GET", rf"{PREFIX}/jobs/([\w-]+)", Service._get_job),
    ("jobs.cancel", "POST", rf"{PREFIX}/jobs/([\w-]+)/cancel", Service._cancel_job),
    ("jobs.query", "POST", rf"{PREFIX}/queries", Service._query),
    ("jobs.getQueryResults", "GET", rf"{PREFIX}/queries/([\w-]+)", Service._get_query_results),
    ("jobs.upload", "POST", rf"/upload{PREFIX}/jobs", Service._upload),
    ("jobs.upload.put", "PUT", rf"/upload{PREFIX}/jobs", Service._upload_put),
)


def route(method: str, path: str) -> tuple[str, Callable[..., Any], tuple[str, ...]]:
    """The call's name in the reference, what handles it, and the names in its path."""
    for call, wanted, pattern, handle in ROUTES:
        if wanted == method and (found := re.fullmatch(pattern, path)):
            if "project" not in found.groupdict():
                return call, handle, found.groups()
            project, *names = found.groups()
            return call, handle, (*(rules.place(project, dataset) for dataset in names[:1]), *names[1:])
    raise AssertionError(f"the reference has no {method} {path}")


def _place_of(reference: Mapping[str, Any]) -> dict[str, str]:
    return {"project": reference["projectId"], "dataset": reference["datasetId"]}


def _schema(types: Mapping[str, Any]) -> dict[str, Any]:
    fields: list[dict[str, Any]] = []
    for name, kind in types.items():
        of_type = {"type": rules.TYPES[kind]} if isinstance(kind, str) else {"type": "RECORD", **_schema(kind)}
        fields.append({"name": name, "mode": "NULLABLE", **of_type})
    return {"fields": fields}


def _deletes_from(job: Job) -> set[str]:
    sql = job.configuration.get("query", {}).get("query", "")
    if "BEGIN TRANSACTION" not in sql:
        return set()
    return {table for table, kind in rules.changed_tables(sql) if kind == "delete"}


def _resource(job: Job) -> dict[str, Any]:
    status: dict[str, Any] = {"state": "DONE" if job.done else "RUNNING"}
    if job.error is not None:
        status |= {"errorResult": job.error, "errors": [job.error]}
    kept = {k: v for k, v in job.configuration.items() if k != "labels"}
    if job.rows is not None:
        kept["query"] = {**kept["query"], "destinationTable": {**RESULTS, "tableId": job.reference["jobId"]}}
    answer = {"kind": "bigquery#job", "jobReference": job.reference, "configuration": kept, "status": status}
    if job.done and "query" in job.configuration:  # of a script, for all of its statements
        billed = {"totalBytesBilled": str(BYTES_BILLED), "totalSlotMs": str(SLOT_MILLIS)}
        answer["statistics"] = {"totalSlotMs": str(SLOT_MILLIS), "query": billed}
    return answer


def _has_passed(milliseconds: str) -> bool:
    return int(milliseconds) < time.time() * 1000


def _merged(answers: Sequence[Rows | None]) -> Rows:
    """The rows of a query over several others: the number of each, and its row as a value of a column of its own."""
    types: dict[str, Any] = {"part": "INT64"}
    rows: list[tuple[Any, ...]] = []
    for number, answer in enumerate(answers):
        assert answer is not None, "a script within a query"
        types[f"q{number}"] = answer[0]
        nothing: list[Any] = [None] * len(answers)
        rows += [(number, *nothing[:number], row, *nothing[number + 1 :]) for row in answer[1]]
    return types, rows


def _cell(value: Any) -> Any:
    if isinstance(value, tuple):  # a row within the row
        return {"f": [{"v": _cell(one)} for one in value]}
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime):
        return str(round(value.timestamp() * 1_000_000))
    return None if value is None else value.isoformat() if isinstance(value, date) else str(value)


def _read_object(uri: str) -> bytes:
    try:
        return fsspec.filesystem("gs").cat_file(uri)
    except FileNotFoundError as exc:
        raise Refused(404, "notFound", f"Not found: URI {uri}") from exc
