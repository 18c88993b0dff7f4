"""Dates of an undone run: shown as undone everywhere, and built again only when asked for."""

from __future__ import annotations

import csv
import io
import json
from datetime import timedelta

import pytest

from gated_backfill.producer.planning.plan import PlanAction, Reprocess
from gated_backfill.producer.runs.undo import plan_undo, undo_run
from tests.builders import FEB_23
from tests.lab import Lab, players

DAYS = [FEB_23 + timedelta(days=n) for n in range(3)]
RANGE = ("--job", "probe", "--start-date", str(DAYS[0]), "--end-date", str(DAYS[-1]))
TARGET = "probe.probe"


@pytest.fixture
def undone(lab: Lab) -> Lab:
    """Two of three dates were built by a run that was undone, the other by an earlier one."""
    lab.probe_all(DAYS, players(20))
    lab.run(DAYS[:1], "probe")
    run = lab.run(DAYS[1:], "probe").run
    undo_run(plan_undo(run.id, lab.context), lab.context, "ada")
    return lab


def test_a_plan_lists_undone_dates_with_who_and_when_and_leaves_them(undone: Lab) -> None:
    run = undone.latest_run()
    plan = undone.plan(DAYS, "probe")

    assert [step.action for step in plan.steps] == [PlanAction.DONE, PlanAction.UNDONE, PlanAction.UNDONE]
    assert plan.steps[1].reason == f"undone by ada at {run.undone_at:%Y-%m-%d %H:%M} UTC (run {run.id})"
    assert "2 undone" in plan.summary()
    note = "2 date(s) are undone and left as they are: 2023-02-24..2023-02-25; --reprocess undone builds them"
    assert note in plan.notes


@pytest.mark.parametrize("reprocess", [Reprocess.NONE, Reprocess.FAILED, Reprocess.STALE])
def test_no_other_choice_of_dates_builds_undone_ones(undone: Lab, reprocess: Reprocess) -> None:
    actions = [step.action for step in undone.plan(DAYS, "probe", reprocess=reprocess).steps]
    assert actions == [PlanAction.DONE, PlanAction.UNDONE, PlanAction.UNDONE]


def test_undone_dates_are_built_when_asked_for_and_are_not_undone_any_more(undone: Lab) -> None:
    every_date = undone.plan(DAYS, "probe", reprocess=Reprocess.ALL)
    assert [step.action for step in every_date.steps] == [PlanAction.BUILD] * 3
    plan = undone.plan(DAYS, "probe", reprocess=Reprocess.UNDONE)
    assert [step.action for step in plan.steps] == [PlanAction.DONE, PlanAction.BUILD, PlanAction.BUILD]
    assert plan.steps[1].reason.startswith("undone by ada at ")

    undone.run(DAYS, "probe", reprocess=Reprocess.UNDONE)

    assert [step.action for step in undone.plan(DAYS, "probe").steps] == [PlanAction.DONE] * 3


def test_a_run_says_what_it_leaves_and_exits_with_3(undone: Lab) -> None:
    done = undone.inside("run", *RANGE, "--sequential", "--json")
    result = json.loads(done.stdout)
    assert (done.returncode, result["run"]) == (3, None)
    assert "2 date(s) are undone (2023-02-24..2023-02-25)" in result["result"]
    assert [entry["day"] for entry in result["undone"]] == ["2023-02-24", "2023-02-25"]

    chosen = undone.inside("run", "--job", "probe", "--dates", str(DAYS[1]), "--reprocess", "undone", "--sequential")
    assert chosen.returncode == 0, chosen.stderr
    assert len(undone.published(TARGET, DAYS[1], "day")) == 20


def test_coverage_shows_undone_dates(undone: Lab) -> None:
    audit = json.loads(undone.inside("coverage", *RANGE, "--json").stdout)
    run = undone.latest_run().id

    assert [entry["undone"] and entry["undone"]["run"] for entry in audit["dates"]] == [None, run, run]
    assert [(entry["day"], entry["by"]) for entry in audit["undone"]] == [("2023-02-24", "ada"), ("2023-02-25", "ada")]
    shown = " ".join(undone.inside("coverage", *RANGE).stdout.split())
    assert "undone by ada at" in shown
    assert "undone: 2 date(s): 2023-02-24..2023-02-25; `--reprocess undone` builds them" in shown


def test_status_shows_the_undone_dates_of_a_run(undone: Lab) -> None:
    status = json.loads(undone.inside("status", "--json").stdout)
    assert [(entry["undone_by"], entry["undo_restored"]) for entry in status["dates"]] == [("ada", True)] * 2
    assert [entry["day"] for entry in status["undone"]] == [str(day) for day in DAYS[1:]]
    assert all(entry["reason"].startswith("undone by ada at ") for entry in status["undone"])
    shown = " ".join(undone.inside("status").stdout.split())
    assert "by ada: 2 date(s), 2023-02-24..2023-02-25" in shown


def test_history_shows_undone_dates_on_a_terminal_on_the_page_as_json_and_as_csv(undone: Lab) -> None:
    report = json.loads(undone.inside("history", "--json").stdout)
    assert [entry["undone"] for entry in report["runs"]] == [2, 0]
    assert report["totals"]["undone"] == 2
    assert "succeeded undone" in undone.inside("history").stdout
    lines = list(csv.DictReader(io.StringIO(undone.inside("history", "--csv", "-").stdout)))
    assert [bool(line["undone_at"]) for line in lines] == [True, True, False]
    page = undone.home / "history.html"
    assert undone.inside("history", "--html", str(page)).returncode == 0
    assert "undone by ada at" in page.read_text()


def test_history_counts_the_dates_of_a_run_that_was_undone_in_part(undone: Lab) -> None:
    undone.change_ledger("UPDATE runs SET undone_at = NULL")
    undone.change_ledger("UPDATE run_dates SET undone_at = NULL WHERE day = :day", day=str(DAYS[1]))
    assert "succeeded 1 undone" in undone.inside("history").stdout
    assert "in part only: `backfill undo" in undone.inside("status").stdout
