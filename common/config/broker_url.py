"""The broker's URL, taken apart once for all who connect to it: kombu, the results, redis itself and Flower.

Each of them reads TLS options from a URL in a way of its own, or not at all, and some take a missing option for leave
to trust any server. So the options are taken out of the URL here, and handed to each as its settings.
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
CHECKED = "ssl_cert_reqs"
TLS_OPTIONS = (CHECKED, "ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
REQUIRED = ("required", "CERT_REQUIRED", "optional", "CERT_OPTIONAL")  #: a client checks its server in all of these


@dataclass(frozen=True, kw_only=True)
class BrokerUrl:
    """Where a broker is, and how it is spoken to."""

    url: str = field(repr=False)  #: with user and password, without the options of TLS
    address: str  #: for people: without user and password
    tls: Mapping[str, Any] | None = None  #: as redis, kombu and Celery name the options; None: not encrypted

    def client(self, *, timeout_seconds: float) -> redis.Redis:
        """A client of its own, which waits so long for a connection and for each answer. It connects when first used.

        Raises `ValueError`, whose text may quote the password, for a URL that can't be used.
        """
        reachable = self.url.replace("redis+socket://", "unix://", 1)
        return redis.Redis.from_url(
            reachable, socket_timeout=timeout_seconds, socket_connect_timeout=timeout_seconds, **(self.tls or {})
        )


def parse_broker_url(url: str) -> BrokerUrl:
    """Raises `UserError`, without a part of the URL in it, for one that names no broker or asks for no check of it."""
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
    asked = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.scheme != TLS:
        if any(name.startswith("ssl_") for name in asked):
            raise UserError("BACKFILL_BROKER has options of TLS, which needs rediss:// (with two s) before them")
        return BrokerUrl(url=url, address=address)
    bare = parts._replace(query="", fragment="").geturl()
    return BrokerUrl(url=bare, address=address, tls=_tls(asked))


def _tls(asked: Mapping[str, str]) -> dict[str, Any]:
    if unknown := asked.keys() - set(TLS_OPTIONS):
        raise UserError(
            f"BACKFILL_BROKER has {len(unknown)} option(s) that are not known after the ?: "
            f"there are {', '.join(TLS_OPTIONS)}"
        )
    if asked.get(CHECKED, "required") not in REQUIRED:
        raise UserError(
            f"BACKFILL_BROKER would take any server for the broker: set {CHECKED}=required, with "
            "ssl_ca_certs=/path/to/ca.pem where its certificate is not of a public authority"
        )
    files = {name: value for name, value in asked.items() if name != CHECKED and value}
    if ("ssl_keyfile" in files) and ("ssl_certfile" not in files):
        raise UserError("BACKFILL_BROKER names an ssl_keyfile without an ssl_certfile")
    return {CHECKED: ssl.CERT_REQUIRED, "ssl_check_hostname": True, **files}
