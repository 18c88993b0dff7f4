"""The metrics command: what a scrape shows, and that it answers whatever is dead behind it."""

from __future__ import annotations

import base64
import json
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import redis
import yaml
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.coverage import Fallback
from gated_backfill.common.model.host_fault import FaultKind, HostFault
from gated_backfill.common.model.scheduling.queues import QUEUES
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.runs.state_now import read_state_now
from gated_backfill.producer.metrics.collector import ledger_metrics
from gated_backfill.producer.metrics.server import MetricsServer, is_loopback
from gated_backfill.producer.planning.plan import Reprocess
from tests.brokers import PASSWORD
from tests.builders import ROOT
from tests.lab import Lab, players, until
from tests.receiver import receiving

DAYS = [date(2023, 2, 20) + timedelta(days=n) for n in range(4)]
DASHBOARD = ROOT / "deploy" / "grafana" / "backfill-dashboard.json"
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
NAME = re.compile(r"\bbackfill_[a-z_]+\b")
LONG_AGO = "2023-02-23 04:00:00.000000"


@contextmanager
def serving(lab: Lab, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    process = lab.start("metrics", "--port", "0", **environment)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("serving http://127.0.0.1:"), line
    yield line.split()[1].removesuffix("/metrics"), process
    process.terminate()
    process.wait()


def scrape(address: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Every metric by its labels' values, in the order of the labels' names."""
    with urlopen(f"{address}/metrics") as answer:  # noqa: S310 - an address of ours
        families = list(text_string_to_metric_families(answer.read().decode()))
    assert {family.type for family in families} == {"gauge"}
    assert all(family.documentation for family in families)
    return {one.name: {tuple(s.labels.values()): s.value for s in one.samples} for one in families}


def health(address: str) -> int:
    try:
        with urlopen(f"{address}/healthz") as answer:  # noqa: S310 - an address of ours
            return answer.status
    except HTTPError as exc:
        with exc:
            return exc.code


def silence_beat(lab: Lab) -> None:
    """As if beat had given its last sign of life long ago."""
    row = "INSERT INTO maintenance (name, done_slot, finished_at) VALUES ('heartbeat', :at, :at)"
    lab.change_ledger(row, at=LONG_AGO)


def lively(lab: Lab) -> None:
    """A ledger that holds something for every metric."""
    for day, present in zip(DAYS, (10, 9, 4, 0), strict=True):
        lab.probe_all([day], players(10), first=players(present))
    lab.probe("second", DAYS[3], players(10))
    lab.run(DAYS, "probe")
    later = DAYS[0] + timedelta(days=30)
    lab.probe_all([later], players(1))
    lab.opened([later], "probe_in_a_hurry")
    lab.ledger.heartbeats.register("gate:1", worker="gate:1", name="gate@here", queues=["gate"])
    silence_beat(lab)
    lab.ledger.heartbeats.register("one:1:1", worker="one:1:1", name="dates@one", queues=["backfill"])
    lab.ledger.heartbeats.renew(["one:1:1"], consumed={"one:1:1": []})
    lab.ledger.heartbeats.record_fault("one:1:1", HostFault(kind=FaultKind.STAGING, reason="/staging is read-only"))
    lab.change_ledger(
        "INSERT INTO flagged_dates (job, day, finding, reason, flagged_at, flagged_by) "
        "VALUES ('probe', '2023-02-20', 'missing', 'gone', :at, 'me')",
        at=LONG_AGO,
    )
    lab.change_ledger(
        "INSERT INTO cleanup_operations (id, table_name, date_column, state, cutoff, rows, dates, table_rows, "
        "active, requested_by, created_at, deleted_at) "
        "VALUES ('c', 'nba.upcoming', 'day', 'done', '2023-02-16', 1, 1, 1, FALSE, 'me', :at, :at)",
        at=LONG_AGO,
    )


def test_a_scrape_shows_what_the_dashboard_and_the_rules_name_and_no_more(lab: Lab, broker: str) -> None:
    lively(lab)
    with redis.Redis.from_url(broker) as client:
        client.rpush("gate", "one", "two")
    with serving(lab, BACKFILL_BROKER=broker) as (address, process):
        metrics = scrape(address)
        healthy = health(address)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)

    assert healthy == 200
    assert (process.returncode, out) == (0, "stopped\n")
    assert PASSWORD not in out + err
    assert metrics["backfill_ledger_up"] == metrics["backfill_broker_up"] == {(): 1}
    assert metrics["backfill_checkpointed_dates"] == {("probe", "complete"): 2, ("probe", "accepted"): 1}
    assert metrics["backfill_recent_dates"] == {("probe", "checkpointed"): 3, ("probe", "blocked"): 1}
    assert metrics["backfill_recent_dates_by_source"] == {("probe", "first"): 2, ("probe", "second"): 1}
    assert metrics["backfill_last_run_coverage_ratio"] == {("probe", "min"): 0.4, ("probe", "median"): 0.95}
    assert metrics["backfill_last_run_fallback_dates"] == {("probe",): 1}
    assert metrics["backfill_last_run_dates"][("probe", "blocked")] == 1
    assert set(metrics["backfill_last_run_date_seconds"]) == {("probe", "0.5"), ("probe", "0.9"), ("probe", "1.0")}
    assert metrics["backfill_queue_tasks"] == {(queue,): 2 if queue == "gate" else 0 for queue in QUEUES}
    ages = metrics["backfill_oldest_unfinished_date_age_seconds"]
    assert set(ages) == {("probe",), ("probe_in_a_hurry",)}
    assert ages["probe",] == 0 < ages["probe_in_a_hurry",]
    outstanding = metrics["backfill_outstanding_dates"]
    assert {labels: n for labels, n in outstanding.items() if n} == {("none", "probe", "blocked"): 1}
    assert len(outstanding) == 2 * 3 * 2
    assert metrics["backfill_stale_dates"] == {("probe",): 0, ("probe_in_a_hurry",): 0}
    newest = datetime(2023, 2, 23, tzinfo=UTC).timestamp()
    assert metrics["backfill_newest_checkpointed_date_timestamp_seconds"] == {("probe",): newest}
    stalls = [(job, stall) for job in ("probe", "probe_in_a_hurry") for stall in ("gate", "dates")]
    assert metrics["backfill_stalled_windows"] == dict.fromkeys(stalls, 0)
    assert metrics["backfill_live_workers"] == {("run",): 0, ("shared",): 2}
    assert metrics["backfill_queue_consumers"] == {(queue,): queue == "gate" for queue in QUEUES}
    assert metrics["backfill_active_runs"] == {("probe_in_a_hurry", "running"): 1}
    flagged = metrics["backfill_flagged_dates"]
    assert {labels for labels, n in flagged.items() if n} == {("missing", "probe")}
    assert len(flagged) == 2 * 5
    faults = metrics["backfill_faulty_workers"]
    assert {labels for labels, n in faults.items() if n} == {("staging", "one", "dates@one")}
    assert len(faults) == 2 * len(FaultKind)
    assert metrics["backfill_beat_heartbeat_age_seconds"][()] > 600
    assert metrics["backfill_maintenance_failed"] == {("heartbeat",): 0}
    assert metrics["backfill_alerts"][("pending",)] >= 3
    assert set(metrics["backfill_last_cleanup_timestamp_seconds"]) == {("nba.upcoming",)}
    names = {name for name, samples in metrics.items() if samples}
    assert names == set(metrics)
    assert names_in(dashboard()) == names
    assert names_in(yaml.safe_load(RULES.read_text())) <= names


def test_an_ended_run_does_not_complete_the_dates_of_another(lab: Lab) -> None:
    """Dates that are blocked stay outstanding while other runs end, until they are complete themselves."""

    def outstanding() -> dict[tuple[str, ...], float]:
        families = {family.name: family for family in ledger_metrics(lab.ledger, lab.settings, utcnow())}
        samples = families["backfill_outstanding_dates"].samples
        return {tuple(one.labels.values()): one.value for one in samples if one.value}

    lab.probe_all(DAYS, players(10))
    lab.probe("first", DAYS[0], players(4))
    lab.run(DAYS[:1], "probe")
    assert outstanding() == {("probe", "blocked", "none"): 1}
    lab.run(DAYS[1:], "probe")
    assert outstanding() == {("probe", "blocked", "none"): 1}
    lab.probe("first", DAYS[0], players(10))
    lab.run(DAYS[:1], "probe")
    assert outstanding() == {}
    lab.keep_only("probe.first", DAYS[0], "name", "player000", "day")
    lab.run(DAYS[:1], "probe", reprocess=Reprocess.ALL, fallback=Fallback.OFF)
    assert outstanding() == {("probe", "blocked", "earlier"): 1}


def test_dates_of_another_version_of_a_job_are_stale(lab: Lab) -> None:
    lab.probe_all(DAYS, players(10))
    lab.run(DAYS, "probe")
    lab.change_ledger("UPDATE checkpoints SET job_version = '0.9' WHERE day <= :day", day=str(DAYS[1]))
    (probe,) = read_state_now(lab.ledger, lab.settings).jobs
    assert (probe.checkpointed, probe.other_versions, probe.newest) == (4, 2, DAYS[-1])
    lab.change_ledger("UPDATE checkpoints SET job = 'gone'")
    lab.change_ledger("DROP TRIGGER runs_keep_update")  # the tool itself never renames a job
    lab.change_ledger("UPDATE runs SET job = 'gone', job_version = '0.9'")
    (gone,) = read_state_now(lab.ledger, lab.settings).jobs
    assert (gone.job, gone.checkpointed, gone.other_versions) == ("gone", 4, 2)


def test_a_silent_beat_is_told_by_the_metrics_server(lab: Lab) -> None:
    silence_beat(lab)
    with receiving() as receiver, serving(lab, BACKFILL_ALERTS=receiver.url):
        until(lambda: receiver.messages, "the message that beat is silent")
        assert "beat is silent since 2023-02-23 04:00 UTC" in receiver.messages[0]["message"]


def test_a_scrape_answers_while_ledger_and_broker_hang(lab: Lab) -> None:
    with socket.socket() as silent:  # it accepts connections and never says anything
        silent.bind(("127.0.0.1", 0))
        silent.listen(20)
        port = silent.getsockname()[1]
        places = {
            "BACKFILL_LEDGER": f"postgresql://me:{PASSWORD}@127.0.0.1:{port}/ledger",
            "BACKFILL_BROKER": f"redis://:{PASSWORD}@127.0.0.1:{port}/0",
        }
        with serving(lab, **places) as (address, process):
            with ThreadPoolExecutor(2) as pool:
                asked = pool.submit(health, address)
                found, unhealthy = scrape(address), asked.result()
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)

    assert (found["backfill_ledger_up"], found["backfill_broker_up"]) == ({(): 0}, {(): 0})
    assert unhealthy == 503
    assert process.returncode == 0
    assert PASSWORD not in out + err


def test_a_ledger_that_is_not_there_yet_is_not_made_and_seen_once_it_is(lab: Lab, tmp_path: Path) -> None:
    ledger = f"sqlite:///{tmp_path / 'later' / 'ledger.db'}"
    with serving(lab, BACKFILL_LEDGER=ledger) as (address, _):
        before = (scrape(address)["backfill_ledger_up"], health(address))
        lab.invoke("status", BACKFILL_LEDGER=ledger)
        after = (scrape(address)["backfill_ledger_up"], health(address))

    assert before == ({(): 0}, 503)
    assert after == ({(): 1}, 200)


def asked(address: str, authorization: str | None) -> tuple[int, str]:
    """The status of /metrics, and what it says should be given."""
    request = Request(f"{address}/metrics")  # noqa: S310 - an address of ours
    if authorization is not None:
        request.add_header("Authorization", authorization)
    try:
        with urlopen(request) as answer:  # noqa: S310 - an address of ours
            return answer.status, ""
    except HTTPError as exc:
        with exc:
            return exc.code, exc.headers["WWW-Authenticate"]


def basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def test_metrics_with_a_password_ask_for_it_and_health_does_not(lab: Lab) -> None:
    server = MetricsServer(lab.settings.model_copy(update={"metrics_password": SecretStr("s3cr\u00e9t")}), "", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        assert asked(address, basic("backfill", "s3cr\u00e9t")) == (200, "")
        for wrong in (None, "", "Basic", "Basic !!!", basic("backfill", "secret"), basic("", ""), "Bearer s3cr"):
            assert asked(address, wrong) == (401, 'Basic realm="backfill"')
        assert health(address) == 200
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "", "10.1.2.3", "example.org", "127.0.0.1.example.org", "\u2603"])  # noqa: S104
def test_metrics_for_other_machines_are_refused_without_a_password(lab: Lab, address: str) -> None:
    refused = lab.inside("metrics", "--port", "0", "--address", address)
    assert refused.returncode == 2
    assert "BACKFILL_METRICS_PASSWORD" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_this_machines_own_addresses_are_known(address: str) -> None:
    assert is_loopback(address)


def test_a_port_that_is_taken_is_refused(lab: Lab) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused = lab.invoke("metrics", "--port", str(taken.getsockname()[1]))

    assert isinstance(refused.exception, UserError)
    assert "can't listen on 127.0.0.1 port" in str(refused.exception)


# -- the files ------------------------------------------------------------------------------------------------------


def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text())


def names_in(part: Any) -> set[str]:
    """The metrics that the expressions in a dashboard or in rules name."""
    if isinstance(part, dict):
        found = set(NAME.findall(part["expr"])) if "expr" in part else set[str]()
        return found.union(*(names_in(value) for value in part.values()))
    return set[str]().union(*(names_in(value) for value in part)) if isinstance(part, list) else set()


def test_the_dashboard_is_one_that_grafana_can_import() -> None:
    read = dashboard()
    panels = read["panels"]
    assert read["title"]
    assert read["uid"]
    assert read["schemaVersion"] >= 36
    assert [one["name"] for one in read["templating"]["list"]] == ["datasource", "job"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["title"]
        assert panel["type"] in ("stat", "timeseries")
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert all(target["expr"] for target in panel["targets"])
        assert [target["refId"] for target in panel["targets"]] == sorted({t["refId"] for t in panel["targets"]})


def test_no_two_panels_lie_on_each_other() -> None:
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in dashboard()["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
