"""Another embedder while requests are served: no request notices, and what was stored before is found after.

The two built-in ones, whose vectors have other dimensions: `onnx` (384) and `static` (256).
"""

import signal
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.gateway import (
    Gateway,
    Json,
    Mock,
    await_ready,
    eventually,
    question,
    running_gateway,
    settings,
    text_of,
)
from tests.support.servers import Server, free_port
from tests.support.stores import grpc_port

ENDPOINTS: list[Json] = [{"name": "default", "cache": {"mode": "semantic", "threshold": 0.6, "ttl": "1h"}}]
STATIC: Json = {"kind": "static"}
ONNX: Json = {"kind": "onnx"}
TOPICS = ["bicycle", "glacier", "invoice", "mortgage", "orchestra", "passport", "saxophone", "telescope", "volcano"]
PAIRS = [f"the {one} and the {other}" for one, other in combinations(TOPICS, 2)]
SERVES = "semantic hits now come from the vectors of"


def asked(topic: str) -> str:
    return f"What should everybody know about {topic}?"


def reworded(topic: str) -> str:
    return f"What is it that everybody should know about {topic}?"


@pytest.fixture(
    params=["faiss", pytest.param("redis", marks=pytest.mark.full), pytest.param("qdrant", marks=pytest.mark.full)]
)
def stores(request: pytest.FixtureRequest, store_server: Callable[[str], Server], model: str) -> Json:
    """Sections that say where vectors are."""
    prefix = f"switch-{model}"
    sections: Json = {"cache": {"vector": {"store": request.param, "deadline": "5s"}}}
    if request.param == "redis":
        sections["redis"] = {"url": f"redis://127.0.0.1:{store_server('redis').port}", "prefix": prefix}
    elif request.param == "qdrant":
        server = store_server("qdrant")
        sections["qdrant"] = {"url": server.url, "grpc_port": grpc_port(server), "prefix": prefix}
    return sections


def with_embedder(directory: Path, mock: Mock, embedder: Json, sections: Json | None = None) -> Json:
    whole = settings(directory, mock.url, **{"endpoints": ENDPOINTS, **(sections or {})})
    return whole | {"cache": {**whole["cache"], "embedder": embedder}}


def switch(gateway: Gateway, config: Json) -> None:
    gateway.configure(config)
    gateway.server.signal(signal.SIGHUP)


def switched(gateway: Gateway, config: Json, *, workers: int = 1) -> None:
    """Returns when all workers serve with the embedder of `config`."""
    before = gateway.log().count(SERVES)
    switch(gateway, config)
    eventually(lambda: gateway.log().count(SERVES) == before + workers, within=60)


def keep(gateway: Gateway, topic: str, model: str) -> str:
    """Has the answer stored, whatever is there; the answer."""
    answer = gateway.ask(asked(topic), model=model, headers={"Cache-Control": "no-cache"})
    assert answer.status_code == 200, answer.text
    return text_of(answer)


def in_other_words(gateway: Gateway, topic: str, model: str) -> httpx.Response:
    """What the cache has for another wording, which is not kept; by any worker."""
    headers = {"Cache-Control": "only-if-cached, no-store", "Connection": "close"}
    return gateway.ask(reworded(topic), model=model, headers=headers)


def found_in_other_words(gateway: Gateway, topic: str, model: str) -> httpx.Response:
    """The same, as soon as the cache has something."""
    found = eventually(lambda: answer if (answer := in_other_words(gateway, topic, model)).status_code == 200 else None)
    assert found is not None
    return found


def open_files(gateway: Gateway) -> set[Path]:
    """Of a gateway of one worker."""
    found = set()
    for link in Path(f"/proc/{gateway.server.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(link.readlink())
    return found


def reembedding(gateway: Gateway) -> Any:
    return gateway.admin("GET", "/status").json()["reembedding"]


class Traffic:
    """While it lasts, other wordings of what is stored are asked for, and new answers are stored."""

    def __init__(self, gateway: Gateway, stored: dict[str, str], new: list[str], model: str) -> None:
        self.outcomes: Counter[str] = Counter()
        self.kept = dict(stored)
        self._url = f"{gateway.url}/v1/chat/completions"
        self._stored = stored
        self._new = iter(new)
        self._model = model
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _ask(self) -> None:
        while not self._enough.is_set():
            for topic, answer in self._stored.items():
                found = self._post(reworded(topic), "no-store")
                cache = found.headers.get("x-keepgate-cache")
                same = found.status_code == 200 and text_of(found) == answer
                self.outcomes[f"{found.status_code} {cache} {'same' if same else 'other'}"] += 1
            if (topic := next(self._new, "")) != "":
                fresh = self._post(asked(topic), "no-cache")
                self.outcomes[f"{fresh.status_code} kept"] += 1
                self.kept[topic] = text_of(fresh)

    def _post(self, text: str, control: str) -> httpx.Response:
        headers = {"Cache-Control": control}
        return httpx.post(self._url, json=question(text, model=self._model), headers=headers, timeout=30)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.full)])
def test_hits_go_on_through_a_switch_and_back(
    tmp_path: Path, mock: Mock, model: str, stores: Json, workers: int
) -> None:
    sections = {**stores, "server": {"workers": workers}}
    onnx, static = (with_embedder(tmp_path, mock, embedder, sections) for embedder in (ONNX, STATIC))
    with running_gateway(tmp_path, onnx) as gateway:
        stored = {topic: keep(gateway, topic, model) for topic in PAIRS[:6]}
        for topic in stored:
            found_in_other_words(gateway, topic, model)
        by_onnx = found_in_other_words(gateway, PAIRS[0], model).headers["x-keepgate-similarity"]

        with Traffic(gateway, stored, PAIRS[6:20], model) as there:
            eventually(lambda: len(there.kept) > len(stored))
            switched(gateway, static, workers=workers)
        by_static = found_in_other_words(gateway, PAIRS[0], model).headers["x-keepgate-similarity"]
        judged_by_static = gateway.admin("GET", "/status").json()["verifier"]
        for topic, answer in there.kept.items():
            assert text_of(found_in_other_words(gateway, topic, model)) == answer

        with Traffic(gateway, stored, PAIRS[20:], model) as back:
            eventually(lambda: len(back.kept) > len(stored))
            switched(gateway, onnx, workers=workers)
        by_onnx_again = found_in_other_words(gateway, PAIRS[0], model).headers["x-keepgate-similarity"]
        for topic, answer in (there.kept | back.kept).items():
            assert text_of(found_in_other_words(gateway, topic, model)) == answer
        log = gateway.log()

    for traffic in (there, back):
        assert set(traffic.outcomes) == {"200 semantic same", "200 kept"}, (traffic.outcomes, log)
        assert traffic.outcomes["200 semantic same"] >= 12
    assert by_onnx == by_onnx_again != by_static
    assert "/static/" in judged_by_static
    assert "Traceback" not in log


def test_a_gateway_that_is_killed_midway_finishes_the_move_when_it_is_back(
    tmp_path: Path, mock: Mock, model: str
) -> None:
    onnx, static = (with_embedder(tmp_path, mock, embedder) for embedder in (ONNX, STATIC))
    with running_gateway(tmp_path, onnx) as gateway:
        answers = {topic: keep(gateway, topic, model) for topic in PAIRS}
        for topic in PAIRS:
            found_in_other_words(gateway, topic, model)
        switch(gateway, static)
        eventually(lambda: reembedding(gateway) is not None or SERVES in gateway.log(), every=0)
        gateway.server.process.kill()
        gateway.server.process.wait(10)

    with running_gateway(tmp_path, static) as gateway:
        eventually(lambda: reembedding(gateway) is None)
        found = {topic: in_other_words(gateway, topic, model) for topic in PAIRS}

    with running_gateway(tmp_path, static) as gateway:
        again = reembedding(gateway)

    assert {topic: text_of(answer) for topic, answer in found.items()} == answers
    assert again is None


def test_an_embedder_that_cannot_be_reached_leaves_the_old_one_at_work(tmp_path: Path, mock: Mock, model: str) -> None:
    nobody = {"kind": "openai", "base_url": f"http://127.0.0.1:{free_port()}", "model": "m", "dimensions": 8}
    onnx, unreachable, static = (with_embedder(tmp_path, mock, each) for each in (ONNX, nobody, STATIC))
    with running_gateway(tmp_path, onnx) as gateway:
        keep(gateway, PAIRS[0], model)
        found_in_other_words(gateway, PAIRS[0], model)

        switch(gateway, unreachable)
        eventually(lambda: gateway.metric("keepgate_degraded", component="reembedding") == 1)
        told, remaining = reembedding(gateway), gateway.metric("keepgate_reembedding_remaining")
        meanwhile = in_other_words(gateway, PAIRS[0], model)
        await_ready(gateway)
        keep(gateway, PAIRS[1], model)
        found_in_other_words(gateway, PAIRS[1], model)

        switch(gateway, onnx)  # back to the first, which has never ceased to serve
        eventually(lambda: reembedding(gateway) is None)
        degraded = gateway.metric("keepgate_degraded", component="reembedding")
        first = in_other_words(gateway, PAIRS[1], model)

        switch(gateway, unreachable)
        eventually(lambda: gateway.metric("keepgate_degraded", component="reembedding") == 1)
        switched(gateway, static)  # on to a third
        third = [in_other_words(gateway, topic, model) for topic in PAIRS[:2]]
        log = gateway.log()

    assert told["to"].startswith("m@")
    assert (told["state"], told["remaining"], remaining) == ("embedding", 1, 1)
    assert meanwhile.headers["x-keepgate-cache"] == first.headers["x-keepgate-cache"] == "semantic"
    assert degraded == 0
    assert [answer.headers.get("x-keepgate-cache") for answer in third] == ["semantic"] * 2
    assert "the cache is degraded (reembedding" in log
    assert "Traceback" not in log


def test_an_embedder_that_is_none_leaves_the_old_one_at_work(tmp_path: Path, mock: Mock, model: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    onnx, none = (with_embedder(tmp_path, mock, each) for each in (ONNX, {"kind": "onnx", "path": str(folder)}))
    with running_gateway(tmp_path, onnx) as gateway:
        keep(gateway, PAIRS[0], model)
        found_in_other_words(gateway, PAIRS[0], model)

        switch(gateway, none)
        eventually(lambda: "holds no ONNX sentence encoder" in gateway.log())
        found = in_other_words(gateway, PAIRS[0], model)

    assert found.headers["x-keepgate-cache"] == "semantic"


@pytest.mark.full
def test_a_stream_that_began_before_ends_in_order_and_is_found_after(tmp_path: Path, mock: Mock, model: str) -> None:
    onnx, static = (with_embedder(tmp_path, mock, embedder) for embedder in (ONNX, STATIC))
    with running_gateway(tmp_path, onnx) as gateway:
        keep(gateway, PAIRS[0], model)
        found_in_other_words(gateway, PAIRS[0], model)
        files = open_files(gateway)
        old = {file.parent for file in files if file.parent.parent.name == "vectors"}
        mock.behaves(tokens=30, chunk_delay=100)
        body = question(asked(PAIRS[1]), model=model, stream=True)
        with gateway.client.stream(
            "POST", "/v1/chat/completions", json=body, headers={"Cache-Control": "no-cache"}
        ) as it:
            events = it.iter_lines()
            first = next(events)
            switched(gateway, static)
            during = {file.parent for file in open_files(gateway)}
            rest = [event for event in events if event]
        mock.reset()
        # Nearer than the other one, which is near enough as well.
        eventually(lambda: asked(PAIRS[1]) in text_of(found_in_other_words(gateway, PAIRS[1], model)))
        eventually(lambda: not old & {file.parent for file in open_files(gateway)})
        still = in_other_words(gateway, PAIRS[0], model)

    assert first.startswith("data: ")
    assert len(rest) > 5
    assert rest[-1] == "data: [DONE]"
    assert old
    assert old <= during  # while somebody uses them
    assert still.headers["x-keepgate-cache"] == "semantic"


@pytest.mark.full
def test_who_changes_their_mind_again_and_again_ends_with_what_was_said_last(
    tmp_path: Path, mock: Mock, model: str
) -> None:
    onnx, static = (with_embedder(tmp_path, mock, embedder) for embedder in (ONNX, STATIC))
    with running_gateway(tmp_path, onnx) as gateway:
        answers = {topic: keep(gateway, topic, model) for topic in PAIRS[:6]}
        for topic in answers:
            found_in_other_words(gateway, topic, model)

        for number, config in enumerate([static, onnx, static, onnx, static], 1):
            switch(gateway, config)
            eventually(lambda: gateway.log().count("the configuration was read again") == number, every=0)  # noqa: B023
        eventually(lambda: reembedding(gateway) is None)
        judged_by = gateway.admin("GET", "/status").json()["verifier"]
        found = {topic: text_of(in_other_words(gateway, topic, model)) for topic in answers}
        log = gateway.log()

    assert "/static/" in judged_by
    assert found == answers
    assert "Traceback" not in log
