"""The context of a player on a date, derived from the box scores of the days before it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from itertools import pairwise
from math import fsum

import numpy as np
import pandas as pd

WEEK = 7
FORTNIGHT = 14
LAST_GAMES = 7
PLAYER_DATE = ["player_lookup", "game_date"]


def derived_context(history: pd.DataFrame, days: Sequence[date]) -> pd.DataFrame:
    """One row per player of the summary on each of the days, derived from the 14 days before.

    Rows of the day itself are never used, as they are to be predicted. Values that the 14 days do not give are null;
    projected usage, pace differential and age always are.
    """
    today = history[history["game_date"].isin(pd.DatetimeIndex(list(days)))]
    subjects = today[["player_lookup", "game_date", "game_id", "team_abbr", "opponent_team_abbr"]]
    earlier = _earlier_games(subjects, history)
    context = subjects.merge(_summed(earlier), on=PLAYER_DATE, how="left").merge(
        _usage(earlier), on=PLAYER_DATE, how="left"
    )
    rest = context["age_of_last_game"] - 1
    games = context["games"].fillna(0)
    return context.assign(
        days_rest=rest.astype("Int64"),
        back_to_back=rest.eq(0).astype("boolean").mask(rest.isna()),
        games_in_last_7_days=games.astype("Int64"),
        minutes_in_last_7_days=context["minutes"].fillna(0.0),
        avg_minutes_per_game_last_7=(context["minutes"] / games.where(games > 0)),
        back_to_backs_last_14_days=context["back_to_backs"].fillna(0).astype("Int64"),
        projected_usage_rate=np.nan,
        pace_differential=np.nan,
        player_age=pd.array([pd.NA] * len(context), dtype="Int64"),
        star_teammates_out=pd.array([0] * len(context), dtype="Int64"),
    ).drop(columns=["age_of_last_game", "games", "minutes", "back_to_backs"])


def _earlier_games(subjects: pd.DataFrame, history: pd.DataFrame) -> pd.DataFrame:
    """Every subject's games of the 14 days before its date; `age` is how many days before."""
    played = history[["player_lookup", "game_date", "minutes_played", "usage_rate"]]
    pairs = subjects[PLAYER_DATE].merge(played.rename(columns={"game_date": "played_on"}), on="player_lookup")
    pairs["age"] = (pairs["game_date"] - pairs["played_on"]).dt.days
    earlier = pairs[pairs["age"].between(1, FORTNIGHT)]
    return earlier.sort_values([*PLAYER_DATE, "played_on"], kind="stable", ignore_index=True)


def _summed(earlier: pd.DataFrame) -> pd.DataFrame:
    recent = earlier["age"] <= WEEK
    next_day = _is_of_row_before(earlier) & ((earlier["played_on"] - earlier["played_on"].shift()).dt.days == 1)
    grouped = earlier.assign(games=recent.astype("int64"), back_to_backs=next_day.astype("int64")).groupby(
        PLAYER_DATE, sort=False
    )
    summed = grouped[["games", "back_to_backs"]].sum()
    minutes = _exact_sums(earlier[recent], "minutes_played")["sum"]
    return summed.assign(minutes=minutes, age_of_last_game=grouped["age"].min()).reset_index()


def _usage(earlier: pd.DataFrame) -> pd.DataFrame:
    """The mean usage rate of the last seven games, fewer if there are fewer."""
    sums = _exact_sums(earlier.groupby(PLAYER_DATE, sort=False).tail(LAST_GAMES), "usage_rate")
    return (sums["sum"] / sums["count"]).rename("avg_usage_rate_last_7_games").reset_index()


def _exact_sums(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """The sum of a column's values and their number, of each player and date that has any; rows are sorted by these.

    A sum is the exact one, rounded once. That of pandas may differ in its last digit with the rows of other players and
    dates beside it, and so with the dates that are processed together.
    """
    rows = rows[rows[column].notna()]
    starts = np.flatnonzero(~_is_of_row_before(rows)).tolist()
    spans = list(pairwise([*starts, len(rows)]))
    values: list[float] = rows[column].tolist()
    sums = {"sum": [fsum(values[start:end]) for start, end in spans], "count": [end - start for start, end in spans]}
    return pd.DataFrame(sums, index=pd.MultiIndex.from_frame(rows[PLAYER_DATE].iloc[starts]))


def _is_of_row_before(rows: pd.DataFrame) -> pd.Series:
    """Whether each row is of the same player and date as the row before it."""
    return rows["player_lookup"].eq(rows["player_lookup"].shift()) & rows["game_date"].eq(rows["game_date"].shift())
