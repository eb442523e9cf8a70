"""The protocol of an embedder."""

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Role = Literal["query", "document"]


class Embedder(Protocol):
    """Texts to unit vectors. The same text always gets the same vector, whoever else is asked for beside it.

    `revision` names the model, its weights and how they are run: vectors of
    two revisions are never compared. It and `dimensions` are known before
    `load`.
    """

    revision: str
    dimensions: int

    async def load(self) -> None:
        """Makes ready to embed; safe to repeat. Raises `BackendError` with a message that says what to do."""

    async def embed(self, texts: Sequence[str], *, role: Role) -> NDArray[np.float32]:
        """Rows of `dimensions`, each of length 1, in the order of `texts`.

        Raises `TextTooLong` for a text beyond the window, else `BackendError`.
        Cancelling frees the work that nobody else waits for.
        """

    async def close(self) -> None: ...
