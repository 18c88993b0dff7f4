"""Settings for monitoring: alerts, Flower and metrics."""

from __future__ import annotations

from pydantic import Field, SecretStr, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings

from gated_backfill.common.model.alert_kinds import ALERT_KINDS, parse_alert_kinds


class MonitoringSettings(BaseSettings):
    """The part of `Settings` for alerts, Flower and metrics."""

    alerts: SecretStr | None = None  #: apprise URLs, separated by white space or commas; None: no endpoint
    alert_kinds: str | None = None  #: the kinds to deliver, separated by commas; None delivers all
    alert_timeout_seconds: float = Field(10.0, gt=0, le=120)  #: for sending to all endpoints together
    alert_retry_seconds: float = Field(60.0, ge=0)  #: the first wait before a retry; it doubles each time

    flower_address: str = "127.0.0.1"  #: address that Flower listens on; 0.0.0.0: every interface
    flower_port: int = Field(5555, ge=1, le=65535)
    flower_user: str = "backfill"
    flower_password: SecretStr | None = None  #: None: `backfill up` generates one
    metrics_user: str = "backfill"
    metrics_password: SecretStr | None = None  #: for /metrics; None: only this machine can read it
    metrics_port: int = Field(9808, ge=1, le=65535)  #: port of `backfill up`, on this machine only

    @field_validator("flower_user", "metrics_user")
    @classmethod
    def _validate_user(cls, user: str) -> str:
        if not user or "," in user or ":" in user:
            raise ValueError("must not be empty or contain a comma or a colon")
        return user

    @field_validator("flower_password")
    @classmethod
    def _validate_flower_password(cls, password: SecretStr | None) -> SecretStr | None:
        if password is not None and (not password.get_secret_value() or "," in password.get_secret_value()):
            raise ValueError("must not be empty or contain a comma, where Flower would split it")
        return password

    @field_validator("metrics_password")
    @classmethod
    def _empty_password_is_unset(cls, password: SecretStr | None) -> SecretStr | None:
        """Return None for an empty password: in a compose file, an unset variable is empty."""
        return password if password is not None and password.get_secret_value() else None

    @field_validator("alert_kinds")
    @classmethod
    def _validate_alert_kinds(cls, value: str | None) -> str | None:
        if not set(parse_alert_kinds(value)) <= set(ALERT_KINDS):
            raise PydanticCustomError("alert_kinds", "Known kinds are {known}", {"known": ", ".join(ALERT_KINDS)})
        return value or None  # in a compose file, an unset variable is empty

    @property
    def delivered_alert_kinds(self) -> tuple[str, ...]:
        """The kinds of alert that are delivered."""
        return ALERT_KINDS if self.alert_kinds is None else parse_alert_kinds(self.alert_kinds)
