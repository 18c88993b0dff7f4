"""What alerts say, where they go, and the names that endpoints are shown under."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from gated_backfill.common.alerts.delivery import alert_retries
from gated_backfill.common.alerts.endpoints import parse_endpoints
from gated_backfill.common.alerts.messages import (
    MESSAGE_LENGTH,
    TITLE_LENGTH,
    DateTally,
    EndedRun,
    alerts_for_run,
    beat_silent_alert,
    compose_message,
    has_low_coverage,
)
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.ledger import Alert, DateRow, DateState, NewAlert, Run, RunState
from gated_backfill.common.model.alert_kinds import ALERT_KINDS, AlertKind
from gated_backfill.common.model.coverage import Verdict
from tests.builders import FEB_23, NOON, a_date, a_run
from tests.texts import acting_characters, check_output, texts

SECRET = "hunter2"


def run(**more: Any) -> Run:
    started = {"started_at": NOON - timedelta(seconds=90), "finished_at": NOON}
    return a_run(**{"options": {"fallback": "replace"}} | started | more)


def row(state: DateState = DateState.CHECKPOINTED, matched: int | None = 187, **more: Any) -> DateRow:
    return a_date(state, **{"matched": matched, "expected": 187, "source": "upcoming"} | more)


def alert(new: NewAlert, **more: Any) -> Alert:
    values = {name: getattr(new, name) for name in ("key", "kind", "title", "body", "job", "run_id")}
    recorded = {"id": new.key, "state": "pending", "delivered": (), "created_at": NOON}
    return Alert(**dict.fromkeys(Alert.__dataclass_fields__) | values | recorded | more)


def ended_run(rows: list[DateRow], **more: Any) -> EndedRun:
    return EndedRun(**{"run": run(), "dates": DateTally.from_dates(rows, "upcoming"), "primary": "upcoming"} | more)


@pytest.mark.parametrize(
    ("rows", "fallbacks", "further"),
    [
        pytest.param([row()], 0, [], id="all-well"),
        pytest.param([row(), row(DateState.FAILED, None)], 0, [AlertKind.RUN_BLOCKED], id="failed"),
        pytest.param([row(DateState.BLOCKED, 94)], 0, [AlertKind.RUN_BLOCKED], id="just-half"),
        pytest.param([row(DateState.BLOCKED, 93)], 0, [AlertKind.RUN_BLOCKED, AlertKind.LOW_COVERAGE], id="below-half"),
        pytest.param([row(matched=50, verdict=Verdict.FORCED)], 0, [AlertKind.LOW_COVERAGE], id="forced-and-low"),
        pytest.param([row(source="derived")], 2, [], id="two-fallbacks"),
        pytest.param([row(source="derived")], 3, [AlertKind.FALLBACK_OFTEN], id="three-fallbacks"),
        pytest.param([row()], 3, [], id="fallbacks-of-other-runs"),
    ],
)
def test_the_end_of_a_run_is_told_by_what_is_in_it(
    rows: list[DateRow], fallbacks: int, further: list[AlertKind]
) -> None:
    alerts = alerts_for_run(ended_run(rows, fallbacks_this_week=fallbacks), NOON)
    assert [recorded.kind for recorded in alerts] == [AlertKind.RUN_FINISHED, *further]


def test_a_date_with_nobody_expected_is_not_low() -> None:
    assert not has_low_coverage(row(DateState.BLOCKED, 0, expected=0))


def test_without_the_job_nothing_is_said_of_fallbacks() -> None:
    dates = DateTally.from_dates([row(source="derived")], None)
    (finished,) = alerts_for_run(EndedRun(run=run(), dates=dates), NOON)
    assert "fallback" not in finished.body


def test_a_finished_run_is_told_with_its_numbers() -> None:
    rows = [row(), row(source="derived", verdict=Verdict.FORCED, matched=100), row(DateState.QUEUED, None)]
    (finished,) = alerts_for_run(ended_run(rows), NOON)
    assert finished.body.splitlines()[1:] == [
        "dates: 2 checkpointed, 1 not reached (1 of them forced)",
        "coverage: 76.7 % over all, lowest 53.4 %, on 2023-02-23",
        "fallback: 1 date(s) were built from derived",
        "took: 90.0 s",
    ]


def test_a_long_message_keeps_its_commands_and_its_limits() -> None:
    names = tuple(f"player{n:03d}" * 5 for n in range(187))
    rows = [
        row(DateState.BLOCKED, 1, missing=names, reason="why " * 200, day=FEB_23 + timedelta(days=2 * n))
        for n in range(500)
    ]
    message = compose_message([alert(new) for new in alerts_for_run(ended_run(rows), NOON)])
    assert "backfill retry run-1" in message.body
    assert "and 495 more" in message.body
    assert f"  missing 186: {', '.join(names[:3])} and 183 more" in message.body.splitlines()
    assert "500 blocked" in message.body
    assert len(message.title) <= TITLE_LENGTH
    assert len(message.body) <= MESSAGE_LENGTH


def test_many_runs_make_one_message_that_says_how_many_it_left_out() -> None:
    alerts = [
        alert(NewAlert(key=f"k{n}", kind=AlertKind.RUN_FINISHED, title=f"run {n}", lines=["x" * 900], run_id=f"R{n}"))
        for n in range(20)
    ]
    message = compose_message(alerts)
    assert message.title == "backfill: run 0 (and 19 more)"
    assert message.body.endswith("and 17 more: `backfill alerts` lists them")
    assert len(message.body) < MESSAGE_LENGTH + 100


def test_the_gravest_is_told_first() -> None:
    alerts = [alert(NewAlert(key=kind, kind=kind, title=kind, lines=[])) for kind in reversed(ALERT_KINDS)]
    assert compose_message(alerts).title.startswith(f"backfill: {AlertKind.LOW_COVERAGE}")


def test_beat_is_silent_after_ten_minutes_and_each_silence_has_a_key_of_its_own() -> None:
    assert beat_silent_alert(None, NOON) is None
    assert beat_silent_alert(NOON - timedelta(minutes=10), NOON) is None
    first, same = (beat_silent_alert(NOON, NOON + timedelta(minutes=n)) for n in (11, 60))
    other = beat_silent_alert(NOON + timedelta(hours=1), NOON + timedelta(hours=2))
    assert first is not None
    assert same is not None
    assert other is not None
    assert first.key == same.key != other.key


@pytest.mark.parametrize(
    ("urls", "names"),
    [
        pytest.param("", [], id="none"),
        pytest.param(f"json://me:{SECRET}@example.org:8080/x", ["json://example.org:8080"], id="host"),
        pytest.param(f"slack://{SECRET}/b/c", ["slack://..."], id="token-for-a-host"),
        pytest.param(f"json://me:pa/{SECRET}@h.org/", ["json://..."], id="slash-in-the-password"),
        pytest.param(f"mailtos://me:4711#{SECRET}@mail.example.org", ["mailtos://..."], id="hash-in-the-password"),
        pytest.param(f"mailtos://my.name:4711?{SECRET}@h.org", ["mailtos://..."], id="question-mark-in-the-password"),
        pytest.param(f"json://{SECRET} apprise://{SECRET}/", ["json://...", "apprise://..."], id="token-alone"),
        pytest.param("json://localhost:1 json://[::1]:2", ["json://localhost:1", "json://::1:2"], id="this-machine"),
        pytest.param(f"mailto://me:{SECRET}@a.b?to=a,b json://b.c", ["mailto://a.b", "json://b.c"], id="comma-inside"),
        pytest.param("json://a.b,jsons://b.c\n json://c.d,", ["json://a.b", "jsons://b.c", "json://c.d"], id="several"),
        pytest.param(f"tgram://{SECRET}/1 tgram://{SECRET}/2", ["tgram://...", "tgram://... #2"], id="alike"),
    ],
)
def test_endpoints_are_named_without_secrets(urls: str, names: list[str]) -> None:
    endpoints = parse_endpoints(Settings(alerts=SecretStr(urls)))
    assert [endpoint.name for endpoint in endpoints] == names
    assert SECRET not in repr(endpoints) + repr(Settings(alerts=SecretStr(urls)))


def test_what_is_no_url_is_refused_by_its_number() -> None:
    with pytest.raises(UserError, match="part 2 of 2 is not a URL") as refused:
        parse_endpoints(Settings(alerts=SecretStr(f"json://a {SECRET}")))
    assert SECRET not in str(refused.value)


def test_the_wait_before_another_try_doubles_up_to_an_hour() -> None:
    assert [alert_retries(60).delay_seconds(n) for n in range(3)] == [60, 120, 240]
    assert alert_retries(60).delay_seconds(23) == 3600
    assert alert_retries(60.0).delay_seconds(2000) == 3600  # what is tried again for ever gets there


@pytest.mark.parametrize(
    ("fallback", "advice"), [("replace", "load it"), ("off", "backfill retry run-1 --fallback replace")]
)
def test_low_coverage_comes_with_what_to_do(fallback: str, advice: str) -> None:
    ended = ended_run([row(DateState.BLOCKED, 1)], run=run(options={"fallback": fallback}))
    bodies = {recorded.kind: recorded.body for recorded in alerts_for_run(ended, NOON)}
    assert advice in bodies[AlertKind.LOW_COVERAGE]


@given(reason=texts, names=st.lists(texts, min_size=1, max_size=20), user=texts, order=texts)
def test_nothing_in_a_run_forges_a_line_of_its_alerts(reason: str, names: list[str], user: str, order: str) -> None:
    blocked = row(DateState.BLOCKED, 9, reason=reason, missing=tuple(names))
    ended = ended_run([blocked], run=run(requested_by=user, state=RunState.PARTIAL), orders=[order])
    told = [alert(new) for new in alerts_for_run(ended, NOON)]

    assert len(told) == 3
    message = compose_message(told)
    check_output(message.title, longest=TITLE_LENGTH)
    check_output(message.body, longest=MESSAGE_LENGTH)
    recorded_by_an_earlier_version = compose_message([replace(told[0], title=reason, body=reason)])
    assert acting_characters(recorded_by_an_earlier_version.body) == set()
    assert len(recorded_by_an_earlier_version.title.splitlines()) == 1
