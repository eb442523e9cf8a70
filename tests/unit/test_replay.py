"""Replayed as a stream and put together again, a completion is what it was."""

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.completion import Completion, Usage
from models.errors import UpstreamError
from models.request import Operation
from service.caching.assembly import Assembly, usage_fields, whole
from service.caching.replay import chunks, unlinked

USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}

words = st.text(max_size=40)
tool_calls = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.text("abc123", min_size=1, max_size=6),
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": st.text("fg", min_size=1, max_size=3), "arguments": words}),
        }
    ),
    min_size=1,
    max_size=3,
)
logprobs = st.none() | st.fixed_dictionaries(
    {"content": st.lists(st.fixed_dictionaries({"token": words, "logprob": st.just(-0.5)}), min_size=1, max_size=3)}
)
messages = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": words},
    optional={
        "refusal": words,
        "reasoning_content": words,
        "tool_calls": tool_calls,
        "annotations": st.just([{"a": 1}]),
    },
)
choices = st.lists(
    st.tuples(messages, logprobs, st.sampled_from(["stop", "length", "tool_calls"])), min_size=1, max_size=3
)


def completion(said: list[tuple[dict[str, Any], Any, str]]) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "gpt-4o-2026-01-01",
        "system_fingerprint": "fp_1",
        "choices": [
            {"index": index, "message": message, "logprobs": probabilities, "finish_reason": reason}
            for index, (message, probabilities, reason) in enumerate(said)
        ],
        "usage": USAGE,
    }


def assembled(stream: list[dict[str, Any]], operation: Operation = "chat") -> dict[str, Any]:
    assembly = Assembly(operation)
    for chunk in stream:
        assembly.add(chunk)
    result: dict[str, Any] = json.loads(assembly.completion(assembly.usage or Usage()).body)
    return result


@given(said=choices)
def test_a_replayed_chat_completion_equals_the_whole_one(said: list[tuple[dict[str, Any], Any, str]]) -> None:
    told = completion(said)

    again = assembled(list(chunks(told, "chat", include_usage=True)))

    assert again == told


runs = st.lists(
    st.one_of(
        st.tuples(st.just("content"), st.text(min_size=1, max_size=20)),
        st.tuples(st.just("reasoning"), st.text(min_size=1, max_size=20)),
        st.tuples(st.sampled_from(["tool_calls", "provider_content"]), st.just("")),
    ),
    max_size=6,
)


@given(said=runs)
def test_the_order_in_which_an_answer_arrived_survives_a_replay(said: list[tuple[str, str]]) -> None:
    deltas: list[dict[str, Any]] = [{"role": "assistant"}]
    for number, (kind, text) in enumerate(said):
        if kind == "content":
            deltas.append({"content": text})
        elif kind == "reasoning":
            detail = {"type": "reasoning.text", "index": number, "text": text, "signature": "s"}
            deltas.append({"reasoning_content": text, "reasoning_details": [detail]})
        elif kind == "tool_calls":
            call = {"index": number, "id": f"c{number}", "function": {"name": "f", "arguments": "{}"}}
            deltas.append({"tool_calls": [call]})
        else:
            deltas.append({"provider_content": [{"dialect": "anthropic", "block": {"type": f"x{number}"}}]})
    frame = {"id": "chatcmpl-1", "object": "chat.completion.chunk"}
    live = [{**frame, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]

    whole_answer = assembled([*live, {**frame, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}])
    again = list(chunks(whole_answer, "chat", include_usage=True))

    assert assembled(again) == whole_answer
    assert _order(again) == _order(live)


def _order(stream: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The kinds of blocks in the order they came, with the text of each."""
    order: list[tuple[str, str]] = []
    for chunk in stream:
        for name, value in chunk["choices"][0]["delta"].items() if chunk["choices"] else ():
            if not value or name in ("role", "reasoning_content"):
                continue
            text = value if isinstance(value, str) else ""
            if order and order[-1][0] == name and name == "content":
                order[-1] = (name, order[-1][1] + text)
            else:
                order.append((name, text))
    return order


def test_who_is_told_anothers_answer_is_not_told_where_it_is_kept() -> None:
    call = {"id": "c", "item_id": "fc_1", "function": {"name": "f", "arguments": "{}"}}
    message = {
        "content": "Hi",
        "tool_calls": [call],
        "content_items": [{"offset": 0, "id": "msg_1"}],
        "reasoning_details": [{"index": 0, "id": "rs_1", "data": "sealed"}],
    }
    body = msgspec.json.encode({"id": "resp_1", "choices": [{"index": 0, "message": message}]})
    told = Completion(body, "m", Usage())

    apart = msgspec.json.decode(unlinked(told).body)

    assert apart["id"].startswith("chatcmpl-kg-")
    assert apart["choices"][0]["message"] == {
        "content": "Hi",
        "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}],
        "content_items": [{"offset": 0}],
        "reasoning_details": [{"index": 0, "data": "sealed"}],
    }


def test_an_answer_that_is_kept_nowhere_is_told_as_it_is() -> None:
    told = Completion(b'{"id": "chatcmpl-1", "choices": []}', "m", Usage())

    assert unlinked(told) is told


def test_a_layout_that_does_not_add_up_is_ignored() -> None:
    message = {"role": "assistant", "content": "Hello", "provider_content": [{"block": 1}]}
    told = completion([({**message, "layout": [["provider_content", 1], ["content", 4]]}, None, "stop")])

    stream = list(chunks(told, "chat", include_usage=False))

    assert _order(stream) == [("content", "Hello"), ("provider_content", "")]


@given(text=words)
def test_a_replayed_text_completion_equals_the_whole_one(text: str) -> None:
    told = {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}],
        "usage": USAGE,
    }

    again = assembled(list(chunks(told, "completion", include_usage=True)), "completion")

    assert again == told


def test_the_role_comes_first_and_the_finish_reason_last() -> None:
    told = completion([({"role": "assistant", "content": "Hello there, you."}, None, "stop")])

    stream = list(chunks(told, "chat", include_usage=False))

    assert stream[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["delta"].get("content") for chunk in stream[1:-1]] == ["Hello", " there,", " you."]
    assert stream[-1]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert all("usage" not in chunk for chunk in stream)
    assert {chunk["object"] for chunk in stream} == {"chat.completion.chunk"}


def test_usage_comes_in_a_chunk_of_its_own_when_it_is_asked_for() -> None:
    told = completion([({"role": "assistant", "content": "Hi"}, None, "stop")])

    *content, last = chunks(told, "chat", include_usage=True)

    assert last["choices"] == []
    assert last["usage"] == USAGE
    assert all(chunk["usage"] is None for chunk in content)


def test_a_run_without_spaces_is_cut_into_pieces() -> None:
    told = completion([({"role": "assistant", "content": "啊" * 100}, None, "stop")])

    stream = list(chunks(told, "chat", include_usage=False))

    assert len(stream) > 4


def test_deltas_of_tool_calls_add_up_to_the_calls() -> None:
    deltas: list[dict[str, Any]] = [
        {"role": "assistant", "content": None},
        {"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"x":'}}]},
        {"tool_calls": [{"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
    ]
    stream = [{"id": "1", "model": "m", "choices": [{"index": 0, "delta": delta}]} for delta in deltas]

    message = assembled(stream)["choices"][0]["message"]

    assert message == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    }


def test_the_whole_reply_tells_its_usage_and_finish_reasons() -> None:
    body = json.dumps(completion([({"role": "assistant", "content": "Hi"}, None, "length")])).encode()

    read, counted = whole(body, "chat")

    assert counted
    assert read.usage == Usage(3, 5)
    assert read.finish_reasons == ("length",)
    assert read.body == body


def test_an_estimate_says_that_it_is_one() -> None:
    assert usage_fields(Usage(1, 2, estimated=True)) == {
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "total_tokens": 3,
        "estimated": True,
    }


def test_the_frame_is_filled_by_the_chunks_that_have_it() -> None:
    stream: list[dict[str, Any]] = [
        {"id": "", "model": "", "choices": [], "prompt_filter_results": []},
        {"id": "c1", "model": "gpt-4o", "choices": [{"index": 0, "delta": {"content": "Hi"}}]},
    ]

    told = assembled(stream)

    assert (told["id"], told["model"], told["prompt_filter_results"]) == ("c1", "gpt-4o", [])


def test_tool_calls_without_an_index_are_told_apart_by_their_ids() -> None:
    deltas = [
        {"tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "{}"}}]},
        {"tool_calls": [{"id": "c2", "function": {"name": "g", "arguments": '{"a"'}}]},
        {"tool_calls": [{"function": {"arguments": ":1}"}}]},
    ]

    calls = assembled([{"choices": [{"index": 0, "delta": d}]} for d in deltas])["choices"][0]["message"]["tool_calls"]

    assert [(call["id"], call["function"]["arguments"]) for call in calls] == [("c1", "{}"), ("c2", '{"a":1}')]


def test_a_stray_text_in_a_chat_chunk_is_passed_over() -> None:
    told = assembled([{"choices": [{"index": 0, "text": "?", "delta": {"content": "Hi"}}]}])

    assert told["choices"][0]["message"]["content"] == "Hi"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"content": "Hi"}, "stop"),
        ({"content": None, "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]}, "tool_calls"),
        ({"content": None, "function_call": {"name": "f", "arguments": "{}"}}, "tool_calls"),
        ({"content": None, "refusal": "I cannot."}, "content_filter"),
    ],
)
def test_why_an_answer_ended_is_read_off_what_it_holds(message: dict[str, Any], reason: str) -> None:
    body = msgspec.json.encode({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
    assembly = Assembly("chat")
    assembly.add({"choices": [{"index": 0, "delta": message, "finish_reason": "stop"}]})

    assert whole(body, "chat")[0].finish_reasons == (reason,)
    assert assembly.completion(Usage()).finish_reasons == (reason,)


def test_a_text_completion_without_its_object_is_replayed_as_one() -> None:
    told = {"id": "c", "choices": [{"index": 0, "text": "Hello you", "finish_reason": "stop"}]}

    stream = list(chunks(told, "completion", include_usage=False))

    assert [chunk["choices"][0].get("text") for chunk in stream] == ["Hello", " you", ""]


@pytest.mark.parametrize(
    "deltas",
    [
        [{"audio": {"id": "a", "transcript": "Hel"}}, {"audio": {"transcript": "lo"}}],
        [{"content": ["a"]}, {"content": "b"}],
        [{"score": 1}, {"score": 2}],
    ],
)
def test_pieces_that_cannot_be_put_together_are_noticed(deltas: list[dict[str, Any]]) -> None:
    assembly = Assembly("chat")

    for delta in deltas:
        assembly.add({"choices": [{"index": 0, "delta": delta}]})

    assert not assembly.adds_up


def test_pieces_of_text_lists_and_calls_add_up() -> None:
    assembly = Assembly("chat")

    for delta in (
        {"role": "assistant", "content": "", "refusal": None},
        {"role": "assistant", "content": "Hel", "annotations": [1]},
        {"content": "lo", "annotations": [2], "tool_calls": [{"index": 0, "id": "c", "function": {"name": "f"}}]},
        {"content": None, "tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
    ):
        assembly.add({"choices": [{"index": 0, "delta": delta}]})

    assert assembly.adds_up


def chat_part(**part: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, **part}]}


@pytest.mark.parametrize(
    ("chunk", "operation"),
    [
        (chat_part(delta={"content": "y" * 256}), "chat"),
        (chat_part(delta={"reasoning_details": [{"index": 0, "text": "y" * 256}]}), "chat"),
        (chat_part(delta={"tool_calls": [{"index": 0, "function": {"arguments": "y" * 256}}]}), "chat"),
        (chat_part(delta={"provider_content": [1, 2, 3, 4]}), "chat"),
        (chat_part(delta={}, logprobs={"content": [1, 2, 3, 4]}), "chat"),
        (chat_part(text="y" * 256), "completion"),
    ],
    ids=["text", "reasoning", "arguments", "blocks", "logprobs", "completion"],
)
def test_a_long_stream_costs_no_more_a_chunk_than_a_short_one(chunk: dict[str, Any], operation: Operation) -> None:
    """60,000 chunks. Adding each to what there is takes 0.1 s, and copying all of it with each chunk at least ten."""
    assembly = Assembly(operation)

    began = time.process_time()
    for _ in range(60_000):
        assembly.add(chunk)
    completion = assembly.completion(Usage())
    seconds = time.process_time() - began

    assert len(completion.body) > 60_000 * 4
    assert seconds < 3


def test_details_that_each_have_an_index_of_their_own_are_found_at_once() -> None:
    assembly = Assembly("chat")

    began = time.process_time()
    for index in range(30_000):
        assembly.add(chat_part(delta={"reasoning_details": [{"index": index, "text": "y"}]}))

    assert time.process_time() - began < 4


def test_a_chunk_is_left_as_it_was() -> None:
    chunk = chat_part(
        delta={
            "content": "y",
            "provider_content": [{"dialect": "x"}],
            "reasoning_details": [{"index": 0, "text": "y"}],
            "tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "y"}}],
        },
        logprobs={"content": [1]},
    )
    before = json.dumps(chunk)

    told = assembled([chunk, chunk])

    assert json.dumps(chunk) == before
    message = told["choices"][0]["message"]
    assert (message["content"], message["provider_content"]) == ("yy", [{"dialect": "x"}] * 2)
    assert message["tool_calls"][0]["function"]["arguments"] == "yy"
    assert told["choices"][0]["logprobs"] == {"content": [1, 1]}


def test_an_empty_list_takes_nothing_away() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    deltas = [{"tool_calls": [{"index": 0, **call}], "annotations": [1]}, {"tool_calls": [], "annotations": []}]

    message = assembled([chat_part(delta=delta) for delta in deltas])["choices"][0]["message"]

    assert (message["tool_calls"], message["annotations"]) == ([call], [1])


@pytest.mark.parametrize("index", ["1", [0], {"a": 1}])
def test_choices_that_cannot_be_put_in_order_are_no_chunk_of_this_api(index: Any) -> None:
    assembly = Assembly("chat")
    assembly.add(chat_part(delta={"content": "Hi"}))

    with pytest.raises(UpstreamError):
        assembly.add({"choices": [{"index": index, "delta": {"content": "Hi"}}]})


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices": [{"message": {"tool_calls": [1]}, "finish_reason": "stop"}]}',
        b'{"choices": [{"text": 5, "finish_reason": "stop"}]}',
        b'{"choices": [{"message": 5}]}',
        b'{"choices": [5]}',
    ],
)
def test_a_reply_that_could_not_be_replayed_is_none_of_this_api(body: bytes) -> None:
    with pytest.raises(UpstreamError):
        whole(body, "chat")
