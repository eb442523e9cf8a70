"""What makes two Gemini requests the same: nothing but what docs/dialects/gemini.md says is one thing said twice."""

import base64
import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from models.errors import RequestError
from models.request import Request
from service.api.dialect import Asked
from service.api.gemini_request import decode
from service.caching.identity import exact_key

JsonObject = dict[str, Any]
Place = tuple[str | int, ...]

DATA = base64.b64encode(b"\xfb\xff\xfe data").decode()


def read(native: JsonObject) -> Request:
    return decode(msgspec.json.encode(native), Asked("chat", "gemini-4", False))


def key(native: JsonObject) -> str:
    """As the gateway makes it: of the canonical body without what is neutral, and of what is beyond it."""
    request = read(native)
    return exact_key(request.body, [msgspec.json.encode(request.beyond, order="deterministic").decode()])


# --- what a request means, read off the documentation: two with one meaning may be one, two with another must not

# What is in these is the client's own, to the letter.
OPAQUE = {"args", "response", "parametersJsonSchema", "responseJsonSchema", "default", "enum", "example"}
COUNTS = ("topK", "maxOutputTokens", "candidateCount", "seed", "logprobs", "thinkingBudget", "minItems", "maxItems")
READ_AS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(COUNTS, lambda count: int(count) if str(count).isdecimal() else plain(count)),
    **dict.fromkeys(OPAQUE, lambda value: value),
    "type": lambda kind: kind.lower() if isinstance(kind, str) else kind,
    "mode": str.upper,
    "thinkingLevel": str.lower,
}
AUDIO = {"audio/mpeg": "audio/mp3", "audio/x-wav": "audio/wav"}
OFF = {"AUTO", "MODE_UNSPECIFIED"}


def plain(value: Any) -> Any:
    """Without null, whole numbers as such, enumerations in one case."""
    if isinstance(value, dict):
        return {name: READ_AS.get(name, plain)(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return list(map(plain, value))
    return int(value) if isinstance(value, float) and value.is_integer() else value


def said(fields: JsonObject, *but: str, **usual: Any) -> JsonObject:
    """Without what is neutral, and without what goes without saying."""
    return {
        name: value
        for name, value in fields.items()
        if name not in but and not (name in usual and json.dumps(value) == json.dumps(usual[name]))
    }


def meaning(native: JsonObject) -> str:
    told = said(plain(native), "labels", "model", safetySettings=[])
    told["contents"] = meaning_of_contents(told["contents"])
    if "systemInstruction" in told:
        instruction = said(told.pop("systemInstruction"), "role")
        instruction["parts"] = [said(part, "partMetadata", thought=False) for part in instruction.get("parts", [])]
        told |= {"systemInstruction": instruction} if instruction != {"parts": []} else {}
    config = meaning_of_config(told.pop("generationConfig", {}))
    tools = [said(tool, functionDeclarations=[]) for tool in told.pop("tools", [])]
    for tool in tools:
        functions = [
            said(function, behavior="BLOCKING")
            if function.get("behavior") != "UNSPECIFIED"
            else said(function, "behavior")
            for function in tool.get("functionDeclarations", [])
        ]
        tool |= {"functionDeclarations": list(map(without_enum, functions))} if functions else {}
    choosing = told.pop("toolConfig", {})
    if "functionCallingConfig" in choosing:
        calling = said(choosing["functionCallingConfig"], allowedFunctionNames=[])
        calling = said(calling, "mode") if calling.get("mode", "AUTO") in OFF else calling
        choosing = {**choosing, "functionCallingConfig": calling}
    choosing = said(choosing, functionCallingConfig={})
    told |= {"config": config, "tools": [tool for tool in tools if tool], "choosing": choosing}
    return json.dumps(told, sort_keys=True)


def without_enum(function: JsonObject) -> JsonObject:
    told: JsonObject = json.loads(
        json.dumps(function), object_hook=lambda fields: said(fields, format="enum", nullable=False)
    )
    return told


def meaning_of_config(config: JsonObject) -> JsonObject:
    config = without_enum(config)
    if "thinkingConfig" in config:
        thinking = said(config["thinkingConfig"], includeThoughts=False, thinkingLevel="thinking_level_unspecified")
        config["thinkingConfig"] = thinking
    if "responseSchema" not in config and "responseJsonSchema" not in config:
        config = said(config, responseMimeType="text/plain")
    return said(
        said(config, responseMimeType=""),
        candidateCount=1,
        frequencyPenalty=0,
        presencePenalty=0,
        responseLogprobs=False,
        responseModalities=[],
        stopSequences=[],
        thinkingConfig={},
    )


def meaning_of_contents(contents: list[JsonObject]) -> list[JsonObject]:
    told: list[JsonObject] = []
    open_calls: list[JsonObject] = []
    calls = 0
    for content in contents:
        for part in content.get("parts", []):
            call, answer = part.get("functionCall"), part.get("functionResponse")
            if call is not None:
                call["id"] = call.get("id") or f"call_{calls}"
                open_calls.append(call)
                calls += 1
            elif answer is not None:
                by = "id" if answer.get("id") else "name"
                asked = next((call for call in open_calls if call[by] == answer.get(by)), None)
                if asked is not None:
                    open_calls.remove(asked)
                    answer["id"] = asked["id"]
    for content in contents:
        role = "model" if content.get("role") == "model" else "user"
        parts = list(map(meaning_of_part, content.get("parts", [])))
        if role == "model" and told and told[-1]["role"] == role and content.keys() == {"role", "parts"}:
            told[-1]["parts"] += parts
        else:
            told.append({**content, "role": role, "parts": parts})
    for content in told:
        if content["role"] == "model":
            content["parts"] = in_one(content["parts"])
    return told


def in_one(parts: list[JsonObject]) -> list[JsonObject]:
    """Texts that follow each other, up to a signature."""
    together: list[JsonObject] = []
    for part in parts:
        last = together[-1] if together else {}
        if part.keys() <= {"text", "thoughtSignature"} and last.keys() == {"text"}:
            together[-1] = {**part, "text": last["text"] + part.get("text", "")}
        elif part != {"text": ""}:
            together.append(part)
    return together


def meaning_of_part(part: JsonObject) -> JsonObject:
    if part.keys() & {"executableCode", "codeExecutionResult", "newKind"}:
        return part
    part = said(part, "partMetadata", thought=False)
    match part:
        case {"functionCall": call}:
            part["functionCall"] = said(call, args={})
        case {"functionResponse": result}:
            result = said(result, name="", response={}, parts=[], willContinue=False)
            if "parts" in result:
                result["parts"] = list(map(meaning_of_part, result["parts"]))
            part["functionResponse"] = result
        case {"inlineData": {"mimeType": str(media_type)} as blob}:
            if media_type.lower().startswith("audio/"):
                media_type = AUDIO.get(media_type.lower(), media_type.lower())
            part["inlineData"] = said({**blob, "mimeType": media_type}, displayName="")
        case {"fileData": {"fileUri": str(address)} as file}:
            usual = "application/pdf" if address.endswith(".pdf") else ""
            part["fileData"] = said(said(file, displayName="", mimeType=""), mimeType=usual)
        case {"thoughtSignature": str()}:
            part.setdefault("text", "")
    return part


# --- requests that say as much as they can


def asking(*parts: Any) -> JsonObject:
    return {"role": "user", "parts": list(parts)}


def answering(*parts: Any) -> JsonObject:
    return {"role": "model", "parts": list(parts)}


def inline(media_type: str, **more: Any) -> JsonObject:
    return {"inlineData": {"mimeType": media_type, "data": DATA, **more}}


def result(response: JsonObject, **more: Any) -> JsonObject:
    return {"functionResponse": {"name": "look", "response": response, **more}}


def called(**more: Any) -> JsonObject:
    return {"functionCall": {"name": "look", "args": {"at": [1, 1.5, None, {"b": 1, "a": "x"}]}, **more}}


SCHEMA = {
    "type": "OBJECT",
    "properties": {
        "a": {"type": "STRING", "enum": ["x", "y"], "format": "enum", "nullable": True},
        "b": {"type": "ARRAY", "items": {"type": "INTEGER", "minimum": 1.0, "example": 3}, "maxItems": "3"},
        "c": {"anyOf": [{"type": "NULL"}, {"ref": "#/defs/d"}], "nullable": False, "title": "C"},
        "e": {"type": "NUMBER", "default": 1.5, "description": "E."},
    },
    "defs": {"d": {"type": "BOOLEAN"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
JSON_SCHEMA = {"type": "object", "properties": {"a": {"type": ["string", "null"], "snake_case": None}}, "x": [1.0, 1]}
LOOK = {"name": "look", "description": "Looks.", "parameters": SCHEMA, "response": {"type": "STRING"}}
SEE = {"name": "see", "parametersJsonSchema": JSON_SCHEMA, "behavior": "BLOCKING"}

CONVERSATION: list[JsonObject] = [
    asking(
        {"text": "What?", "mediaResolution": {"level": "LOW"}},
        inline("image/png", displayName="cat"),
        inline("image/png"),
        inline("audio/mpeg", displayName="song"),
        inline("audio/L16;rate=8000"),
        inline("application/pdf", displayName="a.pdf"),
        {"fileData": {"mimeType": "image/jpeg", "fileUri": "https://a.example/b.jpg", "displayName": "b"}},
        {"fileData": {"mimeType": "application/pdf", "fileUri": "https://a.example/c.pdf", "displayName": "c"}},
        {"fileData": {"mimeType": "video/mp4", "fileUri": "gs://d/e"}, "videoMetadata": {"fps": 1}},
        {"text": "And?", "partMetadata": {"n": 1}},
    ),
    answering(
        {"text": "Hm.", "thought": True},
        {"text": "Well", "thoughtSignature": DATA},
        {"text": ", "},
        {"text": "look"},
        {**called(id="a"), "thoughtSignature": DATA},
        called(id="b"),
        {"executableCode": {"code": "1+1", "language": "PYTHON"}},
        {"codeExecutionResult": {"output": "2"}},
    ),
    asking(
        result({"output": "seen"}, id="b"),
        result({"seen": {"y": 1, "x": 2}}, id="a", parts=[inline("image/png", displayName="it")], scheduling="SILENT"),
        {"text": "Go on."},
    ),
    answering({"text": "Again.", "thoughtSignature": DATA}),
    answering({"functionCall": {"name": "look"}}, {"functionCall": {"name": "see", "args": {"n": 1}}}),
    {
        "role": "function",
        "parts": [result({"result": "here"}), result({"error": "gone"}), result({"result": '{"a": 1}'})],
    },
    asking(
        result({"result": {"a": 1}}), result({"a": 1}), result({"error": {"code": 1}}), result({"error": '{"code":1}'})
    ),
    asking({"text": "First"}, result({}), {"newKind": {"a": 1}}, {"text": "last"}),
]
CONFIG: JsonObject = {
    "temperature": 0.5,
    "topP": 0.9,
    "topK": 40.0,
    "maxOutputTokens": "100",
    "candidateCount": 2,
    "stopSequences": ["A", "B"],
    "seed": 7,
    "presencePenalty": 0.5,
    "frequencyPenalty": -0.5,
    "responseLogprobs": True,
    "logprobs": 3,
    "mediaResolution": "LOW",
    "responseModalities": ["TEXT"],
    "speechConfig": {"languageCode": "de"},
    "thinkingConfig": {"thinkingBudget": 5, "thinkingLevel": "LOW", "includeThoughts": True},
}
JSON_TYPE = {"responseMimeType": "application/json"}


def question(**fields: Any) -> JsonObject:
    return {"contents": [asking({"text": "Hi"})], **fields}


def choosing(*tools: JsonObject, **calling: Any) -> JsonObject:
    return question(tools=list(tools), toolConfig={"functionCallingConfig": calling})


DECLARED = {"functionDeclarations": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}
REQUESTS: dict[str, JsonObject] = {
    "everything": {
        "contents": CONVERSATION,
        "systemInstruction": {"role": "system", "parts": [{"text": "Be kind."}, {"text": "Be brief."}], "newField": 1},
        "generationConfig": {**CONFIG, **JSON_TYPE, "responseSchema": SCHEMA, "responseJsonSchema": JSON_SCHEMA},
        "tools": [{"functionDeclarations": [LOOK, SEE]}, {"googleSearch": {}, "functionDeclarations": [{"name": "c"}]}],
        "toolConfig": {
            "functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["see", "look"]},
            "retrievalConfig": {"languageCode": "de"},
            "includeServerSideToolInvocations": True,
        },
        "safetySettings": [{"category": "X", "threshold": "OFF"}, {"category": "Y", "threshold": "BLOCK_NONE"}],
        "serviceTier": "flex",
        "store": True,
        "labels": {"team": "a"},
        "cachedContent": "x",
    },
    "the schema alone": question(generationConfig={"responseSchema": SCHEMA, **JSON_TYPE}),
    "an order": question(
        generationConfig={
            **JSON_TYPE,
            "responseSchema": {"properties": {"a": {}, "b": {"nullable": True}}, "propertyOrdering": ["a", "b"]},
        }
    ),
    "another type": question(
        generationConfig={"responseMimeType": "text/x.enum", "responseSchema": {"type": "STRING"}}
    ),
    "no schema": question(generationConfig={**JSON_TYPE, "logprobs": 3}),
    "two schemas": question(tools=[{"functionDeclarations": [{**SEE, "parameters": SCHEMA}]}]),
    "any of some": choosing(DECLARED, mode="ANY", allowedFunctionNames=["a", "c"]),
    "one of some": choosing(DECLARED, mode="ANY", allowedFunctionNames=["a"]),
    "any": choosing(DECLARED, mode="ANY"),
    "none": choosing(DECLARED, mode="NONE", allowedFunctionNames=["a"]),
    "valid ones": choosing(DECLARED, mode="VALIDATED", allowedFunctionNames=["a", "c"]),
    "as it likes": choosing(DECLARED, mode="AUTO", allowedFunctionNames=["a"], streamFunctionCallArguments=True),
    "no search": choosing({"googleSearch": {}}, mode="NONE"),
    "no functions": choosing(mode="ANY", allowedFunctionNames=["a"]),
    "one id for two calls": question(
        contents=[
            asking({"text": "Hi"}),
            answering(
                {**called(id="a"), "thoughtSignature": DATA}, called(id="a"), {**called(id="a"), "thoughtSignature": ""}
            ),
            asking(result({"result": "x"}, id="a"), result({"result": "y"}), result({"result": "z"})),
        ]
    ),
}


def places(value: Any, path: Place = ()) -> Iterator[Place]:
    """Every place in a JSON value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in inner:
        yield from places(item, (*path, name))


def at(value: Any, place: Place) -> Any:
    for step in place:
        value = value[step]
    return value


def otherwise(value: Any) -> Iterator[Any]:
    """The same with one thing changed, left out, added, or moved."""
    if isinstance(value, dict):
        for name in value:
            rest = {other: value[other] for other in value if other != name}
            yield rest
            yield {**rest, f"{name}s": value[name]}
        yield {**value, "newField": 1}
        yield {**value, "newField": 2}
        yield {**value, "newField": {"a": [1]}}
        yield {**value, "new.field": 1}
        yield {**value, "thought": True}
        yield {**value, "thoughtSignature": "QUJD"}
        yield {**value, "nothing": None}
    elif isinstance(value, list):
        for number in range(len(value)):
            yield value[:number] + value[number + 1 :]
            yield [*value[: number + 1], *value[number:]]
            yield [*value[:number], *value[number + 1 : number + 2], value[number], *value[number + 2 :]]
        yield value[::-1]
    elif isinstance(value, str):
        yield from (value + "x", f"x{value}", "", value.swapcase(), f"{value};rate=48000", None)
    elif isinstance(value, bool):
        yield from (not value, None)
    elif isinstance(value, int | float):
        yield from (value + 1, value + 0.25, 0, str(value), float(value), None)


def changed(native: JsonObject, place: Place, new: Any) -> JsonObject:
    if not place:
        return dict(new)
    copied = copy.deepcopy(native)
    at(copied, place[:-1])[place[-1]] = new
    return copied


def variants(native: JsonObject) -> Iterator[JsonObject]:
    yield native
    for place in places(native):
        for new in otherwise(at(native, place)):
            yield changed(native, place, new)


@pytest.mark.parametrize("name", REQUESTS)
def test_whatever_is_changed_in_a_request_makes_it_another(name: str) -> None:
    seen: dict[str, str] = {}
    usable = 0

    for variant in variants(REQUESTS[name]):
        try:
            found = key(variant)
        except RequestError:
            continue  # what no answer is got for cannot be answered by another's
        usable += 1
        assert seen.setdefault(found, meaning(variant)) == meaning(variant)

    assert usable > 20
