"""Values in protobuf's JSON, as Google's APIs read it.

A field may be written in camelCase or snake_case, null is the same as absent, a list of one may come without its
brackets, and whole numbers may be strings. https://protobuf.dev/programming-guides/json/

Everything here raises `RequestError` that names the field.
"""

from typing import Any, NamedTuple

from models.errors import RequestError

_LONGEST_PATH = 400
_URL_SAFE = str.maketrans("-_", "+/")


class Place(NamedTuple):
    """Where a value is, as a link to what it is in: written out only to be told. What is nested deeply under long
    names would else fill the memory with its paths."""

    inside: "Place | str"
    at: str | int

    def __str__(self) -> str:
        """The path, the middle left out where it is long."""
        steps = []
        place: Place | str = self
        while not isinstance(place, str):
            steps.append(f"[{place.at}]" if isinstance(place.at, int) else f".{place.at}")
            place = place.inside
        path = place + "".join(reversed(steps))
        half = _LONGEST_PATH // 2
        return path if len(path) <= _LONGEST_PATH else f"{path[:half]}…{path[-half:]}"


def wrong(where: "str | Place", wanted: str) -> RequestError:
    return RequestError(f"{where} must be {wanted}", param=str(where))


def fields_of(value: Any, where: str | Place) -> dict[str, Any]:
    """A message's fields in camelCase, without those that are null."""
    fields = mapping(value, where)
    for name, inner in fields.items():
        if inner is None or "_" in name:
            break
    else:
        return fields
    renamed: dict[str, Any] = {}
    for name, inner in fields.items():
        if inner is None:
            continue
        known = _camel(name) if "_" in name else name
        if known in renamed:
            raise RequestError(f"{where} has {known} twice", param=str(where))
        renamed[known] = inner
    return renamed


def mapping(value: Any, where: str | Place) -> dict[str, Any]:
    """An object whose names are the caller's own."""
    if not isinstance(value, dict):
        raise wrong(where, "an object")
    return value


def _camel(name: str) -> str:
    """A field's name in JSON. What protobuf would not write is no field of its: nothing else may be taken for one."""
    first, *rest = name.split("_")
    if not first or not all(rest) or name != name.lower():
        return name
    return first + "".join(word[0].upper() + word[1:] for word in rest)


def items_of(value: Any, where: str | Place) -> list[Any]:
    if isinstance(value, list):
        return value
    if isinstance(value, dict | str):
        return [value]
    raise wrong(where, "a list")


def text_of(value: Any, where: str | Place) -> str:
    if not isinstance(value, str):
        raise wrong(where, "a string")
    return value


def flag_of(value: Any, where: str | Place) -> bool:
    if not isinstance(value, bool):
        raise wrong(where, "true or false")
    return value


def number_of(value: Any, where: str | Place) -> int | float:
    """A whole number is an integer: the SDKs of this API make 0 to 0.0, and those of others do not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(where, "a number")
    return int(value) if isinstance(value, float) and value.is_integer() else value


def count_of(value: Any, where: str | Place) -> int:
    """Protobuf's JSON writes 64-bit integers as strings, and reads 40.0 as 40."""
    if isinstance(value, str) and len(value) < 20 and value.removeprefix("-").isdecimal() and value.isascii():
        return int(value)
    number = None if isinstance(value, str) else number_of(value, where)
    if not isinstance(number, int):
        raise wrong(where, "a whole number")
    return number


def base64_of(value: Any, where: str) -> str:
    """In the alphabet of `data:` URLs, and padded; the SDK writes the URL-safe one."""
    encoded = text_of(value, where)
    if "-" in encoded or "_" in encoded:
        encoded = encoded.translate(_URL_SAFE)
    return encoded + "=" * (-len(encoded) % 4)
