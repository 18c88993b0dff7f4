"""Documents whose commands are run: what each prints is compared with what the document says it prints.

A block that begins with ```console holds commands (`$ ...`, continued by `> ...`) and, below each, what it prints;
`...` stands for anything. Its commands run in order, with those of the document's other such blocks, in one shell in
one folder. A command has to succeed unless its line ends in `# exit code N`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.DOTALL | re.MULTILINE)
EXIT_CODE = re.compile(r"# exit code (\d+)$")
PATIENCE_SECONDS = 400


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of a document, and what it is said to print."""

    text: str
    printed: str
    exit_code: int = 0

    def is_told_truly(self, output: str) -> bool:
        """Whether the output is what the document says; where it says nothing, anything is."""
        if not self.printed:
            return True
        told = [re.escape(part) for part in re.split(r"\.\.\.", _squeezed(self.printed))]
        return re.search(".*".join(told), _squeezed(output), re.DOTALL) is not None


def _squeezed(text: str) -> str:
    """The text without what depends on the width of a terminal."""
    return re.sub(r"[ \t]+", " ", "\n".join(line.strip() for line in text.strip().splitlines()))


def commands_of(document: str) -> list[Command]:
    """The commands of a document in their order."""
    return [command for block in CONSOLE.findall(document) for command in _commands(block)]


def _commands(block: str) -> Iterator[Command]:
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        first, *rest = part.splitlines()
        while rest and rest[0].startswith("> "):
            first += "\n" + rest.pop(0)[2:]
        code = EXIT_CODE.search(first)
        yield Command(text=first, printed="\n".join(rest), exit_code=int(code[1]) if code else 0)


def run_document(document: str, folder: Path, environment: Mapping[str, str]) -> list[str]:
    """Run the document's commands; returns what is not as it says, each with what was printed instead."""
    commands = commands_of(document)
    results = Path(tempfile.mkdtemp(prefix="results-", dir=folder.parent))
    folder.mkdir(exist_ok=True)
    script = "\n".join(
        f"{{ {command.text}\n}} > {results}/{n}.out 2>&1 < /dev/null; echo $? > {results}/{n}.code"
        for n, command in enumerate(commands)
    )
    ran = subprocess.run(
        ["/bin/bash"],
        input=script,
        text=True,
        capture_output=True,
        cwd=folder,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("BACKFILL_")},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "160",
            **environment,
        },
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return [wrong for n, command in enumerate(commands) if (wrong := _wrong(command, results, n))]


def _wrong(command: Command, results: Path, number: int) -> str | None:
    code = results / f"{number}.code"
    if not code.exists():
        return f"$ {command.text}\nwas not reached"
    printed = (results / f"{number}.out").read_text(encoding="utf-8")
    if int(code.read_text()) != command.exit_code:
        return f"$ {command.text}\nended with exit code {code.read_text().strip()}\n{printed}"
    if not command.is_told_truly(printed):
        return f"$ {command.text}\nprinted\n{printed}\nwhere the document says\n{command.printed}"
    return None
