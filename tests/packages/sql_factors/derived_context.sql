-- The context of each player on each of the days, from the summary of the 14 days before that day.
-- Rows of the day itself are never used, as they are to be predicted.
WITH subjects AS (
  SELECT player_lookup, game_date, game_id, team_abbr, opponent_team_abbr
  FROM history
  WHERE game_date IN UNNEST(@days)
),
earlier AS (
  SELECT
    subjects.player_lookup,
    subjects.game_date,
    DATE_DIFF(subjects.game_date, played.game_date, DAY) AS age,
    DATE_DIFF(played.game_date, LAG(played.game_date) OVER by_day, DAY) AS days_since_previous,
    COUNT(*) OVER (PARTITION BY subjects.player_lookup, subjects.game_date)
      - ROW_NUMBER() OVER by_day AS later_games,
    IF(IS_NAN(played.minutes_played), NULL, played.minutes_played) AS minutes,
    IF(IS_NAN(played.usage_rate), NULL, played.usage_rate) AS usage_rate
  FROM subjects
  JOIN history AS played
  ON
    played.player_lookup = subjects.player_lookup
    AND played.game_date BETWEEN DATE_SUB(subjects.game_date, INTERVAL 14 DAY)
    AND DATE_SUB(subjects.game_date, INTERVAL 1 DAY)
  WINDOW by_day AS (
    PARTITION BY subjects.player_lookup, subjects.game_date
    ORDER BY played.game_date, played.game_id
  )
),
-- The minutes of the last 7 days and the usage of the last 7 games, each with its multiple of 2^-20 below. Sums of
-- these multiples and of the small rests are exact, so that no sum depends on the order in which rows are added.
recent AS (
  SELECT
    player_lookup,
    game_date,
    age,
    days_since_previous,
    IF(age <= 7, minutes, NULL) AS minutes,
    IF(age <= 7, FLOOR(minutes * 1048576) / 1048576, NULL) AS minutes_below,
    IF(later_games < 7, usage_rate, NULL) AS usage_rate,
    IF(later_games < 7, FLOOR(usage_rate * 1048576) / 1048576, NULL) AS usage_rate_below
  FROM earlier
),
summed AS (
  SELECT
    player_lookup,
    game_date,
    MIN(age) - 1 AS days_rest,
    COUNTIF(age <= 7) AS games,
    COUNTIF(days_since_previous = 1) AS back_to_backs,
    SUM(minutes_below) + SUM(minutes - minutes_below) AS minutes,
    (SUM(usage_rate_below) + SUM(usage_rate - usage_rate_below)) / NULLIF(COUNT(usage_rate), 0) AS usage_rate
  FROM recent
  GROUP BY player_lookup, game_date
)
SELECT
  subjects.player_lookup,
  subjects.game_date,
  subjects.game_id,
  subjects.team_abbr,
  subjects.opponent_team_abbr,
  summed.days_rest,
  summed.days_rest = 0 AS back_to_back,
  COALESCE(summed.games, 0) AS games_in_last_7_days,
  COALESCE(summed.minutes, 0.0) AS minutes_in_last_7_days,
  summed.minutes / NULLIF(summed.games, 0) AS avg_minutes_per_game_last_7,
  COALESCE(summed.back_to_backs, 0) AS back_to_backs_last_14_days,
  summed.usage_rate AS avg_usage_rate_last_7_games,
  CAST(NULL AS FLOAT64) AS projected_usage_rate,
  CAST(NULL AS FLOAT64) AS pace_differential,
  CAST(NULL AS INT64) AS player_age,
  0 AS star_teammates_out
FROM subjects
LEFT JOIN summed
ON summed.player_lookup = subjects.player_lookup AND summed.game_date = subjects.game_date
