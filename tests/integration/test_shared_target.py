"""Two jobs with one target: the second one is refused, until the first one gives the table up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gated_backfill.common.errors import TargetTaken, UserError
from gated_backfill.common.ledger import RunState
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.runs import targets
from gated_backfill.producer.doctor.results import CheckLevel
from gated_backfill.producer.doctor.tables import check_tables
from gated_backfill.producer.planning.plan import Reprocess, make_plan
from tests.builders import FEB_23
from tests.emulator import PROJECT
from tests.lab import Lab, players

TWIN = """
from dataclasses import replace
from probe_jobs import PROBE
TWIN = replace(PROBE, name="twin")
"""


@pytest.fixture
def twins(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A lab in which a second job has the target of the probe job."""
    package = tmp_path / "twin_jobs"
    metadata = package / "twin_jobs-1.0.dist-info"
    metadata.mkdir(parents=True)
    (package / "twin_jobs.py").write_text(TWIN)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: twin-jobs\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[backfill.jobs]\ntwin = twin_jobs:TWIN\n")
    monkeypatch.syspath_prepend(str(package))
    lab.probe_all([FEB_23], players(4))
    return lab


def test_the_second_job_is_refused_by_name(twins: Lab) -> None:
    run = twins.run([FEB_23], "probe").run
    error = rf"probe.probe is the target of job probe \(run {run.id}\): two jobs can't build one table"

    with pytest.raises(TargetTaken, match=error):
        twins.plan([FEB_23], "twin")
    with pytest.raises(TargetTaken, match=error):
        twins.run([FEB_23], "twin")
    assert twins.run([FEB_23], "probe", reprocess=Reprocess.ALL).run.state is RunState.SUCCEEDED


def test_the_target_passes_on_when_its_owner_declares_another_one(twins: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    twins.run([FEB_23], "probe")
    probe = find_job("probe")
    moved = replace(probe, target=replace(probe.target, table="probe.elsewhere"))
    monkeypatch.setattr(targets, "find_job", lambda name: moved)

    assert twins.run([FEB_23], "twin").run.state is RunState.SUCCEEDED
    monkeypatch.setattr(targets, "find_job", find_job)
    with pytest.raises(TargetTaken, match="is the target of job twin"):
        targets.check_target_free(probe, twins.ledger)


def test_the_target_passes_on_when_its_owner_is_not_installed(twins: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    twins.run([FEB_23], "probe")
    monkeypatch.setattr(targets, "job_names", lambda: ["twin"])
    assert twins.run([FEB_23], "twin").run.state is RunState.SUCCEEDED


def test_an_owner_that_can_not_be_loaded_keeps_its_target(twins: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    twins.run([FEB_23], "probe")
    monkeypatch.setattr(targets, "find_job", lambda name: find_job("no such job"))
    with pytest.raises(TargetTaken):
        twins.plan([FEB_23], "twin")


def test_one_table_has_no_second_name(bigquery_lab: Lab) -> None:
    """Or else a job could build another's target under it."""
    lab = bigquery_lab
    lab.probe_all([FEB_23], players(4))
    probe = find_job("probe")
    renamed = replace(probe, name="twin", target=replace(probe.target, table=f"{PROJECT}.{probe.target.table}"))
    refused = f"{PROJECT} is the warehouse's own project: write the table as probe.probe"

    with pytest.raises(UserError, match=refused):
        make_plan(lab.request([FEB_23], "twin"), renamed, lab.context.warehouse, lab.ledger)
    found = check_tables(lab.settings, lab.context.warehouse, renamed)
    assert [(result.check, refused in result.message) for result in found if result.level is CheckLevel.FAIL] == [
        ("twin: target", True)
    ]
    loaded = lab.inside("load", f"{PROJECT}.probe.first", str(lab.home / "nothing.csv"))
    assert loaded.returncode == 2
    assert refused.replace("probe.probe", "probe.first") in loaded.stderr
    kept = lab.inside("kept", "list", f"{PROJECT}.probe.probe")
    assert (kept.returncode, kept.stderr.count("own project")) == (2, 1)


def test_a_local_warehouse_has_no_projects(lab: Lab) -> None:
    loaded = lab.inside("load", "shop-prod.probe.first", str(lab.home / "nothing.csv"))
    assert loaded.returncode == 2
    assert "a local warehouse has no projects: write the table as probe.first" in loaded.stderr
    assert loaded.stderr.count("\n") == 1


def test_jobs_and_doctor_report_it_before_and_after_the_first_run(twins: Lab) -> None:
    def conflicts() -> dict[str, str | None]:
        listed = json.loads(twins.inside("jobs", "--json").stdout)
        return {job["name"]: job["conflict"] for job in listed if job["name"] in ("probe", "twin")}

    also = "probe.probe is also the target of job {}: it goes to the job that is run first"
    assert conflicts() == {"probe": also.format("twin"), "twin": also.format("probe")}

    run = twins.run([FEB_23], "probe").run
    taken = f"probe.probe is the target of job probe (run {run.id}): two jobs can't build one table"
    assert conflicts() == {"probe": None, "twin": taken}
    assert twins.inside("jobs").returncode == 3
    report = twins.inside("doctor", "--job", "twin", "--json")
    assert report.returncode == 3
    messages = [
        check["found"] for check in json.loads(report.stdout)["checks"] if check["check"] == "twin: shared target"
    ]
    assert messages == [taken]
