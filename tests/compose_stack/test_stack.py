"""Real box scores through the shipped compose file, while its containers are killed, crash, are scaled and stopped."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

import pytest

from tests.compose_stack.conftest import OTHERS, PERMANENT, start_services
from tests.compose_stack.stack import Stack
from tests.player_rules import BOX_SCORES, by_the_rules, check_rows

JOB = "player_composite_factors"
LOADED = "/run/box_scores.csv"
#: The round of 16 days is repeated every three weeks, so that a run lasts: eight times in each of two seasons.
SHIFTS = [timedelta(weeks=3 * n + 52 * season) for season in (0, 1) for n in range(8)]
UNFINISHED = {"pending", "queued", "processing"}

READ_ROWS = f"""
import duckdb, json
files = "/var/lib/backfill/warehouse/nba_precompute/{JOB}/*/part.parquet"
rows = duckdb.sql(f"SELECT * FROM read_parquet('{{files}}')").to_arrow_table().to_pylist()
print(json.dumps(rows, default=str))
"""


@pytest.fixture(scope="module")
def box_scores() -> list[dict[str, str]]:
    with BOX_SCORES.open(newline="") as text:
        rows = list(csv.DictReader(text))
    return [row | {"game_date": str(date.fromisoformat(row["game_date"]) - shift)} for shift in SHIFTS for row in rows]


@pytest.fixture(scope="module")
def days(box_scores: list[dict[str, str]]) -> list[str]:
    return sorted({row["game_date"] for row in box_scores})


@pytest.fixture(scope="module")
def loaded(stack: Stack, box_scores: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("data") / "box_scores.csv"
    with file.open("w", newline="") as text:
        writer = csv.DictWriter(text, list(box_scores[0]))
        writer.writeheader()
        writer.writerows(box_scores)
    for readable in (file, *file.parents[:3]):
        readable.chmod(0o755)  # the container's user is another one
    stack.say(f"loading {len(box_scores)} rows of {len(SHIFTS)} rounds of box scores")
    mount = f"{file}:{LOADED}:ro"
    stack.cli("load", "nba_analytics.player_game_summary", LOADED, options=["--volume", mount])


def launch(stack: Stack, days: list[str], *options: str) -> str:
    """Start a run of one date per task, and return its id."""
    stack.cli("run", "--job", JOB, "--dates", ",".join(days), "--dates-per-task", "1", "--detach", *options)
    run = status(stack)["run"]
    stack.say(f"started {run}, of {len(days)} dates")
    return run


def status(stack: Stack) -> dict[str, Any]:
    return json.loads(stack.inside("metrics", "backfill", "status", "--json"))


def wait_for_dates(stack: Stack, more: int) -> None:
    """Wait until that many more dates have been built; the run must still be going on."""

    def built() -> int:
        now = status(stack)
        assert now["state"] == "running", f"the run was {now['state']} before all was done to it: slow it down"
        return sum(n for state, n in now["counts"].items() if state not in UNFINISHED)

    before = built()
    stack.until(lambda: built() >= before + more, f"{more} more dates after {before}")


def check_complete(stack: Stack, run: str, days: list[str], box_scores: list[dict[str, str]]) -> None:
    stack.say("following the run to its end")
    stack.inside("metrics", "backfill", "watch", run)
    ended = status(stack)
    assert (ended["run"], ended["state"]) == (run, "succeeded")
    assert {state: n for state, n in ended["counts"].items() if n} == {"checkpointed": len(days)}

    stack.say("comparing coverage and rows with what was loaded")
    audited = json.loads(stack.cli("coverage", "--job", JOB, "--dates", ",".join(days), "--json"))
    assert [(one["day"], one["finding"]) for one in audited["dates"]] == [(day, "complete") for day in days]
    rows = json.loads(stack.inside("metrics", "python", "-c", READ_ROWS))
    assert len(rows) == len(box_scores)
    check_rows(rows, by_the_rules(box_scores))
    stack.say(f"complete: {len(days)} dates, {len(rows)} rows, each with the values that the rules give")


def check_stopped(stack: Stack, stopped: Mapping[str, tuple[int, float]]) -> None:
    """Fail unless every container ended by itself, within its grace period."""
    for container, (code, seconds) in stopped.items():
        stack.say(f"{container} ended in {seconds:.0f} s, with exit code {code}")
    assert {code for code, _ in stopped.values()} == {0}


@pytest.mark.usefixtures("loaded")
def test_a_run_ends_complete_while_containers_are_killed_crash_and_are_scaled(
    stack: Stack, days: list[str], box_scores: list[dict[str, str]]
) -> None:
    run = launch(stack, days)
    wait_for_dates(stack, 10)

    lost, *_ = stack.containers("worker")
    stack.say(f"killing {lost}: a host is lost")
    stack.kill(lost)
    wait_for_dates(stack, 10)

    stack.say("scaling to three containers for dates")
    stack.up("worker", workers=3)
    assert len(stack.containers("worker")) == 3
    for service in ("gate", "maintenance", "beat", "redis"):
        wait_for_dates(stack, 5)
        stack.say(f"crashing {service}")
        stack.crash(service)

    wait_for_dates(stack, 5)
    *_, surplus = stack.containers("worker")
    stack.say(f"scaling down: stopping {surplus}")
    check_stopped(stack, stack.stop({"worker": [surplus]}))

    check_complete(stack, run, days, box_scores)
    stack.wait_until_healthy(PERMANENT)


@pytest.mark.usefixtures("loaded")
def test_the_stack_stops_within_its_time_in_the_middle_of_a_run_and_finishes_it_when_started_again(
    stack: Stack, days: list[str], box_scores: list[dict[str, str]]
) -> None:
    run = launch(stack, days, "--reprocess", "all", "--reason", "to stop it")
    wait_for_dates(stack, 10)

    stack.say(
        "stopping everything in the middle of the run: first what needs the broker and the ledger, as Docker does"
    )
    for services in (OTHERS, ("redis", "postgres")):
        check_stopped(stack, stack.stop({service: stack.containers(service) for service in services}))

    start_services(stack, workers=2)
    check_complete(stack, run, days, box_scores)
