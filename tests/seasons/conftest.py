"""The fixtures of these tests."""

from tests.lab import any_lab as any_lab
from tests.lab import bigquery_lab as bigquery_lab
from tests.lab import lab as lab
from tests.sql_twin import sql_factors as sql_factors
