"""The first job's factors against a calculation from the rules: plain Python, a player at a time, none of our code."""

from __future__ import annotations

import csv
import json
import random
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.lab import PLAYER_TYPES, SCHEDULE, SUMMARY, UPCOMING, Lab
from tests.player_rules import BOX_SCORES, by_the_rules, check_rows

TARGET = "nba_precompute.player_composite_factors"
FIRST = date(2023, 1, 2)
DAYS = [FIRST + timedelta(days=n) for n in range(24)]
HEADER = ["player_lookup", "game_id", "game_date", "team_abbr", "opponent_team_abbr", "minutes_played", "usage_rate"]


def box_scores(seed: int) -> list[dict[str, str]]:
    """Two dozen players, each playing about every other day, with long stretches of many minutes and long rests."""
    dice = random.Random(seed)
    rows: list[dict[str, str]] = []
    for n in range(24):
        eagerness = dice.choice([0.15, 0.5, 0.9])
        for day in DAYS:
            if dice.random() < eagerness:
                minutes, usage = f"{dice.uniform(0, 48):.2f}", f"{dice.choice([0.0, dice.uniform(5, 40)]):.2f}"
                values = [f"p{n:02d}", "0022", str(day), "ATL", "NYK", minutes, usage]
                rows.append(dict(zip(HEADER, values, strict=True)))
    return rows


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_derived_factors_agree_with_the_rules_to_the_last_digit(lab: Lab, tmp_path: Path, seed: int) -> None:
    rows = box_scores(seed)
    file = tmp_path / "summary.csv"
    with file.open("w", newline="") as text:
        writer = csv.DictWriter(text, HEADER)
        writer.writeheader()
        writer.writerows(rows)
    assert lab.command("load", SUMMARY, str(file)).returncode == 0

    progress = lab.run(DAYS, preflight=True)

    assert progress.run.state.value == "succeeded"
    expected = by_the_rules(rows)
    assert len({one["fatigue_score"] for one in expected.values()}) > 5  # else this would prove little
    agree(lab, DAYS, expected)


def test_real_box_scores_are_published_whole_and_agree_with_the_rules(lab: Lab) -> None:
    with BOX_SCORES.open(newline="") as text:
        rows = list(csv.DictReader(text))
    days = sorted({date.fromisoformat(row["game_date"]) for row in rows})
    assert lab.command("load", SUMMARY, str(BOX_SCORES)).returncode == 0

    span = ("--start-date", str(days[0]), "--end-date", str(days[-1]))
    ran = lab.command("run", "--job", "player_composite_factors", *span)

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{len(rows)} of {len(rows)} entities (100.0 %)" in ran.stdout
    agree(lab, days, by_the_rules(rows))


def agree(lab: Lab, days: list[date], expected: dict[tuple[str, str], dict[str, Any]]) -> None:
    """The published rows of the days are those expected, each with the values expected of it."""
    check_rows([row for day in days for row in lab.published(TARGET, day)], expected)


CONTEXT = {
    "player_lookup": "p1",
    "game_id": "1",
    "team_abbr": "ATL",
    "opponent_team_abbr": "NYK",
    "days_rest": 1,
    "back_to_back": False,
    "games_in_last_7_days": 3,
    "minutes_in_last_7_days": 90.0,
    "avg_minutes_per_game_last_7": 30.0,
    "back_to_backs_last_14_days": 0,
    "avg_usage_rate_last_7_games": 20.0,
    "projected_usage_rate": 20.0,
    "pace_differential": 0.0,
    "player_age": 25,
    "star_teammates_out": 0,
}
ZONES = {"player_lookup": "p1", "primary_scoring_zone": "paint", "paint_rate": 50.0, "mid_range_rate": 30.0}
LEAGUE_AVERAGES = {"paint_vs_league_avg": 0.0, "mid_range_vs_league_avg": 4.0, "perimeter_vs_league_avg": -4.0}
DEFENCE = {"team_abbr": "NYK", **LEAGUE_AVERAGES}
RATES = dict.fromkeys(["paint_rate", "mid_range_rate", "perimeter_rate"], "FLOAT64")
ZONE_TYPES = {"player_lookup": "STRING", "analysis_date": "DATE", "primary_scoring_zone": "STRING", **RATES}
DEFENCE_TYPES = {"team_abbr": "STRING", "analysis_date": "DATE"} | dict.fromkeys(LEAGUE_AVERAGES, "FLOAT64")


MISMATCH = {"shot_zone_mismatch_score": -10.0, "warning_details": "extreme_shot_zone_mismatch", "has_warnings": True}
NO_SPIKE = {"usage_spike_score": 0.0, "missing_data_fields": "projected_usage_rate", "data_completeness_pct": 80.0}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        pytest.param({}, {"fatigue_score": 100, "total_composite_adjustment": 0.0}, id="fresh"),
        pytest.param({"back_to_back": True, "days_rest": 0}, {"fatigue_score": 85}, id="back-to-back"),
        pytest.param({"player_age": 35, "days_rest": 3}, {"fatigue_score": 95}, id="old-but-rested"),
        pytest.param({"player_age": 30}, {"fatigue_score": 95}, id="thirty"),
        pytest.param({"pace_differential": 2.1}, {"pace_score": 1.1}, id="pace-rounded-by-its-exact-value"),
        pytest.param({"pace_differential": -9.0}, {"pace_score": -3.0}, id="pace-clamped"),
        pytest.param({"projected_usage_rate": 24.0}, {"usage_spike_score": 1.2}, id="spike"),
        pytest.param(
            {"projected_usage_rate": 24.0, "star_teammates_out": 1},
            {"usage_spike_score": 1.4, "total_composite_adjustment": 1.38},
            id="one-star-out",
        ),
        pytest.param(
            {"projected_usage_rate": 24.0, "star_teammates_out": 2},
            {"usage_spike_score": 1.6, "total_composite_adjustment": 1.56},
            id="two-stars-out",
        ),
        pytest.param({"projected_usage_rate": 16.0, "star_teammates_out": 2}, {"usage_spike_score": -1.2}, id="drop"),
        pytest.param({"avg_usage_rate_last_7_games": 0.0}, {"usage_spike_score": 0.0}, id="no-baseline"),
        pytest.param({"projected_usage_rate": None}, NO_SPIKE, id="unknown-projection-invents-no-spike"),
        pytest.param({"paint_vs_league_avg": 4.0}, {"shot_zone_mismatch_score": 4.0}, id="weak-paint-defence"),
        pytest.param({"paint_vs_league_avg": 6.0}, {"shot_zone_mismatch_score": 7.2}, id="extreme-mismatch"),
        pytest.param({"primary_scoring_zone": "mid_range"}, {"shot_zone_mismatch_score": 2.4}, id="weighted-by-rate"),
        pytest.param({"paint_vs_league_avg": -20.0}, MISMATCH, id="mismatch-clamped-and-warned"),
    ],
)
def test_each_factor_follows_its_rule(lab: Lab, changed: dict[str, Any], expected: dict[str, Any]) -> None:
    rows = ({name: changed.get(name, row[name]) for name in row} for row in (CONTEXT, ZONES, DEFENCE))
    context, zones, defence = rows
    lab.summary(FIRST, ["p1"])
    lab.load(UPCOMING, FIRST, [context], PLAYER_TYPES[UPCOMING] | {"game_date": "DATE"})
    lab.load("nba_precompute.player_shot_zone_analysis", FIRST, [zones], ZONE_TYPES)
    lab.load("nba_precompute.team_defense_zone_analysis", FIRST, [defence], DEFENCE_TYPES)

    assert lab.run([FIRST], preflight=True).run.state.value == "succeeded"

    (row,) = lab.published(TARGET, FIRST)
    assert {name: row[name] for name in expected} == expected


def test_nothing_of_the_day_itself_enters_its_derived_context(lab: Lab) -> None:
    types = {"player_lookup": "STRING", "game_id": "STRING", "game_date": "DATE", "team_abbr": "STRING"}
    types |= {"opponent_team_abbr": "STRING", "minutes_played": "FLOAT64", "usage_rate": "FLOAT64"}
    lab.load(SUMMARY, FIRST, [{"player_lookup": "p1", "minutes_played": 48.0}], types)

    lab.run([FIRST])

    (row,) = lab.published(TARGET, FIRST)
    assert json.loads(row["fatigue_context_json"])["minutes_in_last_7_days"] == 0.0
    assert row["fatigue_score"] == 100


def test_the_first_fortnight_of_a_season_is_skipped_as_bootstrap(lab: Lab) -> None:
    opening = date(2022, 10, 18)
    lab.summary(opening + timedelta(days=13), ["p1"])
    lab.summary(opening + timedelta(days=14), ["p1"])

    steps = lab.plan([opening + timedelta(days=n) for n in (13, 14)]).steps

    assert (steps[0].action.value, steps[0].reason) == ("skip", "bootstrap")
    assert steps[1].action.value == "build"


def test_the_calendar_tells_when_a_later_season_begins(lab: Lab) -> None:
    opening = date(2026, 10, 20)
    rows = [{"game_id": "1", "season": "2026-27", "season_type": "regular"}]
    lab.load("nba_reference.schedule", opening, rows, SCHEDULE)
    lab.summary(opening + timedelta(days=3), ["p1"])

    (step,) = lab.plan([opening + timedelta(days=3)]).steps

    assert step.reason == "bootstrap"
