"""Models of dbt projects as jobs."""
