"""Streams as bytes on the wire: as they come from upstream, as they are replayed, and as they break."""

import json
import time
from itertools import pairwise
from typing import Any

import httpx
import pytest

from tests.support.gateway import Gateway, Json, Mock, events_of, eventually, question, streamed_text, text_of

QUESTION = "How tall is Mount Everest?"
USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}


def chunks_of(answer: httpx.Response) -> list[Json]:
    *events, last = events_of(answer.text)
    assert last == "[DONE]"
    return [json.loads(event) for event in events]


def test_chunks_pass_as_they_arrive(gateway: Gateway, mock: Mock, model: str) -> None:
    mock.behaves(chunk_delay=80, tokens=12)

    with gateway.client.stream(
        "POST", "/v1/chat/completions", json=question(QUESTION, model=model, stream=True)
    ) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        while_open = mock.report()["open_streams"]
        rest = list(lines)

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert json.loads(first.removeprefix("data: "))["choices"][0]["delta"]["role"] == "assistant"
    assert while_open == 1
    assert [line for line in rest if line][-1] == "data: [DONE]"


def test_the_gateway_asks_for_usage_and_strips_it_for_who_did_not(gateway: Gateway, mock: Mock, model: str) -> None:
    missed = chunks_of(gateway.ask(QUESTION, model=model, stream=True))
    asked_upstream = mock.last_body()
    replayed = chunks_of(gateway.ask(QUESTION, model=model, stream=True))

    assert asked_upstream["stream_options"] == {"include_usage": True}
    for chunks in (missed, replayed):
        assert all(chunk["choices"] for chunk in chunks)
        assert not any(chunk.get("usage") for chunk in chunks)


def test_who_asks_for_usage_gets_one_chunk_of_it_at_the_end(gateway: Gateway, model: str) -> None:
    missed = chunks_of(gateway.ask(QUESTION, model=model, stream=True, **USAGE))
    replayed = chunks_of(gateway.ask(QUESTION, model=model, stream=True, **USAGE))

    assert [bool(chunk.get("usage")) for chunk in missed] == [False] * (len(missed) - 1) + [True]
    assert missed[-1]["choices"] == replayed[-1]["choices"] == []
    assert missed[-1]["usage"] == replayed[-1]["usage"]


def test_usage_an_upstream_does_not_report_is_counted(gateway: Gateway) -> None:
    *_, last = chunks_of(gateway.ask(QUESTION, model="fault:no_usage/counted", stream=True, **USAGE))

    assert last["choices"] == []
    assert last["usage"]["prompt_tokens"] > 0
    assert last["usage"]["completion_tokens"] > 0


def test_a_replay_has_the_text_of_the_whole_in_small_pieces(gateway: Gateway, model: str) -> None:
    whole = gateway.ask(QUESTION, model=model)

    replayed = gateway.ask(QUESTION, model=model, stream=True)

    chunks = chunks_of(replayed)
    pieces = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks]
    assert replayed.headers["x-keepgate-cache"] == "exact"
    assert "".join(pieces) == text_of(whole)
    assert max(map(len, pieces)) < 40
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk["id"] for chunk in chunks} == {whole.json()["id"]}


def test_a_streamed_miss_is_served_whole_afterwards(gateway: Gateway, model: str) -> None:
    streamed = gateway.ask(QUESTION, model=model, stream=True)

    whole = gateway.ask(QUESTION, model=model)

    assert whole.headers["x-keepgate-cache"] == "exact"
    assert text_of(whole) == streamed_text(streamed.text)
    assert whole.json()["object"] == "chat.completion"
    assert whole.json()["choices"][0]["finish_reason"] == "stop"
    assert whole.json()["usage"]["total_tokens"] > 0


def test_a_paced_replay_keeps_its_pace(gateway: Gateway, mock: Mock, model: str) -> None:
    mock.behaves(tokens=20)
    gateway.ask(QUESTION, model=model, endpoint="paced")
    with gateway.client.stream(
        "POST", "/e/paced/v1/chat/completions", json=question(QUESTION, model=model, stream=True)
    ) as answer:
        arrived = [time.monotonic() for line in answer.iter_lines() if line.startswith("data: {")]

    # 50 a second, and never ahead of the clock by more than one chunk.
    assert len(arrived) >= 20
    assert arrived[-1] - arrived[0] >= (len(arrived) - 2) / 50
    assert max(b - a for a, b in pairwise(arrived)) < 1.0


def test_a_client_that_leaves_midway_cancels_and_leaves_nothing(gateway: Gateway, mock: Mock, model: str) -> None:
    mock.behaves(chunk_delay=50)
    with (
        httpx.Client(base_url=gateway.url) as leaving,
        leaving.stream("POST", "/v1/chat/completions", json=question(QUESTION, model=model, stream=True)) as answer,
    ):
        next(answer.iter_lines())

    eventually(lambda: mock.cancelled() == 1)

    mock.reset()
    assert gateway.ask(QUESTION, model=model).headers["x-keepgate-cache"] == "miss"


def test_a_stream_that_never_ends_ends_with_its_client(gateway: Gateway, mock: Mock) -> None:
    body = question(QUESTION, model="fault:endless", stream=True)
    with (
        httpx.Client(base_url=gateway.url) as leaving,
        leaving.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        lines = answer.iter_lines()
        seen = [next(lines) for _ in range(400)]

    assert len(seen) == 400
    eventually(lambda: mock.report()["open_streams"] == 0)
    eventually(lambda: gateway.metric("keepgate_inflight") == 0)


@pytest.mark.parametrize("fault", ["cut", "truncated", "malformed", "error_event"])
def test_a_stream_that_breaks_ends_with_an_error_event_and_is_not_kept(
    gateway: Gateway, mock: Mock, model: str, fault: str
) -> None:
    mock.behaves(fault=fault, fault_times=1)

    answer = gateway.ask(QUESTION, model=model, stream=True)

    *chunks, last = events_of(answer.text)
    error = json.loads(last)["error"]
    assert answer.status_code == 200
    assert json.loads(chunks[0])["choices"][0]["delta"]["role"] == "assistant"
    assert error["code"] == "upstream_error"
    assert error["request_id"] == answer.headers["x-keepgate-request-id"]
    assert "[DONE]" not in answer.text
    assert gateway.ask(QUESTION, model=model).headers["x-keepgate-cache"] == "miss"


def test_an_upstream_that_answers_a_stream_with_one_json_is_streamed_all_the_same(gateway: Gateway) -> None:
    answer = gateway.ask(QUESTION, model="fault:whole/as-stream", stream=True)

    chunks = chunks_of(answer)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert QUESTION in streamed_text(answer.text)


def test_a_forced_tool_call_replays_streamed_with_its_arguments(gateway: Gateway, mock: Mock, model: str) -> None:
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
    asked: dict[str, Any] = {"tools": tools, "tool_choice": "required", "endpoint": "keeps-all"}
    whole = gateway.ask(QUESTION, model=model, **asked)

    replayed = gateway.ask(QUESTION, model=model, stream=True, **asked)

    call = whole.json()["choices"][0]["message"]["tool_calls"][0]
    deltas = [
        chunk["choices"][0]["delta"]["tool_calls"][0]
        for chunk in chunks_of(replayed)
        if chunk["choices"][0]["delta"].get("tool_calls")
    ]
    assert replayed.headers["x-keepgate-cache"] == "exact"
    assert deltas[0]["id"] == call["id"]
    assert deltas[0]["function"]["name"] == "look_up"
    assert "".join(delta["function"].get("arguments", "") for delta in deltas) == call["function"]["arguments"]
    assert mock.calls() == 1
