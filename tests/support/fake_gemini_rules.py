"""What the Gemini API refuses, in its words: the schema of the SDK's types, and what only the documentation says."""

import base64
import re
from typing import Any

import msgspec
from google.genai import types
from pydantic import BaseModel

from tests.support.fake_scenario import Prompt, attachment, flaw, unsealed
from tests.support.fake_vendor import Json
from tests.support.sdk_shapes import Misfit, misfit

# Signatures with which a conversation of another model's may go on, by the documentation of thought signatures.
_NO_SIGNATURES = ("skip_thought_signature_validator", "context_engineering_is_the_way_to_go")
# As the documentation writes them, and as an SDK does, for which a signature is bytes.
UNSIGNED = frozenset([*_NO_SIGNATURES, *(base64.b64encode(word.encode()).decode() for word in _NO_SIGNATURES)])
_KINDS = frozenset({
    "text", "inlineData", "fileData", "functionCall", "functionResponse", "executableCode", "codeExecutionResult",
    "toolCall", "toolResponse",
})  # fmt: skip
_RANGES = {
    "temperature": (0, 2),
    "topP": (0, 1),
    "candidateCount": (1, 8),
    "maxOutputTokens": (1, 10**9),
    "logprobs": (0, 20),
}
_FREE = frozenset(
    {"args", "response", "parametersJsonSchema", "responseJsonSchema", "partMetadata", "default", "example"}
)
_NAMED_BY_USERS = frozenset({"properties", "defs"})
_SIGNING = re.compile(r"gemini-([3-9]|\d\d)")
_OF_ANOTHER_API = {"audioTimestamp", "routingConfig", "modelSelectionConfig"}  # known to the SDK for Vertex AI alone


class Generate(BaseModel):
    """The body of generateContent, named as on the wire. The SDK has types for its parts only."""

    model: str = ""
    contents: list[types.Content]
    systemInstruction: types.Content | None = None  # noqa: N815
    tools: list[types.Tool] = []
    toolConfig: types.ToolConfig | None = None  # noqa: N815
    safetySettings: list[types.SafetySetting] = []  # noqa: N815
    generationConfig: types.GenerationConfig | None = None  # noqa: N815
    cachedContent: str = ""  # noqa: N815
    serviceTier: str = ""  # noqa: N815
    store: bool = False


class CountTokens(BaseModel):
    contents: list[types.Content] = []
    generateContentRequest: Generate | None = None  # noqa: N815


class EmbedContent(BaseModel):
    model: str
    content: types.Content
    taskType: str = ""  # noqa: N815
    title: str = ""
    outputDimensionality: int = 0  # noqa: N815


class BatchEmbedContents(BaseModel):
    requests: list[EmbedContent]


class Broken(Exception):
    """The request breaks a rule; the text is the vendor's."""

    def __init__(self, message: str, *, status: int = 400, reason: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


def decoded(raw: bytes, shape: type[BaseModel]) -> Json:
    try:
        body = msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        raise Broken("Invalid JSON payload received. Unexpected token.") from error
    body = _camel(body)
    if wrong := misfit(body, shape):
        raise Broken(_said(wrong))
    checked: Json = body
    return checked


def _camel(value: Any) -> Any:
    """The same with names in camelCase and without nulls. The vendor reads snake_case too, its SDK sends some, and a
    null is nothing to it. What is the users' own stays as it is."""
    if isinstance(value, list):
        return [_camel(item) for item in value]
    if not isinstance(value, dict):
        return value
    named: Json = {}
    for name, item in value.items():
        key = re.sub(r"_([a-z0-9])", lambda found: found[1].upper(), name)
        if item is None:
            continue
        if key in _NAMED_BY_USERS and isinstance(item, dict):
            named[key] = {own: _camel(inner) for own, inner in item.items()}
        else:
            named[key] = item if key in _FREE else _camel(item)
    return named


def signs(model: str) -> bool:
    """Whether it is a model that gives its calls ids and signatures, and wants the signatures back."""
    return bool(_SIGNING.match(model))


def check(body: Json, model: str) -> None:
    contents = body["contents"]
    if not contents:
        raise Broken("* GenerateContentRequest.contents: contents is not specified\n")
    for place, content in enumerate(contents):
        if content.get("role", "user") not in {"user", "model"}:
            raise Broken("Please use a valid role: user, model.")
        if not content.get("parts"):
            raise Broken(f"* GenerateContentRequest.contents[{place}].parts: contents.parts must not be empty.\n")
        for number, part in enumerate(content["parts"]):
            _check_part(f"GenerateContentRequest.contents[{place}].parts[{number}]", part)
    if contents[0].get("role") == "model":
        raise Broken("Please ensure that multiturn requests begin with a user turn.")
    _check_calls(contents)
    if signs(model):
        _check_signed(contents)
    _check_generation(body.get("generationConfig") or {})
    _check_tools(body)


def _check_part(where: str, part: Json) -> None:
    if len(_KINDS & part.keys()) != 1:
        wrong = "must have one initialized field" if not _KINDS & part.keys() else "has more than one field set"
        raise Broken(f"* {where}.data: required oneof field 'data' {wrong}\n")
    signature = part.get("thoughtSignature")
    if (
        signature is not None
        and _standard(signature) not in UNSIGNED
        and signature not in UNSIGNED
        and unsealed(_standard(signature)) is None
    ):
        raise Broken("Corrupted thought signature.")
    if "inlineData" in part:
        attached(part)
    for kind in ("functionCall", "functionResponse"):
        if kind in part and not part[kind].get("name"):
            name = "function_call" if kind == "functionCall" else "function_response"
            raise Broken(f"* {where}.{name}.name: Name cannot be empty.\n")


def _check_calls(contents: list[Json]) -> None:
    waiting: list[Json] = []
    for content in contents:
        calls = [part["functionCall"] for part in content["parts"] if "functionCall" in part]
        answers = [part["functionResponse"] for part in content["parts"] if "functionResponse" in part]
        if answers and not waiting:
            raise Broken("Please ensure that function response turn comes immediately after a function call turn.")
        if waiting and len(answers) != len(waiting):
            raise Broken(
                "Please ensure that the number of function response parts is equal to the number of function call "
                "parts of the function call turn."
            )
        for call, answer in zip(sorted(waiting, key=_key), sorted(answers, key=_key), strict=True):
            if call["name"] != answer["name"] or call.get("id", answer.get("id")) != answer.get("id", call.get("id")):
                raise Broken(f"Function response '{answer['name']}' does not match function call '{call['name']}'.")
        if calls and content.get("role") != "model":
            raise Broken(
                "Please ensure that function call turn comes immediately after a user turn or after a function "
                "response turn."
            )
        waiting = calls


def _key(call: Json) -> tuple[str, str]:
    return call["name"], call.get("id", "")


def _check_signed(contents: list[Json]) -> None:
    """In the current turn, the first call of every step carries the signature of the thoughts before it."""
    begun = max(place for place, content in enumerate(contents) if _asks(content)) if any(map(_asks, contents)) else 0
    for content in contents[begun:]:
        calls = [(number, part) for number, part in enumerate(content["parts"]) if "functionCall" in part]
        if calls and "thoughtSignature" not in calls[0][1]:
            name = calls[0][1]["functionCall"]["name"]
            raise Broken(
                "Function call is missing a thought_signature in functionCall parts. This is required for tools "
                "to work correctly, and missing thought_signature may lead to degraded model performance. "
                f"Additional data, function call `default_api:{name}`, position {calls[0][0]}."
            )


def _asks(content: Json) -> bool:
    return content.get("role", "user") == "user" and any("text" in part for part in content["parts"])


def _check_generation(config: Json) -> None:
    for name, (least, most) in _RANGES.items():
        value = config.get(name)
        if value is not None and not least <= value <= most:
            raise Broken(
                f"* GenerateContentRequest.generation_config.{_snake(name)}: {name} must be in the range "
                f"[{least}, {most}].\n"
            )
    for name in sorted(_OF_ANOTHER_API & config.keys()):
        raise Broken(_said(Misfit("unknown", ("generationConfig", name), "", None)))
    if len(config.get("stopSequences") or ()) > 5:
        raise Broken("* GenerateContentRequest.generation_config.stop_sequences: at most 5 are allowed.\n")
    if config.get("logprobs") is not None and not config.get("responseLogprobs"):
        raise Broken(
            "* GenerateContentRequest.generation_config.logprobs: only allowed when response_logprobs is true.\n"
        )
    schemas = [name for name in ("responseSchema", "responseJsonSchema") if config.get(name) is not None]
    if len(schemas) == 2:
        raise Broken("Only one of response_schema and response_json_schema may be set.")
    if schemas and config.get("responseMimeType") not in {"application/json", "text/x.enum"}:
        raise Broken(
            f"* GenerateContentRequest.generation_config.{_snake(schemas[0])}: only allowed when "
            "response_mime_type is application/json.\n"
        )
    if wrong := flaw(config.get("responseJsonSchema", {})):
        raise Broken(f"* GenerateContentRequest.generation_config.response_json_schema: {wrong}.\n")
    thinking = config.get("thinkingConfig") or {}
    if thinking.get("thinkingBudget") is not None and thinking.get("thinkingLevel") is not None:
        raise Broken("You can only set only one of thinking budget and thinking level.")


def _check_tools(body: Json) -> None:
    functions = [function for tool in body.get("tools") or () for function in tool.get("functionDeclarations") or ()]
    for function in functions:
        if wrong := flaw(function.get("parametersJsonSchema", {})):
            raise Broken(
                f"* GenerateContentRequest.tools[0].function_declarations[0].parameters_json_schema: {wrong}.\n"
            )
    declared = [function.get("name") for function in functions]
    for name in declared:
        if not name or not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_.:-]{0,127}", name):
            raise Broken("* GenerateContentRequest.tools[0].function_declarations[0].name: Invalid function name.\n")
    if len(set(declared)) < len(declared):
        raise Broken("Duplicate function declaration found.")
    calling = (body.get("toolConfig") or {}).get("functionCallingConfig") or {}
    if calling.get("allowedFunctionNames") and calling.get("mode") not in {"ANY", "VALIDATED"}:
        raise Broken("Allowed function names may only be set when the function calling mode is ANY or VALIDATED.")
    for name in calling.get("allowedFunctionNames") or ():
        if name not in declared:
            raise Broken(f"Allowed function name '{name}' is not declared.")


def last_turn(contents: list[Json]) -> Prompt:
    results: list[str] = []
    for content in reversed(contents):
        if content.get("role") == "model":
            continue
        answers = [part["functionResponse"].get("response") for part in content["parts"] if "functionResponse" in part]
        results = [msgspec.json.encode(answer).decode() for answer in answers] + results
        texts = [part["text"] for part in content["parts"] if "text" in part]
        attachments = [attached(part) for part in content["parts"] if part.keys() & {"inlineData", "fileData"}]
        if texts or attachments:
            return Prompt("\n".join(texts), attachments, results)
    return Prompt("", (), results)


def attached(part: Json) -> str:
    if "fileData" in part:
        return f"[file at {part['fileData'].get('fileUri')}]"
    blob = part["inlineData"]
    if not blob.get("mimeType"):
        raise Broken("Unsupported MIME type: ")
    try:
        return attachment(blob["mimeType"], _standard(blob.get("data", "")))
    except ValueError:
        raise Broken(
            "Invalid value at 'contents[0].parts[0].inline_data.data' (TYPE_BYTES), Base64 decoding failed"
        ) from None


def _standard(encoded: str) -> str:
    """Base64 in the usual alphabet, padded: the vendor takes it either way, and its SDK sends the other."""
    bare = encoded.rstrip("=").replace("-", "+").replace("_", "/")
    return bare + "=" * (-len(bare) % 4)


def _said(wrong: Misfit) -> str:
    steps = [f"[{step}]" if isinstance(step, int) else f".{_snake(step)}" for step in wrong.path]
    if wrong.kind == "unknown":
        where = "".join(steps[:-1]).lstrip(".")
        at = f" at '{where}'" if where else ""
        return f'Invalid JSON payload received. Unknown name "{wrong.path[-1]}"{at}: Cannot find field.'
    where = "".join(steps).lstrip(".")
    if wrong.kind == "missing":
        return f"* {where}: {where} is not specified\n"
    return f"Invalid value at '{where}' ({wrong.wanted}), {msgspec.json.encode(wrong.got).decode()[:80]}"


def _snake(name: Any) -> str:
    return re.sub(r"(?<=[a-z0-9])[A-Z]", lambda found: f"_{found[0].lower()}", str(name))
