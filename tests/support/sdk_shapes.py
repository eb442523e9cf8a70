"""Whether a JSON value is what a type of a vendor's SDK says, to the letter: no field too many or missing, no coercion.

The SDKs themselves are lenient, so that an old one can read a newer API. The
fakes are not: a field that the vendor would not know or would miss is found
here, in requests (the SDK's `TypedDict`s) and in answers (its pydantic models).
"""

import base64
import binascii
import datetime as dt
import enum
import functools
import os
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import pydantic
import typing_extensions

Kind = Literal["unknown", "missing", "type", "value"]
Path = tuple[str | int, ...]


_REQUIRED: tuple[Any, ...] = (typing.Required, typing_extensions.Required)
_NOT_REQUIRED: tuple[Any, ...] = (typing.NotRequired, typing_extensions.NotRequired)


class Misfit(NamedTuple):
    """`kind` is `unknown` (a field), `missing` (a field), `type` or `value`; `wanted` says in words what would do."""

    kind: Kind
    path: Path
    wanted: str
    got: Any

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.path))}: {self.kind}, wanted {self.wanted}, got {self.got!r}"


class Field(NamedTuple):
    annotation: Any
    required: bool


def misfit(value: Any, expected: Any, path: Path = ()) -> Misfit | None:
    """The first place where `value` is not what the type `expected` says, or None."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if expected in (Any, object):
        return None
    if origin is typing.Annotated or origin in _REQUIRED or origin in _NOT_REQUIRED:
        return misfit(value, arguments[0], path)
    if origin in (typing.Union, types.UnionType):
        return _union(value, arguments, path)
    if origin is Literal or origin is typing_extensions.Literal:
        if any(value == word and type(value) is type(word) for word in arguments):
            return None
        return Misfit("value", path, " or ".join(repr(word) for word in arguments), value)
    if is_object(expected):
        return _object(value, expected, path)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            return Misfit("type", path, "an object", value)
        return _first(misfit(item, arguments[1], (*path, key)) for key, item in value.items())
    if origin is not None and not issubclass(origin, (typing.IO, os.PathLike)):
        # Iterable, Sequence and the SDKs' own kinds of list
        if not isinstance(value, list):
            return Misfit("type", path, "an array", value)
        return _first(misfit(item, arguments[0], (*path, i)) for i, item in enumerate(value))
    return _plain(value, expected, path)


def is_object(expected: Any) -> bool:
    return typing_extensions.is_typeddict(expected) or (
        isinstance(expected, type) and issubclass(expected, pydantic.BaseModel)
    )


@functools.cache
def fields(expected: Any) -> Mapping[str, Field]:
    """What an object type may and must hold, by its names on the wire; those that say what it is come first."""
    if typing_extensions.is_typeddict(expected):
        found = {}
        for name, annotation in typing_extensions.get_type_hints(expected, include_extras=True).items():
            wire_name, required, inner = _unwrapped(name, annotation, required=name in expected.__required_keys__)
            found[wire_name] = Field(inner, required)
    else:
        expected.model_rebuild()
        declared = expected.model_fields.items()
        found = {field.alias or name: Field(field.annotation, field.is_required()) for name, field in declared}
    return dict(sorted(found.items(), key=lambda named: typing.get_origin(named[1].annotation) is not Literal))


def _unwrapped(name: str, annotation: Any, *, required: bool) -> tuple[str, bool, Any]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        aliases = (getattr(extra, "alias", None) for extra in annotation.__metadata__)
        name = next((alias for alias in aliases if alias), name)
    elif origin in _REQUIRED or origin in _NOT_REQUIRED:
        required = origin in _REQUIRED
    else:
        return name, required, annotation
    return _unwrapped(name, typing.get_args(annotation)[0], required=required)


def _object(value: Any, expected: Any, path: Path) -> Misfit | None:
    if not isinstance(value, dict):
        return Misfit("type", path, "an object", value)
    known = fields(expected)
    for name, field in known.items():
        if name in value:
            if wrong := misfit(value[name], field.annotation, (*path, name)):
                return wrong
        elif field.required:
            return Misfit("missing", (*path, name), "a value", None)
    # Anthropic's and OpenAI's answers allow extra fields by their config, in order to stay readable: that is not meant.
    if getattr(expected, "__pydantic_config__", {}).get("extra") == "allow":
        return None
    return _first(Misfit("unknown", (*path, name), "no such field", value[name]) for name in value if name not in known)


def _union(value: Any, members: Sequence[Any], path: Path) -> Misfit | None:
    """Names the place in the member that was meant: the one whose literals (such as `type`) the value has."""
    flat = list(_members(members))
    misfits = []
    for member in flat:
        wrong = misfit(value, member, path)
        if wrong is None:
            return None
        misfits.append((_kinship(value, member), wrong))
    closest = max(kinship for kinship, _ in misfits)
    wrong = max((found for kinship, found in misfits if kinship == closest), key=lambda found: len(found.path))
    same = [found for _, found in misfits if found.path == wrong.path and found.kind == wrong.kind]
    return wrong._replace(wanted=" or ".join(dict.fromkeys(found.wanted for found in same)))


def _members(members: Sequence[Any]) -> Iterator[Any]:
    for member in members:
        while typing.get_origin(member) is typing.Annotated:
            member = typing.get_args(member)[0]
        if typing.get_origin(member) in (typing.Union, types.UnionType):
            yield from _members(typing.get_args(member))
        else:
            yield member


def _kinship(value: Any, member: Any) -> int:
    """2 where the member is of the value's kind and has its literals, 0 where not, 1 where that says nothing."""
    if isinstance(value, list):
        return 0 if typing.get_origin(member) in (None, dict, Literal) else 2
    if not isinstance(value, dict) or not is_object(member):
        return 0 if isinstance(value, dict) or is_object(member) else 1
    literals = [
        field.required if name not in value else misfit(value[name], field.annotation) is not None
        for name, field in fields(member).items()
        if typing.get_origin(field.annotation) is Literal and (field.required or name in value)
    ]
    return 1 if not literals else 0 if any(literals) else 2


_WORDS = {str: "a string", int: "an integer", float: "a number", bool: "a boolean", type(None): "null"}


def _plain(value: Any, expected: Any, path: Path) -> Misfit | None:
    if expected is None:
        expected = type(None)
    if expected in _WORDS:
        fits = type(value) is expected or (expected is float and type(value) is int)
        return None if fits else Misfit("type", path, _WORDS[expected], value)
    if expected in (dict, list):
        return None if isinstance(value, expected) else Misfit("type", path, f"a {expected.__name__}", value)
    if isinstance(expected, type) and issubclass(expected, enum.Enum):
        words = [member.value for member in expected]
        # Google's enums read either case.
        fits = value in words or (isinstance(value, str) and value.upper() in words)
        return None if fits else Misfit("value", path, " or ".join(map(repr, words)), value)
    if expected is dt.datetime and isinstance(value, str):
        try:
            dt.datetime.fromisoformat(value)
        except ValueError:
            return Misfit("value", path, "a time", value)
        return None
    if expected is bytes and isinstance(value, str):
        try:
            # Google takes both alphabets, padded or not.
            base64.b64decode(value.rstrip("=") + "=" * (-len(value.rstrip("=")) % 4), altchars=b"-_")
        except binascii.Error:
            return Misfit("value", path, "base64", value)
        return None
    # What is left cannot come as JSON: files, paths, classes of the SDK's own.
    return Misfit("type", path, getattr(expected, "__name__", str(expected)), value)


def _first(found: Iterator[Misfit | None]) -> Misfit | None:
    return next((wrong for wrong in found if wrong is not None), None)
