"""The endpoints that alerts go to, and the names under which they may be shown: their URLs are secrets."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import UserError

#: Of these, what stands where a host does may be one. Of others (`slack://TOKEN/...`) it is often the secret itself.
WITH_HOST = frozenset(
    f"{scheme}{secure}" for scheme in ("json", "xml", "form", "mailto", "apprise", "gotify") for secure in ("", "s")
)
MASK = "..."
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?=://)")
_NEXT_URL = re.compile(r",+(?=[A-Za-z][A-Za-z0-9+.-]*://)")  # a comma may belong to a URL: mailto://...?to=a,b


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One place that alerts are sent to."""

    name: str  #: scheme and host without secrets; different for each endpoint
    url: str = field(repr=False)


def parse_endpoints(settings: Settings) -> list[Endpoint]:
    """The endpoints of the settings, in their order. Raises `UserError` for a part that is no URL, not quoting it."""
    if settings.alerts is None:
        return []
    urls = [url for word in settings.alerts.get_secret_value().split() for url in _NEXT_URL.split(word)]
    urls = [url.strip(",") for url in urls if url.strip(",")]
    seen: Counter[str] = Counter()
    found: list[Endpoint] = []
    for number, url in enumerate(urls, 1):
        if _SCHEME.match(url) is None:
            raise UserError(f"BACKFILL_ALERTS: part {number} of {len(urls)} is no URL: write it as SCHEME://...")
        name = masked(url)
        seen[name] += 1
        found.append(Endpoint(name=name if seen[name] == 1 else f"{name} #{seen[name]}", url=url))
    return found


def scheme_of(url: str) -> str:
    found = _SCHEME.match(url)
    return found[0].lower() if found else ""


def masked(url: str) -> str:
    """The URL's scheme, and its host where it is known to be one and nothing else."""
    scheme = scheme_of(url)
    host = _host(url) if scheme in WITH_HOST else None
    return f"{scheme}://{host or MASK}"


def _host(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return None
    if (
        "@" in parts.path + parts.query + parts.fragment
    ):  # what looks like a host may be a part of an unescaped password
        return None
    return f"{parts.hostname}{port}" if parts.hostname and _is_surely_a_host(parts.hostname) else None


def _is_surely_a_host(name: str) -> bool:
    """Whether it has a dot, is an address, or is this machine: a word alone may as well be a token."""
    return "." in name or ":" in name or name == "localhost"
