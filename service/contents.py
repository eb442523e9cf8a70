"""What the stores hold: counted, cleared, written to a file and read from one.

The file is JSON Lines, described in docs/stores.md under "Moving". Everything
goes an entry at a time: what does not fit into memory can be moved.
"""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Annotated, BinaryIO

import msgspec
import numpy as np

from backends.embedding.base import Embedder
from backends.exact.base import ExactStore
from backends.vector.base import VectorStore
from models.completion import Completion, Entry, Usage
from models.errors import TextRefused
from service.caching.stored import StoredQuestion, payload
from service.caching.stored import read as stored_question
from service.pipeline.exact_tier import decoded, encoded

VERSION = 1
_AT_ONCE = 64  # writes under way
_LONGEST_LINE = 64 << 20
_SHORTEST, _LONGEST = 1e-6, 1e6  # what an embedder makes is about 1 long
_LONGEST_SKETCH = 4096


class Selection(msgspec.Struct, frozen=True):
    """Which entries. None is all; `written_before` in seconds since the epoch, `key_id` is a virtual key's."""

    endpoint: str | None = None
    key_id: str | None = None
    written_before: float | None = None

    def takes(self, namespace: str) -> bool:
        endpoint, _, rest = namespace.partition("/")
        if self.endpoint is not None and endpoint != self.endpoint:
            return False
        return self.key_id is None or rest.partition("/")[0] == f"key:{self.key_id}"

    @property
    def names_something(self) -> bool:
        """Neither an endpoint nor a key has a slash in its name; a prefix that had would be taken for a part of one."""
        return "/" not in f"{self.endpoint or ''}{self.key_id or ''}"

    @property
    def prefix(self) -> str:
        """What a walk may begin with: a namespace it all lies in."""
        if self.endpoint is None:
            return ""
        return self.endpoint if self.key_id is None else f"{self.endpoint}/key:{self.key_id}"


class Stores(msgspec.Struct, frozen=True):
    """`vectors` None: no endpoint compares questions."""

    exact: ExactStore
    vectors: VectorStore | None


# --- counting and clearing


async def counted(stores: Stores, selection: Selection) -> Mapping[str, int]:
    """Entries by endpoint; with `written_before` without aliases, which are no answers of their own."""
    counts: dict[str, int] = {}
    if selection.written_before is None:
        sizes = await stores.exact.sizes()
    else:
        sizes = {}
        async for namespace, _, entry in _entries(stores, selection):
            if not entry.alias_of:
                sizes[namespace] = sizes.get(namespace, 0) + 1
    for namespace, size in sizes.items():
        if selection.takes(namespace):
            endpoint = namespace.partition("/")[0]
            counts[endpoint] = counts.get(endpoint, 0) + size
    return counts


def _nobody_is_told(_: int) -> None: ...


async def cleared(stores: Stores, selection: Selection, *, progress: Callable[[int], None] = _nobody_is_told) -> int:
    """How many entries went, from the exact store. The vectors that led to them go too. `progress` is told of the
    entries gone so far."""
    if not selection.names_something:
        return 0
    if selection.written_before is not None:
        return await _cleared_by_age(stores, selection, progress)
    if selection.endpoint is not None or selection.key_id is None:
        prefixes = [selection.prefix]
    else:
        prefixes = [namespace for namespace in await stores.exact.sizes() if selection.takes(namespace)]
    count = 0
    for prefix in prefixes:
        count += await stores.exact.clear(prefix)
        if stores.vectors is not None:
            await stores.vectors.clear(prefix)
        progress(count)
    return count


async def _cleared_by_age(stores: Stores, selection: Selection, progress: Callable[[int], None]) -> int:
    gone = set()
    count = 0
    async for namespace, key, entry in _entries(stores, selection):
        if await stores.exact.delete(namespace, key):
            gone.add(_mark(namespace, key))
            count += not entry.alias_of
            progress(count)
    if stores.vectors is not None and gone:
        async for stored in stores.vectors.entries(selection.prefix):
            if _mark(_home(stored.namespace), stored.entry_id) in gone:
                await stores.vectors.delete(stored.namespace, stored.entry_id)
                progress(count)
    return count


async def _entries(stores: Stores, selection: Selection) -> AsyncIterator[tuple[str, str, Entry]]:
    async for stored in stores.exact.entries(selection.prefix):
        if selection.takes(stored.namespace):
            entry = decoded(stored.value)
            if entry is not None and (selection.written_before is None or entry.created_at < selection.written_before):
                yield stored.namespace, stored.key, entry


def _home(namespace: str) -> str:
    """Of a question's namespace, the part that its entry lies in: endpoint and whose it is."""
    return namespace.rpartition("/")[0]


def _mark(namespace: str, key: str) -> bytes:
    """Stands for an entry in memory: 16 bytes, however long its names are."""
    return blake2b(f"{namespace}\0{key}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


# --- the lines of a file


class Header(msgspec.Struct, frozen=True, tag="keepgate-cache", tag_field="kind"):
    """The first line. `embedder` made the vectors; None: there are none."""

    version: int
    written_at: float
    embedder: str | None = None
    dimensions: int | None = None


Moment = Annotated[float, msgspec.Meta(ge=0, le=1e11)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class UsageLine(msgspec.Struct, frozen=True):
    """Tokens, as `Usage`."""

    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    estimated: bool = False


class EntryLine(msgspec.Struct, frozen=True, tag="entry", tag_field="kind"):
    """One answer. `body` is the reply as the client dialects are made of it. Times are seconds since the epoch.
    `question` is the last part of the namespace that its question lies in."""

    namespace: str
    key: str
    created_at: Moment
    expires_at: Moment
    upstream: str
    model: str
    usage: UsageLine
    finish_reasons: tuple[str, ...]
    body: msgspec.Raw
    acted: tuple[str, ...] = ()
    masked: bool = False
    question: str = ""


class AliasLine(msgspec.Struct, frozen=True, tag="alias", tag_field="kind"):
    """A request that was answered by the entry of key `alias_of` in the same namespace, at this `similarity` and under
    this `rule`."""

    namespace: str
    key: str
    alias_of: Annotated[str, msgspec.Meta(min_length=1)]
    created_at: Moment
    expires_at: Moment
    similarity: float = 0.0
    rule: str = ""
    question: str = ""


class QuestionLine(msgspec.Struct, frozen=True, omit_defaults=True, tag="question", tag_field="kind"):
    """A text that leads to the entry of key `entry` in the namespace above its own, or to the one that it is an alias
    of. `vector` is base64 of little-endian float32, `sketch` base64 of what is kept of the answer."""

    namespace: str
    entry: str
    text: str
    expires_at: Moment | None
    vector: str
    sketch: Annotated[str, msgspec.Meta(max_length=_LONGEST_SKETCH)] = ""
    alias_of: str = ""


Line = Header | EntryLine | AliasLine | QuestionLine

_line = msgspec.json.Decoder(Line).decode
_json = msgspec.json.Encoder().encode


class BadFile(Exception):
    """The file cannot be read on, and why."""


# --- writing


class Written(msgspec.Struct):
    """What an export came to."""

    entries: int = 0
    aliases: int = 0
    questions: int = 0
    already: int = 0


class Earlier(msgspec.Struct):
    """What a file that was begun before has. `length` is where its last whole line ends."""

    header: Header
    length: int
    marks: set[bytes]


def earlier(file: BinaryIO) -> Earlier:
    """Reads a file that an export was stopped in. Raises `BadFile` for one that is none."""
    marks: set[bytes] = set()
    header: Header | None = None
    length = 0
    for number, raw in enumerate(file, 1):
        if not raw.endswith(b"\n"):
            break  # what was being written
        line = _parsed(raw, number)
        if header is None:
            header = _checked_header(line)
        elif isinstance(line, EntryLine | AliasLine):
            marks.add(_mark(line.namespace, line.key))
        elif isinstance(line, QuestionLine):
            marks.add(_mark(f"?{line.namespace}", line.entry))
        length += len(raw)
    if header is None:
        raise BadFile("there is no export in it to go on with")
    return Earlier(header, length, marks)


async def exported(
    stores: Stores,
    selection: Selection,
    out: BinaryIO,
    *,
    header: Header,
    begun: Earlier | None = None,
    progress: Callable[[Written], None],
) -> Written:
    """Writes what `begun` does not have. Raises `BackendError` and `OSError`."""
    written = Written()
    marks: set[bytes] = set() if begun is None else begun.marks
    taken = None if selection.written_before is None else set(marks)
    if begun is None:
        out.write(_json(header) + b"\n")
    async for namespace, key, entry in _entries(stores, selection):
        if _mark(namespace, key) in marks:
            written.already += 1
            progress(written)
            continue
        out.write(_json(_entry_line(namespace, key, entry)) + b"\n")
        if entry.alias_of:
            written.aliases += 1
        else:
            written.entries += 1
        progress(written)
        if taken is not None:
            taken.add(_mark(namespace, key))
    if stores.vectors is not None and header.embedder is not None:
        # Of all entries, those that lead to one which has gone are written too: they lead nowhere.
        async for stored in stores.vectors.entries(selection.prefix):
            if not selection.takes(stored.namespace):
                continue
            if taken is not None and _mark(_home(stored.namespace), stored.entry_id) not in taken:
                continue
            if _mark(f"?{stored.namespace}", stored.entry_id) in marks:
                written.already += 1
                progress(written)
                continue
            kept = stored_question(stored.payload)
            question = QuestionLine(
                namespace=stored.namespace,
                entry=stored.entry_id,
                text=kept.text,
                expires_at=None if stored.expires_at == float("inf") else stored.expires_at,
                vector=base64.b64encode(stored.vector.astype("<f4").tobytes()).decode(),
                sketch=base64.b64encode(kept.sketch).decode(),
                alias_of=kept.alias_of,
            )
            out.write(_json(question) + b"\n")
            written.questions += 1
            progress(written)
    out.flush()
    return written


def _entry_line(namespace: str, key: str, entry: Entry) -> EntryLine | AliasLine:
    if entry.alias_of:
        return AliasLine(
            namespace=namespace,
            key=key,
            alias_of=entry.alias_of,
            created_at=entry.created_at,
            expires_at=entry.expires_at,
            similarity=entry.similarity,
            rule=entry.rule,
            question=entry.question,
        )
    completion = entry.completion
    body = completion.body
    if b"\n" in body or b"\r" in body:
        body = msgspec.json.format(body, indent=-1)
    return EntryLine(
        namespace=namespace,
        key=key,
        created_at=entry.created_at,
        expires_at=entry.expires_at,
        upstream=entry.upstream,
        model=completion.model,
        usage=UsageLine(*msgspec.structs.astuple(completion.usage)),
        finish_reasons=completion.finish_reasons,
        body=msgspec.Raw(body),
        acted=entry.acted,
        masked=entry.masked,
        question=entry.question,
    )


# --- reading


class Read(msgspec.Struct):
    """What an import came to. `bad` are numbers of lines with what is wrong with them, the first few."""

    entries: int = 0
    aliases: int = 0
    questions: int = 0
    already: int = 0  # there, and not older
    expired: int = 0
    other_embedder: int = 0
    refused: int = 0  # by the embedder
    bad: int = 0
    problems: list[str] = []


_PROBLEMS = 10


async def imported(
    stores: Stores,
    source: BinaryIO,
    *,
    embedder: Embedder | None,
    embed_anew: bool,
    progress: Callable[[Read], None],
    clock: Callable[[], float] = time.time,
) -> Read:
    """Safe to repeat: what is there already and not older stays, so a second run goes on where the first was stopped.

    Vectors of another embedder are passed over, or made anew from their text
    where `embed_anew`. Raises `BadFile` for what is no export, `BackendError`
    where a store cannot be written.
    """
    read = Read()
    lines = _lines(source, read)
    header = next(lines, None)
    if header is None:
        raise BadFile("it is empty")
    made_by = _checked_header(header).embedder
    vectors = None if embedder is None else stores.vectors
    writing = _Writing()
    try:
        for line in lines:
            if isinstance(line, EntryLine | AliasLine):
                await writing.begin(_put(stores, line, read, clock()))
            elif isinstance(line, Header):  # several exports in a row
                made_by = _checked_header(line).embedder
            else:
                anew = embedder if embedder is not None and made_by != embedder.revision else None
                if vectors is None or (anew is not None and not embed_anew):
                    read.other_embedder += 1
                else:
                    await writing.begin(_upsert(vectors, line, read, clock(), anew))
            progress(read)
    finally:
        await writing.end()
    return read


class _Writing:
    """Several writes at once; the first that fails is raised to who begins one."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(self, work: "asyncio._CoroutineLike[None]") -> None:
        self._tasks.add(asyncio.create_task(work))
        if len(self._tasks) >= _AT_ONCE:
            done, self._tasks = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            _raise_first([task.exception() for task in done])

    async def end(self) -> None:
        _raise_first(await asyncio.gather(*self._tasks, return_exceptions=True))


def _raise_first(failures: Sequence[BaseException | None]) -> None:
    for failure in failures:
        if failure is not None:
            raise failure


async def _put(stores: Stores, line: EntryLine | AliasLine, read: Read, now: float) -> None:
    if line.expires_at <= now:
        read.expired += 1
        return
    there = await stores.exact.get(line.namespace, line.key)
    known = None if there is None else decoded(there)
    if known is not None and known.created_at >= line.created_at:
        read.already += 1
        return
    entry = _entry(line, created_at=min(line.created_at, now))  # one from the future would withstand every refresh
    await stores.exact.put(line.namespace, line.key, encoded(entry), ttl=line.expires_at - now)
    if entry.alias_of:
        read.aliases += 1
    else:
        read.entries += 1


def _entry(line: EntryLine | AliasLine, *, created_at: float) -> Entry:
    if isinstance(line, AliasLine):
        return Entry(
            Completion(b"", "", Usage()),
            created_at,
            line.expires_at,
            line.key,
            upstream="",
            question=line.question,
            alias_of=line.alias_of,
            similarity=line.similarity,
            rule=line.rule,
        )
    usage = Usage(*msgspec.structs.astuple(line.usage))
    completion = Completion(bytes(line.body), line.model, usage, line.finish_reasons)
    return Entry(
        completion, created_at, line.expires_at, line.key, line.upstream, line.acted, line.masked, line.question
    )


async def _upsert(vectors: VectorStore, line: QuestionLine, read: Read, now: float, embedder: Embedder | None) -> None:
    """`embedder` None: the line's own vector is used."""
    if line.expires_at is not None and line.expires_at <= now:
        read.expired += 1
        return
    if embedder is None:
        vector = np.frombuffer(base64.b64decode(line.vector), dtype="<f4").astype(np.float32)
        if len(vector) != vectors.dimensions:
            _found_bad(read, f"a vector has {len(vector)} dimensions and not {vectors.dimensions}")
            return
        vector = vector / np.float32(np.linalg.norm(vector))
    else:
        try:
            vector = (await embedder.embed([line.text], role="document"))[0]
        except TextRefused:
            read.refused += 1
            return
    ttl = None if line.expires_at is None else line.expires_at - now
    kept = StoredQuestion(line.text, base64.b64decode(line.sketch), line.alias_of)
    await vectors.upsert(line.namespace, line.entry, vector, payload(kept), ttl=ttl)
    read.questions += 1


def _lines(source: BinaryIO, read: Read) -> Iterator[Line]:
    """The lines that can be read; the others are counted and named."""
    number = 0
    while raw := source.readline(_LONGEST_LINE + 1):
        number += 1
        if not raw.strip():
            continue
        try:
            yield _parsed(raw, number)
        except BadFile as error:
            if number == 1:
                raise
            _found_bad(read, str(error))
            while not raw.endswith(b"\n") and raw:
                raw = source.readline(_LONGEST_LINE)


def _found_bad(read: Read, problem: str) -> None:
    read.bad += 1
    if len(read.problems) < _PROBLEMS:
        read.problems.append(problem)


def _parsed(raw: bytes, number: int) -> Line:
    if len(raw) > _LONGEST_LINE:
        raise BadFile(f"line {number} is longer than {_LONGEST_LINE >> 20} MB")
    try:
        line: Line = _line(raw)
        if isinstance(line, QuestionLine):
            vector = base64.b64decode(line.vector, validate=True)
            base64.b64decode(line.sketch, validate=True)
            if len(vector) % 4 or not _SHORTEST < np.linalg.norm(np.frombuffer(vector, "<f4").astype(float)) < _LONGEST:
                raise ValueError("its vector is not one")
        elif isinstance(line, EntryLine) and not bytes(line.body).startswith(b"{"):
            raise ValueError("its body is no reply")
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError) as error:
        # Where it is, without what is in it.
        place = str(error).partition(" - at `")[2].rstrip("`")
        raise BadFile(f"line {number} is no line of an export" + (f": see {place}" if place else "")) from error
    return line


def _checked_header(line: Line) -> Header:
    if not isinstance(line, Header):
        raise BadFile("its first line is not that of an export")
    if line.version != VERSION:
        raise BadFile(f"it has version {line.version} of the format; this version reads {VERSION}")
    return line
