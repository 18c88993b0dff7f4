"""The shipped example job, written as queries, publishes the same rows as in Python, to the last digit."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from typing import Any

import pyarrow as pa
import pytest

from gated_backfill.common.model.arrow.types import arrow_schema
from gated_backfill.common.model.tables import ColumnTypes, TableName
from tests.builders import FEB_23, FEB_24
from tests.lab import PLAYER_TYPES, SUMMARY, UPCOMING, Lab
from tests.player_rules import BOX_SCORES
from tests.sql_twin import SQL, check_equal, load_season, season_days
from tests.sql_twin import sql_factors as sql_factors

pytestmark = pytest.mark.usefixtures("sql_factors")

SHOT_ZONES, TEAM_DEFENSE = "nba_precompute.player_shot_zone_analysis", "nba_precompute.team_defense_zone_analysis"
DAY = date(2023, 1, 2)


def test_of_a_season(lab: Lab) -> None:
    season = season_days(back=0)
    load_season(lab, season, without={})
    check_equal(lab, season, published=152)
    assert {row["context_source"] for row in lab.published(f"nba_precompute.{SQL}", FEB_23)} == {"derived"}

    lab.drop(UPCOMING)  # so the dates are derived
    check_equal(lab, season[60:80], published=152)


def test_of_real_box_scores_without_the_optional_inputs(lab: Lab) -> None:
    with BOX_SCORES.open(newline="") as text:
        days = sorted({date.fromisoformat(row["game_date"]) for row in csv.DictReader(text)})
    assert lab.inside("load", SUMMARY, str(BOX_SCORES)).returncode == 0

    check_equal(lab, days, published=len(days))


# -- odd values ---------------------------------------------------------------------------------------------------

NUMBERS = [0.0, -0.0, 1e-9, -1e-9, 0.00005, 0.00015, 12.34565, -12.34565, 1e11, 123456789012.34567, 1e15, 1e16, 1e300]
#: Of the pace, half is the score: ties that are exact in binary, ties that are none, and their neighbours.
PACES = [n / 10 for n in range(-70, 71, 3)] + [n / 8 for n in range(-48, 49)] + [math.nextafter(0.5, 1), 2.1, -9.0]
PROJECTIONS = [20 + n / 100 for n in range(-100, 101)] + [20 + n / 8 for n in range(-40, 41)]
DEFENCES = [n / 20 for n in range(-60, 61)] + [5.0, math.nextafter(5, 6), -5.0, 6.0, 8.35, -20.0]
ODD_VALUES: dict[str, list[Any]] = {
    "days_rest": [0, 1, 2, 3, 30],
    "back_to_back": [True, False],
    "games_in_last_7_days": [0, 3, 4, 7],
    "minutes_in_last_7_days": [*NUMBERS, 240.0, math.nextafter(240, 300)],
    "avg_minutes_per_game_last_7": [*NUMBERS, 35.0, math.nextafter(35, 40), 30 + 1 / 3],
    "back_to_backs_last_14_days": [0, 1, 2, 9],
    "avg_usage_rate_last_7_games": [20.0, 20.0, 20.0, 0.0, -0.0, 19.99, 17.3],
    "projected_usage_rate": [*PROJECTIONS, *NUMBERS],
    "pace_differential": [*PACES, *NUMBERS],
    "player_age": [19, 29, 30, 34, 35, 40],
    "star_teammates_out": [0, 1, 2, 3, -1],
    "primary_scoring_zone": ["paint", "mid_range", "perimeter", "backcourt", "", 'the "paint"'],
    "rate": [0.0, -0.0, 0.1, 33.3, 49.9, 50.0, 50.1, 100.0, 1e16],
    "vs_league_avg": [*DEFENCES, *NUMBERS],
}


def odd_rows(types: ColumnTypes, entities: Iterable[str], dice: random.Random) -> list[dict[str, Any]]:
    """A row for each entity with random odd values, one in eight null or NaN."""
    given = {"game_id": "1", "team_abbr": "ATL", "game_date": DAY, "analysis_date": DAY}
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(entities):
        known = given | {"player_lookup": name, "opponent_team_abbr": f"T{number}"}
        kinds = {column: next((kind for kind in ODD_VALUES if column.endswith(kind)), None) for column in types}
        drawn = {column: odd(ODD_VALUES[kind], dice) for column, kind in kinds.items() if kind is not None}
        rows.append({column: drawn[column] if column in drawn else known[column] for column in types})
    return rows


def odd(values: Sequence[Any], dice: random.Random) -> Any:
    if dice.random() < 1 / 8:
        return math.nan if isinstance(values[0], float) and dice.random() < 1 / 2 else None
    return dice.choice(values)


def load(lab: Lab, table: str, date_column: str, rows: list[dict[str, Any]], types: ColumnTypes) -> None:
    loaded = pa.Table.from_pylist(rows, schema=arrow_schema(types))
    lab.context.warehouse.load(TableName.parse(table), date_column, loaded)


def load_odd_values(lab: Lab) -> None:
    dice = random.Random(1)
    names = [f"p{number:04d}" for number in range(1000)]
    lab.summary(DAY, names)
    context = PLAYER_TYPES[UPCOMING] | {"game_date": "DATE"}
    load(lab, UPCOMING, "game_date", odd_rows(context, names, dice), context)
    zones = PLAYER_TYPES[SHOT_ZONES] | {"analysis_date": "DATE"}
    zone_rows = [row for row in odd_rows(zones, names, dice) if dice.random() < 0.9]
    load(lab, SHOT_ZONES, "analysis_date", [*zone_rows, *zone_rows[:9]], zones)
    defence = PLAYER_TYPES[TEAM_DEFENSE] | {"analysis_date": "DATE"}
    teams = [row | {"team_abbr": f"T{number}"} for number, row in enumerate(odd_rows(defence, names, dice))]
    load(lab, TEAM_DEFENSE, "analysis_date", [*teams[100:], *teams[-9:]], defence)


def check_odd_values_matter(lab: Lab) -> None:
    """That the rows are equal would prove little without this."""
    rows = lab.published(f"nba_precompute.{SQL}", DAY)
    for score in ("shot_zone_mismatch_score", "pace_score", "usage_spike_score", "total_composite_adjustment"):
        assert len({row[score] for row in rows}) > 30, score
    texts = "".join(row["pace_context_json"] + row["usage_context_json"] for row in rows)
    assert all(text in texts for text in ("null", "-0.0}", "0.0,", "1e+16", "1e+300", "12.3456", "1000000000000000.0"))


def test_of_odd_values(lab: Lab) -> None:
    load_odd_values(lab)
    check_equal(lab, [DAY], published=1)
    check_odd_values_matter(lab)


def test_of_odd_values_and_gaps_on_bigquery(bigquery_lab: Lab) -> None:
    """The fallback dates, days without one or both of the optional inputs, and a day with odd values."""
    days = [date(2023, 2, n) for n in (13, 14, 15, 16, 23, 24, 25, 26, 27, 28)]  # all with games in two weeks
    without = {SHOT_ZONES: {days[0], days[1], FEB_23}, TEAM_DEFENSE: {days[0], days[2], FEB_24}}
    load_season(bigquery_lab, days, without)
    load_odd_values(bigquery_lab)
    bigquery_lab.schedule(DAY, games=1)

    check_equal(bigquery_lab, [DAY, *days], published=1 + len(days))
    check_odd_values_matter(bigquery_lab)


def test_of_odd_box_scores(lab: Lab) -> None:
    """Sums at the thresholds of 35 and 240 minutes, which added up in double precision can be a little more."""
    dice = random.Random(2)
    types = PLAYER_TYPES[SUMMARY] | {"game_date": "DATE"}
    rows: list[dict[str, Any]] = []
    for number in range(300):
        games = dice.randint(1, 5)
        days = sorted(dice.sample(range(1, 8), games)) if number % 3 else [1, *range(3, 2 + games)]
        average = 48 if games == 5 and number % 2 else 35
        minutes = [round(dice.uniform(average - 9, average + 9), 2) for _ in days[1:]]
        minutes.append(round(average * len(days) - sum(minutes), 2))
        before = [(dice.randint(8, 14), odd([10.0, 1 / 3], dice)) for _ in range(dice.randint(0, 4))]
        for age, played in [(0, 30.0), *zip(days, minutes, strict=True), *before]:
            row = {"player_lookup": f"p{number:03d}", "game_id": str(len(rows)), "game_date": DAY - timedelta(days=age)}
            row |= {"team_abbr": "ATL", "opponent_team_abbr": "NYK", "minutes_played": played}
            rows.append(row | {"usage_rate": odd([0.0, 20.0, 21.37, 1 / 3, dice.uniform(5, 40)], dice)})
    load(lab, SUMMARY, "game_date", rows, types)

    check_equal(lab, [DAY], published=1)

    scores = [row["fatigue_score"] for row in lab.published(f"nba_precompute.{SQL}", DAY)]
    assert len(set(scores)) > 6
