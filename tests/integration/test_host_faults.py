"""What a process does with a date or a window when its host cannot work, and what it does when the host is sound."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest

from gated_backfill.common.errors import WrongStaging
from gated_backfill.common.ledger import DateState, RunState, WindowState
from gated_backfill.common.model.host_fault import FaultKind
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.storage.staging import MARK, Staging
from gated_backfill.worker.dates.outcomes import RetryLater
from gated_backfill.worker.dates.process import process_dates
from gated_backfill.worker.gate.gate import GateOutcome, close_window
from gated_backfill.worker.host.checks import HostFaulty
from tests.lab import Lab, players

DAYS = [date(2023, 2, 20) + timedelta(days=n) for n in range(3)]


@contextmanager
def in_place_of(folder: Path, other: str | None) -> Iterator[None]:
    """Something else stands where the folder was: an empty folder, or a file with the text."""
    kept = folder.with_name(f"{folder.name}-kept")
    folder.rename(kept)
    if other is None:
        folder.mkdir()
    else:
        folder.write_text(other)
    yield
    folder.unlink() if folder.is_file() else folder.rmdir()
    kept.rename(folder)


BROKEN = [
    pytest.param(None, FaultKind.WRONG_STAGING, id="empty"),
    pytest.param("no folder", FaultKind.STAGING, id="unusable"),
]


@pytest.mark.parametrize(("other", "kind"), BROKEN)
def test_dates_are_given_back_and_nothing_is_counted(lab: Lab, other: str | None, kind: FaultKind) -> None:
    lab.probe_all(DAYS, players(10))
    run, deps, _ = lab.opened(DAYS, "probe")
    with in_place_of(lab.home / "staging", other), pytest.raises(HostFaulty) as raised:
        process_dates(run.id, DAYS, deps)
    assert raised.value.fault.kind is kind
    rows = deps.ledger.dates.list_dates(run.id)
    assert {(row.state, row.attempt, row.deaths, row.losses) for row in rows} == {(DateState.QUEUED, 0, 0, 0)}

    process_dates(run.id, DAYS, deps)
    assert {(row.state, row.attempt) for row in deps.ledger.dates.list_dates(run.id)} == {(DateState.STAGED, 1)}


@pytest.mark.parametrize(("other", "kind"), BROKEN)
def test_a_window_is_left_to_another_gate(lab: Lab, other: str | None, kind: FaultKind) -> None:
    lab.probe_all(DAYS, players(10))
    run, deps, _ = lab.opened(DAYS, "probe")
    process_dates(run.id, DAYS, deps)
    with in_place_of(lab.home / "staging", other), pytest.raises(HostFaulty) as raised:
        close_window(run.id, 1, deps, is_last_attempt=True)
    assert raised.value.fault.kind is kind
    window = deps.ledger.windows.get_window(run.id, 1)
    assert (window.state, window.deaths, window.losses) == (WindowState.OPEN, 0, 0)
    assert {row.state for row in deps.ledger.dates.list_dates(run.id)} == {DateState.STAGED}

    assert close_window(run.id, 1, deps) is GateOutcome.CLOSED
    assert deps.ledger.runs.get_run(run.id).state is RunState.SUCCEEDED


@pytest.mark.parametrize("other", [pytest.param(None, id="empty"), pytest.param("no folder", id="unusable")])
def test_a_host_without_the_tables_leaves_dates_and_windows_to_another(lab: Lab, other: str | None) -> None:
    lab.probe_all(DAYS, players(10))
    run, deps, _ = lab.opened(DAYS, "probe")
    process_dates(run.id, DAYS[:1], deps)
    with in_place_of(lab.home / "warehouse", other), pytest.raises(HostFaulty) as raised:
        process_dates(run.id, DAYS[1:], lab.opened_again())
    assert raised.value.fault.kind is FaultKind.WAREHOUSE
    process_dates(run.id, DAYS[1:], deps)
    with in_place_of(lab.home / "warehouse", other), pytest.raises(HostFaulty):
        close_window(run.id, 1, lab.opened_again(), is_last_attempt=True)
    assert {(row.state, row.attempt) for row in deps.ledger.dates.list_dates(run.id)} == {(DateState.STAGED, 1)}
    assert close_window(run.id, 1, deps) is GateOutcome.CLOSED


def test_an_error_of_a_host_in_which_nothing_is_found_is_tried_again_and_then_fails_its_date_only(lab: Lab) -> None:
    lab.probe_all(DAYS[:1], players(10), trick="host")
    lab.probe_all(DAYS[1:], players(10))
    run, deps, _ = lab.opened(DAYS, "probe")
    with pytest.raises(RetryLater):
        process_dates(run.id, DAYS, deps)
    process_dates(run.id, DAYS, deps, retries=deps.settings.max_retries)

    first, *others = deps.ledger.dates.list_dates(run.id)
    assert first.state is DateState.FAILED
    assert "(on host " in (first.error or "")
    assert {row.state for row in others} == {DateState.STAGED}


def test_without_another_host_the_run_fails_at_once_and_names_this_one(lab: Lab) -> None:
    lab.probe_all(DAYS, players(10))
    run, deps, _ = lab.opened(DAYS, "probe")
    with in_place_of(lab.home / "staging", "no folder"):
        process_dates(run.id, DAYS[:1], replace(deps, is_only_host=True))
    rows = deps.ledger.dates.list_dates(run.id)
    assert {(row.state, row.error_kind) for row in rows} == {(DateState.FAILED, "HostError")}
    assert all("(on host " in (row.error or "") for row in rows)


def test_a_run_records_the_staging_that_it_was_launched_with(lab: Lab) -> None:
    lab.probe_all(DAYS, players(10))
    run, deps, _ = lab.opened(DAYS, "probe")
    recorded = RunOptions.from_dict(run.options).staging
    assert recorded == (lab.home / "staging" / MARK).read_text() == deps.staging.mark()


def test_a_run_of_an_earlier_version_is_not_compared(any_staging: Staging) -> None:
    any_staging.confirm("run-1", None)


def test_the_mark_of_a_staging_is_made_once_and_tells_it_from_others(any_staging: Staging, tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda _: any_staging.mark(), range(4)))
    assert len(set(made)) == 1
    any_staging.confirm("run-1", made[0])
    assert any_staging.staged_runs() == []
    other = Staging(tmp_path / "other")
    with pytest.raises(WrongStaging, match=r"is not the staging of run run-1: it has no file \.backfill-staging"):
        other.confirm("run-1", made[0])
    other.mark()
    with pytest.raises(WrongStaging, match="another folder is mounted there"):
        other.confirm("run-1", made[0])


def test_a_folder_that_is_no_longer_mounted_is_found_out(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "staging")
    identity = staging.mark()
    staging.confirm("run-1", identity)
    (tmp_path / "staging" / MARK).unlink()
    with pytest.raises(WrongStaging):
        staging.confirm("run-1", identity)


def test_a_run_for_workers_that_use_another_staging_is_refused(lab: Lab, broker: str) -> None:
    lab.probe_all(DAYS, players(10))
    places = {"BACKFILL_BROKER": broker}
    days = [("--dates", str(day)) for day in DAYS]
    first = lab.inside("run", "--job", "probe", *days[0], "--detach", **places)
    assert first.returncode == 0, first.stderr
    elsewhere = {"BACKFILL_STAGING": str(lab.home.parent / "elsewhere")}
    second = lab.inside("run", "--job", "probe", *days[1], "--detach", **places, **elsewhere)
    assert second.returncode == 2
    assert f"is not the staging of run {lab.latest_run().id}, which is active" in second.stderr
    assert len(lab.ledger.runs.list_latest_runs(5)) == 1


def test_the_check_of_a_host_names_what_it_cannot_use(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.probe_all(DAYS, players(10))
    run, deps, _ = lab.opened(DAYS, "probe")
    assert deps.find_fault(run, publishes=True) is None
    monkeypatch.setattr("tempfile.tempdir", str(lab.home / "staging" / MARK))
    fault = deps.find_fault(run)
    assert fault is not None
    assert fault.kind is FaultKind.TEMPORARY_FOLDER
