"""No answer of a real gateway ever has the mark of another account, place or wording around: seeded sequences.

The provider repeats the `user` of the request it was called for, which is no
part of any identity: so every answer says whose it was.
"""

import json
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.fake_provider import Fake, running
from tests.support.fake_vendor import SSE, Asked, Reply, event, whole
from tests.support.gateway import Gateway, Json, eventually, running_gateway, settings, streamed_text, text_of
from tests.support.scenes import PARTS, PLAIN, SCOPES, TEAMS, Scene, meant, request
from tests.support.servers import Server
from tests.support.stores import grpc_port

_numbers = count()

# `{}` is an address where addresses are masked.
TOPICS = (
    "return a pair of boots to {}", "complain to {} about a late parcel", "send {} a receipt of my payment",
    "ask {} for a copy of the contract", "give {} access to a shared folder", "book a room for a visitor at {}",
)  # fmt: skip
WORDINGS = ("How do I {}?", "How can I {}?", "How could I {}?", "Please tell me how to {}.")
# Of all parts those that count everywhere; the other two go with an endpoint.
CHANGES = [name for name in PARTS if name not in ("mail", "x-tier")]
RULES: list[Json] = [
    {"name": "masks", "rules": [{"detect": "email", "on": "input", "action": "mask"}]},
    {
        "name": "ruled",
        "rules": [
            {
                "detect": "email",
                "on": "input",
                "action": "log",
                "when": "'x-tier' in headers && headers['x-tier'] == 'gold'",
            }
        ],
    },
]


class Repeats:
    """OpenAI's chat as far as it is needed: answers with the `user` of the request."""

    name = "repeats"
    version = "/v1"

    def credential(self, asked: Asked) -> str | None:
        return asked.bearer()

    def answer(self, asked: Asked) -> Reply:
        body = json.loads(asked.body)
        said = {"role": "assistant", "content": body["user"]}
        about = {"id": "c", "created": 1, "model": body["model"]}
        if not body.get("stream"):
            choice = {"index": 0, "message": said, "finish_reason": "stop"}
            return whole({**about, "object": "chat.completion", "choices": [choice]})
        chunks: list[Json] = [{"delta": said}, {"delta": {}, "finish_reason": "stop"}]
        told = [event({**about, "object": "chat.completion.chunk", "choices": [{"index": 0, **one}]}) for one in chunks]
        return Reply([*told, b"data: [DONE]\n\n"], media_type=SSE, error_event=b"data: {}\n\n")

    def failure(self, status: int, message: str) -> Reply:
        return whole({"error": {"message": message}}, status=status)


class Asking(NamedTuple):
    scene: Scene
    topic: str
    wording: str
    stream: bool

    @property
    def mark(self) -> str:
        """All that its answer may depend on."""
        return json.dumps([self.topic, *meant(self.scene)])


def configuration(directory: Path, provider: Fake, **sections: object) -> Json:
    cache = {"mode": "semantic", "ttl": "1h", "ttl_jitter": 0}
    endpoints: list[Json] = [
        {"name": name, "cache": {**cache, **({"scope": scope} if (scope := SCOPES.get(name)) else {})}}
        | {"guardrails": [name] if name in ("masks", "ruled") else []}
        for name in PARTS["endpoint"].words
    ]
    models = [
        {"name": name, "targets": [{"upstream": "mock", "model": to}]}
        for name, to in (("m", "first"), ("n", "second"), ("alias", "first"))
    ]
    return settings(
        directory,
        provider.base_url,
        endpoints=[{"name": "default", "cache": cache}, *endpoints],
        models=models,
        guardrails=RULES,
        **sections,
    )


@pytest.fixture(scope="module")
def provider() -> Iterator[Fake]:
    with running(Repeats()) as fake:
        yield fake


@contextmanager
def place(directory: Path, provider: Fake, **sections: object) -> Iterator[Gateway]:
    with running_gateway(directory, configuration(directory, provider, **sections)) as gateway:
        yield gateway


def sequence(seed: int, requests: int) -> list[Asking]:
    """Around a few requests that are asked again and again, in other words, and with one or two parts changed."""
    draw = random.Random(seed)  # noqa: S311 - the same again is the point

    def changed(scene: Scene) -> Scene:
        names = draw.sample(CHANGES, draw.choice((0, 1, 1, 1, 2)))
        scene = {**scene, **{name: draw.choice(PARTS[name].words) for name in names}}
        if scene["endpoint"] in ("masks", "ruled"):
            name = "mail" if scene["endpoint"] == "masks" else "x-tier"
            scene = {**scene, name: draw.choice(PARTS[name].words)}
        # The gateway takes the `user`; it is what marks the answer.
        return {**scene, "neutral": ""} if scene["neutral"] in ("user", "stream", "stream_options") else scene

    bases = [
        {**PLAIN, "account": account, "endpoint": endpoint, "system": "You sell shoes."}
        for account in PARTS["account"].words
        for endpoint in ("own", "teams", "masks")
    ]
    return [
        Asking(changed(draw.choice(bases)), draw.choice(TOPICS), draw.choice(WORDINGS), draw.random() < 0.2)
        for _ in range(requests)
    ]


def answered(gateway: Gateway, secrets: Mapping[str, str], one: Asking) -> tuple[str, str]:
    """The tier and the mark of the answer."""
    body, headers = request(one.scene, one.wording.format(one.topic), secrets=secrets)
    body = {**body, "user": one.mark, "stream": one.stream}
    sent = {name: value.strip() for name, value in headers.items()}  # httpx sends no space at the end
    answer = gateway.post(body, endpoint=one.scene["endpoint"], headers=sent)
    assert answer.status_code == 200, answer.text
    told = streamed_text(answer.text) if one.stream else text_of(answer)
    return answer.headers["x-keepgate-cache"], told


def leaks(gateway: Gateway, secrets: Mapping[str, str], asking: Sequence[Asking]) -> tuple[Counter[str], list[str]]:
    """Answers by tier, and what was wrong. The first half one by one, the second eight at a time."""
    half = len(asking) // 2
    answers = [answered(gateway, secrets, one) for one in asking[:half]]
    with ThreadPoolExecutor(8) as pool:
        answers += pool.map(lambda one: answered(gateway, secrets, one), asking[half:])
    wrong = [
        f"{tier}: {one.mark} got {told}" for one, (tier, told) in zip(asking, answers, strict=True) if told != one.mark
    ]
    return Counter(tier for tier, _ in answers), wrong


def holds(gateway: Gateway, seed: int, requests: int) -> None:
    secrets = {name: gateway.make_key(name, team=team) for name, team in TEAMS.items()}

    tiers, wrong = leaks(gateway, secrets, sequence(seed, requests))

    assert not wrong, wrong[:5]
    # Where nothing is served nothing leaks.
    assert tiers["exact"] > requests / 50, tiers
    assert tiers["semantic"] > requests / 12, tiers


def test_no_answer_has_the_mark_of_another(tmp_path: Path, provider: Fake) -> None:
    with place(tmp_path, provider) as gateway:
        holds(gateway, seed=1, requests=400)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(2, 6))
def test_no_answer_has_the_mark_of_another_in_long_sequences(tmp_path: Path, provider: Fake, seed: int) -> None:
    with place(tmp_path, provider, server={"workers": 2}) as gateway:
        holds(gateway, seed=seed, requests=2_500)


@pytest.mark.full
@pytest.mark.parametrize("store", ["redis", "qdrant"])
def test_no_answer_has_the_mark_of_another_in_other_stores(
    tmp_path: Path, provider: Fake, store_server: Callable[[str], Server], store: str
) -> None:
    redis, prefix = store_server("redis"), f"leaks-{next(_numbers)}"
    sections: Json = {
        "cache": {"exact": {"store": "redis", "deadline": "5s"}, "vector": {"store": store, "deadline": "5s"}},
        "redis": {"url": f"redis://127.0.0.1:{redis.port}", "prefix": prefix},
    }
    if store == "qdrant":
        server = store_server("qdrant")
        sections["qdrant"] = {"url": server.url, "grpc_port": grpc_port(server), "prefix": prefix}
    with place(tmp_path, provider, **sections) as gateway:
        holds(gateway, seed=6, requests=1_000)


def each_topic(gateway: Gateway, mark: str, wording: str) -> list[tuple[str, str]]:
    """What one caller gets for every topic, asked with a mark of when it was asked."""
    found = []
    for topic in TOPICS:
        body = {"model": "m", "user": mark, "messages": [{"role": "user", "content": wording.format(topic)}]}
        answer = gateway.post(body)
        found.append((answer.headers["x-keepgate-cache"], text_of(answer)))
    return found


def test_nothing_screened_by_other_rules_is_served(tmp_path: Path, provider: Fake) -> None:
    with place(tmp_path, provider) as gateway:
        each_topic(gateway, "before", WORDINGS[0])
        eventually(lambda: ("semantic", "before") in each_topic(gateway, "before", WORDINGS[1]))
        rule = {"detect": "regex", "pattern": "forbidden", "on": ["input"], "action": "block"}
        gateway.configure(
            {**configuration(tmp_path, provider), "guardrails": [*RULES, {"name": "default", "rules": [rule]}]}
        )
        gateway.server.signal(signal.SIGHUP)
        eventually(lambda: gateway.ask("A forbidden word", model="m", user="").status_code == 400)

        after = each_topic(gateway, "after", WORDINGS[0]) + each_topic(gateway, "after", WORDINGS[2])

    assert {told for _, told in after} == {"after"}


@pytest.mark.full
def test_vectors_of_another_embedder_are_never_searched(tmp_path: Path, provider: Fake) -> None:
    with place(tmp_path, provider) as gateway:
        each_topic(gateway, "before", WORDINGS[0])
        eventually(lambda: ("semantic", "before") in each_topic(gateway, "before", WORDINGS[1]))
    # Else what was stored is embedded anew, and found in its new place.
    (tmp_path / "data" / "embedders.json").unlink()

    other = {"vector": {"deadline": "5s"}, "embedder": {"kind": "static"}}
    with place(tmp_path, provider, cache=other) as gateway:
        again, reworded = each_topic(gateway, "after", WORDINGS[0]), each_topic(gateway, "after", WORDINGS[2])

    # The same request is the same in any embedder.
    assert set(again) == {("exact", "before")}
    assert {told for _, told in reworded} == {"after"}
