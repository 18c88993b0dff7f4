"""Who acts: the user that the operating system knows, whatever a variable says."""

from __future__ import annotations

import os
import pwd

import pytest

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.process.user import describe_user
from gated_backfill.producer.context import current_user

REAL = pwd.getpwuid(os.getuid()).pw_name


@pytest.mark.parametrize("variable", ["LOGNAME", "USER", "LNAME", "USERNAME", "SUDO_USER"])
def test_no_variable_changes_the_user(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "ceo")

    assert current_user(read_settings()) == REAL


def test_a_user_without_a_name_is_known_by_his_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_123)

    assert describe_user() == "uid 4000000123"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        pytest.param("ada", f"{REAL} (says: ada)", id="name"),
        pytest.param(" Ada Lovelace ", f"{REAL} (says: Ada Lovelace)", id="white-space-around-it"),
        pytest.param("張 偉", f"{REAL} (says: 張 偉)", id="any-script"),
        pytest.param("x" * 50, f"{REAL} (says: {'x' * 50})", id="longest"),
        pytest.param("", REAL, id="empty"),
        pytest.param("  ", REAL, id="blank"),
    ],
)
def test_a_given_name_is_marked_as_such(monkeypatch: pytest.MonkeyPatch, given: str, shown: str) -> None:
    monkeypatch.setenv("BACKFILL_USER", given)

    assert current_user(read_settings()) == shown
    assert len(shown) <= 128


@pytest.mark.parametrize(
    "given",
    [
        pytest.param("ada) root (says: x", id="ends-the-mark"),
        pytest.param("ada\nroot", id="two-lines"),
        pytest.param("\x1b[2J", id="escape-sequence"),
        pytest.param("\u202eada", id="reversed"),
        pytest.param("\udcff", id="not-utf8"),
        pytest.param("x" * 51, id="too-long"),
    ],
)
def test_another_name_is_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("BACKFILL_USER", given)

    with pytest.raises(UserError, match=r"^wrong settings: BACKFILL_USER: .*at most 50 characters") as refused:
        read_settings()
    assert given not in str(refused.value)
