"""What a stream lets out, against what the rules make of the whole text."""

import re
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from statistics import mean, quantiles
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrails.base import DetectorError
from guardrails.engine import screen
from guardrails.policy import Rule
from guardrails.stream import StreamScreen
from models.completion import Chunk
from models.errors import ContentBlocked, GuardrailUnavailable
from models.finding import Finding, Segment
from tests.support.examples import examples

Json = dict[str, Any]


class Pattern:
    """A detector that is one expression."""

    inline = True
    revision = "1"

    def __init__(self, name: str, pattern: str, *, reach: int | None = 0, group: int = 0) -> None:
        self.name = name
        self.kinds = frozenset({name})
        self.reach = reach
        self.context = reach or 0
        self.read = 0
        self._pattern = re.compile(pattern)
        self._group = group

    async def detect(self, segments: Sequence[Segment]) -> Sequence[Finding]:
        self.read += sum(len(segment.text) for segment in segments)
        return [
            Finding(segment.index, self.name, *found.span(self._group))
            for segment in segments
            for found in self._pattern.finditer(segment.text)
            if found.start(self._group) < found.end(self._group)
        ]


class Words(Pattern):
    """Knows itself what is open: all after the last `open`, until `shut`."""

    def __init__(self) -> None:
        super().__init__("spoken", r"open[^.]{0,60}?shut", reach=None)

    def open_from(self, text: str) -> int:
        at = text.rfind("open")
        return len(text) if at < 0 or len(text) - at > 80 else at


class Broken(Pattern):
    async def detect(self, segments: Sequence[Segment]) -> Sequence[Finding]:
        raise DetectorError(f"nothing is there to look at {len(segments)} texts")


def email() -> Pattern:
    return Pattern("email", r"[a-z0-9.]{1,64}@[a-z.]{1,64}")


def card() -> Pattern:
    return Pattern("card", r"(?<![\d-])\d{4}(?:[ -]?\d{4}){3}(?![\d-])", reach=24)


def rule(detector: Pattern, action: Any = "redact", on: Iterable[Any] = ("output",), **settings: Any) -> Rule:
    return Rule(name=f"test/{detector.name}", detector=detector, action=action, on=frozenset(on), **settings)


def chunk(delta: Json, *, index: int = 0, finish: str | None = None, **others: Any) -> Chunk:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish, **others}
    fields = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return Chunk(msgspec.json.encode(fields), fields)


def bare(**others: Any) -> Chunk:
    fields = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], **others}
    return Chunk(msgspec.json.encode(fields), fields)


async def streamed(
    screen: StreamScreen, chunks: Iterable[Chunk], *, more: Callable[[int], bool] = lambda _: False
) -> list[Json]:
    """What came out; each payload is the JSON of its fields."""
    out = []
    for number, one in enumerate(chunks):
        out += [released async for released in screen.feed(one, more=more(number))]
    out += [released async for released in screen.end()]
    assert all(msgspec.json.decode(released.payload) == released.fields for released in out)
    return [released.fields for released in out]


def deltas(out: Iterable[Json], index: int = 0) -> list[Json]:
    return [c["delta"] for one in out for c in one["choices"] if c["index"] == index and c["delta"]]


def said(out: Iterable[Json], name: str = "content", index: int = 0) -> str:
    return "".join(delta.get(name) or "" for delta in deltas(out, index))


def pieces(text: str, *sizes: int) -> list[Chunk]:
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    return [chunk({"content": text[a:b]}) for a, b in pairwise([0, *ends, len(text)]) if a < b]


def letters(text: str, name: str = "content") -> list[Chunk]:
    return [chunk({name: letter}) for letter in text]


END = chunk({}, finish="stop")


# --- against the whole text

KEY = "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIE pQIB\nAAKC+/==\n-----END RSA " + "PRIVATE KEY-----"
POOL: dict[str, Callable[[], Pattern]] = {
    "email": email,
    "card": card,
    "token": lambda: Pattern("token", r"\btk_[0-9a-f]{4,}\b"),
    "assigned": lambda: Pattern("assigned", r"\bkey[ \t]{0,2}[:=][ \t]{0,2}(\w{4,})", reach=12, group=1),
    "phrase": lambda: Pattern("phrase", r"red\s{1,2}fox(?:es)?", reach=9),
    "pem": lambda: Pattern("pem", r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----[^-]{1,200}-----END [A-Z ]{0,20}KEY-----"),
    "han": lambda: Pattern("han", r"项目[0-9]{2,4}号", reach=7),
    "spoken": Words,
    "lines": lambda: Pattern("lines", r"(?s)<<.*?>>", reach=None),
}
FRAGMENTS = st.one_of(
    st.sampled_from(
        [
            *("4111 1111 1111 1111", "4111-1111-1111-1111", "4111", "12 ", "4111 1111", "+49 30 123 ", "2024-01-01"),
            *(
                "ann@example.com",
                "ann",
                "@",
                "tk_12ab",
                "tk_",
                "tk_12ab34cd",
                "key = abcdef",
                "key:",
                "key ",
                "= ",
                "abcd",
            ),
            *(
                "red fox",
                "red\nfox",
                "red",
                "fox",
                "foxes",
                "es",
                KEY,
                KEY[:20],
                KEY[20:],
                "----",
                "-----BEGIN ",
                "---- ",
            ),
            *(
                "项目12号",
                "项目",
                "1234号",
                "秘密",
                "请联系ann@example.com。",
                "ค",
                "日本",
                "open it and shut",
                "open",
                "shut",
            ),
            *("<<", ">>", " ", "\n", "\t", "  ", ", ", ".", "😀", "é", "e\u0301", "\u200b", "\x00", "مرحبا ", "word "),
        ]
    ),
    st.text(max_size=6),
    st.text("0123456789 -", max_size=8),
)
TEXTS = st.lists(FRAGMENTS, max_size=24).map("".join)
RULES = st.lists(
    st.tuples(st.sampled_from(sorted(POOL)), st.sampled_from(["redact", "redact", "redact", "block", "log"])),
    min_size=1,
    max_size=4,
    unique_by=lambda one: one[0],
)


async def whole(text: str, rules: Sequence[Rule]) -> str | None:
    """None where it is blocked."""
    try:
        screened = await screen([Segment(0, text, "assistant")], rules, phase="output")
    except ContentBlocked:
        return None
    return screened.texts.get(0, text)


async def check(text: str, cuts: Sequence[int], waiting: int, chosen: Sequence[tuple[str, Any]]) -> None:
    rules = [rule(POOL[name](), action) for name, action in chosen]
    expected = await whole(text, rules)
    ends = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    chunks = [chunk({"content": text[a:b]}) for a, b in pairwise(ends)]
    screening = StreamScreen(rules)
    out = ""
    try:
        for number, one in enumerate([*chunks, END]):
            async for released in screening.feed(one, more=bool(waiting >> number & 1)):
                out += said([released.fields])
                assert expected is None or expected.startswith(out)
        async for released in screening.end():
            out += said([released.fields])
    except ContentBlocked:
        assert expected is None
        clean = await whole(text, [msgspec.structs.replace(one, action="redact") for one in rules if one.gates])
        assert clean is not None
        assert clean.startswith(out)
    else:
        assert out == expected


CUTS = st.one_of(st.just(range(10_000)), st.lists(st.integers(0, 400), max_size=40))


@given(TEXTS, CUTS, st.integers(0, 2**64), RULES)
@settings(max_examples=examples(300))
async def test_a_stream_says_what_the_whole_text_says(
    text: str, cuts: Sequence[int], waiting: int, chosen: Sequence[tuple[str, Any]]
) -> None:
    await check(text, cuts, waiting, chosen)


@pytest.mark.full
@pytest.mark.timeout(1800)
@given(TEXTS, CUTS, st.integers(0, 2**64), RULES)
@settings(max_examples=10_000)
async def test_ten_thousand_streams_say_what_the_whole_text_says(
    text: str, cuts: Sequence[int], waiting: int, chosen: Sequence[tuple[str, Any]]
) -> None:
    await check(text, cuts, waiting, chosen)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("email", "write to ann@example.com now", "write to [EMAIL] now"),
        ("email", "ann@example.com", "[EMAIL]"),
        ("email", "请联系ann@example.com。", "请联系[EMAIL]。"),
        ("card", "card 4111 1111 1111 1111, thanks", "card [CARD], thanks"),
        ("pem", f"here: {KEY} done", "here: [PEM] done"),
        ("pem", f"{KEY}4111 1111 {KEY}", "[PEM]4111 1111 [PEM]"),
        ("han", "请看项目1234号。", "请看[HAN]。"),
        ("assigned", "key = abcdef, key : ab", "key = [ASSIGNED], key : ab"),
        ("phrase", "a red\nfox, two red foxes", "a [PHRASE], two [PHRASE]"),
        ("spoken", "we open it and it is shut. so open", "we [SPOKEN]. so open"),
        ("lines", "a << b\n c >> d", "a [LINES] d"),
    ],
)
@pytest.mark.parametrize("more", [False, True])
async def test_what_is_split_into_letters_is_found(name: str, text: str, expected: str, more: bool) -> None:
    screening = StreamScreen([rule(POOL[name]())])

    out = await streamed(screening, [*letters(text), END], more=lambda _: more)

    assert said(out) == expected


async def test_what_a_detector_needs_before_a_finding_is_looked_at_again() -> None:
    detector = Pattern("value", r"key(?: \w{1,9}){0,40}? is (\w+)", group=1)
    detector.context = 300
    screening = StreamScreen([rule(detector)])
    text = "the key" + " filler" * 30 + " is abc, and the other is def "

    out = [c.fields for one in letters(text) for c in [c async for c in screening.feed(one)]]

    assert said(out) == text.replace("abc", "[VALUE]")
    assert len(out) > 30  # nothing was held for it


async def test_a_text_leaves_with_its_white_space_and_not_before() -> None:
    screening = StreamScreen([rule(email())])

    first = [c async for c in screening.feed(chunk({"content": "Hello wor"}))]
    second = [c async for c in screening.feed(chunk({"content": "ld and "}))]

    assert said([c.fields for c in first]) == "Hello "
    assert said([c.fields for c in second]) == "world and "


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("call 555 123 ", "555 123 "),
        ("call 555 123 n", "n"),
        ("see -----BEGIN PRIVATE" + " KEY-----\nMIIE pQ ", "-----BEGIN PRIVATE" + " KEY-----\nMIIE pQ "),
        ("see -----BEGIN CERTIFICATE-----\nMIIE pQ ", ""),
        ("see -----BEGIN ", "-----BEGIN "),
        ("你好世界", ""),
        ("你好ann@exa", "ann@exa"),
        ("one two", "two"),
        ("１２３４", "１２３４"),  # wide digits are digits
    ],
)
async def test_holds_what_may_go_on(text: str, held: str) -> None:
    screening = StreamScreen([rule(email())])

    out = [c.fields async for c in screening.feed(chunk({"content": text}))]

    assert said(out) == text.removesuffix(held)


async def test_a_batch_ends_at_64_characters_or_when_nothing_waits() -> None:
    detector = email()
    screening = StreamScreen([rule(detector)])

    waiting = [[c async for c in screening.feed(one, more=True)] for one in letters("word " * 13)]
    read = detector.read
    last = [c async for c in screening.feed(chunk({"content": "x "}))]

    assert [bool(out) for out in waiting] == [False] * 63 + [True, False]
    assert read < 70
    assert said([c.fields for c in last]) == "word x "


async def test_a_rule_without_reach_holds_the_whole_text() -> None:
    screening = StreamScreen([rule(Pattern("lines", "(?s)<<.*?>>", reach=None))])

    early = [c for one in pieces("a b " * 9000, 1, 5000, 9000) for c in [c async for c in screening.feed(one)]]
    late = [c.fields async for c in screening.feed(END)]

    assert early == []
    assert said(late) == "a b " * 9000


async def test_a_detector_elsewhere_is_asked_once() -> None:
    detector = email()
    detector.inline = False
    screening = StreamScreen([rule(detector)])

    out = await streamed(screening, [*letters("write to ann@example.com or not "), END])

    assert said(out) == "write to [EMAIL] or not "
    assert detector.read == len("write to ann@example.com or not ")


async def test_a_detector_may_say_itself_what_is_open() -> None:
    screening = StreamScreen([rule(Words())])

    out = [c.fields async for c in screening.feed(chunk({"content": "we talk and open a door "}))]

    assert said(out) == "we talk and "


@pytest.mark.parametrize("action", ["redact", "block"])
async def test_a_word_longer_than_the_cap_is_refused(action: str) -> None:
    screening = StreamScreen([rule(email(), action)])

    with pytest.raises(GuardrailUnavailable, match="over 16384 characters"):
        await streamed(screening, [chunk({"content": "a" * 5000}) for _ in range(4)])


async def test_a_word_longer_than_the_cap_passes_where_the_rule_fails_open_or_logs() -> None:
    opened = StreamScreen([rule(email(), fail="open")])
    logged = StreamScreen([rule(email(), "log")])
    words = [chunk({"content": "a" * 5000}) for _ in range(4)]

    assert said(await streamed(opened, [*words, END])) == "a" * 20_000
    assert said(await streamed(logged, [*words, END])) == "a" * 20_000
    assert not opened.keepable
    assert logged.keepable


async def test_a_rule_that_only_logs_delays_nothing_and_counts_once() -> None:
    screening = StreamScreen([rule(Pattern("lines", "(?s)<<.*?>>", reach=None), "log"), rule(email(), dry_run=True)])
    chunks = [*letters("a << b >> c ann@example.com d"), END]

    out = await streamed(screening, chunks)

    assert out == [one.fields for one in chunks]
    assert screening.tally.counts == {
        ("test/lines", "lines", "log", "output"): 1,
        ("test/email", "email", "dry_run", "output"): 1,
    }
    assert screening.acted == ("test/lines=log", "test/email=redact;dry-run")
    assert not screening.keepable  # it would have been another text


async def test_a_finding_is_counted_once_though_it_is_looked_at_again() -> None:
    screening = StreamScreen([rule(card()), rule(Pattern("phrase", "red fox", reach=40))])

    await streamed(screening, [*letters("4111 1111 1111 1111 and a red fox and many other words, " * 3), END])

    assert {key[0]: count for key, count in screening.tally.counts.items()} == {"test/card": 3, "test/phrase": 3}
    assert screening.tally.acted == ("test/card=redact", "test/phrase=redact")


async def until_blocked(screening: StreamScreen, chunks: Iterable[Chunk]) -> tuple[list[Json], str]:
    """What went out, and what the client is told."""
    out: list[Json] = []
    try:
        for one in chunks:
            out += [released.fields async for released in screening.feed(one)]
    except ContentBlocked as blocked:
        return out, blocked.message
    return out, ""


async def test_a_block_comes_after_the_clean_text_before_it() -> None:
    screening = StreamScreen([rule(email(), "block"), rule(Pattern("phrase", "red fox", reach=9))])
    text = "a red fox to ann@example.com is it not so"

    out, message = await until_blocked(screening, [*letters(text)])

    assert said(out) == "a [PHRASE] to "
    assert message == "blocked by the guardrail test/email (email)"
    assert [c.fields["choices"][0]["finish_reason"] for c in screening.closing()] == ["content_filter"]
    assert screening.acted == ("test/email=block", "test/phrase=redact")


async def test_clean_text_of_the_same_chunk_goes_before_a_block() -> None:
    screening = StreamScreen([rule(email(), "block")])
    chunks = [chunk({"content": "one two ann@example.com three "}), chunk({"content": "four "}), END]
    out: list[Json] = []

    async def read() -> None:
        async for released in screening.feed(chunks[0]):
            out.append(released.fields)  # noqa: PERF401 - the chunks before the error count

    with pytest.raises(ContentBlocked):
        await read()
    assert said(out) == "one two "


async def test_nothing_goes_before_a_block_at_the_beginning() -> None:
    screening = StreamScreen([rule(email(), "block")])

    out, message = await until_blocked(
        screening, [chunk({"role": "assistant", "content": ""}), *letters("ann@example.com x")]
    )

    assert out == []
    assert message == "blocked by the guardrail test/email (email)"


async def test_what_may_yet_turn_out_well_does_not_block() -> None:
    screening = StreamScreen([rule(Pattern("word", r"\bstop\b", reach=0), "block")])

    out = await streamed(screening, [*letters("do not stopper it"), END])

    assert said(out) == "do not stopper it"


async def test_a_detector_that_cannot_look_stops_the_stream() -> None:
    closed, opened = (StreamScreen([rule(Broken("broken", "x"), fail=fail)]) for fail in ("closed", "open"))

    with pytest.raises(GuardrailUnavailable):
        await streamed(closed, [*letters("one two"), END])
    out = await streamed(opened, [*letters("one two"), END])

    assert said(out) == "one two"
    assert not opened.keepable
    assert opened.tally.failed


def raises_its_own() -> Any:
    class TheirsError(Exception):
        pass

    raise TheirsError


@pytest.mark.parametrize("kinds", [None, frozenset({"odd"})])
@pytest.mark.parametrize(
    "answer",
    [
        *(lambda: None, dict, lambda: iter(()), lambda: "none", lambda: [1], raises_its_own),
        lambda: [Finding(0, "odd", 0, 99)],
        lambda: [Finding(0, "other", 0, 99)],
        lambda: [Finding(0, "odd", cast("int", 0.5), 2)],
    ],
)
async def test_a_detector_that_answers_nonsense_in_the_middle_stops_the_stream(
    answer: Callable[[], Any], kinds: frozenset[str] | None
) -> None:
    class Odd(Pattern):
        async def detect(self, segments: Sequence[Segment]) -> Sequence[Finding]:
            found: Sequence[Finding] = answer() if "four" in segments[0].text else []
            return found

    def screening(fail: str) -> StreamScreen:
        detector = Odd("odd", "x")
        detector.kinds = frozenset()
        return StreamScreen([rule(detector, kinds=kinds, fail=fail)])

    closed, opened = screening("closed"), screening("open")
    out = [c.fields for one in letters("one two three ") for c in [c async for c in closed.feed(one)]]

    assert said(out) == "one two three "
    with pytest.raises(GuardrailUnavailable):
        await streamed(closed, [*letters("four "), END])
    assert said(await streamed(opened, [*letters("one two three four "), END])) == "one two three four "
    assert not opened.keepable
    assert opened.tally.failed


async def test_a_finding_over_the_seam_of_two_blocks_of_text_is_not_finished() -> None:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    split = [chunk({"content": "to ann@exam"}), chunk({"tool_calls": [call]}), chunk({"content": "ple.com now "})]

    with pytest.raises(GuardrailUnavailable):
        await streamed(StreamScreen([rule(Pattern("email", r"\w+@exam\w+\.com"))]), split)
    with pytest.raises(ContentBlocked):
        await streamed(StreamScreen([rule(Pattern("email", r"\w+@exam\w+\.com"), "block")]), split)


async def test_a_finding_that_goes_on_behind_its_end_is_one() -> None:
    detector = Pattern("password", r"password: ([^\s,]{6,})", group=1)
    detector.context = 40  # it finds letters of a script without spaces, and does not say so
    screening = StreamScreen([rule(detector)])

    out = await streamed(screening, [*letters("the password: abcdef密码在这里, thanks"), END])

    assert said(out) == "the password: [PASSWORD], thanks"


# --- everything else that is said


async def test_a_tool_call_goes_in_one_piece_when_it_is_whole() -> None:
    screening = StreamScreen([rule(email())])
    arguments = '{"to": "ann@example.com", "n": 1.0, "to": ["b", "bob\\u0040example.com"]}'
    begin = {"index": 0, "id": "c1", "type": "function", "function": {"name": "send", "arguments": ""}}
    parts = [chunk({"tool_calls": [{"index": 0, "function": {"arguments": letter}}]}) for letter in arguments]

    out = await streamed(screening, [chunk({"content": "Now"}), chunk({"tool_calls": [begin]}), *parts, END])

    calls = [delta["tool_calls"] for delta in deltas(out) if "tool_calls" in delta]
    rewritten = '{"to": "[EMAIL]", "n": 1.0, "to": ["b", "[EMAIL]"]}'
    assert calls == [[{**begin, "function": {"name": "send", "arguments": rewritten}}]]
    assert said(out) == "Now"


async def test_a_call_is_sent_when_the_next_begins_and_unfinished_ones_at_the_end() -> None:
    screening = StreamScreen([rule(email())])

    def part(index: int, arguments: str, **others: Any) -> Chunk:
        return chunk({"tool_calls": [{"index": index, "function": {"arguments": arguments}, **others}]})

    first = [c.fields async for c in screening.feed(part(0, "{}", id="a"))]
    second = [c.fields async for c in screening.feed(part(1, '{"x": "ann@exa', id="b"))]
    third = [c.fields async for c in screening.feed(part(0, " "))]
    last = [c.fields async for c in screening.feed(END)]

    assert first == third == []
    assert [delta["tool_calls"][0]["id"] for delta in deltas(second)] == ["a"]
    assert [delta["tool_calls"][0]["function"]["arguments"] for delta in deltas(last)] == ['{"x": "[EMAIL]']


async def test_more_of_a_call_that_has_gone_is_refused() -> None:
    calls = [{"index": 0, "id": "a", "function": {"arguments": "{}"}}, {"index": 1, "id": "b"}]
    late = {"index": 0, "function": {"arguments": "ann@example.com"}}

    with pytest.raises(GuardrailUnavailable):
        await streamed(StreamScreen([rule(email())]), [chunk({"tool_calls": calls}), chunk({"tool_calls": [late]})])


async def test_free_text_for_a_tool_and_the_old_function_call_are_screened() -> None:
    custom = [{"index": 0, "id": "a", "type": "custom", "custom": {"name": "f", "input": "to ann@exa"}}]
    rest = [{"index": 0, "custom": {"input": "mple.com"}}]
    old = [
        chunk({"function_call": {"name": "g", "arguments": '{"a": "ann@'}}),
        chunk({"function_call": {"arguments": 'b.c"}'}}),
    ]

    first = await streamed(
        StreamScreen([rule(email())]), [chunk({"tool_calls": custom}), chunk({"tool_calls": rest}), END]
    )
    second = await streamed(StreamScreen([rule(email())]), [*old, END])

    assert deltas(first)[0]["tool_calls"][0]["custom"] == {"name": "f", "input": "to [EMAIL]"}
    assert deltas(second)[0]["function_call"] == {"name": "g", "arguments": '{"a": "[EMAIL]"}'}


async def test_a_rule_on_tool_arguments_leaves_texts_alone() -> None:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a": "ann@b.c"}'}}
    screening = StreamScreen([rule(email(), on=("tool_args",))])

    out = await streamed(screening, [chunk({"content": "ann@b.c"}), chunk({"tool_calls": [call]}), END])

    assert said(out) == "ann@b.c"
    assert deltas(out)[1]["tool_calls"][0]["function"]["arguments"] == '{"a": "[EMAIL]"}'


async def test_reasoning_comes_to_its_end_where_the_answer_begins() -> None:
    screening = StreamScreen([rule(email())])
    chunks = [*letters("to ann@b.c", "reasoning_content"), *letters("to bob@b.c", "content"), END]

    out = await streamed(screening, chunks)

    assert said(out, "reasoning_content") == "to [EMAIL]"
    assert said(out) == "to [EMAIL]"
    names = [name for delta in deltas(out) for name in delta]
    assert names == sorted(names, reverse=True)


def thought(text: str, **others: Any) -> Chunk:
    detail = {"type": "reasoning.text", "index": 0, "format": "anthropic-claude-v1", "text": text}
    return chunk({"reasoning_content": text, "reasoning_details": [detail], **others})


SIGNED = chunk(
    {
        "reasoning_details": [
            {"type": "reasoning.text", "index": 0, "format": "anthropic-claude-v1", "signature": "c2ln"}
        ]
    }
)


async def test_details_of_clean_reasoning_travel_beside_it() -> None:
    screening = StreamScreen([rule(email())])

    out = await streamed(
        screening, [thought("Let me thi"), thought("nk of it."), SIGNED, chunk({"content": "Yes"}), END]
    )

    details = [detail for delta in deltas(out) for detail in delta.get("reasoning_details", [])]
    assert said(out, "reasoning_content") == "Let me think of it."
    assert "".join(detail.get("text", "") for detail in details) == "Let me think of it."
    assert details[-1]["signature"] == "c2ln"
    assert all(
        delta["reasoning_content"] == "".join(detail.get("text", "") for detail in delta["reasoning_details"])
        for delta in deltas(out)
        if "reasoning_content" in delta
    )


async def test_details_are_dropped_where_reasoning_is_rewritten() -> None:
    screening = StreamScreen([rule(email())])
    chunks = [
        thought("Ask ann@exa"),
        thought("mple.com then "),
        thought("go on"),
        SIGNED,
        chunk({"content": "Yes"}),
        END,
    ]

    out = await streamed(screening, chunks)

    details = [detail for delta in deltas(out) for detail in delta.get("reasoning_details", [])]
    assert said(out, "reasoning_content") == "Ask [EMAIL] then go on"
    assert "".join(detail.get("text", "") for detail in details) == "Ask "
    assert not any("signature" in detail for detail in details)


async def test_details_without_a_mirror_are_screened_and_dropped() -> None:
    detail = {"type": "reasoning.summary", "index": 3, "format": "openai-responses-v1"}
    parts = [
        chunk({"reasoning_details": [{**detail, "summary": part}]}) for part in ("Well, ann@ex", "ample.com", " is it")
    ]

    out = await streamed(StreamScreen([rule(email())]), [*parts, END])

    told = [detail for delta in deltas(out) for detail in delta["reasoning_details"]]
    assert told == [{**detail, "summary": "Well, "}]


async def test_a_block_of_another_dialect_is_screened_whole() -> None:
    block = {"dialect": "anthropic", "block": {"type": "note", "text": "to ann@example.com"}}
    clean = {"dialect": "anthropic", "block": {"type": "note", "text": "to nobody"}}
    event = {"provider_event": {"dialect": "anthropic", "data": {"type": "x", "text": "ann@example.com"}}}
    fine = {"provider_event": {"dialect": "anthropic", "data": {"type": "x", "text": "nothing"}}}
    chunks = [chunk({"content": "so "}), chunk({"provider_content": [block, clean]}), bare(**event), bare(**fine), END]

    out = await streamed(StreamScreen([rule(email())]), chunks)

    assert deltas(out)[1]["provider_content"] == [
        {"dialect": "anthropic", "block": {"type": "note", "text": "to [EMAIL]"}},
        clean,
    ]
    assert [one["provider_event"] for one in out if "provider_event" in one] == [fine["provider_event"]]


async def test_an_event_stays_behind_the_text_before_it() -> None:
    event = bare(provider_event={"dialect": "anthropic", "data": {"type": "content_block_stop"}})

    out = await streamed(
        StreamScreen([rule(email())]), [chunk({"content": "one two"}), event, chunk({"content": " three"}), END]
    )

    order = ["event" if "provider_event" in one else said([one]) for one in out]
    assert order == ["one ", "two", "event", " ", "three", ""]


async def test_usage_passes_wherever_it_stands() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    last = chunk({}, finish="stop")
    last.fields["usage"] = usage

    separate = await streamed(StreamScreen([rule(email())]), [chunk({"content": "hi"}), END, bare(usage=usage)])
    together = await streamed(StreamScreen([rule(email())]), [chunk({"content": "hi"}), last])
    alone = chunk({"content": "hi"})
    alone.fields["usage"] = usage
    broken_off = await streamed(StreamScreen([rule(email())]), [alone])

    assert separate[-1]["usage"] == together[-1]["usage"] == broken_off[-1]["usage"] == usage
    assert separate[-1]["choices"] == []


async def test_token_probabilities_go_with_their_text_and_not_with_another() -> None:
    def told(text: str) -> Chunk:
        return chunk({"content": text}, logprobs={"content": [{"token": text, "logprob": -1.0}], "refusal": None})

    chunks = [told(text) for text in ("Ask ", "ann@", "b.c", " now", " please")]

    out = await streamed(StreamScreen([rule(email())]), [*chunks, END])

    tokens = [
        item["token"] for one in out for c in one["choices"] if c["logprobs"] for item in c["logprobs"]["content"]
    ]
    assert said(out) == "Ask [EMAIL] now please"
    assert tokens == ["Ask ", " now", " please"]


async def test_token_probabilities_that_come_after_their_text_stay_before_what_follows_it() -> None:
    detail = {"type": "reasoning.encrypted", "index": 0, "data": "opaque"}
    late = chunk({"reasoning_details": [detail]}, logprobs={"content": [{"token": "all", "logprob": -1.0}]})

    out = await streamed(StreamScreen([rule(email())]), [chunk({"content": "Ask all"}), late, END])

    order = [
        "tokens" if c["logprobs"] else "detail" if "reasoning_details" in c["delta"] else "text"
        for one in out
        for c in one["choices"]
        if c["finish_reason"] is None
    ]
    assert order == ["text", "tokens", "detail"]
    assert said(out) == "Ask all"


async def test_offsets_move_with_the_text() -> None:
    chunks = [
        chunk({"content": "ann@example.com says "}),
        chunk({"content_items": [{"offset": 21, "id": "m2"}], "content": "hi"}),
        END,
    ]

    out = await streamed(StreamScreen([rule(email())]), chunks)

    assert [delta["content_items"] for delta in deltas(out) if "content_items" in delta] == [
        [{"offset": len("[EMAIL] says "), "id": "m2"}]
    ]


async def test_choices_do_not_mix() -> None:
    texts = ("to ann@b.c now", "or 12@34 bob@b.c!")
    chunks = [chunk({"content": texts[i][at]}, index=i) for at in range(14) for i in (0, 1)]
    chunks += [
        chunk({"content": texts[1][14:]}, index=1),
        chunk({}, finish="stop"),
        chunk({}, index=1, finish="length"),
    ]

    out = await streamed(StreamScreen([rule(email())]), chunks)

    assert said(out) == "to [EMAIL] now"
    assert said(out, index=1) == "or 12@34 [EMAIL]!"
    assert [c["finish_reason"] for one in out for c in one["choices"] if c["finish_reason"]] == ["stop", "length"]


async def test_plain_completions_are_screened_too() -> None:
    def part(text: str, finish: str | None = None) -> Chunk:
        fields = {
            "object": "text_completion",
            "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish}],
        }
        return Chunk(msgspec.json.encode(fields), fields)

    out = await streamed(StreamScreen([rule(email())]), [*map(part, "to ann@b.c now"), part("", "stop")])

    assert "".join(one["choices"][0]["text"] for one in out) == "to [EMAIL] now"
    assert out[-1]["choices"][0]["finish_reason"] == "stop"


async def test_unknown_fields_are_looked_at() -> None:
    odd = chunk({"content": "hi ", "mood": "write ann@example.com"}, note="bob@example.com")
    odd.fields["greeting"] = "from ann@example.com"

    out = await streamed(StreamScreen([rule(email())]), [odd, END])

    assert "example.com" not in msgspec.json.encode(out).decode()
    assert out[0]["greeting"] == "from [EMAIL]"


async def test_the_opening_and_the_finish_are_not_lost() -> None:
    chunks = [
        chunk({"role": "assistant", "content": "", "refusal": None}),
        chunk({}, finish="stop", native_finish_reason="end"),
    ]

    out = await streamed(StreamScreen([rule(email())]), chunks)

    assert [one["choices"] for one in out] == [
        [
            {
                "index": 0,
                "delta": {"role": "assistant", "content": "", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
                "native_finish_reason": "end",
            }
        ]
    ]


async def test_without_rules_every_chunk_is_handed_on() -> None:
    chunks = [*letters("ann@example.com"), END]
    inputs = StreamScreen([rule(email(), on=("input",))])

    assert [c for one in chunks for c in [c async for c in inputs.feed(one)]] == chunks


# --- how much it holds and costs


async def test_little_is_held_on_average() -> None:
    words = (
        "The answer is in the table below, which lists 12 items and 1,024 values of the last year (2024). " * 20
    ).split(" ")
    screening = StreamScreen([rule(email())])
    held, sent, out = [], 0, 0

    for word in words:
        for piece in (word[:4] + " ", word[4:]) if len(word) > 4 else (word + " ",):
            sent += len(piece)
            out += len(said([c.fields async for c in screening.feed(chunk({"content": piece}))]))
            held.append(sent - out)

    assert mean(held) < 4
    assert quantiles(held, n=100)[98] <= 21


@pytest.mark.parametrize(
    "text",
    ["word " * 4000, "a" * 16_000, "1 " * 8000, "-----BEGIN PRIVATE" + " KEY-----\n" + "MIIE " * 3000, "字" * 20_000],
)
async def test_a_text_is_read_a_few_times_at_most(text: str) -> None:
    detector = email()
    screening = StreamScreen([rule(detector), rule(Pattern("phrase", "red fox", reach=9))])

    out = await streamed(screening, [*letters(text), END], more=lambda number: number % 16 != 0)

    assert said(out) == text
    assert detector.read < 12 * len(text)


@pytest.mark.parametrize(("action", "text"), [("log", "one two three " * 900), ("redact", "MIIEpQIBAAKC" * 1000)])
async def test_a_text_that_is_kept_takes_little_more_than_itself(action: str, text: str) -> None:
    screening = StreamScreen([rule(email(), action)])
    await anext(screening.feed(chunk({"content": " "})), None)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]

    for at in range(0, len(text), 4):
        async for _ in screening.feed(chunk({"content": text[at : at + 4]})):
            pass

    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert kept < 4 * len(text)
