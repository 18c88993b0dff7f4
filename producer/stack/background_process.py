"""A process that outlives the command that starts it: it reads its input, answers with one line, and goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.process.logs import open_log
from gated_backfill.producer.stack.children import child_environment
from gated_backfill.producer.stack.embedded import places_environment


def start_background_process(module: str, settings: Settings, log_file: Path) -> subprocess.Popen[bytes]:
    """Start the module in a session of its own, with the settings' home and URLs. Its stderr goes to the log file."""
    with open_log(log_file) as log:
        return subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=child_environment(places_environment(settings)),
            cwd=log_file.parent,  # not the user's folder: Python would import modules from there first
            start_new_session=True,
        )


def exchange_lines(process: subprocess.Popen[bytes], text: str) -> str:
    """Send the process its input, and return its answer; empty if it ended without one."""
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin as pipe:
        pipe.write(text.encode())
    with process.stdout as pipe:
        return pipe.readline().decode().strip()


def send_startup_answer(line: str) -> None:
    """Write the one line that the command that started this process reads, and redirect stdout to the null device."""
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
