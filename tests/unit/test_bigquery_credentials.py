"""Whose credentials requests to BigQuery have: this machine's, or those of an account that it acts as."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from google.auth.exceptions import RefreshError

from gated_backfill.common.errors import NotAllowed
from gated_backfill.common.warehouse.bigquery.address import BigQueryAddress
from gated_backfill.common.warehouse.bigquery.client import translate_bigquery_errors
from gated_backfill.common.warehouse.bigquery.credentials import open_credentials

ACCOUNT = "loader@some-project.iam.gserviceaccount.com"
URL = "bigquery://test-project?location=US"
DENIED = "Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not exist)."


@dataclass
class Answer:
    """As a transport of google-auth gives it."""

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def data(self) -> bytes:
        return json.dumps(self.body).encode()


class TokenServices:
    """Google's services that give tokens, as a transport of google-auth calls them."""

    def __init__(self, impersonation: Answer) -> None:
        self._impersonation = impersonation
        self.asked: list[tuple[str, Any]] = []

    def __call__(self, url: str, method: str = "GET", body: Any = None, headers: Any = None, **_: Any) -> Answer:
        self.asked.append((url, body))
        if "oauth2" in url:
            return Answer(200, {"access_token": "the-persons", "expires_in": 3600})
        return self._impersonation


@pytest.fixture(autouse=True)
def person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody is logged in on this machine."""
    file = tmp_path / "credentials.json"
    file.write_text(
        json.dumps({"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r"})
    )
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    monkeypatch.delenv("GOOGLE_CLOUD_QUOTA_PROJECT", raising=False)


def test_requests_are_made_as_the_account() -> None:
    address = BigQueryAddress.parse(f"{URL}&impersonate={ACCOUNT}&quota_project=quota-project")
    services = TokenServices(Answer(200, {"accessToken": "the-accounts", "expireTime": "2040-01-01T00:00:00Z"}))
    credentials: Any = open_credentials(address)

    credentials.refresh(services)

    assert (credentials.token, credentials.quota_project_id) == ("the-accounts", "quota-project")
    url, body = services.asked[-1]
    assert f"/serviceAccounts/{ACCOUNT}:generateAccessToken" in url
    assert "https://www.googleapis.com/auth/cloud-platform" in json.loads(body)["scope"]
    sent: dict[str, str] = {}
    credentials.apply(sent)
    assert sent["x-goog-user-project"] == "quota-project"


def test_an_account_that_may_not_be_acted_as_is_one_clear_line() -> None:
    services = TokenServices(Answer(403, {"error": {"code": 403, "message": DENIED, "status": "PERMISSION_DENIED"}}))
    credentials: Any = open_credentials(BigQueryAddress.parse(f"{URL}&impersonate={ACCOUNT}"))

    with pytest.raises(NotAllowed) as refused, translate_bigquery_errors("asking for the time"):
        credentials.refresh(services)

    assert isinstance(refused.value.__cause__, RefreshError)
    assert str(refused.value) == (
        f"asking for the time: Unable to acquire impersonated credentials: {DENIED} "
        "(needed: iam.serviceAccounts.getAccessToken)"
    )


def test_requests_of_the_person_may_use_the_quota_of_a_project() -> None:
    assert open_credentials(BigQueryAddress.parse(URL)).quota_project_id is None
    quota = BigQueryAddress.parse(f"{URL}&quota_project=quota-project")
    assert open_credentials(quota).quota_project_id == "quota-project"
