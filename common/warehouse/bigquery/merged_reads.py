"""Reads that do not depend on each other: BigQuery is asked by one job for the rows of all of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import structlog

log = structlog.get_logger()

MAX_MERGED = 20  #: queries in one job
#: A parameter, outside quotation marks.
PARAMETER = re.compile(r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|`[^`]*`|@@\w+)|@(\w+)""", re.DOTALL)

Rows = pa.Table | Exception  #: of a query, or how it failed
RunQuery = Callable[[str, Mapping[str, Any]], pa.Table]


class ErrorKind(Enum):
    """What an error of a query says."""

    OF_QUERY = "of the query"  #: run again, it fails again
    TRANSIENT = "transient"
    OTHER = "other"  #: not of BigQuery, such as a time limit of this process


@dataclass(frozen=True)
class PreparedQuery:
    """A query that only reads, with its parameters."""

    sql: str
    params: Mapping[str, Any] = field(hash=False)

    @property
    def key(self) -> tuple[str, str]:
        return self.sql, repr(sorted(self.params.items()))


class RowsNeeded(BaseException):
    """A read cannot go on without the rows of these queries."""

    def __init__(self, queries: Sequence[PreparedQuery]) -> None:
        self.queries = queries


class MergedReads:
    """Runs reads together: each as far as it comes, then the queries that they all need as one job, and again.

    A read is a function that only reads, and gives the same result each time. It is called again with the rows that it
    asked for, so it runs once more than it has queries in a row.
    """

    def __init__(self, run_query: RunQuery, classify: Callable[[Exception], ErrorKind]) -> None:
        self._run_query = run_query
        self._classify = classify
        self._rows: ContextVar[dict[tuple[str, str], Rows] | None] = ContextVar("rows_of_merged_reads", default=None)

    def run(self, reads: Sequence[Callable[[], Any]]) -> list[Any]:
        """Return the results of the reads, in order. Raises what the first one that fails raises."""
        if self._rows.get() is not None:  # within another call, which asks for the rows that these need, too
            return _call_all(reads)
        with self._collecting() as rows:
            while True:
                try:
                    return _call_all(reads)
                except RowsNeeded as needed:
                    self._fetch({query.key: query for query in needed.queries}, rows)

    def query(self, sql: str, params: Mapping[str, Any]) -> pa.Table:
        """Return the rows of the query. Raises `RowsNeeded` within `run` if they are not there yet."""
        rows = self._rows.get()
        query = PreparedQuery(sql, params)
        if rows is None:
            return self._run_query(sql, params)
        if query.key not in rows:
            raise RowsNeeded([query])
        found = rows[query.key]
        if isinstance(found, Exception):
            raise found
        return found

    @contextmanager
    def _collecting(self) -> Generator[dict[tuple[str, str], Rows]]:
        rows: dict[tuple[str, str], Rows] = {}
        token = self._rows.set(rows)
        try:
            yield rows
        finally:
            self._rows.reset(token)

    def _fetch(self, needed: Mapping[tuple[str, str], PreparedQuery], rows: dict[tuple[str, str], Rows]) -> None:
        keys = list(needed)
        for begin in range(0, len(keys), MAX_MERGED):
            batch = keys[begin : begin + MAX_MERGED]
            rows |= dict(zip(batch, self._run_together([needed[key] for key in batch]), strict=True))

    def _run_together(self, queries: Sequence[PreparedQuery]) -> list[Rows]:
        """Run the queries as one job. If it fails for good, run each alone, so that the error is of the right one."""
        if len(queries) == 1:
            return [self._run(queries[0].sql, queries[0].params)]
        merged = self._run(*_merge(queries))
        if isinstance(merged, pa.Table):
            return list(_split(merged, len(queries)))
        if self._classify(merged) is ErrorKind.TRANSIENT:
            return [merged] * len(queries)
        log.info("merged_queries_failed", queries=len(queries), error=str(merged).split("\n")[0][:300])
        return [self._run(query.sql, query.params) for query in queries]

    def _run(self, sql: str, params: Mapping[str, Any]) -> Rows:
        """The rows, or the error, which is raised where the rows are asked for."""
        try:
            return self._run_query(sql, params)
        except Exception as exc:
            if self._classify(exc) is ErrorKind.OTHER:
                raise
            return exc


def _call_all(reads: Sequence[Callable[[], Any]]) -> list[Any]:
    results: list[Any] = []
    needed: list[PreparedQuery] = []
    for read in reads:
        try:
            results.append(read())
        except RowsNeeded as exc:
            needed += exc.queries
    if needed:
        raise RowsNeeded(needed)
    return results


def _merge(queries: Sequence[PreparedQuery]) -> tuple[str, dict[str, Any]]:
    """One query with the rows of all: the number of the query, and a column for each with its row, else null."""
    selects: list[str] = []
    params: dict[str, Any] = {}
    for number, query in enumerate(queries):
        columns = [f"q{number} AS q{n}" if n == number else f"NULL AS q{n}" for n in range(len(queries))]
        rows = f"({_renamed(query.sql, number)}) AS q{number}"
        selects.append(f"SELECT {number} AS part, {', '.join(columns)} FROM {rows}")  # noqa: S608 - prepared queries
        params |= {f"q{number}_{name}": value for name, value in query.params.items()}
    return "\nUNION ALL\n".join(selects), params


def _renamed(sql: str, number: int) -> str:
    """The query, whose parameters have names of their own."""
    return PARAMETER.sub(lambda found: found[1] or f"@q{number}_{found[2]}", sql)


def _split(merged: pa.Table, count: int) -> Generator[pa.Table]:
    """The rows of each query."""
    for number in range(count):
        of_query: Any = merged.filter(pc.equal(merged["part"], pa.scalar(number)))[f"q{number}"]
        yield pa.Table.from_struct_array(of_query)
