"""A reproducible invented season that contains the incident: 30 teams, 82 games each.

2023-02-23 has exactly 187 players in the summary and one stale row in the upcoming table; 2023-02-24 has 175 and 68.
"""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa

from gated_backfill.common.model.arrow.types import arrow_schema
from gated_backfill.common.model.dates import DateRange
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.tables import ColumnTypes, TableName
from gated_backfill.common.warehouse.protocol import Warehouse
from gated_backfill.producer.demo.names import FIRST_NAMES, LAST_NAMES, TEAMS

SEED = 20230223
FIRST_DATE = date(2022, 10, 18)
LAST_DATE = date(2023, 4, 9)
DATES_WITHOUT_GAMES = frozenset(
    {date(2022, 11, 24), date(2022, 12, 24), *(date(2023, 2, 17) + timedelta(days=n) for n in range(6))}
)
GAMES_PER_TEAM = 82
GAMES_BY_WEEKDAY = (8, 6, 11, 4, 10, 8, 6)  #: Monday first; scaled to the season's games
INCIDENT = {date(2023, 2, 23): (9, 187, 1), date(2023, 2, 24): (8, 175, 68)}  #: games, players, rows in upcoming
CALL_UP_INTERVAL_DATES = 23  #: on every 23rd date, two late call-ups are missing from the upcoming table
NO_SHOT_ZONES = 0.03  #: share of players without a shot-zone analysis
MINUTES_BY_RANK = np.array([35, 34, 32, 30, 27, 22, 19, 16, 12, 9, 7, 5, 4, 3, 3.0])
LOOKBACK_GAMES = 14  #: no player plays more games in 14 days

SCHEDULE_TYPES: ColumnTypes = {
    "game_id": "STRING",
    "game_date": "DATE",
    "season": "STRING",
    "season_type": "STRING",
    "home_team_abbr": "STRING",
    "away_team_abbr": "STRING",
}
SUMMARY_TYPES: ColumnTypes = {
    "player_lookup": "STRING",
    "player_name": "STRING",
    "game_id": "STRING",
    "game_date": "DATE",
    "team_abbr": "STRING",
    "opponent_team_abbr": "STRING",
    "is_home": "BOOL",
    "minutes_played": "FLOAT64",
    "points": "INT64",
    "field_goals_attempted": "INT64",
    "three_pointers_attempted": "INT64",
    "free_throws_attempted": "INT64",
    "turnovers": "INT64",
    "usage_rate": "FLOAT64",
}


def load_season(warehouse: Warehouse, within: DateRange | None = None) -> int:
    """Create the season's tables, or only the dates `within` a range. Returns the number of dates with games in all."""
    tables = make_season()
    for name, frame in tables.items():
        date_column, types = column_types_of(name, frame)
        loaded = frame if within is None else frame[frame[date_column].between(within.start, within.through)]
        rows = pa.Table.from_pandas(loaded[list(types)], schema=arrow_schema(types), preserve_index=False)
        warehouse.load(TableName.parse(name), date_column, rows)
    return tables["nba_reference.schedule"]["game_date"].nunique()


def column_types_of(name: str, frame: pd.DataFrame) -> tuple[str, ColumnTypes]:
    """Return the date column and the types of a table of the season: all columns, or those that the job declares."""
    full_types = {"nba_reference.schedule": SCHEDULE_TYPES, "nba_analytics.player_game_summary": SUMMARY_TYPES}
    date_column = date_column_of(frame)
    declared = find_job("player_composite_factors").declared_types()
    return date_column, full_types.get(name) or {**declared[name], date_column: "DATE"}


def date_column_of(frame: pd.DataFrame) -> str:
    """Return the name of the date column of a table of the season."""
    return "analysis_date" if "analysis_date" in frame.columns else "game_date"


def make_season(seed: int = SEED) -> dict[str, pd.DataFrame]:
    """Create the season's tables, by name. Another seed gives a season with other values."""
    rng = np.random.default_rng(seed)
    players = make_players(rng)
    schedule = make_schedule(rng)
    summary = make_summary(schedule, players, rng)
    context = make_context(summary, players, rng)
    return {
        "nba_reference.schedule": schedule,
        "nba_analytics.player_game_summary": summary,
        "nba_analytics.upcoming_player_game_context": make_stale_context(context, rng),
        "nba_precompute.player_shot_zone_analysis": make_shot_zones(summary, players, rng),
        "nba_precompute.team_defense_zone_analysis": make_team_defense(schedule, rng),
    }


def game_dates() -> list[date]:
    days = (FIRST_DATE + timedelta(days=n) for n in range((LAST_DATE - FIRST_DATE).days + 1))
    return [day for day in days if day not in DATES_WITHOUT_GAMES]


def games_per_date(days: list[date]) -> dict[date, int]:
    """Distribute the 1,230 games over the dates by weekday. All teams play on the last date."""
    fixed_games = {day: games for day, (games, _, _) in INCIDENT.items()} | {days[-1]: len(TEAMS) // 2}
    other_days = [day for day in days if day not in fixed_games]
    remaining = len(TEAMS) * GAMES_PER_TEAM // 2 - sum(fixed_games.values())
    weights = np.array([GAMES_BY_WEEKDAY[day.weekday()] for day in other_days], float)
    totals = np.floor(np.concatenate([[0.0], np.cumsum(weights)]) * remaining / weights.sum() + 1e-9).astype(int)
    return fixed_games | dict(zip(other_days, np.diff(totals).tolist(), strict=True))


def make_schedule(rng: np.random.Generator) -> pd.DataFrame:
    """Schedule 82 games per team, at most one per date. Teams with more games left, and rested teams, play first."""
    days = game_dates()
    quota = games_per_date(days)
    games_left = np.full(len(TEAMS), GAMES_PER_TEAM)
    played_previous_date = np.zeros(len(TEAMS), bool)
    previous_day: date | None = None
    rows: list[tuple[date, str, str]] = []
    for index, day in enumerate(days):
        played_yesterday = played_previous_date & (previous_day == day - timedelta(days=1))
        is_final_stretch = index >= len(days) - 10  # only the games left count, so that every team ends with none
        priority = games_left + (0.0 if is_final_stretch else rng.uniform(0, 1.5, len(TEAMS)) - 1.2 * played_yesterday)
        chosen = np.argsort(-priority, kind="stable")[: 2 * quota[day]]
        games_left[chosen] -= 1
        played_previous_date = np.isin(np.arange(len(TEAMS)), chosen)
        previous_day = day
        pairs = rng.permutation(chosen).reshape(-1, 2)
        rows += [(day, TEAMS[home], TEAMS[away]) for home, away in pairs]
    frame = pd.DataFrame(rows, columns=["game_date", "home_team_abbr", "away_team_abbr"])
    frame["game_id"] = [f"00222{n:05d}" for n in range(1, len(frame) + 1)]
    return frame.assign(season="2022-23", season_type="regular")


def make_players(rng: np.random.Generator) -> pd.DataFrame:
    """Create 13 to 15 players per team, ranked by playing time, each with age, usage and shares of shots by zone."""
    rosters = rng.integers(13, 16, len(TEAMS))
    count = int(rosters.sum())
    picked = rng.permutation(len(FIRST_NAMES) * len(LAST_NAMES))[:count]
    names = [f"{FIRST_NAMES[n // len(LAST_NAMES)]} {LAST_NAMES[n % len(LAST_NAMES)]}" for n in picked.tolist()]
    rank = np.concatenate([np.arange(size) for size in rosters])
    shooting = rng.dirichlet([3.0, 1.5, 3.0], count) * 100
    return pd.DataFrame(
        {
            "player_lookup": [name.lower().replace(" ", "") for name in names],
            "player_name": names,
            "team_abbr": np.repeat(TEAMS, rosters),
            "rank": rank,
            "player_age": rng.integers(19, 40, count),
            "usage": np.clip(28 - rank + rng.normal(0, 3, count), 8, 38),
            "paint": shooting[:, 0],
            "mid_range": shooting[:, 1],
            "analysed": rng.uniform(size=count) >= NO_SHOT_ZONES,
        }
    )


def make_summary(schedule: pd.DataFrame, players: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Create one row per player and game. A team's minutes in a game add up to 240."""
    sides = _sides(schedule)
    sides["playing"] = _players_per_side(sides, rng)
    rows = sides.merge(players, on="team_abbr")
    rows = rows.assign(game_rank=rows["rank"] + rng.normal(0, 1.2, len(rows)))
    rows["place"] = rows.groupby(["game_id", "team_abbr"])["game_rank"].rank(method="first").astype(int) - 1
    rows = rows[rows["place"] < rows["playing"]].reset_index(drop=True)
    share = MINUTES_BY_RANK[rows["place"].to_numpy()] * rng.uniform(0.8, 1.2, len(rows))
    total = pd.Series(share).groupby([rows["game_id"], rows["team_abbr"]]).transform("sum").to_numpy()
    minutes = np.round(share / total * 240, 2)
    shots = rng.poisson(minutes * rows["usage"] / 58)
    threes = rng.binomial(shots, 0.38)
    return rows.assign(
        minutes_played=minutes,
        usage_rate=np.round(np.clip(rows["usage"] + rng.normal(0, 4, len(rows)), 0, 60), 2),
        field_goals_attempted=shots,
        three_pointers_attempted=threes,
        free_throws_attempted=rng.poisson(minutes / 14),
        turnovers=rng.poisson(minutes / 20),
        points=rng.binomial(shots, 0.47) * 2 + rng.binomial(threes, 0.36),
    )[list(SUMMARY_TYPES)]


def _sides(schedule: pd.DataFrame) -> pd.DataFrame:
    """List each game twice, once for each team."""
    home = schedule.rename(columns={"home_team_abbr": "team_abbr", "away_team_abbr": "opponent_team_abbr"})
    away = schedule.rename(columns={"away_team_abbr": "team_abbr", "home_team_abbr": "opponent_team_abbr"})
    both = pd.concat([home.assign(is_home=True), away.assign(is_home=False)])
    return both.sort_values(["game_date", "game_id", "is_home"], kind="stable", ignore_index=True)


def _players_per_side(sides: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    playing = rng.integers(9, 13, len(sides))
    for day, (games, players, _) in INCIDENT.items():
        sides_of_day = np.flatnonzero(sides["game_date"] == day)
        per_side, remainder = divmod(players, 2 * games)
        playing[sides_of_day] = per_side
        playing[sides_of_day[:remainder]] += 1
    return playing


def make_context(summary: pd.DataFrame, players: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Create each player's context before a game: rest and load from earlier games, and a projection."""
    ages = players[["player_lookup", "player_age"]]
    rows = summary.merge(ages, on="player_lookup").sort_values(["player_lookup", "game_date"], ignore_index=True)
    rows = rows.assign(**_earlier_games(rows))
    projected = np.round(np.clip(rows["avg_usage_rate_last_7_games"] + rng.normal(0, 3, len(rows)), 0, 60), 2)
    pace = {team: rng.normal(0, 2.2) for team in TEAMS}
    differential = rows["team_abbr"].map(pace) - rows["opponent_team_abbr"].map(pace)
    stars_out = rng.choice([0, 1, 2], len(rows), p=[0.9, 0.08, 0.02])
    rows = rows.assign(
        projected_usage_rate=projected, pace_differential=np.round(differential, 2), star_teammates_out=stars_out
    )
    return rows.sort_values(["game_date", "game_id", "player_lookup"], ignore_index=True)


def _earlier_games(rows: pd.DataFrame) -> dict[str, pd.Series]:
    """Compute rest, load and usage before each row's game. `rows` are sorted by player and date."""
    game_day = pd.to_datetime(rows["game_date"])
    by_player = rows.assign(game_day=game_day).groupby("player_lookup", sort=False)
    before = {k: by_player["game_day"].shift(k) for k in range(1, LOOKBACK_GAMES + 2)}  # k games ago
    days_ago = {k: (game_day - day).dt.days for k, day in before.items()}
    recent = {k: days_ago[k] <= 7 for k in range(1, 8)}
    games = sum((is_recent.astype(int) for is_recent in recent.values()), pd.Series(0, rows.index))
    earlier_minutes = (by_player["minutes_played"].shift(k).where(is_recent, 0.0) for k, is_recent in recent.items())
    minutes = sum(earlier_minutes, pd.Series(0.0, rows.index))
    back_to_backs = sum(
        (((before[k] - before[k + 1]).dt.days == 1) & (days_ago[k + 1] <= 14) for k in range(1, LOOKBACK_GAMES + 1)),
        pd.Series(0, rows.index),
    )
    usage = pd.concat([by_player["usage_rate"].shift(k).where(days_ago[k] <= 14) for k in range(1, 8)], axis=1)
    rest = days_ago[1] - 1
    return {
        "days_rest": rest.astype("Int64"),
        "back_to_back": rest == 0,
        "games_in_last_7_days": games,
        "minutes_in_last_7_days": minutes.round(2),
        "avg_minutes_per_game_last_7": (minutes / games.where(games > 0)).round(2),
        "back_to_backs_last_14_days": back_to_backs.astype(int),
        "avg_usage_rate_last_7_games": usage.mean(axis=1).round(2),
    }


def make_stale_context(context: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Remove late call-ups from the context, and most players on the two dates of the incident."""
    days = context["game_date"].unique()
    keep = np.ones(len(context), bool)
    for index, day in enumerate(days):
        rows_of_day = rng.permutation(np.flatnonzero(context["game_date"] == day))
        if day in INCIDENT:
            keep[rows_of_day[INCIDENT[day][2] :]] = False
        elif index % CALL_UP_INTERVAL_DATES == CALL_UP_INTERVAL_DATES - 1 and len(rows_of_day) > 80:
            keep[rows_of_day[:2]] = False
    return context[keep].reset_index(drop=True)


def make_shot_zones(summary: pd.DataFrame, players: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Create each player's shot-zone rates, as of each date."""
    analysed = players[players["analysed"]][["player_lookup", "paint", "mid_range"]]
    rows = summary[["player_lookup", "game_date"]].merge(analysed, on="player_lookup")
    paint = np.round(np.clip(rows["paint"] + rng.normal(0, 2, len(rows)), 1, 97), 1)
    mid_range = np.round(np.clip(rows["mid_range"] + rng.normal(0, 2, len(rows)), 1, 98 - paint), 1)
    rates = pd.DataFrame({"paint": paint, "mid_range": mid_range, "perimeter": np.round(100 - paint - mid_range, 1)})
    return rows.assign(
        analysis_date=rows["game_date"],
        primary_scoring_zone=rates.idxmax(axis=1),
        **{f"{zone}_rate": rates[zone] for zone in rates.columns},
    )


def make_team_defense(schedule: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Create each playing team's defense by zone, in percentage points against the league's average."""
    rows = _sides(schedule)[["game_date", "team_abbr"]]
    team_means = {team: rng.normal(0, 2.5, 3) for team in TEAMS}
    differences = np.stack([team_means[team] for team in rows["team_abbr"]]) + rng.normal(0, 0.8, (len(rows), 3))
    zones = dict(zip(("paint", "mid_range", "perimeter"), np.round(differences, 2).T, strict=True))
    return rows.assign(
        analysis_date=rows["game_date"], **{f"{zone}_vs_league_avg": values for zone, values in zones.items()}
    )
