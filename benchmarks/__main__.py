"""Measure the cost of a checked backfill compared with the bare work, and write `benchmarks/results.json`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console  # noqa: TID251 - it prints only our own figures

from benchmarks import report, results, sales, seasons, servers, trivial
from benchmarks.backfills import Servers
from benchmarks.folders import fresh_folder
from benchmarks.results import Measured, Report

MEMORY_MB = "400"  #: of one query, as `BACKFILL_QUERY_MEMORY_MB` is by default


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is measured, and how often."""

    place: Path
    dates: Sequence[int]
    per_task: Sequence[str]
    rounds: int
    servers: Servers
    report: Report


def _trivial(request: Request) -> Iterable[Measured]:
    for count in request.dates:
        rounds = request.rounds if count <= trivial.TEN_YEARS else 1
        yield from trivial.measure(request.place, count, request.per_task, rounds, request.report)


def _seasons(request: Request) -> Iterable[Measured]:
    return seasons.measure(fresh_folder(request.place))


def _sql(request: Request) -> Iterable[Measured]:
    for dates, rows in ((365, 200), (10, 1_000_000)):
        yield from sales.measure_sql(request.place, dates, rows, request.rounds, request.report)


def _memory(request: Request) -> Iterable[Measured]:
    limit = {"BACKFILL_QUERY_MEMORY_MB": MEMORY_MB}
    for name, dates, rows in ((sales.SQL_JOB, 10, 10_000_000), (sales.PYTHON_JOB, 4, 2_000_000)):
        measured = sales.measure_memory(request.place, name, dates, rows, limit)
        request.report(f"{dates:,} dates of {rows:,} rows", [measured])
        yield measured


def _servers(request: Request) -> Iterable[Measured]:
    for count in request.dates:
        if count <= trivial.TEN_YEARS:
            yield from servers.measure(
                request.place, count, request.per_task, request.rounds, request.servers, request.report
            )


SUITES: dict[str, Callable[[Request], Iterable[Measured]]] = {
    "trivial": _trivial,
    "servers": _servers,
    "seasons": _seasons,
    "sql": _sql,
    "memory": _memory,
}


def _check_odd(context: click.Context, parameter: click.Parameter, rounds: int) -> int:
    if rounds % 2 == 0:
        raise click.BadParameter("an even number of rounds has no median")
    return rounds


def _parse_counts(context: click.Context, parameter: click.Parameter, text: str) -> list[int]:
    try:
        return [int(count) for count in text.split(",")]
    except ValueError as exc:
        raise click.BadParameter(f"{text!r} is not a list of numbers, such as 365,3650") from exc


@click.command(context_settings={"show_default": True})
@click.argument("suites", nargs=-1, type=click.Choice(list(SUITES)))
@click.option("--dates", default="365,3650,40000", callback=_parse_counts, help="Numbers of dates of the trivial work.")
@click.option("--per-task", default="1,30", help="Dates per task of the trivial work.")
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=5,
    callback=_check_odd,
    help=f"Rounds, an odd number. More than {trivial.TEN_YEARS:,} dates have one.",
)
@click.option(
    "--broker",
    envvar="BACKFILL_BROKER",
    help="URL of a Redis of your own for `servers`: an empty database, which is emptied after each measurement.",
)
@click.option(
    "--ledger",
    envvar="BACKFILL_LEDGER",
    help="URL of a PostgreSQL of your own for `servers`: each measurement creates a database there, and drops it.",
)
@click.option("--keep/--no-keep", default=True, help="Write results.json and the document.")
def main(
    suites: Sequence[str],
    dates: Sequence[int],
    per_task: str,
    rounds: int,
    broker: str | None,
    ledger: str | None,
    keep: bool,
) -> None:
    """Run measurements, by default all, whose contestants take turns.

    \b
    trivial   the trivial work by a plain loop, a bare chord and a checked backfill
    servers   bare chord and checked backfill with PostgreSQL and Redis; without URLs, servers are started
    seasons   the example job over ten seasons, beside one process
    sql       a SQL job beside the same statement by hand
    memory    peak memory of runs with millions of rows a date
    """
    console = Console(width=200)
    for name in [name for name in os.environ if name.startswith("BACKFILL_")]:
        del os.environ[name]  # embedded runs have no settings of the user

    def show(what: str, measured: Sequence[Measured]) -> None:
        console.print(f"{what}:", *(f"{result.seconds:.2f}" for result in measured), "s")

    for suite in suites or SUITES:
        with tempfile.TemporaryDirectory() as place:
            request = Request(
                place=Path(place),
                dates=dates,
                per_task=per_task.split(","),
                rounds=rounds,
                servers=Servers(broker=broker, ledger=ledger),
                report=show,
            )
            measured = list(SUITES[suite](request))
        result = results.of_suite(measured)
        console.print(report.report({suite: result}), markup=False)
        if keep:
            results.write(suite, result)
            report.main()


if __name__ == "__main__":
    main()
