"""Run the commands of a document, and compare their output with the output that the document shows.

A block that begins with ```console holds commands (`$ ...`, continued by `> ...`), each followed by its output, in
which `...` matches any text. All such blocks of a document run in order in one shell and folder. A command must succeed
unless its line ends in `# exit code N`.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.prepared import BACKFILL, prepared_programs

ROOT = Path(__file__).parent.parent
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.DOTALL | re.MULTILINE)
EXIT_CODE = re.compile(r"# exit code (\d+)$")
TIMEOUT_SECONDS = 400


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of a document with its documented output."""

    text: str
    output: str
    exit_code: int = 0

    def matches(self, output: str) -> bool:
        """Whether the output contains the documented output. Without documented output, any output matches."""
        parts = [re.escape(part) for part in _normalize_spaces(self.output).split("...")]
        return re.search(".*".join(parts), _normalize_spaces(output), re.DOTALL) is not None


def _normalize_spaces(text: str) -> str:
    """Remove what depends on the width of a terminal."""
    return re.sub(r"[ \t]+", " ", "\n".join(line.strip() for line in text.strip().splitlines()))


def commands_of(document: str) -> list[Command]:
    """List the commands of a document in order."""
    return [command for block in CONSOLE.findall(document) for command in _commands(block)]


def _commands(block: str) -> Iterator[Command]:
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        first, *rest = part.splitlines()
        while rest and rest[0].startswith("> "):
            first += "\n" + rest.pop(0)[2:]
        code = EXIT_CODE.search(first)
        yield Command(text=first, output="\n".join(rest), exit_code=int(code[1]) if code else 0)


def run_document(document: str, folder: Path, environment: Mapping[str, str]) -> list[str]:
    """Run the document's commands. Returns a message for each command that differs, with its actual output."""
    commands = commands_of(document)
    results = Path(tempfile.mkdtemp(prefix="results-", dir=folder.parent))
    folder.mkdir(exist_ok=True)
    script = "\n".join(
        f"{{ {command.text}\n}} > {results}/{n}.out 2>&1 < /dev/null; echo $? > {results}/{n}.code"
        for n, command in enumerate(commands)
    )
    process = subprocess.run(
        ["/bin/bash"],
        input=script,
        text=True,
        capture_output=True,
        cwd=folder,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("BACKFILL_")},
            "PATH": os.pathsep.join([str(prepared_programs()), str(BACKFILL.parent), os.environ["PATH"]]),
            "COLUMNS": "160",
            **environment,
        },
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return [problem for n, command in enumerate(commands) if (problem := _problem(command, results, n))]


def _problem(command: Command, results: Path, number: int) -> str | None:
    code = results / f"{number}.code"
    if not code.exists():
        return f"$ {command.text}\nwas not reached"
    output = (results / f"{number}.out").read_text(encoding="utf-8")
    if int(code.read_text()) != command.exit_code:
        return f"$ {command.text}\nended with exit code {code.read_text().strip()}\n{output}"
    if not command.matches(output):
        return f"$ {command.text}\nprinted\n{output}\nbut the document says\n{command.output}"
    return None
