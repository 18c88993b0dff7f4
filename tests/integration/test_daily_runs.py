"""Daily runs: the newest dates, built once however often and by whatever scheduler they are asked for."""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import shlex
import subprocess
from dataclasses import replace
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import pytest

from gated_backfill import Job, Schedule
from gated_backfill.common.broker.celery_app import make_app
from gated_backfill.common.broker.dispatcher import CeleryDispatcher
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.ledger import RunState
from gated_backfill.common.model.dates import ONE_DAY
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.scheduling.queues import HOUSEKEEPING_QUEUE
from gated_backfill.common.process import clock
from gated_backfill.common.process.clock import today
from gated_backfill.producer.planning.plan import Plan
from gated_backfill.producer.runs.attended import launch_and_follow
from gated_backfill.producer.runs.session import Launch
from gated_backfill.worker.dependencies import Deps
from gated_backfill.worker.maintenance import daily_runs
from gated_backfill.worker.maintenance.runner import MaintenanceOutcome, run_maintenance_task, send_overdue_tasks
from tests.builders import at_once
from tests.documents import ROOT
from tests.lab import Lab, players, until
from tests.prepared import prepared_programs
from tests.workers import worker

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


def test_the_documented_schedule_is_one() -> None:
    namespace: dict[str, Any] = {}
    exec(compile(recipe("schedule"), "schedule.py", "exec"), namespace)  # noqa: S102 - a document of ours
    assert namespace["SCHEDULE"] == Schedule(at=time(6, 30), deadline=time(9), last_days=3, time_zone="Europe/Berlin")


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
        ("/opt/backfill/bin/backfill", str(prepared_programs() / "backfill")),
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


# -- the schedule of a job ------------------------------------------------------------------------------------------


@pytest.fixture
def scheduled(monkeypatch: pytest.MonkeyPatch) -> Job:
    """The probe job with a schedule that is due from midnight."""
    schedule = Schedule(at=time(0), deadline=time(0, 0, 1), time_zone="UTC")
    job = replace(find_job("probe"), schedule=schedule)
    monkeypatch.setattr(daily_runs, "find_job", lambda name: job)
    monkeypatch.setattr(daily_runs, "load_jobs", lambda: ([job], {}))
    return job


def maintenance_deps(lab: Lab) -> Deps:
    """What a maintenance worker needs that tries again at once what failed."""
    deps = lab.opened_again()
    return replace(deps, settings=lab.settings.model_copy(update={"maintenance_retry_seconds": 0}))


def test_a_schedule_called_three_times_at_once_builds_yesterday_once(lab: Lab, scheduled: Job, yesterday: date) -> None:
    assert scheduled.schedule is not None

    def run(number: int) -> MaintenanceOutcome:
        deps = replace(maintenance_deps(lab), owner=f"worker-{number}:{os.getpid()}:1")  # each a process of its own
        try:
            return run_maintenance_task("run probe", deps)
        finally:
            deps.ledger.close()

    at_once(3, run)

    (launched,) = lab.ledger.runs.list_latest_runs()
    assert (launched.state, launched.reason) == (RunState.SUCCEEDED, "the job's schedule")
    assert list(lab.ledger.checkpoints.list_checkpoints("probe", yesterday, yesterday)) == [yesterday]
    assert run_maintenance_task("run probe", maintenance_deps(lab)) is MaintenanceOutcome.NOT_DUE
    assert lab.ledger.maintenance.list_tasks()["run probe"].error is None


DAILY_JOBS = """
from dataclasses import replace
from datetime import time

from gated_backfill import Schedule
from probe_jobs import PROBE

JOB = replace(PROBE, name="probe_daily", schedule=Schedule(at=time(0), time_zone="UTC"))
"""


def test_three_messages_of_beats_at_once_launch_one_run_on_the_workers(
    lab: Lab, broker: str, yesterday: date, tmp_path: Path
) -> None:
    package = tmp_path / "daily_jobs"
    (package / "daily_jobs-1.0.dist-info").mkdir(parents=True)
    (package / "daily_jobs.py").write_text(DAILY_JOBS)
    (package / "daily_jobs-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: daily-jobs\nVersion: 1.0\n"
    )
    entry_point = "[backfill.jobs]\nprobe_daily = daily_jobs:JOB\n"
    (package / "daily_jobs-1.0.dist-info" / "entry_points.txt").write_text(entry_point)
    path = f"{lab.environment()['PYTHONPATH']}:{package}"
    dispatcher = CeleryDispatcher(make_app(lab.settings, broker))

    with worker(lab, BACKFILL_BROKER=broker, PYTHONPATH=path):
        for _ in range(3):
            dispatcher.send_maintenance("run probe_daily", queue=HOUSEKEEPING_QUEUE, expires=60)
        until(lambda: lab.ledger.checkpoints.list_checkpoints("probe_daily", yesterday, yesterday), "the checkpoint")
        (run,) = until(
            lambda: [run for run in lab.ledger.runs.list_latest_runs() if run.has_ended], "the end of the run"
        )

    assert (run.state, run.reason) == (RunState.SUCCEEDED, "the job's schedule")
    assert len(lab.ledger.runs.list_latest_runs()) == 1


def test_a_date_that_is_not_ready_is_tried_again_without_an_alert(lab: Lab, scheduled: Job) -> None:
    day = today() - ONE_DAY
    lab.probe_all([day], players(10), first=players(2))
    deps = maintenance_deps(lab)

    assert run_maintenance_task("run probe", deps) is MaintenanceOutcome.FAILED
    error = lab.ledger.maintenance.list_tasks()["run probe"].error
    assert error is not None
    assert error.startswith(f"DatesNotReady: {day} would be blocked ({day}: ")
    assert send_overdue_tasks(deps) == "sent again: run probe"
    assert lab.ledger.alerts.list_latest_alerts(10) == []
    assert lab.ledger.runs.list_latest_runs() == []
    lab.probe("first", day, players(10))
    assert run_maintenance_task("run probe", deps) is MaintenanceOutcome.DONE
    assert lab.latest_run().state is RunState.SUCCEEDED


def test_a_date_that_another_run_has_is_tried_again(lab: Lab, scheduled: Job, yesterday: date) -> None:
    run, deps, _ = lab.opened([yesterday], "probe")
    assert run_maintenance_task("run probe", maintenance_deps(lab)) is MaintenanceOutcome.FAILED
    deps.ledger.close()
    error = lab.ledger.maintenance.list_tasks()["run probe"].error
    assert error is not None
    assert error.startswith(f"DatesNotReady: run {run.id} is active")


def test_dates_that_are_late_raise_one_alert(lab: Lab, scheduled: Job, yesterday: date) -> None:
    deps = maintenance_deps(lab)
    for _ in range(2):
        daily_runs.check_deadline(scheduled, deps)
    (alert,) = lab.ledger.alerts.list_latest_alerts(10)
    assert (alert.kind, alert.title) == ("day-late", f"probe: {yesterday} not complete by 00:00 UTC")
    assert f"{yesterday} missing: no rows are published, 10 entities are expected" in alert.body
    lab.run([yesterday], "probe")
    assert daily_runs.check_deadline(scheduled, deps) == f"{yesterday}: complete"


def test_an_expectation_that_is_not_loaded_is_late_too(lab: Lab, scheduled: Job) -> None:
    lab.probe_all([today() - ONE_DAY * 9], players(4))
    daily_runs.check_deadline(scheduled, maintenance_deps(lab))
    (alert,) = lab.ledger.alerts.list_latest_alerts(10)
    assert "nothing expected: is its expectation loaded?" in alert.body


@pytest.mark.parametrize(
    ("last_days", "done_day", "first"),
    [
        pytest.param(1, None, 9, id="first-slot"),
        pytest.param(3, None, 7, id="first-slot-of-three-days"),
        pytest.param(1, 9, 9, id="no-slot-missed"),
        pytest.param(3, 9, 7, id="three-days"),
        pytest.param(1, 6, 6, id="three-slots-missed"),
    ],
)
def test_missed_slots_are_made_up_for(scheduled: Job, last_days: int, done_day: int | None, first: int) -> None:
    schedule = Schedule(at=time(6), last_days=last_days, time_zone="Asia/Tokyo")
    slot = datetime(2026, 3, 9, 21, tzinfo=UTC)  # 06:00 of 2026-03-10 in Tokyo
    done_slot = None if done_day is None else slot.replace(day=done_day - 1)
    days = daily_runs.dates_of_slot(replace(scheduled, schedule=schedule), Settings(), slot, done_slot)
    assert (days.start, days.through) == (date(2026, 3, first), date(2026, 3, 9))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"at": time(6, tzinfo=UTC)}, "at is .*: it must be a time such as"),
        ({"at": time(6), "deadline": time(6)}, "it must be later than at"),
        ({"at": time(6), "last_days": 0}, "last_days is 0: it must be a whole number, at least 1"),
        ({"at": "06:00"}, "at is '06:00'"),
        ({"at": time(6), "time_zone": "Mars"}, "'Mars' is not a known time zone"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        Schedule(**fields)
