"""What has no canonical form is passed on: once, to whom the caller may ask, and read by nobody on the way."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread

import httpx
import pytest

from tests.support.gateway import AS_SHIPPED, Gateway, eventually, running_gateway, settings

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nx-request-id: r1\r\ncontent-length: 2\r\n\r\nok"
FORM = {"content-type": "multipart/form-data; boundary=X"}
MODEL = '--X\r\nContent-Disposition: form-data; name="model"\r\n\r\n{}\r\n'
FILE = '--X\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{}\r\n'


@dataclass
class Upstream:
    """Notes what it is sent, as bytes, and answers `answers` in turn, the last one for ever."""

    port: int = 0
    asked: list[bytes] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=lambda: [ANSWER])

    @property
    def heads(self) -> list[str]:
        return [request.partition(b"\r\n")[0].decode() for request in self.asked]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                sizes = [int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
                self.asked.append(head + await reader.readexactly(sum(sizes)))
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if not answer:
                    break
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the gateway is done
        finally:
            writer.close()


@contextmanager
def running_upstream() -> Iterator[Upstream]:
    loop = asyncio.new_event_loop()
    upstream = Upstream()
    server = loop.run_until_complete(asyncio.start_server(upstream.serve, "127.0.0.1", 0))
    upstream.port = server.sockets[0].getsockname()[1]
    thread = Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield upstream

    async def stop() -> None:
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run_coroutine_threadsafe(stop(), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


@pytest.fixture(scope="module")
def upstream_process() -> Iterator[Upstream]:
    with running_upstream() as upstream:
        yield upstream


@pytest.fixture
def upstream(upstream_process: Upstream) -> Upstream:
    upstream_process.asked.clear()
    upstream_process.answers[:] = [ANSWER]
    return upstream_process


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, upstream_process: Upstream) -> Iterator[Gateway]:
    """Two upstreams at one place, told apart by their credential, and one where nobody listens."""
    directory = tmp_path_factory.mktemp("passthrough")
    there = {"provider": "openai-compatible", "base_url": f"http://127.0.0.1:{upstream_process.port}/v1"}
    config = settings(
        directory,
        "",
        upstreams=[
            {"name": "a", **there, "api_key": "key-a", "headers": {"OpenAI-Organization": "operators"}},
            {"name": "b", **there, "api_key": "key-b", "breaker": {"failures": 2, "rest": "1h"}},
            {"name": "gone", "provider": "openai-compatible", "base_url": "http://127.0.0.1:9/v1"},
        ],
        models=[
            {"name": "allowed", "targets": [{"upstream": "a", "model": "cheap"}]},
            {"name": "moved", "targets": [{"upstream": "gone", "model": "m"}], "fallbacks": ["b/m"]},
        ],
        guardrails=AS_SHIPPED,
    )
    with running_gateway(directory, config) as running:
        yield running


@pytest.fixture(scope="module")
def restricted(gateway: Gateway) -> dict[str, str]:
    """The credential of a key that may ask `allowed` alone."""
    return {"Authorization": f"Bearer {gateway.make_key('restricted', models=['allowed'])}"}


def test_bytes_go_through_as_they_are_and_come_back(gateway: Gateway, upstream: Upstream) -> None:
    answer = gateway.client.post(
        "/v1/files?purpose=x&key=secret", content=b"\x00\xff bytes", headers={"x-keepgate-upstream": "b", **FORM}
    )
    answer = gateway.client.post(
        "/v1/files?purpose=x&key=secret",
        content=(FILE.format("RIFF") + "--X--\r\n").encode(),
        headers={"x-keepgate-upstream": "b", **FORM},
    )

    assert (answer.status_code, answer.text) == (200, "ok")
    assert upstream.heads == ["POST /v1/files?purpose=x HTTP/1.1"]
    assert b"authorization: Bearer key-b" in upstream.asked[0]
    assert upstream.asked[0].endswith(FILE.format("RIFF").encode() + b"--X--\r\n")
    assert answer.headers["x-keepgate-upstream"] == "b"
    assert answer.headers["x-upstream-request-id"] == "r1"
    assert answer.headers["content-type"] == "text/html"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "sandbox"


def test_the_model_leads_and_is_named_as_its_upstream_knows_it(gateway: Gateway, upstream: Upstream) -> None:
    said = FILE.format('Content-Disposition: form-data; name="model"\r\n\r\nother')
    form = (said + MODEL.format("allowed") + "--X--\r\n").encode()

    gateway.client.post("/v1/audio/transcriptions", content=form, headers=FORM)
    gateway.client.post("/v1/moderations", content=b'{"model": "b/x", "input": 1, "model": "allowed"}')

    assert upstream.asked[0].endswith((said + MODEL.format("cheap") + "--X--\r\n").encode())
    assert upstream.asked[1].endswith(b'\r\n\r\n{"model":"cheap","input":1}')
    assert all(b"authorization: Bearer key-a" in request for request in upstream.asked)


def test_the_operators_headers_stand(gateway: Gateway, upstream: Upstream) -> None:
    headers = {"OpenAI-Organization": "callers", "x-keepgate-upstream": "a", "cookie": "c=1"}

    gateway.client.get("/v1/files", headers=headers)

    head = upstream.asked[0].lower()
    assert b"openai-organization: operators" in head
    assert b"callers" not in head
    assert b"cookie" not in head


@pytest.mark.parametrize(
    ("method", "path", "content", "headers"),
    [
        ("GET", "/v1/files", b"", {}),
        ("GET", "/v1/files", b'{"model": "allowed"}', {}),
        ("GET", "/v1/responses/resp_1", b'{"model": "allowed"}', {}),
        ("POST", "/v1/batches", b'{"model": "allowed"}', {}),
        ("POST", "/v1/moderations", b'{"input": "x"}', {}),
        ("POST", "/v1/moderations", b'{"model": "b/x"}', {}),
        ("POST", "/v1/moderations", b'{"model": "allowed", "model": "b/x"}', {}),
        ("POST", "/v1/moderations", b'{"model": "allowed"}', {"x-keepgate-upstream": "b"}),
        ("POST", "/v1/audio/transcriptions", (FILE.format("x") + "--X--\r\n").encode(), FORM),
    ],
)
def test_a_key_for_some_models_asks_for_nothing_else(
    gateway: Gateway,
    upstream: Upstream,
    restricted: dict[str, str],
    method: str,
    path: str,
    content: bytes,
    headers: dict[str, str],
) -> None:
    answer = gateway.client.request(method, path, content=content, headers={**restricted, **headers})

    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_allowed")
    assert upstream.asked == []


def test_a_form_that_names_two_models_is_refused(
    gateway: Gateway, upstream: Upstream, restricted: dict[str, str]
) -> None:
    form = (MODEL.format("allowed") + MODEL.format("b/x") + "--X--\r\n").encode()

    answer = gateway.client.post("/v1/audio/transcriptions", content=form, headers={**restricted, **FORM})

    assert answer.status_code == 400
    assert upstream.asked == []


def test_a_key_for_some_models_asks_for_those(gateway: Gateway, upstream: Upstream, restricted: dict[str, str]) -> None:
    answer = gateway.client.post("/v1/moderations", json={"model": "allowed", "input": "x"}, headers=restricted)

    assert answer.status_code == 200
    assert len(upstream.asked) == 1


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Host": "127.0.0.1.evil.example"}, {"Sec-Fetch-Site": "cross-site"}]
)
def test_a_page_that_had_its_name_lead_here_reads_nothing(
    gateway: Gateway, upstream: Upstream, headers: dict[str, str]
) -> None:
    answer = gateway.client.get("/v1/files", headers={"x-keepgate-upstream": "a", **headers})

    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_allowed")
    assert upstream.asked == []


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        ("/v1/files/a%20b/content", 200, "GET /v1/files/a%20b/content HTTP/1.1"),
        ("/e/default/v1/files/a", 200, "GET /v1/files/a HTTP/1.1"),
        ("/openai/v1/files/a", 200, "GET /v1/files/a HTTP/1.1"),
        ("/v1/files/a%250d", 200, "GET /v1/files/a%250d HTTP/1.1"),
        ("/v1/files/a%2Fb", 400, ""),
        ("/v1/files/%2e%2e/x", 400, ""),
        ("/v1/files//x", 400, ""),
        ("/v1/fil%65s/x", 404, ""),
    ],
)
def test_a_path_is_passed_on_as_it_was_written(
    gateway: Gateway, upstream: Upstream, path: str, status: int, told: str
) -> None:
    answer = gateway.client.get(path, headers={"x-keepgate-upstream": "b"})

    assert answer.status_code == status
    assert upstream.heads == ([told] if told else [])


def test_nothing_is_sent_twice(gateway: Gateway, upstream: Upstream) -> None:
    upstream.answers[:] = [ANSWER, b"", ANSWER]
    headers = {"x-keepgate-upstream": "a"}
    gateway.client.get("/v1/files", headers=headers)

    answer = gateway.client.post("/v1/batches", content=b"{}", headers=headers)

    assert (answer.status_code, answer.headers["x-should-retry"]) == (502, "false")
    assert upstream.heads == ["GET /v1/files HTTP/1.1", "POST /v1/batches HTTP/1.1"]


def test_where_nobody_answers_the_next_target_is_asked(gateway: Gateway, upstream: Upstream) -> None:
    answer = gateway.client.post("/v1/moderations", json={"model": "moved", "input": "x"})

    assert (answer.status_code, answer.headers["x-keepgate-upstream"]) == (200, "b/m")
    assert upstream.asked[0].endswith(b'{"model":"m","input":"x"}')


@pytest.mark.parametrize("status", ["403 Forbidden", "404 Not Found", "500 Oops"])
def test_a_route_that_fails_says_nothing_of_the_others(gateway: Gateway, upstream: Upstream, status: str) -> None:
    upstream.answers[:] = [f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode()]
    for _ in range(5):
        gateway.client.get("/v1/files", headers={"x-keepgate-upstream": "b"})
    upstream.answers[:] = [ANSWER]

    answer = gateway.client.get("/v1/files", headers={"x-keepgate-upstream": "b"})

    assert answer.status_code == 200
    assert gateway.metric("keepgate_upstream_open", upstream="b") == 0


def test_a_post_without_a_body_says_so(gateway: Gateway, upstream: Upstream) -> None:
    gateway.client.post("/v1/batches/b1/cancel", headers={"x-keepgate-upstream": "a"})

    assert b"\r\ncontent-length: 0\r\n" in upstream.asked[0].lower()


def test_another_method_is_told_which_there_are(gateway: Gateway) -> None:
    answer = gateway.client.put("/v1/files/a", headers={"x-keepgate-upstream": "a"})

    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST, DELETE")


def test_an_answer_that_breaks_off_is_cut_off_and_not_ended(gateway: Gateway, upstream: Upstream) -> None:
    upstream.answers[:] = [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\nzz", ANSWER]

    with pytest.raises(httpx.RemoteProtocolError):
        gateway.client.get("/v1/files/a/content", headers={"x-keepgate-upstream": "a"})

    eventually(lambda: gateway.metric("keepgate_inflight") <= 1)
