"""The protocol of a judge."""

from typing import Protocol

# What a language model may say as a judge: one of two words.
ANSWER_TOKENS = 8


class Judge(Protocol):
    """Says of two questions whether the answer to one serves the other.

    `revision` names the model and how it is asked: opinions of two revisions
    are weighed apart. It is known before `load`.
    """

    revision: str

    async def load(self) -> None:
        """Makes ready; safe to repeat. Raises `BackendError` with a message that says what to do."""

    async def opinion(self, asked: str, stored: str) -> float:
        """P that the answer to `stored` serves `asked`, in [0, 1].

        Raises `TextTooLong` for a pair beyond the window and `TextRefused` for
        one that it cannot judge, else `BackendError`. No pair is cut, none has
        an opinion on its beginning. Cancelling frees the work.
        """

    async def close(self) -> None: ...
