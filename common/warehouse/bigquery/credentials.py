"""The credentials of requests to BigQuery: those of this machine, or of a service account that they may act as."""

from __future__ import annotations

import google.auth
from google.auth.credentials import Credentials
from google.auth.impersonated_credentials import Credentials as ImpersonatedCredentials
from google.cloud import bigquery

from gated_backfill.common.warehouse.bigquery.address import BigQueryAddress


def open_credentials(address: BigQueryAddress) -> Credentials:
    """Open Google's default credentials, as the address says how to use them. Raises google-auth's errors."""
    scopes = bigquery.Client.SCOPE
    if address.impersonate is None:
        return google.auth.default(scopes=scopes, quota_project_id=address.quota_project)[0]
    source, _ = google.auth.default(scopes=scopes)
    return ImpersonatedCredentials(
        source_credentials=source,
        target_principal=address.impersonate,
        target_scopes=scopes,
        quota_project_id=address.quota_project,
    )
