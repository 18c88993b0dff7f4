"""The sending process: pass messages to apprise (`python -m gated_backfill.common.alerts.sender PARENT`).

It is a separate process because a service may take longer than its own time limits (a name that does not resolve, a
server that answers one byte at a time), because apprise and its plugins log user and host names, and because importing
apprise is slow. The parent kills it when the time is over.
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

INVALID_URL = "wrong url"
_HTTP_STATUS = re.compile(r"error=(\d{3})\b")


def main() -> None:
    """Read the messages from standard input, and write a line of JSON for each as soon as it is sent or has failed."""
    die_with_parent(int(sys.argv[1]))
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.dup2(devnull, sys.stderr.fileno())
    request = json.loads(sys.stdin.read())
    write_lock = threading.Lock()

    def send_and_answer(number: int) -> None:
        error = _send(request["messages"][number], request["seconds"])
        with write_lock:
            answers.write(json.dumps({"number": number, "error": error}) + "\n")
            answers.flush()

    import apprise as _  # noqa: F401 - once, before the threads

    numbers = range(len(request["messages"]))
    threads = [threading.Thread(target=send_and_answer, args=(number,), daemon=True) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers.close()
    os._exit(0)  # threads that apprise started may still wait for an answer


def _send(message: dict[str, Any], seconds: float) -> str | None:
    """Send a message, or only check its URL if it has no title. Returns the error without secrets."""
    from apprise import Apprise, NotifyFormat

    log_lines: list[str] = []
    try:
        plugin = Apprise.instantiate(message["url"])
        if plugin is None:
            return INVALID_URL
        if message["title"] is None:
            return None
        plugin.socket_connect_timeout = plugin.socket_read_timeout = seconds
        sender = Apprise()
        sender.add(plugin)
        is_sent = sender.notify(
            title=message["title"],
            body=message["body"],
            body_format=NotifyFormat.TEXT,
            log_callback=lambda entry, _: log_lines.append(entry.message),
            log_level=logging.WARNING,
        )
    except Exception as exc:  # noqa: BLE001 - plugins raise anything, and the text may hold secrets
        return f"apprise raised {type(exc).__name__}"
    return None if is_sent else _failure_reason(log_lines)


def _failure_reason(log_lines: list[str]) -> str:
    """Describe a failure by the plugin's log, without quoting it: it may hold secrets."""
    text = " ".join(log_lines)
    if status := _HTTP_STATUS.search(text):
        return f"answered {status[1]}"
    if "onnection error" in text:
        return "could not be reached, or did not answer in time"
    return "rejected the message, or could not be reached"


if __name__ == "__main__":
    main()
