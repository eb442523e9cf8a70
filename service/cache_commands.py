"""`keepgate cache`: what the stores hold, beside the gateway or without it.

Progress and questions go to stderr, results to stdout.
"""

import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from backends.embedding.base import Embedder
from models.errors import BackendError, ConfigError, RequestError
from service import contents
from service.contents import BadFile, Header, Read, Selection, Stores, Written
from service.pipeline import warm
from service.pipeline.warm import BadLine, Warmed
from service.settings import Settings
from service.wiring import Runtime, make_embedder, open_exact_store, open_vector_store, semantic_somewhere

_T = TypeVar("_T")

_TOLD_EVERY = 2.0
_NAMED = 10
_STANDARD = Path("-")


def stats(settings: Settings, selection: Selection, *, as_json: bool) -> int:
    async def work(stores: Stores, embedder: Embedder | None) -> dict[str, Any]:
        counts = await contents.counted(stores, selection)
        found: dict[str, Any] = {
            "exact": {"store": settings.cache.exact.store, "entries": sum(counts.values())},
            "endpoints": dict(sorted(counts.items())),
        }
        if stores.vectors is not None and embedder is not None:
            found["vector"] = {
                "store": settings.cache.vector.store,
                "entries": await stores.vectors.count(),
                "embedder": embedder.revision,
            }
        return found

    found = _run(settings, work)
    _doubt(settings, selection, found["exact"]["entries"])
    if as_json:
        print(json.dumps(found))
        return 0
    print(f"{found['exact']['entries']:,} entries in {found['exact']['store']}")
    for name, count in found["endpoints"].items():
        print(f"  {name}: {count:,}")
    if "vector" in found:
        print(f"{found['vector']['entries']:,} vectors of all endpoints in {found['vector']['store']}")
        print(f"  of {found['vector']['embedder']}")
    return 0


def clear(settings: Settings, selection: Selection, *, yes: bool, as_json: bool) -> int:
    async def count(stores: Stores, _: Embedder | None) -> int:
        return sum((await contents.counted(stores, selection)).values())

    async def work(stores: Stores, _: Embedder | None) -> int:
        return await contents.cleared(stores, selection, progress=_told(lambda gone: f"{gone:,} entries cleared"))

    if not yes:
        if not sys.stdin.isatty():
            print("keepgate: nobody can be asked here: --yes clears without asking", file=sys.stderr)
            return 2
        print(f"Clear {_run(settings, count):,} entries? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("Nothing was cleared.", file=sys.stderr)
            return 1
    cleared = _run(settings, work)
    _doubt(settings, selection, cleared)
    print(json.dumps({"entries": cleared}) if as_json else f"{cleared:,} entries cleared")
    return 0


def export(settings: Settings, selection: Selection, file: Path, *, resume: bool, as_json: bool) -> int:
    async def work(stores: Stores, embedder: Embedder | None) -> Written:
        header = Header(
            version=contents.VERSION,
            written_at=time.time(),
            embedder=None if embedder is None else embedder.revision,
            dimensions=None if embedder is None else embedder.dimensions,
        )
        if file == _STANDARD:
            return await contents.exported(
                stores, selection, sys.stdout.buffer, header=header, progress=_told(_moved_so_far("written"))
            )
        with _begun(file, resume=resume) as out:
            begun = None
            if resume and out.seek(0, os.SEEK_END):
                out.seek(0)
                begun = contents.earlier(out)
                if begun.header.embedder != header.embedder:
                    raise BadFile("its vectors are of another embedder than the one configured now")
                out.seek(begun.length)
                out.truncate()
            written = await contents.exported(
                stores, selection, out, header=header, begun=begun, progress=_told(_moved_so_far("written"))
            )
            os.fsync(out.fileno())
            return written

    written = _moved(file, lambda: _run(settings, work))
    if written is None:
        return 1
    _doubt(settings, selection, written.entries + written.already)
    if as_json and file != _STANDARD:
        print(json.dumps(msgspec.to_builtins(written)))
    else:
        before = f", {written.already:,} were there already" if written.already else ""
        told = f"{written.entries:,} entries and {written.questions:,} questions written{before}"
        print(told, file=sys.stderr if file == _STANDARD else sys.stdout)
    return 0


def import_(settings: Settings, file: Path, *, embed_anew: bool, as_json: bool) -> int:
    async def work(stores: Stores, embedder: Embedder | None) -> Read:
        if embed_anew and embedder is not None:
            await embedder.load()
        with sys.stdin.buffer if file == _STANDARD else file.open("rb") as source:
            return await contents.imported(
                stores, source, embedder=embedder, embed_anew=embed_anew, progress=_told(_moved_so_far("read"))
            )

    read = _moved(file, lambda: _run(settings, work))
    if read is None:
        return 1
    if as_json:
        print(json.dumps(msgspec.to_builtins(read)))
    else:
        print(f"{read.entries:,} entries and {read.questions:,} questions read")
        for count, what in (
            (read.already, "were there already"),
            (read.expired, "had expired"),
            (read.other_embedder, "questions are of another embedder: --re-embed makes their vectors anew"),
            (read.refused, "questions the embedder cannot take"),
            (read.bad, "lines could not be read"),
        ):
            if count:
                print(f"  {count:,} {what}")
    for problem in read.problems:
        print(f"keepgate: {problem}", file=sys.stderr)
    return 1 if read.bad else 0


def warm_up(
    settings: Settings,
    file: Path,
    *,
    endpoint: str,
    key_id: str | None,
    model: str | None,
    ttl: float | None,
    fields: Mapping[str, Any],
    strict: bool,
    as_json: bool,
) -> int:
    """With a gateway's own parts, and none of its doors: what it makes of a question is what they make of it."""
    _check_shared(settings)
    quiet = settings.model_copy(update={"logs": settings.logs.model_copy(update={"requests": "off"})})

    async def work(source: BinaryIO) -> Warmed:
        runtime = Runtime(quiet, config=None, environ={}, admin_token="")
        await runtime.start()
        try:
            return await warm.warm(
                runtime.state.gateway,
                warm.lines(source),
                endpoint=endpoint,
                key_id=key_id,
                model=model,
                ttl=ttl,
                fields=fields,
                progress=_told(lambda so_far: f"{so_far.entries:,} entries made"),
            )
        finally:
            await runtime.close()

    def all_of_it() -> Warmed | None:
        with _seekable(file) as source:
            bad = [(number, pair) for number, pair in warm.lines(source) if isinstance(pair, BadLine)] if strict else []
            if bad:
                for number, problem in bad[:_NAMED]:
                    print(f"keepgate: {file}: line {number} {problem}", file=sys.stderr)
                print(f"keepgate: {file}: {len(bad):,} bad lines, so nothing was stored (--strict)", file=sys.stderr)
                return None
            source.seek(0)
            return asyncio.run(work(source))

    try:
        told = _moved(file, all_of_it)
    except RequestError as error:
        print(f"keepgate: {error.message}", file=sys.stderr)
        return 1
    if told is None:
        return 1
    if as_json:
        print(json.dumps(msgspec.to_builtins(told)))
    else:
        _print_warmed(told)
    for problem in told.problems:
        print(f"keepgate: {file}: {problem}", file=sys.stderr)
    incomplete = told.failed or told.not_semantic.get(warm.DEGRADED)
    return 1 if incomplete or (strict and told.bad) or (told.bad and not told.entries) else 0


def _print_warmed(told: Warmed) -> None:
    print(f"{told.entries:,} entries made, {told.questions:,} of them found by likeness too")
    counts = [(told.renewed, "took the place of one that was there")]
    counts += [(count, f"are found exactly only: {reason}") for reason, count in sorted(told.not_semantic.items())]
    counts += [
        (told.blocked, "not stored: guardrails block them, or did not see all of them"),
        (told.masked, "not stored: guardrails mask something in the question"),
        (told.failed, "not stored: the store did not take them"),
        (told.bad, "lines could not be used"),
    ]
    for count, what in counts:
        if count:
            print(f"  {count:,} {what}")


@contextmanager
def _seekable(file: Path) -> Iterator[BinaryIO]:
    """What comes from a pipe is put aside first: it may be read twice."""
    if file != _STANDARD:
        with file.open("rb") as source:
            yield source
        return
    with tempfile.TemporaryFile() as aside:
        shutil.copyfileobj(sys.stdin.buffer, aside)
        aside.seek(0)
        yield aside


def _doubt(settings: Settings, selection: Selection, found: int) -> None:
    """An endpoint that is gone may have left entries; one that has none is a slip of the pen."""
    known = sorted(endpoint.name for endpoint in settings.endpoints)
    if not found and selection.endpoint is not None and selection.endpoint not in known:
        print(f"keepgate: no endpoint is named {selection.endpoint!r}; known: {', '.join(known)}", file=sys.stderr)


def _run(settings: Settings, work: Callable[[Stores, Embedder | None], Coroutine[Any, Any, _T]]) -> _T:
    async def run() -> _T:
        async with _opened(settings) as (stores, embedder):
            return await work(stores, embedder)

    return asyncio.run(run())


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[tuple[Stores, Embedder | None]]:
    """The embedder is not loaded: its revision and dimensions are known without."""
    _check_shared(settings)
    exact = open_exact_store(settings)
    try:
        if not semantic_somewhere(settings):
            yield Stores(exact, None), None
            return
        embedder = make_embedder(settings)
        vectors = open_vector_store(settings, dimensions=embedder.dimensions, revision=embedder.revision)
        try:
            yield Stores(exact, vectors), embedder
        finally:
            await vectors.close()
            await embedder.close()
    finally:
        await exact.close()


def _check_shared(settings: Settings) -> None:
    """Raises `ConfigError` for stores that nobody but the gateway itself can reach."""
    for tier, chosen, own in (
        ("exact", settings.cache.exact.store, "memory"),
        ("vector", settings.cache.vector.store, "flat"),
    ):
        if chosen == own:
            raise ConfigError(
                f"cache.{tier}.store: {own} is inside the gateway's own process; its management API, "
                "/admin/api, reaches it"
            )


def _begun(file: Path, *, resume: bool) -> BinaryIO:
    """For its owner only: it holds what users asked and were told."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | (0 if resume else os.O_EXCL), 0o600)
    except FileExistsError:
        raise BadFile("it is there already: --resume goes on with it") from None
    return os.fdopen(descriptor, "r+b")


def _moved(file: Path, work: Callable[[], _T]) -> _T | None:
    """None where it failed; then it was said why."""
    try:
        return work()
    except BadFile as error:
        print(f"keepgate: {file}: {error}", file=sys.stderr)
    except OSError as error:
        if isinstance(error, BackendError):
            raise
        print(f"keepgate: {file}: {error.strerror or error}", file=sys.stderr)
    return None


def _moved_so_far(what: str) -> Callable[[Written | Read], str]:
    def told(so_far: Written | Read) -> str:
        before = f", {so_far.already:,} were there already" if so_far.already else ""
        return f"{so_far.entries:,} entries and {so_far.questions:,} questions {what}{before}"

    return told


def _told(in_words: Callable[[_T], str]) -> Callable[[_T], None]:
    """Every two seconds."""
    told_at = time.monotonic()

    def tell(so_far: _T) -> None:
        nonlocal told_at
        if time.monotonic() > told_at + _TOLD_EVERY:
            told_at = time.monotonic()
            print(in_words(so_far), file=sys.stderr, flush=True)

    return tell
