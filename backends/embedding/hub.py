"""Models of the Hugging Face hub, or of a mirror that speaks like it, kept in the user's cache folder.

The hub's API (`/api/models/NAME/revision/REVISION?blobs=true`) says which
commit a name stands for, and size and checksum of each file; files come from
`/NAME/resolve/COMMIT/FILE`, often by a redirect to where they are stored.
`HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what the hub's own client
takes them to mean; proxies are those of the environment.
"""

import hashlib
import http.client
import logging
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from email.message import Message
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from backends.embedding.model_cache import cached, default_cache
from models.errors import BackendError, ConfigError

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

ENDPOINT = "https://huggingface.co"
_MOST_BYTES = 4 * 1024**3
_MOST_IN_ABOUT = 4 * 1024**2
_TIMEOUT = 10.0
_PATIENCE = 3600.0
_TRIES = 3
_PAUSE = 0.25  # before the second try, and twice that before the third
_CHUNK = 1024 * 1024
_LISTING = "hub.json"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,199}")
# What says how a model is run: read before its weights are fetched.
_ABOUT = re.compile(
    r"(?:\d+_\w+/config|config|modules|sentence_bert_config|config_sentence_transformers|tokenizer_config)\.json"
)


class _Blob(msgspec.Struct):
    sha256: str


class _Sibling(msgspec.Struct):
    rfilename: str
    size: int | None = None
    blob_id: str | None = msgspec.field(default=None, name="blobId")
    lfs: _Blob | None = None


class _Listing(msgspec.Struct):
    sha: str
    siblings: list[_Sibling]


class _Lost(Exception):
    """The connection failed, or the hub has trouble of its own: it may go better the next time."""


# What the network does; any other OSError is the disk's.
_FAILURES = (
    _Lost,
    urllib.error.URLError,
    TimeoutError,
    ConnectionError,
    ssl.SSLError,
    http.client.HTTPException,
)


def is_name(model: str) -> bool:
    """Whether it has the form of a model's name on the hub: `organisation/name`."""
    return _NAME.fullmatch(model) is not None and ".." not in model


class HubModel:
    """A model at one commit. What a branch or tag stands for is asked once on a machine and then kept.

    Making one fetches what says how the model is run, a few KB, unless that is
    in the cache: `about` is the folder with it, laid out like the model's own.
    """

    def __init__(
        self, name: str, *, revision: str | None = None, endpoint: str | None = None, cache: Path | None = None
    ) -> None:
        """Blocks. Raises `ConfigError` for a name or revision that the hub does not have, `BackendError` if it cannot
        be asked."""
        if not is_name(name):
            raise ConfigError(f"cache.embedder.model: {name!r} is no name on the hub, such as BAAI/bge-small-en-v1.5")
        if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
            raise ConfigError("cache.embedder.revision: must be a commit, a tag or a branch of the model's repository")
        self.name = name
        self._asked = revision or "main"
        self._cache = cache
        self._endpoint = _endpoint(endpoint)
        self.about = cached(self._folder("about", self._asked), self._write_about, cache=cache, report=_log.info)
        listing = msgspec.json.decode((self.about / _LISTING).read_bytes(), type=_Listing)
        self.commit = listing.sha
        self.files: Mapping[str, _Sibling] = {one.rfilename: one for one in listing.siblings}

    def fetch(self, files: Sequence[str]) -> Path:
        """The folder with these files, fetched unless they are there and intact. Blocks; raises `BackendError`."""
        wanted = sorted({*files, *(file for file in self.files if _ABOUT.fullmatch(file))})
        return cached(
            self._folder("files", self.commit, *wanted),
            lambda folder: self._write(folder, wanted),
            cache=self._cache,
            report=_log.info,
        )

    def _folder(self, kind: str, *what: str) -> str:
        about = "\0".join((self._endpoint, self.name, *what))
        mark = hashlib.sha256(about.encode()).hexdigest()[:12]
        return f"{self.name.replace('/', '--')}-{kind}-{mark}"

    def _write_about(self, folder: Path) -> None:
        where = f"{self._endpoint}/api/models/{self.name}/revision/{quote(self._asked, safe='')}?blobs=true"
        with self._line() as line:
            answer = line.small(where)
            try:
                listing = msgspec.json.decode(answer, type=_Listing)
            except msgspec.DecodeError as error:
                raise BackendError(f"{self._endpoint} does not speak like the Hugging Face hub") from error
            if not _COMMIT.fullmatch(listing.sha) or (_COMMIT.fullmatch(self._asked) and listing.sha != self._asked):
                raise BackendError(f"{self._endpoint} does not say which commit {self._asked} of {self.name} is")
            listing.siblings = [one for one in listing.siblings if _is_file(one.rfilename)]
            for one in listing.siblings:
                if _ABOUT.fullmatch(one.rfilename):
                    self._take(line, listing.sha, one, folder, most=_MOST_IN_ABOUT, purpose="about")
        (folder / _LISTING).write_bytes(msgspec.json.encode(listing))

    def _write(self, folder: Path, wanted: Sequence[str]) -> None:
        lacking = [file for file in wanted if file not in self.files]
        if lacking:
            raise BackendError(f"{self.name} on the hub has no {lacking[0]} at {self._asked}")
        total = sum(self.files[file].size or 0 for file in wanted)
        if total > _MOST_BYTES:
            raise BackendError(f"{self.name} has {total:,} bytes, more than the {_MOST_BYTES:,} that are fetched")
        _log.info("fetching %s (%.1f MB) from %s", self.name, total / 1e6, self._endpoint)
        with self._line() as line:
            for file in wanted:
                self._take(line, self.commit, self.files[file], folder, most=_MOST_BYTES, purpose=" ".join(wanted))

    def _take(self, line: "_Line", commit: str, one: _Sibling, folder: Path, *, most: int, purpose: str) -> None:
        target = folder / one.rfilename
        target.parent.mkdir(parents=True, exist_ok=True)
        where = f"{self._endpoint}/{self.name}/resolve/{commit}/{quote(one.rfilename)}"
        # Outside the folder that is thrown away when a download fails: what came is not asked for again. By its
        # purpose as well, since the lock that is held covers no other.
        mark = hashlib.sha256(f"{where} {purpose}".encode()).hexdigest()[:24]
        part = (self._cache or default_cache()) / f".{mark}.part"
        line.file(where, one, part, most=most)
        part.replace(target)

    def _line(self) -> "_Line":
        return _Line(self.name, self._asked, self._endpoint)


class _Line:
    """Requests to one hub, tried again where that may help."""

    def __init__(self, name: str, revision: str, endpoint: str) -> None:
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            raise BackendError(f"{name} is not on this machine yet, and HF_HUB_OFFLINE keeps it from being fetched")
        self._what = f"{name} at revision {revision}"
        self._name = name
        self._endpoint = endpoint
        token = os.environ.get("HF_TOKEN", "").strip()
        self._redirects = _Redirects(endpoint, token if token.isascii() and token.isprintable() else "")
        self._opener = urllib.request.build_opener(self._redirects)
        self._until = time.monotonic() + _PATIENCE

    def __enter__(self) -> "_Line":
        return self

    def __exit__(self, *_: object) -> None:
        self._opener.close()

    def small(self, where: str) -> bytes:
        def read() -> bytes:
            with self._open(where, begin=0) as answer:
                return _all(answer, _MOST_IN_ABOUT)

        return self._tried(read)

    def file(self, where: str, one: _Sibling, part: Path, *, most: int) -> None:
        """Leaves the whole file, checked, in `part`; goes on from what is there where a checksum will tell."""
        if one.size is not None and one.size > most:
            raise BackendError(f"{one.rfilename} of {self._name} has {one.size:,} bytes, more than {most:,}")
        checked = one.lfs is not None or one.blob_id is not None

        def read() -> None:
            begin = part.stat().st_size if checked and part.exists() else 0
            if one.size is not None and begin > one.size:
                begin = 0
            if begin == 0 or begin != one.size:
                with self._open(where, begin=begin) as answer:
                    goes_on = begin > 0 and answer.status == 206
                    with part.open("ab" if goes_on else "wb") as file:
                        self._copy(answer, file, room=most - (begin if goes_on else 0))
            if not _intact(part, one):
                part.unlink(missing_ok=True)
                raise _Lost(f"{one.rfilename} did not arrive as the hub lists it")

        self._tried(read)

    def _copy(self, answer: http.client.HTTPResponse, file: IO[bytes], *, room: int) -> None:
        while chunk := answer.read(_CHUNK):
            room -= len(chunk)
            if room < 0:
                raise BackendError(f"{self._endpoint} sends more of {self._name} than is taken")
            if time.monotonic() > self._until:
                raise _Lost("it takes too long")
            file.write(chunk)
        _whole(answer)

    def _open(self, where: str, *, begin: int) -> http.client.HTTPResponse:
        headers = {"user-agent": "keepgate", **({"range": f"bytes={begin}-"} if begin else {})}
        request = urllib.request.Request(where, headers=headers)  # noqa: S310 - http or https: `_endpoint` saw to it
        self._redirects.sign(request)
        try:
            answer: http.client.HTTPResponse = self._opener.open(request, timeout=_TIMEOUT)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (401, 403, 404):
                raise ConfigError(
                    f"cache.embedder.model: the hub at {self._endpoint} gives no {self._what} (status {error.code}): "
                    "check model, revision and file; a private or gated model needs HF_TOKEN in the environment"
                ) from error
            if error.code == 416 and begin:  # what was kept is longer than the file
                return self._open(where, begin=0)
            if error.code in (408, 429) or error.code >= 500:
                raise _Lost(f"status {error.code}") from error
            raise BackendError(f"the hub at {self._endpoint} answered with status {error.code}") from error
        return answer

    def _tried(self, read: Callable[[], _T]) -> _T:
        for left in range(_TRIES - 1, -1, -1):
            try:
                return read()
            except _FAILURES as error:
                if left and time.monotonic() < self._until:
                    time.sleep(_PAUSE * (_TRIES - left))
                    continue
                reason = getattr(error, "reason", None) or str(error) or type(error).__name__
                raise BackendError(
                    f"{self._what} cannot be fetched from {self._endpoint} ({reason}). Without a way there, copy the "
                    "model's folder to this machine and set cache.embedder.path to it, or HF_ENDPOINT to a mirror"
                ) from error
        raise AssertionError("the last try returns or raises")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows the hub to its storage, never from https to http, and shows the token to the hub alone."""

    def __init__(self, endpoint: str, token: str) -> None:
        self._origin = urlsplit(endpoint)[:2]
        self._token = token

    def sign(self, request: urllib.request.Request) -> None:
        if self._token and urlsplit(request.full_url)[:2] == self._origin:
            request.add_unredirected_header("authorization", f"Bearer {self._token}")

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme != "https" and self._origin[0] == "https":
            raise BackendError("the hub redirects to an address without https")
        onward = super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type] # its stub says HTTPMessage
        if onward is not None:
            self.sign(onward)
        return onward


def _endpoint(given: str | None) -> str:
    endpoint = (given or os.environ.get("HF_ENDPOINT", "").strip() or ENDPOINT).rstrip("/")
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise ConfigError("HF_ENDPOINT: an http:// or https:// address without a login is needed")
    return endpoint


def _is_file(name: str) -> bool:
    return _FILE.fullmatch(name) is not None and not {"", ".", ".."}.intersection(name.split("/"))


def _all(answer: http.client.HTTPResponse, most: int) -> bytes:
    content = answer.read(most + 1)
    if len(content) > most:
        raise BackendError(f"the hub answers with more than {most:,} bytes where few belong")
    _whole(answer)
    return content


def _whole(answer: http.client.HTTPResponse) -> None:
    if answer.length:  # of what was announced
        raise _Lost("the connection was cut")


def _intact(part: Path, one: _Sibling) -> bool:
    """By size and checksum, as far as the hub says them."""
    size = part.stat().st_size
    if one.size is not None and size != one.size:
        return False
    if one.lfs is not None:
        return _digest(part, hashlib.sha256()) == one.lfs.sha256
    if one.blob_id is not None:
        # Git's name for a file, which the hub gives for those it does not store apart.
        return _digest(part, hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)) == one.blob_id
    return True


def _digest(path: Path, digest: Any) -> str:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return str(digest.hexdigest())
