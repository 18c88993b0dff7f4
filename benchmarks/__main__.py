"""Measure what a checked backfill costs beside the bare work, and write `benchmarks/results.json`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
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

    with tempfile.TemporaryDirectory() as place:
        _measure_trivial(Path(place), [int(one) for one in dates.split(",")], per_task.split(","), tell)
        if with_seasons:
            _measure_seasons(Path(place), tell)
    show(measured, console)
    if keep:
        write(measured)
        report.main()


def _measure_trivial(place: Path, counts: Sequence[int], per_task: Sequence[str], tell: Callable[..., None]) -> None:
    """The trivial work, of so many dates each and so many dates a task."""
    for count in counts:
        chord = trivial.bare_chord(_fresh(place), count)
        tell(trivial.plain_loop(_fresh(place), count), chord)
        for number in per_task:
            folder = _fresh(place)
            home = folder / "home"
            trivial.load(home, count)
            found, others = trivial.checked_backfill(folder, home, count, number)
            tell(trivial.held_against(found, chord), *others)
            if count == TEN_YEARS:
                tell(trivial.plan(folder, home, count))


def _measure_seasons(place: Path, tell: Callable[..., None]) -> None:
    """The real job."""
    folder = _fresh(place)
    home = folder / "home"
    played = seasons.load(home)
    reference = seasons.vectorised(folder, home, played)
    tell(reference, seasons.backfill(folder, home, played, reference))


def _fresh(place: Path) -> Path:
    """A folder that stays to the end: where thousands of files were just deleted, ext4 is slow to make others."""
    return Path(tempfile.mkdtemp(dir=place))


if __name__ == "__main__":
    typer.run(main)
