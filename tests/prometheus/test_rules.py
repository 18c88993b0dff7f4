"""Each alert rule, by promtool: it fires, keeps its alert while nobody can tell, and clears when all is well."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.prometheus.conftest import PROMTOOL, RULES

TARGET = 'job="backfill",instance="one"'
CRITICAL, WARNING, INFO = "critical", "warning", "info"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A metric whose value makes an alert fire, and the value that clears it."""

    alert: str
    metric: str
    labels: dict[str, str] = field(default_factory=dict[str, str])
    bad: float = 1
    good: float = 0
    severity: str = WARNING
    wait: int = 0  #: minutes from which the alert fires

    def series(self, values: str, **target: str) -> dict[str, str]:
        labels = ",".join(f'{name}="{value}"' for name, value in (self.labels | target).items())
        return {"series": f"{self.metric}{{{labels}}}", "values": values}


def dates(state: str, checkpoint: str) -> dict[str, str]:
    return {"job": "players", "state": state, "checkpoint": checkpoint}


PLAYERS = {"job": "players"}
OUTSTANDING = "backfill_outstanding_dates"
HOURS = 3600.0
CASES = [
    Case(alert="BackfillLedgerDown", metric="backfill_ledger_up", bad=0, good=1, severity=CRITICAL, wait=5),
    Case(alert="BackfillBrokerDown", metric="backfill_broker_up", bad=0, good=1, severity=CRITICAL, wait=5),
    Case(alert="BackfillDatesBlocked", metric=OUTSTANDING, labels=dates("blocked", "none"), bad=7),
    Case(alert="BackfillDatesBlocked", metric=OUTSTANDING, labels=dates("failed", "none"), bad=7),
    Case(alert="BackfillDatesHeld", metric=OUTSTANDING, labels=dates("held", "none")),
    Case(alert="BackfillDatesHeld", metric=OUTSTANDING, labels=dates("held", "earlier")),
    Case(alert="BackfillRebuildsBlocked", metric=OUTSTANDING, labels=dates("failed", "earlier"), severity=INFO),
    Case(alert="BackfillDatesFlagged", metric="backfill_flagged_dates", labels=PLAYERS | {"finding": "missing"}, bad=2),
    Case(alert="BackfillDatesStale", metric="backfill_stale_dates", labels=PLAYERS, severity=INFO, wait=60),
    Case(
        alert="BackfillDatesWaitLong",
        metric="backfill_oldest_unfinished_date_age_seconds",
        labels=PLAYERS,
        bad=7 * HOURS,
        good=5 * HOURS,
        wait=10,
    ),
    Case(
        alert="BackfillWindowsStalled", metric="backfill_stalled_windows", labels=PLAYERS | {"stall": "gate"}, wait=10
    ),
    Case(
        alert="BackfillQueueWithoutWorker",
        metric="backfill_queue_consumers",
        labels={"queue": "gate"},
        bad=0,
        good=2,
        severity=CRITICAL,
        wait=5,
    ),
    Case(
        alert="BackfillWorkerFaulty",
        metric="backfill_faulty_workers",
        labels={"worker": "dates@one", "host": "one", "fault": "staging"},
        wait=2,
    ),
    Case(alert="BackfillBeatSilent", metric="backfill_beat_heartbeat_age_seconds", bad=900, good=30, wait=2),
    Case(alert="BackfillAlertsNotDelivered", metric="backfill_alerts", labels={"state": "failed"}),
    Case(alert="BackfillMaintenanceFails", metric="backfill_maintenance_failed", labels={"name": "audit"}, wait=30),
]


def expectation(alert: str, minute: int, *fires: dict[str, str]) -> dict[str, Any]:
    """What an alert shows at a minute: the labels of those that fire."""
    alerts = [{"exp_labels": labels} for labels in fires]
    return {"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": alerts}


def without_texts(rules: Path, folder: Path) -> Path:
    """The rules without annotations, of which promtool would want each word."""
    parsed = yaml.safe_load(rules.read_text())
    for rule in (rule for group in parsed["groups"] for rule in group["rules"]):
        del rule["annotations"]
    copied = folder / "rules.yml"
    copied.write_text(yaml.safe_dump(parsed))
    return copied


def check(folder: Path, series: list[dict[str, str]], expected: list[dict[str, Any]]) -> None:
    """Let promtool evaluate the rules every minute over the series, which have one value a minute.

    It names the alert and the minute of what it did not expect.
    """
    rules, file = without_texts(RULES, folder), folder / "test.yml"
    test = {"interval": "1m", "input_series": series, "alert_rule_test": expected}
    file.write_text(yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": [test]}))
    done = subprocess.run([str(PROMTOOL), "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_and_their_texts_can_be_loaded() -> None:
    done = subprocess.run([str(PROMTOOL), "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_rule_has_a_case() -> None:
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    assert {rule["alert"] for rule in rules} == {case.alert for case in CASES} | {
        "BackfillMetricsDown",
        "BackfillMetricsAbsent",
    }


def test_an_alert_lasts_until_all_is_well_also_while_nobody_can_tell(tmp_path: Path) -> None:
    """Bad for 100 minutes, then three hours without a scrape, bad once more, and well."""
    series = [
        case.series(f"{case.good} {case.bad}x99 stale _x179 {case.bad}x20 {case.good}x20", instance="one", pod="a")
        for case in CASES
    ]
    expected = [
        one
        for alert, cases in by_alert().items()
        for one in (
            expectation(alert, 0),
            *([expectation(alert, cases[0].wait)] if cases[0].wait else []),
            *(expectation(alert, minute, *map(fires, cases)) for minute in (1 + cases[0].wait, 99, 101, 200, 280, 301)),
            expectation(alert, 303),
        )
    ]
    check(tmp_path, series, expected)


def test_an_endpoint_that_moves_takes_its_alerts_along(tmp_path: Path) -> None:
    """The new endpoint says that all is well: what the old one said last does not count any more."""
    old = [case.series(f"{case.bad}x99 stale", instance="one", pod="a") for case in CASES]
    new = [case.series(f"_x119 {case.good}x30", instance="two", pod="b") for case in CASES]
    expected = [
        one
        for alert, cases in by_alert().items()
        for one in (expectation(alert, 110, *map(fires, cases)), expectation(alert, 121))
    ]
    check(tmp_path, old + new, expected)


def test_an_endpoint_that_moves_hides_nothing(tmp_path: Path) -> None:
    """All was well when the old endpoint ended, and is not any more."""
    old = [case.series(f"{case.good}x99 stale", instance="one", pod="a") for case in CASES]
    new = [case.series(f"_x99 {case.bad}x100", instance="two", pod="b") for case in CASES]
    check(tmp_path, old + new, [expectation(alert, 180, *map(fires, cases)) for alert, cases in by_alert().items()])


def by_alert() -> dict[str, list[Case]]:
    return {case.alert: [one for one in CASES if one.alert == case.alert] for case in CASES}


def fires(case: Case) -> dict[str, str]:
    """The labels of its alert."""
    return case.labels | {"severity": case.severity}


def test_a_target_that_is_down_and_one_that_is_gone(tmp_path: Path) -> None:
    down = {"job": "backfill", "instance": "one", "severity": CRITICAL}
    absent = {"job": "backfill", "severity": CRITICAL}
    series = [
        {"series": f"up{{{TARGET}}}", "values": "1x9 0x19 1x19 stale"},
        {"series": 'backfill_ledger_up{instance="one"}', "values": "1x9 stale _x18 1x19 stale"},
    ]
    expected = [
        expectation("BackfillMetricsDown", 9),
        expectation("BackfillMetricsDown", 14),
        expectation("BackfillMetricsDown", 16, down),
        expectation("BackfillMetricsAbsent", 29),
        expectation("BackfillMetricsDown", 31),
        expectation("BackfillMetricsAbsent", 54),
        expectation("BackfillMetricsAbsent", 56, absent),
        expectation("BackfillMetricsDown", 56),
    ]
    check(tmp_path, series, expected)


def test_an_endpoint_that_is_another_program_is_found(tmp_path: Path) -> None:
    series = [{"series": f"up{{{TARGET}}}", "values": "1x20"}]
    check(tmp_path, series, [expectation("BackfillMetricsAbsent", 6, {"severity": CRITICAL})])
