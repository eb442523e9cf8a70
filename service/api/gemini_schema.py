"""The API's own kind of schema, OpenAPI 3.0 with types in capitals, as JSON Schema.

https://ai.google.dev/api/caching#Schema
"""

from collections.abc import Iterable
from typing import Any

from service.api.gemini_values import Place, count_of, fields_of, flag_of, items_of, mapping, number_of, text_of

_COUNTS = frozenset({"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"})
# The same in both, and most of what there is.
_SAME = frozenset({"default", "description", "enum", "pattern", "required", "title"})
# What JSON Schema calls something else.
_RENAMED = {"defs": "$defs", "ref": "$ref", "example": "examples"}


def json_schema(value: Any, where: str) -> tuple[dict[str, Any], bool]:
    """And whether it says all that `value` does. Raises `RequestError` that says what cannot be used."""
    translation = _Translation()
    schema = translation.whole(value, where)
    return schema, translation.exact


class _Translation:
    """A schema's own schemas wait their turn in a list: clients nest them as deeply as they like."""

    def __init__(self) -> None:
        self.exact = True
        # Each with the place of what it is in, and the object or list that it goes to, under a name or number.
        self._waiting: list[tuple[Any, str | Place, Any, str | int]] = []

    def whole(self, value: Any, where: str) -> dict[str, Any]:
        schema = self._schema(value, where)
        while self._waiting:
            value, inside, holder, at = self._waiting.pop()
            holder[at] = self._schema(value, Place(inside, at))
        return schema

    def _schema(self, value: Any, where: str | Place) -> dict[str, Any]:
        fields = fields_of(value, where)
        if fields is not value and None in value.values():
            self.exact = False  # an `example` of null is one
        schema: dict[str, Any] = {}
        for name, inner in fields.items():
            if name in _SAME:
                schema[name] = inner
            elif name == "type":
                self._add_type(schema, inner, where)
            else:
                self._add(schema, name, inner, fields, where)
        if "nullable" in fields and flag_of(fields["nullable"], Place(where, "nullable")):
            self._allow_null(schema)
        return schema

    def _add(self, schema: dict[str, Any], given: str, inner: Any, fields: dict[str, Any], inside: str | Place) -> None:
        name, where = _RENAMED.get(given, given), Place(inside, given)
        if name in schema or given == "examples":
            self.exact = False
        match name:
            case "properties" | "$defs":
                named = mapping(inner, where)
                order: Iterable[str] = named if name == "$defs" else _ordered(named, fields, inside)
                schema[name] = schemas = dict.fromkeys(order)
                self._waiting += ((named[key], where, schemas, key) for key in schemas)
            case "anyOf":
                items = items_of(inner, where)
                schema[name] = choices = [None] * len(items)
                self._waiting += ((item, where, choices, at) for at, item in enumerate(items))
            case "additionalProperties" if isinstance(inner, bool):
                schema[name] = inner
            case "items" | "additionalProperties":
                schema[name] = None
                self._waiting.append((inner, inside, schema, name))
            case "$ref":
                schema[name] = text_of(inner, where).replace("#/defs/", "#/$defs/")
            case "minimum" | "maximum":
                schema[name] = number_of(inner, where)
            case "examples" if given == "example":
                schema[name] = [inner]
            case "format" if inner == "enum":
                pass  # goes without saying where there is an `enum`
            case "propertyOrdering":
                self.exact = False  # an object has no order
            case "nullable":
                pass
            case _:
                schema[name] = count_of(inner, where) if name in _COUNTS else inner

    def _add_type(self, schema: dict[str, Any], value: Any, inside: str | Place) -> None:
        where = Place(inside, "type")
        kinds = [text_of(kind, where).lower() for kind in items_of(value, where)]
        if "type_unspecified" not in kinds:
            schema["type"] = kinds if isinstance(value, list) else kinds[0]
        elif isinstance(value, list):
            self.exact = False

    def _allow_null(self, schema: dict[str, Any]) -> None:
        kinds = schema.get("type")
        if isinstance(kinds, str):
            schema["type"] = [kinds, "null"]
        elif isinstance(schema.get("anyOf"), list):
            schema["anyOf"].append({"type": "null"})
        else:
            self.exact = False
        if isinstance(schema.get("enum"), list):
            schema["enum"] = [*schema["enum"], None]


def _ordered(properties: dict[str, Any], fields: dict[str, Any], inside: str | Place) -> Iterable[str]:
    """Where order matters to a model, it is that of the properties themselves."""
    ordering = fields.get("propertyOrdering")
    if ordering is None:
        return properties
    where = Place(inside, "propertyOrdering")
    named = dict.fromkeys(text_of(name, where) for name in items_of(ordering, where))
    return [*(name for name in named if name in properties), *(name for name in properties if name not in named)]
