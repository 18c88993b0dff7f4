"""Measure what a checked backfill costs beside the bare work, and write `benchmarks/results.json`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import report, seasons, trivial
from benchmarks.results import Measured, held_against, middle, show, write

TEN_YEARS = 3650


def _odd(rounds: int) -> int:
    if rounds % 2 == 0:
        raise typer.BadParameter("of an even number of rounds none is in the middle")
    return rounds


def main(
    dates: Annotated[str, typer.Option(help="Numbers of dates of the trivial work.")] = "365,3650,40000",
    per_task: Annotated[str, typer.Option(help="Dates a task.")] = "1,30",
    rounds: Annotated[
        int,
        typer.Option(
            min=1, callback=_odd, help=f"Rounds over up to {TEN_YEARS:,} dates of the trivial work: an odd number."
        ),
    ] = 5,
    with_seasons: Annotated[bool, typer.Option("--seasons/--no-seasons", help="The real job too.")] = True,
    keep: Annotated[bool, typer.Option(help="Write the results where they are kept.")] = True,
) -> None:
    """Each contestant does the same trivial work in the same run of this program, in turns."""
    console = Console(width=200)
    measured: list[Measured] = []

    def tell(*found: Measured) -> None:
        measured.extend(found)
        for one in found:
            console.print(one.record())

    with tempfile.TemporaryDirectory() as place:
        for count in (int(one) for one in dates.split(",")):
            turns = rounds if count <= TEN_YEARS else 1
            tell(*_measure_trivial(Path(place), count, per_task.split(","), turns, console))
        if with_seasons:
            _measure_seasons(Path(place), tell)
    show(measured, console)
    if keep:
        write(measured)
        report.main()


def _measure_trivial(
    place: Path, count: int, per_task: Sequence[str], turns: int, console: Console
) -> Iterator[Measured]:
    """The trivial work, of so many dates each and so many dates a task.

    How quick the machine is changes by the minute, so all take turns, each checked backfill is held against the bare
    chord of its own round, and of each contestant the round in the middle is told.
    """
    rounds: list[list[Measured]] = []
    others: list[Measured] = []
    for turn in range(1, turns + 1):
        chord = trivial.bare_chord(_fresh(place), count)
        rounds.append([trivial.plain_loop(_fresh(place), count), chord])
        for number in per_task:
            folder = _fresh(place)
            home = folder / "home"
            trivial.load(home, count)
            found, more = trivial.checked_backfill(folder, home, count, number)
            rounds[-1].append(held_against(found, chord))
            others += more
            if count == TEN_YEARS and turn == turns:
                others.append(trivial.plan(folder, home, count))
        console.print(f"{count:,} dates, round {turn} of {turns}:", *(f"{one.seconds:.2f}" for one in rounds[-1]), "s")
    yield from (middle(list(runs)) for runs in zip(*rounds, strict=True))
    yield from others


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
