"""What makes two Responses requests the same: nothing but what docs/dialects/responses.md says is neutral."""

import gc
import json
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from models.errors import RequestError, Untranslatable
from models.request import Request
from service.api.dialect import Asked
from service.api.openai_responses import RESPONSES
from service.api.openai_responses_tools import called
from service.api.wording import in_words_of
from service.caching.identity import STATEFUL_BEYOND, exact_key

JsonObject = dict[str, Any]
Place = tuple[str | int, ...]


def read(native: JsonObject) -> Request:
    return RESPONSES.decode(json.dumps(native).encode(), Asked("chat"))


def key(native: JsonObject) -> str:
    request = read(native)
    return exact_key(request.body, [msgspec.json.encode(request.beyond, order="deterministic").decode()])


# --- pairs that once had one key

FUNCTION = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": False}
ASKED = {"role": "user", "content": "hi"}
CALLED = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
SEARCH = {"type": "tool_search", "execution": "client", "parameters": {}}
ALLOWED = {"type": "allowed_tools", "tools": [{"type": "function", "name": "f"}]}
WEB = [{"type": "web_search"}]


def parts(*names: str) -> list[JsonObject]:
    """A picture by the id of a file among texts."""
    return [
        {"type": "input_image", "file_id": "file-1"} if name == "picture" else {"type": "input_text", "text": name}
        for name in names
    ]


PAIRS: dict[str, tuple[JsonObject, JsonObject]] = {
    "no call and any of a hosted tool": ({"tools": WEB, "tool_choice": "none"}, {"tools": WEB, "tool_choice": "auto"}),
    "one hosted tool at a time": ({"tools": WEB, "parallel_tool_calls": False}, {"tools": WEB}),
    "hosted tools before and after": ({"tools": [*WEB, FUNCTION]}, {"tools": [FUNCTION, *WEB]}),
    "a tool defined twice": ({"tools": [FUNCTION, {**FUNCTION, "description": "e"}]}, {"tools": [FUNCTION]}),
    "strict and unsaid": ({"tools": [FUNCTION]}, {"tools": [{**FUNCTION, "strict": None}]}),
    "a namespace and a name like it": (
        {"tools": [{**FUNCTION, "name": "n__f"}]},
        {"tools": [{"type": "namespace", "name": "n", "tools": [FUNCTION]}]},
    ),
    "a search and a function of its name": (
        {"tools": [SEARCH]},
        {"tools": [{"type": "function", "name": "tool_search", "parameters": {}, "strict": False}]},
    ),
    "what is not allowed": (
        {"tools": [FUNCTION, {**FUNCTION, "name": "g"}], "tool_choice": ALLOWED},
        {"tools": [FUNCTION, {**FUNCTION, "name": "g", "description": "e"}], "tool_choice": ALLOWED},
    ),
    "log probabilities alone": ({"top_logprobs": 5}, {}),
    "a picture among texts": (
        {"input": [{"role": "user", "content": parts("see", "picture", "and say")}]},
        {"input": [{"role": "user", "content": parts("see", "and say", "picture")}]},
    ),
    "a search before and after the text": (
        {"input": [{"type": "web_search_call", "id": "ws_1"}, {"role": "assistant", "content": "a"}, ASKED]},
        {"input": [{"role": "assistant", "content": "a"}, {"type": "web_search_call", "id": "ws_1"}, ASKED]},
    ),
    "a call before and after the text": (
        {"input": [CALLED, {"role": "assistant", "content": "a"}, ASKED]},
        {"input": [{"role": "assistant", "content": "a"}, CALLED, ASKED]},
    ),
    "thoughts by their id": (
        {"input": [{"type": "reasoning", "id": "rs_1", "summary": []}, ASKED]},
        {"input": [ASKED]},
    ),
    "a call in a namespace and one of a name like it": (
        {"input": [{**CALLED, "name": "b", "namespace": "a"}, ASKED]},
        {"input": [{**CALLED, "name": "a__b"}, ASKED]},
    ),
    "tools defined again in the input": (
        {"input": [{"type": "additional_tools", "tools": [FUNCTION]}, ASKED], "tools": [FUNCTION]},
        {
            "input": [{"type": "additional_tools", "tools": [{**FUNCTION, "description": "e"}]}, ASKED],
            "tools": [FUNCTION],
        },
    ),
    "a field named like a path": ({"input": [{**ASKED, "phase": "x"}]}, {"input": [ASKED], "input[0].phase": "x"}),
}


@pytest.mark.parametrize(("one", "other"), PAIRS.values(), ids=PAIRS)
def test_two_requests_of_different_meaning_are_two(one: JsonObject, other: JsonObject) -> None:
    assert key({"model": "m", "input": "hi", **one}) != key({"model": "m", "input": "hi", **other})


@pytest.mark.parametrize(
    "native",
    [
        {"input": [{"type": "reasoning", "id": "rs_1", "summary": []}, ASKED]},
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        {"input": "hi", "tools": [{"type": "code_interpreter", "container": "cntr_1"}]},
        {"input": "hi", "tools": [{"type": "shell", "environment": {"container_id": "cntr_1"}}]},
    ],
)
def test_what_a_provider_keeps_under_an_id_is_neither_cached_nor_told_to_another(native: JsonObject) -> None:
    request = read({"model": "m", **native})

    assert any(request.beyond.get(name) for name in STATEFUL_BEYOND)
    assert len(request.refused) == 1


def test_the_usual_request_says_nothing_that_other_dialects_could_not() -> None:
    turn = [
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "a", "annotations": [], "logprobs": []}],
        },
        {**CALLED, "id": "fc_1", "status": "completed"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "a"}]},
    ]

    assert read({"model": "m", "input": [ASKED, *turn, *turn], "tools": [FUNCTION]}).beyond == {}


# --- what a request means, read off the documentation: two with one meaning may be one, two with another must not

NEUTRAL = {
    *("client_metadata", "metadata", "model", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"),
    *("store", "stream", "stream_options", "user"),
}
DEFAULTS: JsonObject = {
    "background": False,
    "generate": True,
    "parallel_tool_calls": True,
    "service_tier": "auto",
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "truncation": "disabled",
    "include": [],
    "text": {},
    "reasoning": {},
}
CALLS = ("function_call", "custom_tool_call")
OUTPUTS = ("function_call_output", "custom_tool_call_output")


def same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)  # to Python 1 is True


def said(fields: JsonObject, *but: str, **usual: Any) -> JsonObject:
    """Without null, without what is neutral, without what goes without saying."""
    return {
        name: value
        for name, value in fields.items()
        if value is not None and name not in but and not (name in usual and same(value, usual[name]))
    }


def meaning(native: JsonObject) -> str:
    told = said(native, *NEUTRAL, **DEFAULTS)
    if not (told.get("prompt_cache_options") or {}).get("prewarm"):
        told.pop("prompt_cache_options", None)
    if told.get("include"):
        told["include"] = sorted(set(told["include"]))
    if "text" in told:
        form = said(told["text"].get("format") or {})
        form = said(form, strict=False) if form.get("type") == "json_schema" else form
        told["text"] = said({**told["text"], "format": form or None}, verbosity="medium", format={"type": "text"})
    if "reasoning" in told:
        told["reasoning"] = said(told["reasoning"])
    if isinstance(told.get("tool_choice"), dict) and told["tool_choice"]["type"] in ("function", "custom"):
        told["tool_choice"] = said(told["tool_choice"])
    if "tools" in told:
        told["tools"] = list(map(meaning_of_tool, told["tools"]))
    instructions, items = told.pop("instructions", ""), told.pop("input", [])
    first = [{"role": "system", "content": instructions}] if instructions else []
    items = [{"role": "user", "content": items}] if isinstance(items, str) else items
    told["input"] = list(map(meaning_of_item, [*first, *items]))
    return json.dumps(said(told, **DEFAULTS), sort_keys=True)


def meaning_of_item(item: JsonObject) -> JsonObject:
    kind = item.get("type")
    if kind is None:
        kind = "message" if "role" in item else "item_reference"
    if kind == "message":
        told = {**said(item, "id", "status"), "type": kind}
        told["role"] = "system" if item["role"] == "developer" else item["role"]
        told["content"] = meaning_of_content(item["content"], "output" if item["role"] == "assistant" else "input")
        return told
    if kind in CALLS:
        return said(item, "id", "status")
    if kind in OUTPUTS:
        return {**said(item, "id", "status"), "output": meaning_of_content(item["output"], "input")}
    if kind == "reasoning":
        told = said(item, "status", summary=[], content=[])
        for name, usual in (("summary", "summary_text"), ("content", "reasoning_text")):
            if name in told:
                told[name] = [said(part, type=usual) for part in told[name]]
        # Without anything in it there is only its id, as with an item_reference, which is taken as it came.
        return told if "id" not in told or told.keys() & {"summary", "content", "encrypted_content"} else item
    if kind == "additional_tools":
        return said({**item, "tools": list(map(meaning_of_tool, item.get("tools") or []))}, "id")
    if kind.startswith("tool_search_") and item.get("execution") == "client" and item.get("call_id"):
        told = said(item, "id", "status")
        if kind == "tool_search_output":
            told["tools"] = list(map(meaning_of_tool, item.get("tools") or []))
        return told | ({"arguments": item.get("arguments")} if kind == "tool_search_call" else {})
    return {**item, "type": kind}


def meaning_of_content(content: Any, way: str) -> Any:
    if isinstance(content, str):
        return content
    parts = list(map(meaning_of_part, content))
    if len(parts) == 1 and same(parts[0], {"type": f"{way}_text", "text": parts[0].get("text")}):
        return parts[0]["text"]
    return parts or ""


def meaning_of_part(part: JsonObject) -> JsonObject:
    match part:
        case {"type": "input_text" | "output_text" | "text"}:
            return said(part, "prompt_cache_breakpoint", annotations=[], logprobs=[])
        case {"type": "input_image", "image_url": str()} | {"type": "input_file"}:
            return said(part, "prompt_cache_breakpoint", detail="auto")
        case {"type": "input_audio"}:
            return said({**part, "input_audio": said(part["input_audio"])}, "prompt_cache_breakpoint")
        case {"type": "refusal", "refusal": str()}:
            return said(part, "prompt_cache_breakpoint")
        case _:
            return part


def meaning_of_tool(tool: JsonObject) -> JsonObject:
    match tool:
        case {"type": "function" | "tool_search"}:
            return said(tool)
        case {"type": "custom"}:
            form = said(tool.get("format") or {})
            return said({**tool, "format": form}, format={"type": "text"} if form else {})
        case {"type": "namespace"} if isinstance(tool.get("tools") or [], list):
            return {**tool, "tools": list(map(meaning_of_tool, tool.get("tools") or []))}
        case _:
            return tool


# --- requests that say much

LONG = "f" * 99
CUT = called(None, LONG)  # the name that stands for it
ITEMS: list[JsonObject] = [
    {"role": "user", "content": "a"},
    {"role": "developer", "content": "b"},
    {"role": "assistant", "content": "a"},
    {"role": "assistant", "content": ""},
    {"role": "assistant", "content": [{"type": "output_text", "text": "a"}, {"type": "output_text", "text": "b"}]},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "a"}]},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "ab"}]},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "b"}, {"type": "output_text", "text": "a"}]},
    {"role": "user", "content": [{"type": "input_image", "file_id": "a"}]},
    {"role": "user", "content": [{"type": "input_image", "file_id": "a"}, {"type": "input_text", "text": ""}]},
    {"type": "reasoning", "id": "rs_1", "summary": []},
    {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "a"}], "encrypted_content": "x"},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "a"}]},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": text} for text in "ab"]},
    {"type": "reasoning", "id": "rs_2", "content": [{"type": "reasoning_text", "text": "a"}]},
    {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "a"}]},
    {"type": "reasoning", "content": [{"type": "reasoning_text", "text": text} for text in "ab"]},
    {"type": "reasoning"},
    {"type": "reasoning", "encrypted_content": ""},
    # Sealed by the gateway: nothing, and what another API signed.
    {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "a"}], "encrypted_content": "keepgate-1.W10="},
    {"type": "reasoning", "content": [], "encrypted_content": "keepgate-1.W3siZGF0YSI6ImEifV0="},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call", "call_id": "c", "name": "f", "namespace": "n", "arguments": "{}"},
    {"type": "function_call", "call_id": "c", "name": "n__f", "arguments": "{}"},
    {"type": "function_call", "call_id": "c", "name": "tool_search", "arguments": "{}"},
    {"type": "function_call", "call_id": "c", "name": LONG, "arguments": "{}"},
    {"type": "function_call", "call_id": "c", "name": CUT, "arguments": "{}"},
    {"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "{}"},
    {"type": "tool_search_call", "execution": "client", "call_id": "c", "arguments": {}},
    {"type": "function_call_output", "call_id": "c", "output": "[]"},
    {"type": "custom_tool_call_output", "call_id": "c", "output": "[]"},
    {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "file_id": "a"}]},
    {"type": "tool_search_output", "execution": "client", "call_id": "c", "tools": []},
    {"type": "tool_search_output", "execution": "client", "call_id": "c", "tools": [FUNCTION]},
    {"type": "additional_tools", "role": "developer", "tools": [FUNCTION]},
    {"type": "additional_tools", "tools": [{**FUNCTION, "description": "another"}, {"type": "web_search"}]},
    {"type": "web_search_call", "id": "ws_1", "action": {"type": "search", "query": "q"}},
    {"type": "computer_call_output", "call_id": "c", "output": {}},
    {"type": "item_reference", "id": "a"},
    {"type": "of_next_year"},
]
PARTS: list[JsonObject] = [
    {"type": "input_text", "text": "a"},
    {"type": "output_text", "text": "a"},
    {"type": "output_text", "text": "a", "annotations": [{"type": "url_citation"}], "logprobs": []},
    {"type": "text", "text": "a"},
    {"type": "input_text", "text": ""},
    {"type": "refusal", "refusal": "a"},
    {"type": "input_image", "image_url": "a", "detail": "low"},
    {"type": "input_image", "file_id": "a"},
    {"type": "input_image", "image_url": "a", "file_id": "a"},
    {"type": "input_file", "file_id": "a", "detail": "high"},
    {"type": "input_file", "filename": "a", "file_data": "data:application/pdf;base64,AA"},
    {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
    {"type": "of_next_year", "text": "a"},
]
TOOLS: list[JsonObject] = [
    FUNCTION,
    {**FUNCTION, "strict": True},
    {"type": "function", "name": "f"},
    {**FUNCTION, "name": "n__f"},
    {**FUNCTION, "name": "tool_search"},
    {**FUNCTION, "name": LONG},
    {**FUNCTION, "name": CUT},
    {"type": "custom", "name": "f", "description": "d"},
    {"type": "custom", "name": "g", "format": {"type": "grammar", "syntax": "lark", "definition": "d"}},
    {"type": "custom", "name": "g", "format": {"type": "text"}},
    {"type": "namespace", "name": "n", "description": "d", "tools": [FUNCTION, {"type": "custom", "name": "g"}]},
    {"type": "namespace", "name": "n", "tools": [{"type": "namespace", "name": "o", "tools": [FUNCTION]}]},
    {"type": "namespace", "name": "functions", "tools": [FUNCTION]},
    {"type": "tool_search", "execution": "client", "description": "d", "parameters": {"type": "object"}},
    {"type": "tool_search"},
    {"type": "web_search"},
    {"type": "mcp", "server_label": "s", "allowed_tools": ["f"]},
    {"type": "code_interpreter", "container": {"type": "auto"}},
]
CHOICES: list[Any] = [
    *("none", "auto", "required", None),
    *({"type": kind, "name": name} for kind in ("function", "custom") for name in ("f", "n__f", CUT, LONG)),
    {"type": "function", "name": "f", "namespace": "n"},
    {"type": "web_search"},
    {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
    {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]},
]
BODIES: dict[str, JsonObject] = {
    "one question": {"input": "hi", "instructions": "i"},
    "hosted tools": {"input": "hi", "tools": [{"type": "web_search"}], "parallel_tool_calls": False},
    "settings": {
        "input": "hi",
        "temperature": 0.5,
        "top_p": 1,
        "max_output_tokens": 5,
        "include": ["message.output_text.logprobs", "reasoning.encrypted_content"],
        "top_logprobs": 1,
        "text": {
            "format": {"type": "json_schema", "name": "n", "schema": {"a": 1}, "strict": True, "description": "d"},
            "verbosity": "low",
        },
        "reasoning": {"effort": "low", "summary": "auto", "context": "all_turns"},
        "service_tier": "flex",
        "moderation": {"model": "m"},
        "truncation": "auto",
        "max_tool_calls": 2,
        "prompt_cache_options": {"prewarm": True},
        "background": True,
        "previous_response_id": "resp_1",
    },
    "tools": {
        "input": "hi",
        "tools": [
            FUNCTION,
            {"type": "custom", "name": "g", "format": {"type": "grammar", "syntax": "lark", "definition": "d"}},
            {"type": "namespace", "name": "n", "description": "d", "tools": [FUNCTION, {"type": "mcp"}]},
            {"type": "tool_search", "execution": "client", "parameters": {"type": "object"}},
            {"type": "web_search", "filters": {"allowed_domains": ["a"]}},
            {**FUNCTION, "description": "told again"},
        ],
        "tool_choice": {"type": "function", "name": "f"},
        "parallel_tool_calls": False,
    },
    "allowed tools": {
        "input": "hi",
        "tools": [FUNCTION, {"type": "custom", "name": "g", "description": "d"}],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
    },
    "parts": {
        "input": [
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "see"},
                    {"type": "input_image", "image_url": "u", "detail": "low"},
                    {"type": "input_image", "file_id": "file-1"},
                    {"type": "input_text", "text": "and"},
                    {"type": "input_file", "file_id": "file-2", "filename": "a.pdf"},
                    {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
                ],
            },
            {
                "role": "assistant",
                "phase": "final_answer",
                "content": [
                    {"type": "output_text", "text": "no", "annotations": [], "logprobs": []},
                    {"type": "refusal", "refusal": "I will"},
                    {"type": "refusal", "refusal": "not"},
                ],
            },
            {"role": "user", "content": "why"},
        ]
    },
    "turns": {
        "input": [
            {"role": "user", "content": "go"},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "a"}]},
            {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "x"},
            {"role": "assistant", "content": "one"},
            {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "web_search_call", "id": "ws_1", "action": {"type": "search"}},
            {"role": "assistant", "content": [{"type": "output_text", "text": "two"}]},
            {"type": "custom_tool_call", "call_id": "d", "name": "g", "namespace": "n", "input": "x"},
            {"type": "function_call_output", "call_id": "c", "output": "o"},
            {"type": "custom_tool_call_output", "call_id": "d", "output": [{"type": "input_text", "text": "o"}]},
            {
                "type": "reasoning",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": text} for text in "ab"],
            },
            {"type": "tool_search_call", "execution": "client", "call_id": "s", "arguments": {"query": "q"}},
            {"type": "tool_search_output", "execution": "client", "call_id": "s", "tools": [FUNCTION]},
            {"type": "additional_tools", "role": "developer", "tools": [{"type": "custom", "name": "g"}]},
            {"role": "user", "content": "on"},
        ]
    },
}
VALUES: tuple[Any, ...] = (None, True, False, 0, 1, -1.5, "", "a", "b", [], [1], {}, {"a": None}, {"type": "text"})
WORDS = (
    *(
        "input_text",
        "output_text",
        "text",
        "refusal",
        "input_image",
        "message",
        "reasoning",
        "summary_text",
        "web_search",
    ),
    *("function_call", "custom_tool_call", "function_call_output", "custom_tool_call_output", "tool_search_call"),
    *("function", "custom", "namespace", "tool_search", "user", "system", "developer", "assistant", "json_object"),
    *("rs_1", "rs_2", "c", "d", "f", "g", "n", "n__f", "server", "client", "auto", "low", "medium"),
)
FIELDS: tuple[tuple[str, Any], ...] = (
    *((name, value) for name in ("odd", "phase", "namespace", "detail", "file_id", "caller") for value in ("a", None)),
    *(
        (name, value)
        for name in ("name", "description", "call_id", "encrypted_content")
        for value in ("a", "f", "n__f")
    ),
    *(("strict", value) for value in (True, False)),
    *((name, []) for name in ("annotations", "logprobs", "tools", "content", "summary")),
    ("annotations", [{}]),
    ("logprobs", [{}]),
    *((name, "none") for name in ("tool_choice", "truncation", "service_tier", "prompt", "conversation")),
    ("parallel_tool_calls", False),
    ("top_logprobs", 3),
    ("include", ["reasoning.encrypted_content"]),
    # Names that look like the paths under which what is left is kept.
    *((f"input[{at}]", "reasoning") for at in range(3)),
    *((name, None) for name in ("tools[0].strict", "input[0].type")),
    *(
        (name, "a")
        for name in ("input[0].phase", "input[1].odd", "tools[0]", "text.odd", "a.b", 'odd"', "item_reference")
    ),
    ("input[1]:turn", [["call"]]),
)


# --- all that can be done to them


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in inner:
        yield from places(one, (*at, name))


def value_at(value: Any, place: Place) -> Any:
    for name in place:
        value = value[name]
    return value


def put(value: Any, place: Place, change: Callable[[Any], Any]) -> Any:
    if not place:
        return change(value)
    name, *rest = place
    if isinstance(value, dict):
        return {**value, name: put(value[name], tuple(rest), change)}
    return [put(inner, tuple(rest), change) if at == name else inner for at, inner in enumerate(value)]


def changes(value: Any, place: Place) -> Iterator[Any]:
    """Everything that may come in its place."""
    yield from VALUES
    if isinstance(value, str):
        yield from (value + "a", value + value, *WORDS)
    elif isinstance(value, dict):
        for name, new in FIELDS:
            yield {**value, name: new}
        for name in value:
            yield {other: value[other] for other in value if other != name}
    elif isinstance(value, list):
        pools: dict[Any, list[Any]] = {"input": ITEMS, "content": PARTS, "output": PARTS, "tools": TOOLS}
        for new in pools.get(place[-1] if place else None, []):
            yield from ([*value[:at], new, *value[at:]] for at in range(len(value) + 1))
        for at, one in enumerate(value):
            without = [*value[:at], *value[at + 1 :]]
            yield without
            yield from ([*without[:to], one, *without[to:]] for to in range(len(value)))
            yield [*value[:at], one, one, *value[at + 1 :]]
        for at in range(len(value)):
            yield from cut_elsewhere(value, at)
    if place == ("tool_choice",) or not place:
        yield from (choice if place else {**value, "tool_choice": choice} for choice in CHOICES)


def cut_elsewhere(parts: list[Any], at: int) -> Iterator[list[Any]]:
    """The same texts, with the cuts between them elsewhere."""
    here = parts[at]
    there = parts[at + 1] if at + 1 < len(parts) else None
    for field in ("content", "summary", "text", "refusal"):
        text = here.get(field) if isinstance(here, dict) else None
        if not isinstance(text, str | list):
            continue
        if len(text) > 1:
            yield [*parts[:at], {**here, field: text[:1]}, {**here, field: text[1:]}, *parts[at + 1 :]]
        more = there.get(field) if isinstance(there, dict) else None
        if isinstance(there, dict) and isinstance(more, str | list) and type(more) is type(text):
            yield [*parts[:at], {**here, field: text + more}, *parts[at + 2 :]]  # type: ignore[operator]  # of one type
            moved = ({**here, field: text + more[:1]}, {**there, field: more[1:]})  # type: ignore[operator]
            yield [*parts[:at], *moved, *parts[at + 2 :]]


class Seen:
    """By its key, what the first request of that key meant, and the request."""

    def __init__(self) -> None:
        self.keys: dict[str, tuple[str, JsonObject]] = {}

    def add(self, native: JsonObject) -> bool:
        """Whether it is a request at all."""
        try:
            found = key(native)
        except RequestError:
            return False
        meant = meaning(native)
        first, other = self.keys.setdefault(found, (meant, native))
        assert first == meant, f"one key for\n{json.dumps(native)}\nand\n{json.dumps(other)}"
        return True


@pytest.fixture(scope="module")
def seen() -> Seen:
    """All of them together: none may be taken for another's change either."""
    return Seen()


@pytest.mark.parametrize("name", BODIES)
def test_whatever_is_changed_in_a_request_it_is_another_one(name: str, seen: Seen) -> None:
    body = {"model": "m", **BODIES[name]}
    assert seen.add(body)

    taken = sum(
        seen.add(put(body, place, lambda _, new=new: new))  # type: ignore[misc]  # a lambda with a default
        for place in places(body)
        for new in changes(value_at(body, place), place)
        if isinstance(new, dict) or place
    )

    assert taken > 50


def test_whatever_is_changed_in_several_places_it_is_another_request(seen: Seen) -> None:
    chance = random.Random(20261120)  # noqa: S311  # the same requests each time

    taken = 0
    for _ in range(4000):
        body: JsonObject = {"model": "m", **chance.choice(list(BODIES.values()))}
        if chance.random() < 0.5:
            body["input"] = [chance.choice(ITEMS) for _ in range(chance.randrange(1, 7))]
        for _ in range(chance.randrange(1, 4)):
            place = chance.choice([place for place in places(body) if place])
            new = chance.choice(list(changes(value_at(body, place), place)))
            body = put(body, place, lambda _, new=new: new)  # type: ignore[misc]  # a lambda with a default
        taken += seen.add(body)

    assert taken > 1000


def test_whichever_items_come_in_a_row_no_other_row_is_the_same_request(seen: Seen) -> None:
    rows = [[one, other] for one in ITEMS for other in ITEMS]
    chance = random.Random(20261120)  # noqa: S311  # the same rows each time
    rows += [[chance.choice(ITEMS) for _ in range(chance.randrange(3, 6))] for _ in range(4000)]

    assert sum(seen.add({"model": "m", "input": row}) for row in rows) > 4000


# --- how long reading takes


def conversation(*items: JsonObject) -> Callable[[int], JsonObject]:
    """The first item once, the others many times over."""
    return lambda count: {"input": [items[0], *(items[1:] * count)]}


WORST: dict[str, Callable[[int], JsonObject]] = {
    "answers after a call": conversation(CALLED, {"role": "assistant", "content": "a"}),
    "refusals after a call": conversation(
        CALLED, {"role": "assistant", "content": [{"type": "refusal", "refusal": "a"}]}
    ),
    "thoughts between calls": conversation(ASKED, {"type": "reasoning", "summary": [{"text": "a"}]}, CALLED),
    "turns": conversation(ASKED, {"role": "assistant", "content": "a"}, ASKED),
    "items nobody knows": conversation(ASKED, {"type": "q"}),
    "references": conversation(ASKED, {"id": "a"}),
    "ids of ours": conversation(ASKED, {"role": "assistant", "content": "a", "id": "msg_kg_1"}),
    "tools that were found": conversation(
        ASKED, {"type": "tool_search_output", "execution": "client", "call_id": "c", "tools": [FUNCTION]}
    ),
    "parts": lambda count: {"input": [{"role": "user", "content": parts("a", "picture") * count}]},
    "tools": lambda count: {"input": "a", "tools": [{**FUNCTION, "name": f"f{at}"} for at in range(count)]},
    "one tool over again": lambda count: {"input": "a", "tools": [FUNCTION] * count},
    "tools of the provider": lambda count: {"input": "a", "tools": [{"type": "q"}] * count},
    "names that are allowed": lambda count: {
        "input": "a",
        "tools": [{"type": "function", "name": f"f{at}"} for at in range(count)],
        "tool_choice": {"type": "allowed_tools", "tools": [{"name": f"g{at}"} for at in range(count)]},
    },
    "fields nobody knows": lambda count: {"input": "a"} | {f"f{at}": at for at in range(count)},
}


@pytest.fixture
def alone() -> Iterator[None]:
    """Without the garbage collector, whose time is that of all a process holds."""
    gc.disable()
    yield
    gc.enable()


def seconds(native: JsonObject) -> float:
    """Of this process's own time, the least of three."""
    raw = msgspec.json.encode({"model": "m", **native})
    taken = []
    for _ in range(3):
        began = time.process_time()
        RESPONSES.decode(raw, Asked("chat"))
        taken.append(time.process_time() - began)
    return min(taken)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", WORST)
def test_twice_as_much_takes_twice_as_long_to_read(name: str) -> None:
    build = WORST[name]
    a_megabyte = 1_000_000_000 // len(msgspec.json.encode(build(1000)))

    half, whole = seconds(build(a_megabyte // 2)), seconds(build(a_megabyte))

    assert whole < 0.5
    assert whole < 3 * half + 0.02


@pytest.mark.usefixtures("alone")
def test_all_that_is_refused_is_named_in_good_time() -> None:
    request = read({"model": "m", "input": [{"type": "q"}] * 20_000})
    error = Untranslatable(request.refused, dialect="openai")

    began = time.process_time()
    told = in_words_of(request, error)

    assert time.process_time() - began < 0.5
    assert told.names == request.refused
