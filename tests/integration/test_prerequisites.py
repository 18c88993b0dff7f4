"""Required inputs and lookbacks: a date that lacks their rows is blocked in plan and worker, or marked as forced."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest

from gated_backfill.common.errors import TableNotFound
from gated_backfill.common.ledger import DateState
from gated_backfill.common.model.coverage import Fallback, Verdict
from gated_backfill.common.model.job import Input
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.warehouse.prerequisites import measure_prerequisites
from gated_backfill.producer.planning.plan import PlanAction
from tests.lab import Lab, players

DAY = date(2013, 12, 31)
NAMES = players(20)
VALUE = {"name": "STRING", "day": "DATE", "value": "FLOAT64"}
JOBS = """
    from dataclasses import replace
    import pandas as pd
    from gated_backfill import Batch, Calendar, Column, Expectation, Input, Job, Source, Target

    COLUMNS = {"name": "STRING", "value": "FLOAT64"}

    def process(batch):
        return batch.rows[["name", "day", "value"]]

    def derive(history, days):
        return history[history["day"].isin(pd.to_datetime(list(days)))]

    def job(name, **more):
        more = {"inputs": (Input(name="weather", table="w.weather", date_column="day"),)} | more
        columns = {"name": Column(type="STRING"), "day": Column(type="DATE"), "value": Column(type="FLOAT64")}
        return Job(
            name=name,
            version="1",
            target=Target(table=f"w.{name}", date_column="day", key=("name", "day"), columns=columns),
            expectation=more.pop("expectation", EXPECTED),
            sources=more.pop("sources", (FIRST,)),
            process=process,
            **more,
        )

    EXPECTED = Expectation(table="w.expected", date_column="day", entity="name")
    FIRST = Source(name="first", table="w.first", date_column="day", columns=COLUMNS)
    DERIVED = replace(FIRST, name="derived", table="w.second", lookback_days=3, derive=derive)
    WEATHER = Input(name="weather", table="w.weather", date_column="day")

    PLAIN = job("plain")
    OPTIONAL = job("optional", inputs=(replace(WEATHER, optional=True),))
    COVERED = job("covered", inputs=(replace(WEATHER, entity="station", coverage=0.95),))
    BEFORE = job("before", inputs=(replace(WEATHER, lookback_days=5),))
    LENIENT = job("lenient", inputs=(replace(WEATHER, lookback_days=5, require_lookback=False),))
    FALLBACK = job("fallback", inputs=(), sources=(FIRST, DERIVED))
    WITH_CALENDAR = job(
        "with_calendar",
        inputs=(),
        sources=(DERIVED,),
        expectation=replace(EXPECTED, calendar=Calendar(table="w.calendar", date_column="day")),
    )
"""


@pytest.fixture(autouse=True)
def _jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the jobs as a package of somebody else."""
    site = tmp_path / "site"
    metadata = site / "weather_jobs-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "weather_jobs.py").write_text(textwrap.dedent(JOBS))
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: weather-jobs\nVersion: 1.0\n")
    names = ["plain", "optional", "covered", "before", "lenient", "fallback", "with_calendar"]
    entry_points = "\n".join(f"{name} = weather_jobs:{name.upper()}" for name in names)
    (metadata / "entry_points.txt").write_text(f"[backfill.jobs]\n{entry_points}\n")
    monkeypatch.syspath_prepend(str(site))
    find_job.cache_clear()
    yield
    find_job.cache_clear()


def day_at(offset: int) -> date:
    return DAY + timedelta(days=offset)


def load(lab: Lab, table: str, *offsets: int, names: Sequence[str] = NAMES, entity: str = "name") -> None:
    types = {entity if name == "name" else name: kind for name, kind in VALUE.items()}
    for offset in offsets:
        lab.load(f"w.{table}", day_at(offset), [{entity: name} for name in names], types)


def check_blocked(lab: Lab, job: str, reason: str) -> None:
    """Plan and worker block the date, and force builds it and marks it for ever."""
    (step,) = lab.plan([DAY], job).steps
    assert (step.action, step.reason) == (PlanAction.BLOCKED, reason)
    outcome = lab.outcome(DAY, lab.run([DAY], job))  # without pre-flight
    assert (outcome.state, outcome.verdict, outcome.reason) == (DateState.BLOCKED, Verdict.BLOCKED, reason)
    assert lab.table_bytes(f"w.{job}") == {}
    forced = lab.outcome(DAY, lab.run([DAY], job, because="it is lost"))
    assert (forced.state, forced.verdict) == (DateState.CHECKPOINTED, Verdict.FORCED)
    assert forced.reason == f"{reason}; forced: it is lost"


def check_built(lab: Lab, job: str) -> None:
    assert lab.plan([DAY], job).steps[0].action is PlanAction.BUILD
    outcome = lab.outcome(DAY, lab.run([DAY], job, preflight=True))
    assert (outcome.state, outcome.verdict) == (DateState.CHECKPOINTED, Verdict.COMPLETE)


# -- days that are known to have rows ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time_zone", "problems"),
    [
        pytest.param(None, {}, id="the-same"),
        pytest.param("Asia/Tokyo", {DAY: f"input weather has no rows on {DAY}"}, id="another"),
    ],
)
def test_a_day_with_rows_has_them_in_one_time_zone_only(
    lab: Lab, time_zone: str | None, problems: dict[date, str]
) -> None:
    load(lab, "expected", 1)
    job = find_job("plain")
    weather = Input(name="weather", table="w.expected", date_column="day", time_zone=time_zone)

    prerequisites = measure_prerequisites(
        lab.context.warehouse,
        replace(job, inputs=(weather,)),
        [DAY],
        days_with_rows={("w.expected", "day", None): [DAY]},
    )

    assert prerequisites.inputs == problems


# -- inputs -------------------------------------------------------------------------------------------------------


def test_a_required_input_without_rows_blocks_the_date(any_lab: Lab) -> None:
    for table in ("expected", "first"):
        load(any_lab, table, -1, 0)
    load(any_lab, "weather", -1)

    check_blocked(any_lab, "plain", "input weather has no rows on 2013-12-31")
    assert any_lab.plan([day_at(-1)], "plain").steps[0].action is PlanAction.BUILD


def test_an_input_with_rows_or_an_optional_one_blocks_nothing(lab: Lab) -> None:
    for table in ("expected", "first"):
        load(lab, table, 0)
    check_built(lab, "optional")  # its table does not exist
    with pytest.raises(TableNotFound):
        lab.plan([DAY], "plain")
    load(lab, "weather", 0, names=["one row is enough"])
    check_built(lab, "plain")


@pytest.mark.parametrize("count", [pytest.param(18, id="below"), pytest.param(0, id="others-only")])
def test_an_input_must_have_the_share_of_expected_entities_that_the_job_asks_for(any_lab: Lab, count: int) -> None:
    for table in ("expected", "first"):
        load(any_lab, table, 0)
    load(any_lab, "weather", 0, names=[*NAMES[:count], "elsewhere"], entity="station")

    share = f"{count} of 20 expected entities ({count * 5}.0 %)"
    check_blocked(any_lab, "covered", f"input weather has {share} on 2013-12-31, below its coverage of 95%")


def test_an_input_with_enough_of_the_expected_entities_blocks_nothing(lab: Lab) -> None:
    for table in ("expected", "first"):
        load(lab, table, 0)
    load(lab, "weather", 0, names=NAMES[:19], entity="station")
    check_built(lab, "covered")


# -- lookbacks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offsets", "reason"),
    [
        pytest.param((-5, -4, -2, -1, 0), "no rows on 1 of the 5 day(s) of its lookback: 2013-12-28", id="one-day"),
        pytest.param(
            (0,),
            "no rows on 5 of the 5 day(s) of its lookback: 2013-12-26, 2013-12-27, 2013-12-28 and 2 more",
            id="all-days",
        ),
        pytest.param((-5, -4, -3, -2, -1), "no rows on 2013-12-31", id="the-day-itself"),
    ],
)
def test_the_days_before_a_date_need_rows_as_well(lab: Lab, offsets: tuple[int, ...], reason: str) -> None:
    for table in ("expected", "first"):
        load(lab, table, 0)
    load(lab, "weather", *offsets)
    check_blocked(lab, "before", f"input weather has {reason}")


def test_a_job_may_do_without_its_lookback(lab: Lab) -> None:
    for table in ("expected", "first", "weather"):
        load(lab, table, 0)
    check_built(lab, "lenient")


def test_the_lookback_of_a_source_matters_where_the_source_is_chosen(any_lab: Lab) -> None:
    for table in ("expected", "second"):
        load(any_lab, table, -2, -1, 0)
    load(any_lab, "first", -1)

    assert any_lab.plan([day_at(-1)], "fallback").steps[0].source == "first"
    assert any_lab.plan([day_at(-1)], "fallback").steps[0].action is PlanAction.BUILD
    reason = "source derived has no rows on 1 of the 3 day(s) of its lookback: 2013-12-28"
    check_blocked(any_lab, "fallback", reason)


def test_the_lookback_of_a_source_that_fills_matters(lab: Lab) -> None:
    load(lab, "expected", 0)
    load(lab, "second", 0)
    load(lab, "first", 0, names=NAMES[:19])

    (step,) = lab.plan([DAY], "fallback", fallback=Fallback.FILL).steps
    assert (step.action, step.source) == (PlanAction.BLOCKED, "first+derived")
    assert step.reason.startswith("source derived has no rows on 3 of the 3 day(s) of its lookback")


def test_days_off_need_no_rows(lab: Lab) -> None:
    for table in ("expected", "second"):
        load(lab, table, -1, 0)
    load(lab, "calendar", -3, -1, 0, names=["game"])
    check_blocked(lab, "with_calendar", "source derived has no rows on 1 of the 3 day(s) of its lookback: 2013-12-28")
    for table in ("expected", "second"):
        load(lab, table, -3)
    lab.drop("w.with_calendar")
    check_built(lab, "with_calendar")


def test_without_its_calendar_a_job_cannot_tell_days_off_and_says_so(lab: Lab) -> None:
    for table in ("expected", "second"):
        load(lab, table, 0)
    assert "calendar w.calendar does not exist: days that are missing in a lookback are not noticed" in (
        lab.plan([DAY], "with_calendar").notes
    )
    check_built(lab, "with_calendar")
