"""The declarations of a job by which a date's rows are judged complete, so that a change of them can be noticed. Pure.

What is compared anew for every plan is not among them: the coverage policy, and the floors and calendar of the
expectation. Neither is what only decides from which source a date is built. A required lookback decides more: without
its rows a date is blocked.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from gated_backfill.common.model.job import Job

RULES_PART = "rules"  #: the name of their hash among the parts of a checkpoint's inputs
HASH_LENGTH = 32  #: hexadecimal digits


def hash_judging_rules(job: Job) -> str:
    """Return a hash of the rules. Equal declarations have equal hashes in every process."""
    expectation, target = job.expectation, job.target
    rules: dict[str, Any] = {
        "entity": expectation.entity_columns,
        "rows": _number(expectation.rows) if target.check_rows else None,
        "reconcile": [
            [reconcile.column, _number(reconcile.tolerance), reconcile.target_column]
            for reconcile in (expectation.reconcile if target.check_sums else ())
        ],
        "target": [job.target_entity, target.key, sorted(target.required)],
        "columns": {
            name: [column.type, column.allows_nulls, *map(_number, (column.max_null_share, column.ge, column.le))]
            for name, column in target.columns.items()
        },
        "lookbacks": {
            source.name: [source.lookback_days, source.require_lookback]
            for source in job.sources
            if source.lookback_days
        },
        "inputs": {
            declared.name: [_number(declared.coverage), job.input_entity(declared), declared.require_lookback]
            for declared in job.inputs
            if not declared.optional
        },
    }
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:HASH_LENGTH]


def _number(value: float | str | None) -> float | str | None:
    """Return the value, with a number as a float: 0 and 0.0 are the same rule."""
    return value if value is None or isinstance(value, str) else float(value)
