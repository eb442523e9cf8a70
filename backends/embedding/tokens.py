"""From a text to what a model can read of it."""

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from models.errors import BackendError, TextTooLong

# No vocabulary spells text longer than this on average; such a text is refused before it costs anything.
CHARACTERS_A_TOKEN = 20

# How far the spelling of unknown words turns a vector. Two texts that differ only in unknown words, equal to the
# model, come out at a cosine of 1 / (1 + w²) = .64; with and without an unknown word at .8.
_SPELLING_WEIGHT = 0.75


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids as the model wants them, and the words that its vocabulary has no token for."""

    ids: list[int]
    unknown: tuple[str, ...]


class Reader:
    """Reads texts of at most `window` tokens, special ones included."""

    def __init__(self, path: Path, *, window: int) -> None:
        """Raises `BackendError` if the file is no tokenizer."""
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises Exception itself, for any unusable file
            raise BackendError(f"{path} is no tokenizer: {error}") from error
        # The file may ask for both (MiniLM's pads to 128): a cut text would get the vector of its beginning.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._window = window
        self._unknown = _unknown_token(path)

    def check_length(self, text: str) -> None:
        """Raises `TextTooLong` for what is far too long, without reading it."""
        if len(text) > self._window * CHARACTERS_A_TOKEN:
            raise TextTooLong(f"{len(text)} characters are beyond a window of {self._window} tokens")

    def read(self, text: str) -> Tokens:
        """Raises `TextTooLong` beyond the window, `BackendError` for what is no Unicode text."""
        self.check_length(text)
        try:
            encoding = self._tokenizer.encode(text)
        except TypeError as error:  # what tokenizers raises for a lone surrogate
            raise BackendError("the text holds a lone surrogate: it is no Unicode text") from error
        ids: list[int] = encoding.ids
        if len(ids) > self._window:
            raise TextTooLong(f"{len(ids)} tokens are beyond a window of {self._window}")
        return Tokens(ids, unknown_words(text, ids, encoding.offsets, self._unknown))


def unknown_words(
    text: str, ids: Sequence[int], spans: Sequence[tuple[int, int]], unknown: int | None
) -> tuple[str, ...]:
    """What was read as the token `unknown`, in order; `spans` are the places in `text` of all `ids`."""
    if unknown is None or unknown not in ids:
        return ()
    found = [span for token, span in zip(ids, spans, strict=True) if token == unknown]
    return tuple(_with_marks(text, start, end).casefold() for start, end in found)


def spell(vector: NDArray[np.float32], unknown: tuple[str, ...]) -> NDArray[np.float32]:
    """A unit vector turned by the spelling of the words that the model could not read.

    A model reads every word outside its vocabulary as the same token: "buy"
    and "sell" in Chinese, or two emoji, would be the same question. Equal
    spellings in equal order turn equally.
    """
    if not unknown:
        return vector
    size = len(vector)
    digest = hashlib.shake_256("\0".join(unknown).encode()).digest((size + 7) // 8)
    signs = np.unpackbits(np.frombuffer(digest, np.uint8))[:size].astype(np.float32) * 2 - 1
    return vector + signs * np.float32(_SPELLING_WEIGHT / size**0.5)


def _with_marks(text: str, start: int, end: int) -> str:
    # Tokenizers that strip accents leave a word's last marks out of its span; in Thai they tell words apart.
    while end < len(text) and unicodedata.category(text[end]).startswith("M"):
        end += 1
    return text[start:end]


def _unknown_token(path: Path) -> int | None:
    model = json.loads(path.read_bytes())["model"]
    if isinstance(model.get("unk_id"), int):
        return int(model["unk_id"])
    vocabulary = model.get("vocab")
    known = vocabulary.get(model.get("unk_token")) if isinstance(vocabulary, dict) else None
    return int(known) if known is not None else None
