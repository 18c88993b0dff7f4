"""The demo's season is a season, holds the incident, and is the same every time."""

from __future__ import annotations

from collections import Counter
from datetime import date

import pandas as pd
import pytest

from gated_backfill.producer.demo.season import DATES_WITHOUT_GAMES, TEAMS, make_season

SUMMARY = "nba_analytics.player_game_summary"
UPCOMING = "nba_analytics.upcoming_player_game_context"
SCHEDULE = "nba_reference.schedule"


@pytest.fixture(scope="module")
def season() -> dict[str, pd.DataFrame]:
    return make_season()


def test_every_team_plays_82_games_and_never_two_on_a_date(season: dict[str, pd.DataFrame]) -> None:
    schedule = season[SCHEDULE]
    assert Counter([*schedule["home_team_abbr"], *schedule["away_team_abbr"]]) == dict.fromkeys(TEAMS, 82)
    for _, games in schedule.groupby("game_date"):
        playing = [*games["home_team_abbr"], *games["away_team_abbr"]]
        assert len(set(playing)) == len(playing)


def test_nobody_plays_in_the_all_star_break(season: dict[str, pd.DataFrame]) -> None:
    assert not DATES_WITHOUT_GAMES & set(season[SCHEDULE]["game_date"])
    assert season[SCHEDULE]["game_date"].min() == date(2022, 10, 18)


@pytest.mark.parametrize(
    ("day", "played", "upcoming"), [(date(2023, 2, 23), 187, 1), (date(2023, 2, 24), 175, 68)], ids=["1-of-187", "68"]
)
def test_the_incident_is_planted(season: dict[str, pd.DataFrame], day: date, played: int, upcoming: int) -> None:
    assert season[SUMMARY].query("game_date == @day")["player_lookup"].nunique() == played
    assert season[UPCOMING].query("game_date == @day")["player_lookup"].nunique() == upcoming


def test_on_every_other_date_the_primary_source_is_nearly_whole(season: dict[str, pd.DataFrame]) -> None:
    who = {name: season[name].groupby("game_date")["player_lookup"].agg(set).to_dict() for name in (SUMMARY, UPCOMING)}
    shares = {day: len(who[UPCOMING][day] & names) / len(names) for day, names in who[SUMMARY].items()}
    low = {day for day, share in shares.items() if share < 0.95}
    assert low == {date(2023, 2, 23), date(2023, 2, 24)}
    assert any(share < 1 for day, share in shares.items() if day not in low)


def test_a_team_fields_real_rosters_and_240_minutes(season: dict[str, pd.DataFrame]) -> None:
    summary = season[SUMMARY]
    assert summary.groupby("team_abbr")["player_lookup"].nunique().between(12, 15).all()
    assert summary.groupby("game_id")["player_lookup"].nunique().min() >= 16
    minutes = summary.groupby(["game_id", "team_abbr"])["minutes_played"].sum()
    assert minutes.between(239.8, 240.2).all()
    assert summary["minutes_played"].le(48).all()


def test_the_same_season_is_made_every_time(season: dict[str, pd.DataFrame]) -> None:
    again = make_season()
    for name, table in season.items():
        pd.testing.assert_frame_equal(again[name], table)
