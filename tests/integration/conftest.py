"""The fixtures of these tests."""

import pytest

from gated_backfill.common.ledger import Ledger, Run
from tests.brokers import broker as broker
from tests.builders import queued_run
from tests.lab import any_lab as any_lab
from tests.lab import bigquery_lab as bigquery_lab
from tests.lab import lab as lab
from tests.rest_lab import double as double
from tests.rest_lab import rest_warehouse as rest_warehouse
from tests.rest_tables import filled as filled
from tests.rest_tables import rest_lab as rest_lab


@pytest.fixture
def run(ledger: Ledger) -> Run:
    """A running run with three queued dates in one window."""
    return queued_run(ledger)
