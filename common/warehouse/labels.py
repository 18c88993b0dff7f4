"""The labels of warehouse jobs: for which job, run and window of ours each of them works."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

TOOL_LABEL = {"tool": "gated-backfill"}  #: of every job
MAX_LABEL_LENGTH = 63  #: of a label's value in BigQuery
NOT_ALLOWED = re.compile(r"[^a-z0-9_-]")

_labels: ContextVar[Mapping[str, str]] = ContextVar("labels", default=TOOL_LABEL)


@contextmanager
def label_work(**labels: object) -> Generator[None]:
    """Label the warehouse jobs that this thread starts inside this context, beside the labels around it.

    The names are BigQuery's own names of labels, such as `run`; values are made such as BigQuery takes them.
    """
    token = _labels.set({**_labels.get(), **{name: label_value(value) for name, value in labels.items()}})
    try:
        yield
    finally:
        _labels.reset(token)


def current_labels() -> dict[str, str]:
    """Return the labels of the work that this thread does now."""
    return dict(_labels.get())


def label_value(value: object) -> str:
    """Return the value in lower case, with `_` for each character that is no letter, digit, `_` or `-`, cut to 63."""
    return NOT_ALLOWED.sub("_", str(value).lower())[:MAX_LABEL_LENGTH]
