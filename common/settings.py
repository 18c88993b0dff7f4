"""Where things are (four URLs) and the policy defaults, read from the environment once, at the entry point."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from common.errors import UserError


class Settings(BaseSettings):
    """The settings of one process, from `BACKFILL_*`. URLs may hold passwords: they never print."""

    model_config = SettingsConfigDict(env_prefix="BACKFILL_", frozen=True, hide_input_in_errors=True, extra="ignore")

    home: Path = Path(".backfill")  #: holds the embedded defaults of the four URLs
    broker: SecretStr | None = None  #: redis://...; None starts an embedded broker for each run
    ledger: SecretStr | None = None  #: sqlite:///FILE or postgresql://...
    warehouse: str | None = None  #: local:DIR
    staging: str | None = None  #: a folder that all workers share

    window: int = Field(100, ge=1, le=5000)  #: dates per chord
    windows_in_flight: int = Field(3, ge=1, le=50)  #: windows of a run that are open at once
    workers: int = Field(2, ge=1, le=256)  #: worker processes of an embedded stack
    max_retries: int = Field(4, ge=0)  #: of a date, after transient errors
    retry_seconds: float = Field(1.0, gt=0)  #: the first wait before a retry; it doubles each time
    max_deaths: int = Field(3, ge=1)  #: worker deaths after which a date is failed
    gate_lease_seconds: int = Field(300, ge=1)
    stalled_seconds: int = Field(60, ge=1)  #: without progress for so long, what was queued is sent again
    visibility_seconds: int = Field(7200, ge=60)  #: must exceed the longest hard time limit of any job

    @property
    def ledger_url(self) -> str:
        return self.ledger.get_secret_value() if self.ledger else f"sqlite:///{self.home.absolute() / 'ledger.db'}"

    @property
    def warehouse_url(self) -> str:
        return self.warehouse or f"local:{self.home.absolute() / 'warehouse'}"

    @property
    def staging_url(self) -> str:
        return self.staging or str(self.home.absolute() / "staging")


def read_settings() -> Settings:
    """The settings of this process. Raises `UserError` naming the variables that are wrong, never their values."""
    try:
        return Settings()  # pyright: ignore[reportCallIssue]
    except ValidationError as exc:
        wrong = "; ".join(f"BACKFILL_{str(e['loc'][0]).upper()}: {e['msg']}" for e in exc.errors(include_input=False))
        raise UserError(f"wrong settings: {wrong}") from exc
