"""What every store of tuning does, also when its process is killed, another one writes, or the disk is full."""

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from backends.registry import create
from backends.tuning.base import TuningStore
from models.errors import BackendError
from tests.support.gateway import eventually
from tests.support.servers import ROOT

SUITE = {"tuning": {"files"}}

# Each opens the store of the kind named first, in the folder named second.
_WRITES_FOR_EVER = """
import sys
from pathlib import Path
from backends.registry import create
store = create("tuning", sys.argv[1], path=Path(sys.argv[2]))
print("ready", flush=True)
while True:
    for letter in b"ab":
        store.write("faq", "tuned", bytes([letter]) * 1_000_000)
"""
_COUNTS = """
import sys
from pathlib import Path
from backends.registry import create
store = create("tuning", sys.argv[1], path=Path(sys.argv[2]))
for _ in range(int(sys.argv[3])):
    store.change("faq", "watch", lambda old: str(int(old or b"0") + 1).encode())
"""
_FULL = """
import resource, signal, sys
from pathlib import Path
from backends.registry import create
from models.errors import BackendError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = create("tuning", sys.argv[1], path=Path(sys.argv[2]))
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
try:
    store.write("faq", "tuned", b"new" * 100_000)
except BackendError as error:
    print(error)
"""

Opened = Callable[[], TuningStore]


@pytest.fixture(params=sorted(SUITE["tuning"]))
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def opened(kind: str, tmp_path: Path) -> Opened:
    """Opens the store of this test once more."""

    def open_it() -> TuningStore:
        store: TuningStore = create("tuning", kind, path=tmp_path / "tuning")
        return store

    return open_it


@pytest.fixture
def store(opened: Opened) -> TuningStore:
    return opened()


def process(script: str, kind: str, tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, kind, str(tmp_path / "tuning"), *arguments]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE)  # noqa: S603 - the test's own


def test_what_nobody_wrote_is_not_there(store: TuningStore) -> None:
    assert store.read("faq", "tuned") is None


def test_what_was_written_is_read_by_all_who_open_it(store: TuningStore, opened: Opened) -> None:
    store.write("faq", "tuned", b"first")
    store.write("faq", "tuned", b"\x00second\xff")

    assert store.read("faq", "tuned") == opened().read("faq", "tuned") == b"\x00second\xff"


def test_endpoints_and_names_are_apart(store: TuningStore) -> None:
    store.write("faq", "tuned", b"1")
    store.write("faq", "watch", b"2")
    store.write("faq.eu-1_b", "tuned", b"3")

    assert [store.read("faq", "tuned"), store.read("faq", "watch"), store.read("faq.eu-1_b", "tuned")] == [
        b"1",
        b"2",
        b"3",
    ]
    assert store.read("faq.eu-1_b", "watch") is None


def test_none_removes_and_may_be_repeated(store: TuningStore) -> None:
    store.write("faq", "tuned", b"1")

    store.write("faq", "tuned", None)
    store.write("faq", "tuned", None)

    assert store.read("faq", "tuned") is None


def test_a_change_is_told_what_is_there_and_gives_what_it_made(store: TuningStore) -> None:
    made = [store.change("faq", "watch", lambda old: (old or b"") + b"x") for _ in range(3)]
    removed = store.change("faq", "watch", lambda _: None)

    assert made == [b"x", b"xx", b"xxx"]
    assert removed is None
    assert store.read("faq", "watch") is None


class Unwilling(Exception):
    """Raised by a change."""


def test_a_change_that_fails_changes_nothing_and_locks_nobody_out(store: TuningStore) -> None:
    def fail(_: bytes | None) -> bytes | None:
        raise Unwilling

    store.write("faq", "watch", b"old")
    with pytest.raises(Unwilling):
        store.change("faq", "watch", fail)
    store.write("faq", "tuned", b"later")

    assert store.read("faq", "watch") == b"old"


def test_the_stamp_tells_of_every_change_and_of_nothing_else(store: TuningStore, opened: Opened) -> None:
    def changed() -> object:
        return opened().stamp()

    stamps = [changed()]
    for content in (b"1", b"2", None, b"2"):
        store.write("faq", "tuned", content)
        stamps.append(changed())
    store.write("other", "override", b"2")
    stamps.append(changed())

    assert all(one != other for one, other in pairwise(stamps))
    assert changed() == changed()
    store.read("faq", "tuned")
    store.change("faq", "tuned", lambda old: old)
    assert changed() == stamps[-1]


def test_threads_that_change_at_once_lose_nothing(store: TuningStore, opened: Opened) -> None:
    def count() -> None:
        mine = opened()
        for _ in range(20):
            mine.change("faq", "watch", lambda old: str(int(old or b"0") + 1).encode())

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert store.read("faq", "watch") == b"80"


def test_processes_that_change_at_once_lose_nothing(kind: str, tmp_path: Path, store: TuningStore) -> None:
    processes = [process(_COUNTS, kind, tmp_path, "40") for _ in range(2)]

    for one in processes:
        one.communicate(timeout=60)

    assert [one.returncode for one in processes] == [0, 0]
    assert store.read("faq", "watch") == b"80"


def test_who_is_killed_in_the_middle_of_a_write_leaves_the_old_or_the_new(
    kind: str, tmp_path: Path, store: TuningStore
) -> None:
    for _ in range(4):
        writer = process(_WRITES_FOR_EVER, kind, tmp_path)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        # However far it is by now, it is writing.
        eventually(lambda: store.read("faq", "tuned"))
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()

        content = store.read("faq", "tuned")
        assert content in (b"a" * 1_000_000, b"b" * 1_000_000)

    store.write("faq", "tuned", b"and on it goes")
    assert store.read("faq", "tuned") == b"and on it goes"


def test_a_full_disk_keeps_the_old_and_says_so(kind: str, tmp_path: Path, store: TuningStore) -> None:
    store.write("faq", "tuned", b"old")

    full = process(_FULL, kind, tmp_path)
    said, _ = full.communicate(timeout=60)

    assert full.returncode == 0
    assert "cannot be written" in said
    assert store.read("faq", "tuned") == b"old"
    store.write("faq", "tuned", b"new")
    assert store.read("faq", "tuned") == b"new"


def test_a_place_that_cannot_be_written_is_a_backend_error(kind: str, tmp_path: Path) -> None:
    (tmp_path / "tuning").write_text("a file where a folder is meant")
    store: TuningStore = create("tuning", kind, path=tmp_path / "tuning")

    with pytest.raises(BackendError, match="cannot be written"):
        store.write("faq", "tuned", b"1")
    with pytest.raises(BackendError, match="cannot be read"):
        store.stamp()


def test_no_descriptor_is_left_open(store: TuningStore) -> None:
    store.write("faq", "tuned", b"1")
    before = len(list(Path("/proc/self/fd").iterdir()))

    for i in range(50):
        store.write("faq", "tuned", str(i).encode())
        store.stamp()

    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > before
