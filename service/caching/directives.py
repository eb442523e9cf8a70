"""What a request's headers ask of the cache. They can tighten the endpoint's policy, never loosen it.

`Cache-Control` request directives as in RFC 9111, section 5.2.1; those not
listed in docs/api.md have no effect, as the RFC asks of unknown ones.
"""

import re
from collections.abc import Mapping

from models.errors import RequestError
from service.context import Directives, Endpoint, Mode

HEADERS = frozenset({b"cache-control", b"x-keepgate-cache", b"x-keepgate-threshold", b"x-keepgate-ttl"})

# From the most to the least that the cache may do.
_ALLOWED: dict[Mode, dict[str, Mode]] = {
    "semantic": {"semantic": "semantic", "exact": "exact", "off": "off"},
    "shadow": {"semantic": "shadow", "exact": "exact", "off": "off"},
    "exact": {"semantic": "exact", "exact": "exact", "off": "off"},
    "off": {"semantic": "off", "exact": "off", "off": "off"},
}
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)([smhd]?)", re.ASCII)
_SECONDS = re.compile(r"\d{1,12}", re.ASCII)
_NUMBER = re.compile(r"[01](?:\.\d{1,12})?|\.\d{1,12}", re.ASCII)


def defaults(endpoint: Endpoint) -> Directives:
    """What a request that asks for nothing gets."""
    return Directives(mode=endpoint.mode, threshold=endpoint.threshold or 0.0, ttl=endpoint.ttl)


def parse(headers: Mapping[bytes, bytes], endpoint: Endpoint) -> Directives:
    """Raises `RequestError` that names the header whose value cannot be read."""
    mode, threshold, ttl = endpoint.mode, endpoint.threshold or 0.0, endpoint.ttl
    lookup = store = True
    max_age: float | None = None
    only_if_cached = False

    if (asked := _text(headers, b"x-keepgate-cache")) is not None:
        if asked not in _ALLOWED[mode]:
            raise _malformed("x-keepgate-cache", "off, exact or semantic")
        mode = _ALLOWED[mode][asked]
    if (asked := _text(headers, b"x-keepgate-threshold")) is not None:
        if not _NUMBER.fullmatch(asked) or float(asked) > 1:
            raise _malformed("x-keepgate-threshold", "a number from 0 to 1")
        threshold = max(threshold, float(asked))
    if (asked := _text(headers, b"x-keepgate-ttl")) is not None:
        matched = _DURATION.fullmatch(asked)
        if matched is None:
            raise _malformed("x-keepgate-ttl", "seconds, or a duration such as 10m")
        ttl = min(ttl, float(matched[1]) * _UNITS[matched[2]])
    for directive in (_text(headers, b"cache-control") or "").split(","):
        name, _, value = directive.strip().partition("=")
        match name.lower():
            case "no-cache":
                lookup = False
            case "no-store":
                store = False
            case "only-if-cached":
                only_if_cached = True
            case "max-age":
                if not _SECONDS.fullmatch(value.strip('"')):
                    raise _malformed("Cache-Control", "max-age=SECONDS")
                asked_age = float(value.strip('"'))
                max_age = asked_age if max_age is None else min(max_age, asked_age)
    return Directives(mode, threshold, ttl, lookup, store, max_age, only_if_cached)


def _text(headers: Mapping[bytes, bytes], name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("latin-1").strip().lower()


def _malformed(header: str, expected: str) -> RequestError:
    return RequestError(f"the header {header} must be {expected}", param=header)
