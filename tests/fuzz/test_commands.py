"""Command lines and settings of any kind: an answer or a refusal in one line, and nothing changed by a refusal."""

from __future__ import annotations

from typing import Any

import click
from hypothesis import example, given
from hypothesis import strategies as st

from gated_backfill.common.config.settings import Settings
from gated_backfill.producer.cli.main import COMMANDS as COMMAND_NAMES
from gated_backfill.producer.cli.main import load_command
from tests.fuzz.cases import share, words
from tests.fuzz.watching import SECRET, Watched

#: What is added so that nothing is started that would have to be stopped again; the last of an option counts.
KEPT_FROM_STARTING = {
    ("up",): ["--workers", "0"],
    ("metrics",): ["--address", "0.0.0.0"],  # noqa: S104 - which is refused without a password
    ("run",): ["--sequential"],
    ("retry",): ["--sequential"],
    ("demo",): ["--no-such-option"],
}
FILE_OPTIONS = {"--html", "--csv", "--save", "--plan"}
NEVER = {"--detach", "--foreground", "--sequential"}
#: A file that the user names is his own, so only such are named as lie in the folder that the command runs in.
FILES = ("x.json", "x.csv", "x.parquet", "no/such/x.csv", ".", "", "x" * 300, "x.html", "\x1b.csv", "💥.csv")


def commands(group: dict[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every command by the words that name it."""
    by_path: dict[tuple[str, ...], Any] = {}
    for name, command in group.items():
        here = (*path, name)
        by_path |= commands(command.commands, here) if hasattr(command, "commands") else {here: command}
    return by_path


COMMANDS = commands({name: load_command(name) for name in COMMAND_NAMES})


def values(parameter: Any) -> st.SearchStrategy[str]:
    if parameter.name == "file" or FILE_OPTIONS.intersection(parameter.opts):
        return st.sampled_from(FILES)
    if isinstance(parameter.type, click.Choice):
        return st.one_of(st.sampled_from([str(one.value) for one in parameter.type.choices]), words)
    return words


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    path = draw(st.sampled_from(sorted(COMMANDS)))
    parameters = [one for one in COMMANDS[path].params if not NEVER.intersection(one.opts)]
    line = list(path)
    for parameter in draw(st.lists(st.sampled_from(parameters), max_size=7)) if parameters else []:
        if parameter.param_type_name == "argument":
            line.append(draw(values(parameter)))
        elif parameter.is_flag:
            line.append(parameter.opts[0])
        else:
            line += [parameter.opts[0], draw(values(parameter))]
    if draw(st.integers(0, 19)) == 0:
        line.insert(draw(st.integers(0, len(line))), draw(words.filter(lambda word: "/" not in word)))
    return line + KEPT_FROM_STARTING.get(path, [])


LIKELY = ["--job", "probe", "--dates", "2023-02-20..2023-02-22"]


@share(0.153)
@given(line=command_lines())
@example(line=["plan", *LIKELY, "--save", "."])
@example(line=["history", "--html", "."])
@example(line=["history", "--csv", "no/such/x.csv"])
@example(line=["history", "--csv", "no/such/x.csv", "--write-metadata"])
@example(line=["run", *LIKELY, "--plan", "x.json", "--sequential"])
@example(line=["status", "\udcff"])
@example(line=["coverage", "--job", "probe", "--last-days", "9" * 400])
def test_a_command_line_of_any_kind(watched: Watched, line: list[str]) -> None:
    watched.invoke(*line, BACKFILL_FLOWER_PASSWORD=SECRET)


# -- settings -----------------------------------------------------------------------------------------------------

inside = words.filter(lambda word: "/" not in word and ".." not in word and "://" not in word)
BROKERS = st.builds(
    "{}://{}:{}@{}/{}".format,
    st.sampled_from(["redis", "rediss", "amqp", "", "redis+socket", "http"]),
    st.sampled_from(["", "user", "ü"]),
    st.just(SECRET),
    st.sampled_from(["127.0.0.1:1", "127.0.0.1:x", "127.0.0.1:99999", "[::1", "[::1]:1", "", "127.0.0.1"]),
    st.sampled_from(
        ["0", "", "x", "0?ssl_cert_reqs=none", "0?ssl_ca_certs=/none", "0?visibility=1", "-1", "99999999999"]
    ),
)
LEDGERS = st.one_of(
    st.builds("sqlite:///{}".format, inside),
    st.builds("postgresql://u:{}@127.0.0.1:{}/{}".format, st.just(SECRET), st.sampled_from(["1", "x", ""]), inside),
    st.builds("{}://u:{}@127.0.0.1:1/x".format, st.sampled_from(["mysql", "", "postgres", "sqlite"]), st.just(SECRET)),
    inside,
)
WAREHOUSES = st.one_of(st.builds("local:{}".format, inside), inside)
SPECIAL = {
    "broker": BROKERS,
    "ledger": LEDGERS,
    "warehouse": WAREHOUSES,
    "staging": inside,
    "home": inside,
    "alerts": st.builds(
        "{}://u:{}@{}".format, st.sampled_from(["json", "nonsense", "mailto"]), st.just(SECRET), inside
    ),
}
NAMES = sorted(Settings.model_fields)
ASKING = [
    ["status"],
    ["jobs"],
    ["history"],
    ["plan", *LIKELY],
    ["alerts"],
    ["cleanup", "--dry-run"],
    ["cleanup", "list"],
]


@st.composite
def environments(draw: st.DrawFn) -> dict[str, str]:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))

    def possible(value: str) -> bool:
        """Whether an environment can hold it."""
        return not any("\ud800" <= letter < "\udc80" or "\udd00" <= letter <= "\udfff" for letter in value)

    return {f"BACKFILL_{name.upper()}": draw(SPECIAL.get(name, words).filter(possible)) for name in names}


@share(0.14)
@given(environment=environments(), line=st.sampled_from(ASKING))
@example(environment={"BACKFILL_BROKER": f"redis://:{SECRET}@[::1/0"}, line=["status"])
@example(environment={"BACKFILL_LEDGER": f"postgresql://u:{SECRET}@127.0.0.1:x/db"}, line=["status"])
@example(environment={"BACKFILL_LEDGER": f"mysql://u:{SECRET}@127.0.0.1:1/db"}, line=["status"])
@example(environment={"BACKFILL_LEDGER": "sqlite+none:///x.db"}, line=["status"])
@example(environment={"BACKFILL_LEDGER": f"sqlite://u:{SECRET}@host/x.db"}, line=["status"])
@example(environment={"BACKFILL_LEDGER": "sqlite:///x.db?timeout=long"}, line=["status"])
@example(environment={"BACKFILL_LEDGER": f"sqlite:///x.db?cached_statements={10**20}"}, line=["status"])
@example(environment={"BACKFILL_LEDGER": f"postgresql://u:{SECRET}@/db?port=none"}, line=["status"])
@example(environment={"BACKFILL_LEDGER": "sqlite:///\udcff"}, line=["status"])
@example(environment={"BACKFILL_ALERT_KINDS": "\udcff", "BACKFILL_LEDGER": "sqlite:///\udcff"}, line=["history"])
@example(environment={"BACKFILL_HOME": ""}, line=["status"])
def test_settings_of_any_kind(watched: Watched, environment: dict[str, str], line: list[str]) -> None:
    watched.invoke(*line, **environment)
