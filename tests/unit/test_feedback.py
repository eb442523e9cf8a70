"""Reports about entries: where an entry is looked for, what goes with it, and what the log of look-ups says of it."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest

from backends.exact.memory import MemoryStore
from backends.vector.flat import FlatStore
from models.completion import Completion, Entry, Usage
from models.errors import BackendError
from models.key import VirtualKey
from service.caching.lookups import Lookup, Verdict, encoded
from service.caching.stored import StoredQuestion, payload
from service.pipeline.exact_tier import encoded as stored
from service.pipeline.feedback import Past, Place, likely_namespaces, linked, past, places, recorded, removed, said

ID, ALIAS, OTHER = "a" * 64, "b" * 64, "c" * 64
HERE = "support/everyone"
VECTOR = np.array([1, 0], np.float32)
ANSWER = Completion(b'{"choices":[{"message":{"content":"Under Billing."}}]}', "m", Usage(1, 2), ("stop",))


def entry(key: str = ID, *, question: str = "q", alias_of: str = "") -> Entry:
    return Entry(ANSWER, 1.0, 1e10, key, "mock/m", question=question, alias_of=alias_of)


async def put(store: MemoryStore, namespace: str, one: Entry) -> None:
    await store.put(namespace, one.entry_id, stored(one), ttl=None)


async def filled() -> tuple[MemoryStore, FlatStore]:
    """An entry with an alias, and another beside them; each with its question."""
    exact, vectors = MemoryStore(), FlatStore(dimensions=2)
    for one in (entry(), entry(ALIAS, alias_of=ID), entry(OTHER)):
        await put(exact, HERE, one)
        question = StoredQuestion(f"question {one.entry_id[0]}", b"", one.alias_of)
        await vectors.upsert(f"{HERE}/q", one.entry_id, VECTOR, payload(question), ttl=None)
    return exact, vectors


async def test_an_entry_goes_with_its_vector_and_what_was_aliased_to_it() -> None:
    exact, vectors = await filled()

    went = await removed(exact, vectors, Place(HERE, entry()), ID)

    assert went == (True, 1, True)
    assert [await exact.get(HERE, key) is None for key in (ID, ALIAS, OTHER)] == [True, True, False]
    assert [one.entry_id for one in await vectors.nearest(f"{HERE}/q", VECTOR, limit=9)] == [OTHER]


async def test_an_alias_that_was_given_an_answer_of_its_own_keeps_it() -> None:
    exact, vectors = await filled()
    await put(exact, HERE, entry(ALIAS))

    await removed(exact, vectors, Place(HERE, entry()), ID)

    assert await exact.get(HERE, ALIAS) is not None


async def test_a_request_that_was_noted_to_be_answered_by_it_goes_too() -> None:
    exact = MemoryStore()
    for namespace in (HERE, f"{HERE}/below"):
        await put(exact, namespace, entry(ALIAS, question="", alias_of=ID))

    went = await removed(exact, None, Place(HERE, entry()), ID)

    assert went == (False, 1, True)
    assert await exact.get(HERE, ALIAS) is None
    assert await exact.get(f"{HERE}/below", ALIAS) is not None


async def test_the_vector_of_an_entry_that_does_not_say_where_it_lies_is_looked_for() -> None:
    exact, vectors = MemoryStore(), FlatStore(dimensions=2)
    await put(exact, HERE, entry(question=""))
    await vectors.upsert(f"{HERE}/somewhere", ID, VECTOR, b"as an earlier version wrote it", ttl=None)

    found = await linked(exact, vectors, Place(HERE, entry(question="")), ID)
    await removed(exact, vectors, Place(HERE, entry(question="")), ID)

    assert found.text == "as an earlier version wrote it"
    assert await vectors.count() == 0


async def test_the_same_question_of_several_callers_is_several_entries() -> None:
    exact = MemoryStore()
    for namespace in (HERE, "support/key:1", "other/everyone"):
        await put(exact, namespace, entry())

    of_one, _ = await places(exact, ID, endpoint="support", likely=[])
    of_all, whole = await places(exact, ID, endpoint=None, likely=[])

    assert sorted(place.namespace for place in of_one) == [HERE, "support/key:1"]
    assert (len(of_all), whole) == (3, True)


class EndlessStore(MemoryStore):
    async def sizes(self) -> Mapping[str, int]:
        await asyncio.Event().wait()
        raise AssertionError


async def test_where_listing_takes_too_long_the_namespaces_of_known_keys_are_asked() -> None:
    exact = EndlessStore()
    await put(exact, "support/team:blue", entry())
    key = VirtualKey(key_id="1", name="n", created_at=0.0, team="blue")

    found, whole = await places(exact, ID, endpoint=None, likely=likely_namespaces(["support"], [key]), listing=0.01)

    assert [place.namespace for place in found] == ["support/team:blue"]
    assert not whole


def test_entries_may_lie_with_everyone_with_a_key_and_with_its_team() -> None:
    keys = [
        VirtualKey(key_id="1", name="n", created_at=0.0, team="blue"),
        VirtualKey(key_id="2", name="n", created_at=0.0, team="blue"),
    ]

    assert likely_namespaces(["e"], keys) == ["e/everyone", "e/key:1", "e/team:blue", "e/key:2"]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (ANSWER.body, "Under Billing."),
        (b'{"choices":[{"text":"a"},{"text":"b"}]}', "a\nb"),
        (b'{"choices":[{"message":{"content":null}}]}', ""),
        (b'{"data":[]}', ""),
        (b"", ""),
        (b"[1]", ""),
    ],
)
def test_an_answer_is_shown_as_its_text(body: bytes, text: str) -> None:
    assert said(msgspec.structs.replace(ANSWER, body=body)) == text


# --- the log


def lookup(request_id: str, *, about: str = ID) -> Lookup:
    return Lookup(1.0, "support", request_id, asked="asked", entry=about, cosine=0.9, embedder="e")


def verdict(*, request_id: str = "") -> Verdict:
    return Verdict(1.0, "support", ID, wrong=True, by="people", request_id=request_id)


def test_the_look_up_of_a_request_is_found_and_what_was_said_of_it(tmp_path: Path) -> None:
    log = tmp_path / "lookups.jsonl"
    rows = [lookup("req_1"), lookup("req_2", about=OTHER), verdict()]
    log.write_bytes(b"".join(encoded(row) + b"\n" for row in rows) + b"no JSON req_1\n" + b'{"kind":"lookup","req_1')

    of_one = past(log, ID, "req_1")
    of_other = past(log, ID, "req_2")
    of_none = past(log, "d" * 64, None)

    assert (of_one.lookup, of_one.endpoint, of_one.verdicts) == (rows[0], "support", (rows[2],))
    assert of_other.lookup == rows[1]
    assert (of_none.lookup, of_none.endpoint) == (None, "")


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "lookups.jsonl"
    row = encoded(lookup("req_1")) + b"\n"
    log.write_bytes(row + encoded(lookup("req_2")) + b"\n")

    assert past(log, ID, "req_1", searched=len(row) + 5).lookup is None
    assert past(log, ID, "req_2", searched=len(row) + 5).lookup is not None


def test_the_log_before_this_one_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "lookups.1.jsonl").write_bytes(encoded(lookup("req_1")) + b"\n")
    (tmp_path / "lookups.jsonl").write_bytes(encoded(lookup("req_2")) + b"\n")

    assert past(tmp_path / "lookups.jsonl", ID, "req_1").lookup == lookup("req_1")


def test_a_log_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert past(tmp_path / "none.jsonl", ID, None) == Past()


def test_a_verdict_is_a_line_of_its_own_also_after_half_a_line(tmp_path: Path) -> None:
    log = tmp_path / "lookups.jsonl"
    log.write_bytes(b'{"kind":"lookup"')

    recorded(log, verdict())
    recorded(log, verdict(request_id="req_1"))

    assert log.read_bytes().split(b"\n")[1:] == [encoded(verdict()), encoded(verdict(request_id="req_1")), b""]


def test_a_log_that_cannot_be_read_or_written_is_a_backend_error(tmp_path: Path) -> None:
    full = tmp_path / "lookups.jsonl"
    full.symlink_to("/dev/full")

    with pytest.raises(BackendError, match="No space left"):
        recorded(full, verdict())
    with pytest.raises(BackendError, match="cannot be read"):
        past(tmp_path, ID, None)
