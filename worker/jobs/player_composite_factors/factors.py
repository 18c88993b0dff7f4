"""The composite factors, for all players of all dates at once.

An unknown input makes its factor neutral and is named in `missing_data_fields`: it is never guessed, since readers of
the table could not tell a guess from a measurement.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from gated_backfill.common.model.job import SOURCE_COLUMN

Array = np.ndarray

ZONES = ("paint", "mid_range", "perimeter")
FATIGUE_CONTEXT = (
    "days_rest",
    "back_to_back",
    "games_in_last_7_days",
    "minutes_in_last_7_days",
    "avg_minutes_per_game_last_7",
    "back_to_backs_last_14_days",
    "player_age",
)
TRACKED_INPUTS = ("days_rest", "projected_usage_rate", "pace_differential", "shot_zones", "team_defense")
RESERVED_SCORES = (
    "referee_favorability_score",
    "look_ahead_pressure_score",
    "travel_impact_score",
    "opponent_strength_score",
)


def composite_factors(
    context: pd.DataFrame, shot_zones: pd.DataFrame | None, team_defense: pd.DataFrame | None, version: str
) -> pd.DataFrame:
    """One row of factors per row of context. Scores have one decimal, the total has two."""
    fatigue = fatigue_score(context)
    zones = _with_zones(context, shot_zones, team_defense)
    mismatch = shot_zone_mismatch(zones)
    pace = np.clip(_known(context["pace_differential"]) / 2, -3, 3)
    usage = usage_spike(context)
    total = _rounded((fatigue - 100) / 20 + mismatch + pace + usage, 2)
    mismatch, pace, usage = _rounded(mismatch, 1), _rounded(pace, 1), _rounded(usage, 1)
    missing = _missing(context, zones)
    warned = {
        "high_fatigue": fatigue < 50,
        "extreme_shot_zone_mismatch": np.abs(mismatch) > 8,
        "extreme_total_adjustment": np.abs(total) > 12,
    }
    return pd.DataFrame(
        {
            "player_lookup": context["player_lookup"],
            "game_id": context["game_id"],
            "game_date": context["game_date"],
            "team_abbr": context["team_abbr"],
            "opponent_team_abbr": context["opponent_team_abbr"],
            "fatigue_score": fatigue.astype("int64"),
            "shot_zone_mismatch_score": mismatch,
            "pace_score": pace,
            "usage_spike_score": usage,
            **dict.fromkeys(RESERVED_SCORES, 0.0),
            "total_composite_adjustment": total,
            "fatigue_context_json": _json(context, *FATIGUE_CONTEXT),
            "shot_zone_context_json": _json(zones, "primary_scoring_zone", "zone_rate", "defense_vs_league_avg"),
            "pace_context_json": _json(context, "pace_differential"),
            "usage_context_json": _json(
                context, "projected_usage_rate", "avg_usage_rate_last_7_games", "star_teammates_out"
            ),
            "calculation_version": version,
            "context_source": context[SOURCE_COLUMN],
            "data_completeness_pct": _rounded(100 * (1 - missing.sum(axis=1).to_numpy() / len(TRACKED_INPUTS)), 1),
            "missing_data_fields": _named(missing),
            "has_warnings": np.logical_or.reduce(list(warned.values())),
            "warning_details": _named(pd.DataFrame(warned, index=context.index)),
        }
    )


def fatigue_score(context: pd.DataFrame) -> Array:
    """0 (spent) to 100 (fresh); an unknown input costs nothing."""
    rest = context["days_rest"].to_numpy(float, na_value=np.nan)
    back_to_back = context["back_to_back"].to_numpy(bool, na_value=False)
    pairs = _known(context["back_to_backs_last_14_days"])
    age = _known(context["player_age"])
    score = (
        100
        + np.where(back_to_back, -15, np.where(rest >= 3, 5, 0))
        + np.where(_known(context["games_in_last_7_days"]) >= 4, -10, 0)
        + np.where(_known(context["minutes_in_last_7_days"]) > 240, -10, 0)
        + np.where(_known(context["avg_minutes_per_game_last_7"]) > 35, -8, 0)
        + np.where(pairs >= 2, -12, np.where(pairs == 1, -5, 0))
        + np.where(age >= 35, -10, np.where(age >= 30, -5, 0))
    )
    return np.clip(score, 0, 100)


def usage_spike(context: pd.DataFrame) -> Array:
    """How far the projected usage departs from the last games', more so with star team-mates out."""
    projected = context["projected_usage_rate"].to_numpy(float, na_value=np.nan)
    baseline = context["avg_usage_rate_last_7_games"].to_numpy(float, na_value=np.nan)
    stars = _known(context["star_teammates_out"])
    spike = np.where(baseline == 0, 0.0, (projected - baseline) * 0.3)
    boost = np.where(stars >= 2, 1.30, np.where(stars >= 1, 1.15, 1.0))
    spike = np.where(spike > 0, spike * boost, spike)
    return np.clip(np.nan_to_num(spike), -3, 3)


def shot_zone_mismatch(zones: pd.DataFrame) -> Array:
    """The opponent's defence in the player's primary zone, weighted by how much he shoots from there."""
    weighted = zones["defense_vs_league_avg"] * np.minimum(zones["zone_rate"] / 50, 1)
    extreme = np.where(np.abs(weighted) > 5, weighted * 1.2, weighted)
    return np.clip(np.nan_to_num(extreme), -10, 10)


def _with_zones(
    context: pd.DataFrame, shot_zones: pd.DataFrame | None, team_defense: pd.DataFrame | None
) -> pd.DataFrame:
    """For each row: the player's primary zone, his rate there, and the opponent's defence there; null if unknown."""
    zones = context[["player_lookup", "opponent_team_abbr", "game_date"]].copy()
    players, teams = _per_date(shot_zones, "player_lookup"), _per_date(team_defense, "team_abbr")
    if players is not None:
        zones = zones.merge(players, on=["player_lookup", "game_date"], how="left")
    if teams is not None:
        renamed = teams.rename(columns={"team_abbr": "opponent_team_abbr"})
        zones = zones.merge(renamed, on=["opponent_team_abbr", "game_date"], how="left")
    zone = _column(zones, "primary_scoring_zone", object)
    is_zone = [zone == name for name in ZONES]
    rates = [_column(zones, f"{name}_rate", float) for name in ZONES]
    defences = [_column(zones, f"{name}_vs_league_avg", float) for name in ZONES]
    return zones.assign(
        primary_scoring_zone=zone,
        zone_rate=np.select(is_zone, rates, np.nan),
        defense_vs_league_avg=np.select(is_zone, defences, np.nan),
        has_zones=np.logical_or.reduce(is_zone) & ~np.isnan(np.select(is_zone, rates, np.nan)),
        has_defense=np.logical_not(np.logical_and.reduce([np.isnan(defence) for defence in defences])),
    ).set_index(context.index)


def _per_date(rows: pd.DataFrame | None, who: str) -> pd.DataFrame | None:
    """At most one row per date, so that a repeated one can't repeat a player."""
    if rows is None:
        return None
    return rows.rename(columns={"analysis_date": "game_date"}).drop_duplicates([who, "game_date"])


def _column(frame: pd.DataFrame, name: str, kind: type) -> Array:
    if name in frame.columns:
        return frame[name].to_numpy(kind)
    return np.full(len(frame), np.nan if kind is float else None, dtype=kind)


def _missing(context: pd.DataFrame, zones: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "days_rest": context["days_rest"].isna().to_numpy(),
            "projected_usage_rate": context["projected_usage_rate"].isna().to_numpy(),
            "pace_differential": context["pace_differential"].isna().to_numpy(),
            "shot_zones": ~zones["has_zones"].to_numpy(),
            "team_defense": ~zones["has_defense"].to_numpy(),
        },
        index=context.index,
        columns=list(TRACKED_INPUTS),
    )


def _known(values: pd.Series) -> Array:
    """The values as floats, 0 where unknown."""
    return np.nan_to_num(values.to_numpy(float, na_value=np.nan))


def _rounded(values: Array, decimals: int) -> Array:
    """Rounded as Python's `round` does, by the exact value: 1.05 is a little more than 1.05, so 1.1.

    numpy's own multiplies in double precision first, which makes ties of values that are none. The product is exact in
    extended precision. Adding 0.0 turns -0.0 into 0.0.
    """
    scale = 10**decimals
    return np.rint(np.asarray(values, np.longdouble) * scale).astype(float) / scale + 0.0


def _named(flags: pd.DataFrame) -> pd.Series:
    """For each row the names of its true flags, joined by commas; null when there is none."""
    joined = pd.Series("", index=flags.index, dtype="object")
    for name in flags.columns:
        joined = joined + np.where(flags[name], f",{name}", "")
    return joined.str.lstrip(",").mask(~flags.any(axis=1), None)


def _json(frame: pd.DataFrame, *names: str) -> pd.Series:
    """The columns as one JSON object per row, floats rounded to four decimals."""
    joined = pd.Series("", index=frame.index, dtype="object")
    for name in names:
        joined = joined + f', "{name}": ' + _json_values(frame[name])
    return "{" + joined.str.removeprefix(", ") + "}"


def _json_values(values: pd.Series) -> pd.Series:
    if pd.api.types.is_bool_dtype(values):
        text = values.astype("object").map({True: "true", False: "false"})
    elif pd.api.types.is_float_dtype(values):
        text = values.round(4).astype("object").astype(str)
    elif pd.api.types.is_integer_dtype(values):
        text = values.astype("object").astype(str)
    else:
        text = '"' + values.astype("object").astype(str) + '"'
    return text.where(values.notna(), "null").astype("object")
