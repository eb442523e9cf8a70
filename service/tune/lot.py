"""A fair share of more than fits in memory, whatever the order it comes in."""

from collections.abc import Collection, Iterator
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Lot(Generic[_T]):
    """Keeps those whose keys are lowest: keys are digests, so that is a draw by lot, and the same one each time.

    What comes under a key that is kept replaces what is there. At most twice
    `most` are in memory, and about `room` bytes by what `size` says of each.
    Keys in `always` are kept whatever there is.
    """

    def __init__(self, most: int, *, room: int = 256 * 2**20, always: Collection[bytes] = ()) -> None:
        self._most = most
        self._room = room
        self._always = always
        self._kept: dict[bytes, _T] = {}
        self._below: bytes | None = None
        self._size = 0
        self.left_out = 0

    def get(self, key: bytes) -> _T | None:
        return self._kept.get(key)

    def put(self, key: bytes, item: _T, *, size: int = 0) -> None:
        if self._below is not None and key >= self._below and key not in self._always:
            self.left_out += 1
            return
        self._kept[key] = item
        self._size += size
        if len(self._kept) > 2 * self._most:
            self._prune(self._most)
        elif self._size > self._room and len(self._kept) > 1:
            self._prune(len(self._kept) // 2)

    def items(self) -> Iterator[tuple[bytes, _T]]:
        """In the order they came in."""
        if len(self._kept) > self._most:
            self._prune(self._most)
        return iter(self._kept.items())

    def __len__(self) -> int:
        return len(self._kept)

    def _prune(self, most: int) -> None:
        drawn = sorted(key for key in self._kept if key not in self._always)
        if len(drawn) <= most:
            return
        self._below = drawn[most]
        before = len(self._kept)
        self._kept = {key: item for key, item in self._kept.items() if key < self._below or key in self._always}
        self.left_out += before - len(self._kept)
        self._size = self._size * len(self._kept) // before
