"""What a message may hold: no arguments that a task can be sent with raise anything, or change anything."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from celery.exceptions import CeleryError
from hypothesis import example, given
from hypothesis import strategies as st

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.registry import find_job
from tests.fuzz.cases import share, words
from tests.fuzz.watching import DAYS, SECRET, Watched

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), words, st.sampled_from(DAYS)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(words, inner, max_size=4)),
    max_leaves=6,
)
TASKS = ("process_date", "close_window", "reconcile_run", "report_run", "maintain")


@pytest.fixture
def tasks(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The tasks of a worker that has opened the lab's ledger."""
    for name, value in watched.lab.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("BACKFILL_BROKER", f"redis://:{SECRET}@127.0.0.1:1/0")
    import gated_backfill.worker.tasks as found

    found.deps.cache_clear()
    yield found
    found.deps().ledger.close()
    found.deps.cache_clear()


@share(0.18)
@given(
    task=st.sampled_from(TASKS),
    args=st.lists(json_values, max_size=4),
    kwargs=st.dictionaries(st.sampled_from(["run", "day", "number", "name", "x"]), json_values, max_size=2),
    real=st.booleans(),
)
@example(task="process_date", args=[5], kwargs={}, real=True)
@example(task="maintain", args=[None], kwargs={}, real=False)
@example(task="close_window", args=[2**70], kwargs={}, real=True)
@example(task="process_date", args=["9999-12-31"], kwargs={}, real=True)
@example(task="reconcile_run", args=["a\ud800"], kwargs={}, real=False)
def test_arguments_of_any_kind(
    watched: Watched, tasks: Any, task: str, args: list[Any], kwargs: dict[str, Any], real: bool
) -> None:
    """`real`: the first argument is the id of a run, one that has ended."""
    run = watched.lab.ledger.runs.list_latest_runs(1)[0].id
    try:
        getattr(tasks, task)(*([run] if real else []), *args, **kwargs)
    except CeleryError as exc:  # of a retry, when there is nobody to send it to
        pytest.fail(f"it would be tried again: {exc}")
    assert watched.published() == watched.rows


@share(0.06)
@given(headers=json_values, payload=json_values)
@example(headers={"task": "process_date"}, payload=[[], {}, {"chord": 5}])
@example(headers={"task": "process_date", "timelimit": "soon"}, payload=[[], {}, {}])
def test_headers_and_bodies_of_any_kind(headers: Any, payload: Any) -> None:
    from gated_backfill.worker.messages.consumer import message_problem

    assert isinstance(message_problem(headers, payload), str)


@share(0.05)
@given(name=words)
@example(name="os:system")
@example(name="antigravity")
@example(name="gated_backfill.worker.jobs.player_composite_factors:JOB")
def test_a_name_of_any_kind_imports_nothing(name: str) -> None:
    loaded = set(sys.modules)
    if name in ("probe", "player_composite_factors"):
        return
    try:
        find_job(name)
    except UserError:
        assert set(sys.modules) == loaded
    else:
        assert name.startswith(("probe", "player_composite_factors"))
