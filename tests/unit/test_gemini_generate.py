"""The Gemini dialect as clients speak it: what OpenAI's clients would ask, and answers that Google's SDK reads."""

import base64
import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import msgspec
import pytest
from google import genai
from google.genai import errors as genai_errors
from google.genai import types
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.upstream.base import Call
from backends.upstream.gemini import GeminiWire
from models.completion import Completion, Usage
from models.errors import AccessError, ContentBlocked, GatewayError, LimitError, RequestError, UpstreamError
from models.request import Request
from service.api.dialect import Asked, Dialect
from service.api.gemini_generate import (
    GEMINI_ARRAY,
    GEMINI_SSE,
    asked,
    counted_model,
    dialect_for,
    model_card,
    model_list,
    token_count,
)
from service.api.gemini_request import decode_count
from service.caching import replay
from service.caching.identity import exact_key
from tests.support.examples import examples

PIXEL = base64.b64encode(b"\xfb\xff\xfe pixel").decode()
SIGNATURE = base64.b64encode(b"\xfb\xff signed").decode()
HI = {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]}
USER_HI = {"role": "user", "content": "Hi"}


def decoded(body: dict[str, Any], *, stream: bool = False) -> Request:
    return GEMINI_SSE.decode(msgspec.json.encode(body), Asked("chat", "gemini-3-pro", stream))


def messages(*contents: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = decoded({"contents": list(contents)}).body["messages"]
    return found


def said(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "model", "parts": list(parts)}


def asking(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "parts": list(parts)}


# --- paths


@pytest.mark.parametrize(
    ("path", "model", "stream"),
    [
        ("/genai/v1beta/models/gemini-3-pro:generateContent", "gemini-3-pro", False),
        ("/genai/v1/models/gemini-3-pro:streamGenerateContent", "gemini-3-pro", True),
        ("/genai/v1beta/models/openai/gpt-4o:generateContent", "openai/gpt-4o", False),
        ("/genai/v1beta/models/50%25:generateContent", "50%25", False),
        ("/genai/v1beta/models/local/llama3.1:8b:streamGenerateContent", "local/llama3.1:8b", True),
        ("/genai/v1beta/tunedModels/mine:generateContent", "tunedModels/mine", False),
    ],
)
def test_the_path_says_which_model_and_whether_it_streams(path: str, model: str, stream: bool) -> None:
    assert asked(path, "alt=sse&key=x") == Asked("chat", model, stream, "alt=sse&key=x")


@pytest.mark.parametrize(
    "path",
    [
        "/genai/v1beta/models/gemini-3-pro",
        "/genai/v1beta/models/gemini-3-pro:countTokens",
        "/genai/v1beta/models/gemini-3-pro:embedContent",
        "/genai/v1beta/files/x:generateContent",
        "/genai/v9/models/x:generateContent",
        "/v1/chat/completions",
    ],
)
def test_other_paths_ask_to_generate_nothing(path: str) -> None:
    assert asked(path, "") is None


def test_a_path_without_a_model_is_refused_by_its_name() -> None:
    question = asked("/genai/v1beta/models/:generateContent", "")

    with pytest.raises(RequestError) as refused:
        GEMINI_SSE.decode(msgspec.json.encode(HI), question or Asked("chat"))

    assert refused.value.param == "model"


@pytest.mark.parametrize(
    ("query", "dialect"),
    [("alt=sse", GEMINI_SSE), ("key=k&%24alt=sse", GEMINI_SSE), ("", GEMINI_ARRAY), ("alt=json", GEMINI_ARRAY)],
)
def test_the_query_says_how_a_stream_is_framed(query: str, dialect: Dialect) -> None:
    assert dialect_for(Asked("chat", "m", True, query)) is dialect


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/genai/v1beta/models/gemini/gemini-3-pro:countTokens", "gemini/gemini-3-pro"),
        ("/genai/v1beta/models/gemini/tunedModels/mine:countTokens", "gemini/tunedModels/mine"),
        ("/genai/v1/tunedModels/mine:countTokens", "tunedModels/mine"),
        ("/genai/v1/tunedModels/mine:generateContent", None),
    ],
)
def test_the_path_says_whose_tokens_are_counted(path: str, model: str | None) -> None:
    assert counted_model(path) == model


def test_tokens_are_counted_of_a_question_or_of_a_whole_request() -> None:
    model = counted_model("/genai/v1beta/models/gpt-4o:countTokens")

    alone = decode_count(msgspec.json.encode(HI), model or "")
    whole = decode_count(msgspec.json.encode({"generateContentRequest": {"model": "models/gpt-4o", **HI}}), model or "")

    assert alone.body == whole.body == {"model": "gpt-4o", "messages": [USER_HI]}
    assert json.loads(token_count(7)) == {"totalTokens": 7}


# --- requests

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "A town."},
                "days": {"type": ["integer", "null"], "minimum": 1},
                "kind": {"type": "array", "items": {"type": "string", "enum": ["sun", "rain"]}, "maxItems": 3},
            },
            "required": ["place"],
        },
    },
}
OPENAPI_WEATHER = {
    "name": "weather",
    "description": "Weather of a place.",
    "parameters": {
        "type": "OBJECT",
        "properties": {
            "kind": {
                "type": "ARRAY",
                "items": {"type": "STRING", "format": "enum", "enum": ["sun", "rain"]},
                "max_items": "3",
            },
            "days": {"type": "INTEGER", "nullable": True, "minimum": 1.0},
            "place": {"type": "STRING", "description": "A town."},
        },
        "required": ["place"],
    },
}

SAME_QUESTION: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("text", HI, {"messages": [USER_HI]}),
    ("text as a string", {"contents": "Hi"}, {"messages": [USER_HI]}),
    ("one content without a list", {"contents": {"parts": {"text": "Hi"}}}, {"messages": [USER_HI]}),
    ("strings for contents and parts", {"contents": ["Hi", {"parts": ["Hi"]}]}, {"messages": [USER_HI, USER_HI]}),
    (
        "system, limits and sampling",
        {
            **HI,
            "systemInstruction": {"role": "user", "parts": [{"text": "Be brief."}]},
            "generationConfig": {
                "temperature": 0.0,
                "topP": 0.9,
                "topK": 40.0,
                "maxOutputTokens": 100,
                "stopSequences": ["END"],
                "candidateCount": 2,
                "seed": 7,
                "presencePenalty": 0.5,
                "frequencyPenalty": -0.5,
                "responseLogprobs": True,
                "logprobs": 3,
                "responseMimeType": "text/plain",
            },
        },
        {
            "messages": [{"role": "system", "content": "Be brief."}, USER_HI],
            "temperature": 0,
            "top_p": 0.9,
            "top_k": 40,
            "max_completion_tokens": 100,
            "stop": ["END"],
            "n": 2,
            "seed": 7,
            "presence_penalty": 0.5,
            "frequency_penalty": -0.5,
            "logprobs": True,
            "top_logprobs": 3,
        },
    ),
    (
        "snake case, numbers as strings, and what says nothing",
        {
            **HI,
            "system_instruction": {"parts": ["Be brief."]},
            "generation_config": {
                "max_output_tokens": "100",
                "candidate_count": 1,
                "stop_sequences": [],
                "response_logprobs": False,
                "seed": None,
            },
            "tool_config": {"function_calling_config": {"mode": "AUTO"}},
            "labels": {"team": "a"},
        },
        {"messages": [{"role": "system", "content": "Be brief."}, USER_HI], "max_completion_tokens": 100},
    ),
    (
        "a budget for thinking",
        {**HI, "generationConfig": {"thinkingConfig": {"thinkingBudget": -1}}},
        {"messages": [USER_HI], "reasoning_budget": -1},
    ),
    (
        "a level of thinking",
        {**HI, "generationConfig": {"thinkingConfig": {"thinkingLevel": "HIGH", "includeThoughts": False}}},
        {"messages": [USER_HI], "reasoning_effort": "high"},
    ),
    (
        "JSON",
        {**HI, "generationConfig": {"responseMimeType": "application/json"}},
        {"messages": [USER_HI], "response_format": {"type": "json_object"}},
    ),
    (
        "JSON of a schema",
        {
            **HI,
            "generationConfig": {
                "responseMimeType": "application/json",
                "responseSchema": {"type": "OBJECT", "properties": {"a": {"type": "NUMBER", "example": 1}}},
            },
        },
        {
            "messages": [USER_HI],
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "answer",
                    "schema": {"type": "object", "properties": {"a": {"type": "number", "examples": [1]}}},
                    "strict": True,
                },
            },
        },
    ),
    (
        "JSON of a JSON schema",
        {
            **HI,
            "generationConfig": {
                "responseMimeType": "application/json",
                "responseJsonSchema": {"type": "object", "snake_case": None},
            },
        },
        {
            "messages": [USER_HI],
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "answer",
                    "schema": {"type": "object", "snake_case": None},
                    "strict": True,
                },
            },
        },
    ),
    (
        "tools",
        {
            **HI,
            "tools": [{"functionDeclarations": [OPENAPI_WEATHER]}],
            "toolConfig": {"functionCallingConfig": {"mode": "ANY"}},
        },
        {"messages": [USER_HI], "tools": [WEATHER], "tool_choice": "required"},
    ),
    (
        "a tool that must be called",
        {
            **HI,
            "tools": {"function_declarations": {"name": "now", "parametersJsonSchema": {"type": "object"}}},
            "toolConfig": {"functionCallingConfig": {"mode": "any", "allowedFunctionNames": ["now"]}},
        },
        {
            "messages": [USER_HI],
            "tools": [{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}],
            "tool_choice": {"type": "function", "function": {"name": "now"}},
        },
    ),
    (
        "no tool",
        {
            **HI,
            "tools": [{"functionDeclarations": [{"name": "a"}]}],
            "toolConfig": {"functionCallingConfig": {"mode": "NONE"}},
        },
        {"messages": [USER_HI], "tools": [{"type": "function", "function": {"name": "a"}}], "tool_choice": "none"},
    ),
    (
        "pictures, sound, documents and addresses",
        {
            "contents": [
                asking(
                    {"text": "What is this?"},
                    {"inlineData": {"mimeType": "image/png", "data": PIXEL}},
                    {"inline_data": {"mime_type": "audio/mpeg", "data": PIXEL}},
                    {"inlineData": {"mimeType": "application/pdf", "data": PIXEL, "displayName": "a.pdf"}},
                    {"fileData": {"fileUri": "https://example.com/a.jpg", "mimeType": "image/jpeg"}},
                    {"fileData": {"fileUri": "https://example.com/a.pdf", "mimeType": "application/pdf"}},
                )
            ]
        },
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What is this?"},
                        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
                        {"type": "input_audio", "input_audio": {"data": PIXEL, "format": "mp3"}},
                        {
                            "type": "file",
                            "file": {"file_data": f"data:application/pdf;base64,{PIXEL}", "filename": "a.pdf"},
                        },
                        {"type": "image_url", "image_url": {"url": "https://example.com/a.jpg"}},
                        {"type": "file", "file": {"file_url": "https://example.com/a.pdf"}},
                    ],
                }
            ]
        },
    ),
    (
        "a conversation with tools",
        {
            "contents": [
                asking({"text": "Hi"}),
                said(
                    {"text": "Let me see."},
                    {"functionCall": {"name": "weather", "args": {"place": "Rome"}}},
                    {"functionCall": {"name": "weather", "args": {"place": "Oslo"}}},
                ),
                {
                    "role": "function",
                    "parts": [
                        {"functionResponse": {"name": "weather", "response": {"result": "sunny"}}},
                        {"functionResponse": {"name": "weather", "response": {"error": "no such place"}}},
                        {"text": "And now?"},
                    ],
                },
                said({"functionCall": {"name": "now"}}),
                asking({"functionResponse": {"name": "now", "response": {"hour": 7}}}),
            ]
        },
        {
            "messages": [
                USER_HI,
                {
                    "role": "assistant",
                    "content": "Let me see.",
                    "tool_calls": [
                        {
                            "id": "call_0",
                            "type": "function",
                            "function": {"name": "weather", "arguments": '{"place":"Rome"}'},
                        },
                        {
                            "id": "call_1",
                            "type": "function",
                            "function": {"name": "weather", "arguments": '{"place":"Oslo"}'},
                        },
                    ],
                },
                {"role": "tool", "tool_call_id": "call_0", "content": "sunny"},
                {"role": "tool", "tool_call_id": "call_1", "content": "no such place", "is_error": True},
                {"role": "user", "content": "And now?"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "call_2", "type": "function", "function": {"name": "now", "arguments": "{}"}}
                    ],
                },
                {"role": "tool", "tool_call_id": "call_2", "content": '{"hour":7}'},
            ]
        },
    ),
]


@pytest.mark.parametrize(
    ("asks", "chat"), [case[1:] for case in SAME_QUESTION], ids=[case[0] for case in SAME_QUESTION]
)
def test_the_same_question_has_the_same_body_as_in_openais_form(asks: dict[str, Any], chat: dict[str, Any]) -> None:
    request = decoded(asks)

    assert request.body == {"model": "gemini-3-pro", **chat}
    assert exact_key(request.body, ()) == exact_key({"model": "gemini-3-pro", **chat}, ())
    assert (request.beyond, request.refused, request.dropped) == ({}, (), ())


def test_a_request_keeps_what_came_and_says_how_it_wants_its_answer() -> None:
    request = decoded(HI, stream=True)

    assert (request.dialect, request.model, request.stream, request.include_usage) == (
        "gemini",
        "gemini-3-pro",
        True,
        True,
    )
    assert request.native == HI
    assert request.raw == msgspec.json.encode(HI)
    assert request.body["stream"] is True


def test_results_are_matched_to_calls_by_id_and_else_by_name_in_order() -> None:
    contents = [
        said(
            {"functionCall": {"id": "a", "name": "f", "args": {}}},
            {"functionCall": {"id": "b", "name": "g", "args": {}}},
            {"functionCall": {"id": "c", "name": "f", "args": {}}},
        ),
        asking(
            {"functionResponse": {"name": "g", "response": {"result": "of g"}}},
            {"functionResponse": {"id": "c", "name": "f", "response": {"output": "of c"}}},
            {"functionResponse": {"name": "f", "response": {"output": "of a"}}},
        ),
    ]

    answers = [(message["tool_call_id"], message["content"]) for message in messages(*contents)[1:]]

    assert answers == [("b", "of g"), ("c", "of c"), ("a", "of a")]


def test_a_made_up_id_is_never_one_that_is_taken() -> None:
    calls = messages(
        said({"functionCall": {"id": "call_1", "name": "f"}}, {"functionCall": {"name": "f"}}),
    )[0]["tool_calls"]

    assert [call["id"] for call in calls] == ["call_1", "call_2"]


def test_a_result_without_its_call_still_gets_an_id_of_its_own() -> None:
    told = messages(
        asking({"functionResponse": {"name": "f", "response": {}}}, {"functionResponse": {"name": "f", "response": {}}})
    )

    assert [message["tool_call_id"] for message in told] == ["call_0", "call_1"]


def test_made_up_ids_go_on_where_the_last_one_was_free() -> None:
    turn = messages(
        said(
            *(
                {"functionCall": {"id": given, "name": "f"}}
                for given in ("call_2", "call_3", None, "call_5", None, None)
            )
        )
    )[0]

    assert [call["id"] for call in turn["tool_calls"]] == ["call_2", "call_3", "call_4", "call_5", "call_6", "call_7"]


def test_a_result_belongs_to_one_call_alone() -> None:
    calls = said(*({"functionCall": {"id": given, "name": "f"}} for given in ("a", "a", "b")))
    results = ({"id": "a", "name": "f"}, {"name": "f"}, {"name": "f"}, {"name": "f"}, {"id": "b", "name": "f"})

    answers = messages(calls, asking(*({"functionResponse": result} for result in results)))[1:]

    assert [message["tool_call_id"] for message in answers] == ["a", "a", "b", "call_3", "b"]


def test_some_of_the_tools_are_all_there_are() -> None:
    calling = {"mode": "ANY", "allowedFunctionNames": ["a", "c"]}
    tools = [{"functionDeclarations": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}]

    request = decoded({**HI, "tools": tools, "toolConfig": {"functionCallingConfig": calling}})

    assert [tool["function"]["name"] for tool in request.body["tools"]] == ["a", "c"]
    assert request.body["tool_choice"] == "required"
    assert (request.refused, request.dropped) == ((), ())
    assert request.beyond == {
        "toolConfig.functionCallingConfig.allowedFunctionNames": ["a", "c"],
        "tools": [{"type": "function", "function": {"name": name}} for name in ("a", "b", "c")],
    }


def test_an_order_of_properties_is_theirs_and_known_beside_them() -> None:
    schema = {"type": "OBJECT", "properties": {"a": {}, "b": {}, "c": {}}, "propertyOrdering": ["b", "a"]}
    config = {"responseMimeType": "application/json", "responseSchema": schema}

    request = decoded({**HI, "generationConfig": config})

    assert [*request.body["response_format"]["json_schema"]["schema"]["properties"]] == ["b", "a", "c"]
    assert request.beyond == {"generationConfig.responseSchema": schema}


@pytest.mark.parametrize(
    ("response", "content", "written_back"),
    [
        ({"result": "sunny"}, "sunny", True),
        ({"sky": "blue"}, '{"sky":"blue"}', True),
        ({"error": "gone"}, "gone", True),
        ({"error": {"code": 1}}, '{"code":1}', True),
        ({"output": "sunny"}, "sunny", False),
        ({"result": 7}, "7", False),
        ({"result": {"sky": "blue"}}, '{"sky":"blue"}', False),
        ({"result": ' {"sky": "blue"}'}, ' {"sky": "blue"}', False),
        ({"error": 7}, "7", False),
    ],
)
def test_a_result_that_would_be_written_in_another_way_is_another(
    response: dict[str, Any], content: str, written_back: bool
) -> None:
    request = decoded(
        {
            "contents": [
                said({"functionCall": {"name": "f"}}),
                asking({"functionResponse": {"name": "f", "response": response}}),
            ]
        }
    )

    sent = GeminiWire().request(Call("chat", "gemini-2.5-pro", request.body, None), stream=False)

    answered = msgspec.json.decode(sent.body)["contents"][-1]["parts"][0]["functionResponse"]["response"]
    assert request.body["messages"][1]["content"] == content
    assert (answered == response) is written_back
    assert (request.beyond == {}) is written_back
    assert (request.refused, request.dropped) == ((), ())


def test_a_result_may_hold_pictures() -> None:
    result = {
        "name": "f",
        "response": {"output": "seen"},
        "parts": [{"inlineData": {"mimeType": "image/png", "data": PIXEL}}],
    }

    message = messages(said({"functionCall": {"name": "f"}}), asking({"functionResponse": result}))[1]

    assert message["content"] == [
        {"type": "text", "text": "seen"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
    ]


def test_a_stream_kept_piece_by_piece_is_the_answer_it_was() -> None:
    pieces = messages(asking({"text": "Hi"}), said({"text": "Hel"}), said({"text": "lo"}), said({"text": ""}))

    assert pieces == messages(asking({"text": "Hi"}), said({"text": "Hello"}))


def test_thoughts_and_signatures_are_kept_where_they_belong() -> None:
    url_safe = SIGNATURE.replace("+", "-").replace("/", "_").rstrip("=")

    message = messages(
        said(
            {"text": "Hm.", "thought": True},
            {"text": "Rome is", "thoughtSignature": url_safe},
            {"functionCall": {"id": "c", "name": "f", "args": {}}, "thought_signature": url_safe},
        )
    )[0]

    assert message["content"] == "Rome is"
    assert message["reasoning_content"] == "Hm."
    assert message["reasoning_details"] == [
        {
            "index": 0,
            "type": "reasoning.encrypted",
            "format": "google-gemini-v1",
            "data": SIGNATURE,
            "tool_call_id": "c",
        },
        {"index": 1, "type": "reasoning.text", "format": "google-gemini-v1", "text": "Hm."},
        {"index": 2, "type": "reasoning.encrypted", "format": "google-gemini-v1", "data": SIGNATURE},
    ]
    assert message["layout"] == [["reasoning_details", 2], ["content", 7], ["reasoning_details", 1], ["tool_calls", 1]]
    assert replay.adds_up(message["layout"], message)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"cachedContent": "cachedContents/x"}, "cachedContent"),
        ({"tools": [{"googleSearch": {}}]}, "tools[0].googleSearch"),
        ({"tools": [{"code_execution": {}}]}, "tools[0].codeExecution"),
        ({"tools": [{"urlContext": {}}]}, "tools[0].urlContext"),
        ({"tools": [{"inventedTomorrow": {}}]}, "tools[0].inventedTomorrow"),
        ({"toolConfig": {"retrievalConfig": {"languageCode": "de"}}}, "toolConfig.retrievalConfig"),
        ({"generationConfig": {"responseModalities": ["IMAGE"]}}, "generationConfig.responseModalities"),
        ({"generationConfig": {"speechConfig": {"languageCode": "de"}}}, "generationConfig.speechConfig"),
        ({"generationConfig": {"responseMimeType": "text/x.enum"}}, "generationConfig.responseMimeType"),
        ({"safetySettings": [{"category": "X", "threshold": "BLOCK_LOW_AND_ABOVE"}]}, "safetySettings"),
        ({"contents": [said({"executableCode": {"code": "1"}})]}, "contents[0].parts[0].executableCode"),
        (
            {"contents": [said({"inlineData": {"mimeType": "image/png", "data": ""}})]},
            "contents[0].parts[0].inlineData",
        ),
        ({"contents": [asking({"inventedTomorrow": 1})]}, "contents[0].parts[0].inventedTomorrow"),
        (
            {"contents": [asking({"fileData": {"fileUri": "gs://bucket/a.png", "mimeType": "image/png"}})]},
            "contents[0].parts[0].fileData.fileUri",
        ),
        (
            {"contents": [asking({"fileData": {"fileUri": "https://youtu.be/x"}})]},
            "contents[0].parts[0].fileData.fileUri",
        ),
        (
            {"contents": [asking({"text": "x", "videoMetadata": {"fps": 1}})]},
            "contents[0].parts[0].videoMetadata",
        ),
        (
            {"contents": [asking({"inlineData": {"mimeType": "audio/L16;rate=8000", "data": ""}})]},
            "contents[0].parts[0].inlineData.mimeType",
        ),
    ],
)
def test_what_changes_the_answer_and_has_no_other_word_is_refused_by_its_path(
    fields: dict[str, Any], path: str
) -> None:
    request = decoded({**HI, **fields})

    assert request.refused == (path,)
    assert path in request.beyond or "provider_content" in request.body["messages"][0]


@pytest.mark.parametrize(
    "fields",
    [
        {"safetySettings": [{"category": "X", "threshold": "BLOCK_NONE"}]},
        {"serviceTier": "flex"},
        {"store": False},
        {"generationConfig": {"mediaResolution": "MEDIA_RESOLUTION_LOW"}},
        {"generationConfig": {"thinkingConfig": {"includeThoughts": True}}},
        {"tools": [{"functionDeclarations": [{"name": "f", "response": {"type": "STRING"}}]}]},
        {"contents": [asking({"text": "Hi", "mediaResolution": {"level": "MEDIA_RESOLUTION_LOW"}})]},
        {"contents": [asking({"text": "Hi", "thought": True})]},
        {"contents": [asking({"inlineData": {"mimeType": "image/png", "data": PIXEL, "displayName": "cat"}})]},
        {"contents": [asking({"inlineData": {"mimeType": "audio/wav", "data": PIXEL, "displayName": "song"}})]},
        {"contents": [asking({"fileData": {"fileUri": "https://a.example/b", "mimeType": "image/png"}})]},
        {"contents": [asking({"fileData": {"fileUri": "https://a.example/b", "mimeType": "application/pdf"}})]},
        {"contents": [asking({"functionResponse": {"name": "f"}})]},
        {"contents": [said({"functionCall": {"id": "a", "name": "f"}}), asking({"functionResponse": {"id": "a"}})]},
        {"contents": [asking({"text": "Hi"}, {"functionResponse": {"response": {}}})]},
        {"generationConfig": {"responseModalities": ["TEXT"]}},
        {"generationConfig": {"logprobs": 3}},
        {"generationConfig": {"responseSchema": {"type": "STRING"}}},  # which asks for JSON, and does not say so
        {"toolConfig": {"functionCallingConfig": {"mode": "NONE"}}},
        {"toolConfig": {"functionCallingConfig": {"mode": "AUTO", "allowedFunctionNames": ["f"]}}},
    ],
)
def test_what_does_no_harm_when_missing_is_part_of_the_identity_alone(fields: dict[str, Any]) -> None:
    request = decoded({**HI, **fields})

    assert (request.refused, request.dropped) == ((), ())
    assert len(request.beyond) == 1


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"inventedTomorrow": 1}, "inventedTomorrow"),
        ({"generationConfig": {"inventedTomorrow": 1}}, "generationConfig.inventedTomorrow"),
        ({"contents": [asking({"text": "Hi", "inventedTomorrow": 1})]}, "contents[0].parts[0].inventedTomorrow"),
        ({"contents": [{"parts": [{"text": "Hi"}], "inventedTomorrow": 1}]}, "contents[0].inventedTomorrow"),
        ({"systemInstruction": {"parts": [], "inventedTomorrow": 1}}, "systemInstruction.inventedTomorrow"),
        (
            {"contents": [asking({"inlineData": {"mimeType": "image/png", "data": "", "inventedTomorrow": 1}})]},
            "contents[0].parts[0].inlineData.inventedTomorrow",
        ),
        (
            {"contents": [asking({"fileData": {"fileUri": "https://a.example", "inventedTomorrow": 1}})]},
            "contents[0].parts[0].fileData.inventedTomorrow",
        ),
        ({"generationConfig.seed": 1}, '["generationConfig.seed"]'),
        ({"_seed": 1}, "_seed"),
    ],
)
def test_a_field_that_is_not_known_is_dropped_by_its_path(fields: dict[str, Any], path: str) -> None:
    request = decoded({**HI, **fields})

    assert request.dropped == (path,)
    assert request.beyond == {path: 1}
    assert request.refused == ()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "contents"),
        ({"contents": []}, "contents"),
        ({"contents": 5}, "contents"),
        ({"contents": [5]}, "contents[0]"),
        ({"contents": [{"role": "system", "parts": [{"text": "x"}]}]}, "contents[0].role"),
        ({"contents": [{"role": "user", "parts": []}]}, "contents[0].parts"),
        ({"contents": [asking({"text": 5})]}, "contents[0].parts[0].text"),
        ({"contents": [asking({})]}, "contents[0].parts[0]"),
        ({"contents": [asking({"text": "a", "inlineData": {}})]}, "contents[0].parts[0]"),
        ({"contents": [asking({"functionCall": {"name": "f"}})]}, "contents[0].parts[0]"),
        (
            {"contents": [asking({"inlineData": {"mimeType": "image/png;base64,AA", "data": ""}})]},
            "contents[0].parts[0].inlineData.mimeType",
        ),
        (
            {"contents": [asking({"functionResponse": {"parts": [{"inlineData": {}, "fileData": {}}]}})]},
            "contents[0].parts[0].functionResponse.parts[0]",
        ),
        ({"contents": [said({"functionCall": {"args": {}}})]}, "contents[0].parts[0].functionCall.name"),
        ({"contents": [said({"functionCall": {"name": "f", "args": []}})]}, "contents[0].parts[0].functionCall.args"),
        ({**HI, "systemInstruction": {"parts": [{"inlineData": {}}]}}, "systemInstruction.parts[0]"),
        ({**HI, "generationConfig": []}, "generationConfig"),
        ({**HI, "generationConfig": {"temperature": "hot"}}, "generationConfig.temperature"),
        ({**HI, "generationConfig": {"temperature": True}}, "generationConfig.temperature"),
        ({**HI, "generationConfig": {"maxOutputTokens": 1.5}}, "generationConfig.maxOutputTokens"),
        ({**HI, "generationConfig": {"topK": 1, "top_k": 2}}, "generationConfig"),
        ({**HI, "tools": [{"functionDeclarations": [{}]}]}, "tools[0].functionDeclarations[0].name"),
    ],
)
def test_what_cannot_be_used_is_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        decoded(body)

    assert refused.value.param == param
    assert param in refused.value.message


RICH: dict[str, Any] = {
    **SAME_QUESTION[4][1],
    "contents": [
        *SAME_QUESTION[-1][1]["contents"],
        *SAME_QUESTION[-2][1]["contents"],
        said(
            {"text": "a", "thought": True},
            {"functionCall": {"name": "f"}, "thoughtSignature": SIGNATURE},
            {"executableCode": {}},
        ),
    ],
    "tools": [
        {"functionDeclarations": [OPENAPI_WEATHER, {"name": "g", "parametersJsonSchema": {}}], "googleSearch": {}}
    ],
    "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["weather", "g"]}},
    "safetySettings": [{"category": "X", "threshold": "OFF"}],
    "generationConfig": {
        **SAME_QUESTION[4][1]["generationConfig"],
        "thinkingConfig": {"thinkingBudget": 5, "thinkingLevel": "LOW", "includeThoughts": True},
        "responseMimeType": "application/json",
        "responseSchema": {"type": "OBJECT", "anyOf": [{"$ref": "#/defs/a"}], "defs": {"a": {"type": "STRING"}}},
    },
}


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in a JSON value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*path, key))


def replaced(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    if not path:
        return new
    changed = copy.copy(value)
    changed[path[0]] = replaced(value[path[0]], path[1:], new)
    return changed


WRONG: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    10**30,
    "",
    "x",
    "\x00",
    [],
    [[]],
    [None],
    {},
    {"": {}},
    {"text": []},
]


@settings(max_examples=examples(400), deadline=None)
@given(place=st.sampled_from(list(places(RICH))), wrong=st.sampled_from(WRONG))
def test_no_value_of_another_type_is_more_than_a_request_error(place: tuple[str | int, ...], wrong: Any) -> None:
    raw = msgspec.json.encode(replaced(RICH, place, wrong))

    try:
        body = GEMINI_SSE.decode(raw, Asked("chat", "m", False)).body
    except RequestError:
        return  # anything else fails the test

    assert body["messages"][-1]["role"] in ("user", "assistant", "tool")
    assert exact_key(body, ())


@pytest.mark.parametrize(("depth", "expected"), [(300, "read"), (100_000, "the body is nested too deeply")])
def test_a_schema_nested_beyond_reason_is_a_request_error(depth: int, expected: str) -> None:
    nested = '{"items":' * depth + "{}" + "}" * depth
    raw = b'{"contents":"Hi","tools":[{"functionDeclarations":[{"name":"f","parameters":%b}]}]}' % nested.encode()

    try:
        request = GEMINI_SSE.decode(raw, Asked("chat", "m", False))
    except RequestError as error:
        message = error.message
    else:
        message = "read" if "items" in request.body["tools"][0]["function"]["parameters"] else ""

    assert message == expected


# --- what Google's SDK sends and reads


def sdk(respond: Callable[[httpx.Request], httpx.Response]) -> genai.Client:
    transport = httpx.Client(transport=httpx.MockTransport(respond))
    options = types.HttpOptions(base_url="http://keepgate.test/genai", httpx_client=transport)
    return genai.Client(api_key="kg-1", http_options=options)


def test_what_the_sdk_sends_is_read_as_what_it_was_told() -> None:
    seen: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"candidates": []})

    def weather(place: str) -> str:
        """Weather of a place."""
        return place

    sdk(respond).models.generate_content(
        model="openai/gpt-4o",
        contents=["Hi", types.Part.from_bytes(data=base64.b64decode(PIXEL), mime_type="image/png")],
        config=types.GenerateContentConfig(
            system_instruction="Be brief.",
            temperature=0,
            max_output_tokens=50,
            stop_sequences=["END"],
            response_mime_type="application/json",
            response_schema={"type": "OBJECT", "properties": {"a": {"type": "STRING"}}},
            tools=[weather],
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
            thinking_config=types.ThinkingConfig(thinking_budget=0),
        ),
    )
    question = asked(seen[0].url.raw_path.decode().partition("?")[0], seen[0].url.query.decode())
    assert question is not None
    request = GEMINI_SSE.decode(seen[0].content, question)

    assert (request.refused, request.dropped) == ((), ())
    assert request.beyond == {"tools[0].functionDeclarations[0].responseJsonSchema": {"type": "string"}}
    assert request.body == {
        "model": "openai/gpt-4o",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Hi"},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
                ],
            },
        ],
        "temperature": 0,
        "max_completion_tokens": 50,
        "stop": ["END"],
        "reasoning_budget": 0,
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "weather",
                    "description": "Weather of a place.",
                    "parameters": {
                        "type": "object",
                        "properties": {"place": {"type": "string"}},
                        "required": ["place"],
                    },
                },
            }
        ],
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "answer",
                "schema": {"type": "object", "properties": {"a": {"type": "string"}}},
                "strict": True,
            },
        },
    }


def completion(*choices: dict[str, Any], **fields: Any) -> Completion:
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-2026-01-01",
        "choices": [{"index": index, "logprobs": None, **choice} for index, choice in enumerate(choices)],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 8,
            "total_tokens": 18,
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 3},
        },
        **fields,
    }
    return Completion(msgspec.json.encode(body), body["model"], Usage(10, 8), ("stop",))


def choice(finish_reason: str = "stop", native: str | None = None, **message: Any) -> dict[str, Any]:
    own = {} if native is None else {"native_finish_reason": native}
    return {"message": {"role": "assistant", "content": None, **message}, "finish_reason": finish_reason, **own}


THINKING = decoded({**HI, "generationConfig": {"thinkingConfig": {"includeThoughts": True}}})
PLAIN = decoded(HI)


def whole(answer: Completion, request: Request = THINKING) -> dict[str, Any]:
    encoded = GEMINI_SSE.whole(answer, request)
    types.GenerateContentResponse.model_validate_json(encoded)
    result: dict[str, Any] = json.loads(encoded)
    return result


def events(answer: Completion, request: Request = THINKING, dialect: Dialect = GEMINI_SSE) -> bytes:
    encoder = dialect.stream(request)
    chunks = replay.chunks(json.loads(answer.body), "chat", include_usage=True)
    return encoder.chunks([msgspec.json.encode(chunk) for chunk in chunks]) + encoder.end(answer)


def read_events(stream: bytes) -> list[dict[str, Any]]:
    return [json.loads(event.removeprefix(b"data: ")) for event in stream.split(b"\n\n") if event]


def concatenated(stream: list[dict[str, Any]]) -> dict[str, Any]:
    """A stream put together as a client does it: parts follow each other, other fields keep their last value."""
    answer: dict[str, Any] = {}
    candidates: dict[int, dict[str, Any]] = {}
    for event in stream:
        types.GenerateContentResponse.model_validate(event)
        answer |= {name: value for name, value in event.items() if name != "candidates"}
        for candidate in event.get("candidates", ()):
            same = candidates.setdefault(candidate["index"], {"content": {"parts": [], "role": "model"}})
            for part in candidate["content"]["parts"]:
                add_part(same["content"]["parts"], part)
            same |= {name: value for name, value in candidate.items() if name != "content"}
    for candidate in candidates.values():
        candidate["content"]["parts"] = [part for part in candidate["content"]["parts"] if part != {"text": ""}]
    return {**answer, "candidates": [candidates[index] for index in sorted(candidates)]}


def add_part(parts: list[dict[str, Any]], part: dict[str, Any]) -> None:
    last = parts[-1] if parts else {}
    if (
        "text" in part
        and "text" in last
        and "thoughtSignature" not in last
        and part.get("thought") == last.get("thought")
    ):
        last["text"] += part["text"]
        last |= {name: value for name, value in part.items() if name != "text"}
    else:
        parts.append(dict(part))


def signed(index: int, **more: Any) -> dict[str, Any]:
    return {"type": "reasoning.encrypted", "index": index, "format": "google-gemini-v1", "data": SIGNATURE, **more}


def call(call_id: str, arguments: str = "{}") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "weather", "arguments": arguments}}


def test_a_whole_answer_is_one_of_the_api() -> None:
    answer = completion(
        choice(
            "tool_calls",
            content="Let me see.",
            reasoning_content="Hm.",
            reasoning_details=[signed(0, tool_call_id="c0"), signed(1)],
            tool_calls=[call("c0", '{"place": "Rome"}'), call("c1")],
        )
    )

    assert whole(answer) == {
        "candidates": [
            {
                "content": {
                    "parts": [
                        {"text": "Hm.", "thought": True},
                        {"text": "Let me see.", "thoughtSignature": SIGNATURE},
                        {
                            "functionCall": {"id": "c0", "name": "weather", "args": {"place": "Rome"}},
                            "thoughtSignature": SIGNATURE,
                        },
                        {"functionCall": {"id": "c1", "name": "weather", "args": {}}},
                    ],
                    "role": "model",
                },
                "finishReason": "STOP",
                "index": 0,
            }
        ],
        "usageMetadata": {
            "promptTokenCount": 10,
            "candidatesTokenCount": 5,
            "totalTokenCount": 18,
            "cachedContentTokenCount": 4,
            "thoughtsTokenCount": 3,
        },
        "modelVersion": "gpt-4o-2026-01-01",
        "responseId": "chatcmpl-1",
    }


def test_thoughts_are_told_only_to_who_asked_for_them() -> None:
    answer = completion(choice(content="Rome.", reasoning_content="Hm."))

    assert [part["text"] for part in whole(answer, PLAIN)["candidates"][0]["content"]["parts"]] == ["Rome."]
    assert concatenated(read_events(events(answer, PLAIN))) == whole(answer, PLAIN)


def test_the_order_of_an_answer_is_kept() -> None:
    code = {"executableCode": {"language": "PYTHON", "code": "1+1"}}
    answer = completion(
        choice(
            content="Let me see. Two.",
            provider_content=[{"dialect": "gemini", "block": code}, {"dialect": "anthropic", "block": {"type": "x"}}],
            layout=[["content", 11], ["provider_content", 1], ["content", 5], ["provider_content", 1]],
        )
    )

    assert whole(answer)["candidates"][0]["content"]["parts"] == [{"text": "Let me see."}, code, {"text": " Two."}]


@pytest.mark.parametrize(
    ("finish", "native", "expected"),
    [
        ("stop", None, "STOP"),
        ("length", None, "MAX_TOKENS"),
        ("tool_calls", None, "STOP"),
        ("content_filter", None, "SAFETY"),
        ("content_filter", "RECITATION", "RECITATION"),
        ("stop", "end_turn", "STOP"),
        ("invented_tomorrow", None, "OTHER"),
    ],
)
def test_why_an_answer_ended_is_told_in_geminis_words(finish: str, native: str | None, expected: str) -> None:
    answer = completion(choice(finish, native, content="x"))

    assert whole(answer)["candidates"][0]["finishReason"] == expected
    assert read_events(events(answer))[-1]["candidates"][0]["finishReason"] == expected


@pytest.mark.parametrize(
    ("choices", "parts", "expected"),
    [
        ([choice(content="Rome.")], [{"text": "Rome."}], "STOP"),
        ([choice(tool_calls=[call("c")])], [{"functionCall": {"id": "c", "name": "weather", "args": {}}}], "STOP"),
        ([choice(tool_calls=[call("c", "[")])], [], "MALFORMED_FUNCTION_CALL"),
        ([choice(refusal="No.")], [{"text": "No."}], "SAFETY"),
        ([choice()], [], "OTHER"),
        ([], [], "OTHER"),
    ],
)
def test_an_answer_that_does_not_say_why_it_ended_has_a_reason_nevertheless(
    choices: list[dict[str, Any]], parts: list[dict[str, Any]], expected: str
) -> None:
    answer = completion(*({**choice, "finish_reason": None} for choice in choices))

    [told] = whole(answer)["candidates"]
    [streamed] = concatenated(read_events(events(answer)))["candidates"]

    assert told == streamed
    assert (told["content"]["parts"], told["finishReason"]) == (parts, expected)


def test_a_refusal_is_told_as_text_and_as_no_answer() -> None:
    answer = completion(choice(refusal="I will not."))

    candidate = whole(answer)["candidates"][0]

    assert candidate["content"]["parts"] == [{"text": "I will not."}]
    assert candidate["finishReason"] == "SAFETY"
    assert concatenated(read_events(events(answer))) == whole(answer)


def test_a_blocked_prompt_has_feedback_and_no_candidate() -> None:
    feedback = {"promptFeedback": {"blockReason": "SAFETY"}}
    answer = completion(choice("content_filter", refusal="blocked"), provider_fields={"dialect": "gemini", **feedback})

    told = whole(answer)
    streamed = read_events(events(answer))

    assert told["promptFeedback"] == feedback["promptFeedback"]
    assert "candidates" not in told
    assert streamed == [told]


def test_what_only_gemini_says_of_an_answer_comes_back() -> None:
    grounding = {"groundingMetadata": {"webSearchQueries": ["Rome"]}}
    answer = completion(
        {**choice(content="Rome."), "provider_fields": {"dialect": "gemini", **grounding}},
        usage={
            "prompt_tokens": 12,
            "completion_tokens": 1,
            "provider_usage": {"dialect": "gemini", "toolUsePromptTokenCount": 2},
        },
    )

    told = whole(answer)

    assert told["candidates"][0]["groundingMetadata"] == grounding["groundingMetadata"]
    assert told["usageMetadata"] == {
        "promptTokenCount": 10,
        "candidatesTokenCount": 1,
        "totalTokenCount": 13,
        "toolUsePromptTokenCount": 2,
    }
    assert concatenated(read_events(events(answer))) == told


def test_logprobs_are_told_token_by_token() -> None:
    tokens = [
        {"token": "Ro", "logprob": -1.0, "top_logprobs": [{"token": "Ro", "logprob": -1.0}]},
        {"token": "me", "logprob": -2.0, "top_logprobs": []},
    ]
    answer = completion({**choice(content="Rome"), "logprobs": {"content": tokens}})

    candidate = whole(answer)["candidates"][0]

    assert candidate["avgLogprobs"] == -1.5
    assert candidate["logprobsResult"] == {
        "chosenCandidates": [{"token": "Ro", "logProbability": -1.0}, {"token": "me", "logProbability": -2.0}],
        "topCandidates": [{"candidates": [{"token": "Ro", "logProbability": -1.0}]}, {"candidates": []}],
    }
    assert concatenated(read_events(events(answer))) == whole(answer)


def test_a_call_cut_short_is_left_out_and_said_to_be() -> None:
    cut = completion(choice("length", tool_calls=[call("c", '{"place": "Ro')]))
    broken = completion(choice("tool_calls", tool_calls=[call("c", "[1]")]))

    assert whole(cut)["candidates"][0]["finishReason"] == "MAX_TOKENS"
    assert whole(broken)["candidates"][0]["finishReason"] == "MALFORMED_FUNCTION_CALL"
    assert whole(broken)["candidates"][0]["content"]["parts"] == []


words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
arguments = st.dictionaries(words, st.integers() | words, max_size=2).map(lambda value: json.dumps(value))
blocks = st.sampled_from(
    [
        {"dialect": "gemini", "block": {"codeExecutionResult": {"outcome": "OUTCOME_OK"}}},
        {"dialect": "anthropic", "block": {"type": "x"}},
    ]
)


@st.composite
def answered(draw: st.DrawFn) -> dict[str, Any]:
    message: dict[str, Any] = {}
    runs: list[list[Any]] = []
    kinds = draw(st.lists(st.sampled_from(["content", "thought", "signature", "call", "block"]), max_size=6))
    for number, kind in enumerate(kinds):
        if kind == "content":
            text = draw(words)
            message["content"] = message.get("content", "") + text
            runs.append(["content", len(text)])
        elif kind == "call":
            message.setdefault("tool_calls", []).append(call(f"c{number}", draw(arguments)))
            runs.append(["tool_calls", 1])
        elif kind == "block":
            message.setdefault("provider_content", []).append(draw(blocks))
            runs.append(["provider_content", 1])
        elif kind == "signature":
            calls = message.get("tool_calls")
            owner = {"tool_call_id": f"c{number + 1}"} if calls and draw(st.booleans()) else {}
            message.setdefault("reasoning_details", []).append(signed(number, **owner))
            runs.append(["reasoning_details", 1])
        else:
            text = draw(words)
            detail = {"type": "reasoning.text", "index": number, "format": "google-gemini-v1", "text": text}
            detail |= draw(st.sampled_from([{}, {"signature": SIGNATURE}]))
            message.setdefault("reasoning_details", []).append(detail)
            message["reasoning_content"] = message.get("reasoning_content", "") + text
            runs.append(["reasoning_details", 1])
    if draw(st.booleans()):
        message["layout"] = runs
    return choice(draw(st.sampled_from(["stop", "length", "tool_calls"])), **message)


@settings(max_examples=examples(300), deadline=None)
@given(choices=st.lists(answered(), min_size=1, max_size=2), request=st.sampled_from([THINKING, PLAIN]))
def test_a_replayed_stream_adds_up_to_the_whole_answer(choices: list[dict[str, Any]], request: Request) -> None:
    answer = completion(*choices)

    assert concatenated(read_events(events(answer, request))) == whole(answer, request)
    assert json.loads(events(answer, request, GEMINI_ARRAY)) == read_events(events(answer, request))


GEMINI_ANSWER: dict[str, Any] = {
    "candidates": [
        {
            "content": {
                "parts": [
                    {"text": "Hm.", "thought": True},
                    {"text": "Let me", "thoughtSignature": SIGNATURE},
                    {"executableCode": {"language": "PYTHON", "code": "1"}},
                    {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "1"}},
                    {"text": " see"},
                    {
                        "functionCall": {"id": "a", "name": "f", "args": {"x": 1}},
                        "thoughtSignature": SIGNATURE,
                    },
                    {"functionCall": {"id": "b", "name": "f", "args": {}}},
                    {"inlineData": {"mimeType": "image/png", "data": PIXEL}},
                ],
                "role": "model",
            },
            "finishReason": "STOP",
            "index": 0,
            "groundingMetadata": {"webSearchQueries": ["x"]},
        }
    ],
    "usageMetadata": {
        "promptTokenCount": 10,
        "candidatesTokenCount": 5,
        "thoughtsTokenCount": 3,
        "toolUsePromptTokenCount": 2,
        "totalTokenCount": 20,
        "cachedContentTokenCount": 1,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 10}],
    },
    "modelVersion": "gemini-3-pro",
    "responseId": "r1",
}


def test_what_gemini_answered_comes_back_as_it_was() -> None:
    asked_upstream = Call("chat", "gemini-3-pro", THINKING.body, None)
    canonical = GeminiWire().whole(msgspec.json.encode(GEMINI_ANSWER), asked_upstream)
    read = GeminiWire().decoder(asked_upstream).feed(msgspec.json.encode(GEMINI_ANSWER))
    answer = Completion(canonical, "gemini-3-pro", Usage())
    encoder = GEMINI_SSE.stream(THINKING)

    streamed = read_events(encoder.chunks([chunk.payload for chunk in read]) + encoder.end(answer))

    assert whole(answer) == GEMINI_ANSWER
    assert concatenated(read_events(events(answer))) == GEMINI_ANSWER
    assert concatenated(streamed) == GEMINI_ANSWER


def test_the_last_event_alone_says_why_and_how_much() -> None:
    stream = read_events(events(completion(choice(content="Rome is a town."))))

    assert len(stream) > 2
    assert all("usageMetadata" not in event for event in stream[:-1])
    assert all("finishReason" not in event["candidates"][0] for event in stream[:-1])
    assert stream[-1]["candidates"][0] == {
        "content": {"parts": [{"text": ""}], "role": "model"},
        "finishReason": "STOP",
        "index": 0,
    }
    assert stream[-1]["usageMetadata"]["totalTokenCount"] == 18


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    return msgspec.json.encode(
        {"id": "x", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}
    )


def piece(index: int, text: str, call_id: str | None = None) -> dict[str, Any]:
    named = {} if call_id is None else {"id": call_id}
    return {
        "tool_calls": [{"index": index, **named, "function": {"name": "f" if call_id else None, "arguments": text}}]
    }


def test_a_call_that_arrives_in_pieces_is_sent_whole() -> None:
    encoder = GEMINI_SSE.stream(PLAIN)

    pieces = [piece(0, '{"a"', "c0"), piece(1, '{"b": ', "c1"), piece(0, ": 1}"), piece(1, "2}")]
    before = encoder.chunks([chunk(delta) for delta in pieces])
    after = read_events(encoder.chunks([chunk({}, "tool_calls")]) + encoder.end(completion()))

    assert before == b""
    assert [part["functionCall"] for part in after[0]["candidates"][0]["content"]["parts"]] == [
        {"id": "c0", "name": "f", "args": {"a": 1}},
        {"id": "c1", "name": "f", "args": {"b": 2}},
    ]


def test_a_call_is_sent_when_text_follows_and_may_not_go_on_then() -> None:
    encoder = GEMINI_SSE.stream(PLAIN)

    sent = read_events(encoder.chunks([chunk(piece(0, "{}", "c0")), chunk({"content": "Done."})]))

    assert [list(part) for part in sent[0]["candidates"][0]["content"]["parts"]] == [["functionCall"], ["text"]]
    with pytest.raises(UpstreamError):
        encoder.chunks([chunk(piece(0, "more"))])


def test_usage_that_no_chunk_had_is_that_of_the_completion() -> None:
    encoder = GEMINI_SSE.stream(PLAIN)
    encoder.chunks([chunk({"content": "x"}, "stop")])

    last = read_events(encoder.end(Completion(b"", "m", Usage(3, 4, estimated=True))))[-1]

    assert last["usageMetadata"] == {"promptTokenCount": 3, "candidatesTokenCount": 4, "totalTokenCount": 7}


HOSTILE: dict[str, Any] = {
    "id": "x",
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": choice(
                content="x",
                refusal="x",
                reasoning_content="x",
                reasoning_details=[signed(0, tool_call_id="c")],
                tool_calls=[call("c")],
                function_call={"name": "f", "arguments": "{}"},
                provider_content=[{"dialect": "gemini", "block": {"executableCode": {}}}],
                layout=[["content", 1]],
            )["message"],
            "finish_reason": "stop",
            "native_finish_reason": "STOP",
            "logprobs": {"content": [{"token": "x", "logprob": -1.0, "top_logprobs": [{"token": "x"}]}]},
            "provider_fields": {"dialect": "gemini"},
        }
    ],
    "usage": {"prompt_tokens": 1, "prompt_tokens_details": {}, "provider_usage": {"dialect": "gemini"}},
}


@settings(max_examples=examples(400), deadline=None)
@given(place=st.sampled_from(list(places(HOSTILE))[1:]), wrong=st.sampled_from(WRONG))
def test_an_answer_of_another_shape_is_still_an_answer(place: tuple[str | int, ...], wrong: Any) -> None:
    answer = Completion(msgspec.json.encode(replaced(HOSTILE, place, wrong)), "m", Usage(1, 1))

    assert "usageMetadata" in json.loads(GEMINI_SSE.whole(answer, THINKING))


DELTA: dict[str, Any] = {
    **{name: value for name, value in HOSTILE.items() if name != "choices"},
    "choices": [
        {
            **{name: value for name, value in HOSTILE["choices"][0].items() if name != "message"},
            "delta": {**HOSTILE["choices"][0]["message"], **piece(0, "{}", "c")},
        }
    ],
}


@settings(max_examples=examples(400), deadline=None)
@given(place=st.sampled_from(list(places(DELTA))[1:]), wrong=st.sampled_from(WRONG))
def test_chunks_of_another_shape_still_come_to_an_end(place: tuple[str | int, ...], wrong: Any) -> None:
    encoder = GEMINI_SSE.stream(THINKING)

    stream = encoder.chunks([msgspec.json.encode(replaced(DELTA, place, wrong))])
    stream += encoder.end(completion())

    assert "usageMetadata" in read_events(stream)[-1]


def test_the_sdk_reads_answers_streams_models_and_counts() -> None:
    answer = completion(choice("tool_calls", content="Rome is.", tool_calls=[call("c0", '{"place":"Rome"}')]))

    def respond(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            card = request.url.path.endswith("/gpt-4o")
            return httpx.Response(
                200,
                content=model_card("gpt-4o", "openai") if card else model_list([("gpt-4o", "openai"), ("x/y", "x")]),
            )
        if counted_model(request.url.path):
            return httpx.Response(200, content=token_count(7))
        question = asked(request.url.path, request.url.query.decode())
        assert question is not None
        dialect = dialect_for(question)
        told = GEMINI_SSE.decode(request.content, question)
        if not told.stream:
            return httpx.Response(200, content=dialect.whole(answer, told))
        media_type = dialect.stream(told).media_type
        return httpx.Response(200, content=events(answer, told, dialect), headers={b"content-type": media_type})

    client = sdk(respond)
    told = client.models.generate_content(model="gpt-4o", contents="Hi")
    streamed = list(client.models.generate_content_stream(model="gpt-4o", contents="Hi"))
    chat = client.chats.create(model="gpt-4o")
    list(chat.send_message_stream("Hi"))

    assert told.candidates
    assert told.function_calls
    assert told.candidates[0].finish_reason is types.FinishReason.STOP
    assert (told.function_calls[0].id, told.function_calls[0].args) == ("c0", {"place": "Rome"})
    assert "".join(event.text or "" for event in streamed) == "Rome is."
    assert [named.name for event in streamed for named in event.function_calls or ()] == ["weather"]
    assert streamed[-1].usage_metadata
    assert streamed[-1].usage_metadata.prompt_token_count == 10
    assert [content.role for content in chat.get_history(curated=True)][:2] == ["user", "model"]
    assert [model.name for model in client.models.list()] == ["models/gpt-4o", "models/x/y"]
    assert client.models.get(model="gpt-4o").display_name == "gpt-4o"
    assert client.models.count_tokens(model="gpt-4o", contents="Hi").total_tokens == 7


# --- errors


@pytest.mark.parametrize(
    ("error", "status", "name"),
    [
        (RequestError("no", param="contents[0]"), 400, "INVALID_ARGUMENT"),
        (ContentBlocked("email found"), 400, "INVALID_ARGUMENT"),
        (AccessError("no"), 401, "UNAUTHENTICATED"),
        (AccessError("no", code="not_allowed"), 403, "PERMISSION_DENIED"),
        (RequestError("no", code="model_not_found"), 404, "NOT_FOUND"),
        (LimitError("slow down", retry_after="3"), 429, "RESOURCE_EXHAUSTED"),
        (GatewayError("ours"), 500, "INTERNAL"),
        (UpstreamError("broke"), 502, "UNAVAILABLE"),
        (UpstreamError("late", code="upstream_timeout"), 504, "DEADLINE_EXCEEDED"),
        (UpstreamError("x", status=418, body=b'{"error":{"message":"a teapot"}}'), 418, "INVALID_ARGUMENT"),
    ],
)
def test_an_error_has_geminis_shape_and_our_code(error: GatewayError, status: int, name: str) -> None:
    told = json.loads(GEMINI_SSE.error(error, "req_1"))["error"]

    assert (told["code"], told["status"]) == (status, name)
    assert told["message"] == ("a teapot" if status == 418 else error.message)
    assert told["details"][0] == {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": error.code,
        "domain": "keepgate",
        "metadata": {"request_id": "req_1"},
    }
    kinds = [detail["@type"].rpartition(".")[2] for detail in told["details"][1:]]
    assert kinds == (["BadRequest"] if error.param else ["RetryInfo"] if error.retry_after else [])


def test_what_gemini_said_of_a_request_is_passed_on_as_it_came() -> None:
    body = b'{"error": {"code": 400, "message": "no", "status": "INVALID_ARGUMENT"}}'

    assert GEMINI_SSE.error(UpstreamError("refused", status=400, body=body, dialect="gemini"), "req_1") == body


def test_a_stream_that_breaks_ends_with_an_error_the_sdk_raises() -> None:
    def respond(_: httpx.Request) -> httpx.Response:
        encoder = GEMINI_SSE.stream(PLAIN)
        body = encoder.chunks([chunk({"content": "Hi"})]) + encoder.error(UpstreamError("it broke"), "req_1")
        return httpx.Response(200, content=body, headers={b"content-type": encoder.media_type})

    stream = sdk(respond).models.generate_content_stream(model="m", contents="Hi")
    first = next(stream)
    with pytest.raises(genai_errors.ServerError) as broke:
        next(stream)

    assert first.text == "Hi"
    assert (broke.value.code, broke.value.status, broke.value.message) == (502, "UNAVAILABLE", "it broke")


@pytest.mark.parametrize("before", [[], [chunk({"content": "Hi"})]])
def test_an_array_that_breaks_is_still_an_array(before: list[bytes]) -> None:
    encoder = GEMINI_ARRAY.stream(PLAIN)

    body = encoder.chunks(before) + encoder.error(UpstreamError("it broke"), "req_1")

    told = json.loads(body)
    assert len(told) == len(before) + 1
    assert told[-1]["error"]["code"] == 502
    assert encoder.media_type == b"application/json"


# --- reasoning of another maker

SIGNED_ELSEWHERE = {
    "type": "reasoning.text",
    "index": 0,
    "format": "anthropic-claude-v1",
    "text": "Hm.",
    "signature": "sig",
}
CALL_OF_ANOTHER = {"id": "toolu_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}


def called_elsewhere() -> list[dict[str, Any]]:
    """The parts of an answer of Claude's, as a client of this dialect gets them."""
    message = {
        "role": "assistant",
        "content": "Let me look.",
        "reasoning_content": "Hm.",
        "reasoning_details": [SIGNED_ELSEWHERE],
        "tool_calls": [CALL_OF_ANOTHER, {**CALL_OF_ANOTHER, "id": "toolu_2"}],
    }
    body = {
        "id": "1",
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    }
    completion = Completion(msgspec.json.encode(body), "m", Usage(1, 1), ("tool_calls",))
    request = decoded(HI)
    streamed = b"".join(
        [
            (encoder := GEMINI_SSE.stream(request)).chunks(
                [msgspec.json.encode(chunk) for chunk in replay.chunks(body, "chat", include_usage=True)]
            ),
            encoder.end(completion),
        ]
    )
    parts: list[dict[str, Any]] = json.loads(GEMINI_SSE.whole(completion, request))["candidates"][0]["content"]["parts"]
    events = [json.loads(line[6:]) for line in streamed.decode().splitlines() if line.startswith("data: ")]
    pieces = [part for event in events for candidate in event["candidates"] for part in candidate["content"]["parts"]]
    assert [part for part in pieces if "functionCall" in part] == [part for part in parts if "functionCall" in part]
    return parts


def test_a_call_carries_the_signed_reasoning_that_led_to_it_and_brings_it_back() -> None:
    parts = called_elsewhere()

    first, second = [part for part in parts if "functionCall" in part]
    [turn] = messages(asking({"text": "Hi"}), said(*parts))[1:]

    assert first["thoughtSignature"].startswith("a2VlcGdhdGU6")
    assert "thoughtSignature" not in second
    assert turn["reasoning_details"] == [SIGNED_ELSEWHERE]
    assert "layout" not in turn  # the reasoning comes first


def test_google_is_not_sent_what_a_call_carries() -> None:
    parts = called_elsewhere()
    answers = asking({"functionResponse": {"name": "look", "response": {}}})

    request = decoded({"contents": [asking({"text": "Hi"}), said(*parts), answers, "And?"]})

    assert request.native is not None
    assert b"a2VlcGdhdGU6" not in request.raw
    assert msgspec.json.decode(request.raw) == request.native
    unsigned = [{name: value for name, value in part.items() if name != "thoughtSignature"} for part in parts]
    assert request.native["contents"] == [asking({"text": "Hi"}), said(*unsigned), answers, "And?"]


@pytest.mark.parametrize("rest", ["", "!", "bm8", base64.b64encode(b"[7]").decode(), base64.b64encode(b"{}").decode()])
def test_what_a_call_carried_and_was_not_kept_whole_is_done_without(rest: str) -> None:
    call = {"functionCall": {"name": "look", "args": {}}, "thoughtSignature": f"a2VlcGdhdGU6{rest}"}

    [turn] = messages(asking({"text": "Hi"}), said(call))[1:]

    assert "reasoning_details" not in turn


def test_reasoning_that_nobody_signed_is_not_carried() -> None:
    unsigned = {name: value for name, value in SIGNED_ELSEWHERE.items() if name != "signature"}
    message = {"role": "assistant", "content": None, "reasoning_details": [unsigned], "tool_calls": [CALL_OF_ANOTHER]}
    body = {"id": "1", "model": "m", "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    completion = Completion(msgspec.json.encode(body), "m", Usage(1, 1), ("tool_calls",))

    [part] = json.loads(GEMINI_SSE.whole(completion, decoded(HI)))["candidates"][0]["content"]["parts"]

    assert "thoughtSignature" not in part
