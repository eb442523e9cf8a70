"""Embeddings from any API that speaks OpenAI's dialect."""

import asyncio
import hashlib
import math
from collections.abc import Sequence
from urllib.parse import urlsplit

import aiohttp
import msgspec
import numpy as np
from numpy.typing import NDArray

from backends.embedding.base import Role
from backends.embedding.batching import Batches, SharedEmbeddings, Vector, unit
from models.errors import BackendError, ConfigError, TextRefused, TextTooLong

# What the providers say when a text is beyond the window; there is no common code for it.
_TOO_LONG = (
    b"context_length",
    b"context length",
    b"maximum input length",
    b"too long",
    b"too many tokens",
    b"max_tokens",
)
_TRANSIENT = frozenset({429, 500, 502, 503, 504})
_PAUSE = 0.05  # before the second try, where the API does not say another
_LONGEST_PAUSE = 2.0
# No API has a window that holds more; 8,191 tokens are some 40,000 characters of English.
_LONGEST_TEXT = 200_000
_BYTES_A_NUMBER = 32
_MOST_NUMBERS = 8192  # of a vector, where the API gives longer ones than configured: the error says how long
_MOST_BESIDE = 64 * 1024


class _Item(msgspec.Struct, gc=False):
    index: int
    embedding: list[float]


class _Answer(msgspec.Struct, gc=False):
    data: list[_Item]


_decoder = msgspec.json.Decoder(_Answer)


class _TooMuch(BackendError):
    """An answer beyond what embeddings take: the next would be no shorter."""


def _pause(retry_after: str) -> float:
    """Seconds; a date is none of them, and too long to wait for."""
    try:
        seconds = float(retry_after) if retry_after else _PAUSE
    except ValueError:
        return math.inf
    return max(seconds, _PAUSE) if math.isfinite(seconds) else math.inf


class OpenAIEmbedder:
    """Sends the distinct texts that wait together in one call, at most `batch` a call and `calls` calls at a time.

    A call that fails for now (429, 5xx, a lost connection) is made once more, within the same `timeout`.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        dimensions: int,
        api_key: str | None = None,
        shorten: bool = False,
        timeout: float = 10.0,
        connect_timeout: float = 2.0,
        batch: int = 64,
        calls: int = 8,
        waiting: int = 1000,
        revision: str | None = None,
    ) -> None:
        """`base_url` ends before `/embeddings`. `shorten` asks the API for vectors of `dimensions`, where the
        model can give shorter ones than its own. Timeouts are in seconds. `revision` is any text: the API does not say
        when it has other weights under the same name. Raises `ConfigError`."""
        if dimensions < 1:
            raise ConfigError(f"cache.embedder.dimensions: {dimensions} is no length of a vector")
        address = urlsplit(base_url)
        if address.scheme not in ("http", "https") or not address.hostname or address.username is not None:
            raise ConfigError("cache.embedder.base_url: an http:// or https:// address without a login is needed")
        api_key = (api_key or "").strip()  # a file that a key is read from tends to end in a newline
        if not (api_key.isascii() and api_key.isprintable()):
            raise ConfigError("cache.embedder.api_key: it holds characters that no header can carry")
        # The same name may stand for other weights at another address.
        where = hashlib.sha256(base_url.rstrip("/").encode()).hexdigest()[:12]
        self.revision = f"{model}@{where}/openai/{dimensions}{'' if revision is None else f'/{revision}'}"
        self.dimensions = dimensions
        self._model = model
        self._url = f"{base_url.rstrip('/')}/embeddings"
        self._api_key = api_key
        self._shorten = shorten
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._session: aiohttp.ClientSession | None = None
        self._batches = Batches(self._send, size=batch, calls=calls)
        self._shared = SharedEmbeddings(self._batches.begin, waiting=waiting)

    async def load(self) -> None:
        """Does not call the API: one that is down while the gateway starts must not keep it from starting."""
        if self._session is None:
            headers = {"content-type": "application/json", "user-agent": "keepgate"}
            if self._api_key:
                headers["authorization"] = f"Bearer {self._api_key}"
            # Where prompts go is configured, not read from the environment's proxies.
            self._session = aiohttp.ClientSession(headers=headers, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)

    async def embed(self, texts: Sequence[str], *, role: Role) -> NDArray[np.float32]:  # noqa: ARG002 - one for both
        if self._session is None:
            raise BackendError("the embedder is not loaded yet")
        if any(len(text) > _LONGEST_TEXT for text in texts):
            raise TextTooLong(f"a text has more than the {_LONGEST_TEXT:,} characters that are sent")
        if not texts:
            return np.empty((0, self.dimensions), np.float32)
        return np.stack(await self._shared.embed(texts))

    async def close(self) -> None:
        await self._batches.close()
        if self._session is not None:
            await self._session.close()

    async def _send(self, texts: list[str]) -> list[Vector]:
        body: dict[str, object] = {"model": self._model, "input": texts, "encoding_format": "float"}
        if self._shorten:
            body["dimensions"] = self.dimensions
        status, answer = await self._asked(msgspec.json.encode(body), texts=len(texts))
        if status == 200:
            return self._vectors(answer, len(texts))
        if status in (400, 413, 422):
            if status == 413 or any(words in answer.lower() for words in _TOO_LONG):
                raise TextTooLong("the embeddings API refused a text for its length")
            raise TextRefused(f"the embeddings API refused the request with status {status}")
        # Without the answer's text: some APIs quote the key or the input in it.
        raise BackendError(f"the embeddings API answered with status {status}")

    async def _asked(self, body: bytes, *, texts: int) -> tuple[int, bytes]:
        """Status and body of the answer, the second one where the first says that it may go better."""
        clock = asyncio.get_running_loop().time
        until = clock() + self._timeout
        most = _MOST_BESIDE + texts * max(self.dimensions, _MOST_NUMBERS) * _BYTES_A_NUMBER
        pause = _PAUSE
        try:
            status, answer, pause = await self._post(body, seconds=self._timeout, most=most)
            if status not in _TRANSIENT or pause > min(_LONGEST_PAUSE, until - clock()):
                return status, answer
        except _TooMuch:
            raise
        except BackendError:
            if pause > until - clock():
                raise
        await asyncio.sleep(pause)
        status, answer, _ = await self._post(body, seconds=until - clock(), most=most)
        return status, answer

    async def _post(self, body: bytes, *, seconds: float, most: int) -> tuple[int, bytes, float]:
        """Status, body, and the pause in seconds that the API asks for."""
        if self._session is None:
            raise BackendError("the embedder is not loaded yet")
        timeout = aiohttp.ClientTimeout(total=max(seconds, 0.001), sock_connect=self._connect_timeout)
        answer = bytearray()
        try:
            # A redirect would carry prompts to an address that nobody configured.
            async with self._session.post(self._url, data=body, allow_redirects=False, timeout=timeout) as response:
                async for chunk in response.content.iter_any():
                    answer += chunk
                    if len(answer) > most:
                        raise _TooMuch(f"the embeddings API answered with more than {most:,} bytes")
                return response.status, bytes(answer), _pause(response.headers.get("retry-after", ""))
        except TimeoutError as error:
            raise BackendError("the embeddings API did not answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise BackendError(f"the embeddings API cannot be reached ({type(error).__name__})") from error

    def _vectors(self, answer: bytes, count: int) -> list[Vector]:
        try:
            items = _decoder.decode(answer).data
        except msgspec.DecodeError as error:
            raise BackendError("the embeddings API answered 200 with something other than embeddings") from error
        rows = {item.index: item.embedding for item in items}
        if sorted(rows) != list(range(count)) or len(items) != count:
            raise BackendError(f"the embeddings API answered with {len(items)} embeddings for {count} texts")
        for row in rows.values():
            if len(row) != self.dimensions:
                raise BackendError(
                    f"the embeddings API gives vectors of {len(row)}: set cache.embedder.dimensions to that "
                    f"(it is {self.dimensions}), or shorten to true if the model can give shorter ones"
                )
        return [unit(np.array(rows[index], np.float64)) for index in range(count)]
