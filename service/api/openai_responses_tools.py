"""The tools of a Responses request, and the names by which a chat completion calls them.

Chat completions know one flat list of functions and custom tools. Responses
also have namespaces of them, lists that come in the middle of a conversation,
and a search for tools that the client runs itself: a function by another name.
https://platform.openai.com/docs/api-reference/responses/create#responses_create-tools
"""

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, NamedTuple

from models.errors import RequestError

_LONGEST_NAME = 64  # of a function, in the chat completions API
_HOLD_TOOLS = frozenset({"additional_tools", "tool_search_output"})


class Tool(NamedTuple):
    """`called` is its name in the canonical form, None for a tool that has no place there. `path` says where it is
    in the body, `namespace` in which one."""

    path: str
    kind: str
    called: str | None
    namespace: str | None
    name: str
    fields: dict[str, Any]


def offered(native: dict[str, Any]) -> Iterator[Tool]:
    """All of them, in order. Raises `RequestError`."""
    yield from listed(native.get("tools"), "tools")
    items = native.get("input")
    if isinstance(items, list):
        for number, item in enumerate(items):
            if isinstance(item, dict) and item.get("type") in _HOLD_TOOLS:
                yield from listed(item.get("tools"), f"input[{number}].tools")


def full_name(namespace: str | None, name: str) -> str:
    """`namespace__name`; `functions` is the namespace of what has none."""
    return name if namespace in (None, "", "functions") else f"{namespace}__{name}"


def called(namespace: str | None, name: str) -> str:
    """The full name, or as much of it as a function's may have."""
    flat = full_name(namespace, name)
    if len(flat) <= _LONGEST_NAME:
        return flat
    return f"{flat[: _LONGEST_NAME - 9]}_{blake2b(flat.encode(errors='replace'), digest_size=4).hexdigest()}"


def listed(tools: object, path: str, namespace: str | None = None) -> Iterator[Tool]:
    if tools is None:
        return
    if not isinstance(tools, list):
        raise RequestError(f"{path} must be a list of tools", param=path)
    for number, fields in enumerate(tools):
        where = f"{path}[{number}]"
        if not isinstance(fields, dict) or not isinstance(kind := fields.get("type"), str):
            raise RequestError(f"{where} must be an object with a type", param=where)
        if kind in ("function", "custom", "namespace"):
            name = fields.get("name")
            if not isinstance(name, str) or not name:
                raise RequestError(f"{where}.name must be a name", param=f"{where}.name")
            if kind == "namespace":
                yield Tool(where, kind, None, namespace, name, fields)
                if namespace is None:  # they do not nest
                    yield from listed(fields.get("tools"), f"{where}.tools", name)
            else:
                yield Tool(where, kind, called(namespace, name), namespace, name, fields)
        elif kind == "tool_search" and fields.get("execution") == "client":
            yield Tool(where, kind, kind, None, kind, fields)
        else:
            yield Tool(where, kind, None, None, kind, fields)
