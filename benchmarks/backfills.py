"""A measured `backfill run` on workers of its own."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from benchmarks.processes import BACKFILL, Memory, broker, broker_peak_mb, cpu_seconds, environment, started, workers
from benchmarks.results import Measured
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.ledger import RunState, open_ledger

CommandEnv = Mapping[str, str]
FollowRun = Callable[[CommandEnv, subprocess.Popen[bytes]], None]  #: gets the command's environment and process


@dataclass(frozen=True, kw_only=True)
class Servers:
    """Where broker and ledger are. None: started for the run, as embedded ones are, and a file."""

    broker: str | None = None
    ledger: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunArguments:
    """What to backfill, and how."""

    job: str
    days: Sequence[date]
    per_task: str = "auto"
    servers: Servers = field(default_factory=Servers)
    settings: Mapping[str, str] = field(default_factory=dict[str, str])  #: environment variables

    def command(self) -> list[str]:
        arguments = ["--job", self.job, "--start-date", str(self.days[0]), "--end-date", str(self.days[-1])]
        return [str(BACKFILL), "run", *arguments, "--dates-per-task", self.per_task, "--yes"]


def measure_backfill(
    name: str, folder: Path, home: Path, arguments: RunArguments, *, follow: FollowRun | None = None
) -> Measured:
    """Run the command on two worker and two gate processes; check that every date has its checkpoint.

    The seconds are those from the run's opening to its end. `follow` is called while the command runs.
    """
    with _running(folder, home, arguments) as (env, pids, broker_url):
        began, cpu_before = time.time(), cpu_seconds(pids.values())
        with (
            started(arguments.command(), env, folder / "run.log") as process,
            Memory(**pids, producer=process.pid) as memory,
        ):
            if follow is not None:
                follow(env, process)
            assert process.wait() == 0, (folder / "run.log").read_text()[-2000:]
        whole = time.time() - began
        peak, cpu = broker_peak_mb(broker_url), cpu_seconds(pids.values()) - cpu_before
    seconds, first = _read_times(home, arguments)
    gate = _gate_seconds(folder / "gate.log")
    return Measured(
        name=name,
        dates=len(arguments.days),
        dates_per_task=int(arguments.per_task) if arguments.per_task.isdecimal() else arguments.per_task,
        seconds=seconds,
        peak_mb=memory.total_mb,
        broker_peak_mb=peak,
        more={
            "cpu_seconds": cpu,
            "whole_command_seconds": whole,
            "first_checkpoint_seconds": first - began,
            "gate_seconds_per_window": sum(gate) / len(gate),
            **{f"{name}_peak_mb": value for name, value in memory.peak_mb.items()},
        },
    )


@contextmanager
def _running(folder: Path, home: Path, arguments: RunArguments) -> Iterator[tuple[CommandEnv, dict[str, int], str]]:
    """Start a broker and workers. Yields the environment of commands, the workers' process ids and the broker's URL."""
    with broker(folder, arguments.servers.broker) as url:
        settings = {"BACKFILL_HOME": str(home), "BACKFILL_BROKER": url, "BACKFILL_TASK_EVENTS": "false"}
        settings["BACKFILL_WORKER_NICE"] = "0"  # other work on the machine is to slow down all contestants alike
        if arguments.servers.ledger is not None:
            settings["BACKFILL_LEDGER"] = arguments.servers.ledger
        env = environment(**settings, **arguments.settings)
        with workers("gated_backfill.worker.app", url, env, folder, dates="backfill", gate="gate,maintenance") as pids:
            yield env, pids, url


def _read_times(home: Path, arguments: RunArguments) -> tuple[float, float]:
    """Return the seconds of the run, and the time of its first checkpoint."""
    given = {} if arguments.servers.ledger is None else {"ledger": arguments.servers.ledger}
    ledger_url = Settings(home=home, **given).ledger_url  # pyright: ignore[reportCallIssue, reportArgumentType]
    ledger = open_ledger(ledger_url, create=False)
    try:
        run = ledger.runs.list_latest_runs(1)[0]
        assert run.state is RunState.SUCCEEDED
        checkpoints = ledger.checkpoints.list_checkpoints(arguments.job, arguments.days[0], arguments.days[-1])
    finally:
        ledger.close()
    assert len(checkpoints) == len(arguments.days)
    assert run.started_at is not None
    assert run.finished_at is not None
    first = min(checkpoint.checkpointed_at for checkpoint in checkpoints.values()).timestamp()
    return (run.finished_at - run.started_at).total_seconds(), first


def _gate_seconds(log: Path) -> list[float]:
    events = re.findall(r"^\{.*\"window_gated\".*\}$", log.read_text(), re.MULTILINE)
    return [event["seconds"] for event in map(json.loads, events) if event["outcome"] == "closed"]
