-- Revenue of each store in the currency of the books.
WITH sold AS (
  SELECT store, day, SUM(amount) AS amount, COUNT(*) AS sales, MIN(_source) AS source
  FROM rows
  WHERE day BETWEEN @first_day AND @last_day
  GROUP BY store, day
)
SELECT
  sold.store,
  sold.day,
  sold.amount * COALESCE(rates.rate, 1.0) AS revenue,
  sold.sales,
  sold.source,
  notes.note
FROM sold
LEFT JOIN rates ON rates.day = sold.day
LEFT JOIN notes ON notes.day = sold.day AND notes.store = sold.store
