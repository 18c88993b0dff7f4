"""Jobs of another package, whose rows say how they are to misbehave.

A row's `trick` is obeyed when its date is processed. What must happen once only, or wait for the test, goes through
files in the folder named by PROBE_MARKS.
"""

import logging
import os
import signal
import sys
import time
from pathlib import Path

import pandas as pd

from gated_backfill import Batch, Column, Expectation, Job, Source, Target
from gated_backfill.common.errors import HostError, NotAllowed, WarehouseUnavailable

PATIENCE_SECONDS = 60


def process(batch: Batch) -> pd.DataFrame:
    if marks := os.environ.get("PROBE_MARKS"):
        (Path(marks) / f"worker-{os.getpid()}").touch()
    for trick in sorted(set(batch.rows["trick"].dropna())):
        name, _, argument = trick.partition(":")
        TRICKS[name](batch, argument)
    rows = batch.rows.assign(source=batch.rows["_source"])
    made = [spoilt(of_day) for _, of_day in rows.groupby("day")]
    return pd.concat(made) if all(isinstance(one, pd.DataFrame) for one in made) else made


def spoilt(rows: pd.DataFrame) -> pd.DataFrame:
    made = rows[["name", "day", "value", "source"]]
    return OUTPUT_TRICKS.get(str(rows["spoil"].iloc[0]), lambda frame: frame)(made)


def first_time(name: str) -> bool:
    """Whether nobody called this with that name before."""
    try:
        (Path(os.environ["PROBE_MARKS"]) / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def kill_worker(batch: Batch, argument: str) -> None:
    if argument != "once" or first_time(f"killed-{batch.days[0]}"):
        os.kill(os.getpid(), signal.SIGKILL)


def raise_error(batch: Batch, argument: str) -> None:
    raise RuntimeError(argument or f"no luck on {batch.days[0]}")


def write_to_a_log(batch: Batch, argument: str) -> None:
    logging.getLogger("probe_jobs").warning("strange name: %s", argument)


def raise_in_a_library(batch: Batch, argument: str) -> None:
    batch.rows["no such column"]


def fail_for_a_while(batch: Batch, argument: str) -> None:
    if any(first_time(f"transient-{batch.days[0]}-{n}") for n in range(int(argument))):
        raise WarehouseUnavailable("come back later", day=batch.days[0])


def forbid(batch: Batch, argument: str) -> None:
    raise NotAllowed("this user may not read it", day=batch.days[0])


def blame_the_host(batch: Batch, argument: str) -> None:
    raise HostError(f"no space left for {batch.days[0]}")


def wait_for_release(batch: Batch, argument: str) -> None:
    marks = Path(os.environ["PROBE_MARKS"])
    (marks / f"waiting-{batch.days[0]}").touch()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (marks / "released").exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def sleep_long(batch: Batch, argument: str) -> None:
    time.sleep(PATIENCE_SECONDS)


def ignore_the_soft_limit(batch: Batch, argument: str) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    time.sleep(PATIENCE_SECONDS)


def hoard(batch: Batch, argument: str) -> None:
    hoarded = []
    while True:  # in small pieces, so that all of it is really used
        hoarded.append(bytearray(os.urandom(1024) * 1024))


def end_the_process(batch: Batch, argument: str) -> None:
    sys.exit(int(argument)) if argument else exit()


class Stop(BaseException):
    """An error that `except Exception` does not catch."""


def stop(batch: Batch, argument: str) -> None:
    raise Stop("at once")


TRICKS = {
    "exit": end_the_process,
    "stop": stop,
    "kill": kill_worker,
    "raise": raise_error,
    "log": write_to_a_log,
    "library": raise_in_a_library,
    "transient": fail_for_a_while,
    "forbid": forbid,
    "host": blame_the_host,
    "wait": wait_for_release,
    "sleep": sleep_long,
    "stuck": ignore_the_soft_limit,
    "hoard": hoard,
}

OUTPUT_TRICKS = {
    "as it came": lambda made: made.assign(_source=made["source"]),
    "duplicate": lambda made: pd.concat([made, made.head(1)]),
    "null key": lambda made: made.assign(name=made["name"].where(made.index != made.index[0], None)),
    "out of range": lambda made: made.assign(value=-5.0),
    "wrong day": lambda made: made.assign(day=made["day"] + pd.Timedelta(days=1)),
    "no column": lambda made: made.drop(columns="value"),
    "no frame": lambda made: [1, 2, 3],
}

COLUMNS = {"name": "STRING", "value": "FLOAT64", "trick": "STRING", "spoil": "STRING"}


def probe(name: str, **more) -> Job:
    return Job(
        name=name,
        version="1",
        description="Does what its rows tell it to",
        target=Target(
            table=f"probe.{name}",
            date_column="day",
            key=("name", "day"),
            columns={
                "name": Column(type="STRING"),
                "day": Column(type="DATE"),
                "value": Column(type="FLOAT64", ge=0),
                "source": Column(type="STRING"),
            },
        ),
        expectation=Expectation(table="probe.expected", date_column="day", entity="name"),
        sources=(
            Source(name="first", table="probe.first", date_column="day", columns=COLUMNS),
            Source(name="second", table="probe.second", date_column="day", columns=COLUMNS),
        ),
        process=process,
        **more,
    )


PROBE = probe("probe")
# The soft limit must not end a date before its job begins, however slow the machine.
IN_A_HURRY = probe("probe_in_a_hurry", soft_time_limit_seconds=6, time_limit_seconds=8)
