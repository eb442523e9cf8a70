"""Fields of a Responses request: read as what they must be, or kept because nobody reads them."""

from typing import Any

import msgspec

from models.errors import RequestError


class Beyond:
    """What the canonical body does not carry, by its path in the request.

    A provider of this dialect is sent the request as it was written. So
    whatever could not be written again from the canonical body is in `fields`,
    be it no more than the order of two items.
    """

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        self.refused: list[str] = []
        self.dropped: list[str] = []

    def keep(self, path: str, value: Any) -> None:
        self.fields[path] = value

    def refuse(self, path: str, value: Any) -> None:
        self.fields[path] = value
        self.refused.append(path)

    def left(
        self, fields: dict[str, Any], known: frozenset[str], path: str, *, harmless: frozenset[str] = frozenset()
    ) -> None:
        """Keeps what no rule reads."""
        if fields.keys() <= known:
            return
        for name, value in fields.items():
            if name not in known and value is not None:
                place = within(path, name)
                self.fields[place] = value
                if name not in harmless:
                    self.dropped.append(place)


def within(path: str, name: str) -> str:
    """The path of a field. One named as if it were a path is quoted: nothing a client writes stands for another."""
    if name.replace("-", "_").isidentifier():
        return f"{path}.{name}" if path else name
    return f"{path}[{msgspec.json.encode(name).decode()}]"


def string(fields: dict[str, Any], name: str, path: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise RequestError(f"{path}.{name} must be a string", param=f"{path}.{name}")
    return value


def optional(fields: dict[str, Any], name: str, kind: type, words: str, path: str = "") -> Any:
    value = fields.get(name)
    if value is not None and type(value) is not kind:
        where = f"{path}.{name}" if path else name
        raise RequestError(f"{where} must be {words}", param=where)
    return value


def number(fields: dict[str, Any], name: str) -> float:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{name} must be a number", param=name)
    return value


def integer(fields: dict[str, Any], name: str) -> int:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{name} must be a whole number", param=name)
    return value
