"""A lane: a process that has imported everything and forks what schedules need, several schedules at a time.

It reads requests, one JSON object a line, and writes results likewise. It opens nothing itself: what is forked from it
must find no connection and no thread of another's.
"""

from __future__ import annotations

import gc
import json
import os
import select
import sys
from pathlib import Path
from typing import Any

from gated_backfill.common.process.identity import die_with_parent
from tests.faults.chaos.imports import import_everything
from tests.faults.chaos.run import PATIENCE_SECONDS, Services, start
from tests.faults.chaos.schedule import make_schedule

TICK_SECONDS = 0.02


def serve(services: Services) -> None:
    die_with_parent(os.getppid())
    import_everything()
    gc.collect()
    gc.freeze()  # a fork's own collections then leave what is shared alone
    running: dict[int, tuple[int, Path]] = {}
    open_for_more = True
    pending = b""
    while open_for_more or running:
        if open_for_more and select.select([0], [], [], TICK_SECONDS)[0]:
            data = os.read(0, 65536)
            open_for_more = bool(data)
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                _begin(json.loads(line), services, running)
        _finish(running)


def _begin(request: dict[str, Any], services: Services, running: dict[int, tuple[int, Path]]) -> None:
    seed = request["seed"]
    answer = Path(services.folder) / f"result-{seed}-{len(running)}-{os.getpid()}.json"
    pid = start(make_schedule(seed), services, request.get("mutant"), request.get("patience", PATIENCE_SECONDS), answer)
    running[pid] = (seed, answer)


def _finish(running: dict[int, tuple[int, Path]]) -> None:
    if not running:
        return
    pid, status = os.waitpid(-1, os.WNOHANG)
    if pid in running:
        seed, answer = running.pop(pid)
        log = answer.with_suffix(".log")
        if answer.exists():
            text = answer.read_text()
            answer.unlink()
        else:
            text = json.dumps({"seed": seed, "trouble": f"ended with {status}: {log.read_text()[-1000:]}"})
        log.unlink(missing_ok=True)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve(Services(**json.loads(sys.argv[1])))
