"""Values back in the place of placeholders: a stream in pieces, against the whole answer."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise, zip_longest
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrails.placeholders import Placeholders
from guardrails.restore import Restorer, restored_whole
from tests.support.examples import examples

Json = dict[str, Any]

KEY = Placeholders(b"the key of this group of workers")
ISSUED: dict[str, str] = {}
MAIL = KEY.issue("email", "ann@example.com", ISSUED)
NAME = KEY.issue("person", 'Ann "A." \\ Ölsen\n', ISSUED)
LOOKS = KEY.issue("email", "<EMAIL_0123ab>", ISSUED)  # a text that looked like a placeholder
OTHER = KEY.issue("email", "bob@example.com", {})


def frame(*choices: Json, **others: Any) -> Json:
    return {"id": "1", "object": "chat.completion.chunk", "model": "m", "choices": list(choices), **others}


def delta(said: Json, *, index: int = 0, finish: str | None = None) -> Json:
    return frame({"index": index, "delta": said, "logprobs": None, "finish_reason": finish})


def streamed(chunks: Iterable[Json], issued: Mapping[str, str] = ISSUED, *, json_content: bool = False) -> list[Json]:
    restorer = Restorer(issued, json_content=json_content)
    out = [payload for one in chunks for payload in restorer.feed(msgspec.json.encode(one))]
    return [msgspec.json.decode(payload) for payload in (*out, *restorer.end())]


def said(out: Iterable[Json], name: str = "content", index: int = 0) -> str:
    parts = [c["delta"].get(name) or "" for one in out for c in one["choices"] if c["index"] == index]
    return "".join(parts)


def written(out: Iterable[Json], index: int, kind: str = "function", field: str = "arguments") -> str:
    calls = [call for one in out for c in one["choices"] for call in c["delta"].get("tool_calls", ())]
    return "".join(call.get(kind, {}).get(field, "") for call in calls if call["index"] == index)


def answer(**message: Any) -> Json:
    return {"object": "chat.completion", "choices": [{"index": 0, "message": {"role": "assistant", **message}}]}


def restored(**message: Any) -> Json:
    result: Json = restored_whole(answer(**message), ISSUED)["choices"][0]["message"]
    return result


END = delta({}, finish="stop")


# --- whole


def test_every_text_of_a_whole_answer_is_restored() -> None:
    message = restored(content=f"to {MAIL}", refusal=f"not {MAIL}", reasoning_content=f"{NAME}?", reasoning=MAIL)

    assert message == {
        "role": "assistant",
        "content": "to ann@example.com",
        "refusal": "not ann@example.com",
        "reasoning_content": 'Ann "A." \\ Ölsen\n?',
        "reasoning": "ann@example.com",
    }


def test_in_arguments_a_value_is_written_as_json_needs_it() -> None:
    arguments = f'{{"to": "{NAME}", "n": 1.0, "as": "\\u003c{MAIL[1:-1]}\\u003e", "e": "\\u00e9"}}'
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    custom = {"id": "b", "type": "custom", "custom": {"name": "g", "input": f"say {NAME}"}}

    message = restored(content=None, tool_calls=[call, custom], function_call={"name": "h", "arguments": f'["{NAME}"]'})

    back = message["tool_calls"][0]["function"]["arguments"]
    assert json.loads(back) == {"to": ISSUED[NAME], "n": 1.0, "as": "ann@example.com", "e": "é"}
    assert '"n": 1.0' in back
    assert '"\\u00e9"' in back
    assert message["tool_calls"][1]["custom"]["input"] == f"say {ISSUED[NAME]}"
    assert json.loads(message["function_call"]["arguments"]) == [ISSUED[NAME]]


def test_content_that_is_json_stays_json() -> None:
    body = restored_whole(answer(content=f'{{"name": "{NAME}"}}'), ISSUED, json_content=True)

    assert json.loads(body["choices"][0]["message"]["content"]) == {"name": ISSUED[NAME]}


def test_only_what_was_issued_is_restored() -> None:
    body = answer(content=f"{OTHER} <EMAIL_0123ab> {LOOKS}", tool_calls=[{"function": {"arguments": f'"{OTHER}"'}}])

    result = restored_whole(body, ISSUED)["choices"][0]["message"]

    assert result["content"] == f"{OTHER} <EMAIL_0123ab> <EMAIL_0123ab>"
    assert result["tool_calls"] == body["choices"][0]["message"]["tool_calls"]
    assert restored_whole(body, {}) is body
    assert body["choices"][0]["message"]["content"].endswith(LOOKS)  # what is stored keeps its placeholders


def test_signed_reasoning_is_not_touched() -> None:
    details = [{"type": "reasoning.text", "index": 0, "text": f"Ask {MAIL}", "signature": "c2ln"}]

    message = restored(content=MAIL, reasoning_content=f"Ask {MAIL}", reasoning_details=details)

    assert message["reasoning_details"] == details
    assert message["reasoning_content"] == "Ask ann@example.com"


def test_places_in_a_text_move_with_it() -> None:
    layout = [["content", len(MAIL)], ["tool_calls", 1], ["content", 3]]

    message = restored(content=MAIL + " ok", layout=layout, content_items=[{"offset": len(MAIL), "id": "b"}])

    assert message["layout"] == [["content", 15], ["tool_calls", 1], ["content", 3]]
    assert message["content_items"] == [{"offset": 15, "id": "b"}]


def test_blocks_of_another_dialect_are_restored() -> None:
    block = {"dialect": "anthropic", "block": {"type": "note", "text": f"to {MAIL}"}}

    assert (
        restored(content="", provider_content=[block])["provider_content"][0]["block"]["text"] == "to ann@example.com"
    )


# --- in pieces

FRAGMENTS = st.one_of(
    st.sampled_from(
        [
            *(
                MAIL,
                NAME,
                LOOKS,
                OTHER,
                "<",
                ">",
                "<EMAIL",
                "<EMAIL_",
                MAIL[:-1],
                MAIL[1:],
                "<X>",
                "\\u003c",
                "\\u003e",
            ),
            *(
                f"\\u003c{MAIL[1:-1]}\\u003e",
                f"\\u003C{NAME[1:]}",
                f"\\\\u003c{MAIL[1:-1]}>",
                f"\\{MAIL}",
                "\\",
                "\\\\",
            ),
            *('"', "\n", "é", "😀", "字", "a word ", "u003c", "\\n", '\\"', "<PERSON_", "{", "}"),
        ]
    ),
    st.text(max_size=4),
)
TEXTS = st.lists(FRAGMENTS, max_size=12).map("".join)
CUTS = st.one_of(st.just(range(1000)), st.lists(st.integers(0, 200), max_size=30))


def split(text: str, cuts: Sequence[int]) -> list[str]:
    ends = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in pairwise(ends)]


def check(texts: Sequence[str], cuts: Sequence[int]) -> None:
    content, thought, first, second, free = texts
    message = restored(
        content=content,
        reasoning_content=thought,
        tool_calls=[
            {"function": {"name": "f", "arguments": first}},
            {"function": {"name": "g", "arguments": second}},
            {"custom": {"name": "h", "input": free}},
        ],
    )
    # The pieces of two calls in turns: each is a text of its own.
    turns = zip_longest(split(first, cuts), split(second, cuts), fillvalue="")
    calls = [
        delta({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
        for turn in turns
        for index, part in enumerate(turn)
    ]
    chunks = [
        *(delta({"reasoning_content": part}) for part in split(thought, cuts)),
        *(delta({"content": part}) for part in split(content, cuts)),
        *calls,
        *(delta({"tool_calls": [{"index": 2, "custom": {"input": part}}]}) for part in split(free, cuts)),
        END,
    ]

    out = streamed(chunks)
    as_json = streamed([*(delta({"content": part}) for part in split(content, cuts)), END], json_content=True)

    assert said(out) == message["content"]
    assert said(out, "reasoning_content") == message["reasoning_content"]
    assert written(out, 0) == message["tool_calls"][0]["function"]["arguments"]
    assert written(out, 1) == message["tool_calls"][1]["function"]["arguments"]
    assert written(out, 2, "custom", "input") == message["tool_calls"][2]["custom"]["input"]
    body = restored_whole(answer(content=content), ISSUED, json_content=True)
    assert said(as_json) == body["choices"][0]["message"]["content"]


@given(st.lists(TEXTS, min_size=5, max_size=5), CUTS)
@settings(max_examples=examples(300))
def test_a_stream_is_restored_as_the_whole_is(texts: Sequence[str], cuts: Sequence[int]) -> None:
    check(texts, cuts)


@pytest.mark.full
@pytest.mark.timeout(1800)
@given(st.lists(TEXTS, min_size=5, max_size=5), CUTS)
@settings(max_examples=10_000)
def test_ten_thousand_streams_are_restored_as_the_whole_is(texts: Sequence[str], cuts: Sequence[int]) -> None:
    check(texts, cuts)


def test_a_placeholder_in_single_letters_comes_back() -> None:
    text = f"write {MAIL} or {NAME}!"

    out = streamed([*(delta({"content": letter}) for letter in text), END])

    assert said(out) == f"write ann@example.com or {ISSUED[NAME]}!"


def test_only_an_open_placeholder_is_held() -> None:
    restorer = Restorer(ISSUED)

    def feed(text: str) -> str:
        return said(map(msgspec.json.decode, restorer.feed(msgspec.json.encode(delta({"content": text})))))

    assert feed("a word with no end") == "a word with no end"
    assert feed(f"1 {MAIL[:6]}") == "1 "
    assert feed(MAIL[6:] + "!") == "ann@example.com!"
    assert feed("x <EMAIL_zz") == "x <EMAIL_zz"  # none of those issued begins so
    assert feed("a < b") == "a < b"


def test_what_was_no_placeholder_comes_before_the_end() -> None:
    out = streamed([delta({"content": "is a <"}), END])
    broken_off = streamed([delta({"content": "is a <"})])

    assert [(c["delta"].get("content"), c["finish_reason"]) for one in out for c in one["choices"]] == [
        ("is a ", None),
        ("<", None),
        (None, "stop"),
    ]
    assert said(broken_off) == "is a <"


def test_what_is_open_goes_before_what_is_said_next() -> None:
    call = {"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}

    out = streamed([delta({"reasoning_content": "a <"}), delta({"content": "b <"}), delta({"tool_calls": [call]}), END])

    deltas = [c["delta"] for one in out for c in one["choices"] if any(c["delta"].values())]
    assert deltas == [
        {"reasoning_content": "a "},
        {"reasoning_content": "<"},
        {"content": "b "},
        {"content": "<"},
        {"tool_calls": [call]},
    ]


def test_a_chunk_without_placeholders_is_handed_on_as_it_is() -> None:
    restorer = Restorer(ISSUED)
    spaced = b'{"choices": [{"index": 0, "delta": {"content": "a \\n b <br> c"}}] , "x": 1}'

    assert restorer.feed(spaced) == [spaced]
    assert restorer.feed(b"not even JSON") == [b"not even JSON"]
    assert Restorer({}).feed(MAIL.encode()) == [MAIL.encode()]


def test_choices_do_not_mix() -> None:
    chunks = [delta({"content": MAIL[at]}, index=index) for at in range(len(MAIL)) for index in (0, 1)]

    out = streamed(chunks)

    assert said(out) == said(out, index=1) == "ann@example.com"


def test_the_rest_of_a_chunk_is_restored_too() -> None:
    event = {"provider_event": {"dialect": "anthropic", "data": {"type": "note", "note": MAIL}}}
    block = {"provider_content": [{"dialect": "anthropic", "block": {"type": "note", "text": MAIL}}]}
    details = {"reasoning_content": MAIL, "reasoning_details": [{"type": "reasoning.text", "index": 0, "text": MAIL}]}
    usage = {"prompt_tokens": 1, "completion_tokens": 1}

    out = streamed([frame(**event), delta(block), delta(details), frame(usage=usage)])

    assert out[0]["provider_event"]["data"]["note"] == "ann@example.com"
    assert out[1]["choices"][0]["delta"]["provider_content"][0]["block"]["text"] == "ann@example.com"
    assert out[2]["choices"][0]["delta"] == {**details, "reasoning_content": "ann@example.com"}
    assert out[3]["usage"] == usage


def test_offsets_move_and_probabilities_go_where_a_text_is_restored() -> None:
    first = delta({"content": MAIL})
    first["choices"][0]["logprobs"] = {"content": [{"token": MAIL}]}

    out = streamed([first, delta({"content_items": [{"offset": len(MAIL), "id": "b"}]})])

    assert out[0]["choices"][0]["logprobs"] is None
    assert out[1]["choices"][0]["delta"]["content_items"] == [{"offset": len("ann@example.com"), "id": "b"}]


def test_plain_completions_and_old_function_calls_are_restored() -> None:
    plain = [frame({"index": 0, "text": letter, "finish_reason": None}) for letter in f"to {MAIL} <"]
    old = [delta({"function_call": {"name": "f", "arguments": part}}) for part in split(f'["{NAME}"]', range(50))]

    texts = "".join(
        one["choices"][0]["text"]
        for one in streamed([*plain, frame({"index": 0, "text": "", "finish_reason": "stop"})])
    )
    calls = [one["choices"][0]["delta"]["function_call"]["arguments"] for one in streamed(old)]

    assert texts == "to ann@example.com <"
    assert json.loads("".join(calls)) == [ISSUED[NAME]]


def test_calls_without_an_index_begin_with_an_id() -> None:
    def part(arguments: str, **others: Any) -> Json:
        return delta({"tool_calls": [{"function": {"arguments": arguments}, **others}]})

    chunks = [part(f'"{MAIL[:5]}', id="a"), part(MAIL[5:] + '"'), part(f'"{MAIL[:9]}', id="b"), part(MAIL[9:] + '"')]

    out = streamed(chunks)

    calls = [one["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"] for one in out]
    assert "".join(calls) == '"ann@example.com""ann@example.com"'


def test_a_stream_of_angle_brackets_costs_little() -> None:
    restorer = Restorer(ISSUED)
    out = [
        msgspec.json.decode(payload)
        for _ in range(2000)
        for payload in restorer.feed(msgspec.json.encode(delta({"content": "<EMAIL_" * 9})))
    ]
    out += map(msgspec.json.decode, restorer.end())

    assert said(out) == "<EMAIL_" * 18_000
