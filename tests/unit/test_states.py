"""States and their moves, and the places that have to agree about them."""

from __future__ import annotations

import re
from enum import Enum

import pytest
from sqlalchemy import CheckConstraint, Table

from gated_backfill.common.ledger.rows import date_transition
from gated_backfill.common.ledger.states import (
    DATE_TRANSITIONS,
    ENDED_DATES,
    ENDED_RUNS,
    READY_FOR_GATE,
    DateState,
    RunState,
    WindowState,
    final_state,
)
from gated_backfill.common.ledger.tables import checkpoints, run_dates, runs, windows
from gated_backfill.common.model.coverage import Verdict


def allowed_by(table: Table) -> set[str]:
    """The values that the table's CHECK constraint allows."""
    (check,) = [one for one in table.constraints if isinstance(one, CheckConstraint)]
    return set(re.findall(r"'(\w+)'", str(check.sqltext)))


@pytest.mark.parametrize(
    ("table", "states"),
    [
        pytest.param(runs, set(RunState), id="runs"),
        pytest.param(run_dates, set(DateState), id="dates"),
        pytest.param(windows, set(WindowState), id="windows"),
        pytest.param(checkpoints, {one for one in Verdict if one.is_passing}, id="checkpoints"),
    ],
)
def test_the_database_allows_exactly_the_states(table: Table, states: set[Enum]) -> None:
    assert allowed_by(table) == {state.value for state in states}


@pytest.mark.parametrize("enum", [RunState, DateState, WindowState, Verdict])
def test_every_state_fits_its_column(enum: type[Enum]) -> None:
    assert max(len(state.value) for state in enum) <= 16


def test_every_date_state_has_its_moves() -> None:
    assert set(DATE_TRANSITIONS) == set(DateState)


@pytest.mark.parametrize("end", sorted(ENDED_DATES, key=lambda state: state.value))
def test_nothing_moves_on_from_an_end(end: DateState) -> None:
    assert DATE_TRANSITIONS[end] == frozenset()


def test_whatever_is_no_end_can_be_left_and_whatever_is_no_start_reached() -> None:
    assert {state for state, moves in DATE_TRANSITIONS.items() if not moves} == ENDED_DATES
    assert frozenset().union(*DATE_TRANSITIONS.values()) == set(DateState) - {DateState.PENDING}


def test_a_checkpoint_is_reached_from_published_only() -> None:
    assert [state for state, moves in DATE_TRANSITIONS.items() if DateState.CHECKPOINTED in moves] == [
        DateState.PUBLISHED
    ]


def test_readers_see_rows_only_after_the_gate_had_them_staged() -> None:
    assert [state for state, moves in DATE_TRANSITIONS.items() if DateState.PUBLISHED in moves] == [DateState.STAGED]


def test_the_gate_finds_nothing_in_work() -> None:
    assert set(DateState) - READY_FOR_GATE == {DateState.PENDING, DateState.QUEUED, DateState.PROCESSING}


@pytest.mark.parametrize("state", list(DateState), ids=lambda state: state.value)
def test_a_move_that_is_not_listed_is_a_mistake_of_ours(state: DateState) -> None:
    for to in set(DateState) - DATE_TRANSITIONS[state]:
        with pytest.raises(ValueError, match=f"never moves from {state.value} to {to.value}"):
            date_transition(state, to, {})


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        pytest.param({DateState.CHECKPOINTED: 3}, RunState.SUCCEEDED, id="all-checkpointed"),
        pytest.param({DateState.SKIPPED: 3}, RunState.SUCCEEDED, id="all-skipped"),
        pytest.param({DateState.CHECKPOINTED: 2, DateState.SKIPPED: 1}, RunState.SUCCEEDED, id="some-skipped"),
        pytest.param({DateState.CHECKPOINTED: 2, DateState.BLOCKED: 1}, RunState.PARTIAL, id="one-blocked"),
        pytest.param({DateState.CHECKPOINTED: 2, DateState.FAILED: 1}, RunState.PARTIAL, id="one-failed"),
        pytest.param({DateState.BLOCKED: 2}, RunState.FAILED, id="all-blocked"),
        pytest.param({DateState.FAILED: 1, DateState.SKIPPED: 5}, RunState.FAILED, id="failed-and-skipped"),
    ],
)
def test_the_dates_decide_how_a_run_ended(ends: dict[DateState, int], expected: RunState) -> None:
    assert final_state(ends) is expected
    assert expected in ENDED_RUNS
