"""Files of entries: what is taken from a hostile one, and what an export picks."""

import base64
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.embedding.base import Role
from backends.exact.memory import MemoryStore
from backends.vector.flat import FlatStore
from models.errors import StoreFull
from service.caching.stored import StoredQuestion
from service.caching.stored import read as stored_question
from service.contents import Header, Read, Selection, Stores, cleared, counted, exported, imported
from service.pipeline.exact_tier import decoded

NOW = 1_000_000.0
HEADER = {"kind": "keepgate-cache", "version": 1, "written_at": 0, "embedder": "e/1", "dimensions": 2}
ENTRY = {
    "kind": "entry",
    "namespace": "default/everyone",
    "key": "k",
    "created_at": NOW - 10,
    "expires_at": NOW + 60,
    "upstream": "mock/m",
    "model": "m",
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "estimated": True},
    "finish_reasons": ["stop"],
    "body": {"id": "1"},
}


def vector(*numbers: float) -> str:
    return base64.b64encode(np.array(numbers, "<f4").tobytes()).decode()


QUESTION = {
    "kind": "question",
    "namespace": "default/everyone/q",
    "entry": "k",
    "text": "how?",
    "expires_at": NOW + 60,
    "vector": vector(1, 0),
}
ALIAS = {
    "kind": "alias",
    "namespace": "default/everyone",
    "key": "a",
    "alias_of": "k",
    "created_at": NOW - 10,
    "expires_at": NOW + 60,
    "similarity": 0.97,
    "rule": "r",
    "question": "q",
}
OF_ALIAS = QUESTION | {"entry": "a", "text": "why?", "alias_of": "k", "sketch": base64.b64encode(b"sketch").decode()}


class NoEmbedder:
    revision, dimensions = "e/1", 2

    async def load(self) -> None:
        """Nothing to load."""

    async def embed(self, texts: Sequence[str], *, role: Role) -> NDArray[np.float32]:
        raise AssertionError((texts, role))

    async def close(self) -> None:
        """Nothing to close."""


class FullStore(MemoryStore):
    async def put(self, namespace: str, key: str, value: bytes, *, ttl: float | None) -> None:  # noqa: ARG002  # the protocol's
        raise StoreFull("no room")


def stores(exact: MemoryStore | None = None) -> Stores:
    return Stores(exact or MemoryStore(clock=lambda: NOW), FlatStore(dimensions=2, clock=lambda: NOW))


async def read(into: Stores, *lines: dict[str, Any] | str) -> Read:
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in (HEADER, *lines))
    source = io.BytesIO(text.encode())
    return await imported(
        into, source, embedder=NoEmbedder(), embed_anew=False, progress=lambda _: None, clock=lambda: NOW
    )


@pytest.mark.parametrize(
    "line",
    [
        ENTRY | {"usage": {"prompt_tokens": 10**30}},
        ENTRY | {"usage": {"prompt_tokens": -1}},
        ENTRY | {"usage": {"estimated": 1}},
        ENTRY | {"body": 5},
        ENTRY | {"body": None},
        ENTRY | {"expires_at": 1e300},
        ENTRY | {"created_at": -1},
        QUESTION | {"vector": vector(0, 0)},
        QUESTION | {"vector": vector(3e38, 3e38)},
        QUESTION | {"vector": vector(float("nan"), 1)},
        QUESTION | {"vector": vector(1, 0, 0)},
        QUESTION | {"expires_at": 1e300},
        OF_ALIAS | {"sketch": "no base64"},
        OF_ALIAS | {"sketch": "AAAA" * 10_000},
        ALIAS | {"alias_of": ""},
        ALIAS | {"similarity": "much"},
        json.dumps(ENTRY).replace('{"id": "1"}', "[" * 50_000 + "]" * 50_000),
    ],
)
async def test_a_line_that_says_what_cannot_be_is_named_and_passed_over(line: dict[str, Any] | str) -> None:
    into = stores()

    told = await read(into, line, ENTRY | {"key": "good"})

    assert (told.bad, len(told.problems), told.entries, told.questions) == (1, 1, 1, 0)


async def test_counts_of_tokens_that_a_line_does_not_have_are_none() -> None:
    into = stores()

    told = await read(into, ENTRY | {"usage": {}})

    assert told.entries == 1


async def test_a_line_of_any_length_is_one_line() -> None:
    into = stores()

    told = await read(into, "x" * (130 << 20), "no JSON", ENTRY)

    assert (told.bad, told.entries) == (2, 1)
    assert told.problems == ["line 2 is longer than 64 MB", "line 3 is no line of an export"]


async def test_an_answer_from_the_future_is_one_of_now() -> None:
    into = stores()

    await read(into, ENTRY | {"created_at": NOW + 1e6})
    kept = await into.exact.get("default/everyone", "k")

    assert kept is not None
    entry = decoded(kept)
    assert entry is not None
    assert entry.created_at == NOW


async def test_vectors_of_a_second_export_in_a_file_are_those_of_its_own_embedder() -> None:
    into = stores()

    told = await read(into, QUESTION, HEADER | {"embedder": "other/1"}, QUESTION, HEADER, QUESTION)

    assert (told.questions, told.other_embedder) == (2, 1)


async def test_a_store_that_is_full_ends_an_import_with_its_reason() -> None:
    into = stores(FullStore())

    with pytest.raises(StoreFull, match="no room"):
        await read(into, *(ENTRY | {"key": str(number)} for number in range(200)))


async def test_an_export_of_old_entries_has_the_questions_that_lead_to_them_and_no_others() -> None:
    there = stores()
    for key, age in (("old", 100), ("new", 1)):
        await read(there, ENTRY | {"key": key, "created_at": NOW - age}, QUESTION | {"entry": key})
    out = io.BytesIO()

    written = await exported(
        there,
        Selection(written_before=NOW - 50),
        out,
        header=Header(1, NOW, "e/1", 2),
        progress=lambda _: None,
    )

    assert (written.entries, written.questions) == (1, 1)
    assert [json.loads(line)["entry"] for line in out.getvalue().splitlines()[2:]] == ["old"]


@pytest.mark.parametrize("selection", [Selection(endpoint="default/everyone"), Selection(key_id="a/b")])
async def test_what_is_no_name_clears_nothing(selection: Selection) -> None:
    there = stores()
    await read(there, ENTRY, ENTRY | {"namespace": "default/key:a/b"})

    assert await cleared(there, selection) == 0
    assert len(await there.exact.sizes()) == 2


@pytest.mark.parametrize("selection", [Selection(), Selection(written_before=NOW)])
async def test_who_clears_hears_how_far_it_is(selection: Selection) -> None:
    there, told = stores(), list[int]()
    await read(there, ENTRY, ENTRY | {"key": "other"})

    gone = await cleared(there, selection, progress=told.append)

    assert told[-1] == gone == 2


async def test_aliases_and_sketches_move_with_the_entry_they_belong_to() -> None:
    here, there = stores(), stores()
    told = await read(here, ENTRY | {"question": "q"}, ALIAS, QUESTION, OF_ALIAS)
    out = io.BytesIO()
    written = await exported(here, Selection(), out, header=Header(1, NOW, "e/1", 2), progress=lambda _: None)
    await read(there, *(json.loads(line) for line in out.getvalue().splitlines()[1:]))

    alias = decoded(await there.exact.get("default/everyone", "a") or b"")
    near = await there.vectors.nearest("default/everyone/q", np.array([1, 0], np.float32), limit=9)  # type: ignore[union-attr]  # it is there

    assert (told.entries, told.aliases, told.questions) == (written.entries, written.aliases, written.questions)
    assert (told.entries, told.aliases, told.questions) == (1, 1, 2)
    assert alias is not None
    assert (alias.alias_of, alias.similarity, alias.rule, alias.question) == ("k", 0.97, "r", "q")
    assert {one.entry_id: stored_question(one.payload) for one in near} == {
        "k": StoredQuestion("how?"),
        "a": StoredQuestion("why?", b"sketch", "k"),
    }


async def test_aliases_are_cleared_by_age_and_counted_by_nobody() -> None:
    there = stores()
    await read(there, ENTRY, ALIAS)
    old = Selection(written_before=NOW)

    counts = await counted(there, old)
    gone = await cleared(there, old)

    assert (counts, gone) == ({"default": 1}, 1)
    assert not await there.exact.sizes()
