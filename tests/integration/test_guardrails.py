"""Guardrails through a real gateway: what upstream gets to read, what clients get back, and what the cache keeps.

Clients of every dialect, each at a provider of its own dialect, which repeats the question in its answer. `PLACES` is
the table of where a secret may be in a request; each is asked by every client, whole and streamed, at first and out of
the cache.
"""

import base64
import binascii
import itertools
import json
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml

from models.request import Dialect
from tests.integration.test_dialect_grid import ALL, PLACE, PROVIDERS, VENDORS
from tests.integration.test_passthrough import Upstream, running_upstream
from tests.support import fake_anthropic, fake_gemini, fake_openai_chat, fake_openai_responses
from tests.support.fake_provider import KEY, Fake, running
from tests.support.gateway import Gateway, Json, eventually, running_gateway, settings
from tests.support.speakers import SPEAKERS, Ask, Tool

MODELS: Mapping[Dialect, str] = {
    "openai": "gpt-4o",
    "responses": "gpt-5.2",
    "anthropic": "claude-haiku-4-5",
    "gemini": "gemini-2.5-flash",
}
SECRET = "ghp_" + "Qw8rTz5uIo3pAs7dFg2hJk6lYx9cVb4nM1qE"
LABEL = "[GITHUB_PAT]"
REDACTED = "default/secrets=redact"
MAIL = "ada.lovelace@analytical.org"
OTHER_MAIL = "grace.hopper@compilers.org"
CLIENT = 'CLIENT-"Ada"'
MASKED = re.compile(r"<EMAIL_[0-9a-f]{6,}>")
WEATHER = Tool("weather", "The weather in a city.", PLACE)
BLOCKED = "PROJ-1234"
CACHED = {"cache-control": "only-if-cached"}

# Where a secret may be in a request.
PLACES = (
    "system prompt",
    "user text",
    "one of several parts",
    "two parts",
    "earlier turn",
    "tool definition",
    "tool arguments in history",
    "tool result",
    "document",
)

_numbers = itertools.count()


class Wall(NamedTuple):
    gateway: Gateway
    fakes: Mapping[Dialect, Fake]

    def post(
        self,
        client: Dialect,
        body: Json,
        *,
        stream: bool = False,
        endpoint: str = "default",
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        said = {**body, "stream": True} if stream and client != "gemini" else body
        if stream and client == "openai":
            said["stream_options"] = {"include_usage": True}
        path = f"/e/{endpoint}{SPEAKERS[client].path(client, stream=stream)}"
        return self.gateway.client.post(path, json=said, headers=headers)

    def ask(self, client: Dialect, text: str, **more: Any) -> httpx.Response:
        """In chat completions' words and the others'. `more` is for `post`."""
        return self.post(client, SPEAKERS[client].body(Ask(text=text), client, stream=False), **more)

    def reset(self) -> None:
        for fake in self.fakes.values():
            fake.reset()


def policies() -> list[Json]:
    return [
        {"name": "answers", "rules": [{"detect": "secrets", "on": ["output"], "action": "redact"}]},
        {
            "name": "blocks",
            "rules": [
                {"name": "project", "detect": "regex", "pattern": "PROJ-[0-9]{4}", "on": ["output"], "action": "block"}
            ],
        },
        {
            "name": "masks",
            "rules": [
                {"detect": "email", "on": ["input"], "action": "mask"},
                {"name": "client", "detect": "regex", "pattern": 'CLIENT-"[^"]+"', "on": ["input"], "action": "mask"},
            ],
        },
        *(
            {
                "name": f"{fail}-{on}",
                "rules": [{"detect": "broken", "on": [on], "action": "redact", "fail": fail}],
            }
            for fail in ("open", "closed")
            for on in ("input", "output")
        ),
        {"name": "half", "rules": [{"detect": "secrets", "on": ["output"], "action": "redact", "sample": 0.5}]},
        {"name": "some", "rules": [{"detect": "email", "on": ["input"], "action": "mask", "sample": 0.5}]},
        {
            "name": "private",
            "rules": [
                {"name": "project", "detect": "regex", "pattern": "PROJ-[0-9]{4}", "on": ["input"], "action": "block"}
            ],
        },
        {
            "name": "dry",
            "rules": [{"detect": "secrets", "on": ["input", "output"], "action": "redact", "dry_run": True}],
        },
        {
            "name": "when",
            "rules": [
                {
                    "name": name,
                    "detect": "regex",
                    "pattern": word,
                    "on": ["input"],
                    "action": "redact",
                    "when": condition,
                }
                for name, word, condition in (
                    ("header", "header-word", "'x-team' in headers && headers['x-team'] == 'red'"),
                    ("endpoint", "endpoint-word", "endpoint == 'when'"),
                    ("elsewhere", "elsewhere-word", "endpoint == 'default'"),
                    ("keyed", "keyed-word", "key == 'tester'"),
                    ("model", "model-word", "model == 'openai'"),
                )
            ],
        },
    ]


def endpoints() -> list[Json]:
    exact = {"mode": "exact", "keep": ["stop", "length", "tool_calls"]}
    semantic = {"mode": "semantic", "threshold": 0.5}
    named: list[Json] = [{"name": "default", "cache": exact}]
    named += [{"name": "bare", "cache": exact, "guardrails": []}]
    named += [{"name": p["name"], "cache": exact, "guardrails": [p["name"]]} for p in policies()]
    named += [{"name": "changing", "cache": exact, "guardrails": []}]
    named += [{"name": "meaning", "cache": semantic, "guardrails": ["masks"]}]
    return [*named, {"name": "said", "cache": semantic, "guardrails": ["answers"]}]


BROKEN = """
from guardrails.base import DetectorError


class Broken:
    name, kinds, revision, reach, inline = "broken", frozenset({"thing"}), "1", 0, True

    async def detect(self, segments):
        raise DetectorError("it is out of order")
"""


def install_detector(directory: Path) -> None:
    """One that can never look, as somebody else's package."""
    (directory / "somebodys.py").write_text(BROKEN)
    metadata = directory / "somebodys-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[keepgate.detectors]\nbroken = somebodys:Broken\n")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wall]:
    directory = tmp_path_factory.mktemp("guardrails")
    with ExitStack() as stack:
        added = directory / "added"
        added.mkdir()
        install_detector(added)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(added), os.environ.get("PYTHONPATH")))))
        fakes = {dialect: stack.enter_context(running(VENDORS[dialect]())) for dialect in ALL}
        config = configuration(directory, fakes, endpoints=endpoints(), guardrails=policies())
        yield Wall(stack.enter_context(running_gateway(directory, config)), fakes)


def configuration(directory: Path, fakes: Mapping[Dialect, Fake], **sections: Any) -> Json:
    upstreams: list[Json] = [
        {
            "name": dialect,
            "provider": PROVIDERS[dialect],
            "base_url": fake.base_url,
            "api_key": KEY,
            "dialects": [dialect],
            "breaker": {"failures": 100_000},
        }
        for dialect, fake in fakes.items()
    ]
    models: list[Json] = [
        {"name": dialect, "targets": [{"upstream": dialect, "model": MODELS[dialect]}], "attempts": 1}
        for dialect in fakes
    ]
    return settings(directory, "", upstreams=upstreams, models=models, **sections)


@pytest.fixture
def wall(shared: Wall) -> Wall:
    shared.reset()
    return shared


@pytest.fixture
def apart() -> dict[str, str]:
    """A partition of the cache that no other test has."""
    return {"x-keepgate-namespace": f"test-{next(_numbers)}"}


# --- a secret in a request


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("client", ALL)
@pytest.mark.parametrize("place", PLACES)
def test_a_secret_never_reaches_the_provider_wherever_it_is(
    wall: Wall, apart: dict[str, str], place: str, client: Dialect, stream: bool
) -> None:
    body = placed(client, place, SECRET)

    first = wall.post(client, body, stream=stream, headers=apart)
    assert first.status_code == 200, first.text
    [call] = wall.fakes[client].calls
    again = found(lambda: hit(wall, client, body, stream, apart))

    assert not holds(call.raw.decode(), SECRET), call.raw
    assert LABEL in revealed(call.raw.decode())
    for answer, cache in ((first, "miss"), (again, "exact")):
        assert answer.headers["x-keepgate-cache"] == cache
        assert REDACTED in answer.headers["x-keepgate-guardrails"].split(", ")
        # Around its output, a Response repeats what the client itself asked.
        assert not holds(repr(told(client, answer, stream=stream)), SECRET)
    assert told(client, again, stream=stream) == told(client, first, stream=stream)
    assert len(wall.fakes[client].calls) == 1


def hit(
    wall: Wall, client: Dialect, body: Json, stream: bool, apart: Mapping[str, str], **more: Any
) -> httpx.Response | None:
    answer = wall.post(client, body, stream=stream, headers={**apart, **CACHED}, **more)
    return answer if answer.status_code == 200 else None


def found(probe: Callable[[], httpx.Response | None]) -> httpx.Response:
    """As soon as it is written: an answer leaves before its entry."""
    answer = eventually(probe)
    assert answer is not None
    return answer


def told(client: Dialect, answer: httpx.Response, *, stream: bool) -> Any:
    assert answer.status_code == 200, answer.text
    heard = SPEAKERS[client].heard(SPEAKERS[client].whole(answer.text) if stream else answer.json())
    return heard.texts, heard.thoughts, heard.calls, heard.finish


_BASE64 = re.compile(r"[A-Za-z0-9+/]{16,}={0,2}")


def revealed(text: str) -> str:
    """With whatever in it is base64 read."""
    read = [text]
    for encoded in _BASE64.findall(text):
        try:
            read.append(base64.b64decode(encoded, validate=True).decode("latin-1"))
        except binascii.Error:
            continue
    return "\n".join(read)


def holds(text: str, secret: str) -> bool:
    """Also in two pieces."""
    shown = revealed(text)
    return secret[:20] in shown or secret[20:] in shown


def placed(client: Dialect, place: str, secret: str) -> Json:
    """A request of that client with the secret in that place."""
    speaker = SPEAKERS[client]
    match place:
        case "system prompt":
            ask = Ask(text="Hello", system=f"Never say {secret} here.")
        case "user text":
            ask = Ask(text=f"What is {secret} for?")
        case "earlier turn":
            ask = Ask(text="And now?", earlier=((f"I have {secret} here.", "Good."),))
        case "tool definition":
            ask = Ask(text="Hello", tools=(Tool("weather", f"Ask with {secret} only.", PLACE),))
        case "tool arguments in history" | "tool result":
            ask = Ask(text="Hello", tools=(WEATHER,))
            body = speaker.body(ask, client, stream=False)
            inside = place == "tool arguments in history"
            turn = called(client, {"city": f"Paris {secret}" if inside else "Paris"})
            return speaker.going_on(body, turn, ["sunny" if inside else f"sunny, says {secret}"])
        case _:
            ask = Ask(text="Hello")
    body = speaker.body(ask, client, stream=False)
    if place == "one of several parts":
        in_parts(client, body, ["See here:", f"it is {secret}.", "Thanks."])
    elif place == "two parts":
        in_parts(client, body, [f"it is {secret[:20]}", f"{secret[20:]}."])
    elif place == "document":
        attach(client, body, f"Never say {secret} here.")
    return body


def parts_of(client: Dialect, body: Json) -> list[Json]:
    """Of the last turn."""
    if client == "gemini":
        parts: list[Json] = body["contents"][-1]["parts"]
        return parts
    turn = body["input" if client == "responses" else "messages"][-1]
    if isinstance(turn["content"], str):
        turn["content"] = [{"type": "text", "text": turn["content"]}]
    content: list[Json] = turn["content"]
    return content


def in_parts(client: Dialect, body: Json, texts: list[str]) -> None:
    parts = parts_of(client, body)
    parts[:] = [{**parts[0], "text": text} for text in texts]


def attach(client: Dialect, body: Json, text: str) -> None:
    data = base64.b64encode(text.encode()).decode()
    at = f"data:text/plain;base64,{data}"
    documents: Mapping[Dialect, Json] = {
        "openai": {"type": "file", "file": {"filename": "a.txt", "file_data": at}},
        "responses": {"type": "input_file", "filename": "a.txt", "file_data": at},
        "anthropic": {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": text}},
        "gemini": {"inlineData": {"mimeType": "text/plain", "data": data}},
    }
    parts_of(client, body).insert(0, documents[client])


def called(client: Dialect, arguments: Json) -> Json:
    """An answer that called the tool."""
    text = json.dumps(arguments)
    answers: Mapping[Dialect, Json] = {
        "openai": {
            "choices": [
                {
                    "message": {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [
                            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": text}}
                        ],
                    }
                }
            ]
        },
        "responses": {
            "output": [
                {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "weather", "arguments": text}
            ]
        },
        "anthropic": {"content": [{"type": "tool_use", "id": "toolu_1", "name": "weather", "input": arguments}]},
        "gemini": {
            "candidates": [
                {"content": {"role": "model", "parts": [{"functionCall": {"name": "weather", "args": arguments}}]}}
            ]
        },
    }
    return answers[client]


# --- a secret in an answer


SAID = ("text", "tool arguments", "thoughts")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("client", ALL)
@pytest.mark.parametrize("said", SAID)
def test_a_secret_in_an_answer_is_redacted_at_first_and_out_of_the_cache(
    wall: Wall, apart: dict[str, str], monkeypatch: pytest.MonkeyPatch, said: str, client: Dialect, stream: bool
) -> None:
    ask = Ask(text=f"Say {SECRET} again")
    if said == "tool arguments":
        ask = Ask(text=f'#call weather {{"city": "in {SECRET}"}}', tools=(WEATHER,))
    elif said == "thoughts":
        ask = Ask(text="Think #reason", thinks=True)
        for module in (fake_anthropic, fake_gemini, fake_openai_chat, fake_openai_responses):
            monkeypatch.setattr(module, "THOUGHT", f"They gave me {SECRET} to use.")
    body = SPEAKERS[client].body(ask, client, stream=stream)

    first = wall.post(client, body, stream=stream, endpoint="answers", headers=apart)
    again = found(lambda: hit(wall, client, body, stream, apart, endpoint="answers"))

    heard = told(client, first, stream=stream)
    assert LABEL in str(heard)
    assert told(client, again, stream=stream) == heard
    for answer in (first, again):
        assert SECRET not in answer.text
    assert again.headers["x-keepgate-guardrails"] == "answers/secrets=redact"
    assert stream or first.headers["x-keepgate-guardrails"] == "answers/secrets=redact"
    assert len(wall.fakes[client].calls) == 1


@pytest.mark.parametrize("client", ALL)
def test_a_blocked_answer_is_an_error_before_its_first_byte(wall: Wall, apart: dict[str, str], client: Dialect) -> None:
    for asked in (1, 2):
        answer = wall.ask(client, f"About {BLOCKED} please", endpoint="blocks", headers=apart)

        assert answer.status_code == 400
        message = SPEAKERS[client].error(answer.json()).message
        assert "project" in message
        assert BLOCKED not in answer.text
        assert answer.headers["x-keepgate-guardrails"] == "blocks/project=block"
        assert len(wall.fakes[client].calls) == asked


@pytest.mark.parametrize("client", ALL)
def test_a_stream_that_is_blocked_ends_as_its_dialect_has_it(
    wall: Wall, apart: dict[str, str], client: Dialect
) -> None:
    for asked in (1, 2):
        body = SPEAKERS[client].body(Ask(text=f"About {BLOCKED} please"), client, stream=True)
        answer = wall.post(client, body, stream=True, endpoint="blocks", headers=apart)

        (text, *_), _, _, finish = told(client, answer, stream=True)
        assert finish == "filtered"
        assert text.startswith("You said: About")
        assert "PROJ" not in answer.text
        assert answer.headers["x-keepgate-cache"] == "miss"
        assert len(wall.fakes[client].calls) == asked


@pytest.mark.parametrize("client", ALL)
def test_a_stream_that_says_nothing_before_it_is_blocked_is_an_error(
    wall: Wall, apart: dict[str, str], client: Dialect
) -> None:
    ask = Ask(text=f'#call weather {{"city": "{BLOCKED}"}}', tools=(WEATHER,))
    body = SPEAKERS[client].body(ask, client, stream=True)

    answer = wall.post(client, body, stream=True, endpoint="blocks", headers=apart)

    assert BLOCKED not in answer.text
    assert answer.status_code == 400, answer.text
    assert "project" in SPEAKERS[client].error(answer.json()).message


# --- values that are masked and come back


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("client", ALL)
def test_a_masked_value_comes_back_to_whom_it_belongs_and_to_nobody_else(
    wall: Wall, apart: dict[str, str], client: Dialect, stream: bool
) -> None:
    def asked(mail: str) -> httpx.Response:
        body = SPEAKERS[client].body(Ask(text=f"Write to {mail} today"), client, stream=stream)
        answer = wall.post(client, body, stream=stream, endpoint="masks", headers=apart)
        (text, *_), *_ = told(client, answer, stream=stream)
        assert text == f"You said: Write to {mail} today"
        return answer

    first = asked(MAIL)
    eventually(lambda: asked(MAIL).headers["x-keepgate-cache"] == "exact")
    another = asked(OTHER_MAIL)
    once_more = asked(MAIL)

    assert first.headers["x-keepgate-guardrails"] == "masks/email=mask"
    assert another.headers["x-keepgate-cache"] == "miss"
    assert once_more.headers["x-keepgate-cache"] == "exact"
    masked = [sole_mask(call.raw.decode()) for call in wall.fakes[client].calls]
    assert len(set(masked)) == 2


def sole_mask(sent: str) -> str:
    """What upstream got to read in place of an address."""
    assert "lovelace" not in sent
    assert "hopper" not in sent
    masks: set[str] = set(MASKED.findall(sent))
    assert len(masks) == 1, sent
    return masks.pop()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("client", ALL)
def test_a_masked_value_comes_back_in_the_arguments_of_a_call(
    wall: Wall, apart: dict[str, str], client: Dialect, stream: bool
) -> None:
    ask = Ask(text=f'#call weather {{"city": "{CLIENT}"}}', tools=(WEATHER,))
    body = SPEAKERS[client].body(ask, client, stream=stream)

    first = wall.post(client, body, stream=stream, endpoint="masks", headers=apart)
    again = found(lambda: hit(wall, client, body, stream, apart, endpoint="masks"))

    for answer in (first, again):
        _, _, calls, _ = told(client, answer, stream=stream)
        assert calls == (("weather", {"city": CLIENT}),)
    [call] = wall.fakes[client].calls
    assert "Ada" not in call.raw.decode()


@pytest.mark.parametrize("client", ALL)
def test_a_value_has_one_placeholder_in_all_turns(wall: Wall, client: Dialect) -> None:
    speaker = SPEAKERS[client]
    body = speaker.body(Ask(text=f"I am {MAIL}"), client, stream=False)
    first = wall.post(client, body, endpoint="masks")
    then = speaker.going_on(body, first.json(), [], f"Who is {MAIL}?")

    second = wall.post(client, then, endpoint="masks")

    assert told(client, second, stream=False)[0] == (f"You said: Who is {MAIL}?",)
    before, after = wall.fakes[client].calls
    assert sole_mask(after.raw.decode()) == sole_mask(before.raw.decode())
    assert len(MASKED.findall(after.raw.decode())) == 3


def test_a_semantic_hit_never_crosses_two_masked_values(wall: Wall, apart: dict[str, str]) -> None:
    def asked(text: str, **headers: str) -> httpx.Response:
        return wall.ask("openai", text, endpoint="meaning", headers={**apart, **headers})

    asked(f"How do I change the password of {MAIL}?")
    alike = found(lambda: semantic(asked(f"How can I change the password of {MAIL}?", **CACHED)))
    other = asked(f"How do I change the password of {OTHER_MAIL}?")

    assert told("openai", alike, stream=False)[0] == (f"You said: How do I change the password of {MAIL}?",)
    assert other.headers["x-keepgate-cache"] == "miss"
    assert MAIL not in other.text


def test_followers_of_one_answer_get_their_value_back(wall: Wall, apart: dict[str, str]) -> None:
    wall.fakes["openai"].latency = 0.3
    bodies = [SPEAKERS["openai"].body(Ask(text=f"Call {MAIL} now"), "openai", stream=False) for _ in range(4)]

    with ThreadPoolExecutor(4) as pool:
        asking = [
            pool.submit(wall.post, "openai", body, stream=bool(number % 2), endpoint="masks", headers=apart)
            for number, body in enumerate(bodies)
        ]
        answers = [one.result() for one in asking]

    for number, answer in enumerate(answers):
        assert told("openai", answer, stream=bool(number % 2))[0] == (f"You said: Call {MAIL} now",)
    assert {answer.headers["x-keepgate-cache"] for answer in answers} <= {"miss", "coalesced", "exact"}
    assert len(wall.fakes["openai"].calls) < len(answers)


def test_a_follower_does_not_get_a_value_that_only_the_other_sent(wall: Wall, apart: dict[str, str]) -> None:
    body = SPEAKERS["openai"].body(Ask(text="Who asks?"), "openai", stream=False)
    wall.post("openai", {**body, "user": MAIL}, endpoint="masks", headers={"cache-control": "no-store"})
    placeholder = sole_mask(wall.fakes["openai"].calls[0].raw.decode())
    wall.fakes["openai"].latency = 0.3
    # As if the model had been told who asks, and said it.
    escaped = placeholder.replace("<", "\\u003c").replace(">", "\\u003e")
    ask = Ask(text=f'#call weather {{"city": "{escaped}"}}', tools=(WEATHER,))
    body = SPEAKERS["openai"].body(ask, "openai", stream=False)

    mine, *others = together(
        wall, [{**body, "user": mail} for mail in (MAIL, OTHER_MAIL, OTHER_MAIL)], endpoint="masks", headers=apart
    )

    assert "coalesced" in {answer.headers["x-keepgate-cache"] for answer in others}
    assert told("openai", mine, stream=False)[2] == (("weather", {"city": MAIL}),)
    for other in others:
        assert told("openai", other, stream=False)[2] == (("weather", {"city": placeholder}),)


def test_a_follower_of_a_blocked_request_is_answered_for_its_own(wall: Wall, apart: dict[str, str]) -> None:
    body = SPEAKERS["openai"].body(Ask(text="Is this allowed? " * 20_000), "openai", stream=False)

    bodies = [{**body, "user": user} for user in (BLOCKED, "ann", "bob", "eve")]
    _, *answers = together(wall, bodies, endpoint="private", headers=apart)

    assert [answer.status_code for answer in answers] == [200, 200, 200]


def together(wall: Wall, bodies: list[Json], **more: Any) -> list[httpx.Response]:
    with ThreadPoolExecutor(len(bodies)) as pool:
        return [one.result() for one in [pool.submit(wall.post, "openai", body, **more) for body in bodies]]


def test_a_sampled_mask_is_undone_in_every_hit(wall: Wall, apart: dict[str, str]) -> None:
    for number in range(5):
        for _ in range(8):
            answer = wall.ask("openai", f"{number}: write to {MAIL}", endpoint="some", headers=apart)

            assert told("openai", answer, stream=False)[0] == (f"You said: {number}: write to {MAIL}",)
    assert any(MASKED.search(call.raw.decode()) for call in wall.fakes["openai"].calls)


def test_a_hit_without_a_placeholder_in_it_costs_no_scan(wall: Wall, apart: dict[str, str]) -> None:
    def scans() -> float:
        return wall.gateway.metric("keepgate_guardrail_seconds_count")

    ask = Ask(text=f'#call weather {{"city": "Paris"}} for {MAIL}', tools=(WEATHER,))
    body = SPEAKERS["openai"].body(ask, "openai", stream=False)
    wall.post("openai", body, endpoint="masks", headers=apart)
    found(lambda: hit(wall, "openai", body, False, apart, endpoint="masks"))
    before = scans()

    again = wall.post("openai", body, endpoint="masks", headers=apart)

    assert again.headers["x-keepgate-cache"] == "exact"
    assert again.headers["x-keepgate-guardrails"] == "masks/email=mask"
    assert scans() == before


def test_a_semantic_hit_says_what_was_done_to_the_answer_it_is(wall: Wall, apart: dict[str, str]) -> None:
    def asked(text: str, **headers: str) -> httpx.Response:
        return wall.ask("openai", text, endpoint="said", headers={**apart, **headers})

    asked(f"How do I change the key {SECRET}?")
    cached = found(lambda: semantic(asked(f"How can I change the key {SECRET}?", **CACHED)))
    alike = asked(f"How can I change the key {SECRET}?")

    assert alike.headers["x-keepgate-cache"] == "semantic"
    for answer in (cached, alike):
        assert LABEL in answer.text
        assert answer.headers["x-keepgate-guardrails"] == "answers/secrets=redact"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("client", ALL)
def test_a_client_in_another_dialect_than_its_provider_is_screened_alike(
    wall: Wall, apart: dict[str, str], client: Dialect, stream: bool
) -> None:
    provider: Dialect = "anthropic" if client != "anthropic" else "openai"
    ask = Ask(text=f'#call weather {{"city": "{CLIENT}"}} {MAIL}', tools=(WEATHER,))
    body = SPEAKERS[client].body(ask, provider, stream=stream)
    path = f"/e/masks{SPEAKERS[client].path(provider, stream=stream)}"

    for _ in range(2):
        answer = wall.gateway.client.post(path, json=body, headers=apart)

        assert told(client, answer, stream=stream)[2] == (("weather", {"city": CLIENT}),)
        assert "masks/email=mask" in answer.headers["x-keepgate-guardrails"]
    sent = wall.fakes[provider].calls[0].raw.decode()
    assert "Ada" not in sent
    assert "lovelace" not in sent


def semantic(answer: httpx.Response) -> httpx.Response | None:
    return answer if answer.headers["x-keepgate-cache"] == "semantic" else None


# --- what may be kept


def test_an_answer_that_a_sample_left_out_is_never_kept(wall: Wall, apart: dict[str, str]) -> None:
    seen = {True: 0, False: 0}

    for number in range(20):
        for _ in range(3):
            answer = wall.ask("openai", f"{number}: say {SECRET}", endpoint="half", headers=apart)
            passed = SECRET in answer.text
            if answer.headers["x-keepgate-cache"] == "exact":
                assert not passed
            else:
                seen[passed] += 1

    assert seen[True]
    assert seen[False]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("on", ["input", "output"])
def test_an_answer_that_an_open_rule_could_not_look_at_is_never_kept(
    wall: Wall, apart: dict[str, str], on: str, stream: bool
) -> None:
    for client in ALL:
        body = SPEAKERS[client].body(Ask(text="Hello"), client, stream=stream)
        for _ in range(2):
            answer = wall.post(client, body, stream=stream, endpoint=f"open-{on}", headers=apart)

            assert told(client, answer, stream=stream)[0] == ("You said: Hello",)
            assert answer.headers["x-keepgate-cache"] == "miss"
        assert len(wall.fakes[client].calls) == 2


def test_what_a_dry_run_would_have_changed_is_said_and_never_kept(wall: Wall, apart: dict[str, str]) -> None:
    for asked in (1, 2):
        answer = wall.ask("openai", f"Say {SECRET}", endpoint="dry", headers=apart)

        assert told("openai", answer, stream=False)[0] == (f"You said: Say {SECRET}",)
        assert answer.headers["x-keepgate-guardrails"] == "dry/secrets=redact;dry-run"
        assert answer.headers["x-keepgate-cache"] == "miss"
        assert len(wall.fakes["openai"].calls) == asked


def test_an_answer_from_before_a_policy_was_changed_is_never_served(wall: Wall, apart: dict[str, str]) -> None:
    def asked(text: str) -> httpx.Response:
        return wall.ask("openai", text, endpoint="changing", headers=apart)

    assert SECRET in asked(f"Keep {SECRET}").text
    eventually(lambda: asked(f"Keep {SECRET}").headers["x-keepgate-cache"] == "exact")
    config = wall.gateway.config.read_text()
    changed = yaml.safe_load(config)
    next(one for one in changed["endpoints"] if one["name"] == "changing")["guardrails"] = ["default"]
    probes = itertools.count()

    wall.gateway.configure(changed)
    wall.gateway.server.signal(signal.SIGHUP)
    try:
        eventually(lambda: SECRET not in asked(f"Probe {next(probes)} {SECRET}").text)
        second = asked(f"Keep {SECRET}")
    finally:
        wall.gateway.config.write_text(config)
        wall.gateway.server.signal(signal.SIGHUP)

    assert second.headers["x-keepgate-cache"] == "miss"
    assert SECRET not in second.text


def test_a_rule_applies_where_its_condition_holds_and_hits_stay_there(wall: Wall, apart: dict[str, str]) -> None:
    text = "header-word endpoint-word elsewhere-word keyed-word model-word"
    key = wall.gateway.make_key("tester")

    def asked(**headers: str) -> tuple[httpx.Response, str]:
        answer = wall.ask("openai", text, endpoint="when", headers={**apart, **headers})
        return answer, answer.headers["x-keepgate-guardrails"]

    plain, acted = asked()
    assert acted == "when/endpoint=redact, when/model=redact"
    assert "header-word" in plain.text
    red, acted = asked(**{"x-team": "red"})
    assert acted == "when/header=redact, when/endpoint=redact, when/model=redact"
    assert red.headers["x-keepgate-cache"] == "miss"
    assert "header-word" not in red.text
    keyed, acted = asked(authorization=f"Bearer {key}")
    assert acted == "when/endpoint=redact, when/keyed=redact, when/model=redact"
    assert keyed.headers["x-keepgate-cache"] == "miss"
    assert "keyed-word" not in keyed.text


# --- what is passed on


PASSED_ON: tuple[tuple[str, Json], ...] = (
    ("/v1/images/generations", {"prompt": f"a cat, {SECRET}"}),
    ("/v1/moderations", {"input": [f"is {SECRET} fine?"]}),
    ("/v1/rerank", {"query": "keys", "documents": ["none", {"text": SECRET}]}),
    ("/v1/audio/speech", {"input": f"Say {SECRET}"}),
    ("/v1/batches", {"input_file_id": "file-1", "metadata": {"key": SECRET}}),
    ("/v1/messages/batches", {"requests": [{"custom_id": "1", "params": {"system": SECRET}}]}),
)
FORM = {"content-type": "multipart/form-data; boundary=X"}
FIELD = '--X\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n{}\r\n'
FILE = '--X\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\nPNG\r\n--X--\r\n'


@pytest.fixture(scope="module")
def noting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Upstream]]:
    """A gateway, and an upstream that answers whatever it is told to."""
    directory = tmp_path_factory.mktemp("passed-on")
    with running_upstream() as upstream:
        there = {"provider": "openai-compatible", "base_url": f"http://127.0.0.1:{upstream.port}/v1"}
        config = settings(
            directory, "", upstreams=[{"name": "a", **there}], endpoints=endpoints(), guardrails=policies()
        )
        with running_gateway(directory, config) as gateway:
            yield gateway, upstream


@pytest.fixture
def passing(noting: tuple[Gateway, Upstream]) -> tuple[Gateway, Upstream]:
    _, upstream = noting
    upstream.asked.clear()
    answers(upstream, b"{}")
    return noting


def answers(upstream: Upstream, body: bytes, media_type: str = "application/json") -> None:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {media_type}\r\ncontent-length: {len(body)}\r\n\r\n"
    upstream.answers[:] = [head.encode() + body]


@pytest.mark.parametrize(("path", "body"), PASSED_ON)
@pytest.mark.parametrize("model", [{}, {"model": "a/m"}], ids=["by upstream", "by model"])
def test_a_secret_is_redacted_in_what_is_passed_on(
    passing: tuple[Gateway, Upstream], model: Json, path: str, body: Json
) -> None:
    gateway, upstream = passing

    answer = gateway.client.post(path, json={**model, **body})

    assert answer.status_code == 200, answer.text
    [sent] = upstream.asked
    assert SECRET not in sent.decode()
    assert LABEL in sent.decode()
    assert answer.headers["x-keepgate-guardrails"] == REDACTED


def test_of_a_field_that_is_passed_on_twice_none_goes_unseen(passing: tuple[Gateway, Upstream]) -> None:
    gateway, upstream = passing
    body = '{"prompt": "SECRET", "prompt": "a cat"}'.replace("SECRET", SECRET)

    gateway.client.post("/v1/images/generations", content=body)

    assert upstream.asked[0].endswith(b'\r\n\r\n{"prompt":"a cat"}')


def test_the_fields_of_a_form_are_screened_and_its_files_stay(passing: tuple[Gateway, Upstream]) -> None:
    gateway, upstream = passing
    text = "a cat\r\nof {}, crème"

    answer = gateway.client.post(
        "/v1/images/edits", content=(FIELD.format(text.format(SECRET)) + FILE).encode(), headers=FORM
    )

    assert upstream.asked[0].endswith((FIELD.format(text.format(LABEL)) + FILE).encode())
    assert answer.headers["x-keepgate-guardrails"] == REDACTED


def test_what_is_blocked_is_not_passed_on(passing: tuple[Gateway, Upstream]) -> None:
    gateway, upstream = passing

    refusals = [
        gateway.client.post("/e/private/v1/images/generations", json={"prompt": f"of {BLOCKED}"}),
        gateway.client.post("/e/private/v1/images/edits", content=FIELD.format(BLOCKED) + FILE, headers=FORM),
        gateway.client.post("/e/closed-input/v1/images/generations", json={"prompt": f"of {BLOCKED}"}),
    ]

    told = [(answer.status_code, answer.json()["error"]["code"]) for answer in refusals]
    assert told == [(400, "content_blocked"), (400, "content_blocked"), (503, "guardrail_unavailable")]
    assert not any(BLOCKED in answer.text for answer in refusals)
    assert upstream.asked == []


def test_what_was_masked_comes_back_in_an_answer_that_is_json(passing: tuple[Gateway, Upstream]) -> None:
    gateway, upstream = passing
    body = {"query": "who", "documents": [f"ask {MAIL}"]}
    gateway.client.post("/e/masks/v1/rerank", json=body)
    placeholder = sole_mask(upstream.asked[0].decode())
    answers(upstream, json.dumps({"results": [{"document": {"text": f"ask {placeholder}"}}]}).encode())

    answer = gateway.client.post("/e/masks/v1/rerank", json=body)

    assert answer.json() == {"results": [{"document": {"text": f"ask {MAIL}"}}]}
    assert answer.headers["x-keepgate-guardrails"] == "masks/email=mask"


@pytest.mark.parametrize("said", [{"output": [{"text": SECRET}]}, [{"text": SECRET}]])
def test_an_answer_in_json_that_is_passed_on_is_screened(passing: tuple[Gateway, Upstream], said: Any) -> None:
    gateway, upstream = passing
    answers(upstream, json.dumps(said).encode())

    answer = gateway.client.get("/v1/responses/resp_1")
    blocked = gateway.client.get("/e/closed-output/v1/responses/resp_1")

    assert answer.json() == json.loads(json.dumps(said).replace(SECRET, LABEL))
    assert answer.headers["x-keepgate-guardrails"] == REDACTED
    assert (blocked.status_code, blocked.json()["error"]["code"]) == (503, "guardrail_unavailable")


def test_what_no_rule_looked_at_is_not_called_clean(passing: tuple[Gateway, Upstream]) -> None:
    gateway, upstream = passing
    answers(upstream, b"RIFF", "audio/wav")

    seen = gateway.client.post("/v1/audio/speech", json={"input": "Hello"})
    unseen = [gateway.client.get("/v1/files/a"), gateway.client.post("/e/bare/v1/audio/speech", json={"input": "Hi"})]

    assert seen.content == b"RIFF"
    assert seen.headers["x-keepgate-guardrails"] == "clean"
    assert not any("x-keepgate-guardrails" in answer.headers for answer in unseen)


@pytest.mark.parametrize("client", ["anthropic", "gemini"])
def test_what_is_counted_is_screened(wall: Wall, client: Dialect) -> None:
    path, body = "/v1/messages/count_tokens", SPEAKERS[client].body(Ask(text=SECRET), client, stream=False)
    if client == "gemini":
        path = f"/genai/v1beta/models/{client}:countTokens"
    body.pop("max_tokens", None)

    answer = wall.gateway.client.post(path, json=body)

    assert answer.status_code == 200, answer.text
    [call] = wall.fakes[client].calls
    assert SECRET not in call.raw.decode()
    assert answer.headers["x-keepgate-guardrails"] == REDACTED


# --- what a new user gets


def test_without_a_policy_secrets_are_redacted_and_personal_data_is_only_counted(
    wall: Wall, apart: dict[str, str]
) -> None:
    def counted(**labels: str) -> float:
        return wall.gateway.metric("keepgate_guardrail_actions_total", **labels)

    before = [counted(rule="default/pii", phase=phase, action="log") for phase in ("input", "output")]
    canary = "zanzibarcanary"

    answer = wall.ask("openai", f"{canary} {MAIL} {SECRET}", headers=apart)
    blocked = wall.ask("openai", f"{canary} {BLOCKED} {MAIL}", endpoint="blocks", headers=apart)
    refused = wall.ask("openai", f"{canary} {MAIL}", endpoint="closed-input", headers=apart)

    assert told("openai", answer, stream=False)[0] == (f"You said: {canary} {MAIL} {LABEL}",)
    assert MAIL in wall.fakes["openai"].calls[0].raw.decode()
    after = [counted(rule="default/pii", phase=phase, action="log") for phase in ("input", "output")]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1]
    assert counted(rule="default/secrets", action="redact", phase="input", detector="secrets")
    records = wall.gateway.config.parent / "requests.jsonl"
    eventually(lambda: refused.headers["x-keepgate-request-id"] in records.read_text())
    assert blocked.status_code == 400
    for shown in (
        blocked.text,
        refused.text,
        records.read_text(),
        wall.gateway.log(),
        wall.gateway.client.get("/metrics").text,
    ):
        for private in (canary, MAIL, SECRET, BLOCKED):
            assert private not in shown


# --- a rule that cannot look


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("on", ["input", "output"])
@pytest.mark.parametrize("client", ALL)
def test_what_a_closed_rule_cannot_look_at_goes_nowhere(
    wall: Wall, apart: dict[str, str], client: Dialect, on: str, stream: bool
) -> None:
    body = SPEAKERS[client].body(Ask(text="Hello there"), client, stream=stream)

    answer = wall.post(client, body, stream=stream, endpoint=f"closed-{on}", headers=apart)

    assert answer.status_code == 503, answer.text
    assert f"closed-{on}/broken" in SPEAKERS[client].error(answer.json()).message
    assert "guardrail_unavailable" in answer.text or client == "gemini"
    assert "Hello there" not in answer.text
    assert "out of order" not in answer.text
    assert len(wall.fakes[client].calls) == (0 if on == "input" else 1)
    assert hit(wall, client, body, stream, apart, endpoint=f"closed-{on}") is None
