"""A model hub on loopback: its API, its files by a redirect to a storage of its own, and its bad days.

A thread of its own answers: those who ask block theirs.
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 1024  # from here on a file lies in the storage


class FakeHub:
    """`repositories` holds files by commit by name; `branches` what a name of a revision stands for.

    `failures` is how many requests to come are answered with `status`;
    `cut` ends the next answer of the storage after that many bytes; `spoiled`
    files come with other bytes than listed; `listing` replaces the API's
    answer; `bare` leaves sizes and checksums out of it.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Mapping[str, bytes]]] = {}
        self.branches: dict[tuple[str, str], str] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.failures = 0
        self.status = 503
        self.cut: int | None = None
        self.spoiled: set[str] = set()
        self.listing: bytes | None = None
        self.bare = False
        self.resumes = True
        self.url = ""
        self.storage = ""

    def add(self, name: str, files: Mapping[str, bytes], *, branch: str = "main") -> str:
        """The commit it is kept under."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode(), usedforsecurity=False).hexdigest()
        self.repositories.setdefault(name, {})[commit] = files
        self.branches[name, branch] = commit
        return commit

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]

    def answer(self, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        self.requests.append((path, headers))
        if self.failures:
            self.failures -= 1
            return self.status, {}, b"the hub has a bad day"
        parts = [unquote(part) for part in urlsplit(path).path.strip("/").split("/")]
        if parts[:2] == ["api", "models"] and parts[4:5] == ["revision"]:
            return self._listed("/".join(parts[2:4]), parts[5])
        name, file = "/".join(parts[:2]), "/".join(parts[4:])
        content = self.repositories.get(name, {}).get(parts[3] if len(parts) > 3 else "", {}).get(file)
        if content is None or parts[2] not in ("resolve", "stored"):
            return 404, {}, b"Entry not found"
        if parts[2] == "resolve" and len(content) >= LARGE:
            return 302, {"location": f"{self.storage}/{name}/stored/{parts[3]}/{file}"}, b""
        if file in self.spoiled:
            content = content[:-1] + b"\x00"
        begin = int(headers.get("range", "bytes=0-")[len("bytes=") : -1])
        if begin and self.resumes:
            if begin >= len(content):
                return 416, {}, b""
            return 206, {"content-range": f"bytes {begin}-{len(content) - 1}/{len(content)}"}, content[begin:]
        return 200, {}, content

    def _listed(self, name: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        if self.listing is not None:
            return 200, {}, self.listing
        commit = self.branches.get((name, revision), revision)
        files = self.repositories.get(name, {}).get(commit)
        if files is None:
            return 404, {}, b'{"error": "Repository not found"}'
        siblings = [self._sibling(file, content) for file, content in files.items()]
        return 200, {}, json.dumps({"id": name, "sha": commit, "private": False, "siblings": siblings}).encode()

    def _sibling(self, file: str, content: bytes) -> dict[str, Any]:
        if self.bare:
            return {"rfilename": file}
        listed = {"rfilename": file, "size": len(content)}
        if len(content) >= LARGE:
            mark = hashlib.sha256(content).hexdigest()
            return listed | {"blobId": "0" * 40, "lfs": {"sha256": mark, "size": len(content), "pointerSize": 130}}
        mark = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        return listed | {"blobId": mark}


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Running, with its storage at another port."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = hub.answer(self.path, {name.lower(): value for name, value in self.headers.items()})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if "/stored/" in self.path and hub.cut is not None:
                body, hub.cut = body[: hub.cut], None
                self.close_connection = True
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    hub.url, hub.storage = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()
