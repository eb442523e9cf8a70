"""How many entries there are, where counting them takes longer than anybody waits."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from backends.exact.memory import MemoryStore
from models.errors import BackendError
from service.settings import load
from service.wiring import Runtime

CONFIG = """\
storage: {path: %s}
cache: {exact: {store: memory}}
upstreams: [{name: demo, provider: demo}]
endpoints: [{name: default, cache: {mode: exact}, guardrails: []}]
"""


class SlowStore(MemoryStore):
    """Counts when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.let = asyncio.Event()
        self.counts = 0
        self.broken = False

    async def sizes(self) -> Mapping[str, int]:
        self.counts += 1
        if self.broken:
            raise BackendError("broken")
        await self.let.wait()
        return {"default/everyone": 7, "gone/everyone": 3}


@asynccontextmanager
async def running(directory: Path, store: SlowStore) -> AsyncIterator[Runtime]:
    file = directory / "keepgate.yaml"
    file.write_text(CONFIG % directory)
    runtime = Runtime(load(file, {}), config=file, environ={}, admin_token="t")
    await runtime.start()
    runtime.exact.store = store
    try:
        yield runtime
    finally:
        await runtime.close()


async def test_a_count_that_takes_long_goes_on_while_nobody_waits_and_is_told_later(tmp_path: Path) -> None:
    store = SlowStore()
    async with running(tmp_path, store) as runtime:
        asked = [await runtime.entries_by_endpoint() for _ in range(3)]
        store.let.set()
        counted = await runtime.entries_by_endpoint()

    assert asked == [{}, {}, {}]  # nothing is said of what is not known
    assert counted == {"default": 7, "gone": 3}
    assert store.counts == 1


async def test_a_store_that_cannot_be_counted_is_not_asked_at_every_turn(tmp_path: Path) -> None:
    store = SlowStore()
    store.broken = True
    async with running(tmp_path, store) as runtime:
        told = [await runtime.entries_by_endpoint() for _ in range(3)]

    assert told == [{}, {}, {}]
    assert store.counts == 1
