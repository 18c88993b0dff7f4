"""The calendar's columns are compared with what the job declares, before anything is read, on every warehouse."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import pyarrow as pa
import pytest

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.model.job import Calendar, Job
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.coverage_queries import read_calendar
from gated_backfill.common.warehouse.protocol import Warehouse
from gated_backfill.common.warehouse.table_checks import table_requirements
from tests.builders import FEB_23, FEB_24
from tests.lab import PLAYER_JOB

GAMES = TableName("probe", "games")


def job_with(season_filter: tuple[str, str]) -> Job:
    calendar = Calendar(table=str(GAMES), date_column="day", season_column="season", season_filter=season_filter)
    return replace(PLAYER_JOB, expectation=replace(PLAYER_JOB.expectation, calendar=calendar))


def load_games(warehouse: Warehouse, kinds: pa.Array[Any]) -> None:
    days, seasons = pa.array([FEB_23, FEB_24]), pa.array([2022, 2022])
    warehouse.load(GAMES, "day", pa.table({"day": days, "season": seasons, "kind": kinds}))


def mismatches(warehouse: Warehouse, job: Job) -> list[str]:
    info = warehouse.describe(GAMES)
    assert info is not None
    (calendar,) = (required for required in table_requirements(job) if required.role == "calendar")
    return calendar.mismatches(info)


@pytest.mark.parametrize(
    ("kinds", "text"),
    [
        (pa.array(["early", "regular"]), "regular"),
        (pa.array([0, 1]), "1"),
        (pa.array([0.5, 1.5]), "1.5"),
        (pa.array([False, True]), "true"),
        (pa.array([date(2022, 1, 1), date(2022, 1, 2)]), "2022-01-02"),
    ],
    ids=["text", "integer", "number", "boolean", "date"],
)
def test_season_filter_is_compared_in_the_type_of_its_column(
    warehouse: Warehouse, kinds: pa.Array[Any], text: str
) -> None:
    load_games(warehouse, kinds)
    job = job_with(("kind", text))

    assert mismatches(warehouse, job) == []
    calendar = read_calendar(warehouse, job, [FEB_24])
    assert calendar is not None
    assert calendar.season_starts == (FEB_24,)


@pytest.mark.parametrize(
    ("kinds", "kind"), [(pa.array([0, 1]), "INT64"), (pa.array([False, True]), "BOOL")], ids=["integer", "boolean"]
)
def test_a_season_filter_that_is_no_value_of_its_column_is_refused_by_name(
    warehouse: Warehouse, kinds: pa.Array[Any], kind: str
) -> None:
    load_games(warehouse, kinds)
    job = job_with(("kind", "regular"))

    error = f"column kind is {kind}, but the value of season_filter is 'regular'"
    assert mismatches(warehouse, job) == [error]
    with pytest.raises(SchemaMismatch, match=rf"^probe\.games: {error}$"):
        read_calendar(warehouse, job, [FEB_24])


def test_a_column_that_the_calendar_lacks_is_refused_by_name(warehouse: Warehouse) -> None:
    load_games(warehouse, pa.array(["early", "regular"]))

    assert mismatches(warehouse, job_with(("sort", "regular"))) == ["lacks the column(s) sort"]
