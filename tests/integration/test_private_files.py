"""Only their owner can read the home, the ledger, logs, saved plans and the quarantine, whatever the umask."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import pytest

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.ledger import open_ledger
from gated_backfill.common.process.private_files import is_open_to_others, make_private_folder
from gated_backfill.producer.doctor.machine import check_files
from gated_backfill.producer.doctor.results import CheckLevel
from tests.lab import Lab, players

FEB_23 = date(2023, 2, 23)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture(params=[0o000, 0o022, 0o002], ids=["everything", "usual", "groups"])
def permissive(request: pytest.FixtureRequest) -> Iterator[None]:
    with umask(request.param):
        yield


@pytest.fixture
def permissive_lab(permissive: None, lab: Lab) -> Lab:
    """A lab that was made with the umask."""
    return lab


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_a_run_leaves_is_for_its_owner_only(permissive_lab: Lab) -> None:
    lab, plan = permissive_lab, permissive_lab.home.parent / "plan.json"
    lab.probe("expected", FEB_23, players(10))
    lab.probe("first", FEB_23, players(1))
    run = ("run", "--job", "probe", "--dates", str(FEB_23), "--no-preflight", "--sequential")
    assert lab.inside("plan", "--job", "probe", "--dates", str(FEB_23), "--save", str(plan)).returncode == 3
    assert lab.inside(*run).returncode == 3

    beside_the_ledger = list(lab.home.glob("ledger.db*"))
    logs, refused = list((lab.home / "logs").iterdir()), list((lab.home / "staging" / "quarantine").rglob("*.parquet"))

    assert {"ledger.db", "ledger.db-wal", "ledger.db-shm"} <= {file.name for file in beside_the_ledger}
    assert logs
    assert refused
    for folder in (lab.home, lab.home / "logs", *refused[0].parents[:2]):
        assert mode(folder) == 0o700, folder
    for file in (*(file for file in beside_the_ledger if file.suffix != ".migrating"), *logs, *refused, plan):
        assert mode(file) == 0o600, file


@pytest.mark.usefixtures("permissive")
def test_a_ledger_elsewhere_is_for_its_owner_only_and_its_folder_stays(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir(mode=0o755)
    before = mode(folder)

    ledger = open_ledger(f"sqlite:///{folder}/ledger.db")

    assert ledger.runs.list_latest_runs(1) == []
    assert {mode(file) for file in folder.glob("ledger.db*") if file.suffix != ".migrating"} == {0o600}
    assert mode(folder) == before
    ledger.close()


def test_opening_a_ledger_again_changes_no_rights(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    open_ledger(f"sqlite:///{file}").close()
    file.chmod(0o640)

    open_ledger(f"sqlite:///{file}").close()

    assert mode(file) == 0o640


@pytest.mark.usefixtures("permissive")
def test_missing_parents_are_private_and_existing_ones_stay(tmp_path: Path) -> None:
    existing = tmp_path / "existing"
    existing.mkdir()
    before = mode(existing)

    make_private_folder(existing / "a" / "b")

    assert (mode(existing / "a"), mode(existing / "a" / "b"), mode(existing)) == (0o700, 0o700, before)


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that other users can enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_doctor_names_what_others_can_read(reachable: Path) -> None:
    home, elsewhere = reachable / "home", reachable / "ledger.db"
    settings = Settings(home=home, ledger=f"sqlite:///{elsewhere}", staging=str(reachable / "staging"))  # pyright: ignore
    assert check_files(settings).level is CheckLevel.OK
    quarantine = reachable / "staging" / "quarantine"
    for folder in (home, quarantine):
        folder.mkdir(parents=True)
        folder.chmod(0o755)
    elsewhere.touch()
    elsewhere.chmod(0o644)

    warned = check_files(settings)
    for place in (home, quarantine, elsewhere):
        place.chmod(mode(place) & 0o700)

    assert warned.level is CheckLevel.WARN
    assert warned.next_step == f"`chmod go= {home} {elsewhere} {quarantine}`"
    assert check_files(settings).level is CheckLevel.OK


def test_what_lies_in_a_closed_folder_is_not_open_to_others(reachable: Path) -> None:
    closed = reachable / "closed"
    closed.mkdir(mode=0o700)
    file = closed / "file"
    file.touch()
    file.chmod(0o644)

    assert not is_open_to_others(file)
    closed.chmod(0o711)
    assert is_open_to_others(file)
    assert not is_open_to_others(closed / "missing")
