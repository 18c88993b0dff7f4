"""Who acts: the user that the operating system knows and, marked as such, the name that the person gives."""

from __future__ import annotations

import os
import pwd

from gated_backfill.common.process.printable_text import printable_name

USER_LENGTH = 60  #: characters; with a given name and its mark at most the 128 that the ledger stores
GIVEN_NAME_LENGTH = 50


def describe_user(given_name: str | None = None) -> str:
    """Return the real user of this process, which no variable can change: `backfill`, or `uid 1000` without a name.

    A given name follows as `backfill (says: ada)`.
    """
    user = _user_name()[:USER_LENGTH]
    return f"{user} (says: {given_name})" if given_name else user


def is_given_name(text: str) -> bool:
    """Return whether the text may be a given name. It can contain nothing that looks like the end of the mark."""
    return len(text) <= GIVEN_NAME_LENGTH and printable_name(text) == text and not {"(", ")"} & set(text)


def _user_name() -> str:
    try:
        return printable_name(pwd.getpwuid(os.getuid()).pw_name)
    except KeyError:  # a container's user often has no name
        return f"uid {os.getuid()}"
