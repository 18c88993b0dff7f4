"""What BigQuery billed for a run is recorded with it, on the double of its REST interface."""

from __future__ import annotations

import json

from gated_backfill.common.model.tables import TableName
from gated_backfill.common.model.usage import Usage, format_bytes
from gated_backfill.producer.planning.plan import Reprocess
from gated_backfill.worker.dates.process import process_dates
from tests.lab import PROBE_TYPES, Lab, players, probe_rows
from tests.rest_service import BYTES_BILLED, SLOT_MILLIS
from tests.rest_tables import FilledDouble, days_from, with_sources


def test_a_run_records_what_its_plan_tasks_and_gates_were_billed(rest_lab: Lab, filled: FilledDouble) -> None:
    days = days_from(5)
    with_sources(filled, days)
    first = rest_lab.run(days, "probe", preflight=True, dates_per_task=2, window=3)
    counts = [billed_jobs(filled)]
    filled.fill(TableName("probe", "first"), probe_rows(days, players(5), lowest=1.0), PROBE_TYPES, "day")
    again = rest_lab.run(days, "probe", dates_per_task=3, reprocess=Reprocess.ALL)
    counts.append(billed_jobs(filled))

    runs = [first.run.id, again.run.id]
    usage = rest_lab.ledger.runs.sum_usage(runs)
    expected = [Usage(bytes_billed=n * BYTES_BILLED, slot_millis=n * SLOT_MILLIS) for n in counts]
    assert [usage[run] for run in runs] == expected
    assert all(n > 10 for n in counts)

    shown = rest_lab.inside("status", runs[1])
    assert f"  billed   {expected[1].describe()}" in shown.stdout
    assert json.loads(rest_lab.inside("status", runs[1], "--json").stdout)["billed"] == expected[1].as_json()
    total = sum(expected, Usage())
    history = json.loads(rest_lab.inside("history", "--json").stdout)
    assert history["totals"]["billed"] == total.as_json()
    assert {run["run"]: run["billed"] for run in history["runs"]} == {run: usage[run].as_json() for run in runs}
    assert format_bytes(total.bytes_billed) in rest_lab.inside("history").stdout


def test_an_attempt_that_is_repeated_is_recorded_too(rest_lab: Lab, filled: FilledDouble) -> None:
    days = days_from(2)
    with_sources(filled, days)
    run, deps, _ = rest_lab.opened(days, "probe")
    before = rest_lab.ledger.runs.sum_usage([run.id])
    filled.double.log.clear()
    filled.double.fail("tables.get", skip=2, times=1, status=403, reason="rateLimitExceeded")
    filled.double.fail("jobs.query", skip=2, times=1, status=400, reason="invalidQuery")
    process_dates(run.id, days, deps)
    n = billed_jobs(filled) - 1  # the one that failed
    usage = rest_lab.ledger.runs.sum_usage([run.id])[run.id]
    assert usage == before[run.id] + Usage(bytes_billed=n * BYTES_BILLED, slot_millis=n * SLOT_MILLIS)
    assert {row.bytes_billed is None for row in rest_lab.ledger.dates.list_dates(run.id)} == {False}


def billed_jobs(filled: FilledDouble) -> int:
    """The number of queries and scripts since the last call that worked for a job of ours."""
    queries = [one.body for one in filled.double.log if one.kind == "query"]
    filled.double.log.clear()
    return sum("job" in (body.get("labels") or body.get("configuration", {}).get("labels", {})) for body in queries)
