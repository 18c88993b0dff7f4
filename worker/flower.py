"""Safe defaults for `celery --app gated_backfill.worker.app flower`.

Flower reads its options from the environment after loading the app, so the app can set defaults there. The password is
passed there too, as every user of the machine can read command lines.

What Flower shows of a task comes from elsewhere: its name from `common.broker.celery_app`, its arguments from the
`argsrepr` in `common.broker.dispatcher` and `worker.maintenance.schedule`, its result from `worker.dates.outcomes`.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.process.private_files import make_private_folder

BASIC_AUTH = "FLOWER_BASIC_AUTH"
UNAUTHENTICATED_API = "FLOWER_UNAUTHENTICATED_API"  #: Flower's own switch to allow use without a login
AUTH_OPTIONS = ("--basic-auth", "--basic_auth", "--auth", "--conf")  #: options that configure a login
OPTIONS_WITH_VALUE = ("-A", "--app", "-b", "--broker", "--result-backend", "--loader", "--config", "--workdir")
TRUE_VALUES = ("1", "true", "yes", "on", "t", "y")
SAVE_MILLISECONDS = 10_000


def prepare_flower(settings: Settings, command_line: Sequence[str], environment: MutableMapping[str, str]) -> None:
    """Set defaults in the environment if the command line starts Flower.

    Raises `SystemExit` if no login is configured and use without one is not allowed explicitly.
    """
    if celery_subcommand(command_line) != "flower":
        return
    if BASIC_AUTH not in environment and settings.flower_password is not None:
        environment[BASIC_AUTH] = f"{settings.flower_user}:{settings.flower_password.get_secret_value()}"
    if not (environment.get(BASIC_AUTH) or _has_auth(command_line, environment)):
        raise SystemExit(
            "Flower would be open to everybody: set BACKFILL_FLOWER_PASSWORD (user: BACKFILL_FLOWER_USER, "
            f"{settings.flower_user} by default) or {BASIC_AUTH}=user:password, "
            f"or {UNAUTHENTICATED_API}=true if that is wanted"
        )
    if environment.get(UNAUTHENTICATED_API, "").lower() not in TRUE_VALUES:
        require_login_for_metrics()
    folder = settings.home.absolute() / "flower"
    make_private_folder(folder)
    defaults = {
        "FLOWER_ADDRESS": settings.flower_address,
        "FLOWER_PORT": str(settings.flower_port),
        "FLOWER_PERSISTENT": "true",
        "FLOWER_DB": str(folder / "state"),
        "FLOWER_STATE_SAVE_INTERVAL": str(SAVE_MILLISECONDS),
        "FLOWER_TASKS_COLUMNS": "name,args,state,received,runtime,worker,uuid",
    }
    for name, value in defaults.items():
        environment.setdefault(name, value)


def require_login_for_metrics() -> None:
    """Require a login for Flower's /metrics, which lists tasks and workers. /healthcheck stays open."""
    from flower.views import monitor
    from tornado.web import authenticated

    page: Any = monitor.Metrics
    if not hasattr(page.get, "__wrapped__"):
        page.get = authenticated(page.get)


def celery_subcommand(command_line: Sequence[str]) -> str | None:
    """The subcommand of a Celery command line: the first word that is neither an option nor an option's value."""
    words = iter(command_line[1:])
    for word in words:
        if word in OPTIONS_WITH_VALUE:
            next(words, None)
        elif not word.startswith("-"):
            return word
    return None


def _has_auth(command_line: Sequence[str], environment: MutableMapping[str, str]) -> bool:
    if environment.get(UNAUTHENTICATED_API, "").lower() in TRUE_VALUES:
        return True
    options = {word.partition("=")[0] for word in command_line}
    return bool(environment.get("FLOWER_AUTH")) or bool(options.intersection(AUTH_OPTIONS))
