"""The settings of a process: four URLs and the defaults of runs, read from the environment once, at the entry point.

`backfill status` of a run that goes on does not read them: see `gated_backfill.common.config.ledger_url`.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import get_args

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import SettingsConfigDict

from gated_backfill.common.config.ledger_url import DEFAULT_HOME, is_too_long, resolve_ledger_url
from gated_backfill.common.config.maintenance import MAX_DAYS, MaintenanceSettings
from gated_backfill.common.config.monitoring import MonitoringSettings
from gated_backfill.common.config.recovery import RecoverySettings
from gated_backfill.common.config.secret_files import read_secret_files, secret_file_variable
from gated_backfill.common.config.warehouse_url import WarehouseUrl
from gated_backfill.common.errors import UserError
from gated_backfill.common.model.publication import METADATA_TABLE, OWN_DATASET, WarehouseLimits
from gated_backfill.common.model.scheduling.batching import AUTO, parse_dates_per_task
from gated_backfill.common.model.scheduling.limits import RateLimit
from gated_backfill.common.model.scheduling.retry import RetryPolicy
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.user import GIVEN_NAME_LENGTH, is_given_name

MAX_RETRY_DELAY_SECONDS = 60.0  #: between two attempts at a date


class Settings(MaintenanceSettings, MonitoringSettings, RecoverySettings):
    """The settings of one process, from the variables `BACKFILL_*`. URLs with passwords are never printed."""

    model_config = SettingsConfigDict(env_prefix="BACKFILL_", frozen=True, hide_input_in_errors=True, extra="ignore")

    home: Path = DEFAULT_HOME  #: the folder of the four URLs' defaults
    broker: SecretStr | None = None  #: redis://...; None starts an embedded broker for each run
    ledger: SecretStr | None = None  #: sqlite:///FILE or postgresql://...
    warehouse: str | None = None  #: local:DIR or bigquery://PROJECT?location=US
    staging: str | None = None  #: a folder that all workers share, or gs://bucket/prefix

    user: str | None = None  #: the name that the person gives, recorded beside the user of the operating system

    window: int = Field(100, ge=1, le=5000)  #: dates per chord
    dates_per_task: int | None = None  #: auto (None): about a second of work
    windows_in_flight: int = Field(3, ge=1, le=50)  #: open windows of a run
    max_in_flight: int | None = Field(None, ge=1)  #: dates in flight, of a run
    max_in_flight_per_job: int | None = Field(None, ge=1)  #: dates in flight, of all active runs of a job
    express_dates: int = Field(7, ge=0)  #: a run of at most this number of dates to build uses the express queue
    queries_per_second: float = Field(0.0, ge=0, le=10_000)  #: of all workers together; 0: no limit
    query_burst: int = Field(10, ge=1, le=10_000)  #: queries at once after a pause
    task_events: bool = True  #: whether workers send the task events that Flower shows
    workers: int = Field(2, ge=1, le=256)  #: worker processes of an embedded stack
    max_retries: int = Field(4, ge=0)  #: of a date, after transient errors
    retry_seconds: float = Field(1.0, gt=0)  #: the first wait before a retry; it doubles each time
    stop_seconds: float = Field(30.0, ge=0)  #: time that tasks in progress have when a stack is stopped
    visibility_seconds: int = Field(7200, ge=60)  #: must exceed the longest hard time limit of any job

    max_bytes_billed: int = Field(100 * 1024**3, ge=10 * 1024**2)  #: of one BigQuery query
    warehouse_retry_seconds: float = Field(60.0, gt=0)  #: how long transient errors of BigQuery are retried
    warehouse_job_seconds: float = Field(600.0, gt=0)  #: how long one BigQuery job may take
    query_memory_mb: int = Field(400, ge=100)  #: of one query of a local warehouse; must fit into `worker_memory_mb`
    price_per_tib: float = Field(6.25, ge=0)  #: of one TiB read by BigQuery, in any currency
    undo_days: int = Field(30, ge=1, le=MAX_DAYS)  #: how long replaced rows are kept for `backfill undo`

    # history
    metadata_table: str = f"{OWN_DATASET}.{METADATA_TABLE}"  #: the warehouse's table of runs; `none`: no table

    @field_validator("home")
    @classmethod
    def _validate_home(cls, folder: Path) -> Path:
        if is_too_long(folder):
            raise ValueError("the path is too long")
        return folder

    @field_validator("user")
    @classmethod
    def _validate_user_name(cls, text: str | None) -> str | None:
        """Return None for an empty name: in a compose file, an unset variable is empty."""
        name = (text or "").strip()
        if not is_given_name(name):
            raise ValueError(f"must be a name of at most {GIVEN_NAME_LENGTH} characters, on one line, without ( and )")
        return name or None

    @field_validator("dates_per_task", mode="before")
    @classmethod
    def _parse_dates_per_task(cls, value: object) -> object:
        try:
            return parse_dates_per_task(value or AUTO) if isinstance(value, str) else value
        except UserError as exc:
            raise ValueError(str(exc)) from exc

    @field_validator("max_in_flight", "max_in_flight_per_job", mode="before")
    @classmethod
    def _empty_is_unlimited(cls, value: object) -> object:
        """Return None for an empty text: in a compose file, an unset variable is empty."""
        return None if isinstance(value, str) and not value.strip() else value

    @field_validator("metadata_table")
    @classmethod
    def _validate_metadata_table(cls, text: str) -> str:
        try:
            return "" if text.strip().lower() in ("", "none") else str(TableName.parse(text.strip()))
        except UserError as exc:
            raise ValueError(str(exc)) from exc

    @property
    def history_table(self) -> TableName | None:
        """The table that the rows of ended runs are written to; None: they are not written."""
        return TableName.parse(self.metadata_table) if self.metadata_table else None

    def check_not_own_table(self, table: str) -> None:
        """Check that a table that a user or a job writes is none of the tool's own. Raises `UserError`."""
        name, dataset = TableName.parse(table), self.warehouse_url.own_dataset
        if name == self.history_table or (name.dataset == dataset and not name.project):
            raise UserError(
                f"only the tool writes to its own tables, the table of runs and all in the dataset "
                f"{dataset}: choose another name",
                table=table,
            )

    @property
    def operation_lease(self) -> timedelta:
        """The lease of a cleanup or an undo, longer than the BigQuery jobs of one of its steps take."""
        jobs = 6 * self.warehouse_job_seconds if self.warehouse_url.runs_jobs else 0.0
        return timedelta(seconds=300 + jobs)

    @property
    def gate_lease(self) -> timedelta:
        """The lease of a gate, longer than the BigQuery jobs of one publication take."""
        jobs = 3 * self.warehouse_job_seconds if self.warehouse_url.runs_jobs else 0.0
        return timedelta(seconds=self.gate_lease_seconds + jobs)

    @property
    def date_retries(self) -> RetryPolicy:
        """The retry policy of a date after transient errors."""
        return RetryPolicy(
            max_retries=self.max_retries,
            first_delay_seconds=self.retry_seconds,
            max_delay_seconds=MAX_RETRY_DELAY_SECONDS,
        )

    @property
    def query_rate_limit(self) -> RateLimit | None:
        """The rate limit of warehouse queries; None: no limit."""
        if not self.queries_per_second:
            return None
        max_wait = self.warehouse_retry_seconds
        return RateLimit(per_second=self.queries_per_second, burst=self.query_burst, max_wait_seconds=max_wait)

    @property
    def warehouse_limits(self) -> WarehouseLimits:
        return WarehouseLimits(
            max_bytes_billed=self.max_bytes_billed,
            retry_seconds=self.warehouse_retry_seconds,
            job_seconds=self.warehouse_job_seconds,
            undo_days=self.undo_days,
            query_memory_mb=self.query_memory_mb,
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


#: The settings that may hold a secret: each has a variable that names a file with it, such as BACKFILL_LEDGER_FILE.
SECRETS = tuple(name for name, field in Settings.model_fields.items() if SecretStr in get_args(field.annotation))


def read_settings() -> Settings:
    """Read the settings. Raises `UserError` with the names of the wrong variables, never with their values."""
    from_files = read_secret_files(SECRETS, os.environ)
    try:
        return Settings(**from_files)  # pyright: ignore[reportArgumentType]
    except ValidationError as exc:
        errors = [(str(error["loc"][0]), error["msg"]) for error in exc.errors(include_input=False)]
        problems = "; ".join(
            f"{secret_file_variable(name) if name in from_files else f'BACKFILL_{name.upper()}'}: {text}"
            for name, text in errors
        )
        raise UserError(f"wrong settings: {problems}") from exc
