"""Parse the broker's URL once for all its clients: kombu, the result backend, redis and Flower.

They read TLS options from a URL in different ways or not at all, and some trust any server if an option is missing. So
the options are removed from the URL and passed to each client as arguments.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import redis

from gated_backfill.common.errors import UserError

BROKER_URL_HINT = "write it as redis://:PASSWORD@host:6379/0, with / # ? and @ in the password as %2F %23 %3F and %40"
TLS = "rediss"
SCHEMES = ("redis", TLS, "redis+socket")
CERT_CHECK_OPTION = "ssl_cert_reqs"
TLS_OPTIONS = (CERT_CHECK_OPTION, "ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
CERT_CHECKS = ("required", "CERT_REQUIRED", "optional", "CERT_OPTIONAL")  #: with each, a client checks its server


@dataclass(frozen=True, kw_only=True)
class BrokerUrl:
    """The address of a broker, and the options of the connection."""

    url: str = field(repr=False)  #: with user and password, without TLS options
    address: str  #: without user and password, for messages
    tls: Mapping[str, Any] | None = None  #: arguments for redis, kombu and Celery; None: not encrypted

    def client(self, *, timeout_seconds: float) -> redis.Redis:
        """Return a new client, which connects when it is first used.

        `timeout_seconds` limits connecting and each answer. Raises `ValueError` for a URL that cannot be used; its text
        may quote the password.
        """
        redis_url = self.url.replace("redis+socket://", "unix://", 1)
        return redis.Redis.from_url(
            redis_url, socket_timeout=timeout_seconds, socket_connect_timeout=timeout_seconds, **(self.tls or {})
        )


def parse_broker_url(url: str) -> BrokerUrl:
    """Parse the URL. Raises `UserError`, without quoting it, if it is wrong or would leave the server unverified."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError as exc:  # its text may quote a part of the password
        raise UserError(f"BACKFILL_BROKER is no URL: {BROKER_URL_HINT}") from exc
    if parts.scheme not in SCHEMES:
        raise UserError(f"BACKFILL_BROKER is not the URL of a Redis or Valkey server: {BROKER_URL_HINT}")
    if parts.scheme != "redis+socket" and not parts.path.strip("/").isdecimal() and parts.path not in ("", "/"):
        raise UserError(f"BACKFILL_BROKER does not end in the number of a database: {BROKER_URL_HINT}")
    address = f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.scheme != TLS:
        if any(name.startswith("ssl_") for name in options):
            raise UserError("BACKFILL_BROKER has TLS options: they need a URL with rediss:// (with two s)")
        return BrokerUrl(url=url, address=address)
    url_without_options = parts._replace(query="", fragment="").geturl()
    return BrokerUrl(url=url_without_options, address=address, tls=_tls_arguments(options))


def _tls_arguments(options: Mapping[str, str]) -> dict[str, Any]:
    if unknown := options.keys() - set(TLS_OPTIONS):
        raise UserError(
            f"BACKFILL_BROKER has {len(unknown)} option(s) after the ? that are not known: use {', '.join(TLS_OPTIONS)}"
        )
    if options.get(CERT_CHECK_OPTION, "required") not in CERT_CHECKS:
        raise UserError(
            f"BACKFILL_BROKER would accept any server as the broker: set {CERT_CHECK_OPTION}=required, and "
            "ssl_ca_certs=/path/to/ca.pem if no public authority signed its certificate"
        )
    files = {name: value for name, value in options.items() if name != CERT_CHECK_OPTION and value}
    if ("ssl_keyfile" in files) and ("ssl_certfile" not in files):
        raise UserError("BACKFILL_BROKER names an ssl_keyfile without an ssl_certfile")
    return {CERT_CHECK_OPTION: ssl.CERT_REQUIRED, "ssl_check_hostname": True, **files}
