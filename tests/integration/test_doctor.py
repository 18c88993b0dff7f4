"""`backfill doctor`: what it finds, that it names it, and that it changes nothing and betrays no password."""

from __future__ import annotations

import http.server
import json
import re
import socket
import socketserver
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
import redis
from sqlalchemy.engine import make_url

from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.clock import ClockReading
from gated_backfill.common.process.identity import process_identity
from gated_backfill.common.warehouse.bigquery.warehouse import BigQueryWarehouse
from gated_backfill.producer.doctor.clocks import check_clock
from gated_backfill.producer.doctor.results import CheckLevel
from gated_backfill.producer.stack.state_file import StackState, places_digest, write_stack_state
from tests.brokers import PASSWORD, valkey
from tests.emulator import Emulator
from tests.lab import Lab, players

DAY = date(2023, 2, 23)
DOCTOR = ("doctor", "--job", "probe")
PROBE_TYPES = {"name": "STRING", "day": "DATE", "value": "FLOAT64", "trick": "STRING", "spoil": "STRING"}


def lines(told: subprocess.CompletedProcess[str], level: str) -> list[str]:
    """The lines of that level, without it."""
    assert told.stderr == ""
    return [line[6:] for line in told.stdout.splitlines() if line.startswith(f"{level:<6}")]


def failure(told: subprocess.CompletedProcess[str]) -> str:
    """The one line of what failed."""
    assert told.returncode == 3, told.stdout + told.stderr
    (line,) = lines(told, "FAIL")
    assert "; next: " in line
    return line


def files(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}


@pytest.fixture
def healthy(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A laboratory in which nothing is wrong with the job `probe`, and alerts have an endpoint."""
    environment = lab.environment() | {"BACKFILL_ALERTS": "json://127.0.0.1:1"}
    monkeypatch.setattr(lab, "environment", lambda: environment)
    for table in ("expected", "first", "second"):
        lab.probe(table, DAY, players(3))
    lab.ledger.close()
    return lab


def with_password(url: str) -> str:
    """The URL with a password that its server does not ask for."""
    return make_url(url).set(password=PASSWORD).render_as_string(hide_password=False)


# -- what is fine -------------------------------------------------------------------------------------------------


def test_where_nothing_is_wrong_every_check_is_ok_and_nothing_is_changed(healthy: Lab) -> None:
    before = files(healthy.home)

    told = healthy.command(*DOCTOR)

    assert told.returncode == 0, told.stdout + told.stderr
    assert lines(told, "WARN") + lines(told, "FAIL") == []
    checks = [re.split(r"  +", line)[0] for line in lines(told, "OK")]
    places = ["versions", "broker", "ledger", "warehouse", "staging", "home", "alerts", "clock", "time limits"]
    tables = ["expectation", "source first", "source second", "target"]
    assert checks == [*places, *(f"probe: {one}" for one in tables)]
    assert "embedded, started with each run: Valkey " in told.stdout
    assert "tables at version " in told.stdout
    assert files(healthy.home) == before


def test_json_tells_the_same(healthy: Lab) -> None:
    shown = healthy.inside(*DOCTOR)
    told = json.loads(healthy.inside(*DOCTOR, "--json").stdout)

    assert told["ok"] is True
    for one in told["checks"]:
        assert (one["level"], one["next"]) == ("OK", None)
        assert f"{one['check']} " in shown.stdout
        assert one["found"] in shown.stdout


def test_without_a_job_those_in_use_are_checked_and_the_example_once_it_was_run(healthy: Lab) -> None:
    before = healthy.inside("doctor")
    healthy.summary(DAY, players(3))
    healthy.opened([DAY])
    healthy.drop("nba_analytics.player_game_summary")
    after = healthy.inside("doctor")

    assert (before.returncode, after.returncode) == (0, 3)
    assert "probe_in_a_hurry: target" in before.stdout
    assert "player_composite_factors" not in before.stdout
    assert any("player_composite_factors: expectation" in line for line in lines(after, "FAIL"))


def test_a_job_that_can_not_be_loaded_fails_alone(healthy: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def job_names() -> list[str]:
        return ["nobody", "probe"]

    monkeypatch.setattr("gated_backfill.common.ledger.jobs_in_use.job_names", job_names)

    assert failure(healthy.inside("doctor")).startswith("nobody: job ")
    assert "probe.probe" in healthy.inside("doctor").stdout
    assert healthy.inside("tables", "create").returncode == 3


def test_alerts_that_go_nowhere_are_a_warning(healthy: Lab) -> None:
    told = healthy.inside(*DOCTOR, BACKFILL_ALERTS="")

    assert told.returncode == 0
    assert [line.split("  ")[0] for line in lines(told, "WARN")] == ["alerts"]


def test_the_broker_of_a_running_stack_is_the_one_that_is_checked(healthy: Lab, broker: str) -> None:
    state = {
        "owner": process_identity(),
        "broker_url": broker,
        "broker": "",
        "embedded": True,
        "workers": 1,
        "flower_url": "",
        "flower_user": "",
        "flower_password": "",
        "metrics_url": "",
        "log_file": "",
        "places": places_digest(healthy.settings),
    }
    write_stack_state(healthy.home, StackState(**state))
    used = healthy.inside(*DOCTOR)
    write_stack_state(healthy.home, StackState(**state | {"places": "another"}))
    unused = healthy.inside(*DOCTOR)

    assert (used.returncode, unused.returncode) == (0, 0)
    assert re.search(r"broker +the running stack \(`backfill up`\): redis://\S+ answers", used.stdout)
    assert "not used here: it works on another ledger, warehouse or staging" in unused.stdout
    assert PASSWORD not in used.stdout + unused.stdout


def test_a_broker_and_a_ledger_of_the_users_own_tell_their_clocks_and_keep_their_passwords(
    healthy: Lab, broker: str, postgres_url: str
) -> None:
    places = {"BACKFILL_BROKER": broker, "BACKFILL_LEDGER": with_password(postgres_url)}

    told = healthy.command(*DOCTOR, **places)

    assert told.returncode == 0, told.stdout + told.stderr
    assert lines(told, "WARN") == []
    assert re.search(r"redis://127\.0\.0\.1:\d+/0 answers, a round trip takes \d+\.\d ms", told.stdout)
    assert re.search(r"PostgreSQL \d+.*, database test_\w+: can be written, tables at version", told.stdout)
    assert "clock of broker  " in told.stdout
    assert "clock of ledger  " in told.stdout
    assert PASSWORD not in told.stdout
    with redis.Redis.from_url(broker) as client:
        assert client.keys() == []


def test_a_ledger_that_is_not_there_is_not_made(healthy: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"

    told = healthy.inside(*DOCTOR, BACKFILL_LEDGER=f"sqlite:///{folder / 'ledger.db'}")

    assert told.returncode == 0
    assert "not there yet, made by the first command that needs it" in told.stdout
    assert not folder.exists()


def test_a_database_without_tables_gets_none(healthy: Lab, empty_postgres_url: str) -> None:
    told = healthy.inside(*DOCTOR, BACKFILL_LEDGER=empty_postgres_url)

    assert told.returncode == 0, told.stdout
    assert "without tables" in told.stdout
    with psycopg.connect(empty_postgres_url) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)


# -- the broker ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "says"),
    [
        pytest.param("redis://:hunter2@127.0.0.1:1/0", "redis://127.0.0.1:1/0 does not answer", id="nobody-there"),
        pytest.param("redis://:hun/ter2@127.0.0.1:1/0", "BACKFILL_BROKER is no URL", id="slash-in-the-password"),
        pytest.param("redis://u:1/ter2@127.0.0.1:1/0", "the number of a database", id="digit-slash-in-the-password"),
        pytest.param("redis://127.0.0.1:1/0?password=hunter2", "no usable URL", id="password-as-an-option"),
        pytest.param("amqp://u:hunter2@127.0.0.1:1//", "not the URL of a Redis or Valkey server", id="other-kind"),
        pytest.param("hunter2", "not the URL of a Redis or Valkey server", id="no-url"),
    ],
)
def test_a_broker_that_can_not_be_used_is_named_without_its_password(healthy: Lab, url: str, says: str) -> None:
    told = healthy.inside(*DOCTOR, BACKFILL_BROKER=url)

    line = failure(told)
    assert line.startswith("broker ")
    assert says in line
    for secret in (PASSWORD, "hun/", "ter2", "'hun'"):
        assert secret not in told.stdout
    assert "probe: target" in told.stdout  # the other checks were made


def test_a_wrong_password_of_the_broker_is_not_told(healthy: Lab, broker: str) -> None:
    told = healthy.inside(*DOCTOR, BACKFILL_BROKER=broker.replace(PASSWORD, "swordfish"))

    assert "invalid username-password pair" in failure(told)
    assert "swordfish" not in told.stdout


def test_a_broker_that_takes_the_connection_and_says_nothing_does_not_hold_the_doctor_up(healthy: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        started = time.monotonic()
        told = healthy.inside(*DOCTOR, BACKFILL_BROKER=f"redis://127.0.0.1:{mute.getsockname()[1]}/0")

    assert "does not answer: Timeout" in failure(told)
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
                            told = str(int(time.time()) + seconds).encode()
                            self.request.sendall(b"*2\r\n$%d\r\n%s\r\n$1\r\n0\r\n" % (len(told), told))
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
def test_a_broker_whose_clock_differs_is_told_by_how_much(
    healthy: Lab, tmp_path: Path, seconds: int, level: str
) -> None:
    with valkey(tmp_path / "broker") as server, wrong_clock(server.port, seconds) as port:
        told = healthy.inside(*DOCTOR, BACKFILL_BROKER=f"redis://127.0.0.1:{port}/0")

    assert told.returncode == (3 if level == "FAIL" else 0)
    (line,) = lines(told, level)
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
    reading = ClockReading(
        before=before, other_clock=before + timedelta(seconds=apart), after=before + timedelta(seconds=took)
    )
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


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param("UPDATE alembic_version SET version_num = '9999'", "written by a newer version", id="newer"),
        pytest.param("DROP TABLE checkpoints", "lacks the table(s) checkpoints", id="table-lost"),
    ],
)
def test_a_ledger_that_is_not_of_this_version_is_named(healthy: Lab, spoil: str, says: str) -> None:
    with sqlite3.connect(healthy.home / "ledger.db") as connection:
        connection.execute(spoil)
    connection.close()

    line = failure(healthy.inside(*DOCTOR))

    assert line.startswith("ledger ")
    assert says in line


def test_a_ledger_whose_folder_can_not_be_written_is_named(healthy: Lab, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("not a folder")

    line = failure(healthy.inside(*DOCTOR, BACKFILL_LEDGER=f"sqlite:///{tmp_path}/a file/ledger.db"))

    assert line.startswith("ledger ")
    assert "can't be written" in line


def test_a_database_that_may_only_be_read_is_named(healthy: Lab, postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        name = make_url(postgres_url).database
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")

    assert "is read-only" in failure(healthy.inside(*DOCTOR, BACKFILL_LEDGER=postgres_url))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        pytest.param("postgresql://u:hunter2@127.0.0.1:1/db", "127.0.0.1, database db does not answer", id="nobody"),
        pytest.param("postgresql://u@127.0.0.1:1/db?password=hunter2", "does not answer", id="password-as-an-option"),
        pytest.param("postgresql://u:hunter2@127.0.0.1:x/db", "is not a database URL", id="no-port"),
        pytest.param("mysql://u:hunter2@host/db", "BACKFILL_LEDGER names mysql", id="other-kind"),
        pytest.param("sqlite://u:hunter2@host/x.db", "BACKFILL_LEDGER can't be used", id="file-on-a-host"),
        pytest.param("sqlite+none:///x.db", "BACKFILL_LEDGER can't be used", id="no-such-driver"),
    ],
)
def test_a_ledger_that_can_not_be_reached_is_named_without_its_password(healthy: Lab, url: str, says: str) -> None:
    told = healthy.inside(*DOCTOR, BACKFILL_LEDGER=url)

    assert says in failure(told)
    assert PASSWORD not in told.stdout


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
def test_a_place_that_can_not_be_used_is_named(
    healthy: Lab, tmp_path: Path, setting: str, value: str, says: str
) -> None:
    file = tmp_path / "a file"
    file.write_text("not a folder")

    told = healthy.inside(*DOCTOR, **{f"BACKFILL_{setting}": value.format(file=file)})

    assert told.returncode == 3, told.stdout + told.stderr
    assert any(says in line for line in lines(told, "FAIL"))
    assert file.read_text() == "not a folder"


@pytest.mark.parametrize(("visible", "code"), [("360", 3), ("361", 0)])
def test_a_task_must_not_be_handed_out_again_before_its_time_is_up(healthy: Lab, visible: str, code: int) -> None:
    told = healthy.inside(*DOCTOR, BACKFILL_VISIBILITY_SECONDS=visible)

    assert told.returncode == code
    if code:
        assert "set BACKFILL_VISIBILITY_SECONDS to more than 360" in failure(told)


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
    healthy.load("probe.first", DAY, [{"name": "a"}], types)

    line = failure(healthy.inside(*DOCTOR))

    assert line.startswith("probe: source first ")
    assert "lacks the column(s) spoil; column value is STRING, not FLOAT64; column trick is INT64, not STRING" in line


def test_a_table_dated_by_another_column_is_named(healthy: Lab) -> None:
    healthy.drop("probe.expected")
    healthy.load("probe.expected", DAY, [{"name": "a"}], {"name": "STRING", "on": "DATE"})

    assert "probe.expected has no date column day: it is partitioned by on" in failure(healthy.inside(*DOCTOR))


def test_a_target_of_another_shape_is_named(healthy: Lab) -> None:
    types = {"name": "STRING", "day": "DATE", "value": "INT64", "source": "STRING", "more": "STRING"}
    healthy.load("probe.probe", DAY, [{"name": "a"}], types)

    line = failure(healthy.inside(*DOCTOR))

    assert "probe.probe column value is INT64, not FLOAT64; has the column(s) more" in line


def test_a_source_that_is_not_there_is_a_warning_as_long_as_there_is_another(healthy: Lab) -> None:
    healthy.drop("probe.second")
    warned = healthy.inside(*DOCTOR)
    healthy.drop("probe.first")
    failed = healthy.inside(*DOCTOR)

    assert warned.returncode == 0
    assert [line.split("  ")[0] for line in lines(warned, "WARN")] == ["probe: source second"]
    assert "none of its sources was found" in failure(failed)


def test_optional_inputs_and_the_calendar_may_be_absent_with_a_warning(lab: Lab) -> None:
    lab.summary(DAY, players(3))

    told = lab.inside("doctor", "--job", "player_composite_factors", BACKFILL_ALERTS="json://127.0.0.1:1")

    assert told.returncode == 0, told.stdout
    assert len(lines(told, "WARN")) == 4
    for table in (
        "upcoming_player_game_context",
        "player_shot_zone_analysis",
        "team_defense_zone_analysis",
        "schedule",
    ):
        assert f"{table} does not exist: " in told.stdout


# -- BigQuery -----------------------------------------------------------------------------------------------------


@pytest.fixture
def at_bigquery(healthy: Lab, emulator: Emulator, bigquery_warehouse: BigQueryWarehouse) -> dict[str, str]:
    """The settings of a BigQuery in which nothing is wrong with the job `probe`."""
    healthy.site = replace(healthy.site, warehouse=bigquery_warehouse)
    for table in ("expected", "first", "second"):
        healthy.probe(table, DAY, players(3))
    places = {"BACKFILL_WAREHOUSE": emulator.url, "BACKFILL_WAREHOUSE_RETRY_SECONDS": "1"}
    assert healthy.inside("tables", "create", "--job", "probe", **places).returncode == 0
    return places


def test_bigquery_is_asked_for_its_tables_and_its_clock(healthy: Lab, at_bigquery: dict[str, str]) -> None:
    told = healthy.inside(*DOCTOR, **at_bigquery)

    assert told.returncode == 0, told.stdout + told.stderr
    assert "bigquery://test-project answers a query in" in told.stdout
    assert "clock of warehouse" in told.stdout
    assert "probe.probe is as the job declares it" in told.stdout
    (untold,) = lines(told, "WARN")  # the emulator has no permissions
    assert "whether it may be written can't be checked: this endpoint does not tell permissions" in untold


def test_what_is_wrong_in_bigquery_is_named(
    healthy: Lab, emulator: Emulator, bigquery_warehouse: BigQueryWarehouse, at_bigquery: dict[str, str]
) -> None:
    client = emulator.client()
    client.delete_table("probe.expected")
    client.delete_table("probe.second")
    client.delete_table("probe.probe")
    bigquery_warehouse.create_table(TableName.parse("probe.second"), PROBE_TYPES | {"value": "STRING"}, "day")

    told = healthy.inside(*DOCTOR, **at_bigquery)

    assert told.returncode == 3
    expectation, source = lines(told, "FAIL")
    assert "probe.expected does not exist; next: make the table" in expectation
    assert "probe.second column value is STRING, not FLOAT64" in source
    (target,) = lines(told, "WARN")
    assert "probe.probe does not exist yet" in target
    assert "`backfill tables create --job probe` makes it" in target


def test_a_target_that_is_not_there_is_a_warning(healthy: Lab, emulator: Emulator) -> None:
    emulator.empty()

    told = healthy.inside(*DOCTOR, BACKFILL_WAREHOUSE=emulator.url)

    assert told.returncode == 3
    target = next(line for line in lines(told, "WARN") if line.startswith("probe: target"))
    assert "does not exist yet" in target


def test_bigquery_that_does_not_answer_is_named_once(healthy: Lab) -> None:
    nowhere = "bigquery://test-project?endpoint=http://127.0.0.1:1"

    told = healthy.inside(*DOCTOR, BACKFILL_WAREHOUSE=nowhere, BACKFILL_WAREHOUSE_RETRY_SECONDS="0.5")

    assert failure(told).startswith("warehouse ")
    assert "probe: tables  not looked at" in re.sub("  +", "  ", told.stdout)


@contextmanager
def service(status: int, permissions: list[str]) -> Iterator[str]:
    """A service that has the table probe.probe, refuses every query, and answers so when asked for permissions."""
    columns = {"name": "STRING", "day": "DATE", "value": "FLOAT", "source": "STRING"}
    table = {
        "tableReference": {"projectId": "test-project", "datasetId": "probe", "tableId": "probe"},
        "schema": {"fields": [{"name": name, "type": kind} for name, kind in columns.items()]},
        "timePartitioning": {"type": "DAY", "field": "day", "expirationMs": str(400 * 86_400_000)},
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
def test_what_may_be_done_to_a_target_in_bigquery_is_told_where_it_can_be(
    healthy: Lab, status: int, permissions: list[str], level: str, says: str
) -> None:
    with service(status, permissions) as url:
        told = healthy.inside(*DOCTOR, BACKFILL_WAREHOUSE=url)

    assert told.returncode == 3  # it has none of the other tables
    assert any(line.startswith("probe: target") and says in line for line in lines(told, level)), told.stdout
    if level != "FAIL":
        assert "drops partitions older than 400 days by itself" in told.stdout


# -- usage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        pytest.param(["--job", "nobody"], {}, "there is no job named 'nobody'", id="unknown-job"),
        pytest.param(["--what"], {}, "--what", id="unknown-option"),
        pytest.param([], {"BACKFILL_WINDOW": "0"}, "BACKFILL_WINDOW", id="wrong-setting"),
    ],
)
def test_bad_usage_is_refused_in_one_line(
    lab: Lab, arguments: list[str], environment: dict[str, str], says: str
) -> None:
    refused = lab.command("doctor", *arguments, **environment)

    assert (refused.returncode, refused.stdout, len(refused.stderr.splitlines())) == (2, "", 1)
    assert says in refused.stderr


def test_help_is_printed_for_both_commands(lab: Lab) -> None:
    for command in (["doctor"], ["tables"], ["tables", "create"]):
        helped = lab.inside(*command, "--help")
        assert (helped.returncode, "Usage" in helped.stdout) == (0, True)
