"""Alerts of real runs, at a real receiver: one message a run, and a receiver that fails changes nothing."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import pytest

from gated_backfill.common.alerts.delivery import deliver
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import BackfillError, UserError
from gated_backfill.common.ledger import NewAlert, RunState
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.runs.post_run import record_beat_silence, report_ended_runs, report_run
from gated_backfill.worker.post_run import deliver_alerts, report_missed_runs
from tests.builders import at_once
from tests.lab import Lab, players, until
from tests.receiver import Receiver, receiving

WHOLE, HALF, STALE = date(2023, 2, 22), date(2023, 2, 23), date(2023, 2, 24)
USER, PASSWORD = "watcher", "hunter2-s3cret"
RUN = ("run", "--job", "probe", "--start-date", str(WHOLE), "--end-date", str(STALE), "--no-preflight")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as started:
        yield started


def prepare(lab: Lab) -> None:
    """One date is whole, one has 60 % of its names, one a single stale row."""
    for day, present in ((WHOLE, 20), (HALF, 12), (STALE, 1)):
        lab.probe_all([day], players(20), first=players(present))


def deliver_to(lab: Lab, url: str, owner: str = "me:1:1", **more: object) -> str:
    """Deliver what waits to the endpoints; what became of it."""
    values = {**lab.settings.model_dump(), "alerts": url, "alert_retry_seconds": 0, **more}
    return deliver(lab.ledger, Settings(**values), owner)


def alert_states(lab: Lab) -> set[str]:
    return {alert.state for alert in lab.ledger.alerts.list_latest_alerts(10)}


def text_of(moment: datetime) -> str:
    """The moment as the ledger's file holds it."""
    return f"{moment:%Y-%m-%d %H:%M:%S.%f}"


def blocked_run(lab: Lab) -> str:
    """A run in this process that left two dates blocked, whose end was written down but told to nobody."""
    prepare(lab)
    return lab.run([WHOLE, HALF, STALE], "probe").run.id


def text_of_everything(lab: Lab) -> str:
    """Every file below the home, and every row of the ledger, as text."""
    files = [path for path in lab.home.rglob("*") if path.is_file() and "warehouse" not in path.parts]
    return "\n".join(path.read_bytes().decode("utf-8", "replace") for path in files)


# -- a run at a receiver that answers -----------------------------------------------------------------------------


def test_a_blocked_run_arrives_as_one_message(lab: Lab, receiver: Receiver) -> None:
    prepare(lab)

    ran = lab.command(*RUN, BACKFILL_ALERTS=receiver.url_for(USER, PASSWORD))

    assert ran.returncode == 3, ran.stderr
    assert "warning" not in ran.stderr
    (message,) = receiver.messages
    run_id = lab.latest_run().id
    assert message["title"] == "backfill: coverage below 50% on 1 date(s) of probe"
    for told in (
        f"2 blocked date(s) of probe in run {run_id}",
        "1 checkpointed, 2 blocked",
        f"coverage: 55.0 % over all, lowest 5.0 %, on {STALE}",
        f"{HALF} blocked: 12 of 20",
        "missing 8: player012, player013",
        "missing 19: player001, player002",
        f"backfill status {run_id}",
        f"backfill retry {run_id}",
        "took: ",
    ):
        assert told in message["message"]
    assert receiver.authorizations[0] is not None
    assert PASSWORD not in ran.stdout + ran.stderr + text_of_everything(lab)


def test_the_list_shows_what_was_told_without_secrets(lab: Lab, receiver: Receiver) -> None:
    blocked_run(lab)
    deliver_to(lab, receiver.url_for(USER, PASSWORD))

    listed = json.loads(lab.invoke("alerts", "--json").stdout)
    shown = lab.invoke("alerts", "--last", "1")

    kinds = ("run-finished", "run-blocked", "low-coverage")
    assert {alert["kind"]: alert["state"] for alert in listed} == dict.fromkeys(kinds, "sent")
    assert {tuple(alert["delivered_to"]) for alert in listed} == {(f"json://127.0.0.1:{receiver.server_port}",)}
    assert len(shown.stdout.splitlines()) == 2
    assert PASSWORD not in json.dumps(listed) + shown.stdout


def test_a_run_in_the_background_is_told_by_the_process_that_owns_it(lab: Lab, receiver: Receiver) -> None:
    prepare(lab)
    lab.command(*RUN, "--detach", "--allow-partial", BACKFILL_ALERTS=receiver.url)

    until(lambda: receiver.messages, "the message")
    assert "2 blocked" in receiver.messages[0]["message"]


def test_only_the_kinds_that_are_wanted_are_told(lab: Lab, receiver: Receiver) -> None:
    blocked_run(lab)

    outcome = deliver_to(lab, receiver.url, alert_kinds="low-coverage")

    (message,) = receiver.messages
    assert outcome == "1 of 1 alert(s) delivered, 2 muted"
    assert "coverage below" in message["title"]
    assert "backfill retry" not in message["message"]


# -- receivers that fail ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["nobody listens", "hangs", "no url"])
def test_a_receiver_that_fails_changes_nothing_about_the_run(lab: Lab, trouble: str) -> None:
    prepare(lab)
    with receiving() as receiver:
        receiver.hangs = True
        urls = {"nobody listens": f"json://{USER}:{PASSWORD}@127.0.0.1:1/", "no url": f"{USER}:{PASSWORD}@127.0.0.1"}
        url = urls.get(trouble, receiver.url_for(USER, PASSWORD))
        ran = lab.invoke(*RUN, "--sequential", BACKFILL_ALERTS=url, BACKFILL_ALERT_TIMEOUT_SECONDS="1")

    run = lab.latest_run()
    assert ran.exit_code == 3
    assert (run.state, run.reported_at is not None) == (RunState.PARTIAL, True)
    assert lab.states(run.id) == ["checkpointed", "blocked", "blocked"]
    assert len(lab.table_bytes("probe.probe")) == 1
    assert alert_states(lab) == {"pending"}
    warnings = [line for line in ran.stderr.splitlines() if line]
    assert len(warnings) == 1
    assert warnings[0].startswith("backfill: warning: ")
    assert PASSWORD not in ran.stdout + ran.stderr + text_of_everything(lab)


def test_what_was_not_taken_is_delivered_when_the_receiver_is_back(lab: Lab, receiver: Receiver) -> None:
    blocked_run(lab)
    receiver.status = 503
    refused = deliver_to(lab, receiver.url)
    receiver.status = 200

    again = deliver_to(lab, receiver.url)

    assert refused == f"0 of 3 alert(s) delivered; json://127.0.0.1:{receiver.server_port} answered 503"
    assert again == "3 of 3 alert(s) delivered"
    assert len(receiver.messages) == 1
    alerts = lab.ledger.alerts.list_latest_alerts(10)
    assert {(alert.state, alert.attempts, alert.error) for alert in alerts} == {("sent", 2, None)}


def test_a_url_that_apprise_does_not_know_is_noted_by_its_scheme(lab: Lab) -> None:
    blocked_run(lab)

    outcome = deliver_to(lab, f"slak://{PASSWORD}/b")

    assert outcome == "0 of 3 alert(s) delivered; slak://... wrong url"
    assert PASSWORD not in text_of_everything(lab)


def test_an_endpoint_that_has_a_message_is_not_sent_it_again_because_of_another(lab: Lab, receiver: Receiver) -> None:
    blocked_run(lab)
    with receiving() as broken:
        broken.status = 500
        deliver_to(lab, f"{receiver.url} {broken.url}")
        broken.status = 200
        deliver_to(lab, f"{receiver.url} {broken.url}")

        assert (len(receiver.messages), len(broken.messages)) == (1, 1)
    assert alert_states(lab) == {"sent"}


def test_two_that_deliver_at_once_send_once(lab: Lab, receiver: Receiver) -> None:
    blocked_run(lab)

    outcomes = at_once(2, lambda number: deliver_to(lab, receiver.url, f"other-host:{number}:1"))

    assert sorted(outcomes) == ["3 of 3 alert(s) delivered", "no alerts to send"]
    assert len(receiver.messages) == 1


def test_several_runs_that_wait_are_told_in_one_message(lab: Lab, receiver: Receiver) -> None:
    prepare(lab)
    runs = [lab.run([day], "probe").run.id for day in (WHOLE, STALE)]

    deliver_to(lab, receiver.url)

    (message,) = receiver.messages
    assert message["title"].endswith("(and 1 more)")
    assert all(run_id in message["message"] for run_id in runs)


def test_what_has_waited_for_days_is_given_up(lab: Lab, receiver: Receiver) -> None:
    blocked_run(lab)
    lab.change_ledger("UPDATE alerts SET created_at = '2023-01-01 00:00:00.000000'")

    outcome = deliver_to(lab, receiver.url)

    assert outcome == "no alerts to send, 3 too old"
    assert alert_states(lab) == {"failed"}
    assert receiver.messages == []


# -- who tells ----------------------------------------------------------------------------------------------------


def test_telling_an_end_twice_writes_it_down_once(lab: Lab) -> None:
    run_id = blocked_run(lab)

    again = report_run(run_id, lab.ledger, lab.context.warehouse, lab.settings)

    assert not again
    assert len(lab.ledger.alerts.list_latest_alerts(10)) == 3


def test_a_run_that_goes_on_is_not_told(lab: Lab) -> None:
    prepare(lab)
    run, deps, _ = lab.opened([WHOLE], "probe")

    assert not report_run(run.id, lab.ledger, lab.context.warehouse, lab.settings)
    assert report_missed_runs(deps) == "reported the end of 0 run(s)"
    assert lab.ledger.alerts.list_latest_alerts(10) == []


def test_the_end_of_a_run_whose_command_died_is_told_by_the_next(lab: Lab, receiver: Receiver) -> None:
    prepare(lab)
    for day in (WHOLE, HALF):
        lab.probe("first", day, players(20), trick="wait")
    process = lab.start(*RUN, "--sequential")

    until(lambda: list(lab.marks.glob("waiting-*")), "a date in the middle of its processing")
    process.kill()
    process.communicate()
    (lab.marks / "released").touch()
    died = lab.latest_run().id

    ran = lab.invoke(*RUN, "--sequential", BACKFILL_ALERTS=receiver.url)

    assert ran.exit_code == 3
    (message,) = receiver.messages
    assert f"run {died} of probe was cancelled" in message["message"]


@pytest.mark.parametrize("ends_by_itself", [True, False], ids=["result", "interrupted"])
def test_stopping_the_telling_costs_neither_the_result_nor_the_exit_code(lab: Lab, ends_by_itself: bool) -> None:
    prepare(lab)
    if not ends_by_itself:
        lab.probe("first", WHOLE, players(20), trick="wait")
    with receiving() as receiver:
        receiver.hangs = True
        process = lab.start(*RUN, "--sequential", BACKFILL_ALERTS=receiver.url, BACKFILL_ALERT_TIMEOUT_SECONDS="100")
        if not ends_by_itself:
            until(lambda: list(lab.marks.glob("waiting-*")), "a date in the middle of its processing")
            process.send_signal(signal.SIGINT)
        until(lambda: receiver.heard, "the message")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)

    assert (process.returncode, err) == (
        3 if ends_by_itself else 130,
        "backfill: reporting the end of the run was interrupted: beat or the next run completes it\n",
    )
    assert ("`backfill retry" if ends_by_itself else "is cancelled") in out
    assert ("coverage below" if ends_by_itself else "was cancelled") in receiver.heard[0]["title"]
    assert alert_states(lab) == {"sending"}


def test_the_end_of_one_run_that_can_not_be_told_does_not_keep_the_others_from_it(lab: Lab) -> None:
    prepare(lab)
    broken, sound = (lab.run([day], "probe").run.id for day in (WHOLE, STALE))
    lab.change_ledger("UPDATE runs SET reported_at = NULL, owner = NULL")
    lab.change_ledger("UPDATE run_dates SET verdict = 'unheard-of' WHERE run_id = :run", run=broken)
    earlier = text_of(utcnow() - timedelta(days=2))
    lab.change_ledger("UPDATE runs SET finished_at = :at WHERE id = :run", run=broken, at=earlier)

    with pytest.raises(BackfillError, match=f"run {broken}: ValueError: .*unheard-of"):
        report_ended_runs(lab.ledger, lab.context.warehouse, lab.settings)

    assert lab.ledger.runs.get_run(sound).reported_at is not None
    assert lab.ledger.runs.get_run(broken).reported_at is None


def test_beat_tells_the_runs_of_the_broker_that_nobody_told(lab: Lab, receiver: Receiver) -> None:
    prepare(lab)
    run, deps, dispatcher = lab.opened([STALE], "probe")
    lab.change_ledger("UPDATE runs SET owner = NULL")
    dispatcher.drain(deps, lambda: None)
    assert lab.ledger.runs.get_run(run.id).has_ended

    assert report_missed_runs(deps) == f"reported the end of 1 run(s): {run.id}"
    assert report_missed_runs(deps) == "reported the end of 0 run(s)"
    assert deliver_alerts(deps) == "no endpoints are set"
    assert deliver_to(lab, receiver.url, deps.owner) == "3 of 3 alert(s) delivered"


@pytest.mark.parametrize(
    ("finished_at", "alerts"),
    [
        pytest.param(datetime(2023, 1, 1, tzinfo=UTC), 0, id="long-ago-is-history"),
        pytest.param(utcnow() - timedelta(days=2), 3, id="two-days-late-is-news"),
    ],
)
def test_the_end_of_a_run_is_reported_late_but_not_after_long(lab: Lab, finished_at: datetime, alerts: int) -> None:
    run_id = blocked_run(lab)
    lab.change_ledger("DELETE FROM alerts")
    lab.change_ledger("UPDATE runs SET reported_at = NULL, finished_at = :at", at=text_of(finished_at))

    assert report_ended_runs(lab.ledger, lab.context.warehouse, lab.settings) == [run_id]
    assert len(lab.ledger.alerts.list_latest_alerts(10)) == alerts


def test_more_than_two_fallbacks_in_a_week_are_told_once_a_week(lab: Lab) -> None:
    days = [WHOLE + timedelta(days=n) for n in range(4)]
    for day in days:
        lab.probe("expected", day, players(20))
        lab.probe("second", day, players(20))

    def often() -> list[str]:
        return [one.title for one in lab.ledger.alerts.list_latest_alerts(50) if one.kind == "fallback-often"]

    lab.run(days[:2], "probe")
    assert often() == []
    lab.run(days[2:3], "probe")
    assert often() == ["3 dates of probe were built from a fallback within 7 days"]
    lab.run(days[3:], "probe")
    assert len(often()) == 1


def test_a_silent_beat_is_told_once_and_one_that_never_was_is_not(lab: Lab) -> None:
    ledger = lab.ledger
    assert not record_beat_silence(ledger)
    last_heartbeat = utcnow()
    row = "INSERT INTO maintenance (name, done_slot, finished_at) VALUES ('heartbeat', :at, :at)"
    lab.change_ledger(row, at=text_of(last_heartbeat))

    assert not record_beat_silence(ledger, last_heartbeat + timedelta(minutes=10))
    assert record_beat_silence(ledger, last_heartbeat + timedelta(minutes=11))
    assert not record_beat_silence(ledger, last_heartbeat + timedelta(minutes=30))
    (alert,) = ledger.alerts.list_latest_alerts(10)
    assert (alert.kind, alert.run_id) == ("beat-silent", None)


# -- the command ----------------------------------------------------------------------------------------------------


def test_a_test_message_says_of_each_endpoint_whether_it_went(lab: Lab, receiver: Receiver) -> None:
    good, dead = receiver.url_for(USER, PASSWORD), f"json://{USER}:{PASSWORD}@127.0.0.1:1/"

    both = lab.invoke("alerts", "test", BACKFILL_ALERTS=f"{good},{dead}", BACKFILL_ALERT_TIMEOUT_SECONDS="2")
    one = lab.invoke("alerts", "test", "--json", BACKFILL_ALERTS=good)

    assert both.exit_code == 3
    assert f"json://127.0.0.1:{receiver.server_port}  delivered" in both.stdout
    assert "json://127.0.0.1:1  not delivered: could not be reached" in both.stdout
    assert (one.exit_code, [told["delivered"] for told in json.loads(one.stdout)]) == (0, [True])
    assert [message["title"] for message in receiver.messages] == ["backfill: this is a test"] * 2
    assert PASSWORD not in both.stdout + both.stderr + one.stdout + one.stderr


@pytest.mark.parametrize(
    ("urls", "says"),
    [
        pytest.param(f"slak://{PASSWORD}/b/c", "the slak:// URL", id="unknown-service"),
        pytest.param(f"tgram://{PASSWORD}", "the tgram:// URL", id="incomplete"),
        pytest.param(f"{USER}:{PASSWORD}@host", "part 1 of 1 is not a URL", id="no-scheme"),
        pytest.param("", "not set", id="empty"),
    ],
)
def test_a_wrong_url_is_refused_without_being_shown(lab: Lab, urls: str, says: str) -> None:
    refused = lab.invoke("alerts", "test", BACKFILL_ALERTS=urls)

    assert isinstance(refused.exception, UserError)
    assert says in str(refused.exception)
    assert PASSWORD not in refused.output + str(refused.exception)


def test_the_doctor_finds_a_wrong_url_and_sends_nothing(lab: Lab, receiver: Receiver) -> None:
    urls = {f"slak://{PASSWORD}/b/c": "FAIL", receiver.url_for(USER, PASSWORD): "OK"}
    for url, level in urls.items():
        ran = lab.invoke("doctor", "--job", "probe", "--json", BACKFILL_ALERTS=url)
        levels = {check["check"]: check["level"] for check in json.loads(ran.stdout)["checks"]}
        assert levels["alerts"] == level
        assert PASSWORD not in ran.stdout + ran.stderr
    assert receiver.messages == []


def test_an_unknown_kind_is_refused_before_anything_starts(lab: Lab) -> None:
    refused = lab.invoke("alerts", BACKFILL_ALERT_KINDS="run-blocked,everything")

    assert isinstance(refused.exception, UserError)
    assert "BACKFILL_ALERT_KINDS: Known kinds are low-coverage, run-blocked" in str(refused.exception)


def test_alerts_of_others_are_delivered_too(lab: Lab, receiver: Receiver) -> None:
    alert = NewAlert(key="cleanup-unusual 1", kind="cleanup-unusual", title="12,000 stale rows removed", lines=["..."])
    lab.ledger.alerts.record_alert(alert)

    deliver_to(lab, receiver.url)

    assert [message["title"] for message in receiver.messages] == ["backfill: 12,000 stale rows removed"]


def test_commands_do_not_wait_for_apprise_to_be_imported(lab: Lab) -> None:
    listed = lab.script("alerts", PYTHONPROFILEIMPORTTIME="1")

    assert listed.returncode == 0
    assert " click" in listed.stderr
    assert " apprise" not in listed.stderr
