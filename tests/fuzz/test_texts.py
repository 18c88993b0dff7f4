"""Names and reasons of any kind, through every command that shows them: none acts on a terminal or forges a line."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from datetime import date, timedelta

from hypothesis import given
from hypothesis import strategies as st

from gated_backfill.common.alerts.messages import MESSAGE_LENGTH, compose_message
from tests.fuzz.cases import share
from tests.fuzz.watching import Watched
from tests.lab import players
from tests.texts import acting_characters, check_output, texts

NAMES_SHOWN = 12  #: of a date's missing entities
BLOCKED, FAILED, FORCED, ORDERED = (date(2024, 3, 1) + timedelta(days=n) for n in range(4))
DATES = f"{BLOCKED}..{FORCED}"
RUN = ("run", "--job", "probe", "--reprocess", "all", "--sequential", "--yes", "--no-preflight")
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")

names = st.lists(texts.filter(lambda name: "\0" not in name), min_size=6, max_size=NAMES_SHOWN, unique=True)
reasons = texts.map(lambda text: text.replace("\0", "")).filter(lambda text: text.strip() and not text.startswith("-"))


@share(0.017)
@given(missing=names, reason=reasons, user=reasons, error=reasons)
def test_names_and_reasons_of_any_kind(
    watched: Watched, missing: list[str], reason: str, user: str, error: str
) -> None:
    lab, present = watched.lab, players(12)
    for day in (BLOCKED, FORCED):
        lab.probe("expected", day, [*present, *missing])
        lab.probe("first", day, [*present[:3], *[f"{name}?" for name in missing]])
    lab.probe_all([FAILED], present, trick=f"raise:{error}")
    lab.probe_all([ORDERED], present)

    def shown(*arguments: str) -> subprocess.CompletedProcess[str]:
        done = watched.invoke(*arguments, LOGNAME=user)
        for stream in (done.stdout, done.stderr):
            if stream and "--json" not in arguments and "-" not in arguments:
                check_output(stream)
        return done

    shown("plan", "--job", "probe", "--dates", DATES, "--reprocess", "all")
    assert shown(*RUN, "--dates", f"{BLOCKED},{FAILED}", "--reason", reason).returncode == 3
    (failed_run,) = (run.id for run in lab.ledger.runs.list_latest_runs(1))
    shown(*RUN, "--dates", str(FORCED), "--force", "--reason", reason)
    forced_run = lab.latest_run()
    assert forced_run.reason == reason.strip()
    ordered_run, *_ = lab.opened([ORDERED], "probe")
    assert lab.ledger.orders.pause_run(ordered_run.id, by=user, reason=reason)
    assert lab.ledger.orders.cancel_run(ordered_run.id, by=user, reason=reason, discard=False, now=False)
    for arguments in (
        ("status", ordered_run.id),
        ("status", failed_run),
        ("status", failed_run, "--every-date"),
        ("status", forced_run.id),
        ("history", "--days", "1"),
        ("coverage", "--job", "probe", "--dates", DATES, "--flag-incomplete"),
        ("cancel", failed_run, "--reason", reason),
        ("undo", failed_run, "--yes"),
        ("undo", forced_run.id, "--yes"),
        ("undo", forced_run.id, "--yes"),
        ("status", forced_run.id),
        ("kept", "list", "probe.probe"),
        ("cleanup", "--dry-run"),
        ("cleanup", "list"),
        ("alerts",),
        ("jobs",),
        ("plan", "--job", f"x{reason}", "--dates", DATES),
        ("status", f"x{reason}"),
        ("load", f"x{reason}", "x.csv"),
    ):
        shown(*arguments)
    logged = lab.inside("logs", failed_run).stdout  # with the traceback of the job, unlike what others may print
    check_output(logged)
    assert "\n    Traceback" in logged
    check_csv(shown("history", "--days", "1", "--csv", "-").stdout)
    assert shown("history", "--days", "1", "--html", "x.html").returncode == 0
    assert acting_characters((watched.cwd / "x.html").read_text(encoding="utf-8")) == set()
    alerts = lab.ledger.alerts.list_latest_alerts(4)
    check_output(compose_message(alerts).body, longest=MESSAGE_LENGTH)
    for log in (lab.home / "logs").glob("*.log"):
        for line in log.read_text(encoding="utf-8").split("\n")[:-1]:
            assert isinstance(json.loads(line), dict)
            assert acting_characters(line) == set()


def check_csv(page: str) -> None:
    """Check that each row is one line, and that no spreadsheet takes a text for a formula."""
    rows = list(csv.reader(io.StringIO(page)))

    assert acting_characters(page) == set()
    assert len(rows) == len(page.splitlines())
    for cell in (cell for row in rows[1:] for cell in row):
        assert not cell.startswith(FORMULA_STARTS) or cell.removeprefix("-").replace(".", "").isdecimal()
