"""What a store of files raises becomes ours: what passes, what may not be done, what is not there."""

from __future__ import annotations

import pytest
from gcsfs.retry import HttpError
from google.auth.exceptions import DefaultCredentialsError, RefreshError

from gated_backfill.common.errors import HostError, UserError, WarehouseUnavailable
from gated_backfill.common.storage.objects import open_file_store, translate_store_errors


@pytest.mark.parametrize(
    ("raised", "ours"),
    [
        pytest.param(OSError("Forbidden: https://storage...\nno storage.objects.create"), HostError, id="forbidden"),
        pytest.param(ValueError("Bad Request: bucket\nInvalid bucket name"), HostError, id="bad-request"),
        pytest.param(HttpError({"code": 401, "message": "Invalid Credentials"}), HostError, id="unauthorized"),
        pytest.param(HttpError({"code": 503, "message": "try later"}), WarehouseUnavailable, id="unavailable"),
        pytest.param(HttpError({"code": 429, "message": "slow down"}), WarehouseUnavailable, id="too-many"),
        pytest.param(DefaultCredentialsError("none"), HostError, id="no-credentials"),
        pytest.param(RefreshError("metadata server"), WarehouseUnavailable, id="token"),
        pytest.param(PermissionError(13, "Permission denied"), HostError, id="permission"),
        pytest.param(OSError(28, "No space left on device"), HostError, id="disk-full"),
        pytest.param(OSError(30, "Read-only file system"), HostError, id="read-only"),
        pytest.param(OSError(116, "Stale file handle"), HostError, id="stale-mount"),
        pytest.param(ConnectionResetError("reset"), WarehouseUnavailable, id="connection"),
        pytest.param(FileNotFoundError("gone"), FileNotFoundError, id="gone"),
        pytest.param(ValueError("a bug of ours"), ValueError, id="anything-else"),
    ],
)
def test_errors_are_sorted(raised: Exception, ours: type[Exception]) -> None:
    with pytest.raises(ours) as found, translate_store_errors("gs://bucket/key"):
        raise raised
    assert type(found.value) is ours


@pytest.mark.parametrize("url", ["ftp://host/x", "s3://bucket", "http://host", "file:///tmp"])
def test_only_gs_urls_are_served(url: str) -> None:
    with pytest.raises(UserError, match="gs://"):
        open_file_store(url)
