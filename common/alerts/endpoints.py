"""Alert endpoints of the settings, and names for them that hide their URLs, which are secrets."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import UserError

#: Schemes whose URL has a host after `//`. Other schemes (`slack://TOKEN/...`) often have the secret there.
SCHEMES_WITH_HOST = frozenset(
    f"{scheme}{secure}" for scheme in ("json", "xml", "form", "mailto", "apprise", "gotify") for secure in ("", "s")
)
MASK = "..."
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?=://)")
_NEXT_URL = re.compile(r",+(?=[A-Za-z][A-Za-z0-9+.-]*://)")  # a comma may belong to a URL: mailto://...?to=a,b


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A service that alerts are sent to."""

    name: str  #: scheme and host without secrets; unique among the endpoints
    url: str = field(repr=False)


def parse_endpoints(settings: Settings) -> list[Endpoint]:
    """Return the endpoints of the settings, in order. Raises `UserError` (without the text) for one without scheme."""
    if settings.alerts is None:
        return []
    parts = [part for word in settings.alerts.get_secret_value().split() for part in _NEXT_URL.split(word)]
    urls = [url for part in parts if (url := part.strip(","))]
    uses: Counter[str] = Counter()
    endpoints: list[Endpoint] = []
    for number, url in enumerate(urls, 1):
        if _SCHEME.match(url) is None:
            raise UserError(f"BACKFILL_ALERTS: part {number} of {len(urls)} is not a URL: write it as SCHEME://...")
        name = mask_url(url)
        uses[name] += 1
        endpoints.append(Endpoint(name=name if uses[name] == 1 else f"{name} #{uses[name]}", url=url))
    return endpoints


def scheme_of(url: str) -> str:
    match = _SCHEME.match(url)
    return match[0].lower() if match else ""


def mask_url(url: str) -> str:
    """Return the URL's scheme, and its host if that is certainly not a secret."""
    scheme = scheme_of(url)
    host = _host(url) if scheme in SCHEMES_WITH_HOST else None
    return f"{scheme}://{host or MASK}"


def _host(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return None
    # If an @ follows, the "host" may be a part of an unescaped password.
    if "@" in parts.path + parts.query + parts.fragment:
        return None
    return f"{parts.hostname}{port}" if parts.hostname and _is_certainly_host(parts.hostname) else None


def _is_certainly_host(name: str) -> bool:
    """Return whether the name has a dot, is an address, or is this machine: any other word may be a token."""
    return "." in name or ":" in name or name == "localhost"
