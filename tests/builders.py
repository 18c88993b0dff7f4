"""What many tests build: rows, staged files, runs in each state, and processes that race."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from itertools import count
from pathlib import Path
from threading import Barrier
from typing import Any, NoReturn, TypeVar

import pyarrow as pa

from gated_backfill.common.errors import StagedFileLost
from gated_backfill.common.ledger import Checkpoint, DateRow, DateState, Ledger, NewDate, NewRun, Run, RunState
from gated_backfill.common.model.coverage import Recount, Verdict
from gated_backfill.common.model.dates import DateRange, chunk_dates
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.publication import Publication, StagedFile
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.identity import process_identity
from gated_backfill.common.storage.staging import Staging
from gated_backfill.common.warehouse.protocol import Scan, Warehouse
from gated_backfill.worker.dates.outcomes import AttemptOutcome
from gated_backfill.worker.dates.process import process_dates
from gated_backfill.worker.dependencies import Deps
from gated_backfill.worker.gate.recount import recount
from gated_backfill.worker.gate.staged_contents import read_contents

ROOT = Path(__file__).parent.parent
FEB_23 = date(2023, 2, 23)
FEB_24 = date(2023, 2, 24)
FEB_25 = date(2023, 2, 25)
DAYS = (FEB_23, FEB_24, FEB_25)
NOON = datetime(2023, 3, 1, 12, tzinfo=UTC)
JOB = "players"
TABLE = TableName("nba", "factors")
RUN_OPTIONS = {"fallback": "replace", "complete_ratio": 0.95, "accept_ratio": 0.9}
LEASE = timedelta(minutes=5)
PATIENCE_SECONDS = 60
#: A time zone in which it is about noon: the date does not change while the tests run.
NOON_ZONE = f"Etc/GMT{utcnow().hour - 12:+d}"
T = TypeVar("T")

# -- signals ------------------------------------------------------------------------------------------------------


@contextmanager
def answering(*signals: signal.Signals, by: type[BaseException]) -> Iterator[None]:
    """The signals are answered by an exception, which is given the signal, as processes do that are told to stop."""

    def answer(which: int, frame: object) -> NoReturn:
        raise by(which)

    before = {which: signal.signal(which, answer) for which in signals}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


# -- rows and tables ----------------------------------------------------------------------------------------------


def rows_of(*days: date, players: int = 3, score: float = 1.0) -> pa.Table:
    """So many players on each of the days."""
    listed = [(f"player{n:03d}", day, score + n) for day in days for n in range(players)]
    schema = pa.schema([("player", pa.string()), ("day", pa.date32()), ("score", pa.float64())])
    columns = [list(column) for column in zip(*listed, strict=True)] if listed else [[], [], []]
    return pa.table(columns, schema=schema)


def span(start: date, through: date | None = None) -> DateRange:
    return DateRange(start=start, through=through or start)


def scan(*dates: DateRange, table: TableName = TABLE, columns: dict[str, str] | None = None) -> Scan:
    return Scan(table=table, date_column="day", dates=dates, columns=columns)


def counts(warehouse: Warehouse, *days: date, table: TableName = TABLE) -> dict[date, int]:
    """The rows that a reader finds on each of the days; a day without any is not in it."""
    scans = {"t": scan(*(span(day) for day in days), table=table)}
    found = warehouse.query("SELECT day, COUNT(*) AS n FROM t GROUP BY day", scans=scans)
    return {row["day"]: row["n"] for row in found.to_pylist()}


def staged(staging: Staging, day: date, *, players: int = 3, score: float = 1.0, attempt: int = 1) -> StagedFile:
    return staging.write("run-1", day, attempt, rows_of(day, players=players, score=score))


def is_intact(staging: Staging, file: StagedFile) -> bool:
    """Whether what was staged is there."""
    try:
        with staging.open(file) as rows:
            return rows.metadata.num_rows == file.rows
    except StagedFileLost:
        return False


def recount_rows(
    warehouse: Warehouse, job: Job, rows: Mapping[date, pa.Table], staging: Staging
) -> dict[date, Recount]:
    """What the gate counts of the rows, staged under each date."""
    files = [staging.write("recounted", day, 1, table) for day, table in rows.items()]
    return recount(warehouse, job, {file.day: read_contents(file, job, staging) for file in files})


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file under a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tree(root: Path) -> dict[str, bytes]:
    """Every data file under a folder with its bytes."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.parquet")}


def age_kept_rows(root: Path, *, days: int) -> None:
    """Have all removed rows that the local warehouse keeps be removed, and be found expired, so many days earlier."""

    def earlier(time: str) -> str:
        return (datetime.fromisoformat(time) - timedelta(days=days)).isoformat()

    for note in (root / ".undo").rglob("note-*.json"):
        content = json.loads(note.read_text())
        note.write_text(json.dumps(content | {"kept_at": earlier(content["kept_at"])}))
    for found in (root / ".undo").rglob("expired.json"):
        found.write_text(json.dumps({name: earlier(time) for name, time in json.loads(found.read_text()).items()}))


# -- runs and their dates -----------------------------------------------------------------------------------------


def everyone_lives(owner: str) -> bool:
    return False


def everyone_is_dead(owner: str) -> bool:
    return True


def new_run(days: Sequence[date] = DAYS, *, window: int = 100, job: str = JOB, **more: Any) -> NewRun:
    windows = enumerate(chunk_dates(list(days), window))
    values: dict[str, Any] = {
        "job": job,
        "job_version": "1",
        "options": {"window": window, "in_flight": 3, **RUN_OPTIONS},
        "requested": "these days",
        "requested_by": "a test",
        "owner": None,
        "dates": tuple(NewDate(day=day, window=number) for number, dates in windows for day in dates),
    }
    return NewRun(**values | more)


def running_run(ledger: Ledger, days: Sequence[date] = DAYS, *, window: int = 100, **more: Any) -> Run:
    """A run on its way, none of its windows open yet."""
    run = ledger.runs.open_run(new_run(days, window=window, **more))
    assert ledger.runs.move_run(run.id, expect=[RunState.PLANNED], to=RunState.RUNNING)
    return ledger.runs.get_run(run.id)


def queued_run(ledger: Ledger, days: Sequence[date] = DAYS, *, window: int = 100, **more: Any) -> Run:
    """A run with all its windows open and all its dates queued."""
    run = running_run(ledger, days, window=window, **more)
    ledger.windows.open_windows(run.id, in_flight=len(days))
    return run


def claim_date(
    ledger: Ledger,
    run: Run,
    day: date = FEB_23,
    *,
    owner: str = "other",
    until: datetime | None = None,
    is_dead: Callable[[str], bool] = everyone_lives,
    max_losses: int = 3,
) -> DateRow | None:
    """What a worker gets that asks for that one date."""
    until = until or utcnow() + LEASE
    rows = ledger.claims.claim_dates(run.id, [day], owner, until, is_dead=is_dead, max_losses=max_losses)
    return rows[0] if rows else None


def claimed_date(ledger: Ledger, run: Run, day: date, *, owner: str = "worker", lease: timedelta = LEASE) -> None:
    """The owner holds the date; with a negative lease, no longer."""
    assert claim_date(ledger, run, day, owner=owner, until=utcnow() + lease) is not None


def staged_date(ledger: Ledger, run: Run, day: date, *, checksum: str = "c" * 64) -> None:
    """Its rows wait for the gate."""
    claimed_date(ledger, run, day)
    facts = {"staged_path": f"/staging/{day}.parquet", "checksum": checksum, "target_before": "absent"}
    facts |= {"inputs": "i" * 64, "source": "upcoming"} | dict.fromkeys(("rows", "expected", "matched"), 187)
    assert move_processing(ledger, run, DateState.STAGED, day, owner="worker", **facts)


def move_processing(ledger: Ledger, run: Run, to: DateState, day: date = FEB_23, **more: Any) -> bool:
    """Move a date that is being processed; whether it moved."""
    return ledger.dates.move_date(run.id, day, expect=DateState.PROCESSING, to=to, **more)


def published_date(ledger: Ledger, run: Run, day: date, *, verdict: Verdict | None = Verdict.COMPLETE) -> None:
    """Readers see its rows; no checkpoint yet."""
    staged_date(ledger, run, day)
    if verdict is not None:
        ledger.dates.record_verdicts(run.id, {day: {"verdict": verdict.value, "reason": "187 of 187"}})
    assert ledger.dates.move_date(run.id, day, expect=DateState.STAGED, to=DateState.PUBLISHED)


def checkpointed_date(ledger: Ledger, run: Run, day: date) -> None:
    published_date(ledger, run, day)
    assert ledger.checkpoints.write(run.id, [day]) == [day]


def failed_date(ledger: Ledger, run: Run, day: date) -> None:
    claimed_date(ledger, run, day)
    assert move_processing(ledger, run, DateState.FAILED, day, verdict="failed")


def blocked_date(ledger: Ledger, run: Run, day: date) -> None:
    staged_date(ledger, run, day)
    assert ledger.dates.move_date(run.id, day, expect=DateState.STAGED, to=DateState.BLOCKED, verdict="blocked")


def state_of(ledger: Ledger, run: Run, day: date) -> DateState:
    (row,) = ledger.dates.list_dates(run.id, days=[day])
    return row.state


def process_date(run_id: str, day: date, deps: Deps, *, retries: int = 0) -> AttemptOutcome:
    """What a task of that one date does."""
    (outcome,) = process_dates(run_id, [day], deps, retries=retries)
    return outcome


# -- records that no ledger has ------------------------------------------------------------------------------------


def a_run(**fields: Any) -> Run:
    known = {"id": "run-1", "job": JOB, "job_version": "1", "state": RunState.PARTIAL, "options": {}}
    known |= {"requested": "these days", "requested_by": "ada", "first_date": FEB_23, "last_date": FEB_24}
    return Run(**dict.fromkeys(Run.__dataclass_fields__) | known | {"created_at": NOON} | fields)


def a_date(state: DateState = DateState.CHECKPOINTED, **fields: Any) -> DateRow:
    known = {"run_id": "run-1", "day": FEB_23, "job": JOB, "state": state, "active": False, "missing": (), "lost": ()}
    return DateRow(**dict.fromkeys(DateRow.__dataclass_fields__) | known | {"attempt": 1, "deaths": 0} | fields)


def a_checkpoint(day: date, *, matched: int = 187, **fields: Any) -> Checkpoint:
    known = {"job": JOB, "day": day, "run_id": "run-0", "job_version": "1", "verdict": Verdict.COMPLETE, "reason": ""}
    known |= {"expected": 187, "matched": matched, "rows": matched, "source": "upcoming", "checksum": "c"}
    return Checkpoint(**known | {"inputs": "i", "checkpointed_at": NOON} | fields)


# -- threads ------------------------------------------------------------------------------------------------------


def at_once(times: int, call: Callable[[int], T]) -> list[T]:
    """Make the call in several threads at the same moment, and return the results."""
    barrier = Barrier(times)

    def wait_and_call(number: int) -> T:
        barrier.wait()
        return call(number)

    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(wait_and_call, range(times)))


# -- processes ----------------------------------------------------------------------------------------------------

RACE = """
import importlib, json, multiprocessing, sys, traceback

def run(connection, wait, function, arguments):
    try:
        connection.send((function(wait, *arguments), None))
    except BaseException:
        connection.send((None, traceback.format_exc()))

runners = [
    (getattr(importlib.import_module(module), name), arguments) for module, name, arguments in json.load(sys.stdin)
]
fork = multiprocessing.get_context("fork")  # what is imported once serves them all
line, started = fork.Barrier(len(runners)), []
for function, arguments in runners:
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=run, args=(sender, line.wait, function, arguments))
    process.start()
    sender.close()
    started.append((process, receiver))
results = []
for process, receiver in started:
    try:
        results.append(receiver.recv())
    except EOFError:
        process.join()
        results.append((process.exitcode, None))
print(json.dumps(results))
"""


def dead_process() -> str:
    """The identity of a process of this host that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = process_identity(process.pid)
    process.communicate(b"\n")
    return identity


def run_python(code: str, *arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run the code in a process of its own, which finds the arguments in `sys.argv[1:]`, to its end."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def race(*runners: tuple[Callable[..., Any], *tuple[object, ...]]) -> list[Any]:
    """What functions of modules return, each called in a process of its own; of one that is killed, its exit code.

    A runner is a function and its arguments, which JSON carries: what it does not know comes as text. Each function is
    given `wait` as its first argument, which returns once all the processes have called it.
    """
    calls = [(function.__module__, function.__name__, arguments) for function, *arguments in runners]
    ran = run_python(RACE, stdin=json.dumps(calls, default=str))
    assert ran.returncode == 0, ran.stderr
    results = json.loads(ran.stdout)
    traces = [trace for _, trace in results if trace]
    assert not traces, "\n".join(traces)
    return [result for result, _ in results]


def die_at(call: str, number: int) -> None:
    """Kill this process when it makes so many calls of that function of `os`, before the last one has an effect."""
    calls, real = count(1), getattr(os, call)

    def counted(*arguments: Any, **more: Any) -> Any:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **more)

    setattr(os, call, counted)


def undo_begun(ledger: Ledger, run_id: str, days: Iterable[date]) -> int:
    """Begin an undo as a process whose lease has expired; the generation of its lease."""
    after = ledger.runs.get_run(run_id).undo_generation
    begin = ledger.checkpoints.begin_undo
    return begin(run_id, [*days], "another process", utcnow(), after=after, is_dead=lambda owner: False)


def publication_of(name: str, *, generation: int = 1) -> Publication:
    """The publication of a window, named RUN/WINDOW."""
    run, _, window = name.partition("/")
    return Publication(run=run, window=int(window), generation=generation)
