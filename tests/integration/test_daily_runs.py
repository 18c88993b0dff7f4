"""Daily runs: the newest dates, built once however often and by whatever scheduler they are asked for."""

from __future__ import annotations

import ast
import configparser
import json
import re
import shlex
import subprocess
from datetime import UTC, date, datetime
from typing import Any

import pytest

from gated_backfill.common.ledger import RunState
from gated_backfill.common.model.dates import ONE_DAY
from gated_backfill.common.process import clock
from gated_backfill.common.process.clock import today
from gated_backfill.producer.planning.plan import Plan
from gated_backfill.producer.runs.attended import launch_and_follow
from gated_backfill.producer.runs.session import Launch
from tests.documents import ROOT
from tests.lab import BACKFILL, Lab, players

RUN = ("run", "--job", "probe")
IN_UTC = {"BACKFILL_TIMEZONE": "UTC"}
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


@pytest.fixture
def yesterday(lab: Lab) -> date:
    day = today() - ONE_DAY
    lab.probe_all([day], players(10))
    return day


@pytest.mark.parametrize(
    ("zone", "words", "days"),
    [
        ("America/New_York", ["--yesterday"], ["2026-02-28"]),
        ("Asia/Tokyo", ["--yesterday"], ["2026-03-01"]),
        ("Asia/Tokyo", ["--last-days", "3"], ["2026-02-27", "2026-02-28", "2026-03-01"]),
        ("Asia/Tokyo", ["--last-days", "3", "--exclude", "2026-02-28"], ["2026-02-27", "2026-03-01"]),
    ],
)
def test_yesterday_is_that_of_the_jobs_time_zone(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, zone: str, words: list[str], days: list[str]
) -> None:
    lab.probe_all([date(2026, 2, 27)], players(4))
    monkeypatch.setattr(clock, "utcnow", lambda: datetime(2026, 3, 2, 3, tzinfo=UTC))
    planned = lab.inside("plan", "--job", "probe", *words, "--json", BACKFILL_TIMEZONE=zone)
    assert [step["day"] for step in json.loads(planned.stdout)["steps"]] == days
    audited = lab.inside("coverage", "--job", "probe", "--last-days", "1", "--json", BACKFILL_TIMEZONE=zone)
    assert [row["day"] for row in json.loads(audited.stdout)["dates"]] == [days[-1]]


def test_while_another_run_builds_the_dates_nothing_is_started(lab: Lab, yesterday: date) -> None:
    run, deps, _ = lab.opened([yesterday], "probe")

    lost = lab.inside(*RUN, "--yesterday", "--json", **IN_UTC)

    deps.ledger.close()
    assert (lost.returncode, len(lost.stderr.splitlines())) == (4, 1)
    assert f"nothing was started: run {run.id} is active and holds 1 of these dates" in lost.stderr
    assert json.loads(lost.stdout)["exit_code"] == 4
    assert [listed.id for listed in lab.ledger.runs.list_latest_runs()] == [run.id]


def test_a_run_that_another_one_overtakes_builds_nothing_twice(
    lab: Lab, yesterday: date, capsys: pytest.CaptureFixture[str]
) -> None:
    launch = Launch(request=lab.request([yesterday], "probe"), window=100, workers=1, sequential=True)
    others: list[Any] = []

    def overtake(_: Plan) -> None:
        if not others:
            others.append(lab.run([yesterday], "probe"))

    code = launch_and_follow(launch, lab.settings, check=overtake)

    said = capsys.readouterr().out
    assert (code, len(lab.ledger.runs.list_latest_runs())) == (0, 1)
    assert f"run {others[0].run.id} has checkpointed {yesterday} since this run was planned: planning again" in said
    assert "nothing to do: all 1 date(s) are checkpointed" in said


# -- the recipes ----------------------------------------------------------------------------------------------------


def recipe(name: str) -> str:
    """The block of the operations guide below the comment of that name."""
    match = re.search(rf"<!-- {name} -->\n```\w*\n(.*?)```", OPERATIONS, re.DOTALL)
    assert match is not None, f"docs/operations.md has no recipe {name}"
    return match[1]


def cron_command() -> tuple[str, set[int]]:
    """The command of the crontab line, as cron has a shell run it, and the exit codes that mean no failure."""
    (line,) = recipe("cron").splitlines()
    *moment, command = line.split(maxsplit=5)
    assert all(re.fullmatch(r"[\d*,/-]+", field) for field in moment)
    return command, {0}


def systemd_command() -> tuple[str, set[int]]:
    service = configparser.ConfigParser(strict=False)
    service.optionxform = str  # pyright: ignore[reportAttributeAccessIssue]
    service.read_string(recipe("systemd service"))
    timer = configparser.ConfigParser()
    timer.read_string(recipe("systemd timer"))
    assert timer["Timer"]["OnCalendar"].startswith("*-*-* 06:30")
    assert service["Service"]["Type"] == "oneshot"
    command = f"env {service['Service']['Environment']} {service['Service']['ExecStart']}"
    return command, {0, int(service["Service"]["SuccessExitStatus"])}


def airflow_command() -> tuple[str, set[int]]:
    """The command of the only task of the DAG; its module is parsed and compiled, Airflow need not be installed."""
    module = ast.parse(recipe("airflow"))
    compile(module, "dag.py", "exec")
    calls = {
        call.func.id: {keyword.arg: keyword.value for keyword in call.keywords}
        for call in ast.walk(module)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
    }
    assert ast.literal_eval(calls["DAG"]["max_active_runs"]) == 1
    assert ast.literal_eval(calls["DAG"]["catchup"]) is False
    task = {name: calls["BashOperator"][name] for name in ("bash_command", "env", "skip_on_exit_code")}
    values = {name: ast.literal_eval(value) for name, value in task.items()}
    places = " ".join(f"{name}={shlex.quote(value)}" for name, value in values["env"].items())
    return f"env {places} {values['bash_command']}", {0, values["skip_on_exit_code"]}


@pytest.mark.parametrize("scheduler", [cron_command, systemd_command, airflow_command], ids=lambda f: f.__name__)
def test_a_recipe_called_three_times_at_once_builds_yesterday_once(lab: Lab, yesterday: date, scheduler: Any) -> None:
    command, fine = scheduler()
    for documented, here in (
        ("/opt/backfill/bin/backfill", str(BACKFILL)),
        ("/srv/backfill", str(lab.home)),
        ("store_revenue", "probe"),
    ):
        assert documented in command
        command = command.replace(documented, here)
    environment = lab.environment() | IN_UTC

    processes = [
        subprocess.Popen(
            ["/bin/sh", "-c", command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]

    assert {process.returncode for process in processes} <= fine, outputs
    (run,) = lab.ledger.runs.list_latest_runs()
    assert run.state is RunState.SUCCEEDED
    assert list(lab.ledger.checkpoints.list_checkpoints("probe", yesterday, yesterday)) == [yesterday]
    lost = [output for output in outputs if run.id in output and "nothing was started" in output]
    left = [output for output in outputs if "nothing to do: all 1 date(s) are checkpointed" in output]
    assert len(lost) + len(left) == 2, outputs
