"""Texts through rules: what they become, and what happens where nobody could look."""

import asyncio
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.base import DetectorError
from guardrails.engine import Screened, Tally, restored, screen
from guardrails.placeholders import Placeholders
from guardrails.policy import Rule
from guardrails.view import View, answer_segments, request_segments, views_of
from models.errors import ContentBlocked, GuardrailUnavailable
from models.finding import Finding, Role, Segment
from models.request import Request

KEY = Placeholders(b"the key of this group of workers")
ANN, BOB = "ann@example.com", "bob@example.org"
WORD = "TOP" + "SECRET"


class Finds:
    """What a pattern finds. Notes what it was shown."""

    reach: int | None = 0
    revision = "1"

    def __init__(self, name: str = "pii", *, inline: bool = True, **kinds: str) -> None:
        self.name = name
        self.inline = inline
        self.kinds = frozenset(kinds)
        self.shown: list[list[Segment]] = []
        self._kinds = {kind: re.compile(pattern) for kind, pattern in kinds.items()}

    async def detect(self, segments: Sequence[Segment]) -> Sequence[Finding]:
        self.shown.append(list(segments))
        return [
            Finding(segment.index, kind, found.start(), found.end())
            for segment in segments
            for kind, pattern in self._kinds.items()
            for found in pattern.finditer(segment.text)
        ]


class Does(Finds):
    """Whatever it is told."""

    def __init__(self, act: Callable[[], Any], *, inline: bool = True) -> None:
        super().__init__("odd", inline=inline, x="x")
        self._act = act

    async def detect(self, segments: Sequence[Segment]) -> Sequence[Finding]:
        del segments
        answer = self._act()
        if asyncio.isfuture(answer) or asyncio.iscoroutine(answer):
            answer = await answer
        found: Sequence[Finding] = answer
        return found


def emails() -> Finds:
    return Finds(email=r"[a-z.]+@[a-z.]+[a-z]")


def secrets(*, inline: bool = True) -> Finds:
    return Finds("secrets", inline=inline, api_key=WORD)


def rule(detector: Finds, action: Any = "redact", *on: Any, **fields: Any) -> Rule:
    name = f"default/{detector.name}"
    return Rule(**{"name": name, "detector": detector, "action": action, "on": frozenset(on or {"input"}), **fields})


def texts(*given: str, role: Role = "user") -> list[Segment]:
    return [Segment(index, text, role) for index, text in enumerate(given)]


async def screened(segments: Sequence[Segment], *rules: Rule, phase: Any = "input", **more: Any) -> Screened:
    return await screen(segments, rules, phase=phase, placeholders=KEY, **more)


def becomes(segments: Sequence[Segment], done: Screened) -> list[str]:
    return [done.texts.get(segment.index, segment.text) for segment in segments]


# --- actions


async def test_what_is_found_is_redacted_in_place() -> None:
    given = texts(f"to {ANN}, cc {BOB}!", "nothing here")

    done = await screened(given, rule(emails()))

    assert becomes(given, done) == ["to [EMAIL], cc [EMAIL]!", "nothing here"]
    assert list(done.texts) == [0]
    assert done.acted == ("default/pii=redact",)
    assert done.issued == {}
    assert done.keepable


async def test_a_mask_can_be_undone_and_keeps_its_placeholder() -> None:
    given = texts(f"{ANN} and {BOB} and {ANN}")

    done = await screened(given, rule(emails(), "mask"))

    (text,) = becomes(given, done)
    one, other, again = text.split(" and ")
    assert one == again != other
    assert done.issued == {one: ANN, other: BOB}
    assert done.resealed == {0}
    answer = texts(f"I wrote to {one}.")
    assert restored(answer, done.issued).texts == {0: f"I wrote to {ANN}."}


async def test_a_block_names_the_rule_and_the_kinds_and_never_the_text() -> None:
    with pytest.raises(ContentBlocked) as blocked:
        await screened(texts(f"my key is {WORD}"), rule(secrets(), "block"))

    assert blocked.value.code == "content_blocked"
    assert "default/secrets (api_key)" in blocked.value.message
    assert WORD not in blocked.value.message


async def test_a_log_changes_nothing_and_is_told() -> None:
    tally = Tally()

    done = await screened(texts(ANN), rule(emails(), "log"), tally=tally)

    assert done.texts == {}
    assert done.acted == ("default/pii=log",)
    assert done.keepable
    assert tally.counts == {("default/pii", "pii", "log", "input"): 1}
    assert list(tally.seconds) == ["pii"]


async def test_a_secret_is_redacted_where_a_mask_was_asked_for() -> None:
    given = texts(f"my key is {WORD}")

    done = await screened(given, rule(secrets(), "mask"))

    assert becomes(given, done) == ["my key is [API_KEY]"]
    assert done.issued == {}
    assert done.resealed == frozenset()
    assert done.acted == ("default/secrets=redact",)


async def test_what_a_rule_does_not_ask_for_stays() -> None:
    both = Finds(email=r"\S+@\S+", phone=r"\d{7}")
    given = texts("a@b.co 5551234")

    done = await screened(given, rule(both, kinds=frozenset({"phone"})))

    assert becomes(given, done) == ["a@b.co [PHONE]"]


async def test_a_finding_below_the_confidence_of_a_rule_does_not_count() -> None:
    unsure = Does(lambda: [Finding(0, "x", 0, 1, confidence=0.3)])

    assert (await screened(texts("x"), rule(unsure, confidence=0.5))).texts == {}
    assert (await screened(texts("x"), rule(unsure))).texts == {0: "[X]"}


async def test_a_dry_run_says_what_it_would_do_and_lets_nothing_be_kept() -> None:
    tally = Tally()

    done = await screened(texts(WORD), rule(secrets(), "block", dry_run=True), tally=tally)

    assert done.texts == {}
    assert done.acted == ("default/secrets=block;dry-run",)
    assert not done.keepable
    assert tally.counts == {("default/secrets", "secrets", "dry_run", "input"): 1}


async def test_a_dry_run_that_finds_nothing_is_no_reason_not_to_keep() -> None:
    assert (await screened(texts("hello"), rule(secrets(), "block", dry_run=True))).keepable


async def test_overlapping_findings_of_several_rules_leave_nothing_standing() -> None:
    address = Finds("urls", url=r"https://\S+")
    given = texts(f"see https://{ANN}/{WORD}/x now")

    done = await screened(given, rule(emails(), "mask"), rule(secrets()), rule(address, "mask"))

    assert becomes(given, done) == ["see [API_KEY] now"]
    assert done.acted == ("default/pii=mask", "default/secrets=redact", "default/urls=mask")


@pytest.mark.parametrize(
    ("before", "after"),
    [("👩‍👩‍👧 ", " 🎉"), ("e\u0301 ", "\u0301"), ("שלום ", " עולם"), ("写信给", "谢谢"), ("\0", "\0")],
)
async def test_offsets_are_code_points_whatever_stands_around(before: str, after: str) -> None:
    given = texts(f"{before}{WORD}{after}")

    assert becomes(given, await screened(given, rule(secrets()))) == [f"{before}[API_KEY]{after}"]


# --- who looks at what


async def test_a_detector_looks_once_however_many_rules_ask() -> None:
    both = Finds(email=r"\S+@\S+", phone=r"\d{7}")

    done = await screened(
        texts("a@b.co 5551234"), rule(both, "mask", kinds=frozenset({"email"})), rule(both, kinds=frozenset({"phone"}))
    )

    assert len(both.shown) == 1
    assert len(done.edits[0]) == 2


async def test_equal_texts_are_looked_at_once_and_changed_everywhere() -> None:
    detector = secrets()
    given = texts(WORD, "hello", WORD, WORD)
    tally = Tally()

    done = await screened(given, rule(detector), tally=tally)

    assert [segment.text for segment in detector.shown[0]] == [WORD, "hello"]
    assert becomes(given, done) == ["[API_KEY]", "hello", "[API_KEY]", "[API_KEY]"]
    assert tally.counts == {("default/secrets", "secrets", "redact", "input"): 1}


async def test_a_rule_on_tool_results_sees_and_changes_those_alone() -> None:
    detector = secrets()
    given = [Segment(0, WORD, "user"), Segment(1, WORD, "tool_result"), Segment(2, f"{WORD}!", "tool_result")]

    done = await screened(given, rule(detector, "redact", "tool_result"))

    assert [(segment.index, segment.text) for segment in detector.shown[0]] == [(0, WORD), (1, f"{WORD}!")]
    assert becomes(given, done) == [WORD, "[API_KEY]", "[API_KEY]!"]


async def test_where_nothing_concerns_a_rule_nobody_looks() -> None:
    detector = secrets()

    done = await screened(texts(WORD), rule(detector, "redact", "output"))

    assert detector.shown == []
    assert done.texts == {}


async def test_what_is_split_over_the_parts_of_a_turn_is_found_in_all_of_them() -> None:
    half = len(WORD) // 2
    given = texts(f"the key: {WORD[:half]}", WORD[half:-1], f"{WORD[-1]} is it", "other")

    done = await screened(given, rule(secrets()), joints=[(0, 1, 2)])

    assert becomes(given, done) == ["the key: [API_KEY]", "[API_KEY]", "[API_KEY] is it", "other"]


async def test_a_mask_over_two_parts_is_restored_part_by_part() -> None:
    given = texts("to ann@exam", "ple.com now")

    done = await screened(given, rule(Finds(email=r"ann@example\.com"), "mask"), joints=[(0, 1)])

    there = [Segment(at, text) for at, text in enumerate(becomes(given, done))]
    assert [segment.text for segment in there] != ["to ann@exam", "ple.com now"]
    assert restored(there, done.issued).texts == {0: "to ann@exam", 1: "ple.com now"}


async def test_a_request_in_two_forms_is_changed_in_both() -> None:
    native = {"messages": [{"role": "user", "content": [{"type": "text", "text": f"{WORD} here"}]}]}
    body = {"messages": [{"role": "user", "content": f"{WORD} here"}]}
    views = views_of(Request("chat", "m", body, b"", dialect="anthropic", native=native))

    done = await screened(views.texts, rule(secrets()), joints=views.joints)
    there, back = views.rewritten(done.texts, edits=done.edits, resealed=done.resealed)

    assert there["messages"][0]["content"] == "[API_KEY] here"
    assert back["messages"][0]["content"][0]["text"] == "[API_KEY] here"


async def test_each_rule_acts_on_its_own_though_one_look_is_for_all() -> None:
    detector = secrets()
    given = [Segment(0, f"a {WORD}", "user"), Segment(1, f"b {WORD}", "tool_result")]

    done = await screened(given, rule(detector, "log"), rule(detector, "redact", "tool_result"))

    assert len(detector.shown) == 1
    assert becomes(given, done) == [f"a {WORD}", "b [API_KEY]"]


async def test_a_caller_who_writes_a_placeholder_gets_nobodys_value() -> None:
    literal = KEY.issue("email", ANN, {})
    given = texts(f"what is {literal}?", f"{ANN} asks")

    done = await screened(given, rule(emails(), "mask"))

    question, asking = becomes(given, done)
    assert asking == f"{literal} asks"
    assert literal not in question
    assert restored(texts(question), done.issued).texts == {0: f"what is {literal}?"}


# --- detectors elsewhere


async def test_others_see_what_is_masked_and_what_they_find_is_put_where_it_was() -> None:
    elsewhere = Finds("names", inline=False, person=r"Ann|Zoë")
    given = texts(f"{ANN} is Ann, {BOB} is Zoë 🎉 Ann")

    done = await screened(given, rule(emails(), "mask"), rule(elsewhere))

    shown = elsewhere.shown[0][0].text
    assert ANN not in shown
    assert BOB not in shown
    one, other = done.issued
    assert becomes(given, done) == [f"{one} is [PERSON], {other} is [PERSON] 🎉 [PERSON]"]


async def test_one_that_finds_a_placeholder_finds_what_is_behind_it() -> None:
    elsewhere = Finds("words", inline=False, word=r"EMAIL_\w+")
    given = texts(f"to {ANN}!")

    done = await screened(given, rule(emails(), "mask"), rule(elsewhere))

    assert becomes(given, done) == ["to [WORD]!"]


async def test_others_are_not_shown_the_same_text_joined() -> None:
    elsewhere = Finds("names", inline=False, person="Ann")

    for original in (True, False):
        await screened(texts("one", "two"), rule(secrets()), rule(elsewhere, original=original), joints=[(0, 1)])

    assert [[segment.text for segment in shown] for shown in elsewhere.shown] == [["one", "two"], ["one", "two"]]


async def test_one_that_asks_for_the_original_gets_it() -> None:
    elsewhere = Finds("names", inline=False, person="ann")
    given = texts(ANN)

    done = await screened(given, rule(emails(), "mask"), rule(elsewhere, "log", original=True))

    assert elsewhere.shown[0][0].text == ANN
    assert [(found.kind, found.start, found.end) for found in done.found] == [("email", 0, 15), ("person", 0, 3)]


async def test_nobody_elsewhere_is_asked_about_what_is_blocked_here() -> None:
    elsewhere = Finds("names", inline=False, person="ann")

    with pytest.raises(ContentBlocked):
        await screened(texts(WORD), rule(secrets(), "block"), rule(elsewhere))

    assert elsewhere.shown == []


async def test_those_elsewhere_look_at_the_same_time() -> None:
    both_there = asyncio.Barrier(2)

    async def wait() -> list[Finding]:
        await both_there.wait()
        return []

    one, other = Does(wait, inline=False), Does(wait, inline=False)

    assert (await screened(texts("x"), rule(one, timeout=5.0), rule(other, timeout=5.0))).keepable


# --- detectors that fail


def fails() -> Any:
    raise DetectorError("it is down")


def breaks() -> Any:
    raise KeyError(WORD)


async def hangs() -> Any:
    await asyncio.Event().wait()


async def ignores_its_end() -> Any:
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            asyncio.current_task().uncancel()  # type: ignore[union-attr]  # there is one
            await asyncio.wait({asyncio.ensure_future(asyncio.Event().wait())}, timeout=0.05)
            return []


FAILURES: list[Callable[[], Any]] = [
    fails,
    breaks,
    hangs,
    lambda: None,
    lambda: 7,
    lambda: ["x"],
    lambda: [Finding(0, "x", 0, 2)],
    lambda: [Finding(0, "x", -1, 1)],
    lambda: [Finding(0, "x", 1, 1)],
    lambda: [Finding(0, "x", 1, 0)],
    lambda: [Finding(1, "x", 0, 1)],
    lambda: [Finding(-1, "x", 0, 1)],
    lambda: [Finding(0, "x", 0, 1), Finding(9, "x", 0, 1)],
    lambda: [Finding(0, "x", 0, cast("int", "1"))],
    lambda: [Finding(0, "x", cast("int", 0.5), 1)],
    lambda: [Finding(cast("int", None), "x", 0, 1)],
    lambda: [Finding(0, cast("str", None), 0, 1)],
    lambda: [Finding(0, "x", 0, 1, cast("float", None))],
]


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("act", FAILURES)
async def test_whoever_does_not_look_properly_stops_what_fails_closed(act: Callable[[], Any], inline: bool) -> None:
    tally = Tally()

    with pytest.raises(GuardrailUnavailable) as unavailable:
        await screened(texts("x"), rule(Does(act, inline=inline), timeout=0.02), tally=tally)

    assert unavailable.value.code == "guardrail_unavailable"
    assert "default/odd" in unavailable.value.message
    assert tally.failed[0][0] == "default/odd"
    assert WORD not in str(tally.failed) + unavailable.value.message


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("act", FAILURES)
async def test_what_fails_open_goes_on_and_is_not_kept(act: Callable[[], Any], inline: bool) -> None:
    odd = rule(Does(act, inline=inline), fail="open", timeout=0.02)

    done = await screened(texts("x"), odd)

    assert done.texts == {}
    assert not done.keepable


@pytest.mark.parametrize("inline", [True, False])
async def test_an_own_error_of_somebody_is_its_failure(inline: bool) -> None:
    class Theirs(Exception):
        pass

    def raises() -> Any:
        raise Theirs(WORD)

    tally = Tally()
    with pytest.raises(GuardrailUnavailable):
        await screened(texts("x"), rule(Does(raises, inline=inline)), tally=tally)

    assert tally.failed == [("default/odd", "Theirs")]


async def test_one_that_ignores_its_end_is_left_behind() -> None:
    with pytest.raises(GuardrailUnavailable):
        await asyncio.wait_for(screened(texts("x"), rule(Does(ignores_its_end, inline=False), timeout=0.01)), 0.04)


async def test_a_log_or_a_dry_run_that_fails_is_no_reason_to_stop() -> None:
    logging = rule(Does(fails), "log", fail="open")
    dry = rule(Does(fails), "block", dry_run=True)

    assert (await screened(texts("x"), logging)).keepable
    assert not (await screened(texts("x"), dry)).keepable


async def test_a_block_outweighs_somebody_elses_failure() -> None:
    with pytest.raises(ContentBlocked):
        await screened(texts(WORD), rule(Does(fails)), rule(secrets(), "block"))


async def test_a_client_that_leaves_ends_the_looking() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def waits() -> Any:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    looking = asyncio.ensure_future(screened(texts("x"), rule(Does(waits, inline=False))))
    await begun.wait()
    looking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await looking
    await ended.wait()


async def test_without_a_key_nothing_can_be_masked() -> None:
    with pytest.raises(ValueError, match="placeholders"):
        await screen(texts(ANN), [rule(emails(), "mask")], phase="input")


# --- large texts


async def test_a_large_text_is_looked_at_in_a_thread() -> None:
    here = threading.get_ident()
    where: list[bool] = []

    class Notes(Finds):
        async def detect(self, segments: Sequence[Segment]) -> Sequence[Finding]:
            where.append(threading.get_ident() == here)
            return await super().detect(segments)

    class Aside(Finds):
        async def detect(self, segments: Sequence[Segment]) -> Sequence[Finding]:
            await asyncio.to_thread(where.append, True)
            return await super().detect(segments)

    small, large = texts(WORD), texts("a " * 40_000 + WORD)

    await screened(small, rule(Notes("secrets", api_key=WORD)))
    one = await screened(large, rule(Notes("secrets", api_key=WORD)))
    other = await screened(large, rule(Aside("secrets", api_key=WORD)))

    assert where == [True, False, True]
    assert one.texts[0].endswith("a [API_KEY]")
    assert other.texts == one.texts


@pytest.mark.parametrize("act", [fails, breaks, hangs, lambda: [Finding(1, "x", 0, 1)]])
async def test_a_failure_there_is_a_failure(act: Callable[[], Any]) -> None:
    with pytest.raises(GuardrailUnavailable):
        await screened(texts("a" * 70_000), rule(Does(act), timeout=0.2))


async def test_a_hundred_thousand_parts_with_as_many_findings_are_no_harder() -> None:
    body = {
        "messages": [{"role": "user", "content": [{"type": "text", "text": f"{n} {WORD}"} for n in range(100_000)]}]
    }
    view = request_segments(body, "openai")

    done = await screened(view.texts, rule(secrets()), joints=view.joints)
    there = view.rewritten(done.texts, edits=done.edits)

    assert there["messages"][0]["content"][-1]["text"] == "99999 [API_KEY]"
    assert len(done.texts) == 100_000


# --- properties


PIECES = st.lists(
    st.sampled_from([WORD, WORD[:4], WORD[4:], ANN, "<EMAIL_7f3a9c>", "<", "👩‍👧", "e\u0301", "ש", " ", "@"])
    | st.text(max_size=3)
).map("".join)


@given(st.lists(PIECES, min_size=1, max_size=4))
async def test_masked_and_restored_is_what_it_was(given: list[str]) -> None:
    segments = texts(*given)
    odd = Finds("odd", thing=r"S|E.|\S@", other=r"[<>].{0,4}")

    done = await screened(
        segments,
        rule(emails(), "mask"),
        rule(odd, "mask"),
        joints=[tuple(range(len(segments)))] if segments[1:] else (),
    )

    there = [Segment(at, text) for at, text in enumerate(becomes(segments, done))]
    back = restored(there, done.issued)
    assert [back.texts.get(at, text.text) for at, text in enumerate(there)] == given


@given(PIECES)
async def test_nothing_that_was_found_is_left_and_nothing_else_is_gone(text: str) -> None:
    segments = texts(text)

    done = await screened(segments, rule(secrets()), rule(emails()))

    (there,) = becomes(segments, done)
    assert WORD not in there
    rest = [char for at, char in enumerate(text) if not any(found.start <= at < found.end for found in done.found)]
    assert list(re.sub(r"\[(?:API_KEY|EMAIL)\]", "", there)) == rest or "[" in text


# --- answers


def answered(view: View, done: Screened) -> Any:
    return view.rewritten(done.texts, edits=done.edits, resealed=done.resealed)


async def test_an_answer_is_screened_and_then_restored() -> None:
    asked = await screened(texts(f"write to {ANN}"), rule(emails(), "mask"))
    (placeholder,) = asked.issued
    call = {"function": {"name": "send", "arguments": f'{{"to": "{placeholder}", "key": "{WORD}"}}'}}
    answer = {"choices": [{"message": {"content": f"sent to {placeholder} with {WORD}", "tool_calls": [call]}}]}
    view = answer_segments(answer)

    done = await screened(view.texts, rule(secrets(), "redact", "output"), phase="output")
    kept = answered(view, done)
    again = answer_segments(kept)
    back = restored(again.texts, asked.issued)
    told = again.rewritten(back.texts, edits=back.edits, resealed=back.texts)

    assert ANN not in str(kept)
    message = told["choices"][0]["message"]
    assert message["content"] == f"sent to {ANN} with [API_KEY]"
    assert message["tool_calls"][0]["function"]["arguments"] == f'{{"to": "{ANN}", "key": "[API_KEY]"}}'
    assert placeholder in str(kept)
