"""A memory in front of an embedder: who asks for a text again gets the vector that was made for it."""

import asyncio
from collections.abc import Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from backends.embedding.base import Embedder, Role
from backends.embedding.batching import Memory, SharedEmbeddings, Vector

# 10,000 vectors of 1,536 numbers; of 384 it would be 34,000.
_MOST_BYTES = 64 * 1024**2


class RememberingEmbedder:
    """Keeps the vectors of the last `texts` texts, by a hash of role and text; no text stays in memory.

    A text asked for by several at once is embedded once, and goes on while
    one of them still waits. Errors are not kept. Vectors take at most `size`
    bytes: long ones are fewer.
    """

    def __init__(self, embedder: Embedder, *, texts: int, size: int = _MOST_BYTES, waiting: int = 1000) -> None:
        self.revision = embedder.revision
        self.dimensions = embedder.dimensions
        self._embedder = embedder
        self._memory = Memory(texts=texts, size=size)
        self._shared = {role: self._sharing(role, waiting) for role in get_args(Role)}

    async def load(self) -> None:
        await self._embedder.load()

    async def embed(self, texts: Sequence[str], *, role: Role) -> NDArray[np.float32]:
        if not texts:
            return np.empty((0, self.dimensions), np.float32)
        return np.stack(await self._shared[role].embed(texts))

    async def close(self) -> None:
        await self._embedder.close()
        self._memory.clear()

    def _sharing(self, role: Role, waiting: int) -> SharedEmbeddings:
        def begin(text: str) -> asyncio.Future[Vector]:
            return asyncio.get_running_loop().create_task(self._one(text, role))

        return SharedEmbeddings(begin, waiting=waiting, memory=self._memory, tag=role)

    async def _one(self, text: str, role: Role) -> Vector:
        row: Vector = (await self._embedder.embed([text], role=role))[0]
        return row
