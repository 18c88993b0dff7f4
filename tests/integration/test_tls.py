"""A broker behind TLS, with a password: everything that speaks to it, and what is refused before anything is sent."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from flower.utils.broker import Broker

from gated_backfill.common.broker.celery_app import make_app
from gated_backfill.common.broker.health import ping_broker
from gated_backfill.common.broker.queue_depth import queue_depths
from gated_backfill.common.config.broker_url import parse_broker_url
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import BrokerUnavailable, UserError
from tests.brokers import PASSWORD
from tests.kept_up import DAYS, RUN, prepare
from tests.lab import Lab
from tests.tls import Authority, make_authority, terminating
from tests.workers import worker

SECRET = "hunter2"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return make_authority(tmp_path, "ours")


@pytest.fixture
def encrypted(broker: str, authority: Authority) -> Iterator[str]:
    """The URL of the broker behind TLS, which asks its clients for a certificate as well."""
    certificate, key = authority.certify("client")
    with terminating(authority, int(urlsplit(broker).port or 0)) as port:
        options = f"ssl_ca_certs={authority.file}&ssl_certfile={certificate}&ssl_keyfile={key}"
        yield f"rediss://:{PASSWORD}@127.0.0.1:{port}/0?ssl_cert_reqs=required&{options}"


def test_a_run_goes_through_it_and_everything_else_that_asks_the_broker_works(lab: Lab, encrypted: str) -> None:
    prepare(lab)
    with worker(lab, BACKFILL_BROKER=encrypted) as log_file:
        done = lab.inside(*RUN, BACKFILL_BROKER=encrypted)
        assert done.returncode == 0, done.stdout + done.stderr + log_file.read_text()
        assert len(lab.table_bytes("probe.probe")) == len(DAYS)
        queues, held = queue_depths(encrypted, timeout_seconds=5)
        assert (queues["backfill"], queues["gate"]) == (0, 0)
        assert held >= 0
        app = make_app(lab.settings, encrypted)
        asked = Broker(app.connection().as_uri(include_password=True), broker_use_ssl=app.conf.broker_use_ssl)
        assert asyncio.run(_queues_of(asked)) == [{"name": "gate", "messages": 0}]
        answer = ping_broker(lab.settings, encrypted)
    assert answer.address.startswith("rediss://127.0.0.1:")
    assert PASSWORD not in done.stdout + done.stderr + log_file.read_text() + repr(answer)


async def _queues_of(flower: Any) -> list[dict[str, Any]]:
    """The queues as Flower asks for them."""
    try:
        return await flower.queues(["gate"])
    finally:
        await flower.redis.aclose()


@pytest.mark.parametrize("wrong", ["another-authority", "no-authority", "no-client-certificate", "no-such-file"])
def test_an_unproven_server_or_client_is_refused(lab: Lab, encrypted: str, tmp_path: Path, wrong: str) -> None:
    bare, _, options = encrypted.partition("?")
    ours, client = options.split("&")[1], "&".join(options.split("&")[2:])
    other = make_authority(tmp_path, "other").file
    url = {
        "another-authority": f"{bare}?ssl_ca_certs={other}&{client}",
        "no-authority": f"{bare}?{client}",
        "no-client-certificate": f"{bare}?{ours}",
        "no-such-file": f"{bare}?ssl_ca_certs={tmp_path}/none.pem",
    }[wrong]
    with pytest.raises(BrokerUnavailable) as refusal:
        ping_broker(lab.settings, url)
    assert PASSWORD not in str(refusal.value)
    with pytest.raises(BrokerUnavailable):
        queue_depths(url, timeout_seconds=3)
    prepare(lab)
    refused = lab.inside(*RUN, BACKFILL_BROKER=url)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert PASSWORD not in refused.stdout + refused.stderr
    assert lab.table_bytes("probe.target") == {}


REFUSED = {
    "rediss://:hunter2@h:1/0?ssl_cert_reqs=none": "any server",
    "rediss://:hunter2@h:1/0?ssl_cert_reqs=CERT_NONE": "any server",
    "rediss://:hunter2@h:1/0?ssl_cert_reqs=": "any server",
    "rediss://:hunter2@h:1/0?ssl_cert_reqs=maybe": "any server",
    "rediss://:hunter2@h:1/0?ssl_check_hostname=false": "not known",
    "rediss://:hunter2@h:1/0?password=hunter2": "not known",
    "rediss://:hunter2@h:1/0?ssl_keyfile=/k": "without an ssl_certfile",
    "redis://:hunter2@h:1/0?ssl_ca_certs=/ca": "rediss://",
    "rediss://:hunter2@h:hunter2/0": "no URL",
    "rediss://:hunter2@h:1/hunter2": "number of a database",
    "amqps://:hunter2@h:1/0": "Redis or Valkey",
}


@pytest.mark.parametrize("url", REFUSED)
def test_a_url_that_would_not_be_checked_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=REFUSED[url]) as told:
        make_app(Settings(), url)
    assert SECRET not in str(told.value)


@pytest.mark.parametrize("said", ["", "?ssl_cert_reqs=required", "?ssl_cert_reqs=CERT_REQUIRED"])
def test_a_server_is_checked_whether_or_not_that_is_said(said: str) -> None:
    parsed = parse_broker_url(f"rediss://user:hunter2@h:1/0{said}")
    assert parsed.tls == {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
    assert parsed.address == "rediss://h:1/0"
    assert SECRET not in repr(parsed)
