"""A real Prometheus scrapes `backfill metrics` of a real ledger, and its alerts follow the state of the dates."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from datetime import date, timedelta

from tests.lab import Lab, players
from tests.prometheus.conftest import Prometheus

DAYS = [date(2023, 2, 20) + timedelta(days=n) for n in range(4)]


def started(lab: Lab, port: int = 0) -> tuple[str, subprocess.Popen[str]]:
    """The host and port of a metrics endpoint, and its process."""
    process = lab.start("metrics", "--port", str(port))
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("serving http://127.0.0.1:"), line
    return line.removeprefix("serving http://").partition("/")[0], process


def stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.communicate(timeout=60)


def test_a_blocked_date_keeps_its_alert_until_it_is_complete(lab: Lab, prometheus: Callable[[str], Prometheus]) -> None:
    lab.probe_all(DAYS, players(10))
    lab.probe("first", DAYS[0], players(4))
    lab.run(DAYS[:2], "probe")
    target, endpoint = started(lab)
    server = prometheus(target)

    server.await_firing("BackfillDatesBlocked")
    alert = server.ask("alerts")["alerts"][0]
    assert (alert["labels"]["job"], alert["labels"]["state"], alert["value"]) == ("probe", "blocked", "1e+00")

    lab.run(DAYS[2:3], "probe")
    last_run = 'sum(backfill_last_run_dates{job="probe",state=~"blocked|failed"})'
    server.await_evaluations()
    assert server.value(last_run) == 0  # it has scraped the other run, which left no date
    assert server.firing() == {"BackfillDatesBlocked"}

    lab.probe("first", DAYS[0], players(10))
    lab.run(DAYS[:1], "probe")
    server.await_firing()

    lab.probe("first", DAYS[3], players(4))
    lab.run(DAYS[3:], "probe")
    server.await_firing("BackfillDatesBlocked")
    stop(endpoint)
    server.await_firing("BackfillMetricsDown", "BackfillDatesBlocked")
    server.await_evaluations()
    assert server.value("backfill_outstanding_dates") is None
    assert server.firing() == {"BackfillMetricsDown", "BackfillDatesBlocked"}

    _, endpoint = started(lab, int(target.partition(":")[2]))
    server.await_firing("BackfillDatesBlocked")
    lab.probe("first", DAYS[3], players(10))
    lab.run(DAYS[3:], "probe")
    server.await_firing()
    server.scrape([])
    server.await_firing("BackfillMetricsAbsent")
    server.scrape([target])
    server.await_firing()
    stop(endpoint)
