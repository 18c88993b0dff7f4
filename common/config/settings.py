"""Where things are (four URLs) and the policy defaults, read from the environment once, at the entry point.

`backfill status` does without: see `gated_backfill.common.config.ledger_url`.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import SettingsConfigDict

from gated_backfill.common.config.ledger_url import DEFAULT_HOME, resolve_ledger_url
from gated_backfill.common.config.operations import MAX_DAYS, OperationsSettings
from gated_backfill.common.config.recovery import RecoverySettings
from gated_backfill.common.config.warehouse_url import WarehouseUrl
from gated_backfill.common.errors import UserError
from gated_backfill.common.model.batching import AUTO, parse_dates_per_task
from gated_backfill.common.model.limits import RateLimit
from gated_backfill.common.model.publication import METADATA_TABLE, WarehouseLimits
from gated_backfill.common.model.retry import RetryPolicy
from gated_backfill.common.model.tables import TableName

MAX_RETRY_DELAY_SECONDS = 60.0  #: between two attempts at a date


class Settings(OperationsSettings, RecoverySettings):
    """The settings of one process, from `BACKFILL_*`. URLs may hold passwords: they never print."""

    model_config = SettingsConfigDict(env_prefix="BACKFILL_", frozen=True, hide_input_in_errors=True, extra="ignore")

    home: Path = DEFAULT_HOME  #: holds the embedded defaults of the four URLs
    broker: SecretStr | None = None  #: redis://...; None starts an embedded broker for each run
    ledger: SecretStr | None = None  #: sqlite:///FILE or postgresql://...
    warehouse: str | None = None  #: local:DIR or bigquery://PROJECT?location=US
    staging: str | None = None  #: a folder that all workers share, or gs://bucket/prefix

    window: int = Field(100, ge=1, le=5000)  #: dates per chord
    dates_per_task: int | None = None  #: auto (None): as many as are about a second of work
    windows_in_flight: int = Field(3, ge=1, le=50)  #: windows of a run that are open at once
    max_in_flight: int | None = Field(None, ge=1)  #: dates of a run that are sent and have no end yet
    max_in_flight_per_job: int | None = Field(None, ge=1)  #: the same, of all active runs of a job together
    express_dates: int = Field(7, ge=0)  #: a run of at most so many dates to build does not queue behind long ones
    queries_per_second: float = Field(0.0, ge=0, le=10_000)  #: by all workers of a broker; 0: no limit
    query_burst: int = Field(10, ge=1, le=10_000)  #: queries that may follow each other at once after a lull
    task_events: bool = True  #: workers tell of each task they begin and end, which is what Flower shows
    workers: int = Field(2, ge=1, le=256)  #: worker processes of an embedded stack
    max_retries: int = Field(4, ge=0)  #: of a date, after transient errors
    retry_seconds: float = Field(1.0, gt=0)  #: the first wait before a retry; it doubles each time
    visibility_seconds: int = Field(7200, ge=60)  #: must exceed the longest hard time limit of any job

    max_bytes_billed: int = Field(100 * 1024**3, ge=10 * 1024**2)  #: of one BigQuery query
    warehouse_retry_seconds: float = Field(60.0, gt=0)  #: how long a passing trouble of BigQuery is sat out
    warehouse_job_seconds: float = Field(600.0, gt=0)  #: how long one BigQuery job may take
    price_per_tib: float = Field(6.25, ge=0)  #: of bytes read by BigQuery, in the currency you pay in
    undo_days: int = Field(30, ge=1, le=MAX_DAYS)  #: how long what a run replaced is kept for `backfill undo`

    # history
    metadata_table: str = f"backfill.{METADATA_TABLE}"  #: the warehouse's history of runs; `none` writes none

    @field_validator("dates_per_task", mode="before")
    @classmethod
    def _number_or_auto(cls, given: object) -> object:
        try:
            return parse_dates_per_task(given or AUTO) if isinstance(given, str) else given
        except UserError as exc:
            raise ValueError(str(exc)) from exc

    @field_validator("max_in_flight", "max_in_flight_per_job", mode="before")
    @classmethod
    def _empty_is_unlimited(cls, given: object) -> object:
        """In a compose file, a variable that nobody set is empty."""
        return None if isinstance(given, str) and not given.strip() else given

    @field_validator("metadata_table")
    @classmethod
    def _names_a_table(cls, text: str) -> str:
        try:
            return "" if text.strip().lower() in ("", "none") else str(TableName.parse(text.strip()))
        except UserError as exc:
            raise ValueError(str(exc)) from exc

    @property
    def history_table(self) -> TableName | None:
        """Where the rows of runs that have ended are written to; None when they are not."""
        return TableName.parse(self.metadata_table) if self.metadata_table else None

    @property
    def cleanup_lease(self) -> timedelta:
        """How long a cleanup may go without a sign of life: longer than the jobs of one of its steps take."""
        jobs = 6 * self.warehouse_job_seconds if self.warehouse_url.runs_jobs else 0.0
        return timedelta(seconds=300 + jobs)

    @property
    def gate_lease(self) -> timedelta:
        """How long a gate may go without a sign of life: longer than the jobs of one publication take."""
        jobs = 3 * self.warehouse_job_seconds if self.warehouse_url.runs_jobs else 0.0
        return timedelta(seconds=self.gate_lease_seconds + jobs)

    @property
    def date_retries(self) -> RetryPolicy:
        """How a date is retried after a transient error."""
        return RetryPolicy(
            max_retries=self.max_retries,
            first_delay_seconds=self.retry_seconds,
            max_delay_seconds=MAX_RETRY_DELAY_SECONDS,
        )

    @property
    def query_rate_limit(self) -> RateLimit | None:
        """How fast the warehouse may be asked; None for as fast as it answers."""
        if not self.queries_per_second:
            return None
        patience = self.warehouse_retry_seconds
        return RateLimit(per_second=self.queries_per_second, burst=self.query_burst, max_wait_seconds=patience)

    @property
    def warehouse_limits(self) -> WarehouseLimits:
        return WarehouseLimits(
            max_bytes_billed=self.max_bytes_billed,
            retry_seconds=self.warehouse_retry_seconds,
            job_seconds=self.warehouse_job_seconds,
            undo_days=self.undo_days,
        )

    @property
    def ledger_url(self) -> str:
        return resolve_ledger_url(self.home, None if self.ledger is None else self.ledger.get_secret_value())

    @property
    def warehouse_url(self) -> WarehouseUrl:
        if self.warehouse is None:
            return WarehouseUrl.of_folder(self.home / "warehouse")
        url = WarehouseUrl(self.warehouse)
        return WarehouseUrl.of_folder(url.folder) if url.folder else url

    @property
    def staging_url(self) -> str:
        if self.staging is None:
            return str(self.home.absolute() / "staging")
        return self.staging if "://" in self.staging else str(Path(self.staging).absolute())


def read_settings() -> Settings:
    """The settings of this process. Raises `UserError` naming the variables that are wrong, never their values."""
    try:
        return Settings()  # pyright: ignore[reportCallIssue]
    except ValidationError as exc:
        wrong = "; ".join(f"BACKFILL_{str(e['loc'][0]).upper()}: {e['msg']}" for e in exc.errors(include_input=False))
        raise UserError(f"wrong settings: {wrong}") from exc
