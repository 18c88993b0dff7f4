"""Whether anything that requirements.lock pins is known to be vulnerable: `make audit`.

It asks the advisory databases of PyPI and of OSV through pip-audit. Where neither answers, nothing is known, and that
is what it says: NOT AUDITED, loudly, and not a failure, since whoever has no way out would never pass otherwise. A list
that is at hand offline is looked through besides, and its age is told: it can find something, but not that all is well.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import files, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

SOURCES = ("pypi", "osv")
ASK_SECONDS = 5  #: for one answer
ALL_SECONDS = 60  #: for one source, when it answers
OFFLINE = "safety-db"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one source of advisories says."""

    source: str
    vulnerable: tuple[str, ...] = ()  #: package, version and advisory
    audited: int = 0  #: packages that it could say something of
    silent: str | None = None  #: why it could not be asked, or not about all


def answer_of(source: str, output: str, errors: str) -> Answer:
    """What pip-audit's report says. A report that can't be read is no answer."""
    try:
        found = json.loads(output)["dependencies"]
        asked = [one for one in found if "skip_reason" not in one]
        vulnerable = [
            f"{one['name']} {one['version']}: {vuln['id']}, mended in {', '.join(vuln['fix_versions']) or 'no version'}"
            for one in asked
            for vuln in one["vulns"]
        ]
    except (ValueError, KeyError, TypeError):
        last = (errors.strip().splitlines() or ["it said nothing"])[-1]
        return Answer(source=source, silent=last[:200])
    skipped = len(found) - len(asked)
    silent = f"{skipped} of {len(found)} packages could not be audited" if skipped or not found else None
    return Answer(source=source, vulnerable=tuple(vulnerable), audited=len(asked), silent=silent)


def verdict(answers: Sequence[Answer], pinned: int) -> tuple[int, list[str]]:
    """The exit code and what is said. Something known to be vulnerable fails; that nobody was asked is said first."""
    vulnerable = sorted({line for one in answers for line in one.vulnerable})
    if vulnerable:
        return 1, [f"VULNERABLE: {len(vulnerable)} known:", *vulnerable]
    if any(one.audited >= pinned and one.silent is None for one in answers):
        return 0, [f"audited: nothing is known against the {pinned} packages of requirements.lock"]
    why = [f"  {one.source}: {one.silent or 'it knows only some of the packages'}" for one in answers]
    return 0, [
        "=" * 78,
        f"NOT AUDITED: whether the {pinned} packages of requirements.lock are vulnerable is NOT KNOWN.",
        *why,
        "Run `make audit` where pypi.org or api.osv.dev can be reached.",
        "=" * 78,
    ]


def pins(text: str) -> dict[str, str]:
    """The versions that a lock file pins."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    found = (Requirement(line) for line in lines if "==" in line and not line.startswith("-"))
    return {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in found}


def listed(pinned: Mapping[str, str], insecure: Mapping[str, Sequence[str]]) -> list[str]:
    """The pins that a list of insecure versions names."""
    by_name = {canonicalize_name(name): specifiers for name, specifiers in insecure.items()}
    return [
        f"{name} {pin}: {specifier} in the offline list"
        for name, pin in sorted(pinned.items())
        for specifier in by_name.get(name, ())
        if SpecifierSet(specifier).contains(pin, prereleases=True)
    ]


def ask(source: str, lock: Path) -> Answer:
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--no-deps", "--disable-pip"]
    command += ["--vulnerability-service", source, "--timeout", str(ASK_SECONDS), "--format", "json"]
    try:
        done = subprocess.run(
            [*command, "--progress-spinner", "off"], capture_output=True, text=True, timeout=ALL_SECONDS
        )
    except subprocess.TimeoutExpired:
        return Answer(source=source, silent=f"it did not answer within {ALL_SECONDS} s")
    return answer_of(source, done.stdout, done.stderr)


def offline(pinned: Mapping[str, str]) -> Answer:
    (file,) = (found for found in files(OFFLINE) or [] if found.name == "insecure.json")
    listing: dict[str, Any] = json.loads(file.read_text())  # the package itself can't be imported
    insecure = {name: specifiers for name, specifiers in listing.items() if not name.startswith("$")}
    about = f"a list of {version(OFFLINE)}, which knows of nothing found since"
    return Answer(source=f"offline ({OFFLINE})", vulnerable=tuple(listed(pinned, insecure)), silent=about)


def main(lock: Path) -> int:
    pinned = pins(lock.read_text())
    answers: list[Answer] = []
    for source in SOURCES:
        answers.append(ask(source, lock))
        if answers[-1].silent is None:
            break
    code, said = verdict([*answers, offline(pinned)], len(pinned))
    print("\n".join(said))
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
