"""A real gateway process, and the mock provider behind it, as tests drive them."""

import io
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml

from tests.support.servers import ROOT, Server, free_port, running

ADMIN_TOKEN = "admin-token-of-the-tests"
UPSTREAM_KEY = "sk-of-the-upstream"
# For `guardrails`: what a new user gets. Compiling its rules is two fifths of what a start takes.
AS_SHIPPED: list[dict[str, Any]] = []
_NONE_BY_DEFAULT = [{"name": "default", "rules": []}]

T = TypeVar("T")
Json = dict[str, Any]


def eventually(probe: Callable[[], T], *, within: float = 30.0, every: float = 0.05) -> T:
    """The first truthy value of `probe`, which is asked more and more rarely, up to `every` seconds apart.

    Raises AssertionError after `within` seconds: far more than it takes, on a machine that many share as well.
    """
    deadline = time.monotonic() + within
    pause = min(0.005, every)
    while not (value := probe()):
        assert time.monotonic() < deadline, f"still {value!r} after {within} s"
        time.sleep(pause)
        pause = min(2 * pause, every)
    return value


def question(text: str, *, model: str, **fields: Any) -> Json:
    """A chat request of one user turn."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


def text_of(answer: httpx.Response | Json) -> str:
    """What the assistant said in a whole answer."""
    whole = answer.json() if isinstance(answer, httpx.Response) else answer
    text: str = whole["choices"][0]["message"]["content"]
    return text


def events_of(body: str) -> list[str]:
    """The payloads of a stream, its end mark among them."""
    return [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]


def streamed_text(body: str) -> str:
    chunks = [json.loads(event) for event in events_of(body) if event != "[DONE]"]
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c.get("choices"))


class Mock:
    """The control routes of `keepgate mock-upstream`."""

    def __init__(self, server: Server, client: httpx.Client) -> None:
        self._server = server
        self._client = client

    @property
    def url(self) -> str:
        return f"{self._server.url}/v1"

    def behaves(self, **behaviour: Any) -> None:
        self._client.put("/mock", json=behaviour).raise_for_status()

    def reset(self) -> None:
        """To the behaviour it was started with, counting from zero."""
        self._client.delete("/mock").raise_for_status()

    def report(self) -> Json:
        report: Json = self._client.get("/mock").raise_for_status().json()
        return report

    def calls(self, path: str | None = None) -> int:
        counted: dict[str, int] = self.report()["requests"]
        return sum(counted.values()) if path is None else counted.get(path, 0)

    def cancelled(self) -> int:
        count: int = self.report()["cancelled"]
        return count

    def last_headers(self) -> dict[str, str]:
        headers: dict[str, str] = self.report()["last"]["headers"]
        return headers

    def last_body(self) -> Json:
        body: Json = json.loads(self.report()["last"]["body"])
        return body


@contextmanager
def mock_provider(directory: Path, *options: str) -> Iterator[Mock]:
    """`keepgate mock-upstream` in its own process."""
    port = free_port()
    command = [sys.executable, "-m", "service", "mock-upstream", "--port", str(port), *options]
    with (
        running(command, port=port, log=directory / f"mock-{port}.log") as server,
        httpx.Client(base_url=server.url) as client,
    ):
        yield Mock(server, client)


@dataclass(frozen=True)
class Gateway:
    """A running gateway. `url` has no path; `config` is the file it re-reads on SIGHUP."""

    server: Server
    config: Path
    url: str
    client: httpx.Client

    def ask(
        self,
        text: str,
        *,
        model: str,
        endpoint: str | None = None,
        headers: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> httpx.Response:
        """One chat question on a kept connection; `fields` go into the body."""
        return self.post(question(text, model=model, **fields), endpoint=endpoint, headers=headers)

    def post(
        self,
        body: Json,
        *,
        path: str = "/v1/chat/completions",
        endpoint: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        prefix = "" if endpoint is None else f"/e/{endpoint}"
        return self.client.post(f"{prefix}{path}", json=body, headers=headers)

    def await_cached(
        self,
        text: str,
        *,
        model: str,
        endpoint: str | None = None,
        headers: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> httpx.Response:
        """What the cache has for `text`, as soon as it has something: an answer leaves before its entry and its
        vector are written. Sends nothing upstream and keeps nothing."""
        asked = {**(headers or {}), "Cache-Control": "only-if-cached"}

        def cached() -> httpx.Response | None:
            answer = self.ask(text, model=model, endpoint=endpoint, headers=asked, **fields)
            return answer if answer.status_code == 200 else None

        found = eventually(cached)
        assert found is not None
        return found

    def admin(self, method: str, path: str, **options: Any) -> httpx.Response:
        authorization = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        return self.client.request(method, f"/admin/api{path}", headers=authorization, **options)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of that name that carry these labels."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        total = 0.0
        for line in self.client.get("/metrics").text.splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.partition("{")[0] == name and all(label in sample for label in wanted):
                total += float(value)
        return total

    def configure(self, config: Json) -> None:
        """Writes the file; a SIGHUP makes it count."""
        self.config.write_text(yaml.safe_dump(config))

    def log(self) -> str:
        return self.server.output()

    def keys(self, *arguments: str) -> Any:
        """The JSON result of `keepgate keys ...` on this gateway's configuration."""
        return json.loads(keepgate("keys", *arguments, "--config", str(self.config), "--json").stdout)

    def make_key(self, name: str, **limits: Any) -> str:
        """One that works at once; `limits` are fields of the management API's. A process of the CLI takes half a
        second."""
        secret: str = self.admin("POST", "/keys", json={"name": name, **limits}).raise_for_status().json()["key"]
        return secret


def everything(connection: socket.socket) -> bytes:
    """All that comes until the gateway closes, or resets, the connection."""
    received = bytearray()
    with suppress(ConnectionError):
        while piece := connection.recv(65536):
            received += piece
    return bytes(received)


def worker_of(answer: httpx.Response) -> str:
    """Names the worker process that answered: its request ids begin with random digits of its own."""
    return answer.headers["x-keepgate-request-id"][:16]


def keepgate(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """One command to its end, whatever its exit code."""
    return subprocess.run(  # noqa: S603 - the tests' own command
        [sys.executable, "-m", "service", *arguments],
        cwd=ROOT,
        env=None if env is None else {**env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def usage(*arguments: str) -> tuple[int, str, str]:
    """What `keepgate` says of its own usage, on stdout and stderr, after its exit code: without a process, which would
    take half a second to say it."""
    from service.cli import run

    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as errors:
        try:
            code = run(arguments)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
    return code, out.getvalue(), errors.getvalue()


def settings(directory: Path, upstream: str, **sections: Any) -> Json:
    """A configuration in front of one upstream, everything in `directory`; `sections` replace or add to it.

    One call a request, and no breaker: what the upstream does is what the
    client sees, whatever an earlier test did to it. No guardrails: those who
    share a gateway for many tests ask for them with `guardrails=AS_SHIPPED`.
    """
    return {
        "storage": {"path": str(directory / "data")},
        # Far beyond what a look-up takes: a machine that stalls must not turn a hit into a miss here.
        "cache": {"vector": {"deadline": "5s"}},
        "upstreams": [
            {
                "name": "mock",
                "provider": "openai-compatible",
                "base_url": upstream,
                "api_key": UPSTREAM_KEY,
                "breaker": {"failures": 1_000_000},
            }
        ],
        "routing": {"attempts": 1},
        "guardrails": _NONE_BY_DEFAULT,
        "admin": {"token": ADMIN_TOKEN},
        "logs": {"requests": str(directory / "requests.jsonl")},
        **sections,
    }


@contextmanager
def running_gateway(
    directory: Path, config: Json, *options: str, ca_file: Path | None = None, ready: bool = True
) -> Iterator[Gateway]:
    """`keepgate serve` with that configuration, ready to answer unless told not to wait for it."""
    port = free_port()
    file = directory / "keepgate.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "service", "serve", "--config", str(file), "--port", str(port), *options]
    url = f"{'http' if ca_file is None else 'https'}://127.0.0.1:{port}"
    with (
        running(command, port=port, log=directory / f"gateway-{port}.log") as server,
        httpx.Client(base_url=url, verify=_trust(ca_file), timeout=30) as client,
    ):
        gateway = Gateway(server, file, url, client)
        if ready:
            await_ready(gateway)
        yield gateway


def await_ready(gateway: Gateway, *, within: float = 60.0) -> None:
    def ready() -> bool:
        assert gateway.server.process.poll() is None, gateway.log()
        try:
            return gateway.client.get("/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    eventually(ready, within=within)


def children(pid: int) -> Sequence[int]:
    """The living processes that `pid` started, by the kernel's account."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return sorted(found)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _trust(ca_file: Path | None) -> Any:
    if ca_file is None:
        return False
    import ssl

    return ssl.create_default_context(cafile=str(ca_file))
