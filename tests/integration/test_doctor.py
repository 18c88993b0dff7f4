"""`backfill doctor`: what it finds, that it names it, and that it changes nothing and betrays no password."""

from __future__ import annotations

import http.server
import json
import re
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
import redis
from sqlalchemy.engine import make_url

from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.clock import ClockReading
from gated_backfill.common.warehouse.bigquery.warehouse import BigQueryWarehouse
from gated_backfill.producer.doctor.clocks import check_clock
from gated_backfill.producer.doctor.results import CheckLevel
from gated_backfill.producer.stack.state_file import write_stack_state
from tests.brokers import PASSWORD, valkey
from tests.builders import FEB_23, files_below
from tests.emulator import Emulator
from tests.kept_up import stack_state
from tests.lab import PROBE_TYPES, Lab, players
from tests.postgres import execute

DOCTOR = ("doctor", "--job", "probe")


def lines(report: subprocess.CompletedProcess[str], level: str) -> list[str]:
    """The lines of that level, without it."""
    assert report.stderr == ""
    return [line[6:] for line in report.stdout.splitlines() if line.startswith(f"{level:<6}")]


def checks(report: subprocess.CompletedProcess[str], level: str) -> list[str]:
    """The names of the checks of that level."""
    return [line.split("  ")[0] for line in lines(report, level)]


def failure(report: subprocess.CompletedProcess[str]) -> str:
    """The one line of what failed."""
    assert report.returncode == 3, report.stdout + report.stderr
    (line,) = lines(report, "FAIL")
    assert "; next: " in line
    return line


@pytest.fixture
def healthy(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A laboratory in which nothing is wrong with the job `probe`, and alerts have an endpoint."""
    environment = lab.environment() | {"BACKFILL_ALERTS": "json://127.0.0.1:1"}
    monkeypatch.setattr(lab, "environment", lambda: environment)
    for table in ("expected", "first", "second"):
        lab.probe(table, FEB_23, players(3))
    lab.ledger.close()
    return lab


def with_password(url: str) -> str:
    """The URL with a password that its server does not ask for."""
    return make_url(url).set(password=PASSWORD).render_as_string(hide_password=False)


# -- what is fine -------------------------------------------------------------------------------------------------


def test_where_nothing_is_wrong_every_check_is_ok_and_nothing_is_changed(healthy: Lab) -> None:
    before = files_below(healthy.home)

    report = healthy.command(*DOCTOR)

    assert report.returncode == 0, report.stdout + report.stderr
    assert lines(report, "WARN") + lines(report, "FAIL") == []
    places = ["versions", "broker", "ledger", "warehouse", "staging", "home", "files", "alerts", "clock", "time limits"]
    tables = ["expectation", "source first", "source second", "target"]
    assert checks(report, "OK") == [*places, *(f"probe: {table}" for table in tables)]
    assert "embedded, started with each run: Valkey " in report.stdout
    assert "tables at version " in report.stdout
    assert files_below(healthy.home) == before


def test_json_tells_the_same(healthy: Lab) -> None:
    shown = healthy.inside(*DOCTOR)
    report = json.loads(healthy.inside(*DOCTOR, "--json").stdout)

    assert report["ok"] is True
    for check in report["checks"]:
        assert (check["level"], check["next"]) == ("OK", None)
        assert f"{check['check']} " in shown.stdout
        assert check["found"] in shown.stdout


def test_without_a_job_those_in_use_are_checked_and_the_example_once_it_was_run(healthy: Lab) -> None:
    before = healthy.inside("doctor")
    healthy.summary(FEB_23, players(3))
    healthy.opened([FEB_23])
    healthy.drop("nba_analytics.player_game_summary")
    after = healthy.inside("doctor")

    assert (before.returncode, after.returncode) == (0, 3)
    assert "probe_in_a_hurry: target" in before.stdout
    assert "player_composite_factors" not in before.stdout
    assert any("player_composite_factors: expectation" in line for line in lines(after, "FAIL"))


def test_a_job_that_can_not_be_loaded_fails_alone(healthy: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gated_backfill.common.ledger.jobs_in_use.job_names", lambda: ["nobody", "probe"])

    assert failure(healthy.inside("doctor")).startswith("nobody: job ")
    assert "probe.probe" in healthy.inside("doctor").stdout
    assert healthy.inside("tables", "create").returncode == 3


def test_alerts_that_go_nowhere_are_a_warning(healthy: Lab) -> None:
    report = healthy.inside(*DOCTOR, BACKFILL_ALERTS="")

    assert report.returncode == 0
    assert checks(report, "WARN") == ["alerts"]


def test_the_broker_of_a_running_stack_is_the_one_that_is_checked(healthy: Lab, broker: str) -> None:
    write_stack_state(healthy.home, stack_state(healthy.settings, broker_url=broker))
    used = healthy.inside(*DOCTOR)
    write_stack_state(healthy.home, stack_state(healthy.settings, broker_url=broker, places="another"))
    unused = healthy.inside(*DOCTOR)

    assert (used.returncode, unused.returncode) == (0, 0)
    assert re.search(r"broker +the running stack \(`backfill up`\): redis://\S+ answers", used.stdout)
    assert "not used here: it works on another ledger, warehouse or staging" in unused.stdout
    assert PASSWORD not in used.stdout + unused.stdout


def test_the_users_own_broker_and_ledger_are_checked(healthy: Lab, broker: str, postgres_url: str) -> None:
    places = {"BACKFILL_BROKER": broker, "BACKFILL_LEDGER": with_password(postgres_url)}

    report = healthy.command(*DOCTOR, **places)

    assert report.returncode == 0, report.stdout + report.stderr
    assert lines(report, "WARN") == []
    assert re.search(r"redis://127\.0\.0\.1:\d+/0 answers, a round trip takes \d+\.\d ms", report.stdout)
    assert re.search(r"PostgreSQL \d+.*, database test_\w+: can be written, tables at version", report.stdout)
    assert "clock of broker  " in report.stdout
    assert "clock of ledger  " in report.stdout
    assert PASSWORD not in report.stdout
    with redis.Redis.from_url(broker) as client:
        assert client.keys() == []


def test_a_ledger_that_is_not_there_is_not_made(healthy: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"

    report = healthy.inside(*DOCTOR, BACKFILL_LEDGER=f"sqlite:///{folder / 'ledger.db'}")

    assert report.returncode == 0
    assert "does not exist yet; the first command that needs it creates it" in report.stdout
    assert not folder.exists()


def test_a_database_without_tables_gets_none(healthy: Lab, empty_postgres_url: str) -> None:
    line = failure(healthy.inside(*DOCTOR, BACKFILL_LEDGER=empty_postgres_url))

    assert "the ledger has no tables yet: run `backfill ledger migrate`, which creates them" in line
    with psycopg.connect(empty_postgres_url) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)


# -- the broker ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "url", "error"),
    [
        pytest.param(
            "BROKER", "redis://:hunter2@127.0.0.1:1/0", "redis://127.0.0.1:1/0 does not answer", id="no-broker"
        ),
        pytest.param("BROKER", "redis://:hun/ter2@127.0.0.1:1/0", "BACKFILL_BROKER is no URL", id="slash"),
        pytest.param("BROKER", "redis://u:1/ter2@127.0.0.1:1/0", "the number of a database", id="digit-and-slash"),
        pytest.param("BROKER", "redis://127.0.0.1:1/0?password=hunter2", "no usable URL", id="broker-password-option"),
        pytest.param("BROKER", "amqp://u:hunter2@127.0.0.1:1//", "not the URL of a Redis or Valkey server", id="amqp"),
        pytest.param("BROKER", "hunter2", "not the URL of a Redis or Valkey server", id="no-url"),
        pytest.param(
            "LEDGER", "postgresql://u:hunter2@127.0.0.1:1/d", "127.0.0.1, database d does not answer", id="nobody"
        ),
        pytest.param("LEDGER", "postgresql://u@127.0.0.1:1/db?password=hunter2", "does not answer", id="option"),
        pytest.param("LEDGER", "postgresql://u:hunter2@127.0.0.1:x/db", "is not a database URL", id="no-port"),
        pytest.param("LEDGER", "mysql://u:hunter2@host/db", "BACKFILL_LEDGER names mysql", id="other-ledger"),
        pytest.param("LEDGER", "sqlite://u:hunter2@host/x.db", "BACKFILL_LEDGER can't be used", id="file-on-a-host"),
        pytest.param("LEDGER", "sqlite+none:///x.db", "BACKFILL_LEDGER can't be used", id="no-such-driver"),
    ],
)
def test_an_unusable_url_is_named_without_its_password(healthy: Lab, setting: str, url: str, error: str) -> None:
    report = healthy.inside(*DOCTOR, **{f"BACKFILL_{setting}": url})

    line = failure(report)
    assert line.startswith(f"{setting.lower()} ")
    assert error in line
    for secret in (PASSWORD, "hun/", "ter2", "'hun'"):
        assert secret not in report.stdout
    assert "probe: target" in report.stdout  # the other checks were made


def test_a_wrong_password_of_the_broker_is_not_told(healthy: Lab, broker: str) -> None:
    report = healthy.inside(*DOCTOR, BACKFILL_BROKER=broker.replace(PASSWORD, "swordfish"))

    assert "invalid username-password pair" in failure(report)
    assert "swordfish" not in report.stdout


def test_a_broker_that_takes_the_connection_and_says_nothing_does_not_hold_the_doctor_up(healthy: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        started = time.monotonic()
        report = healthy.inside(*DOCTOR, BACKFILL_BROKER=f"redis://127.0.0.1:{mute.getsockname()[1]}/0")

    assert "does not answer: Timeout" in failure(report)
    assert time.monotonic() - started < 30


# -- the clock ----------------------------------------------------------------------------------------------------

ASKED_THE_TIME = b"*1\r\n$4\r\nTIME\r\n"


@contextmanager
def wrong_clock(port: int, seconds: int) -> Iterator[int]:
    """The port of a broker that passes everything on to the one at the port, but tells the time wrong."""

    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", port)) as broker:
                answering = threading.Thread(target=self.answer, args=[broker])
                answering.start()
                with suppress(ConnectionError):  # either side may hang up
                    while asked := self.request.recv(65536):
                        if asked == ASKED_THE_TIME:
                            clock = str(int(time.time()) + seconds).encode()
                            self.request.sendall(b"*2\r\n$%d\r\n%s\r\n$1\r\n0\r\n" % (len(clock), clock))
                        else:
                            broker.sendall(asked)
                with suppress(OSError):  # the broker may have hung up first
                    broker.shutdown(socket.SHUT_RDWR)
                answering.join()  # the socket is closed only when nobody reads from it any more

        def answer(self, broker: socket.socket) -> None:
            with suppress(ConnectionError):
                while answer := broker.recv(65536):
                    self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Connection) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize(("seconds", "level"), [(-20, "WARN"), (20, "WARN"), (-90, "FAIL"), (90, "FAIL")])
def test_a_broker_whose_clock_differs_is_named(healthy: Lab, tmp_path: Path, seconds: int, level: str) -> None:
    with valkey(tmp_path / "broker") as server, wrong_clock(server.port, seconds) as port:
        report = healthy.inside(*DOCTOR, BACKFILL_BROKER=f"redis://127.0.0.1:{port}/0")

    assert report.returncode == (3 if level == "FAIL" else 0)
    (line,) = lines(report, level)
    apart = re.match(r"clock of broker +(\d+\.\d) s or more from this machine's", line)
    assert apart is not None
    assert abs(seconds) - 2 < float(apart[1]) < abs(seconds) + 2


@pytest.mark.parametrize(
    ("apart", "took", "level"),
    [
        (0, 0, CheckLevel.OK),
        (5, 0, CheckLevel.OK),
        (5.1, 0, CheckLevel.WARN),
        (-60, 0, CheckLevel.WARN),
        (-60.1, 0, CheckLevel.FAIL),
        (9, 10, CheckLevel.OK),  # it may have been read at the end of those ten seconds
        (-1, 10, CheckLevel.OK),
        (71, 10, CheckLevel.FAIL),
    ],
)
def test_clocks_differ_by_what_asking_can_not_explain(apart: float, took: float, level: CheckLevel) -> None:
    before = datetime(2023, 2, 23, tzinfo=UTC)
    other_clock, after = (before + timedelta(seconds=seconds) for seconds in (apart, took))
    reading = ClockReading(before=before, other_clock=other_clock, after=after)
    assert check_clock("broker", reading).level is level


# -- the ledger ---------------------------------------------------------------------------------------------------


def test_a_corrupt_ledger_is_named_and_left_as_it_is(healthy: Lab, tmp_path: Path) -> None:
    corrupt = tmp_path / "corrupt.db"
    corrupt.write_bytes(b"this is no database at all" * 100)

    line = failure(healthy.inside(*DOCTOR, BACKFILL_LEDGER=f"sqlite:///{corrupt}"))

    assert str(corrupt) in line
    assert "file is not a database" in line
    assert corrupt.read_bytes() == b"this is no database at all" * 100
    assert not list(tmp_path.glob("corrupt.db?*"))


NEWER = "UPDATE alembic_version SET version_num = '9999'"


def test_a_ledger_of_a_newer_version_that_only_added_tables_can_be_used(healthy: Lab) -> None:
    healthy.change_ledger(NEWER)

    report = healthy.inside(*DOCTOR)

    assert report.returncode == 0, report.stdout
    assert "tables at version 9999, which this version can use" in report.stdout


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param((NEWER, "DELETE FROM schema_support"), "written by a newer version", id="newer"),
        pytest.param(("DROP TABLE checkpoints",), "lacks the table(s) checkpoints", id="table-lost"),
    ],
)
def test_a_ledger_that_is_not_of_this_version_is_named(healthy: Lab, spoil: Sequence[str], says: str) -> None:
    for statement in spoil:
        healthy.change_ledger(statement)

    line = failure(healthy.inside(*DOCTOR))

    assert line.startswith("ledger ")
    assert says in line


def test_a_ledger_whose_folder_can_not_be_written_is_named(healthy: Lab, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("not a folder")

    line = failure(healthy.inside(*DOCTOR, BACKFILL_LEDGER=f"sqlite:///{tmp_path}/a file/ledger.db"))

    assert line.startswith("ledger ")
    assert "can't be written" in line


def test_a_database_that_may_only_be_read_is_named(healthy: Lab, postgres_url: str) -> None:
    name = make_url(postgres_url).database
    execute(postgres_url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")

    assert "is read-only" in failure(healthy.inside(*DOCTOR, BACKFILL_LEDGER=postgres_url))


# -- places and limits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        pytest.param("STAGING", "{file}/x", "staging ", id="staging"),
        pytest.param("STAGING", "s3://bucket/x", "cannot store files at s3:// URLs", id="staging-of-another-kind"),
        pytest.param("HOME", "{file}/home", "home ", id="home"),
        pytest.param("WAREHOUSE", "local:{file}", "is not a folder that can be read", id="warehouse"),
        pytest.param("WAREHOUSE", "oracle:x", "BACKFILL_WAREHOUSE", id="warehouse-of-another-kind"),
    ],
)
def test_an_unusable_place_is_named(healthy: Lab, tmp_path: Path, setting: str, value: str, says: str) -> None:
    file = tmp_path / "a file"
    file.write_text("not a folder")

    report = healthy.inside(*DOCTOR, **{f"BACKFILL_{setting}": value.format(file=file)})

    assert report.returncode == 3, report.stdout + report.stderr
    assert any(says in line for line in lines(report, "FAIL"))
    assert file.read_text() == "not a folder"


@pytest.mark.parametrize(("visible", "code"), [("360", 3), ("361", 0)])
def test_a_task_must_not_be_handed_out_again_before_its_time_is_up(healthy: Lab, visible: str, code: int) -> None:
    report = healthy.inside(*DOCTOR, BACKFILL_VISIBILITY_SECONDS=visible)

    assert report.returncode == code
    if code:
        assert "set BACKFILL_VISIBILITY_SECONDS to more than 360" in failure(report)


# -- tables -------------------------------------------------------------------------------------------------------


def test_a_missing_expectation_is_named(healthy: Lab) -> None:
    healthy.drop("probe.expected")

    line = failure(healthy.inside(*DOCTOR))

    assert line.startswith("probe: expectation ")
    assert "probe.expected does not exist; next: make the table: `backfill load probe.expected FILE`" in line


def test_every_column_that_is_not_as_needed_is_named(healthy: Lab) -> None:
    healthy.drop("probe.first")
    types = PROBE_TYPES | {"value": "STRING", "trick": "INT64"}
    del types["spoil"]
    healthy.load("probe.first", FEB_23, [{"name": "a"}], types)

    line = failure(healthy.inside(*DOCTOR))

    assert line.startswith("probe: source first ")
    assert "lacks the column(s) spoil; column value is STRING, not FLOAT64; column trick is INT64, not STRING" in line


def test_a_table_dated_by_another_column_is_named(healthy: Lab) -> None:
    healthy.drop("probe.expected")
    healthy.load("probe.expected", FEB_23, [{"name": "a"}], {"name": "STRING", "on": "DATE"})

    assert "probe.expected has no date column day: it is partitioned by on" in failure(healthy.inside(*DOCTOR))


def test_a_target_of_another_shape_is_named(healthy: Lab) -> None:
    types = {"name": "STRING", "day": "DATE", "value": "INT64", "source": "STRING", "more": "STRING"}
    healthy.load("probe.probe", FEB_23, [{"name": "a"}], types)

    line = failure(healthy.inside(*DOCTOR))

    assert "probe.probe column value is INT64, not FLOAT64; has the column(s) more" in line


def test_a_source_that_is_not_there_is_a_warning_as_long_as_there_is_another(healthy: Lab) -> None:
    healthy.drop("probe.second")
    warned = healthy.inside(*DOCTOR)
    healthy.drop("probe.first")
    failed = healthy.inside(*DOCTOR)

    assert warned.returncode == 0
    assert checks(warned, "WARN") == ["probe: source second"]
    assert "none of its sources was found" in failure(failed)


def test_optional_inputs_and_the_calendar_may_be_absent_with_a_warning(lab: Lab) -> None:
    lab.summary(FEB_23, players(3))

    report = lab.inside("doctor", "--job", "player_composite_factors", BACKFILL_ALERTS="json://127.0.0.1:1")

    assert report.returncode == 0, report.stdout
    assert len(lines(report, "WARN")) == 4
    analyses = ("player_shot_zone_analysis", "team_defense_zone_analysis")
    for table in ("upcoming_player_game_context", *analyses, "schedule"):
        assert f"{table} does not exist: " in report.stdout


# -- BigQuery -----------------------------------------------------------------------------------------------------


@pytest.fixture
def at_bigquery(healthy: Lab, emulator: Emulator, bigquery_warehouse: BigQueryWarehouse) -> dict[str, str]:
    """The settings of a BigQuery in which nothing is wrong with the job `probe`."""
    healthy.context = replace(healthy.context, warehouse=bigquery_warehouse)
    for table in ("expected", "first", "second"):
        healthy.probe(table, FEB_23, players(3))
    places = {"BACKFILL_WAREHOUSE": emulator.url, "BACKFILL_WAREHOUSE_RETRY_SECONDS": "1"}
    assert healthy.inside("tables", "create", "--job", "probe", **places).returncode == 0
    return places


def test_bigquery_is_asked_for_its_tables_and_its_clock(healthy: Lab, at_bigquery: dict[str, str]) -> None:
    report = healthy.inside(*DOCTOR, **at_bigquery)

    assert report.returncode == 0, report.stdout + report.stderr
    assert "bigquery://test-project answers a query in" in report.stdout
    assert "clock of warehouse" in report.stdout
    assert "probe.probe is as the job declares it" in report.stdout
    (untold,) = lines(report, "WARN")  # the emulator has no permissions
    assert "whether it may be written can't be checked: this endpoint does not tell permissions" in untold


def test_what_is_wrong_in_bigquery_is_named(
    healthy: Lab, emulator: Emulator, bigquery_warehouse: BigQueryWarehouse, at_bigquery: dict[str, str]
) -> None:
    for table in ("expected", "second", "probe"):
        emulator.client().delete_table(f"probe.{table}")
    bigquery_warehouse.create_table(TableName.parse("probe.second"), PROBE_TYPES | {"value": "STRING"}, "day")

    report = healthy.inside(*DOCTOR, **at_bigquery)

    assert report.returncode == 3
    expectation, source = lines(report, "FAIL")
    assert "probe.expected does not exist; next: make the table" in expectation
    assert "probe.second column value is STRING, not FLOAT64" in source
    (target,) = lines(report, "WARN")
    assert "probe.probe does not exist yet" in target
    assert "`backfill tables create --job probe` makes it" in target


def test_a_target_that_is_not_there_is_a_warning(healthy: Lab, emulator: Emulator) -> None:
    emulator.empty()

    report = healthy.inside(*DOCTOR, BACKFILL_WAREHOUSE=emulator.url)

    assert report.returncode == 3
    target = next(line for line in lines(report, "WARN") if line.startswith("probe: target"))
    assert "does not exist yet" in target


def test_bigquery_that_does_not_answer_is_named_once(healthy: Lab) -> None:
    nowhere = "bigquery://test-project?endpoint=http://127.0.0.1:1"

    report = healthy.inside(*DOCTOR, BACKFILL_WAREHOUSE=nowhere, BACKFILL_WAREHOUSE_RETRY_SECONDS="0.5")

    assert failure(report).startswith("warehouse ")
    assert "probe: tables  not looked at" in re.sub("  +", "  ", report.stdout)


@contextmanager
def service(status: int, permissions: list[str]) -> Iterator[str]:
    """A service that has the table probe.probe, refuses every query, and answers so when asked for permissions."""
    columns = {"name": "STRING", "day": "DATE", "value": "FLOAT", "source": "STRING"}
    table = {
        "tableReference": {"projectId": "test-project", "datasetId": "probe", "tableId": "probe"},
        "schema": {"fields": [{"name": name, "type": kind} for name, kind in columns.items()]},
        "timePartitioning": {"type": "FEB_23", "field": "day", "expirationMs": str(400 * 86_400_000)},
    }

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_target = self.path.partition("?")[0].endswith("/datasets/probe/tables/probe")
            self.answer(*((200, table) if is_target else (404, {})))

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            asked = ":testIamPermissions" in self.path
            self.answer(*((status, {"permissions": permissions}) if asked else (403, {})))

        def answer(self, code: int, body: object) -> None:
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"bigquery://test-project?endpoint=http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "permissions", "level", "says"),
    [
        (200, ["bigquery.tables.getData", "bigquery.tables.updateData"], "OK", "and can be published to"),
        (200, ["bigquery.tables.getData"], "FAIL", "bigquery.tables.updateData is missing"),
        (404, [], "WARN", "can't be checked"),
        (405, [], "WARN", "can't be checked"),
        (501, [], "WARN", "can't be checked"),
        (403, [], "FAIL", "needed: bigquery.tables.updateData"),
    ],
)
def test_permissions_are_checked(healthy: Lab, status: int, permissions: list[str], level: str, says: str) -> None:
    with service(status, permissions) as url:
        report = healthy.inside(*DOCTOR, BACKFILL_WAREHOUSE=url)

    assert report.returncode == 3  # it has none of the other tables
    assert any(line.startswith("probe: target") and says in line for line in lines(report, level)), report.stdout
    if level != "FAIL":
        assert "drops partitions older than 400 days by itself" in report.stdout


# -- usage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        pytest.param(["--job", "nobody"], {}, "there is no job named 'nobody'", id="unknown-job"),
        pytest.param(["--what"], {}, "--what", id="unknown-option"),
        pytest.param([], {"BACKFILL_WINDOW": "0"}, "BACKFILL_WINDOW", id="wrong-setting"),
    ],
)
def test_bad_usage_is_refused(lab: Lab, arguments: list[str], environment: dict[str, str], says: str) -> None:
    refused = lab.command("doctor", *arguments, **environment)

    assert (refused.returncode, refused.stdout, len(refused.stderr.splitlines())) == (2, "", 1)
    assert says in refused.stderr


def test_help_is_printed_for_both_commands(lab: Lab) -> None:
    for command in (["doctor"], ["tables"], ["tables", "create"]):
        helped = lab.inside(*command, "--help")
        assert (helped.returncode, "Usage" in helped.stdout) == (0, True)
