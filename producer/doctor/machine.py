"""Checks of this machine: package versions, the home and the staging folder."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from gated_backfill.common.config.ledger_url import SQLITE_PREFIX
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import BackfillError, HostError
from gated_backfill.common.process.private_files import is_open_to_others
from gated_backfill.common.storage.files import check_writable
from gated_backfill.common.storage.staging import QUARANTINE, open_staging
from gated_backfill.producer.doctor.results import CheckResult, fail, ok, warn

PACKAGE = "gated-backfill"
REPORTED_PACKAGES = ("celery", "redis", "sqlalchemy", "duckdb", "google-cloud-bigquery", "pyarrow", "pandas")


def check_packages() -> CheckResult:
    """Report the versions in use; fail if a package does not meet our requirements."""
    packages = (PACKAGE, *REPORTED_PACKAGES)
    versions = [f"Python {platform.python_version()}", *(f"{name} {_installed_version(name)}" for name in packages)]
    unmet: list[str] = []
    for line in requires(PACKAGE) or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        installed = _installed_version(requirement.name)
        if installed == "missing" or not requirement.specifier.contains(installed, prereleases=True):
            unmet.append(f"{requirement.name} is {installed}, needed is {requirement.specifier or 'any version'}")
    if unmet:
        return fail("versions", "; ".join(unmet), f"install the requirements again: `pip install {PACKAGE}`")
    return ok("versions", ", ".join(versions))


def _installed_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def check_home(settings: Settings) -> CheckResult:
    home = settings.home.absolute()
    try:
        check_writable(home)
    except HostError as exc:
        return fail("home", exc, "set BACKFILL_HOME to a folder that can be written")
    return ok("home", f"{home} can be written" if home.exists() else f"{home} is made by the first command that runs")


def check_files(settings: Settings) -> CheckResult:
    """Warn about a home, a ledger or a quarantine, of an earlier version or made by others, that others can read."""
    places = [settings.home.absolute()]
    if settings.ledger_url.startswith(SQLITE_PREFIX):
        places.append(Path(settings.ledger_url.removeprefix(SQLITE_PREFIX).partition("?")[0]))
    if "://" not in settings.staging_url:
        places.append(Path(settings.staging_url) / QUARANTINE)
    try:
        exposed = " ".join(str(place) for place in places if is_open_to_others(place))
    except OSError as exc:
        return warn("files", f"not looked at: {exc.strerror}: {exc.filename}")
    if exposed:
        return warn("files", f"not only their owner has rights on them: {exposed}", f"`chmod go= {exposed}`")
    return ok("files", "home, ledger and quarantine are for their owner only")


def check_staging(settings: Settings) -> CheckResult:
    try:
        open_staging(settings.staging_url).check()
    except BackfillError as exc:
        return fail("staging", exc, "set BACKFILL_STAGING to a place that every worker can write")
    return ok("staging", f"{settings.staging_url} can be written")
