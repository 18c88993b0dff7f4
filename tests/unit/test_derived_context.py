"""The derived context of a player on a date does not depend on the players and dates that are derived with it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from math import fsum

import pandas as pd
from hypothesis import example, given
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from gated_backfill.worker.jobs.player_composite_factors.context import derived_context

FIRST = date(2023, 1, 1)
DAYS = [FIRST + timedelta(days=number) for number in range(12)]
Game = tuple[str, int, float | None, float | None]  #: player, day of the season, minutes, usage rate

numbers = st.none() | st.decimals(0, 48, places=2).map(float)
games = st.tuples(st.sampled_from("abc"), st.integers(0, len(DAYS) - 1), numbers, numbers)
seasons = st.lists(games, min_size=1, max_size=40, unique_by=lambda game: game[:2])


def history_of(season: Sequence[Game]) -> pd.DataFrame:
    rows = [
        {
            "player_lookup": player,
            "game_date": pd.Timestamp(DAYS[number]),
            "game_id": "1",
            "team_abbr": "ATL",
            "opponent_team_abbr": "NYK",
            "minutes_played": minutes,
            "usage_rate": usage,
        }
        for player, number, minutes, usage in season
    ]
    return pd.DataFrame(rows).astype({"minutes_played": "float64", "usage_rate": "float64"})


def derived(history: pd.DataFrame, days: Sequence[date]) -> pd.DataFrame:
    columns = ["player_lookup", "game_date", "minutes_in_last_7_days", "avg_usage_rate_last_7_games"]
    context = derived_context(history, days)
    return context[columns].sort_values(columns[:2], ignore_index=True)


#: 105 minutes, the sum of the first three, cross a threshold that 105.00000000000001 do not.
CLOSE: list[Game] = [("a", 0, 29.01, 10.1), ("a", 1, 40.5, 20.2), ("a", 2, 35.49, 30.3), ("a", 3, 1.0, 1.0)]


@given(seasons)
@example(CLOSE)
@example([*CLOSE, ("b", 0, None, None), ("b", 3, 2.0, 2.0)])
def test_a_context_is_the_same_in_any_company(season: list[Game]) -> None:
    history = history_of(season)
    together = derived(history, DAYS)
    for player in "abc":
        own_rows = history[history["player_lookup"] == player]
        of_player = together[together["player_lookup"] == player]
        for day in DAYS:
            of_day = of_player[of_player["game_date"] == pd.Timestamp(day)].reset_index(drop=True)
            if len(of_day):
                assert_frame_equal(derived(own_rows, [day]), of_day, check_exact=True, check_dtype=False)


@given(seasons)
def test_minutes_are_the_exact_sum_of_the_week_before(season: list[Game]) -> None:
    for row in derived(history_of(season), DAYS).itertuples():
        number = (row.game_date.date() - FIRST).days
        week = [
            minutes
            for player, played, minutes, _ in season
            if player == row.player_lookup and number - 7 <= played < number and minutes is not None
        ]
        assert row.minutes_in_last_7_days == fsum(week)
