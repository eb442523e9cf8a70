"""What somebody says of an entry afterwards: where it lies, how it goes, and what the log of look-ups keeps of it.

An entry's id says nothing of where it lies: the same question has the same id
for every caller who does not share entries with the others, so each of their
namespaces is asked for it.
"""

import asyncio
import contextlib
import os
from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from pathlib import Path

import msgspec

from backends.exact.base import ExactStore
from backends.vector.base import StoredVector, VectorStore
from models.completion import Completion, Entry
from models.errors import BackendError
from models.key import VirtualKey
from service.caching.lookups import Lookup, Row, Verdict, decoded, encoded
from service.caching.stored import read
from service.pipeline.exact_tier import decoded as entry_of
from service.telemetry.recorder import append

EVERYONE = "everyone"
# Seconds. A remote store walks over all its keys to list its namespaces, a vector store over all of a namespace.
_LISTING = 5.0
_WALKING = 20.0
_AT_ONCE = 64
# Bytes of the log's end that are searched: some 40,000 look-ups.
_SEARCHED = 16 << 20


class Place(msgspec.Struct, frozen=True):
    """An entry and the namespace of the exact store it lies in: endpoint, then whose it is."""

    namespace: str
    entry: Entry

    @property
    def endpoint(self) -> str:
        return self.namespace.partition("/")[0]


class Linked(msgspec.Struct):
    """What leads to an entry: its `own` vectors and those of other questions (`near`), and keys of requests that are
    answered by it (`noted`). `text` is its own question where one is stored. Not `whole`: time ran out before
    everything was looked at."""

    text: str | None = None
    own: list[StoredVector] = []
    near: list[StoredVector] = []
    noted: list[str] = []
    whole: bool = True

    @property
    def aliases(self) -> set[str]:
        """The keys of all other requests that lead to it."""
        return {*self.noted, *(stored.entry_id for stored in self.near)}


def likely_namespaces(endpoints: Iterable[str], keys: Sequence[VirtualKey]) -> list[str]:
    """Where entries of these endpoints lie, as far as the keys that are known here tell."""
    shared_by = [EVERYONE]
    for key in keys:
        shared_by.append(f"key:{key.key_id}")
        if key.team is not None:
            shared_by.append(f"team:{key.team}")
    return [f"{endpoint}/{whose}" for endpoint in endpoints for whose in dict.fromkeys(shared_by)]


async def places(
    store: ExactStore,
    entry_id: str,
    *,
    endpoint: str | None,
    likely: Sequence[str],
    listing: float = _LISTING,
) -> tuple[list[Place], bool]:
    """Every entry of that id, and whether all namespaces were asked: those in `likely` are, whatever a listing of all
    takes. Raises `BackendError`."""
    asked = dict.fromkeys(likely)
    listed = True
    try:
        async with asyncio.timeout(listing):
            sizes = await store.sizes()
        asked |= dict.fromkeys(name for name in sizes if endpoint is None or name.partition("/")[0] == endpoint)
    except TimeoutError:
        listed = False
    names = list(asked)
    found = []
    for at in range(0, len(names), _AT_ONCE):
        some = names[at : at + _AT_ONCE]
        values = await asyncio.gather(*(store.get(name, entry_id) for name in some))
        for name, value in zip(some, values, strict=True):
            entry = None if value is None else entry_of(value)
            if entry is not None:
                found.append(Place(name, entry))
    return found, listed


async def linked(
    store: ExactStore, vectors: VectorStore | None, place: Place, entry_id: str, *, walking: float = _WALKING
) -> Linked:
    """What leads to an entry, looked for in its namespace of both stores. Raises `BackendError`."""
    found = Linked()
    # An entry that does not say in which namespace its question lies has none, or was written by an earlier version.
    where = f"{place.namespace}/{place.entry.question}" if place.entry.question else place.namespace
    mark = entry_id.encode()
    try:
        async with asyncio.timeout(walking):
            if vectors is not None:
                async for stored in vectors.entries(where):
                    question = read(stored.payload)
                    if stored.entry_id == entry_id:
                        found.own.append(stored)
                        found.text = question.text
                    elif question.alias_of == entry_id:
                        found.near.append(stored)
            async for kept in store.entries(place.namespace):
                if kept.namespace == place.namespace and mark in kept.value:
                    alias = entry_of(kept.value)
                    if alias is not None and alias.alias_of == entry_id:
                        found.noted.append(kept.key)
    except TimeoutError:
        found.whole = False
    return found


async def removed(
    store: ExactStore, vectors: VectorStore | None, place: Place, entry_id: str
) -> tuple[bool, int, bool]:
    """Takes an entry out of both stores, and what was aliased to it: whether it was still there, how many aliases went,
    and whether all of them were found. A question that was given an answer of its own keeps that, and is no longer
    found by likeness. Raises `BackendError`; then what is left leads nowhere."""
    gone = await store.delete(place.namespace, entry_id)
    if vectors is not None and place.entry.question:
        await vectors.delete(f"{place.namespace}/{place.entry.question}", entry_id)
    found = await linked(store, vectors, place, entry_id)
    for key in found.noted:
        await store.delete(place.namespace, key)
    for stored in (*found.own, *found.near):
        if vectors is not None:
            await vectors.delete(stored.namespace, stored.entry_id)
    return gone, len(found.aliases), found.whole


def said(completion: Completion) -> str:
    """The text of an answer, over all its choices."""
    texts: list[str] = []
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError, AttributeError):
        for choice in msgspec.json.decode(completion.body).get("choices") or ():
            content = choice.get("text") or (choice.get("message") or {}).get("content")
            if isinstance(content, str):
                texts.append(content)
    return "\n".join(texts)


# --- the log of look-ups


class Past(msgspec.Struct, frozen=True):
    """What the end of the log says of an entry: the look-up of the request asked for, the endpoint it was last named
    with ("": nowhere), and verdicts about it."""

    lookup: Lookup | None = None
    endpoint: str = ""
    verdicts: tuple[Verdict, ...] = ()


def past(log: Path, entry_id: str, request_id: str | None, *, searched: int = _SEARCHED) -> Past:
    """Reads the last `searched` bytes, and as many of the log before it (`.1`). One that is not there has nothing to
    say. Raises `BackendError`."""
    wanted = [entry_id.encode()] if request_id is None else [entry_id.encode(), request_id.encode()]
    lookup: Lookup | None = None
    endpoint = ""
    verdicts: list[Verdict] = []
    before = log.with_suffix(f".1{log.suffix}")
    for row in chain(_rows(before, wanted, searched), _rows(log, wanted, searched)):
        if isinstance(row, Lookup) and request_id is not None and row.request_id == request_id:
            lookup = row
        if row.entry == entry_id:
            endpoint = row.endpoint
            if isinstance(row, Verdict):
                verdicts.append(row)
    return Past(lookup, endpoint, tuple(verdicts))


def _rows(log: Path, wanted: Collection[bytes], searched: int) -> Iterable[Row]:
    try:
        with log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            if end > searched:
                file.seek(end - searched)
                file.readline(searched)  # the rest of a line
            else:
                file.seek(0)
            while line := file.readline(searched):
                if any(word in line for word in wanted):
                    # Half a line, as a crash leaves it, or one of another version.
                    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                        yield decoded(line)
    except FileNotFoundError:
        return
    except OSError as error:
        raise BackendError(f"{log} cannot be read: {error.strerror}") from error


def recorded(log: Path, verdict: Verdict) -> None:
    """Appends a row, whole: other processes append to the same file. Raises `BackendError`."""
    try:
        append(log, encoded(verdict) + b"\n")
    except OSError as error:
        raise BackendError(f"{log} cannot be written: {error.strerror}") from error
