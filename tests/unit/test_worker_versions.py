"""What doctor says of the job versions of running workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from gated_backfill.common.model.registry import find_job
from gated_backfill.producer.doctor.results import CheckLevel
from gated_backfill.producer.doctor.workers import compare_versions
from gated_backfill.worker.messages import job_versions

JOB = replace(find_job("player_composite_factors"), name="probe", version="2")


@pytest.mark.parametrize(
    ("versions", "level", "check", "message"),
    [
        pytest.param(None, CheckLevel.OK, "workers", "no worker uses this broker", id="no-worker"),
        pytest.param({"beat": None}, CheckLevel.OK, "workers", "no worker builds dates", id="beat-only"),
        pytest.param(
            {"w1": {"probe": "2"}, "beat": None},
            CheckLevel.OK,
            "workers",
            "1 worker(s) have the versions installed here: probe 2",
            id="the-same",
        ),
        pytest.param(
            {}, CheckLevel.WARN, "workers", "did not answer within 1 s: their versions are not known", id="no-answer"
        ),
        pytest.param(
            {"w1": {}},
            CheckLevel.WARN,
            "probe: workers",
            "version 2 is installed here, but w1 has none: these workers refuse its dates",
            id="no-job-could-be-loaded",
        ),
        pytest.param(
            {"w1": {"probe": "1"}, "w2": {"probe": "2"}},
            CheckLevel.WARN,
            "probe: workers",
            "version 2 is installed here, but w1 has 1: these workers refuse its dates",
            id="an-old-one",
        ),
    ],
)
def test_what_could_not_be_checked_is_not_fine(
    versions: Mapping[str, Mapping[str, str] | None] | None, level: CheckLevel, check: str, message: str
) -> None:
    (result,) = compare_versions(versions, [JOB])

    assert (result.level, result.check) == (level, check)
    assert message in result.message


def test_a_worker_answers_none_unless_it_loaded_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_versions.loaded_jobs, "versions", None)
    assert job_versions.job_versions(None) is None

    monkeypatch.setattr(job_versions, "load_jobs", lambda: ([], {}))
    job_versions.preload_jobs()
    assert job_versions.job_versions(None) == {}
