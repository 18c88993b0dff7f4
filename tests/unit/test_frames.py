"""The rows to process, when a date is built from two sources."""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa
import pytest

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.model.entities import EntityColumns
from gated_backfill.common.model.tables import ColumnType
from gated_backfill.worker.dates.frames import fill_entities, frame_entities, rename_entity_columns, to_frame
from tests.builders import FEB_23, FEB_24

BY_DAY = EntityColumns(date="day", entity=("name",))
BY_TIME = EntityColumns(date="seen_at", entity=("player",), time_zone="America/New_York")


@pytest.mark.parametrize("own_day", [FEB_23, FEB_24])
def test_rows_that_fill_another_source_have_its_days_also_where_it_has_no_rows(own_day: object) -> None:
    """FEB_24: the source has only a row that is replaced."""
    own = pa.table({"day": pa.array([own_day], pa.date32()), "name": ["ann" if own_day == FEB_24 else "bob"]})
    night = datetime(2023, 2, 25, 3, tzinfo=UTC)  # the evening of FEB_24 in New York
    fill = pa.table({"seen_at": pa.array([night], pa.timestamp("us", tz="UTC")), "player": ["ann"]})
    renamed = rename_entity_columns(to_frame(fill), BY_TIME, BY_DAY)
    rows = fill_entities(to_frame(own), BY_DAY, renamed, BY_TIME.time_zone, {(FEB_24, "ann")}, ["STRING"])
    read = frame_entities(rows, BY_DAY).sort_by("day").to_pylist()
    assert read == [{"day": FEB_23, "entity": "bob"}] * (own_day == FEB_23) + [{"day": FEB_24, "entity": "ann"}]


@pytest.mark.parametrize(("text", "kind"), [("0", "BOOL"), ("007", "INT64"), ("2.0", "FLOAT64")])
def test_an_entity_that_would_change_in_the_type_of_the_target_is_refused(text: str, kind: ColumnType) -> None:
    own = to_frame(pa.table({"day": pa.array([FEB_23], pa.date32()), "name": [text]}))
    fill = to_frame(pa.table({"day": pa.array([FEB_24], pa.date32()), "name": pa.array([1], pa.int64())}))
    with pytest.raises(SchemaMismatch, match=f"column name can't be filled in as {kind}: '{text}' would change"):
        fill_entities(own, BY_DAY, fill, None, {(FEB_24, "1")}, [kind])
