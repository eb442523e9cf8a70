"""What a new virtual key may be: one set of rules for the command line and the management API.

Everything here raises ValueError with words that follow the name of the field.
"""

import re
from collections.abc import Collection, Iterable

_LONGEST_NAME = 128
# The longest name a request may ask a model by.
_LONGEST_MODEL = 256
_LONGEST_LIFE = 3650 * 86400.0

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)")
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def checked_name(name: str) -> str:
    """A name of a key or a team: it is shown in tables, logs and terminals."""
    return _printable(name, _LONGEST_NAME)


def checked_model(name: str) -> str:
    return _printable(name, _LONGEST_MODEL)


def check_endpoints(names: Iterable[str] | None, known: Collection[str]) -> None:
    unknown = sorted(set(names or ()) - set(known))
    if unknown:
        raise ValueError(f"no endpoint is named {', '.join(map(repr, unknown))}; known: {', '.join(sorted(known))}")


def lifetime(given: object) -> float:
    """Seconds, of a number of them or of a duration such as `30m`, `12h` or `90d`."""
    seconds = -1.0
    if isinstance(given, str) and (match := _DURATION.fullmatch(given)):
        seconds = float(match[1]) * _UNITS[match[2]]
    elif isinstance(given, int | float) and not isinstance(given, bool):
        seconds = given
    if not 0 < seconds <= _LONGEST_LIFE:
        raise ValueError("must be a duration above 0 and of at most 3650d, such as 30m, 12h or 90d")
    return float(seconds)


def _printable(name: str, longest: int) -> str:
    if not name.strip() or len(name) > longest or not name.isprintable():
        raise ValueError(f"must be 1 to {longest} printable characters")
    return name
