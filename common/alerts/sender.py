"""A process of its own that hands messages to apprise: `python -m gated_backfill.common.alerts.sender`.

Apart, because a service may take longer than its own time limits say (a name that does not resolve, a server that
answers a byte at a time), because what apprise and its plugins log names users and hosts, and because importing it
takes a while. Whoever starts this process ends it when the time is over.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
from typing import Any

from gated_backfill.common.process.identity import die_with_parent

WRONG_URL = "wrong url"
_ANSWERED = re.compile(r"error=(\d{3})\b")


def main() -> None:
    """Reads a job from standard input and answers with a line of JSON for each endpoint as it is done with."""
    die_with_parent()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, sys.stdout.fileno())
    os.dup2(quiet, sys.stderr.fileno())
    job = json.loads(sys.stdin.read())
    line = threading.Lock()

    def one(number: int) -> None:
        error = _sent(job["messages"][number], job["seconds"])
        with line:
            answers.write(json.dumps({"number": number, "error": error}) + "\n")
            answers.flush()

    import apprise as _  # noqa: F401 - once, before the threads

    threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in range(len(job["messages"]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers.close()
    os._exit(0)  # threads of apprise's own may still wait for an answer


def _sent(message: dict[str, Any], seconds: float) -> str | None:
    """Send one message, or only look at its URL when it has no title; returns what went wrong, without secrets."""
    from apprise import Apprise, NotifyFormat

    said: list[str] = []
    try:
        plugin = Apprise.instantiate(message["url"])
        if plugin is None:
            return WRONG_URL
        if message["title"] is None:
            return None
        plugin.socket_connect_timeout = plugin.socket_read_timeout = seconds
        sender = Apprise()
        sender.add(plugin)
        went = sender.notify(
            title=message["title"],
            body=message["body"],
            body_format=NotifyFormat.TEXT,
            log_callback=lambda entry, _: said.append(entry.message),
            log_level=logging.WARNING,
        )
    except Exception as exc:  # noqa: BLE001 - the edge: plugins raise what they like, and its text may hold secrets
        return f"apprise raised {type(exc).__name__}"
    return None if went else _reason(said)


def _reason(said: list[str]) -> str:
    """What a plugin's log tells of a failure, in words of ours."""
    text = " ".join(said)
    if answered := _ANSWERED.search(text):
        return f"answered {answered[1]}"
    if "onnection error" in text:
        return "could not be reached, or did not answer in time"
    return "was refused, or could not be reached"


if __name__ == "__main__":
    main()
