"""Measure the cost of a checked backfill compared with the bare work, and write `benchmarks/results.json`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click
from rich.console import Console  # noqa: TID251 - it prints only our own figures

from benchmarks import report, seasons, trivial
from benchmarks.results import Measured, compared_with, machine, median, write

TEN_YEARS = 3650


def _check_odd(context: click.Context, parameter: click.Parameter, rounds: int) -> int:
    if rounds % 2 == 0:
        raise click.BadParameter("an even number of rounds has no median")
    return rounds


@click.command(context_settings={"show_default": True})
@click.option("--dates", default="365,3650,40000", help="Numbers of dates of the trivial work.")
@click.option("--per-task", default="1,30", help="Dates per task.")
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=5,
    callback=_check_odd,
    help=f"Rounds of the trivial work, up to {TEN_YEARS:,} dates: an odd number.",
)
@click.option("--seasons/--no-seasons", "with_seasons", default=True, help="Measure the example job.")
@click.option("--keep/--no-keep", default=True, help="Write results.json and the document.")
def main(dates: str, per_task: str, rounds: int, with_seasons: bool, keep: bool) -> None:
    """Let the contestants take turns with the same trivial work."""
    console = Console(width=200)
    measured: list[Measured] = []

    def report_results(*results: Measured) -> None:
        measured.extend(results)
        for result in results:
            console.print(result.record())

    with tempfile.TemporaryDirectory() as place:
        for count in map(int, dates.split(",")):
            turns = rounds if count <= TEN_YEARS else 1
            report_results(*_measure_trivial(Path(place), count, per_task.split(","), turns, console))
        if with_seasons:
            _measure_seasons(Path(place), report_results)
    console.print(report.report([result.record() for result in measured], machine()), markup=False)
    if keep:
        write(measured)
        report.main()


def _measure_trivial(
    place: Path, count: int, per_task: Sequence[str], turns: int, console: Console
) -> Iterator[Measured]:
    """Measure the trivial work with `count` dates, for each number of dates per task.

    The machine's speed changes by the minute. So the contestants take turns, each checked backfill is compared with the
    bare chord of its round, and the median round of each contestant is reported.
    """
    rounds: list[list[Measured]] = []
    side_results: list[Measured] = []
    for turn in range(1, turns + 1):
        chord = trivial.bare_chord(_fresh(place), count)
        rounds.append([trivial.plain_loop(_fresh(place), count), chord])
        for number in per_task:
            folder = _fresh(place)
            home = folder / "home"
            trivial.load(home, count)
            result, more = trivial.checked_backfill(folder, home, count, number)
            rounds[-1].append(compared_with(result, chord))
            side_results += more
            if count == TEN_YEARS and turn == turns:
                side_results.append(trivial.plan(folder, home, count))
        seconds = [f"{result.seconds:.2f}" for result in rounds[-1]]
        console.print(f"{count:,} dates, round {turn} of {turns}:", *seconds, "s")
    yield from (median(list(results)) for results in zip(*rounds, strict=True))
    yield from side_results


def _measure_seasons(place: Path, report_results: Callable[..., None]) -> None:
    """Measure the example job."""
    folder = _fresh(place)
    home = folder / "home"
    played = seasons.load(home)
    reference = seasons.vectorised(folder, home, played)
    report_results(reference, seasons.backfill(folder, home, played, reference))


def _fresh(place: Path) -> Path:
    """Make a folder that is kept until the end, because ext4 is slow after thousands of deletions."""
    return Path(tempfile.mkdtemp(dir=place))


if __name__ == "__main__":
    main()
