-- The composite factors, for all players of all dates at once, to the last digit as the job in Python has them.
-- An unknown input makes its factor neutral and is named in missing_data_fields. A NaN is unknown, too.
WITH zones AS (
  SELECT *
  FROM shot_zones
  WHERE analysis_date IN UNNEST(@days)
  -- at most one row per date, so that a repeated one never repeats a player
  QUALIFY
    ROW_NUMBER() OVER (
      PARTITION BY player_lookup, analysis_date
      ORDER BY primary_scoring_zone, paint_rate, mid_range_rate, perimeter_rate
    ) = 1
),
defence AS (
  SELECT
    team_abbr,
    analysis_date,
    IF(IS_NAN(paint_vs_league_avg), NULL, paint_vs_league_avg) AS paint,
    IF(IS_NAN(mid_range_vs_league_avg), NULL, mid_range_vs_league_avg) AS mid_range,
    IF(IS_NAN(perimeter_vs_league_avg), NULL, perimeter_vs_league_avg) AS perimeter
  FROM team_defense
  WHERE analysis_date IN UNNEST(@days)
  QUALIFY
    ROW_NUMBER() OVER (
      PARTITION BY team_abbr, analysis_date
      ORDER BY paint_vs_league_avg, mid_range_vs_league_avg, perimeter_vs_league_avg
    ) = 1
),
-- The primary zone of the player, his rate there, and the defence of the opponent there.
context AS (
  SELECT
    player.player_lookup,
    player.game_id,
    player.game_date,
    player.team_abbr,
    player.opponent_team_abbr,
    player._source,
    player.days_rest,
    player.back_to_back,
    player.games_in_last_7_days,
    player.back_to_backs_last_14_days,
    player.player_age,
    player.star_teammates_out,
    IF(IS_NAN(player.minutes_in_last_7_days), NULL, player.minutes_in_last_7_days) AS minutes,
    IF(IS_NAN(player.avg_minutes_per_game_last_7), NULL, player.avg_minutes_per_game_last_7) AS avg_minutes,
    IF(IS_NAN(player.avg_usage_rate_last_7_games), NULL, player.avg_usage_rate_last_7_games) AS avg_usage_rate,
    IF(IS_NAN(player.projected_usage_rate), NULL, player.projected_usage_rate) AS projected_usage_rate,
    IF(IS_NAN(player.pace_differential), NULL, player.pace_differential) AS pace_differential,
    zones.primary_scoring_zone,
    CASE zones.primary_scoring_zone
      WHEN 'paint' THEN IF(IS_NAN(zones.paint_rate), NULL, zones.paint_rate)
      WHEN 'mid_range' THEN IF(IS_NAN(zones.mid_range_rate), NULL, zones.mid_range_rate)
      WHEN 'perimeter' THEN IF(IS_NAN(zones.perimeter_rate), NULL, zones.perimeter_rate)
    END AS zone_rate,
    CASE zones.primary_scoring_zone
      WHEN 'paint' THEN defence.paint
      WHEN 'mid_range' THEN defence.mid_range
      WHEN 'perimeter' THEN defence.perimeter
    END AS defense_vs_league_avg,
    COALESCE(defence.paint, defence.mid_range, defence.perimeter) IS NOT NULL AS has_defense
  FROM `rows` AS player
  LEFT JOIN zones
  ON zones.player_lookup = player.player_lookup AND zones.analysis_date = player.game_date
  LEFT JOIN defence
  ON defence.team_abbr = player.opponent_team_abbr AND defence.analysis_date = player.game_date
),
measured AS (
  SELECT
    *,
    100
    + CASE WHEN back_to_back THEN -15 WHEN days_rest >= 3 THEN 5 ELSE 0 END
    + IF(games_in_last_7_days >= 4, -10, 0)
    + IF(minutes > 240, -10, 0)
    + IF(avg_minutes > 35, -8, 0)
    + CASE WHEN back_to_backs_last_14_days >= 2 THEN -12 WHEN back_to_backs_last_14_days = 1 THEN -5 ELSE 0 END
    + CASE WHEN player_age >= 35 THEN -10 WHEN player_age >= 30 THEN -5 ELSE 0 END
    AS freshness,
    defense_vs_league_avg * LEAST(zone_rate / 50, 1.0) AS weighted_defense,
    pace_differential / 2 AS half_pace,
    IF(avg_usage_rate = 0, 0.0, (projected_usage_rate - avg_usage_rate) * 0.3) AS spike,
    CASE WHEN star_teammates_out >= 2 THEN 1.30 WHEN star_teammates_out >= 1 THEN 1.15 ELSE 1.0 END AS boost
  FROM context
),
weighted AS (
  SELECT
    *,
    IF(ABS(weighted_defense) > 5, weighted_defense * 1.2, weighted_defense) AS extreme_defense,
    IF(spike > 0, spike * boost, spike) AS boosted_spike
  FROM measured
),
-- A product or a difference of infinite values can be a NaN.
bounded AS (
  SELECT
    *,
    LEAST(GREATEST(freshness, 0), 100) AS fatigue,
    IF(extreme_defense IS NULL OR IS_NAN(extreme_defense), 0.0, LEAST(GREATEST(extreme_defense, -10.0), 10.0))
    AS mismatch,
    IF(half_pace IS NULL, 0.0, LEAST(GREATEST(half_pace, -3.0), 3.0)) AS pace,
    IF(boosted_spike IS NULL OR IS_NAN(boosted_spike), 0.0, LEAST(GREATEST(boosted_spike, -3.0), 3.0)) AS spiked
  FROM weighted
),
summed AS (
  SELECT *, (fatigue - 100) / 20 + mismatch + pace + spiked AS total
  FROM bounded
),
-- Rounded as by round in Python: by the exact binary value, with ties to the even digit: 1.05 is a little more than
-- 1.05, so 1.1. ROUND rounds ties away from zero, and `x * 10` can be a tie where the exact product is none. Multiples
-- of x by powers of two are exact, and so is each step of (8 x - tie) + 2 x close to a tie. So its sign is that of the
-- exact 10 x - tie.
floors AS (
  SELECT
    *,
    FLOOR(mismatch * 10) AS mismatch_floor,
    FLOOR(pace * 10) AS pace_floor,
    FLOOR(spiked * 10) AS spiked_floor,
    FLOOR(total * 100) AS total_floor
  FROM summed
),
above_ties AS (
  SELECT
    *,
    (8 * mismatch - (mismatch_floor + 0.5)) + 2 * mismatch AS mismatch_above,
    (8 * pace - (pace_floor + 0.5)) + 2 * pace AS pace_above,
    (8 * spiked - (spiked_floor + 0.5)) + 2 * spiked AS spiked_above,
    ((64 * total - (total_floor + 0.5)) + 32 * total) + 4 * total AS total_above
  FROM floors
),
-- Integers, as these have no negative zero.
digits AS (
  SELECT
    *,
    CAST(mismatch_floor AS INT64)
    + IF(mismatch_above > 0 OR (mismatch_above = 0 AND MOD(CAST(mismatch_floor AS INT64), 2) != 0), 1, 0)
    AS mismatch_tenths,
    CAST(pace_floor AS INT64)
    + IF(pace_above > 0 OR (pace_above = 0 AND MOD(CAST(pace_floor AS INT64), 2) != 0), 1, 0)
    AS pace_tenths,
    CAST(spiked_floor AS INT64)
    + IF(spiked_above > 0 OR (spiked_above = 0 AND MOD(CAST(spiked_floor AS INT64), 2) != 0), 1, 0)
    AS spiked_tenths,
    CAST(total_floor AS INT64)
    + IF(total_above > 0 OR (total_above = 0 AND MOD(CAST(total_floor AS INT64), 2) != 0), 1, 0)
    AS total_hundredths
  FROM above_ties
),
-- Each number of the JSON texts in a row of its own.
numbers AS (
  SELECT
    player_lookup,
    game_date,
    name,
    CASE name
      WHEN 'minutes' THEN minutes
      WHEN 'avg_minutes' THEN avg_minutes
      WHEN 'zone_rate' THEN zone_rate
      WHEN 'defense' THEN defense_vs_league_avg
      WHEN 'pace' THEN pace_differential
      WHEN 'projected_usage' THEN projected_usage_rate
      WHEN 'avg_usage' THEN avg_usage_rate
    END AS number
  FROM context
  CROSS JOIN
    UNNEST(
      ['minutes', 'avg_minutes', 'zone_rate', 'defense', 'pace', 'projected_usage', 'avg_usage']
    ) AS name
),
-- To four decimals as NumPy rounds: the product in double precision, ties to even. From 2^52 on, doubles have no
-- fraction: to add 2^52 rounds ties to even. ATAN2 tells a negative zero, which has a sign in Python, from zero.
rounded_numbers AS (
  SELECT
    player_lookup,
    game_date,
    name,
    IF(ATAN2(number, -1) < 0, '-', '') AS sign,
    IF(
      ABS(number) * 10000 < 4503599627370496,
      (ABS(number) * 10000 + 4503599627370496) - 4503599627370496,
      ABS(number) * 10000
    ) AS ten_thousandths
  FROM numbers
  WHERE number IS NOT NULL
),
parts AS (
  SELECT
    *,
    CAST(IF(ten_thousandths < 1e15, ten_thousandths, NULL) AS INT64) AS whole_ten_thousandths,
    CAST(ten_thousandths / 10000 AS STRING) AS text_of_large
  FROM rounded_numbers
),
-- The text of a number as in Python: with a point, and as short as possible. It is put together from digits, as CAST
-- gives 12.0 in DuckDB and 12 in BigQuery. Only numbers from 1e11 on, where a double is less exact than four decimals
-- and 15 digits, are cast. Of these the texts can differ in BigQuery, which writes 1e+15 for 1000000000000000.0 and may
-- write 17 digits where 16 are enough. It refuses numbers beyond 1.7e304, as their products overflow.
number_texts AS (
  SELECT
    player_lookup,
    game_date,
    name,
    CONCAT(
      sign,
      CASE
        WHEN whole_ten_thousandths IS NOT NULL
          THEN CONCAT(
            CAST(DIV(whole_ten_thousandths, 10000) AS STRING),
            '.',
            CAST(DIV(MOD(whole_ten_thousandths, 10000), 1000) AS STRING),
            RTRIM(LPAD(CAST(MOD(whole_ten_thousandths, 1000) AS STRING), 3, '0'), '0')
          )
        WHEN REGEXP_CONTAINS(text_of_large, r'[.en]') THEN text_of_large
        ELSE CONCAT(text_of_large, '.0')
      END
    ) AS text
  FROM parts
),
texts AS (
  SELECT
    player_lookup,
    game_date,
    MAX(IF(name = 'minutes', text, NULL)) AS minutes,
    MAX(IF(name = 'avg_minutes', text, NULL)) AS avg_minutes,
    MAX(IF(name = 'zone_rate', text, NULL)) AS zone_rate,
    MAX(IF(name = 'defense', text, NULL)) AS defense,
    MAX(IF(name = 'pace', text, NULL)) AS pace,
    MAX(IF(name = 'projected_usage', text, NULL)) AS projected_usage,
    MAX(IF(name = 'avg_usage', text, NULL)) AS avg_usage
  FROM number_texts
  GROUP BY player_lookup, game_date
),
named AS (
  SELECT
    *,
    CONCAT(
      IF(days_rest IS NULL, ',days_rest', ''),
      IF(projected_usage_rate IS NULL, ',projected_usage_rate', ''),
      IF(pace_differential IS NULL, ',pace_differential', ''),
      IF(zone_rate IS NULL, ',shot_zones', ''),
      IF(has_defense, '', ',team_defense')
    ) AS missing,
    CONCAT(
      IF(fatigue < 50, ',high_fatigue', ''),
      IF(ABS(mismatch_tenths) > 80, ',extreme_shot_zone_mismatch', ''),
      IF(ABS(total_hundredths) > 1200, ',extreme_total_adjustment', '')
    ) AS warnings
  FROM digits
)
SELECT
  named.player_lookup,
  named.game_id,
  named.game_date,
  named.team_abbr,
  named.opponent_team_abbr,
  named.fatigue AS fatigue_score,
  named.mismatch_tenths / 10 AS shot_zone_mismatch_score,
  named.pace_tenths / 10 AS pace_score,
  named.spiked_tenths / 10 AS usage_spike_score,
  0.0 AS referee_favorability_score,
  0.0 AS look_ahead_pressure_score,
  0.0 AS travel_impact_score,
  0.0 AS opponent_strength_score,
  named.total_hundredths / 100 AS total_composite_adjustment,
  CONCAT(
    '{"days_rest": ', COALESCE(CAST(named.days_rest AS STRING), 'null'),
    ', "back_to_back": ', COALESCE(CAST(named.back_to_back AS STRING), 'null'),
    ', "games_in_last_7_days": ', COALESCE(CAST(named.games_in_last_7_days AS STRING), 'null'),
    ', "minutes_in_last_7_days": ', COALESCE(texts.minutes, 'null'),
    ', "avg_minutes_per_game_last_7": ', COALESCE(texts.avg_minutes, 'null'),
    ', "back_to_backs_last_14_days": ', COALESCE(CAST(named.back_to_backs_last_14_days AS STRING), 'null'),
    ', "player_age": ', COALESCE(CAST(named.player_age AS STRING), 'null'),
    '}'
  ) AS fatigue_context_json,
  CONCAT(
    '{"primary_scoring_zone": ', COALESCE(CONCAT('"', named.primary_scoring_zone, '"'), 'null'),
    ', "zone_rate": ', COALESCE(texts.zone_rate, 'null'),
    ', "defense_vs_league_avg": ', COALESCE(texts.defense, 'null'),
    '}'
  ) AS shot_zone_context_json,
  CONCAT('{"pace_differential": ', COALESCE(texts.pace, 'null'), '}') AS pace_context_json,
  CONCAT(
    '{"projected_usage_rate": ', COALESCE(texts.projected_usage, 'null'),
    ', "avg_usage_rate_last_7_games": ', COALESCE(texts.avg_usage, 'null'),
    ', "star_teammates_out": ', COALESCE(CAST(named.star_teammates_out AS STRING), 'null'),
    '}'
  ) AS usage_context_json,
  '1' AS calculation_version,
  named._source AS context_source,
  100.0 - 20 * (LENGTH(named.missing) - LENGTH(REPLACE(named.missing, ',', ''))) AS data_completeness_pct,
  NULLIF(SUBSTR(named.missing, 2), '') AS missing_data_fields,
  named.warnings != '' AS has_warnings,
  NULLIF(SUBSTR(named.warnings, 2), '') AS warning_details
FROM named
LEFT JOIN texts
ON texts.player_lookup = named.player_lookup AND texts.game_date = named.game_date
