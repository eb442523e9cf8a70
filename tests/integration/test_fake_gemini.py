"""The fake of the Gemini API, driven by Google's SDK, whose own types refuse fields that they do not know."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from google import genai
from google.genai import types

from tests.support.fake_gemini import Gemini
from tests.support.fake_provider import KEY, Fake, running
from tests.support.sdk_shapes import misfit

Json = dict[str, Any]

FLASH, PRO = "gemini-2.5-flash", "gemini-3.1-pro-preview"
CITY = {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}, "required": ["city"]}
WEATHER = {"name": "weather", "parameters": CITY}
TIME = {"name": "time", "parametersJsonSchema": {"type": "object", "properties": {}}}
TOOLS = {"tools": [{"functionDeclarations": [WEATHER, TIME]}]}
THOUGHTS = {"generationConfig": {"thinkingConfig": {"includeThoughts": True, "thinkingBudget": 100}}}


@pytest.fixture(scope="module")
def shared() -> Iterator[Fake]:
    with running(Gemini()) as fake:
        yield fake


@pytest.fixture
def fake(shared: Fake) -> Fake:
    shared.reset()
    return shared


@pytest.fixture
def client(fake: Fake) -> Iterator[genai.Client]:
    client = genai.Client(api_key=KEY, http_options=types.HttpOptions(base_url=fake.url))
    yield client
    client.close()


def posted(fake: Fake, method: str, body: Json, *, model: str = FLASH, **headers: str) -> httpx.Response:
    return httpx.post(f"{fake.base_url}/models/{model}:{method}", json=body, headers={"x-goog-api-key": KEY, **headers})


def asked(text: str, **more: Any) -> Json:
    return {"contents": [{"role": "user", "parts": [{"text": text}]}], **more}


def generated(fake: Fake, body: Json, *, model: str = FLASH) -> Json:
    """The response, the same whole, as events and as an array."""
    answer = posted(fake, "generateContent", body, model=model)
    assert answer.status_code == 200, answer.text
    whole: Json = answer.json()
    events = posted(fake, "streamGenerateContent?alt=sse", body, model=model).text
    chunks = [json.loads(part.removeprefix("data: ")) for part in events.strip().split("\r\n\r\n")]
    assert posted(fake, "streamGenerateContent", body, model=model).json() == chunks
    for response in (whole, *chunks):
        _check_shape(response)
        assert response["usageMetadata"] == whole["usageMetadata"]
    assert _assembled(chunks) == {candidate["index"]: _flat(candidate) for candidate in whole.get("candidates", ())}
    assert chunks[0].get("promptFeedback") == whole.get("promptFeedback")
    return whole


def _check_shape(response: Json) -> None:
    named = json.loads(json.dumps(response))
    for candidate in named.get("candidates", ()):
        # The one field that the SDK renames.
        if "citationMetadata" in candidate:
            sources = candidate["citationMetadata"].pop("citationSources")
            candidate["citationMetadata"]["citations"] = sources
    assert misfit(named, types.GenerateContentResponse) is None


def _assembled(chunks: list[Json]) -> dict[int, Json]:
    whole: dict[int, Json] = {}
    for chunk in chunks:
        for candidate in chunk.get("candidates", ()):
            found = whole.setdefault(candidate["index"], {"thoughts": "", "text": "", "signature": None, "calls": []})
            for name, value in _flat(candidate).items():
                found[name] = value if found.get(name) is None else found[name] + value if value else found[name]
    return whole


def _flat(candidate: Json) -> Json:
    parts = candidate.get("content", {}).get("parts", [])
    signatures = [part["thoughtSignature"] for part in parts if "thoughtSignature" in part]
    return {
        "thoughts": "".join(part.get("text", "") for part in parts if part.get("thought")),
        "text": "".join(part.get("text", "") for part in parts if not part.get("thought")),
        "signature": signatures[0] if signatures else None,
        "calls": [part["functionCall"] for part in parts if "functionCall" in part],
        **{name: value for name, value in candidate.items() if name not in {"content", "index"}},
    }


@pytest.mark.parametrize(
    ("text", "more", "reason"),
    [
        ("hello", {}, "STOP"),
        ("hello #long #cached", {}, "STOP"),
        ("hello", THOUGHTS, "STOP"),
        ("hello", {"generationConfig": {"candidateCount": 2}}, "STOP"),
        ("hello", {"generationConfig": {"responseLogprobs": True, "logprobs": 2}}, "STOP"),
        ("hello #tool", TOOLS, "STOP"),
        ("hello #tools #say", TOOLS | THOUGHTS, "STOP"),
        ("hello #empty", TOOLS, "STOP"),
        ('#call weather {"city": "Oslo"}', TOOLS, "STOP"),
        ("hello #search", {"tools": [{"googleSearch": {}}]}, "STOP"),
        ("hello #cite", {}, "STOP"),
        ("one two three four", {"generationConfig": {"maxOutputTokens": 3}}, "MAX_TOKENS"),
        ("one STOP two", {"generationConfig": {"stopSequences": ["STOP"]}}, "STOP"),
        ("hello #refuse", {}, "SAFETY"),
        ("hello #filter", {}, "PROHIBITED_CONTENT"),
    ],
)
@pytest.mark.parametrize("model", [FLASH, PRO])
def test_generates_the_same_whole_as_events_and_as_an_array(
    fake: Fake, text: str, more: Json, reason: str, model: str
) -> None:
    response = generated(fake, asked(text, **more), model=model)

    assert {candidate["finishReason"] for candidate in response["candidates"]} == {reason}


def test_a_blocked_prompt_has_feedback_and_no_candidates(fake: Fake) -> None:
    response = generated(fake, asked("hello #block"))

    assert response["promptFeedback"]["blockReason"] == "SAFETY"
    assert "candidates" not in response


def test_says_what_was_attached(fake: Fake) -> None:
    image = {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(b"PNG01234").decode()}}
    file = {"fileData": {"mimeType": "application/pdf", "fileUri": "https://example.com/a.pdf"}}

    response = generated(fake, {"contents": [{"role": "user", "parts": [image, file, {"text": "What?"}]}]})

    said = "[image/png, 8 bytes]\n[file at https://example.com/a.pdf]\nYou said: What?"
    assert response["candidates"][0]["content"]["parts"][0]["text"] == said


@pytest.mark.parametrize("field", ["responseSchema", "responseJsonSchema"])
def test_gives_an_instance_of_the_schema(fake: Fake, field: str) -> None:
    config = {"responseMimeType": "application/json", field: CITY}

    response = generated(fake, asked("Oslo", generationConfig=config))

    assert json.loads(response["candidates"][0]["content"]["parts"][0]["text"]) == {"city": "Oslo"}


def test_the_sdk_goes_through_a_loop_of_calls_and_keeps_the_signatures(fake: Fake, client: genai.Client) -> None:
    def weather(city: str) -> str:
        """The weather in a city."""
        return f"sunny in {city}"

    config = types.GenerateContentConfig(tools=[weather])
    response = client.models.generate_content(model=PRO, contents="Oslo #tool", config=config)

    assert response.text == 'The tools said: {"result":"sunny in Oslo #tool"}'
    assert "thoughtSignature" in fake.calls[1].body["contents"][1]["parts"][0]


def test_the_sdk_streams_counts_embeds_and_lists(fake: Fake, client: genai.Client) -> None:
    text = "".join(
        chunk.text or "" for chunk in client.models.generate_content_stream(model=FLASH, contents="hi there")
    )
    counted = client.models.count_tokens(model=FLASH, contents="one two three")
    embedded = client.models.embed_content(model="gemini-embedding-001", contents=["a b", "c"])
    models = list(client.models.list())
    one = posted(fake, "embedContent", {"model": "models/m", "content": {"parts": [{"text": "a b"}]}}, model="m").json()

    assert text == "You said: hi there"
    assert counted.total_tokens is not None
    assert counted.total_tokens >= 3
    assert embedded.embeddings is not None
    assert [len(item.values or []) for item in embedded.embeddings] == [64, 64]
    assert embedded.embeddings[0].values == pytest.approx(one["embedding"]["values"])
    assert [model.name for model in models] == [f"models/{FLASH}", f"models/{PRO}"]


def turns(*parts: Json) -> Json:
    roles = ["user", "model"] * len(parts)
    return {"contents": [{"role": role, "parts": [part]} for role, part in zip(roles, parts, strict=False)]}


TEXT: Json = {"text": "hi"}
CALL: Json = {"functionCall": {"name": "weather", "args": {}}}
RESULT: Json = {"functionResponse": {"name": "weather", "response": {"result": "x"}}}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({**asked("hi"), "frobnicate": 1}, 'Unknown name "frobnicate": Cannot find field.'),
        ({**asked("hi"), "generationConfig": {"maxTokens": 1}}, "Unknown name \"maxTokens\" at 'generation_config'"),
        ({**asked("hi"), "generationConfig": {"temperature": "x"}}, "Invalid value at 'generation_config.temperature'"),
        ({**asked("hi"), "generationConfig": {"temperature": 3}}, "temperature must be in the range [0, 2]"),
        ({**asked("hi"), "generationConfig": {"responseSchema": CITY}}, "only allowed when response_mime_type"),
        ({**asked("hi"), "generationConfig": {"logprobs": 1}}, "only allowed when response_logprobs"),
        ({"contents": []}, "contents is not specified"),
        ({}, "contents is not specified"),
        ({"contents": [{"role": "assistant", "parts": [TEXT]}]}, "Please use a valid role: user, model."),
        ({"contents": [{"role": "user", "parts": []}]}, "must not be empty"),
        ({"contents": [{"role": "user", "parts": [{}]}]}, "required oneof field 'data'"),
        ({"contents": [{"role": "model", "parts": [TEXT]}]}, "begin with a user turn"),
        (turns(TEXT, TEXT, RESULT), "comes immediately after a function call turn"),
        (turns(TEXT, CALL, TEXT), "number of function response parts is equal"),
        (turns(TEXT, CALL, {"functionResponse": {"name": "time", "response": {}}}), "does not match function call"),
        (turns({**TEXT, "thoughtSignature": "AAAA"}), "Corrupted thought signature"),
        ({**asked("hi"), "tools": [{"functionDeclarations": [{"name": "a b"}]}]}, "Invalid function name"),
    ],
)
def test_refuses_what_the_vendor_refuses_and_names_it(fake: Fake, body: Json, message: str) -> None:
    answer = posted(fake, "generateContent", body)

    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["status"]) == (400, "INVALID_ARGUMENT")
    assert message in error["message"]


@pytest.mark.parametrize(
    ("model", "signature", "status"),
    [(FLASH, None, 200), (PRO, None, 400), (PRO, "skip_thought_signature_validator", 200)],
)
def test_newer_models_want_their_signatures_back(fake: Fake, model: str, signature: str | None, status: int) -> None:
    call = CALL if signature is None else {**CALL, "thoughtSignature": signature}

    answer = posted(fake, "generateContent", turns(TEXT, call, RESULT), model=model)

    assert answer.status_code == status
    assert ("missing a thought_signature" in answer.text) == (status == 400)


@pytest.mark.parametrize(
    ("headers", "model", "status", "word"),
    [
        ({"x-goog-api-key": "kg-client"}, FLASH, 400, "INVALID_ARGUMENT"),
        ({"x-goog-api-key": ""}, FLASH, 403, "PERMISSION_DENIED"),
        ({}, "unknown-1", 404, "NOT_FOUND"),
    ],
)
def test_wants_its_key_and_a_model_that_it_has(
    fake: Fake, headers: dict[str, str], model: str, status: int, word: str
) -> None:
    answer = posted(fake, "generateContent", asked("hi"), model=model, **headers)

    assert answer.status_code == status
    assert answer.json()["error"]["status"] == word


def test_a_stream_breaks_off_in_the_words_of_the_vendor(fake: Fake) -> None:
    fake.script("error_midway", "error_midway", "error_first")

    events = posted(fake, "streamGenerateContent?alt=sse", asked("hi #long")).text
    array = posted(fake, "streamGenerateContent", asked("hi #long")).json()
    first = posted(fake, "generateContent", asked("hi"))

    assert json.loads(events.strip().split("\r\n\r\n")[-1].removeprefix("data: "))["error"]["status"] == "UNAVAILABLE"
    assert array[-1]["error"]["status"] == "UNAVAILABLE"
    assert first.status_code == 503
