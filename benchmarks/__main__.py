"""Measure what a checked backfill costs beside the bare work, and write `benchmarks/results.json`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import report, seasons, trivial
from benchmarks.results import Measured, show, write

TEN_YEARS = 3650


def main(
    dates: Annotated[str, typer.Option(help="Numbers of dates of the trivial work.")] = "365,3650,40000",
    per_task: Annotated[str, typer.Option(help="Dates a task.")] = "1,30",
    with_seasons: Annotated[bool, typer.Option("--seasons/--no-seasons", help="The real job too.")] = True,
    keep: Annotated[bool, typer.Option(help="Write the results where they are kept.")] = True,
) -> None:
    """Each contestant does the same trivial work in the same run of this program, one after the other."""
    console = Console(width=200)
    measured: list[Measured] = []

    def tell(*found: Measured) -> None:
        measured.extend(found)
        for one in found:
            console.print(one.record())

    for count in map(int, dates.split(",")):
        chord = _fresh(lambda folder, count=count: trivial.bare_chord(folder, count))
        tell(_fresh(lambda folder, count=count: trivial.plain_loop(folder, count)), chord)
        for number in per_task.split(","):
            with tempfile.TemporaryDirectory() as place:
                folder, home = Path(place), Path(place) / "home"
                trivial.load(home, count)
                found, others = trivial.checked_backfill(folder, home, count, number)
                tell(trivial.held_against(found, chord), *others)
                if count == TEN_YEARS:
                    tell(trivial.plan(folder, home, count))
    if with_seasons:
        with tempfile.TemporaryDirectory() as place:
            folder, home = Path(place), Path(place) / "home"
            played = seasons.load(home)
            reference = seasons.vectorised(folder, home, played)
            tell(reference, seasons.backfill(folder, home, played, reference))
    show(measured, console)
    if keep:
        write(measured)
        report.main()


def _fresh(measure: Callable[[Path], Measured]) -> Measured:
    with tempfile.TemporaryDirectory() as place:
        return measure(Path(place))


if __name__ == "__main__":
    typer.run(main)
