"""Requests are checked against the types of Google's own SDK, answers against what OpenAI's says of them."""

import base64
import copy
import struct
from itertools import pairwise
from typing import Any, get_type_hints

import msgspec
import pytest
from google.genai import types
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming

from backends.upstream import gemini_request
from backends.upstream.base import Call
from backends.upstream.gemini import GeminiWire
from backends.upstream.wire import Unreadable
from models.completion import Chunk, Usage
from models.errors import RequestError, Untranslatable
from service.caching.assembly import Assembly
from tests.support.examples import examples

NOW = 1_790_000_000
WIRE = GeminiWire(now=lambda: NOW + 0.5)
GOOGLE = "google-gemini-v1"
# One kind of model is told with how many tokens to think, the other how hard.
BUDGETED, LEVELED = "gemini-2.5-flash", "gemini-3.8-flash"
LOOK = {"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {"at": {}}}}
TOOL = {"type": "function", "function": LOOK}
DECLARED = {"name": "look", "description": "Looks.", "parametersJsonSchema": LOOK["parameters"]}


def call(body: dict[str, Any], *, model: str = LEVELED, raw: bytes | None = None, **fields: Any) -> Call:
    return Call(operation="chat", model=model, body={"model": "asked for", **body}, raw=raw, **fields)


def asked(*messages: Any, model: str = LEVELED, **fields: Any) -> dict[str, Any]:
    """The translation, which the SDK's own types take."""
    sent = WIRE.request(call({"messages": list(messages or [user("hi")]), **fields}, model=model), stream=False)
    body: dict[str, Any] = msgspec.json.decode(sent.body)
    for content in [*body["contents"], body.get("systemInstruction", {})]:
        types.Content.model_validate(content)
    for tool in body.get("tools", []):
        types.Tool.model_validate(tool)
    types.ToolConfig.model_validate(body.get("toolConfig", {}))
    types.GenerationConfig.model_validate(body.get("generationConfig", {}))
    assert body.keys() <= {"contents", "systemInstruction", "tools", "toolConfig", "generationConfig", "serviceTier"}
    return body


def config(model: str = LEVELED, **fields: Any) -> Any:
    return asked(model=model, **fields).get("generationConfig", {})


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def said(**fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, **fields}


def tool_call(call_id: str = "a", arguments: str = '{"at": "x"}') -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "look", "arguments": arguments}}


def turn(role: str, *parts: Any) -> dict[str, Any]:
    return {"role": role, "parts": list(parts)}


def refused(body: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(Untranslatable) as error:
        WIRE.request(call({"messages": [user("hi")], **body}), stream=False)
    assert error.value.param == error.value.names[0].partition(" (")[0]
    return error.value.names


def test_the_path_names_the_model_and_whether_to_stream() -> None:
    question = {"messages": [user("hi")]}

    paths = [
        WIRE.request(call(question, model="gemini-4"), stream=False).path,
        WIRE.request(call(question, model="models/gemini-4"), stream=True).path,
        WIRE.request(call(question, model="tunedModels/my own"), stream=False).path,
    ]

    assert paths == [
        "/models/gemini-4:generateContent",
        "/models/gemini-4:streamGenerateContent?alt=sse",
        "/tunedModels/my%20own:generateContent",
    ]


@pytest.mark.parametrize("name", ["../../x", "..", "a/b", "a?b=c", "a#b", "a%2Fb", "a:b", "é\n", "models/../x"])
def test_no_name_of_a_model_reaches_beyond_its_place_in_the_path(name: str) -> None:
    path = WIRE.request(call({"messages": [user("hi")]}, model=name), stream=False).path

    place = path.removeprefix("/models/").removesuffix(":generateContent")
    assert len(place) == len(path) - len("/models/:generateContent")
    assert place.isascii()
    assert not set(place) & set("/?#: \n")


def test_a_request_of_the_same_dialect_travels_as_it_was_written() -> None:
    raw = b'{ "contents": [{"parts": [{"text": "hi"}]}], "new": 1 }'

    sent = WIRE.request(call({}, dialect="gemini", native=msgspec.json.decode(raw), raw=raw), stream=False)

    assert sent.body == raw
    assert sent.dropped == ()


@pytest.mark.parametrize(
    ("raw", "native"),
    [
        (b'{"contents": [], "contents": [1]}', {"contents": [1]}),  # a key twice: what was read is what is sent
        (b'{"contents": [1], "model": "models/x"}', {"contents": [1]}),  # the path says which model
        (None, {"contents": [1]}),  # rewritten by a rule
    ],
)
def test_only_one_reading_of_a_request_of_the_same_dialect_is_sent(raw: bytes | None, native: dict[str, Any]) -> None:
    decoded = native if raw is None else msgspec.json.decode(raw)

    sent = WIRE.request(call({}, dialect="gemini", native=decoded, raw=raw), stream=False)

    assert msgspec.json.decode(sent.body) == native
    assert sent.body.count(b"contents") == 1


def test_what_another_dialect_says_and_this_one_lacks_is_refused_or_named() -> None:
    body = {"messages": [user("hi")]}

    with pytest.raises(Untranslatable, match="container"):
        WIRE.request(call(body, dialect="anthropic", native={}, refused=("container",)), stream=False)
    sent = WIRE.request(call({**body, "newest": 1}, dialect="anthropic", native={}, dropped=("odd",)), stream=False)

    assert sent.dropped == ("odd", "newest")


def test_system_messages_become_the_instruction_and_turns_of_one_side_become_one() -> None:
    body = asked(
        {"role": "system", "content": "Be kind."},
        user("a"),
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        user([{"type": "text", "text": "b"}]),
        said(content="c"),
        said(content="d", refusal="No."),
        user("e"),
    )

    assert body["systemInstruction"] == {"parts": [{"text": "Be kind."}, {"text": "Be brief."}]}
    assert body["contents"] == [
        turn("user", {"text": "a"}, {"text": "b"}),
        turn("model", {"text": "c"}, {"text": "d"}, {"text": "No."}),
        turn("user", {"text": "e"}),
    ]


def test_a_conversation_begins_with_the_user_and_is_never_empty() -> None:
    from_assistant = asked(said(content="Welcome."), user("hi"))
    alone = asked({"role": "system", "content": "Tell a joke."})

    assert from_assistant["contents"][:2] == [turn("user", {"text": " "}), turn("model", {"text": "Welcome."})]
    assert alone == {"contents": [turn("user", {"text": "Tell a joke."})]}


@pytest.mark.parametrize("messages", [[], [said()], [{"role": "system", "content": None}]])
def test_a_conversation_that_says_nothing_is_refused(messages: list[Any]) -> None:
    with pytest.raises(RequestError) as error:
        WIRE.request(call({"messages": messages}), stream=False)

    assert error.value.param == "messages"


@pytest.mark.parametrize(
    ("part", "sent"),
    [
        (
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}},
            {"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}},
        ),
        (
            {"type": "image_url", "image_url": {"url": "data:image/svg+xml,%3Csvg/%3E"}},
            {"inlineData": {"mimeType": "image/svg+xml", "data": "PHN2Zy8+"}},
        ),
        (
            {"type": "image_url", "image_url": {"url": "https://a.example/b.JPG?c=d.png"}},
            {"fileData": {"fileUri": "https://a.example/b.JPG?c=d.png", "mimeType": "image/jpeg"}},
        ),
        (
            {"type": "image_url", "image_url": {"url": "https://a.example/b"}},
            {"fileData": {"fileUri": "https://a.example/b"}},
        ),
        (
            {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
            {"inlineData": {"mimeType": "audio/wav", "data": "UklGRg=="}},
        ),
        (
            {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "webm"}},
            {"inlineData": {"mimeType": "audio/webm", "data": "UklGRg=="}},
        ),
        (
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERg==", "filename": "a.pdf"}},
            {"inlineData": {"mimeType": "application/pdf", "data": "JVBERg=="}},
        ),
        (
            {"type": "file", "file": {"file_data": "YSxi", "filename": "a.csv"}},
            {"inlineData": {"mimeType": "text/csv", "data": "YSxi"}},
        ),
        (
            {"type": "file", "file": {"file_url": "https://a.example/b.pdf"}},
            {"fileData": {"fileUri": "https://a.example/b.pdf", "mimeType": "application/pdf"}},
        ),
    ],
)
def test_media_are_sent_inline_or_by_their_address(part: dict[str, Any], sent: dict[str, Any]) -> None:
    body = asked(user([{"type": "text", "text": "what?"}, part]))

    assert body["contents"] == [turn("user", {"text": "what?"}, sent)]


def test_tool_calls_and_their_results_find_each_other_by_name_and_id() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}

    body = asked(
        user("look"),
        said(content="Looking.", tool_calls=[tool_call("a"), tool_call("b", "")]),
        {"role": "tool", "tool_call_id": "a", "content": '{"seen": ["y"]}'},
        {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "[1]"}, image]},
        user("and now?"),
        said(tool_calls=[tool_call("c")]),
        {"role": "tool", "tool_call_id": "c", "content": "gone", "is_error": True},
        model=BUDGETED,
    )

    assert body["contents"][1:] == [
        turn(
            "model",
            {"text": "Looking."},
            {"functionCall": {"id": "a", "name": "look", "args": {"at": "x"}}},
            {"functionCall": {"id": "b", "name": "look", "args": {}}},
        ),
        turn(
            "user",
            {"functionResponse": {"id": "a", "name": "look", "response": {"seen": ["y"]}}},
            {
                "functionResponse": {
                    "id": "b",
                    "name": "look",
                    "response": {"result": "[1]"},
                    "parts": [{"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}}],
                }
            },
            {"text": "and now?"},
        ),
        turn("model", {"functionCall": {"id": "c", "name": "look", "args": {"at": "x"}}}),
        turn("user", {"functionResponse": {"id": "c", "name": "look", "response": {"error": "gone"}}}),
    ]


def test_arguments_that_a_model_got_wrong_do_not_end_the_conversation() -> None:
    body = asked(user("look"), said(tool_calls=[tool_call("a", '{"at": ')]), model=BUDGETED)

    assert body["contents"][1]["parts"][0]["functionCall"]["args"] == {"INVALID_JSON": '{"at": '}


def test_signatures_go_back_to_what_they_signed() -> None:
    details = [
        {"type": "reasoning.text", "index": 0, "format": GOOGLE, "text": "Hm.", "signature": "sig0"},
        {"type": "reasoning.text", "index": 1, "format": GOOGLE, "text": "unsigned"},
        {"type": "reasoning.encrypted", "index": 2, "format": GOOGLE, "data": "sig1"},
        {"type": "reasoning.encrypted", "index": 3, "format": GOOGLE, "data": "sig2", "tool_call_id": "a"},
        {"type": "reasoning.encrypted", "index": 4, "format": "anthropic-claude-v1", "data": "theirs"},
    ]
    message = said(content="Seen.", tool_calls=[tool_call("a"), tool_call("b")], reasoning_details=details)

    body = asked(user("look"), {**message, "layout": "not one"})

    assert body["contents"][1] == turn(
        "model",
        {"thought": True, "text": "Hm.", "thoughtSignature": "sig0"},
        {"text": "Seen.", "thoughtSignature": "sig1"},
        {"functionCall": {"id": "a", "name": "look", "args": {"at": "x"}}, "thoughtSignature": "sig2"},
        {"functionCall": {"id": "b", "name": "look", "args": {"at": "x"}}},
    )


def test_a_call_that_nobody_signed_says_so_where_models_insist() -> None:
    conversation = [user("look"), said(tool_calls=[tool_call("a"), tool_call("b")])]

    calls = [asked(*conversation, model=model)["contents"][1]["parts"] for model in (LEVELED, BUDGETED)]

    signatures = [[part.get("thoughtSignature") for part in parts] for parts in calls]
    assert signatures == [["skip_thought_signature_validator", None], [None, None]]


def test_the_layout_of_a_turn_orders_its_parts() -> None:
    code, output = {"executableCode": {"code": "1+1"}}, {"codeExecutionResult": {"output": "2"}}
    message = said(
        content="Let me see.Two.",
        provider_content=[{"dialect": "gemini", "block": code}, {"dialect": "gemini", "block": output}],
        reasoning_details=[{"type": "reasoning.encrypted", "format": GOOGLE, "data": "sig0"}],
        layout=[["content", 11], ["provider_content", 2], ["content", 4], ["reasoning_details", 1]],
    )

    body = asked(user("1+1?"), message)

    assert body["contents"][1] == turn(
        "model", {"text": "Let me see."}, code, output, {"text": "Two.", "thoughtSignature": "sig0"}
    )


@pytest.mark.parametrize(
    ("given_", "sent"),
    [
        ({"max_completion_tokens": 5}, {"maxOutputTokens": 5}),
        ({"max_tokens": 7}, {"maxOutputTokens": 7}),
        ({"max_tokens": 7, "max_completion_tokens": 5}, {"maxOutputTokens": 5}),
        ({"temperature": 0, "top_p": 0.5, "top_k": 40}, {"temperature": 0, "topP": 0.5, "topK": 40}),
        ({"presence_penalty": 0.5, "frequency_penalty": -1}, {"presencePenalty": 0.5, "frequencyPenalty": -1}),
        ({"presence_penalty": 0, "frequency_penalty": 0.0, "n": 1}, {}),
        ({"stop": "."}, {"stopSequences": ["."]}),
        ({"stop": [".", "!"]}, {"stopSequences": [".", "!"]}),
        ({"stop": None, "seed": None, "response_format": None}, {}),
        ({"seed": 3, "n": 2}, {"seed": 3, "candidateCount": 2}),
        ({"logprobs": True}, {"responseLogprobs": True}),
        ({"logprobs": True, "top_logprobs": 2}, {"responseLogprobs": True, "logprobs": 2}),
        ({"logprobs": False, "top_logprobs": 2}, {}),
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {"responseMimeType": "application/json"}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}},
            {"responseMimeType": "application/json", "responseJsonSchema": {"type": "object"}},
        ),
    ],
)
def test_each_setting_has_its_name(given_: dict[str, Any], sent: dict[str, Any]) -> None:
    assert config(**given_) == sent


@pytest.mark.parametrize(
    ("model", "given_", "sent"),
    [
        (BUDGETED, {"reasoning_effort": "low"}, {"thinkingBudget": 1024, "includeThoughts": True}),
        (BUDGETED, {"reasoning_effort": "none"}, {"thinkingBudget": 0}),
        ("gemini-2.5-pro", {"reasoning_effort": "none"}, {"thinkingBudget": 128}),
        (
            BUDGETED,
            {"reasoning_budget": 300, "reasoning_effort": "high"},
            {"thinkingBudget": 300, "includeThoughts": True},
        ),
        (BUDGETED, {"reasoning_budget": -1}, {"thinkingBudget": -1, "includeThoughts": True}),
        (LEVELED, {"reasoning_effort": "max"}, {"thinkingLevel": "HIGH", "includeThoughts": True}),
        (LEVELED, {"reasoning_effort": "minimal"}, {"thinkingLevel": "LOW", "includeThoughts": True}),
        (LEVELED, {"reasoning_effort": "none"}, {"thinkingLevel": "LOW"}),
        ("models/gemini-3-flash", {"reasoning_effort": "none"}, {"thinkingLevel": "MINIMAL"}),
        (LEVELED, {"reasoning_budget": 0}, {"thinkingLevel": "LOW"}),
        (LEVELED, {"reasoning_budget": 4096}, {"thinkingLevel": "MEDIUM", "includeThoughts": True}),
        (LEVELED, {"reasoning_budget": 99_999}, {"thinkingLevel": "HIGH", "includeThoughts": True}),
        (LEVELED, {"reasoning_budget": -1}, {"includeThoughts": True}),
    ],
)
def test_a_model_is_told_how_much_to_think_in_the_words_it_takes(
    model: str, given_: dict[str, Any], sent: dict[str, Any]
) -> None:
    assert config(model, **given_) == {"thinkingConfig": sent}


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("auto", None),
        (None, None),
        ("none", {"mode": "NONE"}),
        ("required", {"mode": "ANY"}),
        ({"type": "function", "function": {"name": "look"}}, {"mode": "ANY", "allowedFunctionNames": ["look"]}),
    ],
)
def test_tools_and_the_choice_among_them_are_declared(choice: Any, sent: dict[str, Any] | None) -> None:
    body = asked(tools=[TOOL], tool_choice=choice)

    assert body["tools"] == [{"functionDeclarations": [DECLARED]}]
    assert body.get("toolConfig") == (sent and {"functionCallingConfig": sent})


def test_only_allowed_tools_are_offered_and_a_strict_one_is_validated() -> None:
    other = {"type": "function", "function": {"name": "other", "strict": True}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [TOOL]}}

    narrowed = asked(tools=[TOOL, other], tool_choice=allowed)
    strict = asked(tools=[other])

    assert narrowed["tools"] == [{"functionDeclarations": [DECLARED]}]
    assert narrowed["toolConfig"] == {"functionCallingConfig": {"mode": "ANY"}}
    assert strict["toolConfig"] == {"functionCallingConfig": {"mode": "VALIDATED"}}


@pytest.mark.parametrize(
    ("tier", "sent"), [("flex", "flex"), ("default", "standard"), ("priority", "priority"), ("auto", None)]
)
def test_service_tiers_that_both_have_are_asked_for(tier: str, sent: str | None) -> None:
    assert asked(service_tier=tier).get("serviceTier") == sent


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"logit_bias": {"1": 2}}, ("logit_bias",)),
        ({"functions": [LOOK], "function_call": "auto"}, ("function_call", "functions")),
        ({"audio": {"voice": "a", "format": "mp3"}, "modalities": ["text", "audio"]}, ("audio", "modalities")),
        ({"web_search_options": {"search_context_size": "low"}}, ("web_search_options",)),
        ({"web_search_options": {}}, ("web_search_options",)),
        ({"verbosity": "low"}, ("verbosity",)),
        ({"moderation": {"model": "m"}}, ("moderation",)),
        ({"response_format": {"type": "grammar"}}, ("response_format (type 'grammar')",)),
        ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, ("tools[0] (type 'custom')",)),
        ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, ("messages[0] (role 'function')",)),
        (
            {"messages": [user([{"type": "video", "video": 1}])]},
            ("messages[0].content[0] (type 'video')",),
        ),
        (
            {"messages": [user([{"type": "file", "file": {"file_id": "file-1"}}])]},
            ("messages[0].content[0].file.file_id",),
        ),
        (
            {"messages": [said(provider_content=[{"dialect": "anthropic", "block": {}}])]},
            ("messages[0].provider_content[0] (of the dialect 'anthropic')",),
        ),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(body: dict[str, Any], names: tuple[str, ...]) -> None:
    assert refused(body) == names


def test_every_field_of_the_chat_api_is_translated_harmless_or_refused() -> None:
    fields = get_type_hints(CompletionCreateParamsStreaming).keys()

    assert len(fields) > 35
    assert fields <= gemini_request.KNOWN


def test_what_does_no_harm_is_dropped_silently_and_what_nobody_knows_by_name() -> None:
    harmless = {"user": "u", "metadata": {}, "store": True, "prediction": {}, "stream": True, "verbosity": "medium"}
    messages = [
        {**user([{"type": "text", "text": "hi", "cache_control": {}, "odd": 1}]), "name": "Ann", "new": 2},
        said(content="ho", reasoning_content="hm", annotations=[]),
    ]

    sent = WIRE.request(call({**harmless, "messages": messages, "guess": 1}), stream=True)

    assert msgspec.json.decode(sent.body).keys() == {"contents"}
    assert sent.dropped == ("guess", "messages[0].new", "messages[0].content[0].odd")


RICH_REQUEST: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "sig0"},
        user([{"type": "image_url", "image_url": {"url": "data:a/b;base64,aa"}}, {"type": "text", "text": "t"}]),
        user([{"type": "input_audio", "input_audio": {"data": "aa", "format": "wav"}}]),
        user([{"type": "file", "file": {"file_url": "https://a.example"}}]),
        said(
            tool_calls=[tool_call()],
            reasoning_details=[{"type": "reasoning.encrypted", "format": GOOGLE, "data": "sig0", "tool_call_id": "a"}],
            provider_content=[{"dialect": "gemini", "block": {"text": "x"}}],
            layout=[["tool_calls", 1]],
            refusal="r",
        ),
        {"role": "tool", "tool_call_id": "a", "content": "r", "is_error": False},
    ],
    "tools": [TOOL],
    "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TOOL]}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}},
    "stop": ["a"],
    "temperature": 1.0,
    "n": 2,
    "logprobs": True,
    "reasoning_effort": "low",
    "reasoning_budget": 5,
    "service_tier": "flex",
    "modalities": ["text"],
    "verbosity": "medium",
    "parallel_tool_calls": True,
}
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, -1.5, 10**30, "", "x", [], [None], [[]], {}, {"type": 1}, {"type": "text"}]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to everything in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


def with_odd(value: Any, path: tuple[Any, ...], odd: Any) -> Any:
    if not path:
        return odd
    changed = copy.deepcopy(value)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = odd
    return changed


@given(place=st.sampled_from(places(RICH_REQUEST)[1:]), odd=ODD)
@settings(max_examples=examples(400))
def test_a_value_of_any_type_anywhere_is_translated_or_a_request_error(place: tuple[Any, ...], odd: Any) -> None:
    body = with_odd(RICH_REQUEST, place, odd)

    try:
        sent = WIRE.request(call(body), stream=False)
    except RequestError as error:
        assert error.param  # noqa: PT017  # either outcome is right; this one has to name the field
    else:
        assert msgspec.json.decode(sent.body)["contents"]


def reply(*parts: Any, reason: str | None = "STOP", **fields: Any) -> dict[str, Any]:
    candidate = {"content": turn("model", *parts), "finishReason": reason, "index": 0, **fields}
    return {"candidates": [candidate], "modelVersion": "gemini-4-x", "responseId": "r1"}


def read(answer: Any, **body: Any) -> Any:
    return msgspec.json.decode(WIRE.whole(msgspec.json.encode(answer), call(body)))


def choice_of(*parts: Any, reason: str | None = "STOP", body: dict[str, Any] | None = None, **fields: Any) -> Any:
    whole = read(reply(*parts, reason=reason, **fields), **(body or {}))
    return whole["choices"][0]


def streamed(*events: Any, **body: Any) -> list[Chunk]:
    decoder = WIRE.decoder(call(body))
    chunks = [chunk for event in events for chunk in decoder.feed(msgspec.json.encode(event))]
    assert decoder.complete
    assert not decoder.finished
    assert all(msgspec.json.decode(chunk.payload) == chunk.fields for chunk in chunks)
    return chunks


def assembled(chunks: list[Chunk]) -> Any:
    assembly = Assembly("chat")
    for chunk in chunks:
        assembly.add(chunk.fields)
    assert assembly.adds_up
    return msgspec.json.decode(assembly.completion(Usage(estimated=True)).body)


def test_a_whole_answer_has_the_shape_of_the_chat_api() -> None:
    whole = read(
        {
            **reply({"text": "Hm.", "thought": True}, {"text": "Hi "}, {"text": "there."}),
            "usageMetadata": {
                "promptTokenCount": 10,
                "candidatesTokenCount": 4,
                "thoughtsTokenCount": 3,
                "cachedContentTokenCount": 2,
                "toolUsePromptTokenCount": 5,
                "totalTokenCount": 22,
                "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 6}],
            },
        }
    )

    assert ChatCompletion.model_validate(whole).choices[0].message.content == "Hi there."
    assert whole == {
        "id": "r1",
        "object": "chat.completion",
        "created": NOW,
        "model": "gemini-4-x",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Hi there.",
                    "reasoning_content": "Hm.",
                    "reasoning_details": [{"type": "reasoning.text", "index": 0, "format": GOOGLE, "text": "Hm."}],
                },
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 15,
            "completion_tokens": 7,
            "total_tokens": 22,
            "prompt_tokens_details": {"cached_tokens": 2, "audio_tokens": 6},
            "completion_tokens_details": {"reasoning_tokens": 3},
            "provider_usage": {
                "dialect": "gemini",
                "toolUsePromptTokenCount": 5,
                "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 6}],
            },
        },
    }


def test_calls_have_ids_that_go_on_through_the_conversation_and_their_signatures_beside_them() -> None:
    earlier = [user("x"), said(tool_calls=[tool_call("call_0")])]

    choice = choice_of(
        {"functionCall": {"name": "look", "args": {"at": "x"}}, "thoughtSignature": "sig1"},
        {"functionCall": {"name": "look", "id": "own"}},
        body={"messages": earlier},
    )

    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at":"x"}'}},
            {"id": "own", "type": "function", "function": {"name": "look", "arguments": "{}"}},
        ],
        "reasoning_details": [
            {"type": "reasoning.encrypted", "index": 0, "format": GOOGLE, "data": "sig1", "tool_call_id": "call_1"}
        ],
    }


def test_who_takes_one_call_at_a_time_gets_the_first() -> None:
    parts = [{"functionCall": {"name": "look", "id": at}, "thoughtSignature": at} for at in ("a", "b")]

    choice = choice_of(*parts, body={"parallel_tool_calls": False})
    chunks = streamed(reply(parts[0], reason=None), reply(parts[1]), parallel_tool_calls=False)

    assert [made["id"] for made in choice["message"]["tool_calls"]] == ["a"]
    assert [detail["data"] for detail in choice["message"]["reasoning_details"]] == ["a"]
    assert assembled(chunks)["choices"][0] == choice


def test_a_signed_text_and_blocks_that_only_gemini_has_keep_their_order() -> None:
    code, picture = {"executableCode": {"code": "1"}}, {"inlineData": {"mimeType": "image/png", "data": "aa"}}

    message = choice_of({"text": "See:"}, code, picture, {"text": "Done.", "thoughtSignature": "sig0"})["message"]

    assert message == {
        "role": "assistant",
        "content": "See:Done.",
        "provider_content": [{"dialect": "gemini", "block": code}, {"dialect": "gemini", "block": picture}],
        "reasoning_details": [{"type": "reasoning.encrypted", "index": 0, "format": GOOGLE, "data": "sig0"}],
        "layout": [["content", 4], ["provider_content", 2], ["content", 5], ["reasoning_details", 1]],
    }


def test_an_answer_sent_back_is_what_the_model_said() -> None:
    parts = [
        {"text": "Hm.", "thought": True, "thoughtSignature": "sig0"},
        {"text": "See:", "thoughtSignature": "sig1"},
        {"executableCode": {"code": "1", "language": "PYTHON"}},
        {"text": "Done."},
        {"functionCall": {"id": "a", "name": "look", "args": {}}, "thoughtSignature": "sig2"},
        {"functionCall": {"id": "b", "name": "look", "args": {"at": [1, {}]}}},
    ]

    message = choice_of(*parts)["message"]

    assert asked(user("?"), message)["contents"][1] == turn("model", *parts)


@pytest.mark.parametrize(
    ("reason", "finish", "native"),
    [
        ("STOP", "stop", None),
        ("MAX_TOKENS", "length", None),
        ("SAFETY", "content_filter", "SAFETY"),
        ("RECITATION", "content_filter", "RECITATION"),
        ("IMAGE_SAFETY", "content_filter", "IMAGE_SAFETY"),
        ("MALFORMED_FUNCTION_CALL", "length", "MALFORMED_FUNCTION_CALL"),
        ("SOMETHING_NEW", "length", "SOMETHING_NEW"),
        (None, "stop", None),
    ],
)
def test_finish_reasons_say_whether_the_answer_is_whole(reason: str | None, finish: str, native: str | None) -> None:
    choice = choice_of({"text": "a"}, reason=reason)

    assert (choice["finish_reason"], choice.get("native_finish_reason")) == (finish, native)


def test_every_reason_of_the_sdk_to_filter_is_known() -> None:
    words = {reason.value for reason in types.FinishReason}

    filtered = {word for word in words if choice_of(reason=word)["finish_reason"] == "content_filter"}

    assert filtered == {
        *("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"),
        *("IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION"),
    }


def test_a_blocked_prompt_is_a_refusal() -> None:
    blocked = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 3}}

    whole = read(blocked)
    stream = assembled(streamed(blocked))

    assert whole["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": None,
                "refusal": "The provider blocked the prompt (PROHIBITED_CONTENT).",
            },
            "logprobs": None,
            "finish_reason": "content_filter",
            "native_finish_reason": "PROHIBITED_CONTENT",
        }
    ]
    assert whole["provider_fields"] == {"dialect": "gemini", "promptFeedback": blocked["promptFeedback"]}
    assert stream == whole


def test_what_belongs_to_no_part_is_kept_for_those_who_can_read_it() -> None:
    sources, ratings = {"webSearchQueries": ["q"]}, [{"category": "C", "probability": "LOW"}]

    whole = read({**reply({"text": "a"}, groundingMetadata=sources, safetyRatings=ratings), "modelStatus": {"a": 1}})

    assert whole["choices"][0]["provider_fields"] == {
        "dialect": "gemini",
        "groundingMetadata": sources,
        "safetyRatings": ratings,
    }
    assert whole["provider_fields"] == {"dialect": "gemini", "modelStatus": {"a": 1}}


def test_logprobs_are_those_of_the_chat_api() -> None:
    token, other = {"token": "a", "tokenId": 5, "logProbability": -0.5}, {"token": "b", "logProbability": -2}
    result = {"chosenCandidates": [token], "topCandidates": [{"candidates": [token, other]}]}

    choice = choice_of({"text": "a"}, logprobsResult=result)

    assert choice["logprobs"] == {
        "content": [
            {
                "token": "a",
                "logprob": -0.5,
                "bytes": None,
                "top_logprobs": [
                    {"token": "a", "logprob": -0.5, "bytes": None},
                    {"token": "b", "logprob": -2, "bytes": None},
                ],
            }
        ],
        "refusal": None,
    }


def test_a_stream_says_its_role_first_and_counts_tokens_once_at_the_end() -> None:
    def counted(event: dict[str, Any], tokens: int) -> dict[str, Any]:
        return {**event, "usageMetadata": {"promptTokenCount": 2, "candidatesTokenCount": tokens}}

    chunks = streamed(
        counted(reply({"text": "a"}, reason=None), 1),
        counted(reply({"text": "b"}, reason=None), 2),
        counted(reply({"text": ""}), 3),
    )

    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.fields)
    assert [chunk.fields["choices"] for chunk in chunks] == [
        [{"index": 0, "delta": {"role": "assistant", "content": "a"}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {"content": "b"}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}],
        [],
    ]
    assert [chunk.fields["usage"]["completion_tokens"] for chunk in chunks if "usage" in chunk.fields] == [3]


def test_a_stream_is_whole_when_every_candidate_has_finished() -> None:
    decoder = WIRE.decoder(call({"n": 2}))
    usage = {"usageMetadata": {"promptTokenCount": 2}}
    told = []

    for index, reason in [(0, None), (0, "STOP"), (1, None), (1, "STOP")]:
        chunks = decoder.feed(msgspec.json.encode({**reply({"text": "a"}, reason=reason, index=index), **usage}))
        told.append((decoder.complete, sum("usage" in chunk.fields for chunk in chunks)))

    assert told == [(False, 0), (True, 0), (False, 0), (True, 1)]


def test_a_prompt_blocked_in_the_middle_ends_what_had_begun() -> None:
    blocked = {"promptFeedback": {"blockReason": "SAFETY", "blockReasonMessage": "No."}}

    whole = assembled(streamed(reply({"text": "a"}, reason=None), blocked))

    choice = whole["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "a", "refusal": "No."}
    assert choice["finish_reason"] == "content_filter"


def test_sources_that_come_after_the_finish_are_kept() -> None:
    late = {"candidates": [{"index": 0, "groundingMetadata": {"q": 1}}]}

    choice = assembled(streamed(reply({"text": "a"}), late))["choices"][0]

    assert choice["provider_fields"] == {"dialect": "gemini", "groundingMetadata": {"q": 1}}
    assert choice["finish_reason"] == "stop"


def test_a_stream_of_nothing_is_not_whole() -> None:
    decoder = WIRE.decoder(call({}))

    chunks = decoder.feed(b'{"usageMetadata": {"promptTokenCount": 2}, "responseId": "r"}')

    assert not chunks
    assert not decoder.complete


def test_errors_in_place_of_an_answer_are_told_apart_from_garbage() -> None:
    failed = {"error": {"code": 503, "message": "secret", "status": "UNAVAILABLE"}}

    with pytest.raises(Unreadable, match="ended with an error"):
        streamed(failed)
    with pytest.raises(Unreadable, match="error that it called a success"):
        read(failed)
    with pytest.raises(Unreadable, match="no candidate"):
        read({"candidates": []})
    with pytest.raises(Unreadable, match="no chat reply"):
        read([failed])


TEXTS = st.text("ab é", max_size=6)
SIGNATURES = st.none() | st.sampled_from(["sig1", "sig2"])


def signed(part: dict[str, Any], signature: str | None) -> dict[str, Any]:
    return part if signature is None else {**part, "thoughtSignature": signature}


PARTS = st.one_of(
    st.builds(lambda text, s: signed({"text": text}, s), TEXTS, SIGNATURES),
    st.builds(lambda text, s: signed({"text": text, "thought": True}, s), TEXTS, SIGNATURES),
    st.builds(
        lambda args, s: signed({"functionCall": {"name": "f", "args": args}}, s),
        st.dictionaries(TEXTS, TEXTS, max_size=2),
        SIGNATURES,
    ),
    st.builds(lambda code: {"executableCode": {"code": code}}, TEXTS),
)


def pieces(part: dict[str, Any], cuts: list[int]) -> list[dict[str, Any]]:
    """A text as a stream cuts it: what signs it comes with the last piece."""
    text = part.get("text", "")
    bounds = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    if len(bounds) < 2:
        return [part]
    thought = {"thought": True} if part.get("thought") else {}
    cut = [{"text": text[begin:end], **thought} for begin, end in pairwise(bounds)]
    return [*cut[:-1], signed(cut[-1], part.get("thoughtSignature"))]


@given(
    parts=st.lists(PARTS, max_size=6),
    cuts=st.lists(st.integers(0, 6), max_size=3),
    together=st.lists(st.booleans(), min_size=24, max_size=24),
    reason=st.sampled_from(["STOP", "MAX_TOKENS", "SAFETY"]),
)
@settings(max_examples=examples(300))
def test_a_stream_put_together_is_the_whole_answer(
    parts: list[dict[str, Any]], cuts: list[int], together: list[bool], reason: str
) -> None:
    usage = {"promptTokenCount": 2, "candidatesTokenCount": 7, "trafficType": "ON_DEMAND"}
    more = {"groundingMetadata": {"a": [1]}, "citationMetadata": {"b": 2}}
    whole = {**reply(*parts, reason=reason, **more), "usageMetadata": usage}
    batches: list[list[dict[str, Any]]] = [[]]
    for piece, joined in zip([piece for part in parts for piece in pieces(part, cuts)], together, strict=False):
        if not joined:
            batches.append([])
        batches[-1].append(piece)
    *earlier, last = batches
    events = [
        {**reply(*batch, reason=None, citationMetadata={"b": 2}), "usageMetadata": {"promptTokenCount": 2}}
        for batch in earlier
    ]

    chunks = streamed(*events, {**reply(*last, reason=reason, **more), "usageMetadata": usage})

    assert assembled(chunks) == read(whole)


RICH_REPLY: dict[str, Any] = {
    **reply(
        {"text": "a", "thought": True, "thoughtSignature": "sig0"},
        {"text": "b"},
        {"functionCall": {"name": "f", "args": {}, "id": "i"}},
        {"inlineData": {"data": ""}},
        logprobsResult={
            "chosenCandidates": [{"token": "a", "logProbability": -1}],
            "topCandidates": [{"candidates": [{"token": "a", "logProbability": -1}]}],
        },
    ),
    "promptFeedback": {"blockReason": "SAFETY", "blockReasonMessage": "m"},
    "usageMetadata": {"promptTokenCount": 1, "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 1}]},
}


@given(place=st.sampled_from(places(RICH_REPLY)), odd=ODD)
@settings(max_examples=examples(400))
def test_an_answer_of_any_shape_is_read_or_unreadable(place: tuple[Any, ...], odd: Any) -> None:
    body = msgspec.json.encode(with_odd(RICH_REPLY, place, odd))

    for reading in (lambda: WIRE.whole(body, call({})), lambda: WIRE.decoder(call({})).feed(body)):
        try:
            outcome: Any = reading()
        except Unreadable as error:
            outcome = str(error)

        assert outcome or outcome == []


def embedding(**body: Any) -> Call:
    return Call(operation="embedding", model="gemini-embedding-2", body={"model": "asked for", **body}, raw=None)


@pytest.mark.parametrize("texts", ["a", ["a"], ["a", "b"]])
def test_texts_are_embedded_in_one_batch(texts: str | list[str]) -> None:
    sent = WIRE.request(embedding(input=texts, dimensions=2, user="u", odd=1), stream=False)

    assert sent.path == "/models/gemini-embedding-2:batchEmbedContents"
    assert sent.dropped == ("odd",)
    assert msgspec.json.decode(sent.body) == {
        "requests": [
            {"model": "models/gemini-embedding-2", "content": {"parts": [{"text": text}]}, "outputDimensionality": 2}
            for text in texts
        ]
    }


def test_embeddings_come_back_as_the_openai_list() -> None:
    body = msgspec.json.encode({"embeddings": [{"values": [0.5, -1]}, {"values": [2, 0.25]}]})

    floats = msgspec.json.decode(WIRE.whole(body, embedding(input=["a", "b"])))
    packed = msgspec.json.decode(WIRE.whole(body, embedding(input=["a", "b"], encoding_format="base64")))

    assert floats == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.5, -1.0]},
            {"object": "embedding", "index": 1, "embedding": [2.0, 0.25]},
        ],
        "model": "gemini-embedding-2",
    }
    assert struct.unpack("<2f", base64.b64decode(packed["data"][1]["embedding"])) == (2.0, 0.25)


def test_tokens_counted_for_embeddings_are_reported() -> None:
    body = b'{"embeddings": [{"values": [1]}], "usageMetadata": {"promptTokenCount": 4}}'

    whole = msgspec.json.decode(WIRE.whole(body, embedding(input="a")))

    assert whole["usage"] == {"prompt_tokens": 4, "total_tokens": 4}


@pytest.mark.parametrize("texts", [[1, 2], [[1], [2]]])
def test_tokens_cannot_be_embedded(texts: Any) -> None:
    with pytest.raises(Untranslatable, match="tokens"):
        WIRE.request(embedding(input=texts), stream=False)


@pytest.mark.parametrize(
    "body", [{}, {"input": []}, {"input": [None]}, {"input": {}}, {"input": "a", "dimensions": "2"}]
)
def test_what_is_no_embedding_request_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as error:
        WIRE.request(embedding(**body), stream=False)

    assert error.value.param in body or error.value.param == "input"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"embeddings": [{"values": ["a"]}]}', b'{"embeddings": []}', b'{"error": {}}']
)
def test_what_is_no_embedding_is_unreadable(body: bytes) -> None:
    with pytest.raises(Unreadable):
        WIRE.whole(body, embedding(input="a"))


def test_a_number_beyond_those_of_an_embedding_is_unreadable() -> None:
    body = b'{"embeddings": [{"values": [1e300]}]}'

    with pytest.raises(Unreadable):
        WIRE.whole(body, embedding(input="a", encoding_format="base64"))


# --- a conversation that began elsewhere

LOOKED = {"functionCall": {"name": "look", "args": {}}}
SAW = {"functionResponse": {"name": "look", "response": {}}}
SKIPPED = {**LOOKED, "thoughtSignature": "skip_thought_signature_validator"}
SIGNED = {**LOOKED, "thoughtSignature": "c2lnbmVk"}


def went_out(contents: Any, model: str = "gemini-3-pro") -> Any:
    native = {"contents": contents}
    asked = Call("chat", model, {}, msgspec.json.encode(native), dialect="gemini", native=native)
    return msgspec.json.decode(WIRE.request(asked, stream=False).body)["contents"]


def test_calls_that_another_model_made_in_this_turn_are_told_to_be_unsigned() -> None:
    before = [turn("user", {"text": "Hi"}), turn("model", LOOKED), turn("user", SAW)]
    now = [turn("user", {"text": "And?"}), turn("model", {"text": "Hm."}, LOOKED, LOOKED), turn("user", SAW, SAW)]

    assert went_out([*before, *now]) == [
        *before,  # a turn that is over needs no signature
        now[0],
        turn("model", {"text": "Hm."}, SKIPPED, LOOKED),
        now[2],
    ]
    assert went_out(now, "gemini-2.5-pro") == now


@pytest.mark.parametrize(
    "contents",
    [
        [turn("user", {"text": "Hi"}), turn("model", SIGNED, LOOKED), turn("user", SAW, SAW)],
        # A step that a client keeps as it was streamed.
        [turn("user", {"text": "Hi"}), turn("model", SIGNED), turn("model", LOOKED), turn("user", SAW, SAW)],
        [turn("user", {"text": "Hi"}), turn("model", {"text": "Ho"}), turn("user", {"text": "And?"})],
        ["Hi", 7, None, {"role": "model", "parts": [7, None, {}]}, {"role": "model"}, {"parts": 7}],
        {"parts": [{"text": "Hi"}]},
        "Hi",
    ],
)
def test_contents_that_google_takes_or_refuses_as_they_are_stay_so(contents: Any) -> None:
    assert went_out(contents) == contents
