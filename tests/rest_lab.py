"""A BigQuery warehouse on the double of its REST interface, and a table for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from gated_backfill.common.model.publication import PublishResult, StagedFile, WarehouseLimits
from gated_backfill.common.warehouse.bigquery.address import BigQueryAddress
from gated_backfill.common.warehouse.bigquery.warehouse import BigQueryWarehouse
from gated_backfill.common.warehouse.protocol import ABSENT
from tests import rest_rules as rules
from tests.builders import TABLE, publication_of
from tests.rest_double import RestDouble
from tests.rest_service import PROJECT, Rows

URL = f"bigquery://{PROJECT}?location=US"
TYPES: Mapping[str, Any] = {"player": "STRING", "day": "DATE", "score": "FLOAT64"}
RESULT_TYPES: Mapping[str, str] = {
    **TYPES,
    "__day": "DATE",
    **dict.fromkeys(("n", "expected", "null_rows", "present0", "row_count", "__row_count"), "INT64"),
    "c0000": "STRING",  # the entity of staged rows
    **dict.fromkeys(("entity", "before", "published", "run", "work", "kept"), "STRING"),
    "published_at": "TIMESTAMP",
}


def nobody(sql: str, params: Mapping[str, Any]) -> Rows:
    """No rows, in the columns that the query asks for."""
    selected = rules.statements(sql)[0].named_selects
    return {name: RESULT_TYPES[name] for name in (TYPES if selected == ["*"] else selected)}, []


@pytest.fixture
def double() -> RestDouble:
    """A project in which nothing is yet, and in which queries find no rows."""
    return RestDouble(answer=nobody)


@pytest.fixture
def rest_warehouse(double: RestDouble) -> BigQueryWarehouse:
    return opened(double)


def opened(double: RestDouble, **limits: Any) -> BigQueryWarehouse:
    """As another process opens it."""
    return BigQueryWarehouse(BigQueryAddress.parse(URL), WarehouseLimits(**limits), http=double)


def publish(
    warehouse: BigQueryWarehouse, files: Sequence[StagedFile], *, publication: str = "run-1/0", before: str = ABSENT
) -> PublishResult:
    since = {file.day: before for file in files}
    return warehouse.publish(
        TABLE, "day", files, fingerprints_when_staged=since, publication=publication_of(publication)
    )
