"""Which changes of a job's declaration change the rules by which rows are judged complete."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import pytest

from gated_backfill.common.model.coverage import CoveragePolicy
from gated_backfill.common.model.job import Batch, Expectation, Input, Job, Reconcile, Source, Target
from gated_backfill.common.model.judging_rules import hash_judging_rules
from gated_backfill.common.model.tables import Column


def build(batch: Batch) -> pd.DataFrame:
    return batch.rows


COLUMNS = {"day": Column(type="DATE"), "store": Column(type="STRING"), "amount": Column(type="FLOAT64", nullable=True)}
WEATHER = Input(name="weather", table="shop.weather", date_column="day", optional=True)
JOB = Job(
    name="revenue",
    version="1",
    target=Target(table="shop.revenue", date_column="day", key=("store",), columns=COLUMNS),
    expectation=Expectation(table="shop.stores", date_column="day", entity="store"),
    sources=(Source(name="tills", table="shop.tills", date_column="day"),),
    inputs=(WEATHER,),
    process=build,
)


def with_amount(**changes: object) -> Job:
    amount = replace(COLUMNS["amount"], **changes)
    return replace(JOB, target=replace(JOB.target, columns={**COLUMNS, "amount": amount}))


def with_lookback(days: int) -> Job:
    source = replace(JOB.sources[0], lookback_days=days, derive=lambda history, days: history)
    return replace(JOB, sources=(source,))


def with_weather(**changes: object) -> Job:
    return replace(JOB, inputs=(replace(WEATHER, **changes),))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda: replace(JOB, expectation=replace(JOB.expectation, rows="equal")), id="rows"),
        pytest.param(
            lambda: replace(JOB, expectation=replace(JOB.expectation, reconcile=(Reconcile(column="amount"),))),
            id="sums",
        ),
        pytest.param(lambda: replace(JOB, target=replace(JOB.target, required=("amount",))), id="required column"),
        pytest.param(lambda: replace(JOB, target=replace(JOB.target, key=("store", "amount"))), id="key"),
        pytest.param(lambda: with_amount(nullable=False), id="nulls"),
        pytest.param(lambda: with_amount(max_null_share=0.1), id="share of nulls"),
        pytest.param(lambda: with_amount(ge=0), id="bound"),
        pytest.param(lambda: with_weather(optional=False), id="required input"),
        pytest.param(lambda: with_lookback(3), id="lookback"),
        pytest.param(lambda: with_weather(optional=False, coverage=0.5, entity="store"), id="measured input"),
    ],
)
def test_a_rule_that_rows_are_judged_by_changes_the_hash(change: Callable[[], Job]) -> None:
    assert hash_judging_rules(change()) != hash_judging_rules(JOB)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda: replace(JOB, policy=CoveragePolicy(accept_ratio=0.5)), id="policy"),
        pytest.param(lambda: replace(JOB, expectation=replace(JOB.expectation, floor=3)), id="floor"),
        pytest.param(
            lambda: replace(JOB, sources=(*JOB.sources, Source(name="bank", table="shop.bank", date_column="day"))),
            id="further source",
        ),
        pytest.param(lambda: with_weather(columns={"rain": "FLOAT64"}), id="optional input"),
        pytest.param(lambda: replace(JOB, description="another one"), id="description"),
        pytest.param(lambda: replace(JOB, target=replace(JOB.target, check_rows=False)), id="rows not compared anyway"),
    ],
)
def test_what_is_compared_anew_for_every_plan_does_not(change: Callable[[], Job]) -> None:
    assert hash_judging_rules(change()) == hash_judging_rules(JOB)


def test_a_whole_number_is_the_same_rule_as_a_float() -> None:
    assert hash_judging_rules(with_amount(ge=0, le=1)) == hash_judging_rules(with_amount(ge=0.0, le=1.0))
