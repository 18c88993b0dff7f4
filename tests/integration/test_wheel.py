"""The built wheel, installed into an environment without our sources, beside packages called as our folders are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from gated_backfill.producer.stack.embedded import free_port
from tests.brokers import valkey
from tests.documents import ROOT
from tests.prepared import prepared_programs
from tests.shop import README, install_shop_jobs, readme_block, write_shop_tables

BIN = Path(sys.executable).parent
DEPENDENCIES = sysconfig.get_path("purelib")
FOLDERS = ("common", "producer", "worker")
CELERY_SCRIPT = "#!{python}\nimport sys\nfrom celery.__main__ import main\nsys.exit(main())\n"
BUILD_SDIST = "import setuptools.build_meta as build; build.build_sdist({out!r})"
BUILD_WHEEL = "import setuptools.build_meta as build; build.build_wheel({out!r})"
RUN = ("run", "--job", "store_revenue", "--start-date", "2024-03-01", "--end-date", "2024-03-03", "--reprocess", "all")
WRONG_FIELD = """
from gated_backfill import Source

Source(name="tills", table="shop.till_sales", date_column="sold_on", colour="red")
"""


def run_process(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """The output of a command that has to succeed."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    process = subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        env=inherited | environment,
        timeout=180,
        check=False,
    )
    assert process.returncode == 0, f"{' '.join(map(str, command))}\n{process.stdout}"
    return process.stdout


def build(tools: Environment, command: str, sources: Path, out: Path) -> None:
    run_process(tools.python, "-c", command.format(out=str(out)), cwd=sources)


def uv(*arguments: str | Path) -> str:
    return run_process(BIN / "uv", "pip", *arguments, UV_NO_CACHE="1")


@dataclass(frozen=True)
class Environment:
    """A virtual environment that sees our dependencies, but not our sources."""

    folder: Path

    @property
    def site(self) -> Path:
        return self.folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def install(self, *what: str | Path) -> None:
        uv("install", "--quiet", "--python", self.python, "--offline", "--no-deps", "--no-build-isolation", *what)

    def install_by_pip(self, *what: str | Path) -> None:
        """As `install`, with the settings of a user's pip, and with bytecode."""
        pip = (BIN / "python", "-m", "pip", "--disable-pip-version-check", "--python", self.python)
        run_process(*pip, "install", "--quiet", "--no-deps", "--no-build-isolation", *what)

    def add_dependencies(self) -> None:
        """Let it import what is installed beside pytest. Path files there, as of an editable install, do nothing."""
        (self.site / "dependencies.pth").write_text(DEPENDENCIES + "\n")
        celery = self.folder / "bin" / "celery"
        celery.write_text(CELERY_SCRIPT.format(python=self.python))
        celery.chmod(0o755)

    def backfill(self, *arguments: str, cwd: Path, **environment: str) -> str:
        return run_process(self.folder / "bin" / "backfill", *arguments, cwd=cwd, **environment)


def make_environment(folder: Path) -> Environment:
    run_process(BIN / "python", "-m", "venv", "--without-pip", folder)
    return Environment(folder)


@dataclass(frozen=True)
class Built:
    """What a build of a copy of the sources left."""

    sources: Path
    wheel: Path
    sdist: Path
    build_tools: Environment


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The wheel and the sdist of a copy of what the Dockerfile copies, as a build leaves files beside its sources."""
    folder = tmp_path_factory.mktemp("built")
    sources, out = folder / "sources", folder / "out"
    sources.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, sources)
    for name in ("gated_backfill", *FOLDERS):
        shutil.copytree(ROOT / name, sources / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    tools = make_environment(folder / "tools")
    tools.install_by_pip("setuptools>=77")
    for command in (BUILD_SDIST, BUILD_WHEEL):
        build(tools, command, sources, out)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return Built(sources, wheel, sdist, tools)


@pytest.fixture(scope="session")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the wheel and the README's job."""
    environment = make_environment(tmp_path_factory.mktemp("installed") / "venv")
    environment.install_by_pip(built.wheel)
    environment.add_dependencies()
    install_shop_jobs(environment.site)
    return environment


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder of a user whose packages are called as our folders are, with the shop's tables."""
    folder = tmp_path / "project"
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise SystemExit('not this one')")
    write_shop_tables(folder)
    return folder


def load_table(project: Path, table: str) -> None:
    """Load a table of the shop with our sources, for a test in which another command is the point."""
    load = (prepared_programs() / "backfill", "load", f"shop.{table}", f"{table}.csv")
    run_process(*load, cwd=project, BACKFILL_HOME="home")


def test_the_wheel_holds_every_file_in_one_import_package(built: Built) -> None:
    ours = [path for name in FOLDERS for path in (ROOT / name).rglob("*") if path.is_file()]
    expected = {f"gated_backfill/{path.relative_to(ROOT)}" for path in ours if "__pycache__" not in path.parts}

    names = zipfile.ZipFile(built.wheel).namelist()

    assert {name.split("/")[0] for name in names} == {"gated_backfill", "gated_backfill-0.1.0.dist-info"}
    assert expected - set(names) == set()
    assert {"gated_backfill/py.typed", "gated_backfill/dbt.py"} <= set(names)


def test_a_wheel_of_the_sdist_is_the_wheel_of_the_sources(built: Built, tmp_path: Path) -> None:
    with tarfile.open(built.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    build(built.build_tools, BUILD_WHEEL, unpacked, tmp_path / "out")
    (wheel,) = (tmp_path / "out").glob("*.whl")

    assert zipfile.ZipFile(wheel).namelist() == zipfile.ZipFile(built.wheel).namelist()


def test_an_editable_install_works_beside_packages_of_our_names(built: Built, project: Path, tmp_path: Path) -> None:
    environment = make_environment(tmp_path / "venv")
    (environment.site / "tools.pth").write_text(f"{built.build_tools.site}\n")
    environment.install("--editable", built.sources)
    environment.add_dependencies()

    assert "player_composite_factors" in environment.backfill("jobs", cwd=project, PYTHONPATH=".")


@pytest.mark.parametrize("path", [{}, {"PYTHONPATH": "."}], ids=["no-path", "path"])
def test_every_command_works_beside_packages_of_our_names(
    installed: Environment, project: Path, path: dict[str, str]
) -> None:
    if not path:  # an interpreter started with -m would import this one for Celery's
        (project / "celery").mkdir()
        (project / "celery" / "__init__.py").write_text("raise SystemExit('not this one')")
    places = {"BACKFILL_HOME": "home", "BACKFILL_STAGING": "staging", "BACKFILL_LEDGER": "sqlite:///own.db"}

    def backfill(*arguments: str) -> str:
        return installed.backfill(*arguments, cwd=project, BACKFILL_WORKERS="1", **places, **path)

    assert "store_revenue  version 1" in backfill("jobs")
    assert "3 date(s)" in backfill("load", "shop.till_sales", "till_sales.csv")
    for table in ("open_stores", "bank_settlements"):
        load_table(project, table)
    assert "3 date(s): 3 to build" in backfill("plan", *RUN[1:])
    assert "succeeded: 3 of 3 dates" in backfill(*RUN)
    assert "3 complete" in backfill("coverage", "--job", "store_revenue", "--start-date", RUN[4], "--end-date", RUN[6])
    backfill(*RUN, "--detach")
    assert "succeeded: 3 of 3 dates" in backfill("watch")
    try:
        backfill("up", "--flower-port", str(free_port()), "--metrics-port", str(free_port()))
        assert "succeeded: 3 of 3 dates" in backfill(*RUN)
    finally:
        backfill("down")
    assert (project / "own.db").exists()


@pytest.mark.parametrize("path", [{}, {"PYTHONPATH": "."}], ids=["no-path", "path"])
def test_the_documented_workers_start_beside_packages_of_our_names(
    installed: Environment, project: Path, path: dict[str, str], tmp_path: Path
) -> None:
    lines = re.findall(r"^    (celery --app .*)$", README, re.MULTILINE)
    assert len(lines) == 4
    with valkey(tmp_path / "broker") as server:
        places = {"BACKFILL_HOME": "home", "BACKFILL_BROKER": f"redis://127.0.0.1:{server.port}/0"} | path
        for table in ("open_stores", "till_sales", "bank_settlements"):
            load_table(project, table)
        environment = {"PATH": f"{installed.folder / 'bin'}:{os.environ['PATH']}"} | places
        with (tmp_path / "workers.log").open("w") as log:
            started = {"cwd": project, "env": environment, "stderr": log, "stdout": log}
            workers = [subprocess.Popen(line.split(), **started) for line in lines]
        try:
            result = installed.backfill(*RUN, cwd=project, **places)
            ended = [worker.poll() for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()

    assert "succeeded: 3 of 3 dates" in result
    assert ended == [None] * len(lines), (tmp_path / "workers.log").read_text()


@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_another_distribution_with_a_common_has_no_effect(built: Built, tmp_path: Path, first: str) -> None:
    theirs = write_wheel(tmp_path / "common_tools-1.0-py3-none-any.whl", "common/errors.py")
    environment = make_environment(tmp_path / "venv")
    for wheel in (theirs, built.wheel) if first == "theirs" else (built.wheel, theirs):
        environment.install(wheel)
    their_file = environment.site / "common" / "errors.py"
    assert their_file.exists()

    environment.add_dependencies()
    assert "player_composite_factors" in environment.backfill("jobs", cwd=tmp_path)
    (environment.site / "dependencies.pth").unlink()
    uv("uninstall", "--quiet", "--python", environment.python, "common-tools")
    environment.add_dependencies()

    assert not their_file.exists()
    assert "player_composite_factors" in environment.backfill("jobs", cwd=tmp_path)


def write_wheel(file: Path, module: str) -> Path:
    """A wheel of a distribution with one module."""
    name, version = file.name.split("-")[:2]
    metadata = f"{name}-{version}.dist-info"
    members = {
        module: "raise SystemExit('not this one')\n",
        f"{metadata}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{metadata}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(file, "w") as archive:
        for member, text in members.items():
            archive.writestr(member, text)
        listed = [*members, f"{metadata}/RECORD"]
        archive.writestr(listed[-1], "".join(f"{member},,\n" for member in listed))
    return file


@pytest.mark.parametrize("checker", ["mypy", "basedpyright"])
def test_type_checkers_see_the_types_of_the_wheel(installed: Environment, tmp_path: Path, checker: str) -> None:
    options = {"mypy": ["--python-executable"], "basedpyright": ["--level", "error", "--pythonpath"]}

    (tmp_path / "job.py").write_text(readme_block("job", "python"))
    (tmp_path / "wrong.py").write_text(WRONG_FIELD)
    command = [BIN / checker, *options[checker], installed.python, "job.py", "wrong.py"]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=180, check=False)

    errors = [line for line in process.stdout.splitlines() if re.search(r"\berror:|- error", line)]
    assert (process.returncode, len(errors)) == (1, 1), process.stdout
    assert re.search(r"wrong\.py:4.*colour", errors[0])
