"""A worker or gate that has another version of the job than the run needs refuses; the proof says what built a date."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from gated_backfill.common.errors import Retryable, UserError
from gated_backfill.common.ledger import DateState, RunState
from gated_backfill.common.model.job_versions import VersionMismatch
from gated_backfill.common.model.registry import find_job
from gated_backfill.producer.runs import control
from gated_backfill.worker.dates import process as processing
from gated_backfill.worker.dates.outcomes import RetryLater
from gated_backfill.worker.dates.process import process_dates
from gated_backfill.worker.gate import gate
from gated_backfill.worker.inline import run_sequentially
from gated_backfill.worker.reconcile.reconcile import reconcile
from tests.builders import FEB_23, FEB_24
from tests.lab import PACKAGES, Lab, players, until
from tests.workers import worker

DAYS = [FEB_23, FEB_24]


@pytest.fixture
def loaded(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    lab.probe_all(DAYS, players(4))
    return lab


def load_version(monkeypatch: pytest.MonkeyPatch, version: str, *modules: object) -> None:
    """These modules find the probe job in that version, as a process does that loaded it before or after a deploy."""
    job = replace(find_job("probe"), version=version)
    for module in modules:
        monkeypatch.setattr(module, "find_job", lambda name: job)


def test_a_worker_of_another_version_asks_another_one_twice_and_then_fails_the_date(
    loaded: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, deps, _ = loaded.opened(DAYS, "probe")
    load_version(monkeypatch, "0", processing)

    for retries in (0, 1):
        with pytest.raises(RetryLater):
            process_dates(run.id, [FEB_23], deps, retries=retries)
    (outcome,) = process_dates(run.id, [FEB_23], deps, retries=2)

    assert outcome.state == "failed"
    assert outcome.detail.endswith("has version 0 of job probe, the run needs version 1: restart the workers")
    (row, other) = deps.ledger.dates.list_dates(run.id)
    assert (row.state, row.reason, row.error_kind) == (DateState.FAILED, outcome.detail, "WrongJobVersion")
    assert other.state is DateState.QUEUED


def test_a_worker_that_is_newer_than_the_run_says_that_the_producer_is_old(
    loaded: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, deps, _ = loaded.opened(DAYS, "probe")
    load_version(monkeypatch, "2", processing)

    (outcome, _) = process_dates(run.id, DAYS, deps, retries=2)

    assert (
        "has version 2 of job probe, the run needs version 1: it was launched with an older version" in outcome.detail
    )
    assert outcome.detail.endswith(f"install version 2 where runs are launched, then `backfill retry {run.id}`")


@pytest.mark.parametrize(
    ("loaded_version", "needed", "is_older"), [("2", "1.9", True), ("v1.10", "v1.9", True), ("a1", "b2", False)]
)
def test_only_numbers_tell_which_version_is_older(loaded_version: str, needed: str, is_older: bool) -> None:
    mismatch = VersionMismatch(process="the worker", job="j", run="r", loaded=loaded_version, needed=needed)
    assert ("older version" in mismatch.describe()) is is_older
    assert mismatch.describe().startswith(f"the worker has version {loaded_version} of job j, the run needs ")


def test_a_gate_of_another_version_publishes_nothing(loaded: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    run, deps, _ = loaded.opened(DAYS, "probe")
    process_dates(run.id, DAYS, deps)
    load_version(monkeypatch, "0", gate)

    for retries in (0, 1):
        with pytest.raises(Retryable):
            gate.close_window(run.id, 1, deps, retries=retries)
    assert gate.close_window(run.id, 1, deps, retries=2) is gate.GateOutcome.CLOSED

    rows = deps.ledger.dates.list_dates(run.id)
    assert {row.state for row in rows} == {DateState.FAILED}
    assert all((row.reason or "").startswith("the gate on ") for row in rows)
    assert all((row.reason or "").endswith("restart the workers") for row in rows)
    assert loaded.published("probe.probe", FEB_23, "day") == []


def test_reconcile_of_a_run_of_another_version_ends_it(loaded: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    run, deps, dispatcher = loaded.opened(DAYS, "probe")
    dispatcher._sent.clear()  # the broker lost them
    load_version(monkeypatch, "2", processing, gate)

    reconcile(run.id, deps, lost_tasks=True)
    dispatcher.drain(deps, lambda: None)

    assert deps.ledger.runs.get_run(run.id).state is RunState.FAILED
    assert all("older version" in (row.reason or "") for row in deps.ledger.dates.list_dates(run.id))


def test_a_sequential_run_does_not_mix_versions(loaded: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    run, deps, _ = loaded.opened(DAYS, "probe")
    load_version(monkeypatch, "2", processing, gate)

    reconcile(run.id, deps, lost_tasks=True)
    run_sequentially(run, find_job("probe"), loaded.settings, lambda: None)
    reconcile(run.id, deps, lost_tasks=True)

    assert loaded.published("probe.probe", FEB_23, "day") == []


def test_the_checkpoint_records_the_version_that_staged_the_rows(loaded: Lab) -> None:
    run, deps, dispatcher = loaded.opened(DAYS, "probe")
    process_dates(run.id, DAYS, deps)
    loaded.change_ledger("UPDATE run_dates SET job_version = 'other' WHERE day = '2023-02-24'")
    loaded.change_ledger("UPDATE run_dates SET job_version = NULL WHERE day = '2023-02-23'")  # by an older tool

    dispatcher.drain(deps, lambda: None)

    checkpoints = deps.ledger.checkpoints.list_checkpoints("probe", FEB_23, FEB_24)
    assert {day: checkpoint.job_version for day, checkpoint in checkpoints.items()} == {FEB_23: "1", FEB_24: "other"}


def test_a_run_of_an_older_version_is_not_resumed(loaded: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    run, *_ = loaded.opened(DAYS, "probe")
    control.pause(run.id, loaded.context, None)
    load_version(monkeypatch, "2", control)

    with pytest.raises(
        UserError, match=f"version 1 of job probe, and version 2 is installed.*backfill cancel {run.id}"
    ):
        control.resume(run.id, loaded.context, None)

    assert loaded.ledger.runs.get_run(run.id).state is RunState.PAUSED
    control.cancel(run.id, loaded.context, None, discard=False, now=False)


def install_copy(folder: Path, version: str) -> str:
    """Install the probe jobs in that version; returns the path to import them from."""
    shutil.copytree(PACKAGES / "probe_jobs", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    module = folder / "probe_jobs.py"
    module.write_text(module.read_text().replace('version="1"', f'version="{version}"'))
    return str(folder)


def found_by_doctor(report: str, check: str) -> list[tuple[str, str]]:
    return [(result["level"], result["found"]) for result in json.loads(report)["checks"] if result["check"] == check]


def test_workers_that_were_not_restarted_build_nothing_of_a_new_version(
    loaded: Lab, tmp_path: Path, broker: str
) -> None:
    path = install_copy(tmp_path / "jobs", "1")
    places = {"BACKFILL_BROKER": broker, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    run = ("run", "--job", "probe", "--start-date", str(FEB_23), "--end-date", str(FEB_24), "--reprocess", "all")
    with worker(loaded, **places):
        done = loaded.command(*run, **places)
        assert done.returncode == 0, done.stdout + done.stderr
        asked = loaded.command("doctor", "--job", "probe", "--json", **places)
        assert found_by_doctor(asked.stdout, "workers") == [
            ("OK", "1 worker(s) have the versions installed here: probe 1")
        ]

        install_copy(tmp_path / "jobs", "2")
        refused = loaded.command(*run, "--json", **places)
        asked = loaded.command("doctor", "--job", "probe", "--json", **places)

    dates = json.loads(refused.stdout)["dates"]
    assert refused.returncode == 3
    assert all(date["reason"].endswith("the run needs version 2: restart the workers") for date in dates)
    checkpoints = loaded.ledger.checkpoints.list_checkpoints("probe", FEB_23, FEB_24)
    assert {checkpoint.job_version for checkpoint in checkpoints.values()} == {"1"}
    ((level, message),) = found_by_doctor(asked.stdout, "probe: workers")
    assert level == "WARN"
    assert "version 2 is installed here, but" in message
    until(lambda: loaded.latest_run().has_ended, "the end of the run")
