"""What OpenAI's API refuses, in its words: the schema of the SDK's types, and what only the documentation says."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from tests.support.fake_scenario import attachment, flaw
from tests.support.fake_vendor import Json
from tests.support.sdk_shapes import Misfit, misfit

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_RANGES = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "n": (1, 128),
    "top_logprobs": (0, 20),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "max_tokens": (1, 10**9),
    "max_completion_tokens": (1, 10**9),
    "max_output_tokens": (16, 10**9),
    "dimensions": (1, 4096),
}
_LENGTHS = {"user": 64, "safety_identifier": 128}
_NEEDS_COMPLETION_LIMIT = re.compile(r"o\d|gpt-[5-9]")


class Broken(Exception):
    """The request breaks a rule; the text is the vendor's."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        self.status = status


def decoded(raw: bytes) -> Json:
    try:
        body = msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        raise Broken("We could not parse the JSON body of your request.") from error
    if not isinstance(body, dict):
        raise Broken("Invalid type: expected an object.", code="invalid_type")
    return body


def check(body: Json, params: Any) -> None:
    """Holds it to the type, numbers to their ranges, and names of users to their length."""
    if "model" in body and isinstance(body["model"], str) and body["model"].startswith("unknown"):
        name = body["model"]
        raise Broken(
            f"The model `{name}` does not exist or you do not have access to it.", code="model_not_found", status=404
        )
    if wrong := misfit(body, params):
        raise _said(wrong)
    if "model" not in body:
        raise _said(Misfit("missing", ("model",), "a value", None))
    for name, (least, most) in _RANGES.items():
        value = body.get(name)
        if value is not None and not least <= value <= most:
            kind = "integer" if isinstance(value, int) else "decimal"
            side, bound = ("below minimum", f">= {least}") if value < least else ("above maximum", f"<= {most}")
            raise Broken(
                f"Invalid '{name}': {kind} {side} value. Expected a value {bound}, but got {value} instead.",
                param=name,
                code=f"{kind}_{side.replace(' ', '_').replace('minimum', 'min').replace('maximum', 'max')}_value",
            )
    for name, longest in _LENGTHS.items():
        length = len(body.get(name) or "")
        if length > longest:
            raise Broken(
                f"Invalid '{name}': string too long. Expected a string with maximum length {longest}, but got a "
                f"string with length {length} instead.",
                param=name,
                code="string_above_max_length",
            )


def check_chat(body: Json) -> None:
    """What the types cannot say of a chat completion."""
    tools = body.get("tools") or []
    if body.get("max_tokens") is not None and _NEEDS_COMPLETION_LIMIT.match(body["model"]):
        raise Broken(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            "'max_completion_tokens' instead.",
            param="max_tokens",
            code="unsupported_parameter",
        )
    if body.get("max_tokens") is not None and body.get("max_completion_tokens") is not None:
        raise Broken("Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.")
    if body.get("stream_options") and not body.get("stream"):
        raise Broken("The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options")
    if body.get("top_logprobs") is not None and not body.get("logprobs"):
        raise Broken("The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.", param="top_logprobs")
    for name in ("tool_choice", "parallel_tool_calls"):
        if body.get(name) not in (None, "none") and not tools:
            raise Broken(
                f"Invalid value for '{name}': '{name}' is only allowed when 'tools' are specified.", param=name
            )
    stops = body.get("stop")
    if isinstance(stops, list) and not 1 <= len(stops) <= 4:
        raise Broken("Invalid 'stop': array too long. Expected an array with maximum length 4.", param="stop")
    check_tools([tool.get("function", {}) for tool in tools], body.get("tool_choice"))
    asked_format = body.get("response_format") or {}
    if asked_format.get("type") == "json_schema":
        check_schema("response_format", asked_format["json_schema"])
    elif asked_format.get("type") == "json_object" and b"json" not in msgspec.json.encode(body["messages"]).lower():
        raise Broken(
            "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'.",
            param="messages",
        )
    _check_messages(body["messages"])


def check_tools(functions: list[Json], choice: Any) -> None:
    names = [function.get("name") for function in functions]
    for place, name in enumerate(names):
        if name is not None and not _NAME.fullmatch(name):
            raise Broken(
                f"Invalid 'tools[{place}].function.name': string does not match pattern. Expected a string "
                "that matches the pattern '^[a-zA-Z0-9_-]+$'.",
                param=f"tools[{place}].function.name",
                code="invalid_value",
            )
    if isinstance(choice, dict) and choice.get("type") == "function":
        wanted = choice.get("name") or choice.get("function", {}).get("name")
        if wanted not in names:
            raise Broken(f"Tool choice '{wanted}' not found in 'tools' parameter.", param="tool_choice")
    for place, function in enumerate(functions):
        _check_schema(f"function '{names[place]}'", function, "parameters", f"tools[{place}]")


def check_schema(param: str, wanted: Json) -> None:
    if not _NAME.fullmatch(wanted["name"]):
        raise Broken(f"Invalid '{param}.json_schema.name': string does not match pattern.", param=f"{param}.name")
    _check_schema(f"{param} '{wanted['name']}'", wanted, "schema", param)


def _check_schema(owner: str, holder: Json, field: str, param: str) -> None:
    schema = holder.get(field) or {}
    if wrong := flaw(schema):
        raise Broken(f"Invalid schema for {owner}: {wrong}.", param=param, code="invalid_json_schema")
    if holder.get("strict"):
        _check_strict(owner, schema, param)


def _check_strict(owner: str, schema: Any, param: str) -> None:
    """A strict schema closes its objects and requires all their properties."""
    for inner in _schemas(schema):
        if "properties" not in inner:
            continue
        if inner.get("additionalProperties") is not False:
            raise Broken(
                f"Invalid schema for {owner}: In context=(), 'additionalProperties' is required to be "
                "supplied and to be false.",
                param=param,
                code="invalid_json_schema",
            )
        if missing := sorted(set(inner["properties"]) - set(inner.get("required", ()))):
            raise Broken(
                f"Invalid schema for {owner}: In context=(), 'required' is required to be supplied and to be "
                f"an array including every key in properties. Missing '{missing[0]}'.",
                param=param,
                code="invalid_json_schema",
            )


def _schemas(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _schemas(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _schemas(inner)


def _check_messages(messages: list[Json]) -> None:
    if not messages:
        raise Broken(
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            param="messages",
            code="empty_array",
        )
    waiting: dict[str, None] = {}
    for place, message in enumerate([*messages, {"role": "end"}]):
        where = f"messages.[{place}].role"
        if message["role"] == "tool":
            if message["tool_call_id"] not in waiting:
                raise Broken(
                    "Invalid parameter: messages with role 'tool' must be a response to a preceeding message "
                    "with 'tool_calls'.",
                    param=where,
                )
            del waiting[message["tool_call_id"]]
            continue
        if waiting:
            raise Broken(
                "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
                "'tool_call_id'. The following tool_call_ids did not have response messages: "
                f"{', '.join(waiting)}",
                param=where,
            )
        if message["role"] == "assistant":
            calls = message.get("tool_calls")
            if calls == []:
                raise Broken(
                    f"Invalid 'messages[{place}].tool_calls': empty array.",
                    code="empty_array",
                    param=f"messages[{place}].tool_calls",
                )
            if message.get("content") is None and not (calls or message.get("refusal") or message.get("audio")):
                raise Broken(
                    f"Invalid value for 'content': expected a string, got null. (messages.[{place}].content)",
                    param=f"messages.[{place}].content",
                )
            waiting = dict.fromkeys(call["id"] for call in calls or ())


def attached(part: Json) -> str:
    """A content part that is no text, of chat or of Responses, as `fake_scenario` names it."""
    kind = part["type"]
    if kind in {"image_url", "input_image"}:
        url = part["image_url"]["url"] if kind == "image_url" else part.get("image_url")
        return _at("image", url or part.get("file_id"))
    if kind == "input_audio":
        return _inline(f"audio/{part['input_audio']['format']}", part["input_audio"]["data"])
    file = part.get("file", part)
    return _at("file", file.get("file_data") or file.get("file_url") or file.get("file_id"))


def _at(kind: str, where: str | None) -> str:
    if where and where.startswith("data:"):
        head, _, data = where.partition(",")
        if not head.endswith(";base64"):
            raise Broken(f"Invalid {kind}: expected base64-encoded data.", code="invalid_base64")
        return _inline(head.removeprefix("data:").removesuffix(";base64"), data)
    if not where or (kind == "image" and not where.startswith(("http", "file-"))):
        raise Broken(f"Invalid '{kind}_url': expected a URL or base64-encoded data.", code="invalid_value")
    return f"[{kind} at {where}]"


def _inline(media_type: str, data: str) -> str:
    try:
        return attachment(media_type, data)
    except ValueError:
        raise Broken("Invalid base64-encoded data.", code="invalid_base64") from None


def _said(wrong: Misfit) -> Broken:
    param = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in wrong.path).lstrip(".")
    if wrong.kind == "unknown":
        if len(wrong.path) == 1:
            return Broken(f"Unrecognized request argument supplied: {param}")
        return Broken(f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter")
    if wrong.kind == "missing":
        return Broken(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    if wrong.kind == "type":
        message = f"Invalid type for '{param}': expected {wrong.wanted}, but got {type(wrong.got).__name__} instead."
        return Broken(message, param=param, code="invalid_type")
    message = f"Invalid value: {wrong.got!r}. Supported values are: {wrong.wanted.replace(' or ', ', ')}."
    return Broken(message, param=param, code="invalid_value")
