"""The URL of a BigQuery warehouse: where it is, who its jobs run as, and how they are scheduled."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.tables import validate_identifier
from gated_backfill.common.warehouse.bigquery.statements import PROJECT, checked_project

OPTIONS = ("location", "dataset", "impersonate", "quota_project", "priority", "reservation", "endpoint")
LOCATION = re.compile(r"[A-Za-z0-9-]{2,40}")
SERVICE_ACCOUNT = re.compile(r"[a-z0-9][a-z0-9.-]*@[a-z0-9][a-z0-9.-]*\.gserviceaccount\.com")
RESERVATION = re.compile(
    r"projects/[a-z][a-z0-9-]{4,29}/locations/[A-Za-z0-9-]{2,40}/reservations/[a-z][a-z0-9-]{0,63}"
)
PRIORITIES = ("interactive", "batch")


@dataclass(frozen=True, kw_only=True)
class BigQueryAddress:
    """Where a BigQuery warehouse is: `bigquery://PROJECT?location=US&dataset=backfill`."""

    project: str
    location: str = "US"  #: of tables, queries and new datasets
    dataset: str = "backfill"  #: for staging tables, publications and undo tables
    endpoint: str | None = None  #: of an emulator; no credentials are ever sent to it
    impersonate: str | None = None  #: the service account that all requests are made as
    quota_project: str | None = None  #: the project whose quota of requests is used; None: that of the credentials
    priority: str | None = None  #: of queries: one of `PRIORITIES`
    reservation: str | None = None  #: that queries run in

    @classmethod
    def parse(cls, url: str) -> BigQueryAddress:
        """Parse a URL of this form. Raises `UserError` for any other."""
        try:
            parts = urlsplit(url)
            pairs = parse_qsl(parts.query, strict_parsing=bool(parts.query), keep_blank_values=True)
        except ValueError as exc:
            raise UserError("BACKFILL_WAREHOUSE is no URL: write it as bigquery://PROJECT?location=US") from exc
        options = dict(pairs)
        if len(options) < len(pairs):
            raise UserError("BACKFILL_WAREHOUSE: an option is given twice")
        if unknown := sorted(set(options) - set(OPTIONS)):
            raise UserError(f"BACKFILL_WAREHOUSE: unknown option(s) {', '.join(unknown)}: use {', '.join(OPTIONS)}")
        if parts.scheme != "bigquery" or parts.path.strip("/") or parts.fragment:
            raise UserError("BACKFILL_WAREHOUSE: write it as bigquery://PROJECT?location=US")
        return cls(
            project=checked_project(parts.netloc),
            dataset=validate_identifier(options.pop("dataset", "backfill"), "dataset name"),
            **_checked(options),
        )

    def query_options(self) -> dict[str, str]:
        """Return the options of a query job that schedule it."""
        options = {"priority": self.priority and self.priority.upper(), "reservation": self.reservation}
        return {name: value for name, value in options.items() if value is not None}


def _checked(options: dict[str, str]) -> dict[str, Any]:
    """Return the options as they are. Raises `UserError` for one that is wrong."""
    for name, pattern, example in (
        ("location", LOCATION, "a location: write one as US, EU or europe-west1"),
        ("quota_project", PROJECT, "a Google Cloud project"),
        ("impersonate", SERVICE_ACCOUNT, "a service account: write one as NAME@PROJECT.iam.gserviceaccount.com"),
        ("reservation", RESERVATION, "a reservation: write it as projects/P/locations/L/reservations/R"),
        ("priority", re.compile("|".join(PRIORITIES)), f"a priority: write {' or '.join(PRIORITIES)}"),
    ):
        if name in options and not pattern.fullmatch(options[name]):
            raise UserError(f"BACKFILL_WAREHOUSE: {options[name]!r} is not {example}")
    endpoint = options.get("endpoint")
    if endpoint is None:
        return options
    if urlsplit(endpoint).scheme not in ("http", "https"):
        raise UserError("BACKFILL_WAREHOUSE: the endpoint is not an http:// URL")
    if used := [name for name in ("impersonate", "quota_project") if name in options]:
        raise UserError(f"BACKFILL_WAREHOUSE: no credentials are sent to an endpoint: leave out {' and '.join(used)}")
    return options
