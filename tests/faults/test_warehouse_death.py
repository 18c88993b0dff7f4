"""The warehouse is killed with -9 in the middle of a run and started again on the same data: nothing is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from gated_backfill.common.ledger import DateState
from gated_backfill.common.model.tables import TableName
from tests.emulator import Emulator
from tests.lab import EmulatedTables, Lab, made_lab, players, until

DAYS = [date(2023, 2, 1) + timedelta(days=n) for n in range(8)]
TARGET = "probe.probe"
RUN = ["run", "--job", "probe", "--dates", f"{DAYS[0]}..{DAYS[-1]}", "--window", "2"]


@pytest.fixture
def own_emulator(tmp_path: Path) -> Iterator[Emulator]:
    """An emulator that nobody else needs."""
    (tmp_path / "bigquery").mkdir()
    with Emulator(tmp_path / "bigquery", durable=True) as started:
        yield started


@pytest.fixture
def fragile_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_emulator: Emulator) -> Iterator[Lab]:
    yield from made_lab(tmp_path, monkeypatch, EmulatedTables(own_emulator), warehouse=own_emulator.url)


def done(lab: Lab, *states: DateState) -> int:
    runs = lab.ledger.runs.list_latest_runs(1)
    return lab.ledger.runs.get_progress(runs[0].id).count(*states) if runs else 0


def publications(emulator: Emulator) -> Counter[date]:
    """How often each date was published."""
    rows: Any = emulator.client().query("SELECT day FROM backfill.publications WHERE day IS NOT NULL").result()
    return Counter(row["day"] for row in rows)


def assert_whole(lab: Lab, emulator: Emulator) -> None:
    """Every date has all its rows, one publication and one checkpoint, and each checkpoint its rows."""
    assert {day: len(lab.published(TARGET, day, "day")) for day in DAYS} == dict.fromkeys(DAYS, 20)
    assert publications(emulator) == Counter(DAYS)
    checkpoints = lab.ledger.checkpoints.list_checkpoints("probe", DAYS[0], DAYS[-1])
    proven = {day: one.checksum for day, one in checkpoints.items()}
    assert lab.context.warehouse.matching_dates(TableName.parse(TARGET), "day", proven) == set(DAYS)


@pytest.mark.parametrize(
    ("state", "count"),
    [
        pytest.param(DateState.PROCESSING, 1, id="while-dates-are-read"),
        pytest.param(DateState.STAGED, 2, id="while-dates-are-staged"),
        pytest.param(DateState.PUBLISHED, 1, id="just-after-a-publication"),
    ],
)
def test_a_run_outlives_its_warehouse(fragile_lab: Lab, own_emulator: Emulator, state: DateState, count: int) -> None:
    fragile_lab.probe_all(DAYS, players(20))
    running = fragile_lab.start(*RUN)
    until(lambda: done(fragile_lab, state, DateState.CHECKPOINTED) >= count, f"{count} date(s) {state.value}")
    own_emulator.stop()
    own_emulator.start()

    out, err = running.communicate(timeout=120)

    assert running.returncode == 0, out + err
    assert_whole(fragile_lab, own_emulator)


def test_a_run_that_died_with_its_warehouse_is_completed_by_the_same_command(
    fragile_lab: Lab, own_emulator: Emulator
) -> None:
    fragile_lab.probe_all(DAYS, players(20))
    running = fragile_lab.start(*RUN)
    until(lambda: done(fragile_lab, DateState.CHECKPOINTED) >= 2, "the first checkpoints")
    own_emulator.stop()
    running.kill()
    running.communicate()
    own_emulator.start()

    again = fragile_lab.command(*RUN)

    assert again.returncode == 0, again.stdout + again.stderr
    assert_whole(fragile_lab, own_emulator)


@pytest.mark.parametrize("deaths", [3])
def test_a_warehouse_that_dies_again_and_again_delays_a_run_and_no_more(
    fragile_lab: Lab, own_emulator: Emulator, deaths: int
) -> None:
    fragile_lab.probe_all(DAYS, players(20))
    running = fragile_lab.start(*RUN)
    settled = (DateState.STAGED, DateState.PUBLISHED, DateState.CHECKPOINTED)
    for death in range(deaths):
        until(lambda least=death: done(fragile_lab, *settled) > 2 * least, "some progress")
        own_emulator.stop()
        own_emulator.start()

    out, err = running.communicate(timeout=300)

    assert running.returncode == 0, out + err
    assert_whole(fragile_lab, own_emulator)
