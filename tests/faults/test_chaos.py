"""Seeded schedules of faults over real processes: whatever dies, whenever, nothing is lost. See `tests.faults.chaos`.

`make chaos` runs more of them, `make chaos-mutants` shows that they notice a tool that is broken on purpose.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict

import pytest

from tests.emulator import Emulator
from tests.faults.chaos.lanes import Lane, Order, run_all
from tests.faults.chaos.report import failure
from tests.faults.chaos.schedule import OPERATIONS, make_schedule
from tests.faults.chaos.services import made_services
from tests.faults.chaos.shapes import Kind

SCHEDULES = int(os.environ.get("CHAOS_SCHEDULES", "40"))  #: 200 have every fault several times
CHUNK = 10  #: schedules a test: small enough to spread evenly over the processes that run tests
#: A seed and the invariant by which a mutant is noticed at any speed: see `make chaos-mutants` for all of them.
KNOWN = {
    "recount-believed": (1, "published rows are not those of an undisturbed run"),
    "version-mismatch-ignored": (1, "published rows are not those of an undisturbed run"),
    "checkpoint-before-publish": (951, "published rows are not those of an undisturbed run"),
    "floor-ignored": (162, "published rows are not those of an undisturbed run"),
    "loss-ignored": (25, "a date that must be blocked is checkpointed"),
    "another-reading": (25, "the end is not that of an undisturbed run"),
    "first-replacement-only": (7, "removed rows can't be put back"),
    "check-outside-the-swap": (2053, "removed rows can't be put back"),
    "ledger-believed": (55, "removed rows can't be put back"),
    "retention-by-folder-time": (11, "removed rows can't be put back"),
    "staging-table-believed": (14, "published rows are not those of an undisturbed run"),
    "fencing-ignored": (836, "what was frozen beyond its lease had an effect"),
}


@pytest.fixture(scope="session")
def lane(tmp_path_factory: pytest.TempPathFactory, postgres_server: str, emulator: Emulator) -> Iterator[Lane]:
    """A lane that lives as long as the session: what it takes to start is spent once."""
    kept = tmp_path_factory.mktemp("chaos")
    with made_services(kept, postgres_server, emulator.url) as services, Lane(services) as started:
        yield started


@pytest.mark.parametrize("first", range(1, SCHEDULES + 1, CHUNK))
def test_whatever_goes_wrong_the_end_is_that_of_an_undisturbed_run(lane: Lane, first: int) -> None:
    orders = [Order(seed=seed) for seed in range(first, first + CHUNK)]
    failures = [failure(result) for result in run_all([lane], orders) if result.violations or result.trouble]
    assert not failures, "\n\n".join(failures)


@pytest.mark.parametrize("mutant", KNOWN)
def test_a_tool_that_is_broken_on_purpose_is_noticed(lane: Lane, mutant: str) -> None:
    seed, invariant = KNOWN[mutant]
    orders = [Order(seed=seed, mutant=mutant)]
    found = [one["invariant"] for result in run_all([lane], orders) for one in result.violations]
    assert invariant in found


# -- schedules as values ------------------------------------------------------------------------------------------


def test_a_seed_always_gives_the_same_schedule() -> None:
    assert make_schedule(7) == make_schedule(7)
    assert asdict(make_schedule(7)) != asdict(make_schedule(8))


def test_the_schedules_of_a_test_run_have_every_fault_ledger_warehouse_and_kind_of_date() -> None:
    schedules = [make_schedule(seed) for seed in range(1, 201)]
    assert {one.ledger for one in schedules} == {"sqlite", "postgres"}
    assert {one.warehouse for one in schedules} == {"local", "bigquery"}
    assert {day.kind for one in schedules for day in one.shape} == set(Kind)
    assert len({fault.action for one in schedules for fault in one.faults}) == 13
    assert any(not one.faults for one in schedules)
    assert all(len({getattr(one, operation) for one in schedules}) > 1 for operation in OPERATIONS)
    assert all(len(one.in_words()) >= 3 for one in schedules)
