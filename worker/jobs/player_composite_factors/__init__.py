"""The job `player_composite_factors`: one row per player and game date in nba_precompute.player_composite_factors.

Expected are the players who played (`nba_analytics.player_game_summary`), guarded by the schedule. The primary source
is the context written before the games; the fallback derives the same context from the summary of the 14 days before.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING

from gated_backfill import Batch, Calendar, CalendarEvents, Column, Expectation, Input, Job, Source, StaleTable, Target
from gated_backfill.common.model.dates import season_start

if TYPE_CHECKING:
    import pandas as pd

BOOTSTRAP_DAYS = 14
LOOKBACK_DAYS = 14
SEASON_DAYS = 300  #: a season is over so long after it began
PLAYERS_PER_GAME = 16  #: the fewest that a game on the calendar implies
SEASON_STARTS = (date(2021, 10, 19), date(2022, 10, 18), date(2023, 10, 24), date(2024, 10, 22), date(2025, 10, 21))

SUMMARY = "nba_analytics.player_game_summary"
UPCOMING = "nba_analytics.upcoming_player_game_context"


def skip_bootstrap(day: date, calendar: CalendarEvents | None) -> str | None:
    """`bootstrap` on the first 14 days of a season: there is too little history to derive from.

    The calendar gives the starts of seasons that are not listed here. For a listed season it is ignored: a calendar
    loaded from February on would give February as the start.
    """
    starts = calendar.season_starts if calendar else ()
    unlisted = [new for new in starts if not any(0 <= (new - listed).days < SEASON_DAYS for listed in SEASON_STARTS)]
    start = season_start(day, [*SEASON_STARTS, *unlisted])
    return "bootstrap" if start is not None and (day - start).days < BOOTSTRAP_DAYS else None


# pandas is imported when a worker first processes a date: planning needs the declaration below, not the arithmetic.
def derive_context(history: pd.DataFrame, days: Sequence[date]) -> pd.DataFrame:
    from gated_backfill.worker.jobs.player_composite_factors.context import derived_context

    return derived_context(history, days)


def process(batch: Batch) -> pd.DataFrame:
    from gated_backfill.worker.jobs.player_composite_factors.factors import composite_factors

    return composite_factors(batch.rows, batch.inputs["shot_zones"], batch.inputs["team_defense"], VERSION)


VERSION = "1"

JOB = Job(
    name="player_composite_factors",
    version=VERSION,
    description="Composite adjustment factors per player and game date",
    target=Target(
        table="nba_precompute.player_composite_factors",
        date_column="game_date",
        key=("player_lookup", "game_date"),
        columns={
            "player_lookup": Column(type="STRING"),
            "game_id": Column(type="STRING"),
            "game_date": Column(type="DATE"),
            "team_abbr": Column(type="STRING"),
            "opponent_team_abbr": Column(type="STRING"),
            "fatigue_score": Column(type="INT64", ge=0, le=100),
            "shot_zone_mismatch_score": Column(type="FLOAT64", ge=-10, le=10),
            "pace_score": Column(type="FLOAT64", ge=-3, le=3),
            "usage_spike_score": Column(type="FLOAT64", ge=-3, le=3),
            "referee_favorability_score": Column(type="FLOAT64", ge=0, le=0),
            "look_ahead_pressure_score": Column(type="FLOAT64", ge=0, le=0),
            "travel_impact_score": Column(type="FLOAT64", ge=0, le=0),
            "opponent_strength_score": Column(type="FLOAT64", ge=0, le=0),
            "total_composite_adjustment": Column(type="FLOAT64", ge=-21, le=16),
            "fatigue_context_json": Column(type="STRING"),
            "shot_zone_context_json": Column(type="STRING"),
            "pace_context_json": Column(type="STRING"),
            "usage_context_json": Column(type="STRING"),
            "calculation_version": Column(type="STRING"),
            "context_source": Column(type="STRING"),
            "data_completeness_pct": Column(type="FLOAT64", ge=0, le=100),
            "missing_data_fields": Column(type="STRING", nullable=True),
            "has_warnings": Column(type="BOOL"),
            "warning_details": Column(type="STRING", nullable=True),
        },
    ),
    expectation=Expectation(
        table=SUMMARY,
        date_column="game_date",
        entity="player_lookup",
        calendar=Calendar(
            table="nba_reference.schedule",
            date_column="game_date",
            floor_per_event=PLAYERS_PER_GAME,
            season_column="season",
            season_filter=("season_type", "regular"),
        ),
    ),
    sources=(
        Source(
            name="upcoming",
            table=UPCOMING,
            date_column="game_date",
            columns={
                "player_lookup": "STRING",
                "game_id": "STRING",
                "team_abbr": "STRING",
                "opponent_team_abbr": "STRING",
                "days_rest": "INT64",
                "back_to_back": "BOOL",
                "games_in_last_7_days": "INT64",
                "minutes_in_last_7_days": "FLOAT64",
                "avg_minutes_per_game_last_7": "FLOAT64",
                "back_to_backs_last_14_days": "INT64",
                "avg_usage_rate_last_7_games": "FLOAT64",
                "projected_usage_rate": "FLOAT64",
                "pace_differential": "FLOAT64",
                "player_age": "INT64",
                "star_teammates_out": "INT64",
            },
        ),
        Source(
            name="derived",
            table=SUMMARY,
            date_column="game_date",
            columns={
                "player_lookup": "STRING",
                "game_id": "STRING",
                "team_abbr": "STRING",
                "opponent_team_abbr": "STRING",
                "minutes_played": "FLOAT64",
                "usage_rate": "FLOAT64",
            },
            lookback_days=LOOKBACK_DAYS,
            derive=derive_context,
            derive_together=True,  # it takes for each date the rows of the 14 days before that date
        ),
    ),
    inputs=(
        Input(
            name="shot_zones",
            table="nba_precompute.player_shot_zone_analysis",
            date_column="analysis_date",
            columns={
                "player_lookup": "STRING",
                "primary_scoring_zone": "STRING",
                "paint_rate": "FLOAT64",
                "mid_range_rate": "FLOAT64",
                "perimeter_rate": "FLOAT64",
            },
            optional=True,
        ),
        Input(
            name="team_defense",
            table="nba_precompute.team_defense_zone_analysis",
            date_column="analysis_date",
            columns={
                "team_abbr": "STRING",
                "paint_vs_league_avg": "FLOAT64",
                "mid_range_vs_league_avg": "FLOAT64",
                "perimeter_vs_league_avg": "FLOAT64",
            },
            optional=True,
        ),
    ),
    skip=skip_bootstrap,
    process=process,
    stale_tables=(
        StaleTable(table="nba_analytics.upcoming_player_game_context"),
        StaleTable(table="nba_analytics.upcoming_team_game_context"),
    ),
)
