"""Reads that are asked for by one job: each gets its own rows, or its own error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from gated_backfill.common.warehouse.bigquery.merged_reads import ErrorKind, MergedReads


class OneDatabase:
    """Runs the queries in DuckDB, and keeps a list of them."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.transient: Exception | None = None
        self.reads = MergedReads(self._run, self._classify)

    def _run(self, sql: str, params: Mapping[str, Any]) -> pa.Table:
        self.asked.append(sql)
        if self.transient is not None:
            raise self.transient
        with duckdb.connect() as connection:
            return connection.sql(sql.replace("@", "$").replace("`", '"'), params=dict(params)).to_arrow_table()

    def _classify(self, exc: Exception) -> ErrorKind:
        if exc is self.transient:
            return ErrorKind.TRANSIENT
        return ErrorKind.OF_QUERY if isinstance(exc, duckdb.Error) else ErrorKind.OTHER

    def number(self, sql: str, **params: Any) -> Any:
        (row,) = self.reads.query(sql, params).to_pylist()
        return row["n"]


@pytest.fixture
def database() -> OneDatabase:
    return OneDatabase()


def test_reads_share_a_job_and_get_their_own_rows(database: OneDatabase) -> None:
    numbers = database.reads.run(
        [
            lambda: database.number("SELECT @n + 1 AS n", n=1),
            lambda: database.number("SELECT @n AS n, 'a @b' AS text, 2 AS `q0`", n=5),
            lambda: database.reads.query("SELECT 1 AS n WHERE @n IS NULL", {"n": 3}).num_rows,
            lambda: "nothing asked for",
        ]
    )
    assert numbers == [2, 5, 0, "nothing asked for"]
    assert len(database.asked) == 1


def test_each_further_query_in_a_row_takes_a_further_job(database: OneDatabase) -> None:
    def in_a_row() -> Any:
        first = database.number("SELECT 1 AS n")
        return database.number("SELECT @n + 10 AS n", n=first)

    assert database.reads.run([in_a_row, in_a_row, lambda: database.number("SELECT 7 AS n")]) == [11, 11, 7]
    assert len(database.asked) == 2


def test_reads_within_reads_are_asked_for_with_the_others(database: OneDatabase) -> None:
    def nested() -> list[Any]:
        return database.reads.run([lambda: database.number("SELECT 1 AS n"), lambda: database.number("SELECT 2 AS n")])

    assert database.reads.run([nested, lambda: database.number("SELECT 3 AS n")]) == [[1, 2], 3]
    assert len(database.asked) == 1
    assert database.number("SELECT 4 AS n") == 4  # a query of its own afterwards
    assert len(database.asked) == 2


def test_an_error_is_raised_by_the_read_that_it_is_of(database: OneDatabase) -> None:
    def failing() -> Any:
        with pytest.raises(duckdb.Error, match="nowhere"):
            database.number("SELECT n FROM nowhere")
        return "failed"

    assert database.reads.run([lambda: database.number("SELECT 1 AS n"), failing]) == [1, "failed"]
    assert len(database.asked) == 3  # together, and each alone


def test_a_transient_error_is_raised_at_once(database: OneDatabase) -> None:
    database.transient = duckdb.IOException("busy")
    with pytest.raises(duckdb.IOException, match="busy"):
        database.reads.run([lambda: database.number("SELECT 1 AS n"), lambda: database.number("SELECT 2 AS n")])
    assert len(database.asked) == 1


def test_an_error_of_no_query_is_raised_as_it_is(database: OneDatabase) -> None:
    def stop(sql: str, params: Mapping[str, Any]) -> pa.Table:
        raise TimeoutError("the time limit of this process")

    database.reads = MergedReads(stop, database._classify)
    with pytest.raises(TimeoutError):
        database.reads.run([lambda: database.number("SELECT 1 AS n"), lambda: database.number("SELECT 2 AS n")])


def test_more_queries_than_a_job_has_room_for_take_several(database: OneDatabase) -> None:
    reads = [lambda n=n: database.number("SELECT @n AS n, @m AS m", n=n, m=str(n)) for n in range(45)]
    assert database.reads.run(reads) == list(range(45))
    assert len(database.asked) == 3
