"""What the BigQuery warehouse makes of failures: on a strict double of BigQuery's REST interface."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import requests.exceptions
from google.api_core.retry import retry_unary
from google.resumable_media.requests import _request_helpers as uploads

from gated_backfill.common.errors import BackfillError, NotAllowed, QueryFailed, TableNotFound, WarehouseUnavailable
from gated_backfill.common.model.publication import PublishResult, StagedFile, WarehouseLimits
from gated_backfill.common.storage.staging import Staging
from gated_backfill.common.warehouse.bigquery.address import BigQueryAddress
from gated_backfill.common.warehouse.bigquery.client import BigQueryConnection
from gated_backfill.common.warehouse.bigquery.warehouse import BigQueryWarehouse
from tests.builders import DAYS, FEB_23, TABLE, rows_of, scan, span, staged
from tests.rest_double import TOKEN, RestDouble
from tests.rest_lab import TYPES, URL, nobody, opened, publish

LOST = requests.exceptions.ConnectionError("the connection was reset")
FOR_EVER = float("inf")
PUBLISHED = PublishResult(published=frozenset(DAYS))
CONCURRENT = "Transaction is aborted due to concurrent update against table test-project:nba.factors"
BILLED = "Query exceeded limit for bytes billed: 12345. 10485760 or higher required."
DENIED = "Access Denied: Project test-project: User does not have bigquery.jobs.create permission in project"


class Died(BaseException):
    """The process ends here, whatever it would catch."""


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Google libraries try again at once."""
    hasty = SimpleNamespace(sleep=lambda seconds: None, monotonic=time.monotonic)
    monkeypatch.setattr(retry_unary, "time", hasty)
    monkeypatch.setattr(uploads, "time", hasty)


Files = list[StagedFile]


@pytest.fixture
def files(staging: Staging) -> Files:
    return [staged(staging, day) for day in DAYS]


def held(double: RestDouble) -> dict[Any, str]:
    return double.dates.held.get(str(TABLE), {})


def die_while_publishing(double: RestDouble, files: Files, *, after_effect: bool = False) -> None:
    """A process that publishes dies when it starts the job, or when it is answered."""
    double.fail("jobs.insert", job="backfill-publish-", error=Died(), after_effect=after_effect)
    with pytest.raises(Died):
        publish(opened(double), files)


def job_ids(double: RestDouble, kind: str) -> list[str]:
    """The jobs of ours on record, in their order, each by its number."""
    return [name.rpartition("-")[2] for name in double.jobs if name.startswith(f"backfill-{kind}-")]


def read_or_publish(warehouse: BigQueryWarehouse, doing: str, files: Files) -> None:
    """What meets the errors: a query, or a publication."""
    publish(warehouse, files) if doing == "publish" else warehouse.read(scan(span(FEB_23)))


# -- once, whatever is lost on the way ----------------------------------------------------------------------------


@pytest.mark.parametrize("after_effect", [pytest.param(False, id="before"), pytest.param(True, id="after")])
@pytest.mark.parametrize(
    "wrong",
    [pytest.param({"error": LOST}, id="connection"), pytest.param({"status": 503, "reason": "backendError"}, id="503")],
)
@pytest.mark.usefixtures("no_pauses")
def test_a_window_is_published_once_whichever_request_fails(files: Files, wrong: Any, after_effect: bool) -> None:
    smooth = RestDouble(answer=nobody)
    assert publish(opened(smooth), files) == PUBLISHED
    for number, failing in enumerate(smooth.log):
        double = RestDouble(answer=nobody)
        double.fail("", skip=number, after_effect=after_effect, **wrong)
        assert publish(opened(double), files) == PUBLISHED, failing
        assert len(double.dates.scripts) == 1, failing
        assert (job_ids(double, "load"), job_ids(double, "publish")) == (["0"], ["0"]), failing
        assert len(double.log) > len(smooth.log), failing


@pytest.mark.usefixtures("no_pauses")
def test_a_publication_whose_answer_is_lost_is_waited_for(double: RestDouble, files: Files) -> None:
    double.slow("backfill-publish-", polls=3)
    double.fail("jobs.insert", job="backfill-publish-", error=LOST, after_effect=True)
    assert publish(opened(double), files) == PUBLISHED
    assert len(double.calls("jobs.insert", "backfill-publish-")) == 2  # the second was refused as a duplicate
    assert job_ids(double, "publish") == ["0"]
    assert len(double.dates.scripts) == 1


@pytest.mark.usefixtures("no_pauses")
def test_a_job_that_is_a_duplicate_and_not_found_yet_is_waited_for(double: RestDouble, files: Files) -> None:
    double.fail("jobs.insert", job="backfill-publish-", error=LOST, after_effect=True)
    double.fail("jobs.get", job="backfill-publish-", status=404, reason="notFound", times=2)
    assert publish(opened(double), files) == PUBLISHED
    assert job_ids(double, "publish") == ["0"]


@pytest.mark.usefixtures("no_pauses")
def test_a_load_whose_answer_is_lost_is_waited_for(double: RestDouble, any_staging: Staging) -> None:
    there = [staged(any_staging, day) for day in DAYS]
    call = "jobs.insert" if str(any_staging.root).startswith("gs://") else "jobs.upload.put"
    double.fail(call, job="backfill-load-", error=LOST, after_effect=True)
    assert publish(opened(double), there) == PUBLISHED
    assert len(double.calls(call, "backfill-load-")) == 2
    assert job_ids(double, "load") == ["0"]


@pytest.mark.parametrize("status", [404, 410])
@pytest.mark.parametrize("after_effect", [pytest.param(False, id="before"), pytest.param(True, id="after")])
@pytest.mark.usefixtures("no_pauses")
def test_a_forgotten_upload_is_begun_anew(double: RestDouble, files: Files, status: int, after_effect: bool) -> None:
    double.fail("jobs.upload.put", status=status, reason="notFound", after_effect=after_effect, times=2)
    assert publish(opened(double), files) == PUBLISHED
    assert len(double.calls("jobs.upload")) == 3
    assert job_ids(double, "load") == ["0"]


@pytest.mark.usefixtures("no_pauses")
def test_an_upload_into_what_is_not_there_is_not_begun_anew(double: RestDouble, files: Files) -> None:
    message = "Not found: Dataset test-project:nba"
    double.fail("jobs.upload.put", status=404, reason="notFound", message=message, times=FOR_EVER)
    with pytest.raises(TableNotFound):
        publish(opened(double), files)
    assert len(double.calls("jobs.upload")) == 1


@pytest.mark.usefixtures("no_pauses")
def test_an_upload_that_is_always_forgotten_may_succeed_later(double: RestDouble, files: Files) -> None:
    double.fail("jobs.upload.put", status=404, reason="notFound", times=FOR_EVER)
    with pytest.raises(WarehouseUnavailable):
        publish(opened(double, retry_seconds=0.2), files)
    assert held(double) == {}


def test_an_upload_that_another_process_made_is_not_made_again(double: RestDouble, files: Files) -> None:
    die_while_publishing(double, files)
    assert publish(opened(double), files) == PUBLISHED
    assert job_ids(double, "load") == ["0"]


def test_a_second_process_publishes_the_same_no_second_time(double: RestDouble, files: Files) -> None:
    assert publish(opened(double), files) == PUBLISHED
    before = Counter(request.kind for request in double.log)
    assert publish(opened(double), files) == PUBLISHED
    assert len(double.dates.scripts) == 1
    assert job_ids(double, "publish") == ["0"]
    assert Counter(request.kind for request in double.log)["load"] == before["load"]


def test_a_second_process_waits_for_the_publication_of_one_that_died(double: RestDouble, files: Files) -> None:
    double.slow("backfill-publish-", polls=2)
    die_while_publishing(double, files, after_effect=True)
    assert held(double) == {}
    assert publish(opened(double), files) == PUBLISHED
    assert len(double.dates.scripts) == 1
    assert job_ids(double, "publish") == ["0"]


@pytest.mark.parametrize("kind", ["load", "publish"])
def test_a_job_that_failed_is_followed_by_the_next_number(double: RestDouble, files: Files, kind: str) -> None:
    for _ in range(2):
        double.fail_job(f"backfill-{kind}-", "backendError")
        with pytest.raises(WarehouseUnavailable):
            publish(opened(double), files)
        assert held(double) == {}
    assert publish(opened(double), files) == PUBLISHED
    assert job_ids(double, kind) == ["0", "1", "2"]
    assert len(double.dates.scripts) == 1


def test_staged_rows_that_have_expired_are_loaded_again(double: RestDouble, files: Files) -> None:
    die_while_publishing(double, files)
    (table,) = [resource for (_, name), resource in double.tables.items() if name.startswith("staged_")]
    table["expirationTime"] = "1"
    assert publish(opened(double), files) == PUBLISHED
    assert job_ids(double, "load") == ["0", "1"]


def test_a_date_that_changed_on_the_way_is_reported_and_not_tried_again(double: RestDouble, files: Files) -> None:
    real = double.dates.run

    def somebody_else_first(*arguments: Any) -> None:
        double.dates.held.setdefault(str(TABLE), {})[FEB_23] = "theirs"
        real(*arguments)

    double.dates.run = somebody_else_first  # type: ignore[method-assign]
    result = publish(opened(double), files)
    assert result == PublishResult(published=frozenset(DAYS[1:]), conflicting=frozenset({FEB_23}))
    assert held(double)[FEB_23] == "theirs"
    assert job_ids(double, "publish") == ["0"]


def test_rows_that_are_not_all_there_are_not_published(double: RestDouble, files: Files) -> None:
    more = [replace(file, rows=file.rows + 1) for file in files]
    assert publish(opened(double), more).published == frozenset()
    assert held(double) == {}
    assert job_ids(double, "publish") == ["0"]


# -- all or nothing -----------------------------------------------------------------------------------------------


Error = type[BackfillError]


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        pytest.param("backendError", WarehouseUnavailable, id="passing"),
        pytest.param("internalError", WarehouseUnavailable, id="internal"),
        pytest.param("invalid", QueryFailed, id="bad-file"),
        pytest.param("accessDenied", NotAllowed, id="denied"),
    ],
)
@pytest.mark.parametrize("kind", ["load", "replace"])
def test_a_load_that_fails_replaces_nothing(double: RestDouble, reason: str, expected: Error, kind: str) -> None:
    warehouse = opened(double)
    warehouse.load(TABLE, "day", rows_of(*DAYS))
    before = dict(held(double))
    double.fail_job(f"backfill-{kind}-", reason)
    with pytest.raises(expected):
        warehouse.load(TABLE, "day", rows_of(*DAYS, players=9))
    assert held(double) == before
    assert warehouse.load(TABLE, "day", rows_of(*DAYS, players=9)) == list(DAYS)
    assert set(held(double).values()).isdisjoint(before.values())


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        pytest.param("backendError", WarehouseUnavailable, id="passing"),
        pytest.param("invalid", QueryFailed, id="bad-file"),
    ],
)
def test_staging_that_fails_publishes_nothing(double: RestDouble, files: Files, reason: str, expected: Error) -> None:
    double.fail_job("backfill-load-", reason)
    with pytest.raises(expected, match="staged files"):
        publish(opened(double), files)
    assert held(double) == {}
    assert double.calls("jobs.insert", "backfill-publish-") == []


# -- errors that pass ---------------------------------------------------------------------------------------------

PASSING = [
    pytest.param({"status": 500, "reason": "internalError"}, id="500"),
    pytest.param({"status": 502, "reason": "badGateway"}, id="502"),
    pytest.param({"status": 503, "reason": "backendError"}, id="503"),
    pytest.param({"status": 429, "reason": "rateLimitExceeded"}, id="429"),
    pytest.param({"status": 403, "reason": "rateLimitExceeded"}, id="403-rate-limit"),
    pytest.param({"error": LOST}, id="connection"),
    pytest.param({"error": requests.exceptions.ReadTimeout("no answer")}, id="timeout"),
    pytest.param({"error": requests.exceptions.ChunkedEncodingError("cut")}, id="cut"),
]


def with_a_table(double: RestDouble, **limits: Any) -> BigQueryWarehouse:
    opened(double).create_table(TABLE, TYPES, "day")
    double.log.clear()
    return opened(double, **limits)


@pytest.mark.parametrize("call", ["tables.get", "jobs.query", "jobs.get", "jobs.getQueryResults"])
@pytest.mark.parametrize("wrong", PASSING)
@pytest.mark.usefixtures("no_pauses")
def test_what_passes_is_tried_again(double: RestDouble, wrong: dict[str, Any], call: str) -> None:
    warehouse = with_a_table(double)
    if call == "jobs.getQueryResults":
        double.slow("", polls=2)  # the answer to the query does not have its rows yet
    double.fail(call, times=3, **wrong)
    assert warehouse.read(scan(span(FEB_23))).num_rows == 0
    assert len(double.calls(call)) >= 4


@pytest.mark.parametrize("wrong", PASSING)
def test_what_does_not_pass_within_the_deadline_is_reported(double: RestDouble, wrong: dict[str, Any]) -> None:
    warehouse = with_a_table(double, retry_seconds=0.3)
    double.fail("jobs.query", times=FOR_EVER, **wrong)
    with pytest.raises(WarehouseUnavailable, match=r"nba\.factors"):
        warehouse.read(scan(span(FEB_23)))
    assert 2 <= len(double.calls("jobs.query")) <= 20


@pytest.mark.parametrize("wrong", PASSING)
@pytest.mark.usefixtures("no_pauses")
def test_an_upload_is_given_up_after_a_few_tries(double: RestDouble, files: Files, wrong: dict[str, Any]) -> None:
    double.fail("jobs.upload", times=FOR_EVER, **wrong)
    with pytest.raises(WarehouseUnavailable):
        publish(opened(double), files)
    assert len(double.calls("jobs.upload")) <= 4
    assert held(double) == {}


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        pytest.param("backendError", "so it is", id="backend"),
        pytest.param("internalError", "so it is", id="internal"),
        pytest.param("jobBackendError", "so it is", id="job-backend"),
        pytest.param("jobInternalError", "so it is", id="job-internal"),
        pytest.param("jobRateLimitExceeded", "so it is", id="job-rate-limit"),
        pytest.param("rateLimitExceeded", "so it is", id="rate-limit"),
        pytest.param("tableUnavailable", "so it is", id="table-unavailable"),
        pytest.param("stopped", "Job execution was cancelled", id="cancelled"),
    ],
)
def test_a_publication_may_succeed_later(double: RestDouble, files: Files, reason: str, message: str) -> None:
    warehouse = opened(double)
    double.fail_job("backfill-publish-", reason, message)
    with pytest.raises(WarehouseUnavailable, match=r"nba\.factors"):
        publish(warehouse, files)
    assert held(double) == {}
    assert publish(warehouse, files) == PUBLISHED


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        pytest.param("invalidQuery", CONCURRENT, id="aborted"),
        pytest.param("invalid", CONCURRENT, id="aborted-as-invalid"),
        pytest.param("invalidQuery", "Could not serialize access to table t due to concurrent update", id="serialize"),
        pytest.param("invalidQuery", "Too many DML statements outstanding against table t", id="queue-of-dml"),
    ],
)
def test_a_publication_is_retried_after_another(double: RestDouble, files: Files, reason: str, message: str) -> None:
    double.fail_job("backfill-publish-", reason, message)
    assert publish(with_a_table(double, retry_seconds=20.0), files) == PUBLISHED
    assert job_ids(double, "publish") == ["0", "1"]


@pytest.mark.parametrize("doing", ["read", "publish"])
def test_a_job_that_does_not_end_is_given_up_at_our_deadline(double: RestDouble, files: Files, doing: str) -> None:
    warehouse = with_a_table(double, job_seconds=0.2)
    double.slow("backfill-publish-" if doing == "publish" else "", polls=10**9)
    with pytest.raises(WarehouseUnavailable, match="takes too long"):
        read_or_publish(warehouse, doing, files)
    assert held(double) == {}
    if doing == "publish":  # it must not take effect later, when nobody looks
        assert all(job.done for name, job in double.jobs.items() if name.startswith("backfill-publish-"))


# -- errors that last ---------------------------------------------------------------------------------------------

Answer = tuple[int, str, str]  #: its status, reason and message
LASTING = [
    pytest.param((400, "invalidQuery", "Unrecognized name"), QueryFailed, r"nba\.factors.*Unrecog", id="invalid"),
    pytest.param((400, "bytesBilledLimitExceeded", BILLED), QueryFailed, "BACKFILL_MAX_BYTES_BILLED", id="billed"),
    pytest.param((400, "resourcesExceeded", "too much"), QueryFailed, r"nba\.factors.*too much", id="resources"),
    pytest.param((403, "quotaExceeded", "used up"), QueryFailed, "quota", id="quota"),
    pytest.param((403, "accessDenied", DENIED), NotAllowed, r"needed: bigquery\.jobs\.create\)", id="denied"),
    pytest.param((403, "accessDenied", "no"), NotAllowed, r"needed: bigquery\.jobs\.create, bigquery\.tables", id="no"),
    pytest.param((404, "notFound", "Not found: Table"), TableNotFound, r"nba\.factors", id="not-found"),
]


@pytest.mark.parametrize(("answer", "expected", "error"), LASTING)
@pytest.mark.parametrize("as_job", [pytest.param(False, id="answer"), pytest.param(True, id="job")])
@pytest.mark.parametrize("doing", ["read", "publish"])
def test_what_lasts_is_not_tried_again(
    double: RestDouble, files: Files, answer: Answer, expected: Error, error: str, as_job: bool, doing: str
) -> None:
    status, reason, message = answer
    warehouse = with_a_table(double)
    job, call = ("backfill-publish-", "jobs.insert") if doing == "publish" else ("", "jobs.query")
    if as_job:
        double.fail_job(job, reason, message)
    else:
        double.fail(call, job=job, times=FOR_EVER, status=status, reason=reason, message=message)
    with pytest.raises(expected, match=error):
        read_or_publish(warehouse, doing, files)
    assert len(double.calls(call, job)) == 1
    assert held(double) == {}


@pytest.mark.parametrize(
    ("status", "reason"), [pytest.param(401, "authError", id="401"), pytest.param(403, "accessDenied", id="403")]
)
def test_a_table_that_may_not_be_seen_is_not_absent(double: RestDouble, status: int, reason: str) -> None:
    double.fail("tables.get", status=status, reason=reason, times=FOR_EVER)
    with pytest.raises(NotAllowed, match=r"bigquery\.tables\.get"):
        opened(double).describe(TABLE)
    assert len(double.log) == 1


def test_a_table_that_may_not_be_written_is_told_before_the_run(double: RestDouble) -> None:
    double.permissions = ("bigquery.tables.getData",)
    warehouse = with_a_table(double)
    with pytest.raises(NotAllowed, match=r"nba\.factors.*bigquery\.tables\.updateData is missing"):
        warehouse.check_publishable(TABLE)
    assert not [one for one in double.log if one.call.endswith((".insert", ".upload", ".delete"))]


# -- credentials --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"error": LOST}, id="connection"),
        pytest.param({"status": 401, "reason": "authError"}, id="401"),
        pytest.param({"status": 400, "reason": "invalidQuery"}, id="400"),
    ],
)
@pytest.mark.usefixtures("no_pauses")
def test_no_credentials_reach_a_log_or_an_error(
    double: RestDouble, files: Files, caplog: pytest.LogCaptureFixture, wrong: dict[str, Any]
) -> None:
    caplog.set_level(logging.DEBUG)
    warehouse = with_a_table(double, retry_seconds=0.1)
    double.fail("jobs.insert", job="backfill-publish-", times=FOR_EVER, **wrong)
    with pytest.raises(BackfillError) as raised:
        publish(warehouse, files)
    sent: Any = raised.value.__cause__
    while sent.__cause__ is not None:
        sent = sent.__cause__
    request = getattr(sent, "request", None) or sent.response.request
    assert TOKEN in request.headers["Authorization"]  # as a real session sends it
    address = BigQueryAddress.parse(URL)
    texts = [repr(raised.value), str(raised.value), repr(raised.value.__cause__), repr(warehouse), repr(address)]
    texts += [repr(BigQueryConnection(address, WarehouseLimits(), double)), caplog.text, repr(double.log)]
    assert not [text for text in texts if TOKEN in text or "Bearer" in text]
