"""The example job and its twin in SQL over many seasons, on each warehouse: `make seasons [SEASONS=10]`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import date

import pytest

from benchmarks.seasons import make_seasons
from tests.builders import FEB_23
from tests.lab import UPCOMING, Lab
from tests.sql_twin import SQL, check_equal, load_rows, season_days

SEASONS = int(os.environ["TEST_SEASONS"])
PUBLISHED_DATES = 152  #: of a season: the others have no games, or are in its first two weeks
DERIVED_DAYS = slice(50, 80)  #: of each season, to be built once more from the fallback
WINDOW, DATES_PER_TASK = 100, 25  #: as `backfill run` has them by default

pytestmark = [pytest.mark.usefixtures("sql_factors"), pytest.mark.timeout(4 * 3600)]


def test_the_twin_publishes_the_same_rows_of_each_season(any_lab: Lab) -> None:
    for name, rows in make_seasons(SEASONS).items():
        load_rows(any_lab, name, rows)
    seasons = [season_days(back) for back in reversed(range(SEASONS))]
    published = PUBLISHED_DATES * SEASONS

    check_equal(any_lab, _all_of(seasons), published, window=WINDOW, dates_per_task=DATES_PER_TASK)
    assert {row["context_source"] for row in any_lab.published(f"nba_precompute.{SQL}", FEB_23)} == {"derived"}

    any_lab.drop(UPCOMING)  # so the dates are derived
    derived = _all_of(season[DERIVED_DAYS] for season in seasons)
    check_equal(any_lab, derived, published, window=WINDOW, dates_per_task=DATES_PER_TASK)


def _all_of(seasons: Iterable[list[date]]) -> list[date]:
    return [day for season in seasons for day in season]
