"""The first job's factors by a calculation from the rules: plain Python, a player at a time, none of our code."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import date
from math import fsum
from pathlib import Path
from typing import Any

#: Real box scores of the NBA.
BOX_SCORES = Path(__file__).parent / "data" / "player_game_summary_2026_playoffs_round1.csv"


def by_the_rules(rows: list[dict[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """What the rules say of each player and date, when only the summary is known."""
    games: dict[str, list[tuple[date, float, float]]] = defaultdict(list)
    for row in rows:
        played = date.fromisoformat(row["game_date"])
        games[row["player_lookup"]].append((played, float(row["minutes_played"]), float(row["usage_rate"])))
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        day = date.fromisoformat(row["game_date"])
        before = sorted(game for game in games[row["player_lookup"]] if 1 <= (day - game[0]).days <= 14)
        week = [game for game in before if (day - game[0]).days <= 7]
        score = 100
        rest = (day - before[-1][0]).days - 1 if before else None
        if rest == 0:
            score -= 15
        elif rest is not None and rest >= 3:
            score += 5
        minutes = fsum(game[1] for game in week)
        if len(week) >= 4:
            score -= 10
        if minutes > 240:
            score -= 10
        if week and minutes / len(week) > 35:
            score -= 8
        pairs = sum((later[0] - earlier[0]).days == 1 for earlier, later in itertools.pairwise(before))
        score -= 12 if pairs >= 2 else 5 if pairs == 1 else 0
        score = max(0, min(100, score))
        unknown = ["projected_usage_rate", "pace_differential", "shot_zones", "team_defense"]
        unknown = (["days_rest"] if rest is None else []) + unknown
        found[(row["player_lookup"], row["game_date"])] = {
            "fatigue_score": score,
            "shot_zone_mismatch_score": 0.0,
            "pace_score": 0.0,
            "usage_spike_score": 0.0,
            "total_composite_adjustment": round((score - 100) / 20, 2),
            "data_completeness_pct": 100.0 * (5 - len(unknown)) / 5,
            "missing_data_fields": ",".join(unknown),
            "has_warnings": score < 50,
            "context_source": "derived",
            "days_rest": rest,
            "games": len(week),
            "pairs": pairs,
        }
    return found


def check_rows(found: Iterable[Mapping[str, Any]], expected: Mapping[tuple[str, str], Mapping[str, Any]]) -> None:
    """Fail unless the rows are those expected, each with the values expected of it."""
    published = {(row["player_lookup"], str(row["game_date"])): row for row in found}
    assert published.keys() == expected.keys()
    for key, rules in expected.items():
        row = published[key]
        context = json.loads(row["fatigue_context_json"])
        said = {name: row[name] for name in rules if name in row} | {
            "days_rest": context["days_rest"],
            "games": context["games_in_last_7_days"],
            "pairs": context["back_to_backs_last_14_days"],
        }
        assert said == rules, key
