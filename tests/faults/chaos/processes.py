"""The processes of a schedule: forks of a lane that has imported everything and opened nothing.

Each is a process in a session of its own, as if started from a shell, that dies with whoever forked it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from gated_backfill.common.process.identity import die_with_parent
from tests.faults.chaos.faults import Carrier, Place, release_copies_at_closed_windows
from tests.faults.chaos.mutants import MUTANTS
from tests.faults.chaos.periods import shorten
from tests.faults.chaos.points import Counters, Points
from tests.faults.chaos.schedule import BEAT, DATES, GATE, PRODUCER, Schedule

CRASHED = 70  #: the exit code of a fork whose function raised

WORKER = ["worker", "--loglevel", "INFO", "--without-gossip", "--without-mingle", "--without-heartbeat"]
COMMANDS = {
    DATES: [*WORKER, "--queues", "backfill", "--concurrency", "2", "--hostname", "dates@chaos"],
    GATE: [*WORKER, "--queues", "gate,maintenance,housekeeping", "--concurrency", "2", "--hostname", "gate@chaos"],
    BEAT: ["beat", "--loglevel", "INFO", "--pidfile", "", "--schedule", "beat-schedule"],
}


def fork(body: Callable[[], Any], *, log: Path | None = None) -> int:
    """Run the function in a process of its own; returns its pid. Its output goes to the log."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = CRASHED
    try:
        os.setsid()
        die_with_parent(parent)
        for which in (signal.SIGTERM, signal.SIGINT):
            signal.signal(which, signal.SIG_DFL)
        _redirect(log)
        body()
        code = 0
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 1 if exc.code else 0
    except BaseException:  # noqa: BLE001 - the edge: nothing of what forked it may run here
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _redirect(log: Path | None) -> None:
    quiet = os.open(os.devnull, os.O_RDONLY)
    os.dup2(quiet, 0)
    if log is not None:
        handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)


def call(body: Callable[[], Any], *, log: Path) -> Any:
    """What the function returns, as JSON hands it over, from a process of its own."""
    reader, writer = os.pipe()

    def answer() -> None:
        os.close(reader)
        with os.fdopen(writer, "w") as pipe:
            json.dump(body(), pipe)

    pid = fork(answer, log=log)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError(f"{body} failed: see {log}:\n{log.read_text()[-3000:]}")
    return json.loads(text)


def prepare(
    role: str, schedule: Schedule, place: Place, environment: Mapping[str, str], counters: Counters, mutant: str | None
) -> None:
    for name in [name for name in os.environ if name.startswith("BACKFILL_")]:
        del os.environ[name]
    os.environ.update(environment)
    os.chdir(place.folder)
    if schedule.sql:
        _take_sql_job()
    shorten(schedule.lease)
    if schedule.strangers:
        _be_a_stranger()
    if role == GATE:
        release_copies_at_closed_windows(place)
    carrier = Carrier(place, role, schedule.shape, environment["BACKFILL_WAREHOUSE"])
    Points(role, schedule.faults, counters, carrier).install()
    if mutant is not None:
        MUTANTS[mutant]()


def _take_sql_job() -> None:
    """Find the SQL job under the name of the one in Python."""
    import chaos_jobs

    chaos_jobs.CHAOS = chaos_jobs.CHAOS_SQL


def _be_a_stranger() -> None:
    """Believe that every worker, with its processes, is on a host of its own, as where each has a container."""
    from gated_backfill.common.process import identity as processes

    host = f"host-of-{os.getpid()}"
    processes._host = lambda: host


def celery_process(role: str, *prepared: Any) -> NoReturn:
    """A worker or beat, with the command line of the README."""
    prepare(role, *prepared)
    sys.argv = ["celery", *COMMANDS[role]]
    from gated_backfill.worker.app import app

    app.start(argv=COMMANDS[role])
    sys.exit(0)


def producer_process(arguments: list[str], *prepared: Any, role: str = PRODUCER) -> NoReturn:
    """The console script."""
    prepare(role, *prepared)
    sys.argv = ["backfill", *arguments]
    from gated_backfill.producer.cli.main import main

    main()
    sys.exit(0)
