"""The labels that tell a warehouse for which job, run and window each of its jobs works."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from datetime import date
from typing import Any

from gated_backfill.common.audit.audit import audit_dates
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.warehouse.labels import current_labels
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from gated_backfill.producer.planning.plan import make_plan
from gated_backfill.worker.dates.process import process_dates
from gated_backfill.worker.gate.gate import GateOutcome, close_window
from tests.builders import FEB_23, FEB_24
from tests.lab import Lab, players

DAYS = [FEB_23, FEB_24]


class LabelledWarehouse(LocalWarehouse):
    """A warehouse that notes the labels under which it is called, by the name of the call."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.labels: defaultdict[str, list[dict[str, str]]] = defaultdict(list)

    def count_entities(self, *arguments: Any, **named: Any) -> Any:
        self.labels["count_entities"].append(current_labels())
        return super().count_entities(*arguments, **named)

    def read(self, *arguments: Any, **named: Any) -> Any:
        self.labels["read"].append(current_labels())
        return super().read(*arguments, **named)

    def publish(self, *arguments: Any, **named: Any) -> Any:
        self.labels["publish"].append(current_labels())
        return super().publish(*arguments, **named)

    def fingerprints(self, *arguments: Any, **named: Any) -> Any:
        self.labels["fingerprints"].append(current_labels())
        return super().fingerprints(*arguments, **named)


def test_what_a_worker_and_a_gate_ask_has_the_job_run_and_window(lab: Lab) -> None:
    lab.probe_all(DAYS, players(4))
    run, deps, _ = lab.opened(DAYS, "probe")
    warehouse = LabelledWarehouse(lab.home / "warehouse")
    noting = replace(deps, warehouse=warehouse)
    of_window = {"tool": "gated-backfill", "job": "probe", "run": run.id.lower(), "window": "1"}

    process_dates(run.id, DAYS, noting)
    assert warehouse.labels["read"]
    assert {tuple(one.items()) for calls in warehouse.labels.values() for one in calls} == {tuple(of_window.items())}

    warehouse.labels.clear()
    assert close_window(run.id, 1, noting) is GateOutcome.CLOSED
    assert warehouse.labels["publish"] == [of_window]
    assert current_labels() == {"tool": "gated-backfill"}


def test_a_plan_and_an_audit_have_the_job(lab: Lab) -> None:
    lab.probe_all(DAYS, players(4))
    lab.run(DAYS, "probe")
    warehouse, probe = LabelledWarehouse(lab.home / "warehouse"), find_job("probe")

    make_plan(lab.request([*DAYS, date(2023, 2, 25)], "probe"), probe, warehouse, lab.ledger)
    audit_dates(probe, DAYS, warehouse, lab.ledger)
    noted = [one for calls in warehouse.labels.values() for one in calls]
    assert len(noted) >= 2
    assert [one for one in noted if one != {"tool": "gated-backfill", "job": "probe"}] == []
