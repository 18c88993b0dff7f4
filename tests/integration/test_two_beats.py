"""Two real beats, one worker and a real broker: each slot's work is done once."""

from __future__ import annotations

import dbm
import json
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from celery.beat import PersistentScheduler

from gated_backfill.common.broker.celery_app import make_app
from gated_backfill.common.process.clock import utcnow
from gated_backfill.worker.maintenance.beat import SlotScheduler
from gated_backfill.worker.maintenance.runner import MAINTENANCE_TASKS
from gated_backfill.worker.maintenance.schedule import beat_schedule, maintenance_schedules
from tests.brokers import valkey
from tests.lab import Lab, until
from tests.workers import celery, log_file_of

DAILY = {"staging_retention", "quarantine_retention", "undo_retention"}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    with valkey(tmp_path / "broker") as server:
        yield f"redis://127.0.0.1:{server.port}/0"


def last_seen_two_days_ago(lab: Lab, broker: str, file: Path) -> Path:
    """The schedule file of a beat that has been down since."""
    app = make_app(lab.settings, broker)
    app.conf.beat_schedule = beat_schedule(lab.settings)
    scheduler = PersistentScheduler(app, schedule_filename=str(file))
    for entry in scheduler.schedule.values():
        entry.last_run_at = utcnow() - timedelta(days=2)
    scheduler.close()
    return file


def events(log: Path) -> list[tuple[str, str, str]]:
    """The events that the worker logged about maintenance tasks: event, task, slot."""
    lines = (json.loads(line) for line in log.read_text().rpartition("\n")[0].splitlines() if line.startswith('{"'))
    return [(line["event"], line["task"], line["slot"]) for line in lines if "task" in line and "slot" in line]


def test_two_beats_that_come_back_after_two_days_have_each_missed_work_done_once(lab: Lab, broker: str) -> None:
    slots = {name: maintenance_schedules(lab.settings)[name].recurrence.latest_due(utcnow()) for name in DAILY}
    for name, slot in slots.items():
        lab.ledger.maintenance.register_task(name, slot - timedelta(days=1))
    beats = ("one", "two")
    logs, worker = [log_file_of(lab, name) for name in beats], log_file_of(lab, "worker")
    queues = ("--queues", "maintenance,housekeeping", "--concurrency", "2", "--loglevel", "WARNING")
    with ExitStack() as stack:
        for name in beats:
            schedule = last_seen_two_days_ago(lab, broker, lab.marks.parent / f"schedule-{name}")
            words = ("beat", "--schedule", str(schedule), "--loglevel", "INFO")
            stack.enter_context(celery(lab, name, *words, BACKFILL_BROKER=broker))
        stack.enter_context(celery(lab, "worker", "worker", *queues, BACKFILL_BROKER=broker))
        until(lambda: all(f"Sending due task {name}" in log.read_text() for log in logs for name in DAILY), "the beats")
        until(lambda: all(count(worker, name) >= 2 for name in DAILY), "the messages of both beats")
        until(lab.ledger.maintenance.last_heartbeat, "the heartbeat")

    done = sorted((name, slot) for event, name, slot in events(worker) if event == "maintenance_done" and name in DAILY)
    assert done == sorted((name, slot.isoformat()) for name, slot in slots.items())


def count(log: Path, name: str) -> int:
    return sum(work == name for _, work, _ in events(log))


def test_beat_discards_a_schedule_file_of_another_version(lab: Lab, tmp_path: Path) -> None:
    file, app = tmp_path / "schedule", make_app(lab.settings, "redis://127.0.0.1:1/0")
    app.conf.beat_schedule = beat_schedule(lab.settings)
    with dbm.open(str(file), "c") as raw:
        raw["entries"] = b"cworker.schedule\nAtSlots\n."  # a pickle that names a module of the version before

    scheduler = SlotScheduler(app, schedule_filename=str(file))

    assert scheduler.schedule.keys() >= MAINTENANCE_TASKS.keys()
    scheduler.close()
