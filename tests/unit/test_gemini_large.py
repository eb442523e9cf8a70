"""What is large costs what it is large: no body of either side, however it is put together, holds a worker up."""

import gc
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from backends.upstream.base import Call
from backends.upstream.gemini import GeminiWire
from backends.upstream.wire import Unreadable
from models.completion import Completion, Usage
from models.errors import RequestError
from models.request import Request
from service.api.dialect import Asked
from service.api.gemini_generate import GEMINI_SSE

MEGABYTE = 1_000_000
LIMIT = 0.5  # seconds of the processor
Made = Callable[[int], Any]

WIRE = GeminiWire(now=lambda: 0.0)
HI: dict[str, Any] = {"role": "user", "content": "Hi"}
CALL = {"functionCall": {"name": "a"}}
GOOGLE = "google-gemini-v1"


def decoded(body: Any) -> Request:
    return read(msgspec.json.encode(body))


def read(raw: bytes) -> Request:
    return GEMINI_SSE.decode(raw, Asked("chat", "gemini-4", False))


def of_size(make: Made, size: int) -> Any:
    return make(size * 200 // len(msgspec.json.encode(make(200))))


def seconds(work: Callable[[Any], object], body: Any) -> float:
    gc.disable()  # it would count what other tests left behind
    began = time.process_time()
    work(body)
    taken = time.process_time() - began
    gc.enable()
    return taken


def costs_what_it_weighs(make: Made, work: Callable[[Any], object], readable: Callable[[Any], Any]) -> bool:
    """Whether `work` on a megabyte of what is `readable` to it is done in time, and on half of it in a third or more.
    The best of some tries counts: the machine has other things to do."""
    half, whole = (readable(of_size(make, size)) for size in (MEGABYTE // 2, MEGABYTE))
    tries = []
    for _ in range(4):
        tries.append((seconds(work, half), seconds(work, whole)))
        first, second = (min(taken) for taken in zip(*tries, strict=True))
        if second < LIMIT and (second < 3 * first or second < LIMIT / 10):
            return True
    return False


def said(*parts: Any) -> dict[str, Any]:
    return {"role": "model", "parts": list(parts)}


def called(call_id: object, name: str = "a") -> dict[str, Any]:
    return {"functionCall": {"id": str(call_id), "name": name}}


def result(**fields: Any) -> dict[str, Any]:
    return {"functionResponse": fields}


def conversation(*contents: Any) -> dict[str, Any]:
    return {"contents": list(contents)}


def declaring(names: list[str], allowed: list[str]) -> dict[str, Any]:
    return {
        "contents": "Hi",
        "tools": [{"functionDeclarations": [{"name": name} for name in names]}],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": allowed}},
    }


def answering_as(schema: dict[str, Any]) -> dict[str, Any]:
    return {"contents": "Hi", "generationConfig": {"responseSchema": schema}}


REQUESTS: dict[str, Made] = {
    "ids that the next ones would get": lambda n: conversation(
        said(*(called(f"call_{number}") for number in range(n, 2 * n)), *[CALL] * n), asked("x")
    ),
    "results of no call": lambda n: conversation(said(*[CALL] * n), asked(*[result(name="b")] * n)),
    "results in reverse": lambda n: conversation(
        said(*map(called, range(n))), asked(*(result(id=str(number), name="a") for number in reversed(range(n))))
    ),
    "results by id, then by name": lambda n: conversation(
        said(*map(called, range(n))),
        asked(*(result(id=str(number)) for number in range(n)), *[result(name="a")] * n),
    ),
    "allowed functions": lambda n: declaring([f"a{at}" for at in range(n)], ["a0", *(f"b{at}" for at in range(n))]),
    "empty texts": lambda n: conversation({"parts": [""] * n}),
    "turns": lambda n: conversation(*[said(""), ""] * n),
    "signed texts": lambda n: conversation(said(*[{"text": "a", "thoughtSignature": ""}, "b"] * n)),
    "parts that nobody knows": lambda n: conversation(said(*[{"q": 1}, "a"] * n)),
    "fields that nobody knows": lambda n: {"contents": "Hi", **{str(at): 1 for at in range(n)}},
    "schemas": lambda n: answering_as({"anyOf": [{}] * n}),
    "an order of properties": lambda n: answering_as(
        {
            "properties": {str(at): {} for at in range(n)},
            "propertyOrdering": [str(at) for at in reversed(range(n))],
        }
    ),
}


def asked(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "parts": list(parts)}


@pytest.mark.parametrize("make", REQUESTS.values(), ids=REQUESTS)
def test_a_request_is_read_in_time(make: Made) -> None:
    assert costs_what_it_weighs(make, read, msgspec.json.encode)


def signed(**fields: Any) -> dict[str, Any]:
    return {"type": "reasoning.encrypted", "format": GOOGLE, "data": "s", **fields}


def turn(**fields: Any) -> dict[str, Any]:
    return {"messages": [HI, {"role": "assistant", "content": None, **fields}]}


def tool_call(at: int) -> dict[str, Any]:
    return {"id": f"c{at}", "type": "function", "function": {"name": "a", "arguments": "{}"}}


ASKED: dict[str, Made] = {
    "messages": lambda n: {"messages": [HI, {"role": "assistant", "content": "x"}] * n},
    "calls and results": lambda n: {
        "messages": [
            HI,
            {"role": "assistant", "content": None, "tool_calls": list(map(tool_call, range(n)))},
            *({"role": "tool", "tool_call_id": f"c{at}", "content": "x"} for at in range(n)),
        ]
    },
    "signatures before their texts": lambda n: turn(
        content="x" * n,
        reasoning_details=[signed() for _ in range(n)],
        layout=[["reasoning_details", n], *[["content", 1]] * n],
    ),
    "signed calls": lambda n: turn(
        tool_calls=list(map(tool_call, range(n))),
        reasoning_details=[signed(tool_call_id=f"c{at}") for at in range(n)],
    ),
    "allowed tools": lambda n: {
        "messages": [HI],
        "tools": [{"type": "function", "function": {"name": f"a{at}"}} for at in range(n)],
        "tool_choice": {
            "type": "allowed_tools",
            "allowed_tools": {
                "mode": "auto",
                "tools": [{"type": "function", "function": {"name": f"a{at}"}} for at in range(n)],
            },
        },
    },
}


@pytest.mark.parametrize("make", ASKED.values(), ids=ASKED)
def test_a_request_is_translated_in_time(make: Made) -> None:
    def translated(call: Call) -> None:
        WIRE.request(call, stream=False)

    assert costs_what_it_weighs(make, translated, lambda body: Call("chat", "gemini-4", body, None))


ANSWERED: dict[str, Made] = {
    "texts": lambda n: [{"text": "a"}] * n,
    "thoughts": lambda n: [{"text": "a", "thought": True}] * n,
    "thoughts and texts": lambda n: [{"text": "a", "thought": True}, {"text": "b"}] * n,
    "calls": lambda n: [CALL] * n,
    "blocks and texts": lambda n: [{"executableCode": {}}, {"text": "a"}] * n,
}
LONG_CONVERSATION = Call(
    "chat", "gemini-4", {"messages": [{"role": "assistant", "tool_calls": [tool_call(0)]}] * 10_000}, None
)


def reply(parts: Any, **fields: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": parts}, "finishReason": "STOP", **fields}]}


@pytest.mark.parametrize("make", ANSWERED.values(), ids=ANSWERED)
def test_an_answer_is_read_in_time_whole_and_in_one_event(make: Made) -> None:
    def followed(body: bytes) -> None:
        WIRE.decoder(LONG_CONVERSATION).feed(body)

    def answer(parts: Any) -> bytes:
        return msgspec.json.encode(reply(parts))

    assert costs_what_it_weighs(make, lambda body: WIRE.whole(body, LONG_CONVERSATION), answer)
    # Every other part may make a chunk of its own, with the answer's name on it.
    assert costs_what_it_weighs(make, followed, lambda parts: answer(parts[: len(parts) // 8]))


@pytest.mark.parametrize(
    "events",
    [
        [{"responseId": "x" * MEGABYTE}, *[reply([{"text": "a"}], finishReason=None)] * 1000],
        [reply([], groundingMetadata="x" * MEGABYTE), *(reply([], n=n) for n in range(1000))],
        [reply([{"text": "a"}], **{f"f{n}": 1}) for n in range(30_000)],
    ],
    ids=["a long name", "a long field that others follow", "ever more fields"],
)
def test_a_stream_that_would_swell_is_not_read_on(events: list[dict[str, Any]]) -> None:
    decoder = WIRE.decoder(Call("chat", "gemini-4", {}, None))
    encoded = list(map(msgspec.json.encode, events))

    def read_on() -> int:
        return sum(len(chunk.payload) for event in encoded for chunk in decoder.feed(event))

    with pytest.raises(Unreadable, match="long names"):
        read_on()


def message(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"content": None, **fields}, "finish_reason": "stop"}]}


FOREIGN = {"type": "reasoning.text", "format": "anthropic-claude-v1", "index": 0, "text": "aaaa"}
TOLD: dict[str, Made] = {
    "texts between what is not told": lambda n: message(
        content="x" * n,
        provider_content=[{"dialect": "anthropic", "block": {}}] * n,
        layout=[["content", 1], ["provider_content", 1]] * n,
    ),
    "another maker's reasoning": lambda n: message(
        reasoning_details=[FOREIGN] * n, tool_calls=[{"id": "a", "function": {"name": "a", "arguments": "{}"}}]
    ),
    "calls": lambda n: message(tool_calls=[{"id": str(at), "function": {"name": "a"}} for at in range(n)]),
}


@pytest.mark.parametrize("make", TOLD.values(), ids=TOLD)
def test_an_answer_is_told_in_time(make: Made) -> None:
    request = decoded({"contents": "Hi"})

    def told(body: bytes) -> None:
        GEMINI_SSE.whole(Completion(body, "m", Usage(1, 1)), request)

    assert costs_what_it_weighs(make, told, msgspec.json.encode)


STREAMED: dict[str, Made] = {
    "another maker's reasoning": lambda n: [{"reasoning_details": [FOREIGN]}] * n,
    "calls without a number": lambda n: [
        {"tool_calls": [{"id": str(at), "function": {"name": "a"}}]} for at in range(n)
    ],
    "arguments in pieces": lambda n: [{"tool_calls": [{"index": 0, "function": {"arguments": " "}}]}] * n,
}


@pytest.mark.parametrize("make", STREAMED.values(), ids=STREAMED)
def test_a_stream_is_told_in_time(make: Made) -> None:
    request = decoded({"contents": "Hi"})

    def told(payloads: list[bytes]) -> None:
        encoder = GEMINI_SSE.stream(request)
        encoder.chunks(payloads)
        encoder.end(Completion(b"", "m", Usage(1, 1)))

    def chunks(deltas: Any) -> list[bytes]:
        return [msgspec.json.encode({"choices": [{"index": 0, "delta": delta}]}) for delta in deltas]

    assert costs_what_it_weighs(make, told, chunks)


def test_the_name_of_a_model_is_repeated_only_so_long() -> None:
    chunks = [{"id": "x" * 10_000, "choices": []}, *[{"choices": [{"index": 0, "delta": {"content": "a"}}]}] * 100]

    sent = GEMINI_SSE.stream(decoded({"contents": "Hi"})).chunks(list(map(msgspec.json.encode, chunks)))

    assert len(sent) < 100 * 1000


def nested(depth: int, key: str, inner: Any) -> Any:
    for _ in range(depth):
        inner = {"properties": {key: inner}}
    return inner


def test_a_schema_nested_under_long_names_takes_no_more_room_than_it_has() -> None:
    raw = msgspec.json.encode(answering_as(nested(200, "k" * 10_000, {"type": "STRING"})))

    tracemalloc.start()
    request = GEMINI_SSE.decode(raw, Asked("chat", "gemini-4", False))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert request.body["response_format"]["type"] == "json_schema"
    assert peak < 5 * len(raw)


def test_what_is_wrong_in_a_schema_nested_deeply_is_named_in_short() -> None:
    with pytest.raises(RequestError) as refused:
        decoded(answering_as(nested(200, "k" * 10_000, {"minLength": "x"})))

    assert refused.value.param is not None
    assert refused.value.param.startswith("generationConfig.responseSchema.properties.kkk")
    assert refused.value.param.endswith("kkk.minLength")
    assert len(refused.value.message) < 1000
