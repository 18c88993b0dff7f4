"""Real processes are killed with -9, and nothing is lost, doubled or left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import psutil
import pytest

from gated_backfill.common.ledger import DateState, RunState
from gated_backfill.common.model.publication import StagedFile
from gated_backfill.common.storage.staging import MARK, Staging
from tests.builders import process_date
from tests.lab import Lab, players, until

DAYS = [date(2023, 2, 20) + timedelta(days=n) for n in range(8)]
SPAN = ("--start-date", str(DAYS[0]), "--end-date", str(DAYS[-1]))
RUN = ("run", "--job", "probe", *SPAN)
TARGET = "probe.probe"


def prepare(lab: Lab, *, trick: str | None = None, on: date | None = None) -> None:
    lab.probe_all(DAYS, players(20), trick=None if on else trick)
    if on is not None:
        lab.probe("first", on, players(20), trick=trick)


def start_and_wait(lab: Lab, *more: str) -> subprocess.Popen[str]:
    """Start a run whose dates wait, and return once one of them is being processed."""
    prepare(lab, trick="wait")
    command = lab.start(*RUN, *more)
    until(lambda: list(lab.marks.glob("waiting-*")), "a date in the middle of its processing")
    return command


def undisturbed(lab: Lab) -> dict[str, bytes]:
    """What a run that nobody disturbs publishes: the tricks leave no trace in the rows."""
    (lab.marks / "released").touch()
    assert lab.run(DAYS, "probe").run.state.value == "succeeded"
    found = lab.table_bytes(TARGET)
    lab.drop(TARGET)
    for mark in lab.marks.iterdir():
        mark.unlink()
    return found


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def workers(pid: int) -> list[psutil.Process]:
    """The pool processes that process dates: the grandchildren."""
    return [child for child in descendants(pid) if child.parent() and child.parent().ppid() == pid]


def workers_of_dates(lab: Lab) -> int:
    """By how many processes the dates of the last run were worked on, as they left it at the probes' place."""
    return len(list(lab.marks.glob("worker-*")))


def gone(processes: list[psutil.Process]) -> bool:
    return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes)


def test_a_killed_worker_process_loses_nothing(lab: Lab) -> None:
    prepare(lab, trick="kill:once", on=DAYS[3])

    ran = lab.command(*RUN)

    assert ran.returncode == 0, ran.stdout + ran.stderr
    (row,) = [row for row in lab.status()["dates"] if row["day"] == str(DAYS[3])]
    assert (row["state"], row["attempt"]) == ("checkpointed", 2)
    assert len(lab.table_bytes(TARGET)) == len(DAYS)


@pytest.mark.parametrize("together", ["1", "8"])
def test_a_date_that_kills_its_worker_three_times_is_failed_and_the_others_complete(lab: Lab, together: str) -> None:
    prepare(lab, trick="kill", on=DAYS[3])

    ran = lab.command(*RUN, "--dates-per-task", together)

    assert ran.returncode == 3, ran.stdout + ran.stderr
    states = {row["day"]: row["state"] for row in lab.status()["dates"]}
    assert states == {str(day): "failed" if day == DAYS[3] else "checkpointed" for day in DAYS}
    (row,) = [row for row in lab.status()["dates"] if row["state"] == "failed"]
    assert (row["reason"], row["error_kind"]) == ("killed its worker 3 times", "WorkerLost")


def test_a_job_that_ends_its_process_is_failed_for_that(lab: Lab) -> None:
    """In a worker's process, where `sys.exit` is a function of billiard."""
    prepare(lab, trick="exit:3", on=DAYS[3])

    ran = lab.command(*RUN)

    assert ran.returncode == 3, ran.stdout + ran.stderr
    (row,) = [row for row in lab.status()["dates"] if row["state"] != "checkpointed"]
    assert (row["day"], row["attempt"], row["error_kind"]) == (str(DAYS[3]), 1, "ProcessFailed")
    assert row["error"] == "the job ended the process: SystemExit: 3"
    assert "probe_jobs.py" in row["error_place"]


@pytest.mark.parametrize("victim", ["pool process", "worker", "gate worker", "broker", "everything"])
def test_whatever_of_the_stack_is_killed_the_run_completes(lab: Lab, victim: str) -> None:
    command = start_and_wait(lab)

    children = {" ".join(child.cmdline()): child for child in psutil.Process(command.pid).children()}
    named = {
        "pool process": workers(command.pid)[:1],
        "worker": [child for line, child in children.items() if "dates@" in line],
        "gate worker": [child for line, child in children.items() if "gate@" in line],
        "broker": [child for line, child in children.items() if "valkey" in line],
        "everything": list(children.values()),
    }
    assert named[victim]
    for process in named[victim]:
        process.kill()
    (lab.marks / "released").touch()
    out, err = command.communicate(timeout=120)

    assert command.returncode == 0, out + err
    assert len(lab.table_bytes(TARGET)) == len(DAYS)
    assert len(lab.ledger.checkpoints.list_checkpoints("probe", DAYS[0], DAYS[-1])) == len(DAYS)


def test_a_killed_command_leaves_no_process_and_the_same_command_completes_the_range(lab: Lab) -> None:
    prepare(lab, trick="wait")
    expected = undisturbed(lab)
    command = lab.start(*RUN, "--window", "2", "--reprocess", "all")
    until(lambda: list(lab.marks.glob("waiting-*")), "a date in the middle of its processing")
    left_behind = descendants(command.pid)
    assert len(left_behind) >= 4

    command.kill()
    command.wait()
    until(lambda: gone(left_behind), "the end of every process of the killed command")
    assert lab.status()["interrupted"]

    (lab.marks / "released").touch()
    again = lab.command(*RUN, "--window", "2", "--reprocess", "all")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "was interrupted" in again.stdout
    assert lab.table_bytes(TARGET) == expected
    assert list((lab.home / "stacks").iterdir()) == []
    assert [file.name for file in (lab.home / "staging").iterdir()] == [MARK]


def test_a_stopped_command_cancels_its_run_and_leaves_nothing_behind(lab: Lab) -> None:
    command = start_and_wait(lab)
    processes = descendants(command.pid)

    os.kill(command.pid, signal.SIGTERM)  # Ctrl-C has the same handler
    out, err = command.communicate(timeout=60)

    assert command.returncode == 130, out + err
    assert "the same command completes them" in out
    assert gone(processes)
    assert list((lab.home / "stacks").iterdir()) == []
    assert lab.status()["state"] == "cancelled"
    (lab.marks / "released").touch()
    assert lab.command(*RUN).returncode == 0


def test_a_second_run_of_overlapping_dates_is_refused_naming_the_first_and_the_dates(lab: Lab) -> None:
    command = start_and_wait(lab)

    refused = lab.command("run", "--job", "probe", "--dates", f"{DAYS[5]}..{DAYS[7]},{DAYS[0]}")
    first = lab.ledger.runs.list_latest_runs(1)[0].id
    (lab.marks / "released").touch()
    out, err = command.communicate(timeout=60)

    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert first in refused.stderr
    assert "2023-02-20, 2023-02-25..2023-02-27" in refused.stderr
    assert command.returncode == 0, out + err
    assert [run.id for run in lab.ledger.runs.list_latest_runs()] == [first]


@pytest.mark.parametrize("together", ["1", "2"])
def test_a_date_beyond_its_soft_time_limit_is_failed(lab: Lab, together: str) -> None:
    lab.probe_all(DAYS[:2], players(3))
    lab.probe("first", DAYS[0], players(3), trick="sleep")

    dates = ("--dates", f"{DAYS[0]}..{DAYS[1]}", "--dates-per-task", together)
    ran = lab.command("run", "--job", "probe_in_a_hurry", *dates)

    assert ran.returncode == 3, ran.stdout + ran.stderr
    states = {row["day"]: (row["state"], row["error"]) for row in lab.status()["dates"]}
    assert states[str(DAYS[0])] == ("failed", "took longer than its soft time limit")
    assert states[str(DAYS[1])][0] == "checkpointed"


@pytest.mark.parametrize(("together", "attempts"), [("1", 1), ("2", 2)])
def test_a_date_that_ignores_its_soft_limit_is_killed_and_failed_at_once(
    lab: Lab, together: str, attempts: int
) -> None:
    lab.probe_all(DAYS[:2], players(3))
    lab.probe("first", DAYS[0], players(3), trick="stuck")

    late = {"BACKFILL_RECONCILE_SECONDS": "0.5", "BACKFILL_GATE_LATE_SECONDS": "0.5"}
    dates = ("--dates", f"{DAYS[0]}..{DAYS[1]}", "--dates-per-task", together)
    ran = lab.command("run", "--job", "probe_in_a_hurry", *dates, **late)

    assert ran.returncode == 3, ran.stdout + ran.stderr
    rows = {row["day"]: row for row in lab.status()["dates"]}
    stuck = rows[str(DAYS[0])]
    assert (stuck["state"], stuck["error_kind"], stuck["attempt"]) == ("failed", "TookTooLong", attempts)
    assert stuck["reason"] == "took longer than its hard time limit of 8 s"
    assert rows[str(DAYS[1])]["state"] == "checkpointed"


@pytest.mark.parametrize(("together", "processes"), [("1", 2), ("8", 1)])
def test_a_date_that_exhausts_its_memory_is_failed_with_that_reason_and_its_process_replaced(
    lab: Lab, together: str, processes: int
) -> None:
    prepare(lab, trick="hoard", on=DAYS[3])
    limits = {"BACKFILL_WORKER_MEMORY_MB": "700", "BACKFILL_WORKER_RECYCLE_MB": "400"}

    ran = lab.command(*RUN, "--workers", "1", "--dates-per-task", together, **limits)

    assert ran.returncode == 3, ran.stdout + ran.stderr
    rows = {row["day"]: row for row in lab.status()["dates"]}
    poison = rows.pop(str(DAYS[3]))
    assert (poison["state"], poison["error_kind"], poison["attempt"]) == ("failed", "MemoryExhausted", 1)
    on_host = f"(on host {socket.gethostname()})"
    assert poison["reason"] == f"MemoryExhausted: exhausted its memory: more than 700 MB {on_host}"
    assert {row["state"] for row in rows.values()} == {"checkpointed"}
    assert workers_of_dates(lab) == processes  # one is replaced after its task


@pytest.mark.parametrize(("tasks", "processes"), [("3", 3), ("2000", 1)])
def test_a_worker_process_is_replaced_after_so_many_dates(lab: Lab, tasks: str, processes: int) -> None:
    prepare(lab)
    ran = lab.command(*RUN, "--workers", "1", "--dates-per-task", "1", BACKFILL_WORKER_RECYCLE_TASKS=tasks)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert workers_of_dates(lab) == processes


def test_a_worker_that_lost_its_date_while_it_was_frozen_removes_the_file_that_it_stages(lab: Lab) -> None:
    prepare(lab)
    run, deps, _ = lab.opened(DAYS[:1], "probe")

    class Late(Staging):
        """While it writes, the worker's date is cancelled with its run."""

        def write(self, *arguments: Any) -> StagedFile:
            deps.ledger.runs.move_run(run.id, expect=[RunState.RUNNING], to=RunState.CANCELLED)
            deps.ledger.dates.move_date(run.id, DAYS[0], expect=DateState.PROCESSING, to=DateState.CANCELLED)
            return super().write(*arguments)

    process_date(run.id, DAYS[0], replace(deps, staging=Late(deps.settings.staging_url)))

    assert list((lab.home / "staging").rglob("*.parquet")) == []


def test_a_detached_run_goes_on_without_its_command_and_can_be_watched(lab: Lab) -> None:
    prepare(lab, trick="wait")

    started = lab.command(*RUN, "--detach")
    assert started.returncode == 0, started.stderr
    assert "continues in the background" in started.stdout
    until(lambda: lab.status()["state"] == "running", "the start of the run")
    (lab.marks / "released").touch()
    watched = lab.command("watch")

    assert watched.returncode == 0, watched.stdout + watched.stderr
    assert "8 checkpointed" in watched.stdout
    until(lambda: list((lab.home / "stacks").iterdir()) == [], "the end of the background stack")
