"""A prepared program is what its interpreter would be: its streams, folder, environment, exit code and signals."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.lab import until
from tests.prepared import prepared_programs

PROBE = """
import os, signal, sys
print(os.getcwd(), os.environ["GIVEN"], *sys.argv[1:], flush=True)
print("to stderr", file=sys.stderr)
match sys.stdin.readline().split():
    case ["exit", code]:
        sys.exit(int(code))
    case ["message"]:
        sys.exit("not today")
    case ["raise"]:
        raise ValueError("a bug")
    case ["kill"]:
        os.kill(os.getpid(), signal.SIGKILL)
    case ["wait"]:
        print(os.getpid(), flush=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        print("ready", flush=True)
        signal.pause()
"""


def start(folder: Path, *program: str) -> subprocess.Popen[str]:
    (folder / "celery_probe.py").write_text(PROBE)
    client, *options = program or ("python", "-m", "celery_probe")
    return subprocess.Popen(
        [prepared_programs() / client, *options, "one", "two words"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={"GIVEN": "value"},
    )


@pytest.mark.parametrize("program", [("python", "-m", "celery_probe"), ("python-c", PROBE)], ids=["module", "code"])
@pytest.mark.parametrize(
    ("order", "code", "said"),
    [
        ("exit 0", 0, ""),
        ("exit 3", 3, ""),
        ("exit 130", 130, ""),
        ("message", 1, "not today"),
        ("raise", 1, "ValueError: a bug"),
        ("kill", -signal.SIGKILL, ""),
        ("nothing", 0, ""),
    ],
)
def test_it_has_its_streams_and_ends_as_it_would_by_itself(
    tmp_path: Path, order: str, code: int, said: str, program: tuple[str, ...]
) -> None:
    process = start(tmp_path, *program)
    out, err = process.communicate(order, timeout=30)

    assert (process.returncode, out) == (code, f"{tmp_path} value one two words\n")
    assert err.startswith("to stderr\n")
    assert err.strip().endswith(said)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 7), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_signal_to_the_client_reaches_it(tmp_path: Path, number: int, code: int) -> None:
    with start(tmp_path) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("wait\n")
        process.stdin.flush()
        _, pid, ready = (process.stdout.readline() for _ in range(3))
        assert ready == "ready\n"
        process.send_signal(number)
        assert process.wait(30) == code
        until(lambda: not psutil.pid_exists(int(pid)), "the end of the program")


@pytest.mark.parametrize(("name", "said"), [("backfill", "backfill "), ("celery", "5.")])
def test_a_console_script_is_called_by_its_name(tmp_path: Path, name: str, said: str) -> None:
    shown = subprocess.check_output([prepared_programs() / name, "--version"], cwd=tmp_path, text=True, env={})
    assert shown.startswith(said)


def test_the_start_of_any_other_program_is_real(tmp_path: Path) -> None:
    command = [prepared_programs() / "python", "-c", "import sys; print('sqlalchemy' in sys.modules)"]
    assert subprocess.check_output(command, cwd=tmp_path, text=True) == "False\n"
