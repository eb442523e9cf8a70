"""The protocol of a store of tuning."""

from collections.abc import Callable, Hashable
from typing import Protocol


class TuningStore(Protocol):
    """Small documents by endpoint and name, written whole: after a crash the old or the new one is there.

    Endpoint names are those settings allow, names are lower-case words.
    Failures are `BackendError`. Calls wait for a disk: make them in a thread.
    """

    def read(self, endpoint: str, name: str) -> bytes | None: ...

    def write(self, endpoint: str, name: str, content: bytes | None) -> None:
        """Returns when it is kept; None removes it."""

    def change(self, endpoint: str, name: str, change: Callable[[bytes | None], bytes | None]) -> bytes | None:
        """Puts in its place what `change` makes of it, and returns that. Nobody else changes or writes it meanwhile, in
        this process or another."""

    def stamp(self) -> Hashable:
        """Another one whenever anything in the store has changed, by whomever."""
