"""The shipped example job beside its twin in SQL, which must publish the same rows to the last digit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date, timedelta

import pandas as pd
import pyarrow as pa
import pytest

from benchmarks.seasons import YEAR
from gated_backfill.common.ledger import RunState
from gated_backfill.common.model.arrow.types import arrow_schema
from gated_backfill.common.model.dates import DateRange
from gated_backfill.common.model.tables import ColumnTypes, TableName
from gated_backfill.producer.demo.season import FIRST_DATE, LAST_DATE, date_column_of, make_season
from gated_backfill.producer.planning.plan import Reprocess
from gated_backfill.worker.jobs.player_composite_factors import LOOKBACK_DAYS
from tests.lab import PACKAGES, PLAYER_TYPES, SCHEDULE, SUMMARY, Lab

PYTHON, SQL = "player_composite_factors", "player_composite_factors_sql"


@pytest.fixture
def sql_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin is installed."""
    monkeypatch.syspath_prepend(str(PACKAGES / "sql_factors"))


def season_days(back: int) -> list[date]:
    """All days of the season that was played so many years before the demo's."""
    return [day - back * YEAR for day in DateRange(start=FIRST_DATE, through=LAST_DATE).days()]


def check_equal(
    lab: Lab, days: Sequence[date], published: int, *, window: int | None = None, dates_per_task: int | None = None
) -> None:
    """Both jobs build the days, by default in one task, and publish the same partitions, byte by byte."""
    for job in (PYTHON, SQL):
        progress = lab.run(
            days, job, window=window or len(days), dates_per_task=dates_per_task or len(days), reprocess=Reprocess.ALL
        )
        assert progress.run.state is RunState.SUCCEEDED
    in_python, in_sql = (lab.table_bytes(f"nba_precompute.{job}") for job in (PYTHON, SQL))
    assert len(in_python) == published
    assert [day for day, rows in in_python.items() if in_sql.get(day) != rows] == []
    assert in_sql.keys() == in_python.keys()


def load_season(lab: Lab, days: Iterable[date], without: Mapping[str, Collection[date]]) -> None:
    """The demo's season on these days, of the summary on the days before as well, but of each table without some."""
    chosen = {*days}
    before = {day - timedelta(days=n) for day in chosen for n in range(1, LOOKBACK_DAYS + 1)}
    for name, frame in make_season().items():
        kept_days = {*chosen, *(before if name == SUMMARY else ())} - {*without.get(name, ())}
        load_rows(lab, name, frame.loc[frame[date_column_of(frame)].isin(kept_days)])


def load_rows(lab: Lab, name: str, frame: pd.DataFrame) -> None:
    """Load rows of a table of the season, with the columns that the job declares."""
    date_column = date_column_of(frame)
    types: ColumnTypes = PLAYER_TYPES.get(name, SCHEDULE) | {date_column: "DATE"}
    rows = pa.Table.from_pandas(frame[list(types)], schema=arrow_schema(types), preserve_index=False)
    lab.context.warehouse.load(TableName.parse(name), date_column, rows)
