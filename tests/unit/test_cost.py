"""The scans whose bytes an estimate of cost adds up are those that planning, a date's task and the gate take."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from typing import Any

from gated_backfill.common.model.job import Batch, Expectation, Input, Job, Reconcile, Source, Target
from gated_backfill.common.model.query import Query
from gated_backfill.common.model.tables import Column
from gated_backfill.common.warehouse.protocol import Scan
from gated_backfill.producer.planning.cost import date_scans, preflight_scans, row_bytes, staged_reads, window_scans
from gated_backfill.producer.planning.plan import Plan, PlanAction, PlanStep, RunRequest

DAY = date(2023, 2, 23)
NEXT = DAY + timedelta(days=1)


def process(batch: Batch) -> Any:
    return batch.rows


JOB = Job(
    name="flights",
    version="1",
    target=Target(
        table="w.target",
        date_column="day",
        key=("e", "day"),
        columns={"e": Column(type="STRING"), "day": Column(type="DATE"), "seats": Column(type="INT64")},
    ),
    expectation=Expectation(table="w.planned", date_column="day", entity="e", reconcile=(Reconcile(column="seats"),)),
    sources=(
        Source(
            name="flown",
            table="w.flown",
            date_column="day",
            entity="code",
            columns={"delay": "INT64"},
            required=("delay",),
        ),
    ),
    inputs=(
        Input(
            name="weather",
            table="w.weather",
            date_column="day",
            columns={"rain": "FLOAT64"},
            entity="station",
            coverage=0.9,
            lookback_days=2,
        ),
    ),
    process=process,
)
COUNT_SOURCES = [("planned", "day e seats"), ("flown", "code day delay seats")]
FINGERPRINTS = [("planned", "day e seats"), ("flown", "code day delay seats"), ("weather", "day rain station")]
PREREQUISITES = [
    ("weather", "day"),  # whether it has rows on the date
    ("planned", "day e seats"),
    ("weather", "day station"),  # the share of the expected entities that it has
    ("weather", "day"),  # whether it has rows in the lookback
]


def read(scans: list[Scan]) -> list[tuple[str, str]]:
    """Table and columns of each scan."""
    return sorted(
        (scan.table.table, " ".join(sorted({*scan.columns.values()})) if scan.columns else "*") for scan in scans
    )


def plan_of(*actions: PlanAction, **facts: Any) -> Plan:
    days = tuple(DAY + timedelta(days=n) for n in range(len(actions)))
    steps = tuple(
        PlanStep(day=day, action=action, reason="", expected=4) for day, action in zip(days, actions, strict=True)
    )
    return Plan(request=RunRequest(job="flights", days=days), version="1", steps=steps, notes=(), **facts)


def test_a_date_is_measured_fingerprinted_and_read() -> None:
    rows = [("flown", "code day delay"), ("weather", "day rain")]

    assert read(date_scans(JOB, DAY)) == sorted([("target", "*"), *COUNT_SOURCES, *FINGERPRINTS, *PREREQUISITES, *rows])


def test_planning_compares_checkpointed_dates_with_their_tables() -> None:
    counts = [*COUNT_SOURCES, ("planned", "day e seats")]  # also of the dates around
    roles = {frozenset({"expectation", "input weather"}): [DAY], frozenset({"source flown"}): [NEXT]}
    compared = plan_of(PlanAction.DONE, PlanAction.DONE, hashed_days=(DAY,), read_roles=roles, recounted_days=(NEXT,))

    scans = preflight_scans(JOB, compared)

    recounted = [("planned", "day e seats"), ("target", "day e seats")]
    assert read(scans) == sorted([*counts, *FINGERPRINTS, *recounted, ("target", "*")])
    assert [scan.dates[0].start for scan in scans if read([scan]) == [("target", "*")]] == [DAY]
    assert read(preflight_scans(JOB, plan_of(PlanAction.DONE))) == sorted(counts)
    assert read(preflight_scans(JOB, plan_of(PlanAction.BUILD))) == sorted([*counts, *PREREQUISITES])


def test_the_gate_looks_for_what_forced_dates_lack() -> None:
    judged = [("planned", "day e seats"), *[("target", "*")] * 5]

    assert read(window_scans(JOB, [DAY, NEXT])) == sorted(judged)
    assert read(window_scans(JOB, [DAY, NEXT], is_forced=True)) == sorted([*judged, *PREREQUISITES])


def test_new_rows_are_read_more_often_where_the_warehouse_makes_them() -> None:
    in_sql = replace(JOB, process=Query("SELECT e, day, SUM(delay) AS seats FROM rows GROUP BY e, day"), inputs=())
    assert (staged_reads(JOB), staged_reads(in_sql)) == (4, 6)
    assert row_bytes(JOB) == 18 + 8 + 8
