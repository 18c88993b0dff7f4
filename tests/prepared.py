"""Our programs in processes that have imported them already: most of what a short command or a worker costs.

A server imports every command and what workers do, and forks for each call of a client, which is called `backfill`,
`celery`, `python` or `python-c`. The fork runs the console script, the module, or with `python-c` the code of the first
argument, with the arguments, environment, folder and standard streams of the client. Signals to the client go on to
it. The client ends as it ended, and takes it with it if it is killed.

What a program imports is tested elsewhere, and a test that watches the process of a command starts the console script
itself, whose workers are then those of a user, too.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import marshal
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import NoReturn

BACKFILL = Path(sys.executable).parent / "backfill"
SCRIPTS = ("backfill", "celery")  #: clients that are called as the console scripts which they run
#: What workers do and what opens a warehouse of files: imported by the server beside the commands. Not the Celery app,
#: which reads the settings when it is imported.
IMPORTED = (
    "celery.bin.celery",
    "celery.concurrency.prefork",
    "celery.worker.worker",
    "gated_backfill.common.warehouse.local.query",
    "gated_backfill.common.warehouse.local.warehouse",
    "gated_backfill.worker.dates.process",
    "gated_backfill.worker.gate.gate",
    "gated_backfill.worker.gate.recount",
    "gated_backfill.worker.messages.consumer",
    "gated_backfill.worker.run_job",
)
OURS = ("celery", "gated_backfill.")  #: modules that `python -m` runs in a fork; the start of any other program is real
#: Isolated and without `site`, because its start would cost more than the rest. Both sides have the same interpreter.
CLIENT = """#!{python} -IS
import marshal, os, sys, _signal, _socket

name = os.path.basename(sys.argv[0])
if name == "python" and not (sys.argv[1] == "-m" and sys.argv[2].startswith({ours!r})):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
server.connect({address!r})
request = marshal.dumps((name, sys.argv[1:], dict(os.environ), os.getcwd()))
streams = b"".join(number.to_bytes(4, sys.byteorder) for number in range(3))
server.sendmsg([len(request).to_bytes(4)], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, streams)])
server.sendall(request)
forwarded = (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM)
for number in forwarded:
    _signal.signal(number, lambda number, _: server.send(number.to_bytes(1)))
answer = server.recv(2, _socket.MSG_WAITALL)
code = int.from_bytes(answer, signed=True) if answer else 255
if code < 0:
    if -code in forwarded:
        _signal.signal(-code, _signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@lru_cache(maxsize=1)
def prepared_programs() -> Path:
    """The folder of the clients. Their server ends with this process."""
    folder = Path(mkdtemp(prefix="backfill-"))
    address = folder / "server"
    for name in (*SCRIPTS, "python", "python-c"):
        client = folder / name
        client.write_text(CLIENT.format(python=sys.executable, address=str(address), ours=OURS))
        client.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, __file__, str(address)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        start_new_session=True,
    )
    atexit.register(server.communicate)  # closes its input, and waits for it
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    return folder


@dataclass(frozen=True)
class Program:
    """What a fork of the server runs."""

    client: str
    arguments: list[str]

    def run(self) -> NoReturn:
        """Run it and end, without the time that an interpreter takes to delete what was imported."""
        code: object = None
        try:
            if self.client in SCRIPTS:
                script = str(BACKFILL.with_name(self.client))
                sys.argv[:] = [script, *self.arguments]
                runpy.run_path(script, run_name="__main__")
            elif self.client == "python-c":
                code_text, *rest = self.arguments
                sys.argv[:] = ["-c", *rest]
                exec(code_text, {"__name__": "__main__"})  # noqa: S102 - the code is a test's
            else:
                _, module, *rest = self.arguments
                sys.argv[:] = ["-m", *rest]
                if not hasattr(sys.modules.get(module), "__path__"):
                    sys.modules.pop(module, None)  # as in an interpreter that has imported nothing
                runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            code = ended.code
        except BaseException:  # noqa: BLE001 - an interpreter shows it and ends
            traceback.print_exc()
            code = 1
        if isinstance(code, str):
            sys.stderr.write(f"{code}\n")
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def _import_programs() -> None:
    from gated_backfill.producer.cli.main import COMMANDS, load_command

    for name in COMMANDS:
        load_command(name)
    for module in IMPORTED:
        importlib.import_module(module)


def _serve(address: str) -> Program | None:
    """Fork for each client until the process that started this one ends. Returns in a fork, with what it runs."""
    _import_programs()
    gc.collect()
    gc.freeze()  # forks then share the memory of what was imported
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        os.write(1, b"ready\n")
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            with suppress(ChildProcessError):  # raised when no fork is left
                while os.waitpid(-1, os.WNOHANG) != (0, 0):  # counted, too, as CPU time of this process's children
                    pass
            client, _ = listener.accept()
            with client:
                if os.fork() == 0:
                    listener.close()
                    return _start(client, Path(address).parent)
    shutil.rmtree(Path(address).parent)
    return None


def _start(client: socket.socket, clients: Path) -> Program:
    """Fork once more and report to the client how that ends. Returns in the second fork, in the client's place."""
    length, streams, _, _ = socket.recv_fds(client, 4, 3)
    request = client.recv(int.from_bytes(length), socket.MSG_WAITALL)
    name, arguments, environment, folder = marshal.loads(request)  # noqa: S302 - the client is ours
    if program := os.fork():
        for stream in (0, 1, 2, *streams):
            os.close(stream)
        _watch(program, client)
        os._exit(0)
    client.close()
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    os.chdir(folder)
    sys.executable = str(clients / "python")
    given = [part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part]
    sys.path[:1] = [str(BACKFILL.parent), *given] if name in SCRIPTS else [folder, *given]
    importlib.invalidate_caches()
    gc.unfreeze()
    return Program(name, arguments)


def _watch(program: int, client: socket.socket) -> None:
    """Pass on the client's signals, and tell it how the program ends. Kill the program if the client is killed."""
    ends = os.pidfd_open(program)
    while ends not in select.select([client, ends], [], [])[0]:
        number = client.recv(1)
        os.kill(program, number[0] if number else signal.SIGKILL)
        if not number:
            break
    _, status = os.waitpid(program, 0)
    with suppress(BrokenPipeError):
        client.send(os.waitstatus_to_exitcode(status).to_bytes(2, signed=True))


if __name__ == "__main__" and (program := _serve(sys.argv[1])) is not None:
    program.run()
