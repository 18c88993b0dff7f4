"""`backfill logs`: the log lines and tracebacks of a run's dates, wherever they were written."""

from __future__ import annotations

import json
from datetime import date, timedelta
from typing import Any

import pytest

from gated_backfill.common.process.printable_text import printable_lines
from tests.lab import Lab, players
from tests.texts import FORGED, check_output

DAYS = [date(2023, 2, 23) + timedelta(days=n) for n in range(3)]
DATES = f"{DAYS[0]}..{DAYS[2]}"
TRICKS = (None, "raise", "transient:1")


@pytest.fixture
def filled(lab: Lab) -> Lab:
    """The second date fails, and the third one is retried once."""
    for day, trick in zip(DAYS, TRICKS, strict=True):
        lab.probe_all([day], players(3), trick=trick)
    return lab


def logs(lab: Lab, *arguments: str) -> dict[str, Any]:
    return json.loads(lab.inside("logs", *arguments, "--json").stdout)


def events(shown: dict[str, Any]) -> set[str]:
    return {line["event"] for line in shown["lines"]}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--sequential",), id="by-the-command"),
        pytest.param(("--workers", "1"), id="by-workers"),
        pytest.param(("--workers", "1", "--dates-per-task", "3"), id="by-workers-in-one-task"),
    ],
)
def test_the_lines_and_the_traceback_of_a_date_are_shown(filled: Lab, options: tuple[str, ...]) -> None:
    assert filled.command("run", "--job", "probe", "--dates", DATES, *options).returncode == 3
    run_id = filled.latest_run().id

    whole = logs(filled, run_id)
    _, failed, retried = (logs(filled, run_id, str(day)) for day in DAYS)
    text = filled.inside("logs", run_id, str(DAYS[1])).stdout

    assert {"source_check", "date_staged", "date_failed", "run_ended"} <= events(whole)
    assert [line["timestamp"] for line in whole["lines"]] == sorted(line["timestamp"] for line in whole["lines"])
    assert {line.get("day") for line in whole["lines"]} >= {str(day) for day in DAYS}
    assert {line.get("day", str(DAYS[1])) for line in failed["lines"]} == {str(DAYS[1])}
    (line,) = [line for line in failed["lines"] if line["event"] == "date_failed"]
    assert "in raise_error" in line["exception"]
    error = f"RuntimeError: no luck on {DAYS[1]}"
    assert failed["errors"] == [{"day": str(DAYS[1]), "attempt": 1, "kind": "ProcessFailed", "error": error}]
    assert ("dates_retried" in events(retried), "date_failed" in events(retried)) == (True, False)
    assert retried["errors"] == []
    assert f"day={DAYS[1]}" in text
    assert f"day={DAYS[2]}" not in text
    assert f'raise RuntimeError(argument or f"no luck on {{batch.days[0]}}")\n    {error}\n' in text
    assert f"ProcessFailed: {error}\n" in text


def test_lines_of_other_runs_are_left_out(filled: Lab) -> None:
    for day in (DAYS[0], DAYS[1]):
        filled.inside("run", "--job", "probe", "--dates", str(day), "--sequential")
    later, earlier = (run.id for run in filled.ledger.runs.list_latest_runs(2))

    assert {line["run"] for line in logs(filled, earlier)["lines"]} == {earlier}
    assert "date_failed" not in events(logs(filled, earlier))
    assert "date_failed" in events(logs(filled, later))


def test_a_run_without_log_lines_says_which_files_were_searched(filled: Lab) -> None:
    run_id = filled.run([DAYS[0]], "probe").run.id

    shown = filled.inside("logs", run_id)

    assert shown.returncode == 0
    assert f"0 line(s); searched: no log file in {filled.home / 'logs'}" in shown.stdout
    assert "workers that run elsewhere log to their own standard error" in shown.stdout


@pytest.mark.parametrize("as_json", [(), ("--json",)], ids=["text", "json"])
def test_an_unknown_run_or_date_is_refused_in_one_line(filled: Lab, as_json: tuple[str, ...]) -> None:
    run_id = filled.run([DAYS[0]], "probe").run.id

    for arguments, reason in (
        (("20230223-no-such-run",), "20230223-no-such-run"),
        ((run_id, str(DAYS[1])), f"run {run_id} has no date {DAYS[1]}"),
        ((run_id, "2023-02-30"), "2023-02-30 is not a date on the calendar"),
    ):
        refused = filled.inside("logs", *arguments, *as_json)
        assert (refused.returncode, refused.stdout, len(refused.stderr.splitlines())) == (2, "", 1)
        assert reason in refused.stderr


def test_what_a_job_logs_in_a_worker_forges_no_line(lab: Lab) -> None:
    names = ["ada\n" + FORGED, "\x1b[2J" + FORGED, "\u202eé 中文"]
    for day, name in zip(DAYS, names, strict=True):
        lab.probe_all([day], players(3), trick=f"log:{name}")
    assert lab.command("run", "--job", "probe", "--dates", DATES, "--workers", "1").returncode == 0

    written = "".join(file.read_text(encoding="utf-8") for file in (lab.home / "logs").glob("*.log"))

    for name in names:
        assert f"strange name: {printable_lines(name)}\n" in written
    check_output(written)
