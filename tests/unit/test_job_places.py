"""Which line of a traceback is a job's own."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from gated_backfill import Batch
from gated_backfill.worker.dates.failures import find_job_place
from gated_backfill.worker.jobs.player_composite_factors import JOB

NO_INPUTS = Batch(days=(), rows=pd.DataFrame(), inputs={})


def fail(batch: Batch, *, text: str = "") -> pd.DataFrame:
    raise ValueError(text)


def place_of(job_process: object, job: object = None) -> str:
    job = replace(JOB, process=job_process)  # pyright: ignore[reportArgumentType]
    with pytest.raises((ValueError, KeyError)) as raised:
        job.process(NO_INPUTS)
    return find_job_place(raised.value, job) or ""


def test_a_job_that_is_shipped_with_the_program_is_told_from_the_program() -> None:
    path, _, line = place_of(JOB.process).rpartition(":")
    assert Path(path).parent.name == JOB.name
    assert 'batch.inputs["shot_zones"]' in Path(path).read_text().splitlines()[int(line) - 1]


def test_a_function_with_bound_arguments_is_the_jobs_own() -> None:
    path, _, line = place_of(partial(fail, text="bound")).rpartition(":")
    assert path == __file__
    assert "raise ValueError" in Path(path).read_text().splitlines()[int(line) - 1]


def test_an_error_from_elsewhere_has_no_line_of_the_job() -> None:
    with pytest.raises(ValueError, match="other") as raised:
        fail(NO_INPUTS, text="other")
    assert find_job_place(raised.value, JOB) is None
