"""A host that cannot work harms only itself: others build its dates, and it takes dates again when it is mended.

Every worker is on a host of its own. Its staging folder has the same path everywhere, below the folder that the worker
was started in, and is a link to what is "mounted" there.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import pytest

from gated_backfill.common.ledger import DateState, Ledger, Run, open_ledger
from gated_backfill.common.ledger.stores.heartbeats import Heartbeat
from tests.hosts import WORKER
from tests.lab import Lab, players, until
from tests.workers import log_file_of

DAYS = [date(2023, 2, 20) + timedelta(days=n) for n in range(6)]
STAGING = "/proc/self/cwd/staging"
#: Mounts the shared folder read-only on the folder `read-only`, for one worker only.
MOUNT_READ_ONLY = 'mount --bind "$SHARED" read-only && mount -o remount,ro,bind read-only && exec "$@"'


@dataclass(frozen=True)
class Host:
    """A host, with what is mounted on its staging folder."""

    name: str
    folder: Path
    shared: Path  #: the staging that is the right one

    @classmethod
    def made(cls, lab: Lab, name: str) -> Host:
        host = cls(name=name, folder=lab.home.parent / name, shared=lab.home.parent / "shared")
        for folder in (host.shared, host.folder / "read-only", host.folder / "empty"):
            folder.mkdir(parents=True, exist_ok=True)
        host.mount(host.shared)
        return host

    def mount(self, target: Path) -> None:
        (self.folder / "next").symlink_to(target)
        (self.folder / "next").replace(self.folder / "staging")

    @contextmanager
    def worker(self, lab: Lab, queues: str, places: dict[str, str]) -> Iterator[None]:
        words = ["--hostname", f"{queues.partition(',')[0]}@{self.name}", "--queues", queues, "--concurrency", "1"]
        command = ["sh", "-c", MOUNT_READ_ONLY, "sh", sys.executable, "-c", WORKER, *words]
        variables = lab.environment() | places | {"TEST_HOST": self.name, "SHARED": str(self.shared)}
        with log_file_of(lab, self.name).open("w") as log:
            process = subprocess.Popen(
                ["/usr/bin/env", "unshare", "--map-root-user", "--mount", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=variables,
                cwd=self.folder,
            )
        try:
            yield
        finally:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Hosts:
    """Two hosts for dates, of which one breaks, and one for gates."""

    broken: Host
    sound: Host
    gate: Host
    places: dict[str, str]
    ledger: Ledger

    def worker_of(self, host: Host) -> Heartbeat | None:
        workers = [one for one in self.ledger.heartbeats.list_running() if one.is_worker and one.host == host.name]
        return workers[0] if workers else None

    def wait_for_fault(self, kind: str, reason: str) -> str:
        """Wait until the broken host takes no tasks; returns why."""
        worker: Heartbeat = until(
            lambda: (found := self.worker_of(self.broken)) and found.fault and found.unconsumed and found,
            "the note that the host cannot work",
        )
        assert worker.fault is not None
        assert worker.fault.kind.value == kind
        assert reason in worker.fault.reason
        return worker.fault.reason

    def wait_for_recovery(self) -> None:
        until(
            lambda: (worker := self.worker_of(self.broken)) and not worker.fault and not worker.unconsumed,
            "the note that the host can work again",
        )

    def wait_for_end(self, run: Run) -> None:
        until(lambda: self.ledger.runs.get_run(run.id).has_ended, "the end of the run")


@pytest.fixture
def hosts(lab: Lab, broker: str, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    places = {"BACKFILL_BROKER": broker, "BACKFILL_LEDGER": sqlite_url, "BACKFILL_STAGING": STAGING}
    broken, sound, gate = (Host.made(lab, name) for name in ("broken-host", "sound-host", "gate-host"))
    monkeypatch.chdir(Host.made(lab, "launcher").folder)
    ledger = open_ledger(sqlite_url)
    yield Hosts(broken=broken, sound=sound, gate=gate, places=places, ledger=ledger)
    ledger.close()


def launch(lab: Lab, hosts: Hosts, days: list[date]) -> Run:
    done = lab.inside("run", "--job", "probe", "--dates", ",".join(map(str, days)), "--detach", **hosts.places)
    assert done.returncode == 0, done.stderr
    return hosts.ledger.runs.list_latest_runs()[0]


def counts(hosts: Hosts, run: Run) -> set[tuple[DateState, int, int, int]]:
    """The state of each date, and what was counted against it."""
    rows = hosts.ledger.dates.list_dates(run.id)
    return {(row.state, row.attempt, row.deaths, row.losses) for row in rows}


READ_ONLY = ("read-only", "staging", "Read-only file system")
EMPTY = ("empty", "wrong-staging", "it has no file .backfill-staging")


@pytest.mark.parametrize(
    ("at_start", "later"),
    [
        pytest.param(READ_ONLY, EMPTY, id="read-only-then-empty"),
        pytest.param(EMPTY, READ_ONLY, id="empty-then-read-only"),
    ],
)
def test_a_broken_host_harms_only_itself_and_works_again_when_it_is_mended(
    lab: Lab, hosts: Hosts, at_start: tuple[str, str, str], later: tuple[str, str, str]
) -> None:
    lab.probe_all(DAYS[:3], players(10))
    lab.probe_all(DAYS[3:], players(10), trick="wait")
    queued = {(DateState.QUEUED, 0, 0, 0)}
    built = {(DateState.CHECKPOINTED, 1, 0, 0)}
    hosts.broken.mount(hosts.broken.folder / at_start[0])
    with ExitStack() as stack:
        stack.enter_context(hosts.gate.worker(lab, "gate,maintenance", hosts.places))
        stack.enter_context(hosts.broken.worker(lab, "backfill", hosts.places))
        run = launch(lab, hosts, DAYS[:3])
        reason = hosts.wait_for_fault(*at_start[1:])
        until(lambda: counts(hosts, run) == queued, "the dates, back in the queue")
        shown = " ".join(lab.inside("status", run.id, **hosts.places).stdout.split())
        assert f"stopped no worker can work: broken-host: {reason}; the dates wait in the queue" in shown

        with hosts.sound.worker(lab, "backfill", hosts.places):
            hosts.wait_for_end(run)
            doctor = " ".join(lab.command("doctor", "--job", "probe", **hosts.places).stdout.split())
        assert counts(hosts, run) == built
        assert "WARN hosts backfill@broken-host cannot work on host broken-host since" in doctor

        hosts.broken.mount(hosts.broken.shared)
        hosts.wait_for_recovery()
        run = launch(lab, hosts, DAYS[3:])
        until(lambda: list(lab.marks.glob("waiting-*")), "a date in the middle of its processing")
        hosts.broken.mount(hosts.broken.folder / later[0])
        (lab.marks / "released").touch()
        hosts.wait_for_fault(*later[1:])
        until(lambda: counts(hosts, run) == queued, "the dates, back in the queue")
        assert list((hosts.broken.folder / "empty").rglob("*.parquet")) == []

        hosts.broken.mount(hosts.broken.shared)
        hosts.wait_for_end(run)
        assert counts(hosts, run) == built
